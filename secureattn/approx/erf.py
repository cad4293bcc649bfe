"""Error function ``erf x = 2/√π · ∫₀ˣ e^(−t²) dt``."""

from __future__ import annotations

import math

import numpy as np
import torch

from secureattn.approx.generic import Smooth
from secureattn.approx.realisation import COMPARE, EVERYWHERE, Builder, Interval, Realisation, measured
from secureattn.approx.sigmoid import check_reach
from secureattn.polynomial import Polynomial
from secureattn.series import FourierSeries
from secureattn.tensor import Tensor

TRUE = torch.erf
RANGE = "symmetric"
TYPICAL_OF = {"crypten": (-2.0, 2.0)}
_SMOOTH = Smooth("erf", TRUE, parity="odd")

# β_1 … β_7 of sin(2πkx/20). Luo et al., "SecFormer", arXiv 2401.00793.
SECFORMER = (1.25772, -0.0299154, 0.382155, -0.0519123, 0.196033, -0.0624557, 0.118029)
SECFORMER_PERIOD = 20.0
SECFORMER_LIMIT = 1.7
_PERIOD = 32.0  # on the ring: a power of two

CRYPTEN_TERMS = 8
CRYPTEN_REACH = 2.0


def secformer(domain: Interval = EVERYWHERE) -> Realisation:
    """``Σ_{k≤7} β_k·sin(2πkx/20)`` for ``|x| < 1.7``, else the sign of x.

    Domain: all reals, by comparisons at ±1.7.
    Error: 2.2e-2 on [−10,10], measured; 3.6e-2 with the ±2.5 of the authors' code. The series alone is 0 again at ±10.
    Cost: 2 comparisons, 1 product, 1 series.
    Source: SecFormer, arXiv 2401.00793, 2024; β_7 is printed 0.118029, the series of erf on ±10 has 0.118092.
    """
    made = Realisation("erf", "secformer", EVERYWHERE, secformer_erf, needs=COMPARE, source="SecFormer, 2401.00793")
    return measured(made, TRUE)


def secformer_erf(x: Tensor, factor: float = 1.0) -> Tensor:
    """SecFormer's erf of ``factor·x``, ``factor > 0``; the series runs on ``x·32/20`` with a period of 32.

    Domain: all reals.
    Error: 2.2e-2, measured.
    Cost: 2 comparisons, 1 product, 1 series.
    Source: SecFormer, arXiv 2401.00793, 2024.
    """
    stretch = _PERIOD / SECFORMER_PERIOD
    end = SECFORMER_LIMIT * stretch
    sines = FourierSeries(_PERIOD, (0.0,) * len(SECFORMER), SECFORMER, (-end, end), source="SecFormer, 2401.00793")
    low, high = x.less_each([-SECFORMER_LIMIT / factor, SECFORMER_LIMIT / factor])
    return 1.0 - low - high + (high - low) * (x * (factor * stretch)).series(sines)


def crypten(domain: Interval) -> Realisation:
    """``2/√π · Σ_{n≤8} (−1)^n·x^(2n+1)/(n!·(2n+1))``, the Maclaurin series up to x¹⁷.

    Domain: made symmetric, within ±2; beyond, the series leaves erf fast (off by 1.5e-1 at 2.1, by 3.8 at 2.5), and the
    range is refused.
    Error: absolute, measured when made: 1.5e-7 on ±1, 3.0e-4 on ±1.5, 6.3e-2 on ±2.
    Cost: depth 6, 9 products, in the Chebyshev basis of the domain: 16 places, as CrypTen has, lose 1/(8!·17).
    Source: CrypTen 0.4.1, ``erf`` (``erf_iterations = 8``).
    """
    check_reach("erf(crypten)", domain, CRYPTEN_REACH)
    end = max(-domain[0], domain[1])
    powers = np.zeros(2 * CRYPTEN_TERMS + 2)
    for n in range(CRYPTEN_TERMS + 1):
        powers[2 * n + 1] = 2 / math.sqrt(math.pi) * (-1) ** n / (math.factorial(n) * (2 * n + 1))
    coefficients = np.polynomial.chebyshev.poly2cheb(powers * end ** np.arange(len(powers)))
    p = Polynomial(tuple(coefficients.tolist()), (-end, end), source="CrypTen 0.4.1 erf")
    made = Realisation("erf", "crypten", p.domain, lambda x: x.polynomial(p), polynomial=p, source="CrypTen 0.4.1 erf")
    return measured(made, TRUE)


REALISATIONS: dict[str, Builder] = {
    **_SMOOTH.builders(),
    "extended": _SMOOTH.extended,
    "secformer": secformer,
    "crypten": crypten,
}
