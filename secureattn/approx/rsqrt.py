"""Inverse square root ``1/√x`` on a positive interval."""

from __future__ import annotations

import numpy as np

from secureattn import fit
from secureattn.approx import exp
from secureattn.approx.realisation import Array, Builder, Interval, Realisation, chebyshev_realisation
from secureattn.approx.reciprocal import _positive
from secureattn.errors import PlanError
from secureattn.polynomial import Polynomial
from secureattn.tensor import Tensor


def rsqrt(x: Array) -> Array:
    """The function itself, float64.

    Domain: x > 0.
    Error: 1 ulp.
    Cost: clear only.
    Source: definition.
    """
    return 1.0 / np.sqrt(x)


def chebyshev(domain: Interval, *, degree: int | None = None, error: float | None = None) -> Realisation:
    """One Chebyshev polynomial.

    Domain: ``[low, high]``, low > 0; outside it the value is meaningless.
    Error: relative, measured when made: degree 15 at κ=16 1.5e-4, 31 at κ=64 1.7e-4, 63 at κ=256 1.7e-4.
    Cost: depth ⌈log2(degree+1)⌉ (+1 unless its affine map is folded); 8, 13, 18 products at degree 15, 31, 63.
    Source: Chebyshev interpolation.
    """
    _positive("rsqrt(chebyshev)", domain)
    return chebyshev_realisation("rsqrt", rsqrt, domain, degree=degree, error=error, relative=True)


def newton(domain: Interval, *, steps: int = 2, degree: int = 3) -> Realisation:
    """Newton's iteration ``y ← y·(3 − x·y²)/2`` from a Chebyshev first guess.

    Domain: ``[low, high]``, low > 0; the first guess must lie in (0, √(3/x)), else a step diverges and it is refused.
    Error: relative, measured when made; each step squares it (e ← 3e²/2 + e³/2).
    Cost: the guess, then 3 products and 3 levels a step (x/2 is formed once).
    Source: Newton; guess by Chebyshev interpolation.
    """
    _positive("rsqrt(newton)", domain)
    guess = Polynomial(tuple(fit.chebyshev(rsqrt, domain, degree)), domain)

    def value(x: Array) -> Array:
        y = guess(x)
        for _ in range(steps):
            y = y * (1.5 - 0.5 * np.asarray(x) * y * y)
        return y

    measured = fit.max_error(rsqrt, value, domain, relative=True)
    if not measured < 0.5:
        raise PlanError(
            f"rsqrt(newton) with a first guess of degree {degree} does not converge on "
            f"[{domain[0]:.3g}, {domain[1]:.3g}]; raise the degree"
        )

    return Realisation(
        "rsqrt",
        "newton",
        domain,
        lambda x: _newton(x, x.polynomial(guess), steps),
        error=measured,
        relative=True,
        source="Newton from a Chebyshev first guess",
    )


def _newton(x: Tensor, y: Tensor, steps: int) -> Tensor:
    half = x * 0.5
    for _ in range(steps):
        y = y * (1.5 - half * y.square())
    return y


def crypten(domain: Interval, *, steps: int = 3) -> Realisation:
    """Newton from ``2.2·exp(−(x/2 + 0.2)) + 0.2 − x/1024``.

    Domain: ``[low, high]``, low > 0; good to 1 % on [0.086, 159], refused where it errs by more than 10 %.
    Error: relative, measured when made.
    Cost: one exp (8 squarings), then 3 products a step.
    Source: CrypTen 0.4.1 (``sqrt_nr_iters = 3``).
    """
    _positive("rsqrt(crypten)", domain)
    t = np.geomspace(*domain, 4001)
    y = 2.2 * (1 - (t / 2 + 0.2) / 256) ** 256 + 0.2 - t / 1024
    for _ in range(steps):
        y = y * (3 - t * y * y) / 2
    measured = float(np.max(np.abs(y * np.sqrt(t) - 1)))
    if not measured <= 0.1:
        raise PlanError(
            f"rsqrt(crypten) does not converge in {steps} steps on [{domain[0]:.3g}, {domain[1]:.3g}]; "
            'use kind = "chebyshev" or "newton", or retrain with a range penalty'
        )

    def apply(x: Tensor) -> Tensor:
        return _newton_crypten(x, steps)

    return Realisation(
        "rsqrt", "crypten", domain, apply, error=measured, relative=True, source="CrypTen 0.4.1, Newton-Raphson"
    )


def _newton_crypten(x: Tensor, steps: int) -> Tensor:
    y = exp.limit_power(x * -0.5 - 0.2, 8) * 2.2 + 0.2 - x * (1 / 1024)
    for _ in range(steps):
        y = y * (3.0 - x * y.square()) * 0.5
    return y


REALISATIONS: dict[str, Builder] = {"chebyshev": chebyshev, "newton": newton, "crypten": crypten}
TRUE = rsqrt
