"""Domain extension: cubics that fold a wide interval into a narrow one, then one polynomial there."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from secureattn.errors import InputError
from secureattn.fit.interpolation import chebyshev, evaluate_chebyshev
from secureattn.fit.intervals import Array, Domain, Function, Parity, check, check_parity, show, values_of
from secureattn.fit.measure import max_error
from secureattn.fit.minimax import ConvergenceError, remez

_LEAST, _MOST = 1.5, 1.5 * math.sqrt(3.0)  # below, a step wastes its fold; from there on, the end folds back to 0
_GRID = np.linspace(_LEAST, _MOST, 44, endpoint=False)
_MOST_STEPS = 16
_GAIN = 0.95


@dataclass(frozen=True)
class Extension:
    """``p(y)`` after ``y ← y − c·y³`` for each c of ``cubics`` in this order; p in the Chebyshev basis of ``[−R, R]``.

    ``error`` is the largest distance to the function on ``domain``, all of ``[−reach, reach]``.
    """

    cubics: tuple[float, ...]
    base: Array
    base_domain: Domain
    domain: Domain
    error: float

    @property
    def depth(self) -> int:
        """Levels: two a cubic, whose last takes the factor 1/R, and those of p; one more for 1/R if there is none."""
        return 2 * len(self.cubics) + (len(self.base) - 1).bit_length() + (not self.cubics)

    def __call__(self, x: npt.ArrayLike) -> Array:
        """The value in float64, for fitting and plotting."""
        y = np.asarray(x, dtype=np.float64)
        for c in self.cubics:
            y = y - c * y**3
        return evaluate_chebyshev(self.base, y, self.base_domain)


def extend(
    f: Function,
    reach: float,
    *,
    degree: int,
    error: float | None = None,
    base: float | None = None,
    parity: Parity | None = None,
) -> Extension:
    """A polynomial of a wide interval for a function that is all but constant outside a narrow one.

    Formula: ``y ← y − 4/(27·L^{2i}·R²)·y³`` for ``i = n−1 … 0`` takes ``[−reach, reach]``, ``reach = L^n·R``, into
    ``[−R, R]``: one to one around 0, while what is far out folds to near ±R. The inverse of a cubic around 0 is
    ``3s·sin(arcsin(y/s)/3)``, ``s = L^i·R``, and the base is fitted to f of all of them: what the cubics distort, it
    undoes. R is ``base``, or the best for n cubics; n is the least that reaches ``error``, or else that after which no
    further one gains 5 %.
    Domain: ``[−reach, reach]`` of an f near-constant beyond some ``|x|`` far below; grows like ``|x|^(3^n·degree)``.
    Error: as ``max_error`` measures it. Measured at degree 31: sigmoid on ±128, 3 cubics, 1.8e-4 (depth 11, 18
    products); on ±1024, 5 cubics, 6.5e-4 (15, 22); tanh on ±50, 3 cubics, 1.3e-4 (11, 18). One Chebyshev polynomial
    has 2.2e-6 at degree 511 (9, 42), 1.2e-3 at 2047 (11, 77) and 4.0e-4 at 255 (8, 32): the cubics save products, not
    depth.
    Cost: depth ``2n + ⌈log2(degree + 1)⌉``, ``2n`` products and those of the base.
    Source: Cheon, Kim and Park, eprint 2022/280; the inverse is that of a Chebyshev polynomial, as 4u³ − 3u = T_3.
    """
    domain = (-reach, reach)
    check(domain, degree)
    if error is not None and not (math.isfinite(error) and error > 0):
        raise InputError(f"extend needs a positive error to aim at, got {error}")
    if base is not None and not 0 < base <= reach:
        raise InputError(f"extend needs a base from 0 to reach {reach:g}, got {base:g}")
    if parity is not None:
        check_parity("extend", f, domain, parity)
    best: Extension | None = None
    for steps in range(_MOST_STEPS + 1):
        factors = _factors(reach, steps, base)
        if not len(factors):
            continue
        found = _with_steps(f, domain, degree, steps, factors, parity)
        if best is None or found.error < _GAIN * best.error:
            best = found
        if found.error > 10 * best.error or (error is not None and best.error <= error):
            break
    if best is None:
        raise InputError(f"extend cannot fold [−{reach:g}, {reach:g}] to a base of {base:g}; name another or none")
    if error is not None and best.error > error:
        raise InputError(
            f"domain extension with degree {degree} does not reach error {error:.2g} on {show(domain)}: the best is "
            f"{best.error:.2g} with {len(best.cubics)} cubics; allow a larger error, a higher degree or less reach"
        )
    return best


def _factors(reach: float, steps: int, base: float | None) -> Array:
    """The L that may be tried: the one that leads to the base, or a grid."""
    if base is None:
        return _GRID if steps else np.ones(1)
    if not steps:
        return np.ones(int(base == reach))
    factor = (reach / base) ** (1 / steps)
    return np.full(int(_LEAST <= factor < _MOST), factor)


def _with_steps(
    f: Function, domain: Domain, degree: int, steps: int, factors: Array, parity: Parity | None
) -> Extension:
    """The best extension of so many cubics, measured: interpolants choose the factor, Remez refines the best."""
    folds = [_Fold(domain[1], steps, float(factor)) for factor in factors]
    if len(folds) > 1:
        folds = [min(folds, key=lambda fold: fold.rough_error(f, degree))]
    target = folds[0].flattened(f)
    bases = [chebyshev(target, folds[0].base_domain, degree)]
    if parity is not None:
        bases[0][int(parity == "even") :: 2] = 0.0  # rounding only
    with contextlib.suppress(ConvergenceError):
        bases.append(remez(target, folds[0].base_domain, degree, parity=parity)[0])
    return min((folds[0].measured(f, base) for base in bases), key=lambda extension: extension.error)


@dataclass(frozen=True)
class _Fold:
    """The cubics alone: ``steps`` of them, of factor L, from ``[−reach, reach]`` to ``[−R, R]``."""

    reach: float
    steps: int
    factor: float

    @property
    def scales(self) -> list[float]:
        """R, LR, … : each cubic maps 3/2 times its scale to its scale; the last to be applied comes first."""
        return [self.reach * self.factor ** (i - self.steps) for i in range(self.steps)]

    @property
    def base_domain(self) -> Domain:
        end = self.reach * self.factor**-self.steps
        return (-end, end)

    def flattened(self, f: Function) -> Function:
        """f of the branch of the inverse that goes through 0."""

        def target(y: Array) -> npt.ArrayLike:
            for scale in self.scales:
                y = 3 * scale * np.sin(np.arcsin(np.clip(y / scale, -1.0, 1.0)) / 3)
            return f(y)

        return target

    def outward(self, v: Array) -> Array:
        """``[−1, 1]`` to the whole domain: even steps within the base domain, even in the logarithm far outside."""
        base = self.base_domain[1]
        return np.clip(base * np.sinh(v * math.asinh(self.reach / base)), -self.reach, self.reach)

    def extension(self, base: Array, error: float = math.nan) -> Extension:
        cubics = tuple(4.0 / (27.0 * scale**2) for scale in reversed(self.scales))
        return Extension(cubics, base, self.base_domain, (-self.reach, self.reach), error)

    def rough_error(self, f: Function, degree: int) -> float:
        x = self.outward(np.linspace(-1.0, 1.0, 2001))
        values = self.extension(chebyshev(self.flattened(f), self.base_domain, degree))(x)
        return float(np.max(np.abs(values - values_of(f, x))))

    def measured(self, f: Function, base: Array) -> Extension:
        extension = self.extension(base)
        error = max_error(
            lambda v: f(self.outward(v)), lambda v: extension(self.outward(v)), (-1.0, 1.0), samples=2**14
        )
        return replace(extension, error=error)
