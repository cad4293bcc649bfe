"""What the server says in JSON, as its OpenAPI description has it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="one sentence: what is wrong, what is needed, what to do")


class Progress(BaseModel):
    """How far a job is, ``done`` of ``of`` per cent of the seconds predicted."""

    text: str
    done: int
    of: int


class JobState(BaseModel):
    """A job: a query and what has become of it."""

    job: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    version: int = Field(description="counts changes; ask with it to hear of the next one")
    samples: int
    before: int = Field(description="jobs that were waiting before this one")
    round: int | None = Field(description="the refresh that waits for an answer, if one does")
    progress: Progress
    tries: int = Field(description="how often it was begun; more than once where a worker died or the server restarted")
    error: str


class KeyState(BaseModel):
    """A key set: which parts are here."""

    keys: str
    parts: list[str] = Field(description="of public and evaluation")


class PlaceDocument(BaseModel):
    """Slots that a query of this ``group`` may fill: its inputs from ``offset`` on, and 0 in all others."""

    group: str
    offset: int
    samples: int


class OfferDocument(BaseModel):
    """What is served: ``offer`` is the plan's terms, which keys and queries are made for."""

    offer: dict[str, Any]
    hash: str
    bytes: dict[str, int] = Field(description="the most that a file of each kind may have")
    limits: dict[str, float]


class Health(BaseModel):
    """Whether the server takes jobs."""

    ready: bool
    workers: int
    draining: bool
