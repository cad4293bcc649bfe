"""Natural logarithm on a positive interval."""

from __future__ import annotations

import torch

from secureattn.approx.exp import limit_power
from secureattn.approx.generic import Smooth, check_positive
from secureattn.approx.realisation import Builder, Interval, Realisation, measured
from secureattn.errors import PlanError
from secureattn.polynomial import Polynomial
from secureattn.tensor import Tensor

TRUE = torch.log
RANGE = "positive"
TYPICAL = (0.1, 10.0)
_SMOOTH = Smooth("log", TRUE, positive=True)
_HOUSEHOLDER = Polynomial((0.0, *(1 / k for k in range(1, 9))), (-1.0, 1.0), "monomial")


def crypten(domain: Interval, *, steps: int = 2) -> Realisation:
    """Householder's iteration of order 8 from ``x/120 − 20·exp(−2x−1) + 3``.

    ``y ← y − Σ_{k=1..8} h^k/k``, ``h = 1 − x·exp(−y)``; exp by 8 squarings.
    Domain: ``[low, high]`` within (0, 250]; refused where it errs by more than 0.2.
    Error: absolute, measured when made: 0.17 on [1e-4, 250], 0.042 on [0.01, 100], 0.011 on [0.1, 10] (the source
    says within 2 % on [1e-4, 250]; relative to ln x, which is 0 at 1, no error is).
    Cost: 8 squarings for the first guess; a step takes 8 more, 1 product and a polynomial of 5.
    Source: CrypTen 0.4.1 (``log_iterations = 2``, ``log_exp_iterations = 8``, ``log_order = 8``).
    """
    check_positive("log(crypten)", domain)
    remedy = 'use kind = "chebyshev", or narrow the domain'
    if domain[1] > 250:
        raise PlanError(f"log(crypten) holds up to 250, the calibrated range reaches {domain[1]:.3g}; {remedy}")
    made = Realisation(
        "log", "crypten", domain, lambda x: _householder(x, steps), source="CrypTen 0.4.1, Householder iterations"
    )
    made = measured(made, TRUE)
    assert made.error is not None
    if made.error > 0.2:
        raise PlanError(
            f"log(crypten) errs by {made.error:.2g} on [{domain[0]:.3g}, {domain[1]:.3g}] after {steps} steps; {remedy}"
        )
    return made


def _householder(x: Tensor, steps: int) -> Tensor:
    first = limit_power(x * -2 - 1.0, 8)
    y = x.combine([(1 / 120, x), (-20.0, first)], constant=3.0)
    for _ in range(steps):
        h = 1.0 - x * limit_power(-y, 8)
        y = y - h.polynomial(_HOUSEHOLDER)
    return y


REALISATIONS: dict[str, Builder] = {**_SMOOTH.builders(), "crypten": crypten}
