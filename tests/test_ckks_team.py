"""One program run by several processes: what they exchange, the memory they share, and that all end together."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import FOREVER_S, Shared, children, open_files, running, wait_for
from hypothesis import given
from hypothesis import strategies as st

from secureattn.backends.ckks import processes, team
from secureattn.backends.ckks.team import Gaps, Memory, Team, together
from secureattn.errors import EngineError, InputError

pytestmark = pytest.mark.skipif(not processes.available(), reason="processes share work on Linux only")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After every test: no child, running or dead, and as many open files as before."""
    before = open_files(), children()
    yield
    gc.collect()  # errors hold what their frames held
    assert (open_files(), children()) == before


class Thing:
    """Something that can be held."""


def held(one: Team, at: int, count: int) -> tuple[Thing, np.ndarray]:
    thing = Thing()
    one.memory.held_by(thing, at, count)
    return thing, one.memory.words(at, count)


# ---- what they say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_everyone_hears_everyone_by_rank(size: int) -> None:
    def work(one: Team) -> list[Any]:
        heard = [one.exchange([one.rank, turn, 1 / 3]) for turn in range(3)]
        return one.exchange(heard)

    turns = [[[rank, turn, 1 / 3] for rank in range(size)] for turn in range(3)]
    assert together(work, size) == [turns] * size


@pytest.mark.parametrize("size", [1, 2, 4])
def test_answers_come_through_the_leader_to_who_asked(size: int) -> None:
    served = Shared(1)

    def serve(blobs: list[bytes]) -> list[bytes]:
        served[0] += 1
        assert os.getpid() == leader
        assert blobs == [bytes([rank]) * 3 for rank in range(size) for _ in range(rank + 1)]
        return [blob + bytes([at]) for at, blob in enumerate(blobs)]

    def work(one: Team) -> list[Any]:
        answers = one.through_leader([bytes([one.rank]) * 3] * (one.rank + 1), serve)
        return one.exchange([answer.hex() for answer in answers])

    leader = os.getpid()
    found = [bytes.fromhex(answer) for answers in together(work, size) for answer in answers]
    assert [answer[:3] for answer in found] == [bytes([rank]) * 3 for rank in range(size) for _ in range(rank + 1)]
    assert [answer[3] for answer in found] == list(range(len(found)))
    assert served[0] == 1


# ---- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3])
def test_all_see_what_each_has_put(size: int) -> None:
    def drawn(rank: int, turn: int) -> np.ndarray:
        return np.random.default_rng([rank, turn]).integers(0, 1 << 63, 1000 * (turn + 1), dtype=np.uint64)

    def work(one: Team) -> bool:
        kept, same = [], True
        for turn in range(5):
            places = one.exchange(one.memory.put(one.rank, drawn(one.rank, turn).reshape(10, -1)))
            kept += [(held(one, at, 1000 * (turn + 1)), drawn(rank, turn)) for rank, at in enumerate(places)]
            same &= all(np.array_equal(words, wanted) for (_, words), wanted in kept)
        return all(one.exchange(bool(same)))

    assert together(work, size)


def test_a_place_is_free_once_nobody_holds_it() -> None:
    """The second process holds on a turn longer: until it has said so, the first puts its words elsewhere."""

    def work(one: Team) -> list[int]:
        memory, places, words = one.memory, [], np.full(1024, 7, dtype=np.uint64)
        for turn in range(4):
            at = one.exchange(memory.put(0, words) if one.rank == 0 else None)[0]
            places.append(at)
            if turn == 0:
                thing, _ = held(one, at, 1024)
            else:
                held(one, at, 1024)  # and given up at once
            if turn == 1 - (one.rank == 0):
                del thing
        one.exchange(None)
        return places

    first, second, third, fourth = together(work, 2)
    assert second != first  # given up by the first process alone
    assert third != first  # what is given up after an exchange is heard at the next
    assert third == second + 8192 or third == first  # whatever was free by then
    assert fourth in (first, second)


def test_memory_is_given_back() -> None:
    def mapped() -> bool:
        return "memfd:secureattn" in Path("/proc/self/maps").read_text()

    def work(one: Team) -> tuple[Thing, np.ndarray]:
        at = one.exchange(one.memory.put(one.rank, np.arange(10, dtype=np.uint64)))[1]
        return held(one, at, 10)

    thing, words = together(work, 2)
    assert mapped()
    assert words.tolist() == list(range(10))  # of a process that is gone
    del thing, words
    gc.collect()
    assert not mapped()


def test_a_system_that_refuses_so_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team.os, "sysconf", lambda _: 1 << 24)
    with pytest.raises(EngineError, match=r"^no memory could be shared between processes \(.*\); use 1 worker$"):
        together(lambda one: one.rank, 2)


def test_a_region_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(2)
    monkeypatch.setattr(memory, "_region", 3 * 8192)
    for _ in range(3):
        memory.put(0, np.zeros(1024, dtype=np.uint64))
    with pytest.raises(EngineError, match="use fewer workers"):
        memory.put(0, np.zeros(1024, dtype=np.uint64))


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 10)), max_size=60))
def test_gaps_are_taken_and_joined(steps: list[tuple[int, int]]) -> None:
    """Against a list of cells: what is taken was free, the lowest place that fits; neighbours are one gap."""
    gaps, free, taken = Gaps(), [True] * 40, []
    gaps.add(0, 40)
    for size, choice in steps:
        fits = [at for at in range(40 - size + 1) if all(free[at : at + size])]
        at = gaps.taken(size)
        assert at == (fits[0] if fits else None)
        if at is not None:
            free[at : at + size] = [False] * size
            taken.append((at, size))
        if taken and choice < 6:
            at, size = taken.pop(choice % len(taken))
            free[at : at + size] = [True] * size
            gaps.add(at, size)
    for at, size in taken:
        gaps.add(at, size)
    assert gaps.taken(40) == 0
    assert gaps.taken(1) is None


# ---- how it ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_error_of_any_ends_all(at: int) -> None:
    pids = Shared(3)

    def work(one: Team) -> None:
        pids[one.rank] = os.getpid()
        one.exchange(None)
        if one.rank == at:
            raise InputError('levels "run out" at α; use fewer')
        one.exchange(None)
        time.sleep(FOREVER_S)

    with pytest.raises(InputError, match=r'^levels "run out" at α; use fewer$'):
        together(work, 3)
    assert all(pids)
    assert not any(running(pid) for pid in list(pids)[1:])


def test_a_process_that_is_killed() -> None:
    """One error in one sentence; the others are ended, the one that sleeps too."""
    pids = Shared(3)

    def work(one: Team) -> None:
        pids[one.rank] = os.getpid()
        if one.rank == 1:
            time.sleep(FOREVER_S)
        if one.rank == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        one.exchange(None)

    with pytest.raises(EngineError) as caught:
        together(work, 3)
    assert str(caught.value).startswith("a worker process died (status -9); ")
    assert "\n" not in str(caught.value)
    assert not running(pids[1])


def test_an_interrupt_ends_all() -> None:
    pids = Shared(2)

    def work(one: Team) -> None:
        pids[one.rank] = os.getpid()
        wait_for(lambda: all(pids))
        if one.rank == 0:
            raise KeyboardInterrupt
        one.exchange(None)

    with pytest.raises(KeyboardInterrupt):
        together(work, 2)
    assert not running(pids[1])


def test_ctrl_c_ends_a_whole_run(tmp_path: Path) -> None:
    """From a terminal, which interrupts parent and children alike: the parent ends them, and says so once."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import signal
            import time
            from secureattn.backends.ckks.team import together

            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background

            def work(team):
                team.exchange(None)
                if team.rank == 0:
                    print("started", flush=True)
                time.sleep({FOREVER_S})

            together(work, 3)
            """
        )
    )
    run = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert run.stdout is not None
        assert run.stdout.readline() == "started\n"
        os.killpg(run.pid, signal.SIGINT)
        _, errors = run.communicate(timeout=30)
        assert errors.count("KeyboardInterrupt") == 1
        with pytest.raises(ProcessLookupError):
            os.killpg(run.pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
