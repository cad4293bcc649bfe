"""The recorder: what nests, what adds up, and what it refuses."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secureattn.events import PHASES, Event, Recorder, Silent

Tree = list[tuple[str, str, float, "Tree"]]
"""Kind (op, region, phase), name, modelled seconds, children."""

_KINDS = st.sampled_from([("op", "linear"), ("op", "mix"), ("region", "a"), ("region", "b"), ("phase", "refresh")])


def _nodes(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    node = st.tuples(_KINDS, st.floats(0, 10), children).map(lambda parts: (*parts[0], parts[1], parts[2]))
    return st.lists(node, max_size=4)


TREES: st.SearchStrategy[Tree] = st.recursive(st.just([]), _nodes, max_leaves=25)


def play(recorder: Recorder, tree: Tree) -> None:
    for kind, name, seconds, children in tree:
        with getattr(recorder, kind)(name):
            recorder.primitive("products", seconds=seconds)
            play(recorder, children)


def seconds_in(tree: Tree) -> float:
    return sum(seconds + seconds_in(children) for _, _, seconds, children in tree)


def nodes_in(tree: Tree) -> int:
    return sum(1 + nodes_in(children) for _, _, _, children in tree)


class Clock:
    """Stands in for time.perf_counter: moves only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def event(recorder: Recorder, region: str, op: str, phase: str = "online") -> Event:
    return recorder.events[region, op, phase]


def test_nested_operations_are_taken_off_self_time(clock: Clock) -> None:
    recorder = Recorder()
    with recorder.region("layer.0"), recorder.region("attention"):
        clock.now += 1
        with recorder.op("softmax"):
            clock.now += 2
            with recorder.op("reciprocal"):
                clock.now += 4
            clock.now += 8
    assert event(recorder, "layer.0/attention", "reciprocal").seconds_self == 4
    softmax = event(recorder, "layer.0/attention", "softmax")
    assert (softmax.seconds_self, softmax.seconds_total, softmax.calls) == (10, 14, 1)
    other = event(recorder, "layer.0/attention", "other")
    assert (other.seconds_self, other.seconds_total) == (1, 15)
    assert (event(recorder, "layer.0", "other").seconds_self, recorder.seconds()) == (0, 15)


def test_calls_of_one_operation_make_one_event(clock: Clock) -> None:
    recorder = Recorder()
    for seconds in (1, 2, 4):
        with recorder.op("add"):
            clock.now += seconds
    assert list(recorder.events) == [("", "add", "online")]
    assert (event(recorder, "", "add").calls, event(recorder, "", "add").seconds_self) == (3, 7)


def test_an_operation_inside_itself_counts_once_in_its_total(clock: Clock) -> None:
    recorder = Recorder()
    with recorder.op("product"):
        clock.now += 1
        with recorder.op("product"):
            clock.now += 2
    product = event(recorder, "", "product")
    assert (product.calls, product.seconds_self, product.seconds_total) == (2, 3, 3)


def test_phases_part_time_and_counts(clock: Clock) -> None:
    recorder = Recorder()
    with recorder.region("embed"), recorder.op("linear"):
        clock.now += 1
        with recorder.phase("offline"), recorder.op("deal"):
            recorder.primitive("dealer_bytes", times=80)
            clock.now += 2
        recorder.primitive("rounds")
        clock.now += 4
    assert (recorder.seconds("offline"), recorder.seconds("online"), recorder.seconds()) == (2, 5, 7)
    assert recorder.total("dealer_bytes", phase="offline") == 80
    assert recorder.total("dealer_bytes", phase="online") == 0
    assert event(recorder, "embed", "linear").counts == {"rounds": 1}
    assert event(recorder, "embed", "deal", "offline").counts == {"dealer_bytes": 80}


def test_an_unknown_phase_is_refused() -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match=r"warm-up.* none of setup, keys"), recorder.phase("warm-up"):
        pass
    assert recorder.events == {}


@pytest.mark.parametrize("opened", ["op", "region", "phase"])
def test_an_exception_closes_what_is_open(clock: Clock, opened: str) -> None:
    recorder = Recorder(trace=True)

    def fail() -> None:
        with getattr(recorder, opened)("refresh"):
            clock.now += 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    (closed,) = recorder.events.values()
    assert (closed.calls, closed.seconds_self, len(recorder.spans), recorder.path) == (1, 1, 1, "")
    with recorder.op("next"):
        clock.now += 2
    assert event(recorder, "", "next").seconds_total == 2
    with pytest.raises(RuntimeError, match="'rounds' was counted outside any operation"):
        recorder.primitive("rounds")


def test_a_primitive_outside_an_operation_is_refused() -> None:
    with pytest.raises(RuntimeError, match="outside any operation"):
        Recorder().primitive("rotations")


def test_primitives_add_up_with_their_seconds() -> None:
    recorder = Recorder()
    with recorder.op("mix"):
        recorder.primitive("rotations", seconds=0.5)
        recorder.primitive("rotations", times=3, seconds=0.25)
        recorder.primitive("rescales", times=2)
    mix = event(recorder, "", "mix")
    assert mix.counts == {"rotations": 4, "rescales": 2}
    assert mix.primitive_s == {"rotations": 0.75}
    assert recorder.total("rotations") == 4


def test_levels_keep_the_highest_in_and_the_lowest_out() -> None:
    recorder = Recorder()
    for levels in ((7, 5), (9, 8), (6, 6)):
        with recorder.op("polynomial"):
            recorder.levels(*levels)
    assert (event(recorder, "", "polynomial").level_in, event(recorder, "", "polynomial").level_out) == (9, 5)


def test_a_modelled_recorder_reads_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise AssertionError("a modelled recorder read the clock")

    monkeypatch.setattr(time, "perf_counter", refuse)
    recorder = Recorder(modelled=True, trace=True)
    with recorder.region("head"), recorder.phase("refresh"), recorder.op("refresh"):
        recorder.primitive("rounds", seconds=0.5)
        with recorder.op("add"):
            recorder.primitive("additions", times=2, seconds=0.25)
    assert recorder.seconds() == recorder.seconds("refresh") == 0.75
    assert event(recorder, "head", "refresh", "refresh").seconds_self == 0.5
    assert event(recorder, "head", "other").seconds_total == 0.75
    assert recorder.spans == []


def test_spans_nest_on_the_time_line(clock: Clock) -> None:
    recorder = Recorder(trace=True)
    clock.now += 1
    with recorder.region("embed"):
        clock.now += 1
        with recorder.op("linear"):
            clock.now += 2
    inner, outer = recorder.spans
    assert (inner.region, inner.op, inner.start_s, inner.duration_s) == ("embed", "linear", 2, 2)
    assert (outer.op, outer.start_s, outer.duration_s) == ("other", 1, 3)
    assert Recorder().spans == []


@given(TREES)
def test_modelled_self_times_sum_to_all_that_was_spent(tree: Tree) -> None:
    recorder = Recorder(modelled=True)
    play(recorder, tree)
    assert recorder.seconds() == pytest.approx(seconds_in(tree), rel=1e-9, abs=1e-9)
    assert recorder.total("products") == nodes_in(tree)
    assert sum(map(recorder.seconds, PHASES)) == pytest.approx(recorder.seconds(), rel=1e-9, abs=1e-9)
    assert all(e.seconds_self <= e.seconds_total + 1e-9 for e in recorder.events.values())


@given(TREES)
def test_measured_self_times_sum_to_the_outermost_spans(tree: Tree) -> None:
    recorder = Recorder(trace=True)
    with recorder.op("run"):
        play(recorder, tree)
    outermost = recorder.spans[-1].duration_s
    resolution = time.get_clock_info("perf_counter").resolution * max(1, len(recorder.spans))
    assert recorder.seconds() == pytest.approx(outermost, rel=1e-9, abs=resolution)
    assert event(recorder, "", "run").seconds_total == outermost


def test_a_listener_is_told_of_every_operation_that_ends() -> None:
    told: list[tuple[str, str]] = []
    recorder = Recorder(listener=lambda event: told.append((event.region, event.op)))
    with recorder.region("a"), recorder.op("outer"), recorder.op("inner"):
        pass
    assert told == [("a", "inner"), ("a", "outer"), ("a", "other")]


def test_a_silent_recorder_keeps_nothing_but_the_region(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Silent()

    def refuse() -> float:
        raise AssertionError("a silent recorder read the clock")

    monkeypatch.setattr(time, "perf_counter", refuse)
    with recorder.region("layer.0"), recorder.phase("refresh"), recorder.op("refresh"):
        recorder.primitive("rounds", seconds=0.5)
        recorder.levels(2, 1)
        with recorder.region("attention"):
            assert recorder.path == "layer.0/attention"
        assert recorder.path == "layer.0"
        assert recorder.spent() == ({}, {})
        recorder.absorb(({"rounds": 1}, {}))
    assert (recorder.path, recorder.events, recorder.spans, recorder.last) == ("", {}, [], None)


def test_the_origin_is_on_the_clock_of_all_processes(clock: Clock) -> None:
    clock.now += 5
    assert Recorder().origin_s == 1005
