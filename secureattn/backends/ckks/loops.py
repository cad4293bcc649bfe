"""Loops over independent units, run by one process or a team; a plan walks them as a run does."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from secureattn.backends.ckks import processes
from secureattn.backends.ckks.cipher import Cipher, Device, OutOfLevels
from secureattn.backends.ckks.costs import TYPICAL, Costs
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.backends.ckks.pools import Held, Pools
from secureattn.backends.ckks.team import Team, together
from secureattn.backends.ckks.units import Demand, Path, Place
from secureattn.events import Recorder

Item = TypeVar("Item")
Made = TypeVar("Made")
Numbered = Sequence[tuple[int, Item]]


class Loops:
    """Runs units at the level they are needed at (``ceilings``), loops over them on ``workers`` processes where these
    run a program ``together``.

    A planner's recorder is modelled: its loops note in ``demand`` who needs what, and in ``worth`` which of them are
    faster shared. A run shares those alone, or every loop where it has no plan (``worth`` None); all processes run the
    others, each for itself. ``steps`` gathers the rotations used, for key generation.
    """

    def __init__(
        self,
        parameters: CkksParameters,
        device: Device,
        recorder: Recorder,
        *,
        ceilings: Mapping[Path, int] | None = None,
        workers: int = 1,
        worth: Iterable[Path] | None = None,
        costs: Costs = TYPICAL,
    ) -> None:
        self.parameters = parameters
        self.device = device
        self.recorder = recorder
        self.place = Place(ceilings or {})
        self.demand = Demand() if recorder.modelled else None
        self.pools = Pools() if recorder.modelled else None
        self.workers = workers
        self.costs = costs
        self.worth = set(worth or ()) if recorder.modelled or worth is not None else None
        self.steps: set[int] = set()
        self.team: Team | None = None
        self._sharing = False

    # ---- units ----------------------------------------------------------------------------------------------

    def unit(self, compute: Callable[[], Cipher]) -> Cipher:
        """What ``compute`` makes, at the level it is needed at; it takes one level at most."""
        return self._unit(self.place.begin(), compute)

    def map(
        self,
        compute: Callable[[Item], Cipher],
        items: Iterable[Item],
        *,
        alike: Callable[[Item], object] | None = None,
        exchanges: int = 1,
    ) -> list[Cipher]:
        """``compute`` of every item, a unit each, independent of each other; it opens no operation of the ledger.

        Items with equal ``alike``, which must name every ciphertext by its id and whatever else decides what is done
        with it, cost the same: a plan looks at one of them. Ciphertexts need none, being alike if they are the same.
        ``exchanges``: how often processes wait for each other in it.
        """
        return self.over(self.place.begin(), compute, items, alike=alike, exchanges=exchanges)

    def over(
        self,
        loop: Path,
        compute: Callable[[Item], Cipher],
        items: Iterable[Item],
        *,
        alike: Callable[[Item], object] | None = None,
        exchanges: int = 1,
        once: bool = False,
    ) -> list[Cipher]:
        """``map``, as the loop of this name; ``once``: each unit is run by one process even where that does not pay."""
        numbered = list(enumerate(items))

        def unit(i: int, item: Item) -> Cipher:
            return self._unit((*loop, i), functools.partial(compute, item))

        if self.demand is not None:
            keys = [id(item) if isinstance(item, Cipher) else alike(item) if alike else i for i, item in numbered]
            return self._modelled(loop, keys, lambda i: unit(*numbered[i]), exchanges)
        return self._shared(loop, lambda some: (unit(i, item) for i, item in some), numbered, once=once)

    def map_together(
        self, compute: Callable[[Sequence[Item], int], list[Cipher]], items: Sequence[Item], level: int, what: str
    ) -> list[Cipher]:
        """``map`` for what is cheaper together: ``compute(items, level)`` at every level that results begin from, each
        taking one level.
        """
        loop = self.place.begin()

        def run(some: Numbered[Item]) -> list[Cipher]:
            groups: dict[int, list[tuple[int, Item]]] = {}
            for i, item in some:
                with self.place.inside((*loop, i)):
                    groups.setdefault(self.begin_at(level, what), []).append((i, item))
            made: dict[int, Cipher] = {}
            for start, group in groups.items():
                together = (*loop, -1 - start)  # reads for all of them
                with self.place.inside(together):
                    results = [self._made(together, r) for r in compute([item for _, item in group], start)]
                made |= {i: r for (i, _), r in zip(group, results, strict=True)}
            return [made[i] for i, _ in some]

        numbered = list(enumerate(items))
        if self.demand is None:
            return self._shared(loop, run, numbered)
        before = self._before()
        results = run(numbered)
        self._model_sharing(loop, before, results)
        # What is taken apart later is mostly a half or a third, so parts may differ by twelfths.
        keys = [(i * 12 // len(results), r.level, r.scale) for i, r in enumerate(results)]
        return self._by_class(loop, keys, lambda i: self._made((*loop, i), results[i]))

    def begin_at(self, level: int, what: str, depth: int = 1) -> int:
        """The level to begin at for a result ``depth`` lower in the unit now open; OutOfLevels without enough."""
        if level < depth:
            raise OutOfLevels(what, depth, level)
        return self.place.start(level, depth)

    def _unit(self, path: Path, compute: Callable[[], Cipher]) -> Cipher:
        with self.place.inside(path):
            return self._made(path, compute())

    def _made(self, path: Path, result: Cipher) -> Cipher:
        if self.demand is None:
            return result
        self.uses(result, result.level, path)  # where it is another unit's, passed on
        self.demand.make(path, result.level)
        held: Held = result.data
        if held.path is None:
            held.path = path
            return result
        return Cipher(result.level, result.scale, result.size, Held(held.pools, held.size, path, base=held))

    def uses(self, a: Cipher, level: int, user: Path | None = None) -> None:
        """An operand is read at a level; planners remember."""
        if self.demand is not None and a.data.path is not None:
            self.demand.use(a.data.path, self.place.path if user is None else user, level)

    # ---- plans ----------------------------------------------------------------------------------------------

    def _modelled(
        self, loop: Path, keys: Sequence[object], unit: Callable[[int], Cipher], exchanges: int
    ) -> list[Cipher]:
        """A loop on no data: one unit of each class, counted as often as there are such."""
        before, sharing = self._before(), self._sharing
        self._sharing = True
        times: dict[object, int] = {}
        for key in keys:
            times[key] = times.get(key, 0) + 1

        def several(i: int) -> Cipher:
            spent, seconds = self.recorder.spent(), self.recorder.modelled_s
            more = times[keys[i]] - 1
            with self._times(more + 1):
                made = unit(i)
            if more:
                counts, primitive_s = self.recorder.spent(spent)
                scaled = {n: more * c for n, c in counts.items()}, {n: more * s for n, s in primitive_s.items()}
                self.recorder.absorb(scaled)
                self.recorder.rewind(self.recorder.modelled_s + more * (self.recorder.modelled_s - seconds))
            return made

        results = self._by_class(loop, keys, several)
        self._sharing = sharing
        self._model_sharing(loop, before, results, exchanges)
        return results

    @contextmanager
    def _times(self, times: int) -> Iterator[None]:
        assert self.demand is not None
        outer = self.demand.times
        self.demand.times *= times
        try:
            yield
        finally:
            self.demand.times = outer

    def _by_class(self, loop: Path, keys: Sequence[object], unit: Callable[[int], Cipher]) -> list[Cipher]:
        """The same ciphertext for all units of a class, made by the first; what becomes of any counts for all."""
        assert self.demand is not None
        first: dict[object, int] = {}
        made: dict[object, Cipher] = {}
        for i, key in enumerate(keys):
            if key not in made:
                first[key], made[key] = i, unit(i)
            else:
                self.demand.join((*loop, first[key]), (*loop, i))
                made[key].data.again()
        return [made[key] for key in keys]

    def _before(self) -> tuple[float, dict[int, int]]:
        """What a plan has spent, and held in every process, as a loop begins."""
        assert self.pools is not None
        return self.recorder.modelled_s, {} if self._sharing else dict(self.pools.most_own)

    def _model_sharing(
        self, loop: Path, before: tuple[float, dict[int, int]], results: Sequence[Cipher], exchanges: int = 1
    ) -> None:
        """Share a loop where the seconds of the largest share and of putting it where all see it are less."""
        workers = min(self.workers, len(results))
        if workers < 2 or self._sharing:
            return
        started, held = before
        alone = self.recorder.modelled_s - started
        share = math.ceil(len(results) / workers) / len(results)
        made = sum(c.size * (c.level + 1) for c in results) * 2 * self.slots
        assert self.worth is not None
        assert self.pools is not None
        seconds = self.costs.sharing_s(share * alone, workers, round(share * made), exchanges)
        if seconds < alone:
            self.worth.add(loop)
            self.recorder.rewind(started + seconds)
            self.pools.share((c.data for c in results), held)
            self.pools.worker = max(self.pools.worker, round(share * 8 * made))

    # ---- processes ------------------------------------------------------------------------------------------

    def together(self, compute: Callable[[], Made]) -> Made:
        """What ``compute`` makes, by as many processes as there are workers where that pays: each runs all of it."""
        if self.workers < 2 or not processes.available() or (self.worth is not None and not self.worth):
            return compute()

        def work(team: Team) -> Made:
            self.team = team
            if not self.leads:
                self.recorder.listener = None
            try:
                return compute()
            finally:
                self.team = None

        return together(work, self.workers)

    @property
    def leads(self) -> bool:
        """Whether this process is the one whose results count and that others see."""
        return self.team is None or self.team.rank == 0

    def portion(self, loop: Path, count: int) -> Sequence[int]:
        """The units of a loop that this process runs where each is run once: all by the leader where sharing them does
        not pay.
        """
        if self.team is None or self._sharing:
            return range(count)
        size = self.team.size if self._pays(loop) else 1
        shares = processes.portions(range(count), size)
        return shares[self.team.rank] if self.team.rank < len(shares) else ()

    def _shared(
        self,
        loop: Path,
        run: Callable[[Numbered[Item]], Iterable[Cipher]],
        items: Numbered[Item],
        *,
        once: bool = False,
    ) -> list[Cipher]:
        if self.team is None or self._sharing or not (once or (len(items) > 1 and self._pays(loop))):
            return list(run(items))
        before, share = self.recorder.spent(), [items[i] for i in self.portion(loop, len(items))]
        self._sharing = True
        try:
            mine = [self._put(self.team, c) for c in run(share)]
        finally:
            self._sharing = False
        spent, steps = self.recorder.spent(before), sorted(self.steps)
        everyone = self.team.exchange({"ciphers": mine, "spent": spent, "steps": steps})
        for rank, told in enumerate(everyone):
            if rank != self.team.rank:
                self.recorder.absorb(told["spent"])
                self.steps.update(told["steps"])
        return [self._held(self.team, *cipher) for told in everyone for cipher in told["ciphers"]]

    def _pays(self, loop: Path) -> bool:
        return self.worth is None or loop in self.worth

    def _put(self, team: Team, a: Cipher) -> tuple[int, float, int, int]:
        """What others need to know of a ciphertext that is for all."""
        return a.level, a.scale, a.size, team.memory.put(team.rank, self.device.memory(a.data))

    def _held(self, team: Team, level: int, scale: float, size: int, at: int) -> Cipher:
        count = size * (level + 1) * self.parameters.ring_degree
        data = self.device.over(team.memory.words(at, count), size, level, scale)
        team.memory.held_by(data, at, count)
        return Cipher(level, scale, size, data)

    @property
    def slots(self) -> int:
        """Numbers in a ciphertext, N/2."""
        return self.parameters.slots
