"""The kernel of stablemax: ``x + 1`` for x ≥ 0 and ``1/(1 − x)`` below."""

from __future__ import annotations

import torch

from secureattn.approx import reciprocal
from secureattn.approx.generic import Smooth
from secureattn.approx.realisation import COMPARE, Builder, Interval, Realisation, measured
from secureattn.tensor import Tensor


def TRUE(x: torch.Tensor) -> torch.Tensor:
    """``max(x, 0) + 1/(1 − min(x, 0))``.

    Domain: all reals.
    Error: none.
    Cost: clear only.
    Source: Prieto et al., arXiv 2501.04697.
    """
    return torch.relu(x) + torch.reciprocal(1 + torch.relu(-x))


RANGE = "any"
TYPICAL = (-4.0, 4.0)
_SMOOTH = Smooth("stablemax", TRUE)


def piecewise(domain: Interval, *, error: float = 1e-4) -> Realisation:
    """``relu(x) + 1/(1 − min(x,0))``, the reciprocal by a Fourier series on ``[1, 1 − low]``.

    Domain: ``[low, high]``; below, the series turns back to a wrong value.
    Error: absolute, at most ``error``, measured when made.
    Cost: 1 comparison, 1 product and the series: on shares one opening for it.
    Source: definition; ``reciprocal(fourier)``.
    """
    inverse = reciprocal.REALISATIONS["fourier"]((1.0, 1.0 - min(domain[0], -1.0)), error=error)

    def apply(x: Tensor) -> Tensor:
        low = x.less(0.0) * x
        return x - low + inverse(1.0 - low)

    return measured(Realisation("stablemax", "piecewise", domain, apply, needs=COMPARE, source="definition"), TRUE)


REALISATIONS: dict[str, Builder] = {**_SMOOTH.builders(), "piecewise": piecewise}
