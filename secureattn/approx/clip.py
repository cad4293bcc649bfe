"""``min(max(x, −4), 12)``: the clipping of scores before SHAFT's softmax."""

from __future__ import annotations

import torch

from secureattn.approx.generic import Smooth
from secureattn.approx.realisation import COMPARE, EVERYWHERE, Builder, Interval, Realisation
from secureattn.errors import PlanError
from secureattn.tensor import Tensor

LOW, HIGH = -4.0, 12.0  # Kei and Chow, "SHAFT", NDSS 2025


def TRUE(x: torch.Tensor) -> torch.Tensor:
    """``min(max(x, −4), 12)``.

    Domain: all reals.
    Error: none.
    Cost: clear only.
    Source: SHAFT, NDSS 2025.
    """
    return x.clamp(LOW, HIGH)


RANGE = "any"
TYPICAL = (LOW, HIGH)


def compare(domain: Interval = EVERYWHERE) -> Realisation:
    """``x·([x < 12] − [x < −4]) − 4·[x < −4] + 12·(1 − [x < 12])``.

    Domain: all reals.
    Error: none.
    Cost: 2 comparisons, 1 product, one sum (needs COMPARE).
    Source: SHAFT, NDSS 2025.
    """

    def apply(x: Tensor) -> Tensor:
        below, not_above = x.less_each([LOW, HIGH])
        return x.combine([(LOW, below), (-HIGH, not_above)], [(x, not_above - below)], HIGH)

    return Realisation("clip", "compare", EVERYWHERE, apply, error=0.0, needs=COMPARE, source="SHAFT, NDSS 2025")


def none(domain: Interval) -> Realisation:
    """x itself, where the calibrated range needs no clipping.

    Domain: [−4, 12]; a range that leaves it is refused.
    Error: none.
    Cost: none.
    Source: definition.
    """
    if domain[0] < LOW or domain[1] > HIGH:
        raise PlanError(
            f"clip(none) holds on [{LOW:g}, {HIGH:g}], the calibrated range is [{domain[0]:.3g}, {domain[1]:.3g}]; "
            'use kind = "compare" on an engine that can, or retrain with a range penalty'
        )
    return Realisation("clip", "none", (LOW, HIGH), lambda x: x, error=0.0, source="definition")


REALISATIONS: dict[str, Builder] = {**Smooth("clip", TRUE).builders(), "compare": compare, "none": none}
