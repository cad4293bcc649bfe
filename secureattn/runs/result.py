"""What a run brings back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.ledger import Ledger, Party
from secureattn.nn.batch import Shape
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
    """Outputs ``[n,1,C]`` of a plan's parts as ``[N,C]``, in the order of the inputs; scores of next tokens ``[n,s,V]``
    as ``[N,S,V]``, NaN behind an input's last token.
    """
    order = np.argsort([row for part in plan.parts for row in part])
    if plan.config.output != "next":
        found: Array = np.concatenate(outputs)[:, 0]
        return found[order]
    shape = plan.shape
    padded = [np.pad(x, ((0, 0), (0, shape.tokens - x.shape[1]), (0, 0)), constant_values=np.nan) for x in outputs]
    return without_padding(shape, np.concatenate(padded)[order])


def without_padding(shape: Shape, outputs: Array) -> Array:
    """Outputs ``[N,C]`` as they are, or scores at every token ``[N,S,V]`` with NaN behind an input's last token."""
    if outputs.ndim == 3 and shape.lengths is not None:
        outputs[np.arange(shape.tokens) >= np.array(shape.lengths)[:, None]] = np.nan
    return outputs
