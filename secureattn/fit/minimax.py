"""The best polynomial: Remez' exchange, in t ∈ [−1, 1], or [gap, 1] where a parity gives the other half."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secureattn.blas import one_thread
from secureattn.errors import InputError
from secureattn.fit.interpolation import evaluate_chebyshev
from secureattn.fit.intervals import (
    Array,
    Domain,
    Function,
    Parity,
    check,
    check_parity,
    climb,
    extrema_grid,
    show,
    to_domain,
    values_of,
    weights_of,
)

_EPS = float(np.finfo(np.float64).eps)


class ConvergenceError(InputError):
    """The exchange found no level error; another degree, or interpolation, may serve."""


@one_thread
def remez(
    f: Function,
    domain: Domain,
    degree: int,
    *,
    relative: bool = False,
    parity: Parity | None = None,
    gap: float = 0.0,
) -> tuple[Array, float]:
    """The polynomial with the smallest maximal error (minimax), and that error as measured on the domain.

    Formula: ``min_p max_x w(x)·|f(x) − p(x)|`` with ``w = 1``, or ``1/|f|`` if ``relative``; Remez' second algorithm
    levels the error until it alternates at one point more than there are coefficients.
    Domain: any finite ``[a, b]``; a ``parity`` needs ``[−a, a]`` and an even or odd ``f``, and keeps only such powers.
    ``relative`` needs an ``f`` without zeros, save an odd one's at 0. With a parity, ``|x| < gap`` may be left out, so
    that ``f`` may jump there. Grows like ``|t|^degree`` outside.
    Error: optimal to 1e-6 of itself, or to rounding (about 1e-15·Σ|c_k|, times w) where that is more.
    Cost: per exchange one solve in ``degree³`` and about ``24·degree`` values of the polynomial; 3–10 exchanges.
    Source: Remez, 1934; exchange of all points as in Pachón and Trefethen, BIT 49 (2009), 721–741.
    """
    check(domain, degree)
    problem = _Minimax(f, domain, degree, relative, parity, gap)
    problem.check_parity()
    grid = problem.sample(problem.grid())
    reference = problem.start()
    unlevel = math.inf
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
        unlevel = min(unlevel, (peak - level) / peak)
        if len(extrema) < len(reference):
            break
        reference = _alternation(extrema, heights, len(reference))
    raise ConvergenceError(
        f"remez(degree={degree}) on {show(domain)} did not converge: its error got level to {100 * unlevel:.2g} %; "
        "use chebyshev, another degree, or a domain where the function is smooth"
    )


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
    gap: float

    @property
    def orders(self) -> npt.NDArray[np.int64]:
        """The k of the T_k that may be used."""
        if self.parity is None:
            return np.arange(self.degree + 1)
        return np.arange(int(self.parity == "odd"), self.degree + 1, 2)

    def check_parity(self) -> None:
        """Refuse a parity that the domain or the function does not have, and a gap that is none."""
        if self.parity is None:
            if self.gap:
                raise InputError(f"remez(gap={self.gap:g}) needs a parity, got None")
            return
        check_parity("remez", self.f, self.domain, self.parity, self.gap)
        if not len(self.orders):
            raise InputError("remez(parity='odd') needs a degree of at least 1, got 0")

    def points(self, n: int) -> Array:
        """n + 1 ascending points, dense at the ends, as extrema of a Chebyshev polynomial with the parity."""
        if self.parity is None:
            return extrema_grid(n)
        if self.gap:
            start = self.gap / self.domain[1]  # a polynomial in t², times t if odd: dense at the ends of t²
            return np.clip(np.sqrt(start**2 + (1.0 - start**2) * (1.0 + extrema_grid(n)) / 2), start, 1.0)
        odd = int(self.parity == "odd")  # 0 is no point then: an odd polynomial has no error there
        return np.sin(np.pi * (2 * np.arange(n + 1) + odd) / (4 * n + 2 * odd))

    def grid(self) -> Array:
        """Where extrema are looked for: 24 points for each of them, and one close to a 0 that cannot be one."""
        t = self.points(24 * (self.degree + 2))
        return np.r_[1e-4, t] if self.parity == "odd" and not self.gap else t

    def start(self) -> Array:
        """The first reference: skewed, as an even or odd function has no error to level on a symmetric one."""
        n = len(self.orders)
        t = self.points(n)
        return t if self.parity else (t + 0.3 / n) / (1.0 + 0.3 / n * t)

    def sample(self, t: Array) -> _Samples:
        x = to_domain(t, self.domain)
        values = values_of(self.f, x)
        return _Samples(t, values, weights_of(values, x, self.relative))

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

        t, heights = climb(height, candidates.t, peaks)
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
