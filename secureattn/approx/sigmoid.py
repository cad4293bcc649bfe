"""Sigmoid ``σ(x) = 1/(1 + e^(−x))``: one half and an odd part."""

from __future__ import annotations

import torch

from secureattn.approx.exp import limit_power
from secureattn.approx.generic import Smooth
from secureattn.approx.realisation import COMPARE, Builder, Interval, Realisation, measured
from secureattn.errors import PlanError
from secureattn.tensor import Tensor

TRUE = torch.sigmoid
RANGE = "symmetric"
_SMOOTH = Smooth("sigmoid", TRUE, parity="odd", constant=0.5)

CRYPTEN_GUESS = 0.75
CRYPTEN_STEPS = 3
CRYPTEN_REACH = 256.0
"""Beyond, ``(1 − |x|/256)^256`` grows again."""


def crypten(domain: Interval) -> Realisation:
    """``1/d``, or ``1 − 1/d`` for negative x, of ``d = 1 + e^(−|x|)``: limit form, then Newton (``crypten_sigmoid``).

    Domain: ``|x| ≤ 256``; beyond, the limit form of exp grows again, and the range is refused.
    Error: 1.95e-3, measured, at 0 on either side: there d is farthest from 4/3, for which the first guess is made.
    Cost: 1 comparison, 14 products.
    Source: CrypTen 0.4.1, ``sigmoid`` (method "reciprocal").
    """
    check_reach("sigmoid(crypten)", domain, CRYPTEN_REACH)
    made = Realisation("sigmoid", "crypten", domain, crypten_sigmoid, needs=COMPARE, source="CrypTen 0.4.1 sigmoid")
    return measured(made, TRUE)


def crypten_sigmoid(x: Tensor) -> Tensor:
    """CrypTen's sigmoid of a tensor: ``e^(−|x|)`` in the limit form, then ``y ← 2y − d·y²`` three times from 0.75.

    Domain: ``|x| ≤ 256``.
    Error: 1.95e-3, measured.
    Cost: 1 comparison, 14 products: 8 squarings, 2 for each Newton step but the first, which is linear, 2 for the sign.
    Source: CrypTen 0.4.1, which sets 3 steps here, not the 10 of its reciprocal.
    """
    negative = x.less(0.0)
    sign = 1.0 - negative * 2
    d = limit_power(-(x * sign), 8) + 1.0
    y = 2 * CRYPTEN_GUESS - d * CRYPTEN_GUESS**2
    for _ in range(CRYPTEN_STEPS - 1):
        y = y * 2 - y.square() * d
    return negative + sign * y


def check_reach(subject: str, domain: Interval, reach: float) -> None:
    """Refuse a domain that leaves ``[−reach, reach]``.

    Domain: any interval.
    Error: PlanError.
    Cost: none.
    Source: none.
    """
    if max(-domain[0], domain[1]) > reach:
        raise PlanError(
            f"{subject} holds on [{-reach:g}, {reach:g}], the calibrated range is [{domain[0]:.3g}, {domain[1]:.3g}]; "
            'use kind = "chebyshev", or train with a narrower range'
        )


REALISATIONS: dict[str, Builder] = {**_SMOOTH.builders(), "extended": _SMOOTH.extended, "crypten": crypten}
