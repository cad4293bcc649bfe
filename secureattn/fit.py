"""Fits polynomials to functions of one variable and measures how far off they are: numpy only, no Tensor in sight.

Coefficients are in the Chebyshev basis of the domain, ascending: ``p(x) = Σ c_k·T_k(t)``, ``t = (2x − a − b)/(b − a)``
on ``[a, b]``. Functions take and return arrays of float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from secureattn.errors import InputError

Array = npt.NDArray[np.float64]
Function = Callable[[Array], npt.ArrayLike]
Domain = tuple[float, float]
Parity = Literal["even", "odd"]

DEPTH_EDGES = (3, 7, 15, 31, 63, 127)
"""Degrees 2^k − 1: the largest that a polynomial of depth k can have."""

_EPS = float(np.finfo(np.float64).eps)


def chebyshev(f: Function, domain: Domain, degree: int) -> Array:
    """The polynomial that equals ``f`` at the Chebyshev nodes of the domain.

    Formula: ``c_k = (2 − [k=0])/n · Σ_j f(x_j)·cos(kπ(2j+1)/2n)``, ``n = degree + 1``, ``t_j = cos(π(2j+1)/2n)``.
    Domain: any finite ``[a, b]`` where ``f`` is finite; grows like ``|t|^degree`` outside.
    Error: within a factor ``2 + (2/π)·ln(n)`` of the best polynomial of that degree.
    Cost: ``n`` calls of ``f`` in one array, ``n²`` products.
    Source: Trefethen, Approximation Theory and Approximation Practice, 2013, chapters 3 and 15.
    """
    _check(domain, degree)
    n = degree + 1
    odd = 2 * np.arange(n) + 1
    # The sine of the complement is the same node, and exactly symmetric around an exact 0.
    values = _values(f, _to_domain(np.sin(np.pi * (n - odd) / (2 * n)), domain))
    # The angle is reduced in integers first: cos of a large multiple of π would lose digits.
    turns = np.outer(np.arange(n), odd) % (4 * n)
    coefficients: Array = np.cos(np.pi * turns / (2 * n)) @ values * (2.0 / n)
    coefficients[0] /= 2.0
    return coefficients


def remez(
    f: Function, domain: Domain, degree: int, *, relative: bool = False, parity: Parity | None = None
) -> tuple[Array, float]:
    """The polynomial with the smallest maximal error (minimax), and that error as measured on the domain.

    Formula: ``min_p max_x w(x)·|f(x) − p(x)|`` with ``w = 1``, or ``1/|f|`` if ``relative``; Remez' second algorithm
    levels the error until it alternates at one point more than there are coefficients.
    Domain: any finite ``[a, b]``; a ``parity`` needs ``[−a, a]`` and an even or odd ``f``, and keeps only such powers.
    ``relative`` needs an ``f`` without zeros, save an odd one's at 0. Grows like ``|t|^degree`` outside.
    Error: optimal to 1e-6 of itself, or to rounding (about 1e-15·Σ|c_k|, times w) where that is more.
    Cost: per exchange one solve in ``degree³`` and about ``24·degree`` values of the polynomial; 3–10 exchanges.
    Source: Remez, 1934; exchange of all points as in Pachón and Trefethen, BIT 49 (2009), 721–741.
    """
    _check(domain, degree)
    problem = _Minimax(f, domain, degree, relative, parity)
    problem.check_parity()
    grid = problem.sample(problem.grid())
    reference = problem.start()
    gap = math.inf
    for _ in range(60):
        nodes = problem.sample(reference)
        try:
            coefficients, level = problem.level(nodes)
        except np.linalg.LinAlgError:
            break
        extrema, heights = problem.extrema(coefficients, grid.merge(nodes))
        peak = float(np.max(np.abs(heights)))
        if peak - level <= 1e-6 * peak + problem.noise(coefficients, grid):
            return coefficients, peak
        gap = min(gap, (peak - level) / peak)
        if len(extrema) < len(reference):
            break
        reference = _alternation(extrema, heights, len(reference))
    raise InputError(
        f"remez(degree={degree}) on {_show(domain)} did not converge: its error got level to {100 * gap:.2g} %; "
        "use chebyshev, another degree, or a domain where the function is smooth"
    )


def max_error(f: Function, evaluate: Function, domain: Domain, *, relative: bool = False, samples: int = 8192) -> float:
    """The largest ``|evaluate(x) − f(x)|`` on the domain, divided by ``|f(x)|`` if ``relative``.

    Formula: the maximum over ``x_j = (a+b)/2 − (b−a)/2·cos(πj/samples)``, both ends included, then over finer and finer
    grids around the local maxima that come within 20 % of it.
    Domain: any finite ``[a, b]``; a NaN, an infinity, or a zero of ``f`` if ``relative``, is refused.
    Error: a lower bound; short by less than 1e-6 of itself while the error has fewer than ``samples/20`` extrema.
    Cost: ``samples + 1`` calls of both in one array, and 72 for each maximum that is refined, at most 64 of them.
    """
    _check(domain, 0)
    if samples < 2:
        raise InputError(f"max_error needs at least 2 samples, got {samples}")

    def error(t: Array) -> Array:
        x = _to_domain(t, domain)
        true = _values(f, x)
        return np.abs(_values(evaluate, x) - true) * _weights(true, x, relative)

    grid = _extrema_grid(samples)
    on_grid = error(grid)
    left, right = np.r_[-1.0, on_grid[:-1]], np.r_[on_grid[1:], -1.0]
    tall = np.flatnonzero((on_grid >= left) & (on_grid >= right) & (on_grid >= 0.8 * on_grid.max()))
    tall = tall[np.argsort(-on_grid[tall], kind="stable")][:64]
    _, refined = _climb(error, grid, tall)
    return float(max(on_grid.max(), refined.max()))


def degree_for(
    f: Function, domain: Domain, error: float, *, relative: bool = False, degrees: Sequence[int] = DEPTH_EDGES
) -> int:
    """The smallest of ``degrees`` whose Chebyshev interpolant of ``f`` errs by no more than ``error`` on the domain.

    Formula: degree ``2^k − 1`` costs depth ``k``, so only these are tried unless others are named.
    Domain: as for ``chebyshev``; as for ``max_error`` if ``relative``.
    Error: as ``max_error`` measures it; if no degree reaches it, that is an error that names the best.
    Cost: one fit and one measurement per degree tried.
    """
    if not (math.isfinite(error) and error > 0):
        raise InputError(f"degree_for needs a positive error to aim at, got {error}")
    if not degrees:
        raise InputError("degree_for needs degrees to choose from, got none")
    best, best_degree = math.inf, 0
    for degree in sorted(degrees):
        coefficients = chebyshev(f, domain, degree)
        measured = max_error(f, partial(evaluate_chebyshev, coefficients, domain=domain), domain, relative=relative)
        if measured <= error:
            return degree
        best, best_degree = min((best, best_degree), (measured, degree))
    raise InputError(
        f"no degree among {', '.join(map(str, sorted(degrees)))} reaches {'relative ' * relative}error {error:.2g} on "
        f"{_show(domain)}: the best is {best:.2g} at degree {best_degree}; allow a larger error or narrow the domain"
    )


def evaluate_chebyshev(coefficients: npt.ArrayLike, x: npt.ArrayLike, domain: Domain = (-1.0, 1.0)) -> Array:
    """``Σ c_k·T_k(t)``, elementwise, for ``t = (2x − a − b)/(b − a)``.

    Formula: Clenshaw, ``b_k = c_k + 2t·b_{k+1} − b_{k+2}``, result ``c_0 + t·b_1 − b_2``.
    Domain: ``[a, b]``; defined outside, where it grows fast.
    Error: about ``1e-16·Σ|c_k|``, times the degree at worst.
    Cost: one product and two sums per coefficient and element.
    Source: Clenshaw, Math. Comp. 9 (1955), 118–120.
    """
    _check(domain, 0)
    c = _coefficients(coefficients)
    t = _to_unit(np.asarray(x, dtype=np.float64), domain)
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
    _check(domain, 0)
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


# ---- Remez, in t ∈ [−1, 1], or [0, 1] where a parity gives the other half -------------------------------------


@dataclass(frozen=True)
class _Samples:
    """Points, and there the function and the weight of its error."""

    t: Array
    values: Array
    weights: Array

    def merge(self, other: _Samples) -> _Samples:
        t = np.r_[self.t, other.t]
        order = np.argsort(t, kind="stable")
        return _Samples(t[order], np.r_[self.values, other.values][order], np.r_[self.weights, other.weights][order])


@dataclass(frozen=True)
class _Minimax:
    """What ``remez`` was asked for, and the steps of its algorithm."""

    f: Function
    domain: Domain
    degree: int
    relative: bool
    parity: Parity | None

    @property
    def orders(self) -> npt.NDArray[np.int64]:
        """The k of the T_k that may be used."""
        if self.parity is None:
            return np.arange(self.degree + 1)
        return np.arange(int(self.parity == "odd"), self.degree + 1, 2)

    def check_parity(self) -> None:
        """Refuse a parity that the domain or the function does not have."""
        if self.parity is None:
            return
        if self.parity not in ("even", "odd"):
            raise InputError(f'remez needs parity "even", "odd" or None, got {self.parity!r}')
        a, b = self.domain
        if a != -b:
            raise InputError(f"remez(parity={self.parity!r}) needs a domain [−a, a], got {_show(self.domain)}")
        if not len(self.orders):
            raise InputError("remez(parity='odd') needs a degree of at least 1, got 0")
        x = b * self.points(100)
        values, mirrored = _values(self.f, x), _values(self.f, -x)
        off = np.max(np.abs(values - mirrored if self.parity == "even" else values + mirrored))
        if off > 1e-9 * np.max(np.abs(values)):
            raise InputError(f"remez(parity={self.parity!r}) needs such a function, got one that is off by {off:.2g}")

    def points(self, n: int) -> Array:
        """n + 1 ascending points, dense at the ends, as extrema of a Chebyshev polynomial with the parity."""
        if self.parity is None:
            return _extrema_grid(n)
        odd = int(self.parity == "odd")  # 0 is no point then: an odd polynomial has no error there
        return np.sin(np.pi * (2 * np.arange(n + 1) + odd) / (4 * n + 2 * odd))

    def grid(self) -> Array:
        """Where extrema are looked for: 24 points for each of them, and one close to a 0 that cannot be one."""
        t = self.points(24 * (self.degree + 2))
        return np.r_[1e-4, t] if self.parity == "odd" else t

    def start(self) -> Array:
        """The first reference: skewed, as an even or odd function has no error to level on a symmetric one."""
        n = len(self.orders)
        t = self.points(n)
        return t if self.parity else (t + 0.3 / n) / (1.0 + 0.3 / n * t)

    def sample(self, t: Array) -> _Samples:
        x = _to_domain(t, self.domain)
        values = _values(self.f, x)
        return _Samples(t, values, _weights(values, x, self.relative))

    def level(self, nodes: _Samples) -> tuple[Array, float]:
        """The polynomial whose weighted error is ±E in turn at the nodes, and |E|: a lower bound of the optimum."""
        columns = np.cos(np.outer(np.arccos(nodes.t), self.orders))
        signs = (-1.0) ** np.arange(len(nodes.t))
        solution = np.linalg.solve(np.c_[columns, signs / nodes.weights], nodes.values)
        coefficients = np.zeros(self.degree + 1)
        coefficients[self.orders] = solution[:-1]
        return coefficients, float(abs(solution[-1]))

    def errors(self, coefficients: Array, at: _Samples) -> Array:
        return at.weights * (evaluate_chebyshev(coefficients, at.t) - at.values)

    def extrema(self, coefficients: Array, candidates: _Samples) -> tuple[Array, Array]:
        """The largest error between every two changes of sign: where, and its height with the sign."""
        errors = self.errors(coefficients, candidates)
        signs = np.where(errors >= 0, 1.0, -1.0)
        starts = np.r_[0, np.flatnonzero(np.diff(signs)) + 1]
        runs = np.split(np.abs(errors), starts[1:])
        peaks = starts + np.array([int(np.argmax(run)) for run in runs])
        side = signs[peaks]

        def height(t: Array) -> Array:
            return np.repeat(side, len(t) // len(side)) * self.errors(coefficients, self.sample(t))

        t, heights = _climb(height, candidates.t, peaks)
        return t, side * heights

    def noise(self, coefficients: Array, grid: _Samples) -> float:
        """Rounding in a value of the error, as weighted: of the sum, and of x where the function is steep."""
        terms = np.abs(coefficients).sum() + np.abs(grid.values).max()
        a, b = self.domain
        slopes = np.abs(np.gradient(grid.values, grid.t)) * (1.0 + abs(a + b) / (b - a))
        return float(4 * _EPS * np.max(grid.weights * (terms + slopes)))


def _alternation(t: Array, heights: Array, count: int) -> Array:
    """Of extrema that alternate in sign, ``count`` that still do, the highest among them."""
    kept = list(range(len(t)))
    tall = np.abs(heights)
    while len(kept) > count:
        ends = 0 if tall[kept[0]] <= tall[kept[-1]] else len(kept) - 1
        lowest = min(range(len(kept)), key=lambda i: tall[kept[i]])
        if len(kept) == count + 1 or lowest in (0, len(kept) - 1):
            del kept[ends if len(kept) == count + 1 else lowest]
            continue
        other = lowest - 1 if tall[kept[lowest - 1]] <= tall[kept[lowest + 1]] else lowest + 1
        first = min(lowest, other)
        del kept[first : first + 2]
    return t[kept]


# ---- helpers ------------------------------------------------------------------------------------------------


def _extrema_grid(n: int) -> Array:
    """``−cos(πj/n)``, exactly symmetric."""
    return np.sin(np.pi * np.arange(-n, n + 1, 2) / (2 * n))


def _climb(height: Callable[[Array], Array], grid: Array, peaks: npt.NDArray[np.intp]) -> tuple[Array, Array]:
    """The highest point near each peak of a grid, by eight ever finer grids of nine points.

    Near is up to the second neighbour, as the first may be the same point again.
    """
    lower, upper = grid[np.maximum(peaks - 2, 0)], grid[np.minimum(peaks + 2, len(grid) - 1)]
    low, high = lower, upper
    rows = np.arange(len(peaks))
    for _ in range(8):
        t = np.linspace(low, high, 9, axis=1)
        heights = height(t.ravel()).reshape(t.shape)
        best = np.argmax(heights, axis=1)
        centre, step = t[rows, best], (high - low) / 8
        low, high = np.maximum(lower, centre - step), np.minimum(upper, centre + step)
    return centre, heights[rows, best]


def _values(f: Function, x: Array) -> Array:
    with np.errstate(all="ignore"):
        y = np.asarray(f(x), dtype=np.float64)
    if y.shape != x.shape:
        raise InputError(f"the function must return one value for each of {x.shape} points, got shape {y.shape}")
    if not np.isfinite(y).all():
        raise InputError(f"the function is not finite at {x[~np.isfinite(y)][0]:.6g}; choose a domain where it is")
    return y


def _weights(values: Array, x: Array, relative: bool) -> Array:
    if not relative:
        return np.ones_like(values)
    if values.min() <= 0 <= values.max():
        near = x[np.argmin(np.abs(values))]
        raise InputError(f"a relative error needs a function without zeros, got one with a zero near {near:.6g}")
    return 1.0 / np.abs(values)


def _to_domain(t: Array, domain: Domain) -> Array:
    a, b = domain
    return np.clip((a + b) / 2 + (b - a) / 2 * t, a, b)


def _to_unit(x: Array, domain: Domain) -> Array:
    a, b = domain
    t: Array = (2.0 * x - (a + b)) / (b - a)
    return t


def _coefficients(coefficients: npt.ArrayLike) -> Array:
    c = np.asarray(coefficients, dtype=np.float64)
    if c.ndim != 1 or not len(c) or not np.isfinite(c).all():
        raise InputError(f"coefficients must be finite numbers in one row, at least one, got shape {c.shape}")
    return c


def _check(domain: Domain, degree: int) -> None:
    a, b = domain
    if not (math.isfinite(a) and math.isfinite(b) and a < b):
        raise InputError(f"a domain needs two finite ends in ascending order, got {_show(domain)}")
    if degree < 0 or degree != int(degree):
        raise InputError(f"a polynomial needs a whole degree of at least 0, got {degree}")


def _show(domain: Domain) -> str:
    return f"[{domain[0]:.6g}, {domain[1]:.6g}]"
