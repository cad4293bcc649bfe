"""What a run brings back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.ledger import Ledger, Party
from secureattn.plan import Plan

Array = npt.NDArray[np.float64]
Progress = Callable[[str, int, int], None]
"""Told what is going on, how many steps are done, and of how many (0 where that is not known)."""


@dataclass(frozen=True)
class Run:
    """Class scores ``[N,C]``, what the run cost, how many values left a function's domain (clear runs only), and what
    reports must warn of.
    """

    outputs: Array
    ledger: Ledger
    escapes: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def parties(self) -> tuple[Party, ...]:
        """Every role that kept events."""
        return self.ledger.parties

    def seconds(self) -> dict[str, float]:
        """Seconds by phase that occurred, and their total."""
        return {**self.ledger.phases, "total": self.ledger.seconds}

    def total(self, name: str, *, party: int = 0) -> int:
        """How often one party counted a primitive."""
        return sum(event.counts.get(name, 0) for event in self.parties[party].events)


def in_order(plan: Plan, outputs: Sequence[Any]) -> Array:
    """Outputs ``[n,1,C]`` of a plan's parts as ``[N,C]``, in the order of the inputs."""
    found: Array = np.concatenate(outputs)[:, 0]
    return found[np.argsort([row for part in plan.parts for row in part])]
