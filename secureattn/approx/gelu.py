"""GELU, ``x·Φ(x) = x/2 · (1 + erf(x/√2))``, and what stands in for it."""

from __future__ import annotations

import math

import numpy as np

from secureattn.approx.exp import limit_power
from secureattn.approx.realisation import EVERYWHERE, Array, Builder, Interval, Realisation, chebyshev_realisation
from secureattn.errors import PlanError
from secureattn.tensor import Tensor

# Ascending, monomial. Dong et al., "PUMA: Secure Inference of LLaMA-7B", arXiv 2307.12533, §4.1.
PUMA_LOW = (-0.5054031199708174, -0.42226581151983866, -0.11807612951181953, -0.011034134030615728)  # on [−4, −1.95)
PUMA_MID = (
    0.008526321541038084, 0.5, 0.3603292692789629, 0.0, -0.037688200365904236, 0.0, 0.0018067462606141187,
)  # on [−1.95, 3]  # fmt: skip
# Ascending, monomial. Li et al., "MPCFormer", ICLR 2023, §4.
QUAD = (0.5, 0.25, 0.125)


def gelu(x: Array) -> Array:
    """The function itself, float64.

    Domain: all reals.
    Error: that of ``math.erf``, about 1 ulp.
    Cost: clear only.
    Source: Hendrycks & Gimpel, arXiv 1606.08415, 2016.
    """
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return np.asarray(0.5 * x * (1.0 + erf(np.asarray(x) / math.sqrt(2.0))))


def chebyshev(domain: Interval, *, degree: int | None = None, error: float | None = None) -> Realisation:
    """One Chebyshev polynomial on a symmetric domain; all but the linear term is even, which saves products.

    Domain: ``[−m, m]`` with m the larger end of what is asked; outside it the polynomial leaves GELU fast.
    Error: absolute, measured when made: degree 31 on ±8 9.2e-5, degree 63 on ±16 6.3e-5.
    Cost: depth ⌈log2(degree+1)⌉ (+1 unless its affine map is folded); 6, 9, 14 products at degree 15, 31, 63.
    Source: interpolation of ``x·erf(x/√2)/2`` (even), plus ``x/2``.
    """
    m = max(abs(domain[0]), abs(domain[1]))
    return chebyshev_realisation("gelu", gelu, (-m, m), degree=degree, error=error, relative=False)


def puma(domain: Interval = EVERYWHERE) -> Realisation:
    """Four pieces: 0, a cubic, a sextic, x.

    Domain: all reals, by comparisons at −4, −1.95 and 3.
    Error: 2.0e-2 on [−10,10], measured (the paper states < 1.4e-2).
    Cost: 3 comparisons, 7 products, depth not defined under CKKS (needs COMPARE).
    Source: PUMA, arXiv 2307.12533, 2023.
    """
    return Realisation(
        "gelu", "puma", EVERYWHERE, _puma, error=2.0e-2, needs_comparison=True, source="PUMA, arXiv 2307.12533"
    )


def _puma(x: Tensor) -> Tensor:
    x2 = x.square()
    x3 = x * x2
    x4, x6 = x2.square(), x3.square()
    low = x.combine([(PUMA_LOW[1], x), (PUMA_LOW[2], x2), (PUMA_LOW[3], x3)], constant=PUMA_LOW[0])
    mid = x.combine([(PUMA_MID[1], x), (PUMA_MID[2], x2), (PUMA_MID[4], x4), (PUMA_MID[6], x6)], constant=PUMA_MID[0])
    below_4, below_2, below_3 = x.less(-4.0), x.less(-1.95), x.less(3.0)
    return (below_2 - below_4) * low + (below_3 - below_2) * mid + x - below_3 * x


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


def crypten(domain: Interval) -> Realisation:
    """``x·σ(2u)``, ``u = √(2/π)·(x + 0.044715·x³)``, with CrypTen's sigmoid: sign, exp of −|2u|, Newton's reciprocal.

    CrypTen has no GELU and its erf, a Maclaurin series of 8 terms, diverges beyond 2.5; so this is the tanh form.
    Domain: ``|2u| < 256``, that is about ±14; beyond, the limit form of exp turns over, and the range is refused.
    Error: absolute, measured when made: 1.3e-3 on ±10.
    Cost: 1 comparison, 31 products: 8 squarings, 9 Newton steps of 2 (the first of 10 is linear), 5 more.
    Source: Hendrycks & Gimpel 2016, eq. (tanh form); CrypTen 0.4.1 ``sigmoid`` (reciprocal method, first guess 0.75).
    """
    if max(abs(domain[0]), abs(domain[1])) > 14:
        raise PlanError(
            f"gelu(crypten) holds on [-14, 14], the calibrated range is [{domain[0]:.3g}, {domain[1]:.3g}]; "
            'use kind = "chebyshev", or train with a narrower range'
        )
    x = np.linspace(*domain, 4001)
    z = 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    y = 1 / (1 + (1 - np.abs(z) / 256) ** 256)
    measured = float(np.max(np.abs(x * np.where(z < 0, 1 - y, y) - gelu(x))))
    return Realisation(
        "gelu",
        "crypten",
        domain,
        _crypten,
        error=measured,
        needs_comparison=True,
        source="CrypTen 0.4.1 sigmoid, tanh form",
    )


def _crypten(x: Tensor) -> Tensor:
    u = x + x.square() * x * 0.044715
    return x * _crypten_sigmoid(u * (2 * math.sqrt(2 / math.pi)))


def _crypten_sigmoid(x: Tensor) -> Tensor:
    negative = x.less(0.0)
    sign = 1.0 - negative * 2
    denominator = limit_power(-(x * sign), 8) + 1.0
    y = 1.5 - denominator * 0.75**2
    for _ in range(9):
        y = y * 2 - y.square() * denominator
    return negative + sign * y


REALISATIONS: dict[str, Builder] = {"chebyshev": chebyshev, "puma": puma, "quad": quad, "crypten": crypten}
CHANGES_MODEL = {"quad"}
TRUE = gelu
