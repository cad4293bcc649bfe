"""Reciprocal ``1/x`` on a positive interval."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from secureattn import fit
from secureattn.approx import exp
from secureattn.approx.realisation import Array, Builder, Interval, Realisation, chebyshev_realisation
from secureattn.errors import PlanError
from secureattn.tensor import Tensor


def reciprocal(x: Array) -> Array:
    """The function itself, float64.

    Domain: x ≠ 0.
    Error: none.
    Cost: clear only.
    Source: definition.
    """
    return 1.0 / np.asarray(x)


def chebyshev(domain: Interval, *, degree: int | None = None, error: float | None = None) -> Realisation:
    """One Chebyshev polynomial; the degree grows with ``√κ·log(1/error)`` for ``κ = high/low``.

    Domain: ``[low, high]``, low > 0; outside it the value is meaningless.
    Error: relative, measured when made: degree 15 at κ=16 5.6e-4, 31 at κ=64 6.4e-4, 63 at κ=256 6.6e-4.
    Cost: depth ⌈log2(degree+1)⌉ (+1 unless its affine map is folded); 8, 13, 18 products at degree 15, 31, 63.
    Source: Chebyshev interpolation.
    """
    _positive("reciprocal(chebyshev)", domain)
    return chebyshev_realisation("reciprocal", reciprocal, domain, degree=degree, error=error, relative=True)


def goldschmidt(domain: Interval, *, error: float = 1e-3) -> Realisation:
    """Goldschmidt division with a relaxation factor per step.

    ``b = x/high, a = 1/high, e = low/high``; repeat ``k = 2/(1+e); a, b ← a·k(2−kb), b·k(2−kb); e ← ke(2−ke)``, so
    that ``b`` stays within [e, 1] and e rises to 1 as fast as any quadratic step allows.
    Domain: ``[low, high]``, low > 0.
    Error: relative, ``1−e`` after the last step, measured when made: 1e-3 takes 5, 6, 7, 8 steps for κ = 2⁴, 2⁶, 2⁸,
    2¹⁰, which then reach 3.2e-7, 4.1e-7, 4.4e-7, 4.5e-7.
    Cost: depth ``2·steps + 1``, ``2·(steps − 1)`` products.
    Source: Goldschmidt 1964; relaxation as in THOR (eprint 2024/1881).
    """
    _positive("reciprocal(goldschmidt)", domain)
    factors = relaxation(domain[0] / domain[1], error)
    in_the_clear = cast(Any, _goldschmidt)  # plain arrays have all the operations it needs
    measured = fit.max_error(reciprocal, lambda t: in_the_clear(t, domain[1], factors), domain, relative=True)
    return Realisation(
        "reciprocal",
        "goldschmidt",
        domain,
        lambda x: _goldschmidt(x, domain[1], factors),
        error=measured,
        relative=True,
        source="Goldschmidt with relaxation, eprint 2024/1881",
    )


def relaxation(e: float, error: float) -> tuple[float, ...]:
    """Relaxation factors ``k = 2/(1+e)`` until ``1−e ≤ error``.

    Domain: 0 < e ≤ 1, error ≥ 1e-14; float64 gets no closer, and the steps would never end.
    Error: none, these are exact.
    Cost: clear only.
    Source: THOR, eprint 2024/1881.
    """
    if not (0 < e <= 1 and error >= 1e-14):
        raise PlanError(
            f"relaxation needs 0 < e ≤ 1 and an error of at least 1e-14, got e = {e:.3g}, error = {error:.3g}"
        )
    factors = []
    while 1 - e > error:
        k = 2 / (1 + e)
        factors.append(k)
        e = k * e * (2 - k * e)
    return tuple(factors)


def _goldschmidt(x: Tensor, high: float, factors: tuple[float, ...]) -> Tensor:
    b = x * (1 / high)
    a: Tensor | None = None
    for i, k in enumerate(factors):
        factor = b * (-k * k) + 2 * k
        a = factor * (1 / high) if a is None else a * factor
        if i + 1 < len(factors):
            b = b * factor
    return a if a is not None else b * 0 + 1 / high


def crypten(domain: Interval, *, steps: int = 10) -> Realisation:
    """Newton–Raphson from ``3·exp(1−2x) + 0.003``, for positive x.

    ``y ← y + y − x·y²``. Domain: ``[low, high]`` within about [3e-4, 250]; outside, the first guess is so far off that
    10 steps do not bring it within 10 %, and the domain is refused.
    Error: relative, measured when made: 3.7e-8 on [0.1, 100] in float64.
    Cost: one exp (8 squarings), then 2 products a step.
    Source: CrypTen 0.4.1 (``reciprocal_nr_iters = 10``, ``reciprocal_all_pos``).
    """
    _positive("reciprocal(crypten)", domain)
    if domain[1] > 250:
        raise PlanError(
            f"reciprocal(crypten) holds up to 250, the calibrated range reaches {domain[1]:.3g}; "
            'use kind = "chebyshev" or "goldschmidt"'
        )
    t = np.geomspace(*domain, 4001)
    y = 3 * (1 + (1 - 2 * t) / 256) ** 256 + 0.003
    for _ in range(steps):
        y = 2 * y - t * y * y
    measured = float(np.max(np.abs(y * t - 1)))
    if not measured <= 0.1:
        raise PlanError(
            f"reciprocal(crypten) does not converge in {steps} steps on [{domain[0]:.3g}, {domain[1]:.3g}]; raise the "
            'normaliser\'s ε, or use kind = "chebyshev" or "goldschmidt"'
        )
    return Realisation(
        "reciprocal",
        "crypten",
        domain,
        lambda x: _newton(x, steps),
        error=measured,
        relative=True,
        source="CrypTen 0.4.1, Newton-Raphson",
    )


def _newton(x: Tensor, steps: int) -> Tensor:
    y = exp.limit_power(x * -2 + 1.0, 8) * 3 + 0.003
    for _ in range(steps):
        y = y * 2 - y.square() * x
    return y


def _positive(subject: str, domain: Interval) -> None:
    if domain[0] <= 0:
        raise PlanError(
            f"{subject} needs a positive domain, the range asked for is [{domain[0]:.3g}, {domain[1]:.3g}]; "
            "raise the normaliser's ε or retrain with a range penalty"
        )


REALISATIONS: dict[str, Builder] = {"chebyshev": chebyshev, "goldschmidt": goldschmidt, "crypten": crypten}
TRUE = reciprocal
