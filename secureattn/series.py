"""A Fourier series as a value: any smooth function on a range narrower than its period, and a polynomial beside it.

On secret shares a series takes one opening, whatever its length; levelled schemes evaluate its polynomial twin.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.errors import CapabilityError
from secureattn.polynomial import Polynomial

_TWIN_DEGREES = (3, 7, 15, 31, 63, 127, 255)  # the highest of each depth
_TWIN_SHARE = 20  # of the series' error, as what the twin may add to it
_TWIN_FLOOR = 1e-9
_TWIN_POINTS = 8192


@dataclass(frozen=True)
class FourierSeries:
    """``constant + linear·x + Σ_{k=1..K} cosines[k−1]·cos(2πkx/P) + sines[k−1]·sin(2πkx/P)``.

    The period ``P`` is a power of two wider than the domain. ``sines`` is empty for an even series, else as long as
    ``cosines``, which may all be zero. Outside the domain the series turns back to a wrong value: the domain is part
    of the contract. ``error`` is the largest distance to the function on the domain (``relative`` to it if so said),
    measured when it was made. The smaller ``weight``, the less precision a fixed-point evaluation loses.
    """

    period: float
    cosines: tuple[float, ...]
    sines: tuple[float, ...]
    domain: tuple[float, float]
    constant: float = 0.0
    linear: float = 0.0
    error: float | None = None
    relative: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        low, high = self.domain
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"domain [{low}, {high}] is not an interval")
        if not (math.isfinite(self.period) and self.period > 0 and math.frexp(self.period)[0] == 0.5):
            raise ValueError(f"a period must be a power of two, not {self.period}")
        if self.period <= high - low:
            raise ValueError(f"a period of {self.period} is no wider than the domain [{low}, {high}]")
        if not self.cosines or len(self.sines) not in (0, len(self.cosines)):
            raise ValueError(f"{len(self.cosines)} cosines do not go with {len(self.sines)} sines")
        if not all(map(math.isfinite, (*self.cosines, *self.sines, self.constant, self.linear))):
            raise ValueError("a series needs finite coefficients")

    @property
    def harmonics(self) -> int:
        """The number K of harmonics."""
        return len(self.cosines)

    @property
    def weight(self) -> float:
        """``Σ|c|`` over all cosines and sines: what a fixed-point evaluation multiplies its rounding errors by."""
        return math.fsum(map(abs, (*self.cosines, *self.sines)))

    @property
    def pairs(self) -> Iterator[tuple[float, float]]:
        """The coefficients of ``cos`` and ``sin`` of every harmonic in turn."""
        return itertools.zip_longest(self.cosines, self.sines, fillvalue=0.0)

    @functools.cached_property
    def twin(self) -> Polynomial:
        """A polynomial that can stand in for the series on its domain.

        The series' own Chebyshev interpolant, of the least degree among 3, 7, …, 255 that is no further from it than a
        twentieth of its error, or 1e-9 if that is more or the error is unknown. Its ``error`` is the series' plus this
        gap, measured at 8192 points.
        """
        allowed = max((self.error or 0.0) / _TWIN_SHARE, _TWIN_FLOOR)
        points = np.linspace(*self.domain, _TWIN_POINTS)
        values = self(points)
        for degree in _TWIN_DEGREES:
            fit = np.polynomial.Chebyshev.interpolate(self, degree, self.domain)
            distance = np.abs(fit(points) - values)
            with np.errstate(divide="ignore", invalid="ignore"):
                gap = float(np.max(distance / np.abs(values) if self.relative else distance))
            if gap <= allowed:
                error = None if self.error is None else self.error + gap
                coefficients = tuple(map(float, fit.coef))
                return Polynomial(coefficients, self.domain, "chebyshev", error, self.relative, self.source)
        raise CapabilityError(
            f"a series of {self.harmonics} harmonics over {self.period:g} needs a polynomial within {allowed:.2g} on "
            f"{list(self.domain)}, and degree {degree} is {gap:.2g} off; use a narrower domain or fewer harmonics"
        )

    def derivative(self) -> FourierSeries:
        """The series of the derivative, with an error nobody measured."""
        steps = [2 * math.pi * k / self.period for k in range(1, self.harmonics + 1)]
        cosines = tuple(step * b for step, (_, b) in zip(steps, self.pairs, strict=True))
        sines = tuple(-step * a for step, (a, _) in zip(steps, self.pairs, strict=True))
        return FourierSeries(self.period, cosines, sines, self.domain, self.linear)

    def scaled(self, factor: float) -> FourierSeries:
        """``factor`` times the series."""
        return replace(
            self,
            cosines=tuple(factor * a for a in self.cosines),
            sines=tuple(factor * b for b in self.sines),
            constant=factor * self.constant,
            linear=factor * self.linear,
            error=None if self.error is None else self.error if self.relative else abs(factor) * self.error,
        )

    def __call__(self, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The value in float64, for fitting and plotting."""
        x = np.asarray(x, dtype=np.float64)
        angle = x * (2 * math.pi / self.period)
        return np.asarray(self.at(x, np.cos(angle), np.sin(angle)))

    def at(self, x: Any, cosine: Any, sine: Any) -> Any:
        """The value at ``x``, given ``cos`` and ``sin`` of ``2πx/P``; any arrays with arithmetic."""
        total = x * self.linear + self.constant
        for (a, b), (c, s) in zip(self.pairs, rotations(cosine, sine, self.harmonics), strict=True):
            total = total + a * c if a else total
            total = total + b * s if b else total
        return total


def rotations(cosine: Any, sine: Any, count: int) -> Iterator[tuple[Any, Any]]:
    """``cos kθ`` and ``sin kθ`` for k = 1 … ``count``, by turning on: never more than two pairs of arrays alive.

    Error: about k units in the last place.
    """
    c, s = cosine, sine
    yield c, s
    for _ in range(1, count):
        c, s = c * cosine - s * sine, s * cosine + c * sine
        yield c, s
