"""How far off a polynomial is, and the smallest degree that is close enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np

from secureattn.errors import InputError
from secureattn.fit.interpolation import chebyshev, evaluate_chebyshev
from secureattn.fit.intervals import (
    Array,
    Domain,
    Function,
    check,
    climb,
    extrema_grid,
    show,
    to_domain,
    values_of,
    weights_of,
)
from secureattn.fit.minimax import ConvergenceError, remez

Method = Literal["chebyshev", "remez"]

DEPTH_EDGES = (3, 7, 15, 31, 63, 127)
"""Degrees 2^k − 1: the largest that a polynomial of depth k can have."""


def max_error(f: Function, evaluate: Function, domain: Domain, *, relative: bool = False, samples: int = 8192) -> float:
    """The largest ``|evaluate(x) − f(x)|`` on the domain, divided by ``|f(x)|`` if ``relative``.

    Formula: the maximum over ``x_j = (a+b)/2 − (b−a)/2·cos(πj/samples)``, both ends included, then over finer and finer
    grids around the local maxima that come within 20 % of it.
    Domain: any finite ``[a, b]``; a NaN, an infinity, or a zero of ``f`` if ``relative``, is refused.
    Error: a lower bound; short by less than 1e-6 of itself while the error has fewer than ``samples/20`` extrema.
    Cost: ``samples + 1`` calls of both in one array, and 72 for each maximum that is refined, at most 64 of them.
    """
    check(domain, 0)
    if samples < 2:
        raise InputError(f"max_error needs at least 2 samples, got {samples}")

    def error(t: Array) -> Array:
        x = to_domain(t, domain)
        true = values_of(f, x)
        return np.abs(values_of(evaluate, x) - true) * weights_of(true, x, relative)

    grid = extrema_grid(samples)
    on_grid = error(grid)
    left, right = np.r_[-1.0, on_grid[:-1]], np.r_[on_grid[1:], -1.0]
    tall = np.flatnonzero((on_grid >= left) & (on_grid >= right) & (on_grid >= 0.8 * on_grid.max()))
    tall = tall[np.argsort(-on_grid[tall], kind="stable")][:64]
    _, refined = climb(error, grid, tall)
    return float(max(on_grid.max(), refined.max()))


def degree_for(
    f: Function,
    domain: Domain,
    error: float,
    *,
    relative: bool = False,
    degrees: Sequence[int] = DEPTH_EDGES,
    method: Method = "chebyshev",
) -> int:
    """The smallest of ``degrees`` whose polynomial for ``f`` errs by no more than ``error`` on the domain.

    Formula: degree ``2^k − 1`` costs depth ``k``, so only these are tried unless others are named. The polynomial is
    the Chebyshev interpolant or, with ``method="remez"``, the minimax; a degree at which Remez does not converge counts
    as one that does not reach the error.
    Domain: as for ``chebyshev`` or ``remez``; as for ``max_error`` if ``relative``.
    Error: as ``max_error`` measures it; if no degree reaches it, that is an error that names the best.
    Cost: one fit and one measurement per degree tried.
    """
    if not (math.isfinite(error) and error > 0):
        raise InputError(f"degree_for needs a positive error to aim at, got {error}")
    if not degrees:
        raise InputError("degree_for needs degrees to choose from, got none")
    if method not in ("chebyshev", "remez"):
        raise InputError(f'degree_for needs method "chebyshev" or "remez", got {method!r}')
    best, best_degree = math.inf, min(degrees)
    for degree in sorted(degrees):
        try:
            if method == "chebyshev":
                coefficients = chebyshev(f, domain, degree)
            else:
                coefficients, _ = remez(f, domain, degree, relative=relative)
        except ConvergenceError:
            continue
        measured = max_error(f, partial(evaluate_chebyshev, coefficients, domain=domain), domain, relative=relative)
        if measured <= error:
            return degree
        best, best_degree = min((best, best_degree), (measured, degree))
    raise InputError(
        f"no degree among {', '.join(map(str, sorted(degrees)))} reaches {'relative ' * relative}error {error:.2g} on "
        f"{show(domain)}: the best is {best:.2g} at degree {best_degree}; allow a larger error or narrow the domain"
    )
