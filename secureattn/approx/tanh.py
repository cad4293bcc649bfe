"""Hyperbolic tangent, ``tanh x = 2σ(2x) − 1``."""

from __future__ import annotations

import torch

from secureattn.approx.generic import Smooth
from secureattn.approx.realisation import COMPARE, EVERYWHERE, Builder, Interval, Realisation, measured
from secureattn.approx.sigmoid import CRYPTEN_REACH, check_reach, crypten_sigmoid
from secureattn.tensor import Tensor

TRUE = torch.tanh
RANGE = "symmetric"
_SMOOTH = Smooth("tanh", TRUE, parity="odd")

# t0 … t5 of Pang et al., "BOLT", IEEE S&P 2024, §5.3, for |x| up to the limit.
BOLT = (
    -4.259314087994767, 18.86353816972803, -36.42402897526823,
    -0.013232131886235352, -3.3289339650097993, -0.0024920889620412097,
)  # fmt: skip
BOLT_LIMIT = 2.855


def bolt(domain: Interval = EVERYWHERE) -> Realisation:
    """``sign(x)·p(|x|)``, ``p(a) = t3·a·(P + a + t2)·P + t4·a + t5``, ``P = (a + t0)·a + t1``; ±1 beyond 2.855.

    Domain: all reals, by comparisons with 0 and 2.855.
    Error: 6.6e-3 on [−10,10], measured, at ±2.855; 2.5e-3 within, where the value jumps at 0 by 5.0e-3.
    Cost: 2 comparisons, 5 products (``sign(x)·p`` needs none of its own: the sign turns ``t3·a`` into ``t3·x``).
    Source: BOLT, IEEE S&P 2024, §5.3; coefficients as in the authors' code.
    """
    return measured(Realisation("tanh", "bolt", EVERYWHERE, _bolt, needs=COMPARE, source="BOLT, IEEE S&P 2024"), TRUE)


def _bolt(x: Tensor) -> Tensor:
    t0, t1, t2, t3, t4, t5 = BOLT
    sign = 1.0 - x.less(0.0) * 2
    a = x * sign
    square = a.square()
    p = a.combine([(1.0, square), (t0, a)], constant=t1)
    q = a.combine([(1.0, square), (t0 + 1.0, a)], constant=t1 + t2)
    excess = x.combine([(t3, x * (p * q)), (t4, x), (t5 - 1.0, sign)])  # t3 last: small, it takes rounding errors down
    return sign + a.less(BOLT_LIMIT) * excess


def crypten(domain: Interval) -> Realisation:
    """``2σ(2x) − 1`` with CrypTen's sigmoid.

    Domain: ``|x| ≤ 128``; beyond, the limit form of exp grows again, and the range is refused.
    Error: 3.9e-3, measured, at 0 on either side.
    Cost: 1 comparison, 14 products.
    Source: CrypTen 0.4.1, ``tanh`` (method "reciprocal").
    """
    check_reach("tanh(crypten)", domain, CRYPTEN_REACH / 2)
    made = Realisation("tanh", "crypten", domain, _crypten, needs=COMPARE, source="CrypTen 0.4.1 tanh")
    return measured(made, TRUE)


def _crypten(x: Tensor) -> Tensor:
    return crypten_sigmoid(x * 2) * 2 - 1.0


REALISATIONS: dict[str, Builder] = {
    **_SMOOTH.builders(),
    "extended": _SMOOTH.extended,
    "bolt": bolt,
    "crypten": crypten,
}
