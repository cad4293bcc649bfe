"""Parameters of a secret-sharing run: how many parties, who deals, what numbers look like, how products scale back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from secureattn.errors import ProtocolError

Dealer = Literal["ttp", "tfp"]
Truncation = Literal["exact", "local"]
Weights = Literal["shared", "public"]

RING_BITS = 62
"""A shared value of p binary places below 2^s in magnitude needs p + s ≤ 62, for truncation to be exact."""

MOST_FITTED_BITS = 24
"""Binary places that are worth having: with more, the errors of functions are all that is left."""

_SPARE_WEIGHT_BITS = 8
_SPARE_FACTOR_BITS = 6


@dataclass(frozen=True)
class MpcParameters:
    """Immutable and checked; every violation is listed at once.

    ``parties`` hold shares in Z_2^64 of numbers with ``fractional_bits`` binary places; every value of the program
    lies below 2^``integer_bits`` in magnitude, the declared range. ``dealer`` is "ttp", a process of its own that sees
    no share of any input, or "tfp", party 0 dealing, for development. ``truncation`` is "exact" (one round, off by less
    than one unit in the last place, never grossly wrong below 2^62) or "local" (no round; between two parties only;
    wrong altogether with probability |z|/2^63 for every truncated ring element z). ``weights`` are "shared", known to
    their owner alone, or "public", known to all parties.
    """

    parties: int = 2
    dealer: Dealer = "ttp"
    truncation: Truncation = "exact"
    fractional_bits: int = 16
    integer_bits: int = 12
    weights: Weights = "shared"

    def __post_init__(self) -> None:
        violations = []
        if not _is_whole(self.parties) or not 2 <= self.parties <= 16:
            violations.append(f"parties must be a whole number from 2 to 16, not {self.parties!r}")
        for name, first, second in (
            ("dealer", "ttp", "tfp"),
            ("truncation", "exact", "local"),
            ("weights", "shared", "public"),
        ):
            if getattr(self, name) not in (first, second):
                violations.append(f'{name} must be "{first}" or "{second}", not {getattr(self, name)!r}')
        sound = len(violations)
        for name, low, high in (("fractional_bits", 4, 28), ("integer_bits", 2, 40)):
            value = getattr(self, name)
            if not _is_whole(value) or not low <= value <= high:
                violations.append(f"{name} must be a whole number from {low} to {high}, not {value!r}")
        if len(violations) == sound and 2 * self.fractional_bits + self.integer_bits > RING_BITS:
            violations.append(
                f"a product has twice {self.fractional_bits} binary places, which with {self.integer_bits} integer "
                f"bits is more than the {RING_BITS} the ring has room for; lower fractional_bits or integer_bits"
            )
        if self.truncation == "local" and self.parties != 2:
            violations.append(
                f'truncation = "local" is sound between 2 parties only, not {self.parties!r}; use "exact"'
            )
        if violations:
            raise ProtocolError("crypten parameters", violations)

    @property
    def weight_bits(self) -> int:
        """Binary places of a weight matrix: as many as a product of two tensors times it leaves room for."""
        if self.truncation == "local":
            return self.fractional_bits
        room = RING_BITS - self.integer_bits - 2 * self.fractional_bits
        return min(max(room, self.fractional_bits), self.fractional_bits + _SPARE_WEIGHT_BITS)

    @property
    def factor_bits(self) -> int:
        """Significant bits of a public factor: some to spare where truncation leaves room for them."""
        if self.truncation == "local":
            return self.fractional_bits
        room = RING_BITS - self.integer_bits - 2 * self.fractional_bits
        return self.fractional_bits + min(room, _SPARE_FACTOR_BITS)

    def fits(self, places: int, size: int) -> bool:
        """Whether a value of so many binary places below 2^size may stay as it is instead of being truncated.

        Local truncation goes wrong in proportion to the ring element, so it gets no more places than a product has.
        """
        if self.truncation == "local":
            return places <= 2 * self.fractional_bits + max(0, -size)
        return places <= RING_BITS and places + size <= RING_BITS

    @property
    def warning(self) -> str | None:
        """What every report of a run with these parameters must say, or None."""
        if self.dealer == "tfp":
            return "party 0 deals the randomness and could read every secret: for development only"
        return None


def places_beside(integer_bits: int) -> int:
    """Binary places that a declared range leaves room for in a product, and no more than are worth having."""
    return min((RING_BITS - integer_bits) // 2, MOST_FITTED_BITS)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
