"""Work shared between processes: results and their order, errors, processes that die, what is left when all is over."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secureattn.backends.ckks import processes
from secureattn.backends.ckks.processes import Delivery, Parcel, gathered, portions, shared
from secureattn.errors import CapabilityError, EngineError, InputError, PlanError

pytestmark = pytest.mark.skipif(not processes.available(), reason="processes share work on Linux only")
needs_tenseal = pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="TenSEAL is not installed")

FOREVER_S = 60


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After every test: no child, running or dead, and as many open files as before."""
    before = open_files(), children()
    yield
    processes.settle()
    assert (open_files(), children()) == before


def open_files() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir() if path.exists())


def children() -> set[str]:
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def told(text: str) -> Callable[[], Parcel]:
    return lambda: Parcel([], text)


def closed(deliveries: Sequence[Delivery]) -> list[Any]:
    """Notes; everything given back."""
    for delivery in deliveries:
        delivery.close()
    return [delivery.note for delivery in deliveries]


# ---- results ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", range(8))
@pytest.mark.parametrize("workers", range(1, 6))
def test_portions(items: int, workers: int) -> None:
    made = portions(list(range(items)), workers)
    assert [item for portion in made for item in portion] == list(range(items))
    sizes = [len(portion) for portion in made]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == min(items, workers)
    assert not sizes or (sizes[-1] > 0 and sizes[0] - sizes[-1] <= 1)


@pytest.mark.parametrize("items", [0, 1, 2, 5, 12])
@pytest.mark.parametrize("workers", [1, 2, 3, 5, 16])
def test_gathered_in_order_whatever_the_number_of_processes(items: int, workers: int) -> None:
    found = gathered(lambda i: bytes([i]) * i, list(range(items)), workers)
    assert found == [bytes([i]) * i for i in range(items)]


def test_gathered_by_so_many_processes() -> None:
    pids = gathered(lambda _: os.getpid().to_bytes(8, "little"), list(range(7)), 3)
    assert [len(list(run)) for run in (pids[:3], pids[3:5], pids[5:])] == [3, 2, 2]
    assert [len(set(run)) for run in (pids[:3], pids[3:5], pids[5:])] == [1, 1, 1]
    assert len(set(pids)) == 3
    assert int.from_bytes(pids[0], "little") == os.getpid()


def test_without_processes_it_is_all_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "available", lambda: False)
    assert set(gathered(lambda _: bytes([os.getpid() % 251]), [1, 2, 3], 3)) == {bytes([os.getpid() % 251])}


def test_a_parcel_is_read_in_order() -> None:
    array = np.arange(12, dtype=np.uint64).reshape(3, 4)
    own, (first, second) = shared(
        lambda: "own", [lambda: Parcel([b"ab", array, b"", b"c"], {"x": [1, None]}), told("second")]
    )
    assert own == "own"
    assert first.note == {"x": [1, None]}
    assert first.sizes == [2, 96, 0, 1]
    into = np.zeros_like(array)
    assert first.read_bytes() == b"ab"
    first.read(into)
    assert np.array_equal(into, array)
    assert (first.read_bytes(), first.read_bytes()) == (b"", b"c")
    assert closed([first, second])[1] == "second"


def test_a_buffer_of_another_size_is_refused() -> None:
    _, deliveries = shared(lambda: None, [lambda: Parcel([b"abc"])])
    with pytest.raises(EngineError, match=r"^a worker process sent 3 bytes where 4 were expected$"):
        deliveries[0].read(bytearray(4))
    closed(deliveries)


def test_children_see_what_their_parent_held_and_change_none_of_it() -> None:
    held = np.arange(5)

    def doubled() -> Parcel:
        held[:] *= 2
        return Parcel([held])

    own, (delivery,) = shared(lambda: int(held.sum()), [doubled])
    assert own == 10
    assert np.array_equal(np.frombuffer(delivery.read_bytes(), dtype=held.dtype), 2 * np.arange(5))
    assert np.array_equal(held, np.arange(5))
    delivery.close()


def test_all_run_at_once() -> None:
    """Each waits for the others: one after another they would wait for ever."""
    counter = Shared(4)

    def arrive(at: int) -> None:
        counter[at] = 1
        wait_for(lambda: all(counter[i] for i in range(4)))

    def other(at: int) -> Callable[[], Parcel]:
        return lambda: Parcel([], arrive(at))

    _, deliveries = shared(lambda: arrive(0), [other(i) for i in (1, 2, 3)])
    closed(deliveries)


def test_large_deliveries() -> None:
    """50 MB from each of two children, far more than a pipe holds, before anyone reads."""
    size = 50_000_003

    def filled(salt: int) -> np.ndarray:
        return np.random.default_rng(salt).integers(0, 256, size, dtype=np.uint8)

    def sent(salt: int) -> Callable[[], Parcel]:
        return lambda: Parcel([filled(salt), filled(salt)[:7]], "n" * 200_000)

    _, deliveries = shared(lambda: None, [sent(1), sent(2)])
    for salt, delivery in enumerate(deliveries, 1):
        assert delivery.note == "n" * 200_000
        into = np.empty(size, dtype=np.uint8)
        delivery.read(into)
        assert np.array_equal(into, filled(salt))
        assert delivery.read_bytes() == filled(salt)[:7].tobytes()
        delivery.close()


def test_who_has_delivered_is_gone_once_settled() -> None:
    """Delivered before it is gone: whoever waits for that, waits; whoever shares next, does not."""
    before = children()
    _, deliveries = shared(lambda: None, [told("one"), told("two")])
    assert closed(deliveries) == ["one", "two"]
    assert len(processes._leaving) == 2
    processes.settle()
    assert children() == before
    assert not processes._leaving
    processes.settle()


def test_memory_is_written_over_and_given_back_once_settled() -> None:
    """A longer delivery, then a shorter one in the same file: nothing of the first is read."""
    found, handles = [], []
    for content in (b"long and old", b"new"):
        _, (delivery,) = shared(lambda: None, [lambda content=content: Parcel([content])])
        handles.append(delivery.handle)
        found.append(delivery.read_bytes())
        delivery.close()
        delivery.close()  # once is enough, and twice would give it to two
    assert found == [b"long and old", b"new"]
    assert handles[0] == handles[1]
    assert processes._spare == handles[:1]
    processes.settle()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handles[0])


def test_settling_what_another_thread_has_waited_for() -> None:
    _, deliveries = shared(lambda: None, [told("one")])
    closed(deliveries)
    (pid,) = processes._leaving
    os.waitpid(pid, 0)
    processes.settle()
    assert not processes._leaving


def test_a_report_that_is_cut_short_is_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = processes._write

    def half(handle: int, buffer: Any) -> int:
        if bytes(buffer).startswith(b"{"):
            whole(handle, bytes(buffer)[:5])
            os._exit(7)
        return whole(handle, buffer)

    monkeypatch.setattr(processes, "_write", half)
    with pytest.raises(EngineError, match=r"^a worker process died \(status 7\); "):
        shared(lambda: None, [told("all of it")])


# ---- errors -----------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[[], Parcel]:
    def job() -> Parcel:
        raise error

    return job


@pytest.mark.parametrize("kind", [InputError, PlanError, CapabilityError, EngineError])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_errors_of_a_child_reach_the_parent_as_they_are(kind: type[Exception], at: int) -> None:
    jobs = [told("fine"), told("fine"), told("fine")]
    jobs[at] = raising(kind('levels "run out" at α; use fewer'))
    with pytest.raises(kind) as caught:
        shared(lambda: None, jobs)
    assert type(caught.value) is kind
    assert str(caught.value) == 'levels "run out" at α; use fewer'


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_other_errors_are_named(error: BaseException) -> None:
    with pytest.raises(EngineError) as caught:
        shared(lambda: None, [raising(error)])
    assert str(caught.value) == f"a worker process failed: {type(error).__name__}: {error}"


def test_a_note_that_is_no_json_is_an_error_and_no_hang() -> None:
    with pytest.raises(EngineError, match="a worker process"):
        shared(lambda: None, [lambda: Parcel([], object())])


def test_errors_while_gathering() -> None:
    def compute(item: int) -> bytes:
        if item == 4:
            raise InputError("item 4 is damaged")
        return b"fine"

    for workers in (1, 2, 5):
        with pytest.raises(InputError, match=r"^item 4 is damaged$"):
            gathered(compute, list(range(5)), workers)


def test_a_child_that_is_killed() -> None:
    """One error in one sentence; the others are ended."""
    pids = Shared(1)

    def killed() -> Parcel:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with pytest.raises(EngineError) as caught:
        shared(lambda: wait_for(lambda: pids[0] != 0), [killed, sleeping(pids, 0)])
    assert str(caught.value).startswith("a worker process died (status -9); ")
    assert "\n" not in str(caught.value)
    assert not running(pids[0])


def test_a_child_that_exits_by_itself() -> None:
    with pytest.raises(EngineError, match=r"^a worker process died \(status 0\); "):
        shared(lambda: None, [lambda: os._exit(0)])  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError])
def test_an_error_of_the_parent_ends_its_children(error: type[BaseException]) -> None:
    pids = Shared(2)

    def own() -> None:
        wait_for(lambda: pids[0] != 0 and pids[1] != 0)
        raise error

    with pytest.raises(error):
        shared(own, [sleeping(pids, 0), sleeping(pids, 1)])
    assert not running(pids[0])
    assert not running(pids[1])


def test_ctrl_c_ends_a_whole_run(tmp_path: Path) -> None:
    """From a terminal, which interrupts parent and children alike: the parent ends them, and says so once."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import signal
            import time
            from secureattn.backends.ckks.processes import Parcel, shared

            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background

            def sleep():
                time.sleep({FOREVER_S})
                return Parcel([])

            def own():
                print("started", flush=True)
                time.sleep({FOREVER_S})

            shared(own, [sleep, sleep])
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


# ---- randomness -------------------------------------------------------------------------------------------------


def test_the_systems_randomness_is_each_processs_own() -> None:
    drawn = gathered(lambda _: os.urandom(16), list(range(8)), 4)
    assert len({*drawn, os.urandom(16)}) == 9


@needs_tenseal
def test_what_processes_encrypt_and_mask_never_repeats() -> None:
    """Forks hold their parent's generators. The same ciphertext re-randomised, masked, encrypted: all different."""
    from secureattn.backends.ckks.evaluator import SealEvaluator
    from secureattn.backends.ckks.keys import KeyOwner
    from secureattn.backends.ckks.parameters import chain

    parameters = chain(1 << 13, 1)
    owner = KeyOwner.generate(parameters, ())
    assert owner.evaluation_keys is not None
    device = SealEvaluator(parameters, owner.evaluation_keys)
    x = np.linspace(-1, 1, parameters.slots)
    ct = device.load(owner.encrypt(x))
    device.rerandomise(ct)  # generators have been used before
    made: dict[str, Callable[[int], bytes]] = {
        "rerandomised": lambda _: np.array(device.residues(device.rerandomise(ct))[1]).tobytes(),
        "zero": lambda _: np.array(device.residues(device.sub(ct, ct))[1]).tobytes(),
        "masks": lambda _: device.draw_mask(ct.scale).element.high.tobytes(),
        "symmetric": lambda _: owner.encrypt(x),
    }
    for name, compute in made.items():
        pieces = gathered(compute, list(range(6)), 3)
        assert len(set(pieces)) == 6, name
        if name != "symmetric":  # and no word of them in common but by chance
            words = np.stack([np.frombuffer(piece, dtype=np.uint64) for piece in pieces])
            same = (words[:, None] == words[None]).mean(axis=-1)[np.triu_indices(6, 1)]
            assert same.max() < 1e-3, name


# ---- children that report through memory ------------------------------------------------------------------------


class Shared:
    """Words that forks see as well."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._words = (ctypes.c_int64 * count).from_buffer(self._memory)

    def __getitem__(self, at: int) -> int:
        return self._words[at]

    def __setitem__(self, at: int, value: int) -> None:
        self._words[at] = value


def sleeping(pids: Shared, at: int) -> Callable[[], Parcel]:
    """A child that says who it is and sleeps."""

    def job() -> Parcel:
        pids[at] = os.getpid()
        time.sleep(FOREVER_S)
        return Parcel([])

    return job


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit, "nothing happened for 30 seconds"
        time.sleep(0.002)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
