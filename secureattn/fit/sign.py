"""The sign as a composition of odd minimax polynomials: depth for degree, at the price of a gap around 0."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from secureattn.errors import InputError
from secureattn.fit.interpolation import evaluate_chebyshev
from secureattn.fit.intervals import Array, Domain
from secureattn.fit.measure import max_error
from secureattn.fit.minimax import remez

_UNIT: Domain = (-1.0, 1.0)
_DEEPEST = 40

ODD_PRODUCTS = (0, 2, 4, 5, 6, 6, 7, 8, 9, 9, 9, 9, 10, 10, 11, 12)
"""Products of an odd polynomial of degree 1, 3, … 31 at depth ``⌈log2(degree + 1)⌉``, by baby and giant steps."""


@dataclass(frozen=True)
class CompositeSign:
    """``p_n(…p_1(x))``, each in the Chebyshev basis of [−1, 1], odd, with values in [−1, 1] but for the last one's.

    ``error`` is the largest distance to the sign on ``gap ≤ |x| ≤ 1``; ``depth`` the levels of all in turn.
    """

    polynomials: tuple[tuple[Array, Domain], ...]
    gap: float
    error: float
    depth: int

    @property
    def degrees(self) -> tuple[int, ...]:
        """Of the polynomials in turn, the first to be evaluated first."""
        return tuple(len(coefficients) - 1 for coefficients, _ in self.polynomials)

    def __call__(self, x: npt.ArrayLike) -> Array:
        """The value in float64, for fitting and plotting."""
        y = np.asarray(x, dtype=np.float64)
        for coefficients, domain in self.polynomials:
            y = evaluate_chebyshev(coefficients, y, domain)
        return y


def composite_sign(
    error: float, gap: float, *, degrees: Sequence[int] | None = None, max_degree: int = 31
) -> CompositeSign:
    """The composition of odd polynomials closest to ``sign(x)``: of least depth, then with the fewest products.

    Formula: ``p_1`` is minimax on ``gap ≤ |x| ≤ 1``, with error τ; divided by ``1 + τ`` it maps there to
    ``(1 − τ)/(1 + τ) ≤ |y| ≤ 1``, where ``p_2`` is minimax, and so on. The last one is not divided. Of all tuples of
    odd degrees up to ``max_degree`` (31 at most) the search keeps, for each depth, those with the widest gap for their
    products: a wider gap before a polynomial never makes a narrower one after it. ``degrees`` names the tuple instead.
    Domain: ``[−1, 1]``; between −gap and gap the value runs from −1 to 1; it grows like ``|x|^Πdegrees`` outside.
    Error: the given one or less, as measured; 1e-12 is about where float64 ends. From gap 2^-a to error 2^(1-a): a = 4
    takes (27), 8 (7, 15, 15), 12 (15, 15, 15, 15), of depth 5, 11, 16; from 2^-12 to 1e-6 (15, 15, 15, 29), depth 17.
    Cost: depth ``Σ⌈log2(d_i + 1)⌉``, products ``ODD_PRODUCTS``; no further level, as the scale is in the coefficients.
    Source: Lee, Lee, No and Kim, eprint 2020/834; products are counted as this library evaluates, not as the paper.
    """
    if not (1e-12 <= error < 1 and 0 < gap < 1):
        raise InputError(f"composite_sign needs 1e-12 ≤ error < 1 and 0 < gap < 1, got {error:g} and {gap:g}")
    if degrees is None:
        degrees = _cheapest(error, gap, max_degree)
    elif not degrees or any(d < 3 or d % 2 == 0 for d in degrees):
        raise InputError(f"composite_sign needs odd degrees of at least 3, got {list(degrees)}")
    found = _compose(gap, tuple(degrees))
    if found.error > error:
        raise InputError(
            f"degrees {', '.join(map(str, degrees))} reach error {found.error:.2g} from gap {gap:.3g}, not "
            f"{error:.2g}; name more or higher degrees, or allow a larger error or gap"
        )
    return found


@dataclass(frozen=True)
class _State:
    """A tuple of degrees, what it costs, and how close it gets: its values are in ``gap ≤ |y| ≤ 1``."""

    products: int
    gap: float
    degrees: tuple[int, ...]

    def beats(self, other: _State) -> bool:
        return self.products <= other.products and self.gap >= other.gap


def _cheapest(error: float, gap: float, max_degree: int) -> tuple[int, ...]:
    """The degrees of least depth, and the fewest products of that depth: dynamic programming over the depth."""
    if not 3 <= max_degree < 2 * len(ODD_PRODUCTS):
        raise InputError(f"composite_sign needs a max_degree from 3 to {2 * len(ODD_PRODUCTS) - 1}, got {max_degree}")
    layers = [[_State(0, gap, ())]]
    aim = error * (1.0 - 1e-5)  # room for what Remez leaves unlevelled
    enough = (1.0 - aim) / (1.0 + aim)
    for depth in range(1, _DEEPEST + 1):
        layer: list[_State] = []
        rivals = [state for other in layers for state in other]
        for state in sorted(_candidates(layers, depth, max_degree), key=lambda s: (s.products, -s.gap)):
            if state.gap >= enough:
                return state.degrees
            if not any(rival.beats(state) for rival in rivals):
                rivals.append(state)
                layer.append(state)
        layers.append(layer)
    raise InputError(f"no composition of depth {_DEEPEST} reaches error {error:.2g} from gap {gap:.2g}; allow more")


def _candidates(layers: list[list[_State]], depth: int, max_degree: int) -> Iterator[_State]:
    """Every kept tuple with one polynomial more that ends at this depth."""
    for degree in range(3, max_degree + 1, 2):
        levels, products = degree.bit_length(), ODD_PRODUCTS[degree // 2]
        better = degree + 2
        if better <= max_degree and (better.bit_length(), ODD_PRODUCTS[better // 2]) == (levels, products):
            continue  # two degrees more for the same price
        for state in layers[depth - levels] if levels <= depth else ():
            _, tau = _minimax(degree, state.gap)
            yield _State(state.products + products, (1.0 - tau) / (1.0 + tau), (*state.degrees, degree))


@lru_cache(maxsize=4096)
def _minimax(degree: int, gap: float) -> tuple[Array, float]:
    coefficients, tau = remez(np.sign, _UNIT, degree, parity="odd", gap=gap)
    coefficients.setflags(write=False)
    return coefficients, tau


def _compose(gap: float, degrees: tuple[int, ...]) -> CompositeSign:
    polynomials: list[Array] = []
    start = gap
    for degree in degrees:
        coefficients, tau = _minimax(degree, start)
        polynomials.append(coefficients / (1.0 + tau))
        start = (1.0 - tau) / (1.0 + tau)
    polynomials[-1] = coefficients
    pairs = tuple((p, _UNIT) for p in polynomials)
    depth = sum(degree.bit_length() for degree in degrees)
    unmeasured = CompositeSign(pairs, gap, math.nan, depth)
    samples = min(2**17, max(2**13, 20 * math.prod(degrees)))
    # In log x: dense where the composition is steep. It is odd to the last bit, so one side is enough.
    error = max_error(np.ones_like, lambda u: unmeasured(np.exp(u)), (math.log(gap), 0.0), samples=samples)
    return CompositeSign(pairs, gap, error, depth)
