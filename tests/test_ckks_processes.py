"""Children: what is said and how it ends; pools: results and their order, errors, what is left when all is over."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked import FOREVER_S, Shared, children, open_files, wait_for

from secureattn.backends.ckks import processes
from secureattn.backends.ckks.processes import Child, Link, Pool, collected, portions
from secureattn.errors import CapabilityError, EngineError, InputError, PlanError

pytestmark = pytest.mark.skipif(not processes.available(), reason="processes share work on Linux only")
needs_tenseal = pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="TenSEAL is not installed")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After every test: no child, running or dead, and as many open files as before."""
    before = open_files(), children()
    yield
    assert (open_files(), children()) == before


@pytest.fixture
def child() -> Iterator[Callable[[Callable[[Link], object]], Child]]:
    """Children, ended after the test."""
    made: list[Child] = []

    def fork(work: Callable[[Link], object]) -> Child:
        made.append(Child(work, made))
        return made[-1]

    yield fork
    for one in made:
        one.end()
        one.end()  # once is enough


Fork = Callable[[Callable[[Link], object]], Child]


@pytest.mark.parametrize("items", range(8))
@pytest.mark.parametrize("workers", range(1, 6))
def test_portions(items: int, workers: int) -> None:
    made = portions(list(range(items)), workers)
    assert [item for portion in made for item in portion] == list(range(items))
    sizes = [len(portion) for portion in made]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == min(items, workers)
    assert not sizes or (sizes[-1] > 0 and sizes[0] - sizes[-1] <= 1)


# ---- what is said -----------------------------------------------------------------------------------------------


def echo(link: Link) -> None:
    while True:
        link.send(*link.receive())


def test_what_is_sent_comes_back(child: Fork) -> None:
    """Notes with floats to the last bit, bytes of any length, more than a pipe holds."""
    echoing = child(echo)
    large = np.random.default_rng(0).bytes(5_000_003)
    for message in ((None, []), ({"x": [1, 2.0**-1074, 1 / 3, "α"]}, [b""]), ("n" * 300_000, [b"ab", large, b""])):
        echoing.send(*message)
        assert echoing.receive() == message


def test_children_see_what_their_parent_held_and_change_none_of_it(child: Fork) -> None:
    held = np.arange(5)

    def doubled(link: Link) -> None:
        held[:] *= 2
        link.send(held.tolist())

    assert child(doubled).receive() == ([0, 2, 4, 6, 8], [])
    assert np.array_equal(held, np.arange(5))


def test_messages_are_read_as_they_come_and_given_in_order(child: Fork) -> None:
    """The first child speaks once the last has been heard."""
    heard = Shared(1)

    def last(link: Link) -> None:
        wait_for(lambda: heard[0] == 1)
        link.send("late")

    class Hearing(Child):
        def receive(self) -> processes.Message:
            heard[0] = 1
            return super().receive()

    late = child(last)
    early = Hearing(lambda link: link.send("early"), [late])
    assert [note for note, _ in collected([late, early])] == ["late", "early"]
    early.end()


# ---- how it ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [InputError, PlanError, CapabilityError, EngineError])
def test_errors_of_a_child_reach_the_parent_as_they_are(child: Fork, kind: type[Exception]) -> None:
    def failing(_: Link) -> None:
        raise kind('levels "run out" at α; use fewer')

    with pytest.raises(kind) as caught:
        child(failing).receive()
    assert type(caught.value) is kind
    assert str(caught.value) == 'levels "run out" at α; use fewer'


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_other_errors_are_named(child: Fork, error: BaseException) -> None:
    def failing(_: Link) -> None:
        raise error

    with pytest.raises(EngineError) as caught:
        child(failing).receive()
    assert str(caught.value) == f"a worker process failed: {type(error).__name__}: {error}"


def test_a_note_that_is_no_json_is_an_error_and_no_hang(child: Fork) -> None:
    with pytest.raises(EngineError, match=r"^a worker process failed: TypeError: "):
        child(lambda link: link.send(object())).receive()


@pytest.mark.parametrize("status", [0, 7])
def test_a_child_that_exits_by_itself(child: Fork, status: int) -> None:
    with pytest.raises(EngineError, match=rf"^a worker process died \(status {status}\); "):
        child(lambda _: os._exit(status)).receive()


def test_a_child_that_is_killed_in_the_middle_of_a_word(child: Fork) -> None:
    """One error in one sentence."""

    def killed(link: Link) -> None:
        os.write(link.way.fileno(), b"\0\0\0\x20half of it")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(EngineError) as caught:
        child(killed).receive()
    assert str(caught.value).startswith("a worker process died (status -9); ")
    assert "\n" not in str(caught.value)


def test_telling_a_child_that_has_failed_says_why(child: Fork) -> None:
    def failing(_: Link) -> None:
        raise InputError("item 4 is damaged")

    one = child(failing)
    wait_for(lambda: one.link.way.poll())  # it has said so, and ends
    wait_for(lambda: not alive(one.pid))
    with pytest.raises(InputError, match=r"^item 4 is damaged$"):
        one.send(None, [bytes(5_000_000)])


def test_a_death_is_heard_while_another_is_busy(child: Fork) -> None:
    sleeping, dead = child(lambda _: time.sleep(FOREVER_S)), child(lambda _: os._exit(3))
    with pytest.raises(EngineError, match=r"^a worker process died \(status 3\); "):
        collected([sleeping, dead])


def test_children_end_with_their_parent(child: Fork) -> None:
    """Killed, it can end nobody; each child hears of it, though siblings know of its link."""
    pids = Shared(3)

    def parent(_: Link) -> None:
        made: list[Child] = []
        for at in range(2):

            def listening(link: Link, at: int = at) -> None:
                pids[at] = os.getpid()
                link.receive()

            made.append(Child(listening, made))
        wait_for(lambda: pids[0] and pids[1])
        pids[2] = 1
        os.kill(os.getpid(), signal.SIGKILL)

    child(parent)
    wait_for(lambda: pids[2] == 1)
    wait_for(lambda: not any(alive(pids[at]) for at in range(2)))


def alive(pid: int) -> bool:
    """Running, and not waiting for a parent to hear that it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- pools ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [0, 1, 2, 5, 12])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_pools_answer_in_order_whatever_the_number_of_processes(items: int, workers: int) -> None:
    with closing(Pool(lambda blob, note: blob * note, workers)) as pool:
        for _ in range(3):
            found = pool.map([bytes([i]) for i in range(items)], list(range(items)))
            assert found == [bytes([i]) * i for i in range(items)]


def test_pools_have_so_many_processes_for_all_their_life() -> None:
    with closing(Pool(lambda *_: os.getpid().to_bytes(8, "little"), 3)) as pool:
        pids = pool.map([b""] * 7, [None] * 7)
        assert [len(set(run)) for run in (pids[:3], pids[3:5], pids[5:])] == [1, 1, 1]
        assert len(set(pids)) == 3
        assert int.from_bytes(pids[0], "little") == os.getpid()
        assert pool.map([b""] * 7, [None] * 7) == pids


def test_without_processes_it_is_all_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "available", lambda: False)
    with closing(Pool(lambda *_: bytes([os.getpid() % 251]), 3)) as pool:
        assert set(pool.map([b""] * 3, [None] * 3)) == {bytes([os.getpid() % 251])}


def test_large_questions_and_answers() -> None:
    """50 MB to each of two processes and back, far more than a pipe holds."""
    blobs = [np.random.default_rng(salt).bytes(50_000_003) for salt in range(2)]
    with closing(Pool(lambda blob, note: blob[::-1] + note.encode(), 2)) as pool:
        assert pool.map(blobs, ["a", "b"]) == [blobs[0][::-1] + b"a", blobs[1][::-1] + b"b"]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_errors_of_any_process_of_a_pool(workers: int) -> None:
    def compute(_: bytes, item: Any) -> bytes:
        if item == 4:
            raise InputError("item 4 is damaged")
        return b"fine"

    with closing(Pool(compute, workers)) as pool, pytest.raises(InputError, match=r"^item 4 is damaged$"):
        pool.map([b""] * 5, list(range(5)))


def test_threads_have_a_pool_in_turn() -> None:
    """What one asks is never answered to another, nor torn: blobs are larger than a pipe holds."""

    def ask(name: int) -> bool:
        blobs = [bytes([name, i]) * 50_000 for i in range(5)]
        return all(pool.map(blobs, range(5)) == [blob + b"!" * i for i, blob in enumerate(blobs)] for _ in range(20))

    with closing(Pool(lambda blob, note: blob + b"!" * note, 3)) as pool, ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == [True] * 8


# ---- randomness -------------------------------------------------------------------------------------------------


def test_the_systems_randomness_is_each_processs_own() -> None:
    with closing(Pool(lambda *_: os.urandom(16), 4)) as pool:
        assert len({*pool.map([b""] * 8, [None] * 8), os.urandom(16)}) == 9


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
    made: dict[str, Callable[[], bytes]] = {
        "rerandomised": lambda: np.array(device.residues(device.rerandomise(ct))[1]).tobytes(),
        "zero": lambda: np.array(device.residues(device.sub(ct, ct))[1]).tobytes(),
        "masks": lambda: device.draw_mask(ct.scale).element.high.tobytes(),
        "symmetric": lambda: owner.encrypt(x),
    }
    with closing(Pool(lambda _, name: made[name](), 3)) as pool:
        for name in made:
            pieces = pool.map([b""] * 6, [name] * 6)
            assert len(set(pieces)) == 6, name
            if name != "symmetric":  # and no word of them in common but by chance
                words = np.stack([np.frombuffer(piece, dtype=np.uint64) for piece in pieces])
                same = (words[:, None] == words[None]).mean(axis=-1)[np.triu_indices(6, 1)]
                assert same.max() < 1e-3, name
