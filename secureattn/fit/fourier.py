"""Fourier extension: a function on an interval as a short series of a period longer than the interval."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from secureattn.blas import one_thread
from secureattn.errors import InputError
from secureattn.fit.intervals import (
    Array,
    Domain,
    Function,
    Parity,
    check,
    check_parity,
    extrema_grid,
    show,
    to_domain,
    values_of,
    weights_of,
)
from secureattn.fit.measure import max_error

Attempt = tuple[float, Array]

_MOST_HARMONICS = 128
_REGULARISATIONS = np.geomspace(1e-14, 1.0, 57)  # relative to the largest singular value
_LAWSON_STEPS = 5
_HOPELESS = 2.0  # levelling never gained as much where it was measured


@dataclass(frozen=True)
class FourierFit:
    """``constant + linear·x + Σ_{k=1..K} cosines_k·cos(2πkx/P) + sines_k·sin(2πkx/P)``, ``P = period``.

    ``error`` is the largest distance to the function on the domain (relative to it if so asked for), ``weight`` the sum
    of all ``|cosines_k| + |sines_k|``.
    """

    period: float
    constant: float
    cosines: Array
    sines: Array
    linear: float
    domain: Domain
    error: float
    weight: float

    @property
    def harmonics(self) -> int:
        """K."""
        return len(self.cosines)

    def __call__(self, x: npt.ArrayLike) -> Array:
        """The value in float64, for fitting and plotting."""
        x = np.asarray(x, dtype=np.float64)
        angles = np.multiply.outer(x, 2 * np.pi / self.period * np.arange(1, self.harmonics + 1))
        value: Array = self.constant + self.linear * x
        if self.cosines.any():
            value = value + np.cos(angles) @ self.cosines
        if self.sines.any():
            value = value + np.sin(angles) @ self.sines
        return value


@one_thread
def fourier_extension(
    f: Function,
    domain: Domain,
    *,
    error: float | None = None,
    harmonics: int | None = None,
    period: float | None = None,
    parity: Parity | None = None,
    linear: float = 0.0,
    relative: bool = False,
    largest_weight: float = 64.0,
) -> FourierFit:
    """The series with the fewest harmonics that reaches ``error``, or the closest one of so many ``harmonics``.

    Formula: ``f(x) ≈ constant + linear·x + Σ_{k≤K} a_k·cos(2πkx/P) + b_k·sin(2πkx/P)``, ``P = 2^p`` above the domain's
    width and, unless named, at most eight times it. Least squares on Chebyshev and even points, each coefficient damped
    by ``s²/(s² + λ²)`` (Tikhonov; λ that of the least error with ``Σ|a_k| + |b_k| ≤ largest_weight``), weights raised
    where the error is large (Lawson) so that the error levels. With ``error``: the fewest harmonics, then the smallest
    period. A ``parity`` of ``f(x) − linear·x`` leaves out sines (even) or cosines and the constant (odd).
    Domain: any finite ``[a, b]``, ``[−a, a]`` with a parity. Outside the value wraps: it comes back after P.
    Error: as ``max_error`` measures it; further re-weighting was measured to gain 0–8 %. x·erf(x/√2)/2 on ±8, P=32,
    K=20: 4.0e-7 at weight 10; on ±14, K=24: 1.1e-6 at 4; exp on [−28, 1], P=32, K=32: 1.1e-4 at 6.7; on [−56, 1],
    P=64, K=64: 2.4e-7 at 15. More than 128 harmonics are not tried.
    Cost: K cosines and K sines (half with a parity); on shares with a dealer one opening and no product.
    Source: Huybrechs, SIAM J. Numer. Anal. 47 (2010), 4326–4355; weights: Lawson, 1961.
    """
    check(domain, 0)
    target = _Target(f, domain, parity, linear, relative, largest_weight)
    target.check()
    periods = _periods(domain, period)
    if harmonics is not None and error is None:
        if harmonics != int(harmonics) or not 1 <= harmonics <= _MOST_HARMONICS:
            raise InputError(f"fourier_extension needs 1 to {_MOST_HARMONICS} harmonics, got {harmonics}")
        return min((target.fit(p, int(harmonics)) for p in periods), key=lambda fit: fit.error)
    if harmonics is not None or error is None or not (math.isfinite(error) and error > 0):
        raise InputError(f"fourier_extension needs a positive error or harmonics, got {error} and {harmonics}")
    best: FourierFit | None = None
    for p in periods:
        best = _fewest(target, p, best.harmonics - 1 if best else _MOST_HARMONICS, error) or best
    if best is None:
        closest, p = min((next(target.attempts(p, _MOST_HARMONICS))[0], p) for p in periods)
        raise InputError(
            f"no series of {_MOST_HARMONICS} harmonics reaches {'relative ' * relative}error {error:.2g} on "
            f"{show(domain)} with coefficients summing to {largest_weight:g}: least squares gets to {closest:.2g} "
            f"with period {p:g}; allow a larger error or weight, or narrow the domain"
        )
    return best


def _periods(domain: Domain, period: float | None) -> list[float]:
    width = domain[1] - domain[0]
    if period is None:
        first = 2.0 ** math.floor(math.log2(width) + 1)  # the first above the width, also if that is a power of two
        return [first, 2 * first, 4 * first]
    if not (width < period < math.inf and math.frexp(period)[0] == 0.5):
        raise InputError(f"fourier_extension needs a period 2^p above the width {width:g}, got {period:g}")
    return [float(period)]


def _fewest(target: _Target, period: float, most: int, error: float) -> FourierFit | None:
    """The least of 1 … most harmonics that reach the error, by doubling and then halving the step; None if none do."""
    low, high = 0, 1
    while not target.reaches(period, high, error):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if target.reaches(period, middle, error) else (middle, high)
    for harmonics in range(high, most + 1):
        if target.reaches(period, harmonics, error):
            fit = target.fit(period, harmonics)
            if fit.error <= error:  # what lies between the points counts too
                return fit
    return None


@dataclass(frozen=True)
class _Target:
    """What ``fourier_extension`` was asked for, and its least-squares problem for a period and harmonics."""

    f: Function
    domain: Domain
    parity: Parity | None
    linear: float
    relative: bool
    largest_weight: float
    _kept: dict[tuple[float, int], tuple[list[Attempt], Iterator[Attempt]]] = field(default_factory=dict)

    def check(self) -> None:
        if not (math.isfinite(self.linear) and self.largest_weight > 0):
            raise InputError(
                f"fourier_extension needs a finite linear factor and a positive largest_weight, got {self.linear} and "
                f"{self.largest_weight}"
            )
        if self.parity is not None:
            check_parity("fourier_extension", self.rest, self.domain, self.parity)

    def rest(self, x: Array) -> Array:
        """What the series stands for: the function without its linear part."""
        rest: Array = values_of(self.f, x) - self.linear * x
        return rest

    def columns(self, x: Array, period: float, harmonics: int) -> Array:
        angles = np.outer(x, 2 * np.pi / period * np.arange(harmonics + 1))
        cosines, sines = np.cos(angles), np.sin(angles[:, 1:])
        if self.parity is None:
            return np.hstack([cosines, sines])
        return cosines if self.parity == "even" else sines

    def attempts(self, period: float, harmonics: int) -> Iterator[Attempt]:
        """Ever more level series within the weight: the largest error at the points, and the coefficients.

        Made when first asked for, and kept: a search comes back to the same harmonics.
        """
        key = (period, harmonics)
        if key not in self._kept:
            self._kept[key] = ([], self._levelled(period, harmonics))
        done, rest = self._kept[key]
        for place in range(_LAWSON_STEPS + 1):
            if place == len(done):
                done += itertools.islice(rest, 1)
            if place == len(done):
                return
            yield done[place]

    def _levelled(self, period: float, harmonics: int) -> Iterator[Attempt]:
        n = 4 * harmonics + 64
        t = np.unique(np.r_[extrema_grid(n), np.linspace(-1.0, 1.0, n)])
        x = to_domain(t[t >= 0] if self.parity else t, self.domain)
        values = values_of(self.f, x)
        importance = weights_of(values, x, self.relative)
        matrix = importance[:, None] * self.columns(x, period, harmonics)
        wanted = importance * (values - self.linear * x)
        first = 0 if self.parity == "odd" else 1
        weights = np.full(len(x), 1.0 / len(x))
        for _ in range(_LAWSON_STEPS + 1):
            rows = np.sqrt(weights)
            u, s, vt = np.linalg.svd(rows[:, None] * matrix, full_matrices=False)
            damped = s[:, None] / (s[:, None] ** 2 + (_REGULARISATIONS * s[0]) ** 2)
            coefficients = vt.T @ (damped * (u.T @ (rows * wanted))[:, None])
            errors = np.abs(matrix @ coefficients - wanted[:, None])
            allowed = np.abs(coefficients[first:]).sum(axis=0) <= self.largest_weight
            heights = np.where(allowed, errors.max(axis=0), math.inf)
            best = int(np.argmin(heights))
            yield float(heights[best]), coefficients[:, best]
            if not 0 < heights[best] < math.inf:
                return
            weights = weights * errors[:, best]
            weights /= weights.sum()

    def reaches(self, period: float, harmonics: int, error: float) -> bool:
        """Whether some attempt errs by no more at the points; given up when the first is too far off to be levelled."""
        for height, _ in self.attempts(period, harmonics):
            if height <= error or height > _HOPELESS * error:
                return height <= error
        return False

    def fit(self, period: float, harmonics: int) -> FourierFit:
        """The best attempt, measured."""
        height, best = min(self.attempts(period, harmonics), key=lambda attempt: attempt[0])
        if height == math.inf:
            raise InputError(
                f"no series of {harmonics} harmonics has coefficients summing to {self.largest_weight:g} or less; "
                "allow a larger weight"
            )
        zeros = np.zeros(harmonics)
        constant = 0.0 if self.parity == "odd" else float(best[0])
        cosines = zeros if self.parity == "odd" else best[1 : harmonics + 1]
        sines = zeros if self.parity == "even" else best[-harmonics:]
        weight = float(np.abs(cosines).sum() + np.abs(sines).sum())
        fit = FourierFit(period, constant, cosines, sines, self.linear, self.domain, math.nan, weight)
        return replace(fit, error=max_error(self.f, fit, self.domain, relative=self.relative))
