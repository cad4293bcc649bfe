"""Parameters of a secret-sharing run: how many parties, who deals, how products are scaled back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from secureattn.errors import ProtocolError

Dealer = Literal["ttp", "tfp"]
Truncation = Literal["exact", "local"]


@dataclass(frozen=True)
class MpcParameters:
    """Immutable and checked; every violation is listed at once.

    ``parties`` hold shares in Z_2^64 of numbers with ``fractional_bits`` binary places. ``dealer`` is "ttp", a process
    of its own that sees no share of any input, or "tfp", party 0 dealing, for development. ``truncation`` is "exact"
    (one round, off by less than one unit in the last place, never grossly wrong below 2^62) or "local" (no round;
    between two parties only; wrong altogether with probability |z|/2^63 for every truncated ring element z).
    """

    parties: int = 2
    dealer: Dealer = "ttp"
    truncation: Truncation = "exact"
    fractional_bits: int = 16

    def __post_init__(self) -> None:
        violations = []
        if not _is_whole(self.parties) or not 2 <= self.parties <= 16:
            violations.append(f"parties must be a whole number from 2 to 16, not {self.parties!r}")
        if self.dealer not in ("ttp", "tfp"):
            violations.append(f'dealer must be "ttp" or "tfp", not {self.dealer!r}')
        if self.truncation not in ("exact", "local"):
            violations.append(f'truncation must be "exact" or "local", not {self.truncation!r}')
        if not _is_whole(self.fractional_bits) or not 4 <= self.fractional_bits <= 28:
            violations.append(f"fractional_bits must be a whole number from 4 to 28, not {self.fractional_bits!r}")
        if self.truncation == "local" and self.parties != 2:
            violations.append(
                f'truncation = "local" is sound between 2 parties only, not {self.parties!r}; use "exact"'
            )
        if violations:
            raise ProtocolError("crypten parameters", violations)

    @property
    def warning(self) -> str | None:
        """What every report of a run with these parameters must say, or None."""
        if self.dealer == "tfp":
            return "party 0 deals the randomness and could read every secret: for development only"
        return None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
