"""What a server is told: where it keeps things, and how much it lets clients take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secureattn.errors import InputError


@dataclass(frozen=True)
class Limits:
    """``jobs`` run at once, ``waiting`` wait for each client and ``waiting_in_all``; ``key_sets`` for each client and
    ``key_sets_in_all`` are kept. A job may take ``job_s`` seconds, the client as many as ``answer_s`` for a refresh,
    an upload may stand still for ``idle_s``. Results and unused keys are kept for ``keep_s`` and ``keep_keys_s``; at
    the end, jobs have ``grace_s``. A worker's processes may take ``memory_bytes`` together; ``tries``: how often a job
    is begun whose worker dies; ``share_s``: how long a small query waits for others under its keys to share its slots,
    0 where none does.
    """

    memory_bytes: int
    jobs: int = 1
    waiting: int = 8
    waiting_in_all: int = 64
    key_sets: int = 4
    key_sets_in_all: int = 32
    job_s: float = 3600.0
    answer_s: float = 120.0
    idle_s: float = 30.0
    keep_s: float = 3600.0
    keep_keys_s: float = 7 * 86400.0
    grace_s: float = 60.0
    tries: int = 2
    share_s: float = 0.0

    def __post_init__(self) -> None:
        wrong = [name for name, value in vars(self).items() if not value > 0 and name != "share_s"]
        if wrong:
            raise InputError(f"limits must be above 0: {', '.join(wrong)}")


@dataclass(frozen=True)
class Served:
    """What is served: a model and a protocol by name or path, and their plan's file."""

    model: str
    protocol: str
    plan: Path
