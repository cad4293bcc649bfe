"""One way to compute one function on one domain, with what it promises: error, depth, source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from secureattn import fit
from secureattn.errors import PlanError
from secureattn.polynomial import Counted, Polynomial, Tally
from secureattn.tensor import Tensor

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]
Builder = Callable[..., "Realisation"]
EVERYWHERE: Interval = (-float("inf"), float("inf"))


@dataclass(frozen=True)
class Realisation:
    """A function made runnable: ``realisation(x)`` works on every engine that has what it ``needs``.

    ``polynomial`` is set when one polynomial does it all; then whoever computes ``x`` may fold the affine map of
    its domain into weights. ``error`` is the max error against the true function on the domain, absolute unless
    ``relative``. ``changes_model`` marks a replacement that is another function.
    """

    function: str
    kind: str
    domain: Interval
    apply: Callable[[Tensor], Tensor]
    error: float | None = None
    relative: bool = False
    polynomial: Polynomial | None = None
    needs_comparison: bool = False
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
        degree = f", degree {self.polynomial.degree}" if self.polynomial else ""
        return f"{self.function}({self.kind}{degree})"

    @property
    def depth(self) -> int | None:
        """Levels under CKKS, counted; None where it needs what CKKS lacks."""
        if self.needs_comparison or self.kind == "exact":
            return None
        counted: Any = Counted(0, Tally())
        return int(cast(Any, self.apply)(counted).depth)

    def with_polynomial(self, p: Polynomial) -> Realisation:
        """The same realisation through another form of its polynomial (rescaled, or on the unit domain)."""
        return replace(self, polynomial=p, domain=p.domain, apply=lambda x: x.polynomial(p))


def exact(function: str) -> Realisation:
    """The true function; only the plaintext engine's exact mode can run it."""
    return Realisation(function, "exact", EVERYWHERE, lambda x: x.exact(function), error=0.0)


def chebyshev_realisation(
    function: str,
    f: Callable[[Array], Array],
    domain: Interval,
    *,
    degree: int | None,
    error: float | None,
    relative: bool,
    degrees: tuple[int, ...] = (3, 7, 15, 31, 63, 127),
) -> Realisation:
    """Chebyshev interpolation of ``f`` on the domain, of a given degree or the least that reaches an error."""
    if (degree is None) == (error is None):
        raise PlanError(f"{function}(chebyshev) needs either a degree or an error, not both or neither")
    if error is not None:
        degree = fit.degree_for(f, domain, error, relative=relative, degrees=degrees)
    assert degree is not None
    if degree < 1:
        raise PlanError(f"{function}(chebyshev) needs a degree of at least 1, not {degree}")
    draft = Polynomial(tuple(fit.chebyshev(f, domain, degree)), domain)
    measured = fit.max_error(f, draft, domain, relative=relative)
    p = Polynomial(draft.coefficients, domain, "chebyshev", measured, relative, "Chebyshev interpolation")
    return Realisation(
        function,
        "chebyshev",
        domain,
        lambda x: x.polynomial(p),
        error=measured,
        relative=relative,
        polynomial=p,
        source="Chebyshev interpolation at the roots of T_{degree+1}",
    )
