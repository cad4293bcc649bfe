"""Exponential ``eˣ``, by squaring something close to ``e^(x/2^r)``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch

from secureattn.approx.generic import DEGREES, Smooth
from secureattn.approx.realisation import COMPARE, Builder, Interval, Realisation, measured
from secureattn.errors import PlanError
from secureattn.tensor import Tensor

TRUE = torch.exp
RANGE = "any"
TYPICAL = (-8.0, 0.0)
_SMOOTH = Smooth("exp", TRUE)
PUMA = (-14.0, 5)  # below, 0; squarings. Dong et al., arXiv 2307.12533, §4.2
BUMBLEBEE = (-14.0, 6)  # Lu et al., eprint 2023/1678, as in their published code


def chebyshev(
    domain: Interval, *, degree: int | None = None, error: float | None = None, squarings: int = 0
) -> Realisation:
    """A Chebyshev polynomial of ``e^(x/2^r)``, squared r times.

    Domain: ``[low, high]``; each squaring doubles the range a degree can serve.
    Error: absolute, measured when made: degree 7 on [−8,0] 1.9e-5 with 1 squaring, 3.9e-9 with 3.
    Cost: depth ⌈log2(degree+1)⌉ + r (+1 unless the affine map is folded); r products more than the polynomial.
    Source: Chebyshev interpolation and repeated squaring.
    """
    return _squared("chebyshev", domain, degree, error, squarings)


def remez(
    domain: Interval, *, degree: int | None = None, error: float | None = None, squarings: int = 0
) -> Realisation:
    """A minimax polynomial of ``e^(x/2^r)``, squared r times.

    Domain: as ``chebyshev``.
    Error: absolute, measured when made.
    Cost: as ``chebyshev``.
    Source: Remez' exchange and repeated squaring.
    """
    return _squared("remez", domain, degree, error, squarings)


def _squared(
    kind: Literal["chebyshev", "remez"], domain: Interval, degree: int | None, error: float | None, squarings: int
) -> Realisation:
    if (degree is None) == (error is None):
        raise PlanError(f"exp({kind}) needs either a degree or an error, not both or neither")
    if not squarings:
        return getattr(_SMOOTH, kind)(domain, degree=degree, error=error)  # type: ignore[no-any-return]
    root = Smooth("exp", lambda x: torch.exp(x / 2**squarings))
    for tried in DEGREES if degree is None else (degree,):
        p = getattr(root, kind)(domain, degree=tried).polynomial
        draft = Realisation(
            "exp", kind, domain, lambda x: x, then=lambda x: _square(x, squarings), source=f"{p.source}, then squaring"
        )
        made = measured(draft.with_polynomial(p), TRUE)
        assert made.error is not None
        if error is None or made.error <= error:
            return made
    raise PlanError(
        f"exp({kind}) on [{domain[0]:.3g}, {domain[1]:.3g}] reaches {made.error:.1e} at degree {tried}, {error:.1e} "
        "was asked for; add squarings"
    )


def limit(domain: Interval, *, squarings: int = 8) -> Realisation:
    """``(1 + x/2^r)^(2^r)``.

    Domain: ``[low, high]`` with ``low > −2^r``: below, the base turns negative and the value grows again.
    Error: absolute, measured when made: 8.5e-3 (r=5), 1.1e-3 (r=8) for x ≤ 0.
    Cost: depth r (+1 for the division under CKKS), r products.
    Source: the limit definition; CrypTen 0.4.1 uses r = 8.
    """
    if domain[0] <= -(2.0**squarings):
        raise PlanError(
            f"exp(limit) with {squarings} squarings holds above {-(2**squarings)}, the calibrated range starts at "
            f"{domain[0]:.3g}; add squarings"
        )
    made = Realisation("exp", "limit", domain, lambda x: limit_power(x, squarings), source="limit definition")
    return measured(made, TRUE)


def crypten(domain: Interval) -> Realisation:
    """``limit`` with 8 squarings.

    Domain: ``[low, high]`` with ``low > −256``.
    Error: absolute, measured when made: 1.1e-3 for x ≤ 0.
    Cost: depth 9, 8 products.
    Source: CrypTen 0.4.1 (``exp_iterations = 8``).
    """
    return replace(limit(domain), kind="crypten", source="CrypTen 0.4.1, limit definition")


def puma(domain: Interval) -> Realisation:
    """``(1 + x/32)^32``, and 0 for x < −14.

    Domain: ``(−∞, high]``; meant for x ≤ 0, as the error grows like ``x²eˣ/64`` above.
    Error: absolute, measured when made: 8.5e-3 for x ≤ 0.
    Cost: 1 comparison, 6 products (needs COMPARE).
    Source: PUMA, arXiv 2307.12533, softmax.
    """
    return _cut("puma", domain, PUMA, "PUMA, arXiv 2307.12533")


def bumblebee(domain: Interval) -> Realisation:
    """``(1 + x/64)^64``, and 0 for x < −14.

    Domain: ``(−∞, high]``; meant for x ≤ 0, as the error grows like ``x²eˣ/128`` above.
    Error: absolute, measured when made: 4.2e-3 for x ≤ 0.
    Cost: 1 comparison, 7 products (needs COMPARE).
    Source: BumbleBee, eprint 2023/1678; bound and 6 squarings as in the published code and its settings for BERT.
    """
    return _cut("bumblebee", domain, BUMBLEBEE, "BumbleBee, eprint 2023/1678")


def _cut(kind: str, domain: Interval, cut: tuple[float, int], source: str) -> Realisation:
    lowest, squarings = cut

    def apply(x: Tensor) -> Tensor:
        # The base is made 0, not the power: below −2^r the power would overflow before it is dropped.
        base = (x * (1 / 2**squarings) + 1.0) * (1.0 - x.less(lowest))
        return _square(base, squarings)

    made = Realisation("exp", kind, (-math.inf, domain[1]), apply, needs=COMPARE, source=source)
    return measured(made, TRUE, (min(domain[0], lowest - 2), domain[1]))


def limit_power(x: Tensor, squarings: int) -> Tensor:
    """``(1 + x/2^r)^(2^r)`` on a tensor.

    Domain: ``x > −2^r``.
    Error: see ``limit``.
    Cost: r products.
    Source: the limit definition.
    """
    return _square(x * (1 / 2**squarings) + 1.0, squarings)


def _square(x: Tensor, times: int) -> Tensor:
    for _ in range(times):
        x = x.square()
    return x


REALISATIONS: dict[str, Builder] = {
    **_SMOOTH.builders(),
    "chebyshev": chebyshev,
    "remez": remez,
    "limit": limit,
    "crypten": crypten,
    "puma": puma,
    "bumblebee": bumblebee,
}
