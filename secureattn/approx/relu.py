"""ReLU, ``max(x, 0) = x·(1 + sign x)/2 = x/2 + |x|/2``."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from secureattn import fit
from secureattn.approx.generic import Smooth
from secureattn.approx.realisation import (
    COMPARE,
    EVERYWHERE,
    Builder,
    Interval,
    Realisation,
    on_arrays,
    values,
)
from secureattn.approx.sign import composition, in_turn
from secureattn.tensor import Tensor

TRUE = torch.relu
RANGE = "symmetric"
_SMOOTH = Smooth("relu", TRUE, parity="even", linear=0.5)


def composite(domain: Interval, *, gap: float = 2.0**-6, error: float = 1e-3) -> Realisation:
    """``x·(1 + s)/2`` with a composite minimax sign s; the halves are in its last coefficients.

    Domain: ``[−m, m]``; outside it leaves the function fast.
    Error: absolute, on all of the domain, measured when made: 1.06e-3·m for a gap of 2^-6 and a sign's error of 1e-3,
    2.5e-4·m for 2^-8 and 1e-3, 3.1e-2·m for 2^-4 and 2^-4.
    Cost: depth and products of ``sign(composite)``, and 1 each; the slope 1/m is not to be folded, as x itself is used.
    Source: Lee, Lee, No and Kim, eprint 2020/834.
    """
    m = max(abs(domain[0]), abs(domain[1]))
    polynomials, _ = composition(m, gap=gap, error=error, factor=0.5)

    def apply(x: Tensor) -> Tensor:
        return x * (in_turn(polynomials, x) + 0.5)

    made = Realisation("relu", "composite", (-m, m), apply, source="composite minimax, eprint 2020/834")
    # Even, and steep near the gap: in log x, from far inside of it.
    worst = fit.max_error(
        lambda u: on_arrays(TRUE)(np.exp(u)),
        lambda u: values(made, np.exp(u)),
        (math.log(gap * m / 64), math.log(m)),
        samples=2**14,
    )
    return replace(made, error=worst)


def compare(domain: Interval = EVERYWHERE) -> Realisation:
    """``x·(1 − [x < 0])``.

    Domain: all reals.
    Error: none.
    Cost: 1 comparison, 1 product (needs COMPARE).
    Source: definition.
    """

    def apply(x: Tensor) -> Tensor:
        return x * (1.0 - x.less(0.0))

    return Realisation("relu", "compare", EVERYWHERE, apply, error=0.0, needs=COMPARE, source="definition")


CANDIDATES = {"composite": tuple({"gap": 2.0**-k} for k in (4, 6, 8, 10))}
REALISATIONS: dict[str, Builder] = {**_SMOOTH.builders(), "composite": composite, "compare": compare}
