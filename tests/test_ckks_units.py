"""Units of work: who needs what at which level, and that neither ceilings, classes nor processes change any result."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from helpers import assert_close
from programs import PROGRAMS, REFRESH_POINT, TOKENS, Counts, counts, fitted

from secureattn.backends.ckks import processes
from secureattn.backends.ckks.backend import CkksBackend
from secureattn.backends.ckks.cipher import Cipher, OutOfLevels
from secureattn.backends.ckks.dense_backend import DenseBackend
from secureattn.backends.ckks.dense_layout import dense_pack
from secureattn.backends.ckks.loops import Loops
from secureattn.backends.ckks.machine import Machine
from secureattn.backends.ckks.parameters import CkksParameters, chain, most_levels
from secureattn.backends.ckks.roles import pack
from secureattn.backends.ckks.team import Team
from secureattn.backends.ckks.units import Demand, Path, Place
from secureattn.backends.symbolic import SymbolicCkks, SymbolicDense
from secureattn.events import Recorder

SEED = 20251124
LAYOUTS = ("batch", "dense")

needs_tenseal = pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="TenSEAL is not installed")
needs_processes = pytest.mark.skipif(not processes.available(), reason="processes share work on Linux only")

Array = np.ndarray
Symbolic = SymbolicCkks | SymbolicDense


# ---- demand, by hand --------------------------------------------------------------------------------------------


def graph(made: Mapping[int, int], used: Mapping[int, list[tuple[int, int]]]) -> Demand:
    """Units by number, made in that order at a level; who reads each, at a level."""
    demand = Demand()
    for unit, level in made.items():
        demand.make((unit,), level)
    for unit, readers in used.items():
        for reader, level in readers:
            demand.use((unit,), (reader,) if reader >= 0 else (), level)
    return demand


def test_slack_passes_back() -> None:
    """0 → 1 → 2 → 3, the last of which nobody reads: it may lie at 0, and all it needs so much lower."""
    demand = graph({0: 7, 1: 6, 2: 5, 3: 4}, {0: [(1, 7)], 1: [(2, 6)], 2: [(3, 5)]})
    assert demand.ceilings() == {(0,): 3, (1,): 2, (2,): 1, (3,): 0}


def test_the_highest_reader_decides() -> None:
    """Unit 0 is read at 3 by one that may not move and at 7 by one that may move by 6."""
    demand = graph({0: 7, 1: 6, 2: 2}, {0: [(1, 7), (2, 3)], 2: [(-1, 2)]})
    assert demand.ceilings() == {(0,): 3, (1,): 0}
    demand = graph({0: 7, 1: 6, 2: 2}, {0: [(1, 7), (2, 3)], 1: [(-1, 5)], 2: [(-1, 2)]})
    assert demand.ceilings() == {(0,): 6, (1,): 5}


def test_nothing_moves_below_what_its_reader_needs() -> None:
    assert graph({0: 5, 1: 4}, {0: [(1, 5)], 1: [(-1, 4)]}).ceilings() == {}
    assert graph({0: 5, 1: 4}, {0: [(1, 1)], 1: [(-1, 4)]}).ceilings() == {(0,): 1}


def test_alike_units_share_their_ceiling() -> None:
    demand = graph({0: 5, 3: 4}, {0: [(3, 5)]})
    demand.join((0,), (1,))
    demand.join((0,), (2,))
    assert demand.ceilings() == {(0,): 1, (1,): 1, (2,): 1, (3,): 0}


def test_seconds_without_slack_are_those_of_the_lower_levels() -> None:
    demand = graph({0: 5, 1: 4}, {0: [(1, 5)]})
    demand.spend((0,), "rotations", 5, 6.0)
    demand.spend((1,), "rescales", 2, 3.0)
    demand.times = 3
    demand.spend((1,), "rescales", 5, 6.0)
    demand.times = 1
    demand.spend((9,), "rotations", 3, 0.5)  # of a unit that has no result
    assert demand.seconds(lambda name, level: level + 1.0) == pytest.approx(6 * 2 / 6 + 3 * 1 / 3 + 3 * 6 * 2 / 6 + 0.5)


def refreshed(levels_left: int, ceilings: Mapping[Path, int] | None = None) -> SymbolicCkks:
    """A product, a refresh, and so many squarings afterwards."""
    backend = SymbolicCkks(chain(1 << 14, 8), tokens=4, schedule={"here/point"}, ceilings=ceilings)
    with backend.recorder.phase("online"), backend.region("here"):
        x = (backend.input((2, 4, 3)) * 0.3).refresh("point")
        for _ in range(levels_left):
            x = x.square()
        backend.results(x.sum(1))
    return backend


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_refresh_reads_at_level_1_whatever_level_it_comes_back_on(after: int) -> None:
    first = refreshed(after)
    ceilings = first.demand.ceilings()  # of the loops in turn: input, product, refresh, squarings, sums, results
    for part in range(3):
        assert ceilings[0, part] == 2
        assert ceilings[1, part] == 1
        assert ceilings[2, part] == after
    second = refreshed(after, ceilings)
    assert second.demand.ceilings() == {}
    refresh = next(e for e in second.recorder.events.values() if e.op == "refresh")
    assert (refresh.level_in, refresh.level_out) == (1, after)
    assert second.highest == max(2, after)


def test_a_refresh_comes_back_above_level_0() -> None:
    """Nothing is computed after it; a mask takes two primes."""
    ceilings = refreshed(0).demand.ceilings()
    assert ceilings[2, 0] == 0
    refresh = next(e for e in refreshed(0, ceilings).recorder.events.values() if e.op == "refresh")
    assert refresh.level_out == 1


# ---- place ------------------------------------------------------------------------------------------------------


def test_places_are_numbered_by_loop_and_item() -> None:
    place = Place({})
    assert place.begin() == (0,)
    with place.inside((0, 4)):
        assert place.path == (0, 4)
        assert [place.begin(), place.begin()] == [(0, 4, 0), (0, 4, 1)]
        with place.inside((0, 4, 1, 2)):
            assert place.begin() == (0, 4, 1, 2, 0)
        assert place.begin() == (0, 4, 2)
    assert place.path == ()
    assert place.begin() == (1,)
    place.restart()
    assert place.begin() == (0,)


def test_a_place_is_left_where_something_fails() -> None:
    place = Place({})
    with contextlib.suppress(KeyError), place.inside((7, 1)):
        place.begin()
        raise KeyError
    assert (place.path, place.begin()) == ((), (0,))


def test_where_to_start() -> None:
    place = Place({(0, 1): 2})
    assert place.start(7, 1) == 7
    with place.inside((0, 1)):
        assert [place.start(7, depth) for depth in (0, 1, 2)] == [2, 3, 4]
        assert [place.start(level, 1) for level in (1, 3, 4)] == [1, 3, 3]
    assert place.start(7, 1) == 7


# ---- one program, every operation -------------------------------------------------------------------------------

CUBIC = fitted(np.sin, 3, -1.0, 1.0)
WIDTH, HEADS = 4, 2


def random(*shape: int, salt: int = 0) -> Array:
    return np.random.default_rng([SEED, salt, *shape]).uniform(-1, 1, size=shape)


W, BIAS = random(3 * WIDTH, WIDTH), random(3 * WIDTH, salt=1)
X = random(2, 3, WIDTH, salt=2) * 0.7
"""Three tokens: padded to four."""
PLACES, PAIRS = random(3, WIDTH, salt=3), random(HEADS, 3, 3, salt=4)


def heads(x: Any) -> Any:
    return x.split_heads(HEADS)


OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "sums": lambda b, x: x + x.sum(-1) - (-x) + 0.5,
    "public": lambda b, x: x * b.weight(PLACES) + PLACES + x * 0.3 + 3 * x,
    "products": lambda b, x: x * x.sum(-1) + x.square(),
    "combine": lambda b, x: x.combine([(0.3, x)], [(x, x)], 0.25),
    "polynomial": lambda b, x: x.polynomial(CUBIC),
    "linear": lambda b, x: x.linear(b.weight(W), b.weight(BIAS)),
    "linear_then_taken": lambda b, x: x.linear(b.weight(W)).take(-1, slice(0, WIDTH)).square(),
    "inner": lambda b, x: x.inner(x),
    "tokens": lambda b, x: x.sum(1),
    "one_token": lambda b, x: x.take(1, 1),
    "scores": lambda b, x: heads(x).scores(heads(x)),
    "scores_summed": lambda b, x: heads(x).scores(heads(x)).sum(-1),
    "scores_public": lambda b, x: heads(x).scores(heads(x)) * b.weight(PAIRS),
    "per_key": lambda b, x: heads(x).sum(-1).per_key(),
    "mix": lambda b, x: heads(x).sum(-1).per_key().mix(heads(x)).merge_heads(),
}


def symbolic(layout: str, parameters: CkksParameters, tokens: int, **options: Any) -> Symbolic:
    if layout == "batch":
        return SymbolicCkks(parameters, tokens=tokens, **options)
    return SymbolicDense(parameters, tokens=tokens, features=3 * WIDTH, heads=HEADS, queries=3, **options)


def planned(layout: str, run: Callable[[Any, Any], Any], parameters: CkksParameters, **options: Any) -> Symbolic:
    backend = symbolic(layout, parameters, X.shape[1], **options)
    with backend.recorder.phase("online"):
        backend.output = run(backend, backend.input(X.shape))
    return backend


def settled(layout: str, run: Callable[[Any, Any], Any], parameters: CkksParameters) -> Symbolic:
    """Until nothing lies higher than needed."""
    ceilings: dict[Path, int] = {}
    while lower := planned(layout, run, parameters, ceilings=ceilings).demand.ceilings():
        ceilings |= lower
    return planned(layout, run, parameters, ceilings=ceilings)


class Sides:
    """Both roles on a ring, with keys for every rotation of the operations."""

    def __init__(self, parameters: CkksParameters, steps: set[int]) -> None:
        from secureattn.backends.ckks.evaluator import SealEvaluator
        from secureattn.backends.ckks.keys import KeyOwner

        self.parameters = parameters
        self.owner = KeyOwner.generate(parameters, steps)
        assert self.owner.evaluation_keys is not None
        self.device = SealEvaluator(parameters, self.owner.evaluation_keys)
        self._encrypted: dict[str, list[Any]] = {}

    def run(self, layout: str, run: Callable[[Any, Any], Any], **options: Any) -> tuple[list[Cipher], Recorder]:
        """The parts of the result; the input is encrypted once for all runs."""
        machine = Machine(self.parameters, self.device, Recorder(), **options)
        backend: Any
        if layout == "batch":
            backend = CkksBackend(machine, tokens=X.shape[1])
            slots = pack(X, backend.tokens, backend.batch)
        else:
            backend = DenseBackend(machine, tokens=X.shape[1], features=3 * WIDTH, heads=HEADS, queries=3)
            slots = list(dense_pack(X, backend.layout))
        if layout not in self._encrypted:
            self._encrypted[layout] = [self.device.load(self.owner.encrypt(column)) for column in slots]
        fresh = [Cipher(self.parameters.levels, ct.scale, 2, ct) for ct in self._encrypted[layout]]
        with backend.recorder.phase("online"):
            out = machine.together(lambda: run(backend, backend.tensor(fresh, X.shape)))
        return list(out.parts.flat), backend.recorder

    def residues(self, ciphers: list[Cipher]) -> list[Array]:
        return [np.array(self.device.residues(cipher.data)) for cipher in ciphers]

    def values(self, ciphers: list[Cipher]) -> Array:
        return np.stack([self.owner.decrypt(self.device.save(cipher.data)) for cipher in ciphers])


SHALLOW = chain(1 << 13, 3)


@pytest.fixture(scope="module")
def sides() -> Callable[[str], Sides]:
    pytest.importorskip("tenseal")

    @cache
    def made(layout: str) -> Sides:
        steps = (planned(layout, run, SHALLOW).machine.steps for run in OPERATIONS.values())
        return Sides(SHALLOW, set().union(*steps))

    return made


# ---- ceilings ---------------------------------------------------------------------------------------------------


@needs_tenseal
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ceilings_change_levels_and_no_value(sides: Callable[[str], Sides], layout: str, name: str) -> None:
    run, both = OPERATIONS[name], sides(layout)
    plan = settled(layout, run, SHALLOW)
    ceilings = plan.machine.place.ceilings
    high, free = both.run(layout, run)
    low, bound = both.run(layout, run, ceilings=ceilings)
    assert [c.level for c in low] == [c.level for c in plan.output.parts.flat] == [0] * len(low)
    assert ceilings or max(c.level for c in high) == 0  # where every level is used there is nothing to lower
    assert_close(both.values(low), both.values(high), 2e-5, "noise of key switching at N = 2^13, twice")
    assert counts(bound) == counts(plan.recorder) == counts(free)


def test_ceilings_save_what_they_can() -> None:
    """Each is needed: a polynomial of the scores takes a run as low as its depth."""
    plan = settled("batch", lambda b, x: heads(x).scores(heads(x)).polynomial(CUBIC).sum(-1), chain(1 << 14, 8))
    assert plan.highest == 4  # a product, a cubic, and padded keys set to 0
    assert min(plan.demand.made.values()) == 0


# ---- classes ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def single_units() -> Iterator[None]:
    """Every unit of a plan is looked at, alike or not."""
    modelled, by_class = Loops._modelled, Loops._by_class
    patch = pytest.MonkeyPatch()
    patch.setattr(Loops, "_modelled", lambda self, loop, keys, *rest: modelled(self, loop, [*range(len(keys))], *rest))
    patch.setattr(Loops, "_by_class", lambda self, loop, keys, unit: by_class(self, loop, [*range(len(keys))], unit))
    try:
        yield
    finally:
        patch.undo()


DEEP = chain(1 << 14, 8)
WIDE = random(24, WIDTH, salt=5)
LONG = fitted(np.exp, 7, -1.0, 1.0)
MODELS: dict[str, Callable[[Any, Any], Any]] = {
    **OPERATIONS,
    "feed_forward": lambda b, x: x.linear(b.weight(WIDE)).polynomial(LONG).linear(b.weight(WIDE.T)).sum(1),
    "attention": lambda b, x: (
        lambda q, k, v: heads(q).scores(heads(k)).square().mix(heads(v)).merge_heads().linear(b.weight(W))
    )(*(x.linear(b.weight(W)).take(-1, slice(i * WIDTH, (i + 1) * WIDTH)) for i in range(3))),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("workers", [1, 2])
def test_classes_count_what_single_units_count(layout: str, name: str, workers: int) -> None:
    """Primitives, seconds, rotations, levels and the ceilings of what is left; the loops worth sharing."""
    found = planned(layout, MODELS[name], DEEP, workers=workers)
    with single_units():
        wanted = planned(layout, MODELS[name], DEEP, workers=workers)
    assert counts(found.recorder) == counts(wanted.recorder)
    # starting a process costs by the memory held at the time, which single units let go of one by one
    assert found.recorder.seconds() == pytest.approx(wanted.recorder.seconds(), rel=1e-9 if workers == 1 else 2e-3)
    assert found.machine.steps == wanted.machine.steps
    assert found.machine.worth == wanted.machine.worth
    ceilings = wanted.demand.ceilings()
    assert {path: ceilings[path] for path in found.demand.ceilings()} == found.demand.ceilings()
    assert {path for path in ceilings if len(path) <= 2} == {path for path in found.demand.ceilings() if len(path) <= 2}
    costs = found.machine.costs

    def seconds(demand: Demand) -> float:
        return demand.seconds(lambda primitive, level: costs.primitive_s(primitive, DEEP.ring_degree, level + 1))

    assert seconds(found.demand) == pytest.approx(seconds(wanted.demand), rel=1e-9)


@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if program.bounds["ckks"] is not None])
def test_classes_count_the_table_of_operations(name: str) -> None:
    """Every operation of the table, counted either way."""
    program = PROGRAMS[name]

    def run() -> tuple[Counts, float]:
        for ring in (1 << 13, 1 << 14):
            backend = SymbolicCkks(chain(ring, most_levels(ring)), tokens=TOKENS, schedule={REFRESH_POINT})
            with contextlib.suppress(OutOfLevels), backend.recorder.phase("online"):
                program.run(backend, *(backend.input(x.shape) for x in program.inputs))
                return counts(backend.recorder), backend.machine.recorder.modelled_s
        raise AssertionError

    found = run()
    with single_units():
        wanted = run()
    assert found[0] == wanted[0]
    assert found[1] == pytest.approx(wanted[1], rel=1e-9)


def test_single_units_are_more() -> None:
    """What the comparison rests on."""
    found = planned("batch", MODELS["feed_forward"], DEEP)
    with single_units():
        wanted = planned("batch", MODELS["feed_forward"], DEEP)
    assert len(found.demand.made) < len(wanted.demand.made)
    assert Loops._modelled.__name__ == "_modelled"


# ---- processes --------------------------------------------------------------------------------------------------


@needs_tenseal
@needs_processes
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_number_of_processes_makes_the_same_bits(sides: Callable[[str], Sides], layout: str, name: str) -> None:
    run, both = OPERATIONS[name], sides(layout)
    alone, recorder = both.run(layout, run)
    wanted = both.residues(alone)
    assert counts(recorder) == counts(planned(layout, run, SHALLOW).recorder)
    for workers in (2, 5):
        made, shared = both.run(layout, run, workers=workers)
        assert [(c.level, c.scale, c.size) for c in made] == [(c.level, c.scale, c.size) for c in alone]
        for a, b in zip(both.residues(made), wanted, strict=True):
            assert np.array_equal(a, b)
        assert counts(shared) == counts(recorder)


@needs_tenseal
@needs_processes
def test_processes_are_used_where_a_loop_is_worth_it(
    sides: Callable[[str], Sides], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All loops without a plan, the plan's with one, those of one item never, and none inside another."""
    sizes: list[int] = []
    exchange = Team.exchange

    def counted(self: Team, note: Any) -> Any:
        sizes.append(self.size)  # each process has its own list
        return exchange(self, note)

    monkeypatch.setattr(Team, "exchange", counted)
    both, run = sides("batch"), OPERATIONS["polynomial"]
    alone = both.residues(both.run("batch", run)[0])
    assert not sizes
    for worth, expected in ((None, [3, 3]), ((), []), (((1,),), [3]), (((7,),), [])):  # input, polynomial
        sizes.clear()
        made, _ = both.run("batch", run, workers=3, worth=worth)
        assert sizes == expected
        assert all(np.array_equal(a, b) for a, b in zip(both.residues(made), alone, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_plan_shares_what_pays(layout: str) -> None:
    """At typical costs: heavy loops, not light ones, and none on one core; results are counted the same."""
    run = MODELS["feed_forward"]
    one, two = (planned(layout, run, DEEP, workers=workers) for workers in (1, 2))
    assert one.machine.worth == set()
    assert counts(one.recorder) == counts(two.recorder)
    if layout == "batch":
        assert two.machine.worth
        assert 0.45 * one.recorder.seconds() < two.recorder.seconds() < one.recorder.seconds()
