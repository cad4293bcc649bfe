"""Fits polynomials to functions of one variable and measures how far off they are: numpy only, no Tensor in sight.

Coefficients are in the Chebyshev basis of the domain, ascending: ``p(x) = Σ c_k·T_k(t)``, ``t = (2x − a − b)/(b − a)``
on ``[a, b]``. Functions take and return arrays of float64.
"""

from __future__ import annotations

from secureattn.fit.extension import Extension, extend
from secureattn.fit.fourier import FourierFit, fourier_extension
from secureattn.fit.interpolation import chebyshev, chebyshev_to_monomial, evaluate_chebyshev
from secureattn.fit.intervals import Array, Domain, Function, Parity
from secureattn.fit.measure import DEPTH_EDGES, Method, degree_for, max_error
from secureattn.fit.minimax import ConvergenceError, remez
from secureattn.fit.sign import ODD_PRODUCTS, CompositeSign, composite_sign

__all__ = [
    "DEPTH_EDGES",
    "ODD_PRODUCTS",
    "Array",
    "CompositeSign",
    "ConvergenceError",
    "Domain",
    "Extension",
    "FourierFit",
    "Function",
    "Method",
    "Parity",
    "chebyshev",
    "chebyshev_to_monomial",
    "composite_sign",
    "degree_for",
    "evaluate_chebyshev",
    "extend",
    "fourier_extension",
    "max_error",
    "remez",
]
