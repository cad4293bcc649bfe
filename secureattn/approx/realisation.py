"""One way to compute one function on one domain, with what it promises: error, depth, source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from secureattn import fit
from secureattn.errors import CapabilityError, PlanError
from secureattn.polynomial import Counted, Polynomial, Tally
from secureattn.series import FourierSeries
from secureattn.tensor import Capability, Tensor

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]
Builder = Callable[..., "Realisation"]
TrueForm = Callable[[torch.Tensor], torch.Tensor]
EVERYWHERE: Interval = (-float("inf"), float("inf"))
COMPARE = frozenset({Capability.COMPARE})
UNBOUNDED: Interval = (-10.0, 10.0)
"""Where a realisation that holds everywhere is measured."""


@dataclass(frozen=True)
class Realisation:
    """A function made runnable: ``realisation(x)`` works on every engine that has what it ``needs``.

    ``polynomial`` is set when x goes through one polynomial first (and then through ``then``, if set); whoever computes
    ``x`` may fold the affine map of its domain into weights. ``series`` is set when one Fourier series does it all, and
    ``refit(slope, shift)`` makes the same of ``f(slope·x + shift)``, slope > 0.
    ``error`` is the max error against the true function on the domain, absolute unless ``relative``. ``changes_model``
    marks a replacement that is another function.
    """

    function: str
    kind: str
    domain: Interval
    apply: Callable[[Tensor], Tensor]
    error: float | None = None
    relative: bool = False
    polynomial: Polynomial | None = None
    then: Callable[[Tensor], Tensor] | None = None
    series: FourierSeries | None = None
    refit: Callable[[float, float], Realisation] | None = None
    needs: frozenset[Capability] = frozenset()
    changes_model: bool = False
    source: str = ""

    def __call__(self, x: Tensor) -> Tensor:
        return self.apply(x)

    def covers(self, interval: Interval) -> bool:
        """Whether every value of the interval lies in the domain."""
        return self.domain[0] <= interval[0] and interval[1] <= self.domain[1]

    @property
    def label(self) -> str:
        """Short name for tables, such as ``gelu(chebyshev, degree 15)``."""
        size = f", degree {self.polynomial.degree}" if self.polynomial else ""
        if self.series:
            size = f", {self.series.harmonics} harmonics"
        return f"{self.function}({self.kind}{size})"

    @property
    def depth(self) -> int | None:
        """Levels under CKKS, counted; None where it cannot run."""
        counted = self._counted()
        return None if counted is None else counted[0]

    @property
    def products(self) -> int | None:
        """Ciphertext×ciphertext products, counted; None where it cannot run."""
        counted = self._counted()
        return None if counted is None else counted[1]

    def _counted(self) -> tuple[int, int] | None:
        if self.needs or self.kind == "exact":
            return None
        tally = Tally()
        try:
            return int(cast(Any, self.apply)(Counted(0, tally)).depth), tally.products
        except CapabilityError:  # a series that no polynomial can stand in for
            return None

    def with_polynomial(self, p: Polynomial) -> Realisation:
        """The same realisation through another form of its polynomial (rescaled, or on the unit domain)."""
        then = self.then
        if then is None:
            return replace(self, polynomial=p, domain=p.domain, apply=lambda x: x.polynomial(p))
        return replace(self, polynomial=p, domain=p.domain, apply=lambda x: then(x.polynomial(p)))


def exact(function: str, true: TrueForm) -> Realisation:
    """The true function; only the plaintext engine's exact mode can run it."""
    return Realisation(function, "exact", EVERYWHERE, lambda x: x.exact(function, true), error=0.0)


def on_arrays(true: TrueForm) -> Callable[[npt.ArrayLike], Array]:
    """A true form as a function of float64 arrays, for fitting and measuring."""

    def apply(x: npt.ArrayLike) -> Array:
        return np.asarray(true(torch.from_numpy(np.array(x, dtype=np.float64))).numpy())

    return apply


def measured(made: Realisation, true: TrueForm, interval: Interval | None = None) -> Realisation:
    """The realisation with its ``error``, as found on its domain, or on the interval if the domain has no end."""
    interval = made.domain if interval is None else interval
    if not all(map(np.isfinite, interval)):
        interval = UNBOUNDED
    error = fit.max_error(on_arrays(true), lambda x: values(made, x), interval, relative=made.relative)
    return replace(made, error=error)


def converging(made: Realisation, true: TrueForm, remedy: str) -> Realisation:
    """An iteration with its relative error measured on its domain; refused where that is above 10 %.

    Domain: positive; measured at 4001 points in geometric progression, as an iteration fails at the ends.
    Error: PlanError.
    Cost: clear only.
    Source: none.
    """
    x = np.geomspace(*made.domain, 4001)
    with np.errstate(all="ignore"):
        error = float(np.max(np.abs(values(made, x) / on_arrays(true)(x) - 1)))
    if not error <= 0.1:
        low, high = made.domain
        raise PlanError(f"{made.function}({made.kind}) does not converge on [{low:.3g}, {high:.3g}] {remedy}")
    return replace(made, error=error)


def values(apply: Callable[[Tensor], Tensor], x: npt.ArrayLike) -> Array:
    """A formula of one variable over float64 numbers, elementwise."""
    return np.asarray(cast(Any, apply)(_Numbers(np.asarray(x, dtype=np.float64))).data, dtype=np.float64)


class _Numbers:
    """Stands in for a tensor when a formula is measured: float64 numbers in the clear."""

    def __init__(self, data: Array) -> None:
        self.data = data

    def __add__(self, other: Any) -> _Numbers:
        return _Numbers(self.data + _plain(other))

    def __mul__(self, other: Any) -> _Numbers:
        return _Numbers(self.data * _plain(other))

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> _Numbers:
        return _Numbers(-self.data)

    def __sub__(self, other: Any) -> _Numbers:
        return _Numbers(self.data - _plain(other))

    def __rsub__(self, other: Any) -> _Numbers:
        return _Numbers(_plain(other) - self.data)

    def square(self) -> _Numbers:
        return self * self

    def less(self, other: Any) -> _Numbers:
        return _Numbers((self.data < _plain(other)).astype(np.float64))

    def less_each(self, others: Any) -> list[_Numbers]:
        return [self.less(other) for other in others]

    def polynomial(self, p: Polynomial) -> _Numbers:
        return _Numbers(p(self.data))

    def series(self, f: FourierSeries) -> _Numbers:
        return _Numbers(f(self.data))

    def combine(self, terms: Any = (), products: Any = (), constant: float = 0.0) -> _Numbers:
        total = sum((c * x.data for c, x in terms), np.full_like(self.data, constant))
        return _Numbers(total + sum(a.data * b.data for a, b in products))


def _plain(value: Any) -> Any:
    return value.data if isinstance(value, _Numbers) else value
