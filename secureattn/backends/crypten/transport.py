"""Processes find each other and talk: torch.distributed over gloo, the parties in a group of their own."""

from __future__ import annotations

from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.errors import EngineError


class LinkLost(EngineError):
    """Another process went away in the middle of an exchange: a consequence, rarely the cause."""


class Link:
    """Marks when a process waits for others, and turns torch's errors into ours.

    ``waiting[rank]`` is 1 during an exchange, so whoever watches can tell who keeps the others waiting.
    """

    def __init__(self, rank: int, waiting: MutableSequence[int] | None = None) -> None:
        self.rank = rank
        self._waiting = waiting

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Wrap every call that waits for another process."""
        if self._waiting is not None:
            self._waiting[self.rank] = 1
        try:
            yield
        except RuntimeError as failure:
            reason = " ".join(str(failure).split())[:200]
            raise LinkLost(f"the connection to the other processes was lost: {reason}") from failure
        if self._waiting is not None:
            self._waiting[self.rank] = 0


def world_size(parameters: MpcParameters) -> int:
    """Processes in all: the parties, and the dealer where it has its own."""
    return parameters.parties + (parameters.dealer == "ttp")


def join(parameters: MpcParameters, *, rank: int, init_method: str) -> Any:
    """Meet the other processes at ``init_method`` (file:///…, tcp://host:port or env://); the parties' group.

    Every process calls this, the dealer included, and all make the group in the same order.
    """
    dist.init_process_group("gloo", init_method=init_method, world_size=world_size(parameters), rank=rank)
    return dist.new_group(list(range(parameters.parties)))


def leave() -> None:
    """Close all connections of this process."""
    if dist.is_initialized():
        dist.destroy_process_group()
