"""Units of work: each makes one ciphertext, and has a name that planning and running agree on.

A unit's name is its path: which loop, which item of it, which loop inside. So a plan can say of every unit at which
level its result is needed (``Demand``), and a run computes it no higher; and loops over independent units can be shared
between processes without changing anything they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

Path = tuple[int, ...]


@dataclass
class Demand:
    """Who needs what at which level, noted while a program runs on no data; ``times``, for how many units like it."""

    made: dict[Path, int] = field(default_factory=dict)
    used: dict[Path, list[tuple[Path, int]]] = field(default_factory=dict)
    alike: dict[Path, list[Path]] = field(default_factory=dict)
    times: int = 1
    spent: dict[Path, list[tuple[str, int, float]]] = field(default_factory=dict)

    def make(self, path: Path, level: int) -> None:
        """A unit's result lies at a level."""
        self.made[path] = level

    def join(self, path: Path, other: Path) -> None:
        """Another unit is like the first and shares its result here, so what is needed of either is of both."""
        self.alike.setdefault(path, []).append(other)

    def use(self, path: Path, user: Path, level: int) -> None:
        """A unit's result is read by another unit, at a level."""
        self.used.setdefault(path, []).append((user, level))

    def spend(self, path: Path, primitive: str, level: int, seconds: float) -> None:
        """A unit runs primitives at a level, which take so many seconds there."""
        self.spent.setdefault(path, []).append((primitive, level, self.times * seconds))

    def ceilings(self) -> dict[Path, int]:
        """The level at which each result is needed at most, where that is lower than it lay."""
        return {
            each: self.made[path] - spare for path, spare in self._slack().items() if spare for each in self._like(path)
        }

    def _like(self, path: Path) -> list[Path]:
        """A unit and those like it: units inside others that are alike are so too."""
        paths: list[Path] = [()]
        for i, number in enumerate(path):
            numbers = [number, *(other[-1] for other in self.alike.get(path[: i + 1], ()))]
            paths = [(*outer, inner) for outer in paths for inner in numbers]
        return paths

    def seconds(self, primitive_s: Callable[[str, int], float]) -> float:
        """What the program would cost if nothing were computed higher than needed; ``primitive_s(name, level)``."""
        slack = self._slack()
        total = 0.0
        for path, primitives in self.spent.items():
            spare = slack.get(path, 0)
            for name, level, seconds in primitives:
                total += (
                    seconds * primitive_s(name, max(0, level - spare)) / primitive_s(name, level) if spare else seconds
                )
        return total

    def _slack(self) -> dict[Path, int]:
        """How much lower each result may lie.

        A unit whose result may lie δ lower may read what it reads δ lower, and what nobody reads need not exist above
        level 0; so one pass from the last unit to the first suffices.
        """
        slack: dict[Path, int] = {}
        for path, level in reversed(self.made.items()):
            wanted = max((read - slack.get(user, 0) for user, read in self.used.get(path, ())), default=0)
            slack[path] = max(0, level - wanted)
        return slack


class Place:
    """Where in the program execution is: the unit now open, and how many loops it has begun."""

    def __init__(self, ceilings: Mapping[Path, int]) -> None:
        self.ceilings = ceilings
        self.path: Path = ()
        self._begun = 0

    def restart(self) -> None:
        """Back to the program's beginning."""
        self.path, self._begun = (), 0

    def begin(self) -> Path:
        """The next loop inside the open unit."""
        self._begun += 1
        return (*self.path, self._begun - 1)

    @contextmanager
    def inside(self, path: Path) -> Iterator[None]:
        """Open a unit."""
        outer = self.path, self._begun
        self.path, self._begun = path, 0
        try:
            yield
        finally:
            self.path, self._begun = outer

    def start(self, level: int, depth: int) -> int:
        """The level to begin at for a result ``depth`` lower: as high as operands lie, no higher than needed."""
        ceiling = self.ceilings.get(self.path)
        return level if ceiling is None else min(level, ceiling + depth)
