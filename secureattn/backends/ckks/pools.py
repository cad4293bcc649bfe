"""What ciphertexts a program holds at once, found by running it on no data.

SEAL keeps freed memory for the next ciphertext of the same size and gives none back, so what counts is the most of each
size that are alive at once. Objects of a symbolic run live as long as those of a run, as the program is the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from secureattn.backends.ckks.units import Path


class Pools:
    """Ciphertexts alive, by size in bytes, and the most there were; those among them that every process has for itself
    (``own``); what is only held for a moment, and by workers; ``kept`` bytes were held before the first query came.
    """

    def __init__(self) -> None:
        self.alive: Counter[int] = Counter()
        self.most: Counter[int] = Counter()
        self.own: Counter[int] = Counter()
        self.most_own: Counter[int] = Counter()
        self.messages = 0
        self.kept = 0
        self.worker = 0

    def take(self, size: int, *, own: bool = True) -> None:
        """One more of a size."""
        self.alive[size] += 1
        if self.alive[size] > self.most[size]:
            self.most[size] = self.alive[size]
        if own:
            self.own[size] += 1
            if self.own[size] > self.most_own[size]:
                self.most_own[size] = self.own[size]

    def give(self, size: int, times: int, *, own: bool = True) -> None:
        """So many fewer."""
        self.alive[size] -= times
        if own:
            self.own[size] -= times

    def share(self, made: Iterable[Held], before: Mapping[int, int]) -> None:
        """Processes made these together, each a part, where all see them; ``before``: ``most_own`` when they began."""
        shared: Counter[int] = Counter()
        for held in {id(real): real for each in made if (real := each.base or each).own}.values():
            held.own = False
            shared[held.size] += held.times
        self.own -= shared
        for size, count in shared.items():
            self.most_own[size] = max(before.get(size, 0), self.most_own[size] - count)

    @property
    def alive_bytes(self) -> int:
        """Bytes held now."""
        return sum(size * count for size, count in self.alive.items())

    @property
    def ciphertexts(self) -> int:
        """Bytes that SEAL ends up with in one process."""
        return sum(size * count for size, count in self.most.items())

    @property
    def repeated(self) -> int:
        """Bytes of them that every process of a team has for itself."""
        return sum(size * count for size, count in self.most_own.items())


class Held:
    """Stands for a ciphertext's memory, as often as there are units like the one that made it; ``path`` names that."""

    __slots__ = ("base", "own", "path", "pools", "size", "times")

    def __init__(self, pools: Pools, size: int, path: Path | None = None, base: Held | None = None) -> None:
        self.pools = pools
        self.size = size
        self.path = path
        self.base = base  # another name for memory that is held already
        self.times = 0
        self.own = True
        if base is None:
            self.again()

    def again(self) -> None:
        """Once more."""
        if self.base is None:
            self.times += 1
            self.pools.take(self.size, own=self.own)

    def __del__(self) -> None:
        if self.times:
            self.pools.give(self.size, self.times, own=self.own)
