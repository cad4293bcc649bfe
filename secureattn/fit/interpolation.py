"""Chebyshev interpolation, and what a row of coefficients stands for: its values and its powers of x."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from secureattn.errors import InputError
from secureattn.fit.intervals import Array, Domain, Function, check, to_domain, to_unit, values_of


def chebyshev(f: Function, domain: Domain, degree: int) -> Array:
    """The polynomial that equals ``f`` at the Chebyshev nodes of the domain.

    Formula: ``c_k = (2 − [k=0])/n · Σ_j f(x_j)·cos(kπ(2j+1)/2n)``, ``n = degree + 1``, ``t_j = cos(π(2j+1)/2n)``.
    Domain: any finite ``[a, b]`` where ``f`` is finite; grows like ``|t|^degree`` outside.
    Error: within a factor ``2 + (2/π)·ln(n)`` of the best polynomial of that degree.
    Cost: ``n`` calls of ``f`` in one array, ``n²`` products.
    Source: Trefethen, Approximation Theory and Approximation Practice, 2013, chapters 3 and 15.
    """
    check(domain, degree)
    n = degree + 1
    odd = 2 * np.arange(n) + 1
    # The sine of the complement is the same node, and exactly symmetric around an exact 0.
    values = values_of(f, to_domain(np.sin(np.pi * (n - odd) / (2 * n)), domain))
    # The angle is reduced in integers first: cos of a large multiple of π would lose digits.
    turns = np.outer(np.arange(n), odd) % (4 * n)
    coefficients: Array = np.cos(np.pi * turns / (2 * n)) @ values * (2.0 / n)
    coefficients[0] /= 2.0
    return coefficients


def evaluate_chebyshev(coefficients: npt.ArrayLike, x: npt.ArrayLike, domain: Domain = (-1.0, 1.0)) -> Array:
    """``Σ c_k·T_k(t)``, elementwise, for ``t = (2x − a − b)/(b − a)``.

    Formula: Clenshaw, ``b_k = c_k + 2t·b_{k+1} − b_{k+2}``, result ``c_0 + t·b_1 − b_2``.
    Domain: ``[a, b]``; defined outside, where it grows fast.
    Error: about ``1e-16·Σ|c_k|``, times the degree at worst.
    Cost: one product and two sums per coefficient and element.
    Source: Clenshaw, Math. Comp. 9 (1955), 118–120.
    """
    check(domain, 0)
    c = _coefficients(coefficients)
    t = to_unit(np.asarray(x, dtype=np.float64), domain)
    b1, b2 = np.zeros_like(t), np.zeros_like(t)
    for k in range(len(c) - 1, 0, -1):
        b1, b2 = c[k] + 2.0 * t * b1 - b2, b1
    result: Array = c[0] + t * b1 - b2
    return result


def chebyshev_to_monomial(coefficients: npt.ArrayLike, domain: Domain = (-1.0, 1.0)) -> Array:
    """The same polynomial in powers of ``x``: ``Σ c_k·T_k(t) = Σ m_k·x^k``, ascending.

    Formula: Clenshaw's recurrence on polynomials in ``x``, with ``t = αx + β``.
    Domain: the polynomial stays the same everywhere; the rounding of its value does not.
    Error: the ``m_k`` grow like ``2.4^degree`` with alternating signs, so ``0.4·degree`` of the 16 digits are lost on
    ``[−1, 1]``, and more on a domain away from 0: meant for degrees up to about 15.
    Cost: ``degree²`` products.
    """
    check(domain, 0)
    c = _coefficients(coefficients)
    a, b = domain
    alpha, beta = 2.0 / (b - a), -(a + b) / (b - a)

    def times_t(p: Array) -> Array:
        product: Array = beta * p + alpha * np.r_[0.0, p[:-1]]
        return product

    b1, b2 = np.zeros_like(c), np.zeros_like(c)
    for k in range(len(c) - 1, 0, -1):
        b1, b2 = 2.0 * times_t(b1) - b2, b1
        b1[0] += c[k]
    b1 = times_t(b1) - b2
    b1[0] += c[0]
    return b1


def _coefficients(coefficients: npt.ArrayLike) -> Array:
    c = np.asarray(coefficients, dtype=np.float64)
    if c.ndim != 1 or not len(c) or not np.isfinite(c).all():
        raise InputError(f"coefficients must be finite numbers in one row, at least one, got shape {c.shape}")
    return c
