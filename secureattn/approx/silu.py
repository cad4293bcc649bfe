"""SiLU, ``x·σ(x)``: x/2 and an even part, ``x/2·tanh(x/2)``."""

from __future__ import annotations

import torch

from secureattn.approx.gelu import relu_plus
from secureattn.approx.generic import Smooth
from secureattn.approx.realisation import COMPARE, EVERYWHERE, Builder, Interval, Realisation, measured
from secureattn.approx.sigmoid import CRYPTEN_REACH, check_reach, crypten_sigmoid
from secureattn.series import FourierSeries
from secureattn.tensor import Tensor

TRUE = torch.nn.functional.silu
RANGE = "symmetric"
_SMOOTH = Smooth("silu", TRUE, parity="even", linear=0.5)

# Ascending, monomial. Dong et al., "PUMA: Secure Inference of LLaMA-7B", arXiv 2307.12533.
PUMA_LOW = (-0.3067541139982155, -0.0819767021525476, -0.0055465625580307)  # on [−8, −4)
PUMA_MID = (0.0085064025895951, 0.5, 0.2281430841728270, 0.0, -0.011113046708173, 0.0, 0.0002743776353465)  # on ±4

# β_1 … β_12 of sin(2πka/16), a = |x| < 8. Kei & Chow, "SHAFT", NDSS 2025: the authors' code.
SHAFT = (
    -0.1299, -0.1220, -0.0743, -0.0394, -0.0216, -0.0118, -0.0074, -0.0044, -0.0033, -0.0021, -0.0018, -0.0011,
)  # fmt: skip
SHAFT_PERIOD = 16.0


def puma(domain: Interval = EVERYWHERE) -> Realisation:
    """Four pieces: 0, a parabola, a sextic, x.

    Domain: all reals, by comparisons at −8, −4 and 4.
    Error: 7.2e-2 on [−10,10], measured: at 4, where the sextic ends below x.
    Cost: 3 comparisons, 6 products.
    Source: PUMA, arXiv 2307.12533, 2023.
    """
    made = Realisation("silu", "puma", EVERYWHERE, _puma, needs=COMPARE, source="PUMA, arXiv 2307.12533")
    return measured(made, TRUE)


def _puma(x: Tensor) -> Tensor:
    x2 = x.square()
    x4 = x2.square()
    x6 = x2 * x4
    low = x.combine([(PUMA_LOW[1], x), (PUMA_LOW[2], x2)], constant=PUMA_LOW[0])
    mid = x.combine([(PUMA_MID[1], x), (PUMA_MID[2], x2), (PUMA_MID[4], x4), (PUMA_MID[6], x6)], constant=PUMA_MID[0])
    below_8, below_4, below = x.less_each([-8.0, -4.0, 4.0])
    return x.combine([(1.0, x)], [(below_4 - below_8, low), (below - below_4, mid), (-below, x)])


def shaft(domain: Interval = EVERYWHERE) -> Realisation:
    """``relu(x) + Σ_{k≤12} β_k·sin(2πk|x|/16)`` for ``|x| < 8``, else ``relu(x)``.

    Domain: all reals, by comparisons at ±8 and 0.
    Error: 5.3e-3 on [−10,10], measured.
    Cost: 3 comparisons, 2 products, 1 series.
    Source: SHAFT, NDSS 2025, code (the sine series of ``silu − relu`` on [0, 8], to four places).
    """
    half = SHAFT_PERIOD / 2
    sines = FourierSeries(SHAFT_PERIOD, (0.0,) * len(SHAFT), SHAFT, (0.0, half), source="SHAFT, NDSS 2025")
    made = Realisation(
        "silu",
        "shaft",
        EVERYWHERE,
        lambda x: relu_plus(x, half, lambda a: a.series(sines)),
        needs=COMPARE,
        source="SHAFT, NDSS 2025",
    )
    return measured(made, TRUE)


def crypten(domain: Interval) -> Realisation:
    """``x·σ(x)`` with CrypTen's sigmoid; CrypTen has no SiLU of its own.

    Domain: ``|x| ≤ 256``; beyond, the limit form of exp grows again, and the range is refused.
    Error: absolute, measured when made: 2.4e-3 on ±10; 1.5e-5·|x| farther out, what three Newton steps leave.
    Cost: 1 comparison, 15 products.
    Source: CrypTen 0.4.1, ``sigmoid``.
    """
    check_reach("silu(crypten)", domain, CRYPTEN_REACH)
    made = Realisation("silu", "crypten", domain, _crypten, needs=COMPARE, source="CrypTen 0.4.1 sigmoid")
    return measured(made, TRUE)


def _crypten(x: Tensor) -> Tensor:
    return x * crypten_sigmoid(x)


REALISATIONS: dict[str, Builder] = {**_SMOOTH.builders(), "puma": puma, "shaft": shaft, "crypten": crypten}
