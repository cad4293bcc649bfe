"""Largest value of the last axis, kept as 1: ``[…,n]`` → ``[…,1]``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secureattn.approx import relu
from secureattn.approx.realisation import COMPARE, EVERYWHERE, Builder, Interval, Realisation
from secureattn.errors import PlanError
from secureattn.tensor import Tensor


def TRUE(x: torch.Tensor) -> torch.Tensor:
    """``[…,n]`` → ``[…,1]``.

    Domain: all reals.
    Error: none.
    Cost: clear only.
    Source: definition.
    """
    return x.amax(-1, keepdim=True)


RANGE = "any"
TYPICAL = (-4.0, 4.0)


@dataclass(frozen=True)
class Tournament(Realisation):
    """Values meet in pairs, ``levels`` times; the products are of tensors, at each level of half as many values.

    Domain: that of the realisation.
    Error: ``levels`` times that of a meeting.
    Cost: ``n − 1`` meetings or a few more for n values.
    Source: definition.
    """

    meeting: Realisation | None = None
    levels: int = 0

    @property
    def depth(self) -> int | None:
        """Levels under CKKS, of one value's way to the top.

        Domain: at most ``2^levels`` values.
        Error: none.
        Cost: clear only.
        Source: definition.
        """
        assert self.meeting is not None
        return None if self.meeting.depth is None else self.levels * self.meeting.depth

    @property
    def products(self) -> int | None:
        """Ciphertext×ciphertext products, those of one meeting for each level.

        Domain: at most ``2^levels`` values.
        Error: none.
        Cost: clear only.
        Source: definition.
        """
        assert self.meeting is not None
        return None if self.meeting.products is None else self.levels * self.meeting.products


def composite(domain: Interval, *, gap: float = 2.0**-6, error: float = 1e-3, keys: int = 16) -> Realisation:
    """A tournament of ``max(a, b) = b + relu(a − b)``, relu by a composite minimax sign.

    Domain: ``[low, high]`` and at most ``keys`` values; the sign serves differences up to ``high − low``, and 1 + error
    times that for every level, as a winner may leave the interval by so much.
    Error: absolute, at most ⌈log2 keys⌉ times that of the relu, which is measured when made: 4.3e-3·(high − low)
    for 16 keys, a gap of 2^-6 and a sign's error of 1e-3.
    Cost: for n values ⌈log2 n⌉ times the depth of ``relu(composite)``, and its products for each of about n meetings.
    Source: Lee, Lee, No and Kim, eprint 2020/834.
    """
    if keys < 2:
        raise PlanError(f"max(composite) needs at least 2 keys, got {keys}; leave max out")
    levels = (keys - 1).bit_length()
    reach = (domain[1] - domain[0]) * (1 + error) ** levels
    meeting = relu.composite((-reach, reach), gap=gap, error=error)
    assert meeting.error is not None

    def apply(x: Tensor) -> Tensor:
        if x.shape[-1] > keys:
            raise PlanError(f"max(composite) was made for {keys} keys, got {x.shape[-1]}; raise keys")
        return _tournament(x, meeting)

    return Tournament(
        "max",
        "composite",
        domain,
        apply,
        error=levels * meeting.error,
        source=meeting.source,
        meeting=meeting,
        levels=levels,
    )


def _tournament(x: Tensor, relu_of: Realisation) -> Tensor:
    while (length := x.shape[-1]) > 1:
        half = (length + 1) // 2  # of an odd number, the one in the middle meets itself
        second = x.take(-1, slice(length - half, length))
        x = second + relu_of(x.take(-1, slice(0, half)) - second)
    return x


def compare(domain: Interval = EVERYWHERE) -> Realisation:
    """The engine's own tournament of comparisons.

    Domain: all reals.
    Error: none.
    Cost: ``n − 1`` comparisons and products in ⌈log2 n⌉ levels (needs COMPARE).
    Source: definition.
    """
    return Realisation("max", "compare", EVERYWHERE, lambda x: x.max(-1), error=0.0, needs=COMPARE, source="definition")


CANDIDATES = {"composite": relu.CANDIDATES["composite"]}
REALISATIONS: dict[str, Builder] = {"composite": composite, "compare": compare}
