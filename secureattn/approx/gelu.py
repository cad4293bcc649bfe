"""GELU, ``x·Φ(x) = x/2 · (1 + erf(x/√2))``, and what stands in for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from secureattn.approx.erf import secformer_erf
from secureattn.approx.generic import Smooth
from secureattn.approx.realisation import COMPARE, EVERYWHERE, Builder, Interval, Realisation, measured
from secureattn.approx.sigmoid import check_reach, crypten_sigmoid
from secureattn.series import FourierSeries
from secureattn.tensor import Tensor

# Ascending, monomial. Dong et al., "PUMA: Secure Inference of LLaMA-7B", arXiv 2307.12533, §4.1.
PUMA_LOW = (-0.5054031199708174, -0.42226581151983866, -0.11807612951181953, -0.011034134030615728)  # on [−4, −1.95)
PUMA_MID = (
    0.008526321541038084, 0.5, 0.3603292692789629, 0.0, -0.037688200365904236, 0.0, 0.0018067462606141187,
)  # on [−1.95, 3]  # fmt: skip
# Ascending, monomial. Li et al., "MPCFormer", ICLR 2023, §4.
QUAD = (0.5, 0.25, 0.125)
# g_0 … g_4 of Pang et al., "BOLT", IEEE S&P 2024, §5.2, for |x| up to the limit.
BOLT = (0.14439048359960427, -0.7077117131613893, 4.5702822654246535, -8.15444702051307, 16.382265425072532)
BOLT_LIMIT = 2.7
# Ascending, monomial, in |x| up to the limit. Lu et al., "BumbleBee", eprint 2023/1678.
BUMBLEBEE = (
    0.001620808531841547, -0.03798164612714154, 0.5410550166368381, -0.18352506127082727, 0.020848611754127593,
)  # fmt: skip
BUMBLEBEE_LIMIT = 3.0
# β_1 … β_8 of sin(2πka/8), a = |x| < 4. Kei & Chow, "SHAFT", NDSS 2025.
SHAFT = (-0.0818, -0.0809, -0.0424, -0.0176, -0.0079, -0.0043, -0.0026, -0.0017)
SHAFT_PERIOD = 8.0

TRUE = torch.nn.functional.gelu
RANGE = "symmetric"
_SMOOTH = Smooth("gelu", TRUE, parity="even", linear=0.5)


def puma(domain: Interval = EVERYWHERE) -> Realisation:
    """Four pieces: 0, a cubic, a sextic, x.

    Domain: all reals, by comparisons at −4, −1.95 and 3.
    Error: 2.0e-2 on [−10,10], measured (the paper states < 1.4e-2).
    Cost: 3 comparisons, 7 products, depth not defined under CKKS (needs COMPARE).
    Source: PUMA, arXiv 2307.12533, 2023.
    """
    made = Realisation("gelu", "puma", EVERYWHERE, _puma, needs=COMPARE, source="PUMA, arXiv 2307.12533")
    return measured(made, TRUE)


def _puma(x: Tensor) -> Tensor:
    x2 = x.square()
    x3 = x * x2
    x4, x6 = x2.square(), x3.square()
    low = x.combine([(PUMA_LOW[1], x), (PUMA_LOW[2], x2), (PUMA_LOW[3], x3)], constant=PUMA_LOW[0])
    mid = x.combine([(PUMA_MID[1], x), (PUMA_MID[2], x2), (PUMA_MID[4], x4), (PUMA_MID[6], x6)], constant=PUMA_MID[0])
    below_4, below_2, below_3 = x.less_each([-4.0, -1.95, 3.0])
    return x.combine([(1.0, x)], [(below_2 - below_4, low), (below_3 - below_2, mid), (-below_3, x)])


def quad(domain: Interval = EVERYWHERE) -> Realisation:
    """``x²/8 + x/4 + 1/2``: another function, for models trained with it.

    Domain: all reals.
    Error: not an approximation of GELU; changes the model.
    Cost: depth 2, 1 product.
    Source: MPCFormer, ICLR 2023 (the published code swaps two coefficients; these are the paper's).
    """
    return Realisation("gelu", "quad", EVERYWHERE, _quad, changes_model=True, source="MPCFormer, ICLR 2023")


def _quad(x: Tensor) -> Tensor:
    return x.combine([(QUAD[1], x), (QUAD[2], x.square())], constant=QUAD[0])


def bolt(domain: Interval = EVERYWHERE) -> Realisation:
    """``x/2 + (P + g0·a + g3)·P + g4`` for ``a = |x| < 2.7``, ``P = (g0·a + g1)·a + g2``; else ``relu(x)``.

    Domain: all reals, by comparisons at ±2.7 and 0.
    Error: 9.4e-3 on [−10,10], measured, at ±2.7 from outside; 1.6e-3 within.
    Cost: 3 comparisons, 4 products.
    Source: BOLT, IEEE S&P 2024, §5.2 (Motzkin's form of BumbleBee's quartic; P times P, not times a as in some code).
    """
    made = Realisation("gelu", "bolt", EVERYWHERE, _bolt, needs=COMPARE, source="BOLT, IEEE S&P 2024")
    return measured(made, TRUE)


def _bolt(x: Tensor) -> Tensor:
    g0, g1, g2, g3, g4 = BOLT

    def rest(a: Tensor) -> Tensor:
        square = a.square()
        p = a.combine([(g0, square), (g1, a)], constant=g2)
        q = a.combine([(g0, square), (g1 + g0, a)], constant=g2 + g3)
        return a.combine([(-0.5, a)], [(q, p)], g4)

    return relu_plus(x, BOLT_LIMIT, rest)


def bumblebee(domain: Interval = EVERYWHERE) -> Realisation:
    """``x/2`` and a quartic in ``|x|`` for ``|x| < 3``; else ``relu(x)``.

    Domain: all reals, by comparisons at ±3 and 0.
    Error: 5.2e-3 on [−10,10], measured, at ±3 from within; the quartic is BOLT's, used up to where relu errs less.
    Cost: 3 comparisons, 4 products.
    Source: BumbleBee, eprint 2023/1678.
    """
    made = Realisation("gelu", "bumblebee", EVERYWHERE, _bumblebee, needs=COMPARE, source="BumbleBee, eprint 2023/1678")
    return measured(made, TRUE)


def _bumblebee(x: Tensor) -> Tensor:
    c0, c1, c2, c3, c4 = BUMBLEBEE

    def rest(a: Tensor) -> Tensor:
        square = a.square()
        return a.combine([(c1 - 0.5, a)], [(a.combine([(c4, square), (c3, a)], constant=c2), square)], c0)

    return relu_plus(x, BUMBLEBEE_LIMIT, rest)


def shaft(domain: Interval = EVERYWHERE) -> Realisation:
    """``relu(x) + Σ_{k≤8} β_k·sin(2πk|x|/8)`` for ``|x| < 4``, else ``relu(x)``.

    Domain: all reals, by comparisons at ±4 and 0.
    Error: 4.5e-3 on [−10,10], measured.
    Cost: 3 comparisons, 2 products, 1 series.
    Source: SHAFT, NDSS 2025 (the sine series of ``gelu − relu`` on [0, 4], to four places).
    """
    half = SHAFT_PERIOD / 2
    sines = FourierSeries(SHAFT_PERIOD, (0.0,) * len(SHAFT), SHAFT, (0.0, half), source="SHAFT, NDSS 2025")
    made = Realisation(
        "gelu",
        "shaft",
        EVERYWHERE,
        lambda x: relu_plus(x, half, lambda a: a.series(sines)),
        needs=COMPARE,
        source="SHAFT, NDSS 2025",
    )
    return measured(made, TRUE)


def relu_plus(x: Tensor, limit: float, rest: Callable[[Tensor], Tensor]) -> Tensor:
    """``relu(x) + rest(|x|)`` for ``−limit ≤ x < limit``, else ``relu(x)``.

    Domain: all reals.
    Error: none of its own.
    Cost: 3 comparisons at once, 2 products and ``rest``.
    Source: ``gelu − relu`` and ``silu − relu`` are even.
    """
    below, negative, within = x.less_each([-limit, 0.0, limit])
    relu = x - negative * x
    a = relu * 2 - x
    return relu + (within - below) * rest(a)


def secformer(domain: Interval = EVERYWHERE) -> Realisation:
    """``x/2·(1 + e(x/√2))`` with SecFormer's erf, seven sines: 0 or x where ``|x| ≥ 1.7·√2``.

    Domain: all reals, by comparisons at ±1.7·√2.
    Error: 1.9e-2 on [−10,10], measured, at ±1.7·√2; 5.8e-2 with the ±2.5·√2 of the authors' code.
    Cost: 2 comparisons, 2 products, 1 series.
    Source: SecFormer, arXiv 2401.00793, 2024.
    """
    made = Realisation("gelu", "secformer", EVERYWHERE, _secformer, needs=COMPARE, source="SecFormer, 2401.00793")
    return measured(made, TRUE)


def _secformer(x: Tensor) -> Tensor:
    return x * 0.5 * (secformer_erf(x, math.sqrt(0.5)) + 1.0)


def crypten(domain: Interval) -> Realisation:
    """``x·σ(2u)``, ``u = √(2/π)·(x + 0.044715·x³)``, with CrypTen's sigmoid: sign, exp of −|2u|, Newton's reciprocal.

    CrypTen has no GELU and its erf, a Maclaurin series of 8 terms, diverges beyond 2; so this is the tanh form.
    Domain: ``|2u| < 256``, that is about ±14; beyond, the limit form of exp turns over, and the range is refused.
    Error: absolute, measured when made: 1.3e-3 on ±10.
    Cost: 1 comparison, 17 products.
    Source: Hendrycks & Gimpel 2016, eq. (tanh form); CrypTen 0.4.1 ``sigmoid``.
    """
    check_reach("gelu(crypten)", domain, 14.0)
    made = Realisation("gelu", "crypten", domain, _crypten, needs=COMPARE, source="CrypTen 0.4.1 sigmoid, tanh form")
    return measured(made, TRUE)


def _crypten(x: Tensor) -> Tensor:
    u = x + x.square() * x * 0.044715
    return x * crypten_sigmoid(u * (2 * math.sqrt(2 / math.pi)))


REALISATIONS: dict[str, Builder] = {
    **_SMOOTH.builders(),
    "puma": puma,
    "bolt": bolt,
    "bumblebee": bumblebee,
    "secformer": secformer,
    "shaft": shaft,
    "quad": quad,
    "crypten": crypten,
}
CHANGES_MODEL = {"quad"}
