"""A polynomial as a value, and its evaluation at optimal depth.

Evaluation is baby-step giant-step in the Chebyshev basis, Paterson–Stockmeyer in the monomial one; both are the
same recursion ``p = q·P_m + r`` at powers of two (Paterson & Stockmeyer 1973; Chen, Chillotti & Song 2019, eprint
2018/1043; depth-optimal splitting after Bossuat et al. 2021, eprint 2020/1203).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from secureattn.series import FourierSeries

Basis = Literal["chebyshev", "monomial"]
_NEGLIGIBLE = 1e-13  # relative to the largest coefficient: parity noise of a fit, far below any fixed-point step


@dataclass(frozen=True)
class Polynomial:
    """``Σ c_k·P_k(t)``, ascending. Chebyshev: ``P_k = T_k`` and ``t`` maps the domain to [−1,1]; monomial: ``t = x``.

    Outside the domain the value is that of the polynomial, which leaves the function fast. ``error`` is the largest
    distance to the function on the domain (``relative`` to it if so said), measured when it was made.
    """

    coefficients: tuple[float, ...]
    domain: tuple[float, float]
    basis: Basis = "chebyshev"
    error: float | None = None
    relative: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        low, high = self.domain
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"domain [{low}, {high}] is not an interval")
        if not self.coefficients or not all(map(math.isfinite, self.coefficients)):
            raise ValueError("a polynomial needs at least one coefficient, all finite")

    @property
    def degree(self) -> int:
        """Highest power whose coefficient is not 0; evaluation leaves out what is only noise of a Chebyshev fit."""
        return _degree(self.coefficients)

    @property
    def slope(self) -> float:
        """Factor of the affine map to [−1,1]; 1 when whoever computes x has folded it in, or in the monomial basis."""
        if self.basis == "monomial":
            return 1.0
        slope = 2.0 / (self.domain[1] - self.domain[0])
        return 1.0 if abs(slope - 1.0) < 1e-12 else slope

    @property
    def shift(self) -> float:
        """Addend of the affine map to [−1,1]."""
        if self.basis == "monomial":
            return 0.0
        low, high = self.domain
        return -(low + high) / (high - low)

    @property
    def depth(self) -> int:
        """Multiplicative depth in levels: ``⌈log2(degree+1)⌉``, of the degree without noise; one more when the affine
        map has a slope that is not a whole number.
        """
        return self._cost[0]

    @property
    def products(self) -> int:
        """Ciphertext×ciphertext products of one evaluation."""
        return self._cost[1]

    @functools.cached_property
    def _cost(self) -> tuple[int, int]:
        tally = Tally()
        return evaluate(self, Counted(0, tally)).depth, tally.products

    def rescaled(self, factor: float) -> Polynomial:
        """The polynomial ``x ↦ p(x/factor)`` on the domain scaled by ``factor > 0``: same Chebyshev coefficients."""
        if factor <= 0:
            raise ValueError(f"factor must be positive, not {factor}")
        coefficients = self.coefficients
        if self.basis == "monomial":
            coefficients = tuple(c / factor**k for k, c in enumerate(coefficients))
        domain = (self.domain[0] * factor, self.domain[1] * factor)
        return Polynomial(coefficients, domain, self.basis, self.error, self.relative, self.source)

    def on_unit(self) -> Polynomial:
        """The polynomial of the already mapped variable ``t`` in [−1,1] (Chebyshev only): no affine map left."""
        if self.basis != "chebyshev":
            raise ValueError("only a Chebyshev polynomial has a unit domain")
        return Polynomial(self.coefficients, (-1.0, 1.0), self.basis, self.error, self.relative, self.source)

    def scaled(self, factor: float) -> Polynomial:
        """``factor·p``."""
        coefficients = tuple(factor * c for c in self.coefficients)
        error = None if self.error is None else self.error if self.relative else abs(factor) * self.error
        return Polynomial(coefficients, self.domain, self.basis, error, self.relative, self.source)

    def __call__(self, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The value in float64, for fitting and plotting."""
        t = self.slope * np.asarray(x, dtype=np.float64) + self.shift
        if self.basis == "chebyshev":
            return np.asarray(np.polynomial.chebyshev.chebval(t, self.coefficients))
        return np.asarray(np.polynomial.polynomial.polyval(t, self.coefficients))


def evaluate(p: Polynomial, x: Any) -> Any:
    """``p(x)`` elementwise over any Tensor; depth ``p.depth``, ``p.products`` products, sums fused before rescaling.

    An even polynomial, or one that is even but for its linear term (GELU, SiLU), is evaluated in ``P_2`` at the same
    depth, with one product more than half the degree takes: 6, 9, 14 instead of 8, 13, 18 at degree 15, 31, 63.
    """
    t = x if p.slope == 1.0 else x * p.slope
    if p.shift:
        t = t + p.shift
    coefficients = _trimmed(p.coefficients, p.basis)
    if len(coefficients) == 1:
        return x * 0 + coefficients[0]
    powers = _Powers(t, p.basis)
    if len(coefficients) > 4 and not any(coefficients[3::2]):
        inner = _Powers(powers[2], p.basis)
        even = coefficients[::2]
        extra = [(coefficients[1], t)] if coefficients[1] else []
        return _sum(_split(even, inner, _best_baby(even, p.basis), _log2_ceil(len(even))), extra)
    return _sum(_split(coefficients, powers, _best_baby(coefficients, p.basis), _log2_ceil(len(coefficients))))


@dataclass
class _Pending:
    """``Σ coefficient·tensor + Σ a·b + constant``, not yet added up: one rescale serves it all."""

    terms: list[tuple[float, Any]]
    products: list[tuple[Any, Any]]
    constant: float


def _sum(pending: _Pending, extra: list[tuple[float, Any]] | None = None) -> Any:
    terms = pending.terms + (extra or [])
    some = terms[0][1] if terms else pending.products[0][0]
    return some.combine(terms, pending.products, pending.constant)


def _split(c: tuple[float, ...], powers: _Powers, baby: int, budget: int) -> _Pending:
    """Evaluate within ``budget`` levels: a plain sum where degree and depth allow, else ``q·P_m + r``."""
    degree = _degree(c)
    if (degree < baby and _log2_ceil(degree) + 1 <= budget) or degree == 0:
        return _Pending([(c[k], powers[k]) for k in range(1, degree + 1) if c[k]], [], c[0])
    m = 1 << (degree.bit_length() - 1)
    quotient, remainder = _divide(c[: degree + 1], m, powers.basis)
    rest = _split(remainder, powers, baby, budget)
    if _degree(quotient) == 0:
        rest.terms.append((quotient[0], powers[m]))
        return rest
    rest.products.append((_sum(_split(quotient, powers, baby, budget - 1)), powers[m]))
    return rest


def _divide(c: tuple[float, ...], m: int, basis: Basis) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Quotient and remainder by ``P_m`` for degree < 2m; Chebyshev uses ``T_i = 2·T_m·T_{i−m} − T_{2m−i}``."""
    if basis == "monomial":
        return c[m:], c[:m]
    remainder = list(c[:m])
    for i in range(m + 1, len(c)):
        remainder[2 * m - i] -= c[i]
    return (c[m], *(2 * x for x in c[m + 1 :])), tuple(remainder)


class _Powers:
    """``P_1, P_2, …`` of one tensor, made when first asked for, at depth ``⌈log2 k⌉``."""

    def __init__(self, t: Any, basis: Basis) -> None:
        self.basis = basis
        self._made = {1: t}

    def __getitem__(self, k: int) -> Any:
        if k not in self._made:
            high = 1 << (k - 1).bit_length() - 1
            low = k - high
            self._made[k] = self._product(low, high)
        return self._made[k]

    def _product(self, low: int, high: int) -> Any:
        """``P_{low+high}``; Chebyshev: ``2·(T_low·T_high − T_{high−low}/2)``."""
        pair = [(self[low], self[high])]
        if self.basis == "monomial":
            return self[low].combine([], pair)
        if low == high:
            return self[low].combine([], pair, -0.5) * 2
        return self[low].combine([(-0.5, self[high - low])], pair) * 2


@functools.lru_cache(maxsize=512)
def _best_baby(c: tuple[float, ...], basis: Basis) -> int:
    """The number of baby steps with the fewest products, by counting each."""
    budget = _log2_ceil(len(c))

    def products(baby: int) -> int:
        tally = Tally()
        _sum(_split(c, _Powers(Counted(0, tally), basis), baby, budget))
        return tally.products

    candidates = [1 << k for k in range(1, max(2, len(c).bit_length()))]
    return min(candidates, key=products)


@dataclass
class Tally:
    """How many tensor×tensor products a formula made."""

    products: int = 0


@dataclass
class Counted:
    """Stands in for a tensor and counts instead of computing: this value's depth in levels, the products of all."""

    depth: int
    tally: Tally

    def _after(self, other: Any, levels: int) -> Counted:
        deepest = max(self.depth, other.depth) if isinstance(other, Counted) else self.depth
        return Counted(deepest + levels, self.tally)

    def __add__(self, other: Any) -> Counted:
        return self._after(other, 0)

    __radd__ = __sub__ = __rsub__ = __add__

    def __neg__(self) -> Counted:
        return self

    def __mul__(self, other: Any) -> Counted:
        if isinstance(other, Counted):
            self.tally.products += 1
            return self._after(other, 1)
        return self._after(None, 0 if float(other).is_integer() else 1)

    __rmul__ = __mul__

    def square(self) -> Counted:
        """A product."""
        return self * self

    def polynomial(self, p: Polynomial) -> Counted:
        """What ``evaluate`` costs."""
        value: Counted = evaluate(p, self)
        return value

    def series(self, f: FourierSeries) -> Counted:
        """What the twin costs."""
        return self.polynomial(f.twin)

    def combine(
        self,
        terms: Sequence[tuple[float, Counted]] = (),
        products: Sequence[tuple[Counted, Counted]] = (),
        constant: float = 0.0,
    ) -> Counted:
        """One level for the whole sum."""
        self.tally.products += len(products)
        parts = [x for _, x in terms] + [x for pair in products for x in pair]
        return Counted(max(x.depth for x in parts) + 1, self.tally)


def _trimmed(c: tuple[float, ...], basis: Basis) -> tuple[float, ...]:
    """Without coefficients that are only noise of a fit, which |T_k| ≤ 1 lets one tell; at least one is left."""
    if basis == "chebyshev":
        largest = max(map(abs, c))
        c = tuple(x if abs(x) > _NEGLIGIBLE * largest else 0.0 for x in c)
    return c[: _degree(c) + 1]


def _degree(c: tuple[float, ...]) -> int:
    return max((k for k, x in enumerate(c) if x), default=0)


def _log2_ceil(n: int) -> int:
    return max(0, n - 1).bit_length()
