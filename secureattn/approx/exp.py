"""Exponential ``eˣ``, by squaring something close to ``e^(x/2^r)``."""

from __future__ import annotations

import numpy as np

from secureattn import fit
from secureattn.approx.realisation import Array, Builder, Interval, Realisation
from secureattn.errors import PlanError
from secureattn.polynomial import Polynomial
from secureattn.tensor import Tensor


def exp(x: Array) -> Array:
    """The function itself, float64.

    Domain: all reals.
    Error: 1 ulp.
    Cost: clear only.
    Source: definition.
    """
    return np.asarray(np.exp(x))


def chebyshev(
    domain: Interval, *, degree: int | None = None, error: float | None = None, squarings: int = 0
) -> Realisation:
    """A Chebyshev polynomial of ``e^(x/2^r)``, squared r times.

    Domain: ``[low, high]``; each squaring doubles the range a degree can serve.
    Error: absolute, measured when made: degree 7 on [−8,0] 1.9e-5 with 1 squaring, 3.9e-9 with 3.
    Cost: depth ⌈log2(degree+1)⌉ + r (+1 unless the affine map is folded); r products more than the polynomial.
    Source: Chebyshev interpolation and repeated squaring.
    """
    if (degree is None) == (error is None):
        raise PlanError("exp(chebyshev) needs either a degree or an error, not both or neither")
    if degree is None:
        assert error is not None
        degree = _degree_for(domain, error, squarings)
    p = Polynomial(tuple(fit.chebyshev(lambda x: np.exp(x / 2**squarings), domain, degree)), domain)
    measured = fit.max_error(exp, lambda x: p(x) ** (2**squarings), domain)
    return Realisation(
        "exp",
        "chebyshev",
        domain,
        lambda x: _square(x.polynomial(p), squarings),
        error=measured,
        polynomial=p if squarings == 0 else None,
        source="Chebyshev interpolation, then repeated squaring",
    )


def _degree_for(domain: Interval, error: float, squarings: int) -> int:
    for degree in (3, 7, 15, 31, 63):
        p = Polynomial(tuple(fit.chebyshev(lambda x: np.exp(x / 2**squarings), domain, degree)), domain)
        reached = fit.max_error(exp, lambda x, p=p: p(x) ** (2**squarings), domain)  # type: ignore[misc]
        if reached <= error:
            return degree
    raise PlanError(
        f"exp(chebyshev) on [{domain[0]:.3g}, {domain[1]:.3g}] reaches {reached:.1e} at degree 63, {error:.1e} was "
        "asked for; add squarings"
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
    measured = fit.max_error(exp, lambda x: (1 + np.asarray(x) / 2**squarings) ** (2**squarings), domain)
    return Realisation(
        "exp", "limit", domain, lambda x: limit_power(x, squarings), error=measured, source="limit definition"
    )


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


REALISATIONS: dict[str, Builder] = {"chebyshev": chebyshev, "limit": limit}
TRUE = exp
