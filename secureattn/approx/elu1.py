"""``elu(x) + 1``, that is ``x + 1`` for x ≥ 0 and ``eˣ`` below: the feature map of linear attention."""

from __future__ import annotations

import torch

from secureattn.approx import exp
from secureattn.approx.generic import Smooth
from secureattn.approx.realisation import COMPARE, Builder, Interval, Realisation, measured
from secureattn.tensor import Tensor


def TRUE(x: torch.Tensor) -> torch.Tensor:
    """``elu(x) + 1``.

    Domain: all reals.
    Error: none.
    Cost: clear only.
    Source: Katharopoulos et al., arXiv 2006.16236.
    """
    return torch.nn.functional.elu(x) + 1


RANGE = "any"
TYPICAL = (-4.0, 4.0)
_SMOOTH = Smooth("elu1", TRUE)


def piecewise(domain: Interval, *, error: float = 1e-4) -> Realisation:
    """``relu(x) + e^min(x,0)``, the exponential by a Fourier series on ``[low, 0]``.

    Domain: ``[low, high]``; below, the series turns back to a wrong value.
    Error: absolute, at most ``error``, measured when made.
    Cost: 1 comparison, 1 product and the series: on shares one opening for it.
    Source: definition; ``exp(fourier)``.
    """
    e = exp.REALISATIONS["fourier"]((min(domain[0], -1.0), 0.0), error=error)

    def apply(x: Tensor) -> Tensor:
        low = x.less(0.0) * x
        return x - low + e(low)

    return measured(Realisation("elu1", "piecewise", domain, apply, needs=COMPARE, source="definition"), TRUE)


REALISATIONS: dict[str, Builder] = {**_SMOOTH.builders(), "piecewise": piecewise}
