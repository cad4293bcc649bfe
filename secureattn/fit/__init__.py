"""Fits polynomials to functions of one variable and measures how far off they are: numpy only, no Tensor in sight.

Coefficients are in the Chebyshev basis of the domain, ascending: ``p(x) = Σ c_k·T_k(t)``, ``t = (2x − a − b)/(b − a)``
on ``[a, b]``. Functions take and return arrays of float64.
"""

from __future__ import annotations

from secureattn.fit.interpolation import chebyshev, chebyshev_to_monomial, evaluate_chebyshev
from secureattn.fit.intervals import Array, Domain, Function
from secureattn.fit.measure import DEPTH_EDGES, degree_for, max_error
from secureattn.fit.minimax import Parity, remez

__all__ = [
    "DEPTH_EDGES",
    "Array",
    "Domain",
    "Function",
    "Parity",
    "chebyshev",
    "chebyshev_to_monomial",
    "degree_for",
    "evaluate_chebyshev",
    "max_error",
    "remez",
]
