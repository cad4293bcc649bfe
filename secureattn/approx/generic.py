"""What every smooth function of one variable has: one polynomial, interpolated or minimax, and one Fourier series."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from secureattn import fit
from secureattn.approx.realisation import Array, Builder, Interval, Realisation, TrueForm, on_arrays
from secureattn.errors import InputError, PlanError, SecureAttnError
from secureattn.polynomial import Polynomial
from secureattn.series import FourierSeries
from secureattn.tensor import Tensor

_WITHOUT_LINEAR = 6  # harmonics more for a series that needs no linear term beside it
_LIGHT = 4.0  # the most weight of such a series
DEGREES = (1, *fit.DEPTH_EDGES)
"""Degrees tried when an error is asked for: the largest of each depth."""


@dataclass(frozen=True)
class Smooth:
    """A function, and what is known of its shape: ``f(x) = constant + linear·x + part(x)`` with an even or odd part.

    With a parity the domain is made symmetric, coefficients of the other parity are exactly 0, and evaluation is
    cheaper. ``relative``: errors are measured relative to the function, which must then be positive on its domain.
    """

    function: str
    true: TrueForm
    parity: Literal["even", "odd"] | None = None
    linear: float = 0.0
    constant: float = 0.0
    relative: bool = False
    positive: bool = False

    def chebyshev(self, domain: Interval, *, degree: int | None = None, error: float | None = None) -> Realisation:
        """One polynomial that interpolates at the Chebyshev nodes.

        Domain: ``[low, high]``, made symmetric where the function has a parity; outside, the polynomial leaves the
        function fast.
        Error: measured when made; with ``error`` given, of the least degree 2^k − 1 that reaches it.
        Cost: depth ⌈log2(degree+1)⌉ (+1 unless the affine map of its domain is folded); 8, 13, 18 products at degree
        15, 31, 63, and 6, 9, 14 where all but the linear term is even.
        Source: Trefethen, Approximation Theory and Approximation Practice, 2013.
        """
        return self._polynomial("chebyshev", domain, degree, error)

    def remez(self, domain: Interval, *, degree: int | None = None, error: float | None = None) -> Realisation:
        """The polynomial with the least maximal error (minimax).

        Domain: as ``chebyshev``.
        Error: measured when made; 1.5 to 2.5 times less than interpolation of the same degree.
        Cost: as ``chebyshev``.
        Source: Remez, 1934; exchange as in Pachón & Trefethen, BIT 49, 2009.
        """
        return self._polynomial("remez", domain, degree, error)

    def fourier(
        self, domain: Interval, *, error: float | None = None, harmonics: int | None = None, weight: float = 16.0
    ) -> Realisation:
        """A Fourier extension: on shares one opening, whatever the function; elsewhere its polynomial twin.

        A linear part stays out of the series, unless that takes few more harmonics: on shares the product with x needs
        x truncated before, and the sum afterwards.
        Domain: ``[low, high]``; outside it the series turns back to a wrong value.
        Error: measured when made; ``weight`` bounds Σ|c|, by which fixed-point errors are amplified, in units of
        the function's largest value (or of 1 where that is less).
        Cost: on shares one opening and one truncation, 2·harmonics dealt values; under CKKS that of the twin.
        Source: Huybrechs, SIAM J. Numer. Anal. 47 (2010); sines under a dealt mask as in SecFormer, arXiv 2401.00793.
        """
        _one_of(f"{self.function}(fourier)", "harmonics", harmonics, error)
        domain = self._domain(domain)
        part = on_arrays(self.true)
        largest = max(1.0, float(np.abs(part(np.linspace(*domain, 257))).max()))
        found = self._extension(domain, weight * largest, self.parity, self.linear, error, harmonics)
        if self.linear and error is not None:
            with contextlib.suppress(InputError):
                plain = self._extension(domain, min(_LIGHT, weight) * largest, None, 0.0, error, None)
                found = plain if plain.harmonics <= found.harmonics + _WITHOUT_LINEAR else found
        series = FourierSeries(
            period=found.period,
            cosines=tuple(found.cosines.tolist()),
            sines=tuple(found.sines.tolist()),
            domain=domain,
            constant=found.constant + self.constant,
            linear=found.linear,
            error=found.error,
            relative=self.relative,
            source="Fourier extension",
        )
        return Realisation(
            self.function,
            "fourier",
            domain,
            lambda x: x.series(series),
            error=found.error,
            relative=self.relative,
            series=series,
            refit=functools.cache(
                lambda slope, shift: self._stretched(slope, shift).fourier(
                    ((domain[0] - shift) / slope, (domain[1] - shift) / slope),
                    error=error,
                    harmonics=harmonics,
                    weight=weight,
                )
            ),
            source="Fourier extension by regularised least squares",
        )

    def _stretched(self, slope: float, shift: float) -> Smooth:
        """``f(slope·x + shift)``, of which no parity is left."""
        return replace(
            self, true=lambda x: self.true(x * slope + shift), parity=None, linear=0.0, constant=0.0, positive=False
        )

    def _extension(
        self,
        domain: Interval,
        largest: float,
        parity: Literal["even", "odd"] | None,
        linear: float,
        error: float | None,
        harmonics: int | None,
    ) -> fit.FourierFit:
        true = on_arrays(self.true)
        return fit.fourier_extension(
            lambda x: true(x) - self.constant,
            domain,
            error=error,
            harmonics=harmonics,
            parity=parity,
            linear=linear,
            relative=self.relative,
            largest_weight=largest,
        )

    def extended(self, domain: Interval, *, degree: int = 15, error: float | None = None) -> Realisation:
        """Cubics that fold a wide domain into a narrow one, ``y ← y − c·y³`` for each, then one polynomial there.

        Domain: ``[−m, m]``, for a function that is all but constant over most of it; outside, the value leaves it fast.
        Error: measured when made; with ``error`` given, of the fewest cubics that reach it with this degree. On shares
        c·y is rounded before y² magnifies it, by 1e-2 for sigmoid on ±32: there a Fourier series is better.
        Cost: depth 2·cubics + ⌈log2(degree+1)⌉, 2·cubics products and those of the polynomial.
        Source: Cheon, Kim & Park, eprint 2022/280.
        """
        domain = self._domain(domain)
        part = on_arrays(self.true)
        found = fit.extend(lambda x: part(x) - self.constant, domain[1], degree=degree, error=error, parity=self.parity)
        coefficients = (found.base[0] + self.constant, *found.base[1:].tolist())
        p = Polynomial(tuple(map(float, coefficients)), found.base_domain)
        unit, last = p.on_unit(), len(found.cubics) - 1

        def apply(x: Tensor) -> Tensor:
            for i, c in enumerate(found.cubics):
                scale = 1 / p.domain[1] if i == last else 1.0
                x = x.combine([(scale, x)], [(x * (-c * scale), x.square())])
            return x.polynomial(unit if found.cubics else p)

        return Realisation(
            self.function, "extended", domain, apply, error=found.error, source="domain extension, eprint 2022/280"
        )

    def builders(self) -> dict[str, Builder]:
        """The three, by kind."""
        return {"chebyshev": self.chebyshev, "remez": self.remez, "fourier": self.fourier}

    def _polynomial(self, kind: str, domain: Interval, degree: int | None, error: float | None) -> Realisation:
        subject = f"{self.function}({kind})"
        _one_of(subject, "a degree", degree, error)
        domain = self._domain(domain)
        if degree is not None:
            if degree < 1:
                raise PlanError(f"{subject} needs a degree of at least 1, not {degree}")
            return self._of_degree(kind, domain, degree)
        assert error is not None
        best: Realisation | None = None
        for tried in DEGREES:
            try:
                made = self._of_degree(kind, domain, tried)
            except SecureAttnError:
                continue
            assert made.error is not None
            if made.error <= error:
                return made
            if best is None or made.error < (best.error or 0.0):
                best = made
        assert best is not None
        raise PlanError(
            f"{subject} on [{domain[0]:.4g}, {domain[1]:.4g}] reaches {best.error:.1e} at degree {DEGREES[-1]}, "
            f"{error:.1e} was asked for; allow a larger error or narrow the domain"
        )

    def _of_degree(self, kind: str, domain: Interval, degree: int) -> Realisation:
        true = on_arrays(self.true)
        if kind == "remez":
            coefficients = self._minimax(true, domain, degree)
        else:
            coefficients = fit.chebyshev(true, domain, degree)
            if self.parity is not None:
                coefficients[(1 if self.parity == "even" else 0) :: 2] = 0.0
                self._restore(coefficients, domain)
        draft = Polynomial(tuple(coefficients.tolist()), domain)
        error = fit.max_error(true, draft, domain, relative=self.relative)
        source = "minimax polynomial by Remez' exchange" if kind == "remez" else "Chebyshev interpolation"
        p = replace(draft, error=error, relative=self.relative, source=source)
        return Realisation(
            self.function,
            kind,
            domain,
            lambda x: x.polynomial(p),
            error=error,
            relative=self.relative,
            polynomial=p,
            source=source,
        )

    def _minimax(self, true: Callable[[Array], Array], domain: Interval, degree: int) -> Array:
        if self.parity is None:
            return fit.remez(true, domain, degree, relative=self.relative)[0]

        def part(x: Array) -> Array:
            return true(x) - self.linear * x - self.constant

        odd = self.parity == "odd"
        coefficients = np.zeros(degree + 1)
        if degree >= int(odd):
            found = fit.remez(part, domain, degree, parity=self.parity)[0]
            coefficients[: len(found)] = found
        self._restore(coefficients, domain)
        return coefficients

    def _restore(self, coefficients: Array, domain: Interval) -> None:
        """Put back what is known exactly: ``linear·x`` beside an even part, the constant beside an odd one."""
        if self.parity == "even":
            coefficients[1] = self.linear * domain[1]
        elif self.parity == "odd":
            coefficients[0] = self.constant

    def _domain(self, domain: Interval) -> Interval:
        if self.positive:
            check_positive(self.function, domain)
        if self.parity is None:
            return domain
        m = max(abs(domain[0]), abs(domain[1]))
        return -m, m


def check_positive(subject: str, domain: Interval) -> None:
    """Refuse a domain that is not positive.

    Domain: any interval.
    Error: PlanError.
    Cost: none.
    Source: none.
    """
    if domain[0] <= 0:
        raise PlanError(
            f"{subject} needs a positive domain, the range asked for is [{domain[0]:.3g}, {domain[1]:.3g}]; "
            "raise the normaliser's ε or retrain with a range penalty"
        )


def _one_of(subject: str, what: str, size: int | None, error: float | None) -> None:
    if (size is None) == (error is None):
        raise PlanError(f"{subject} needs either {what} or an error, not both or neither")
