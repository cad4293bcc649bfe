"""A query of several batches: jobs side by side on the workers of a real server, one progress, one failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from helpers import assert_close
from service import NOISE, SAMPLES, Running, Small, running, small

pytest.importorskip("tenseal")
pytest.importorskip("fastapi")

from watching import Watched

from secureattn.deploy.connection import Connection, Refused
from secureattn.deploy.owner import Owner
from secureattn.deploy.side_by_side import Side, side_by_side
from secureattn.errors import EngineError

Told = list[tuple[str, int, int]]


# ---- jobs of any kind -------------------------------------------------------------------------------------------


def test_as_many_at_once_as_there_is_room_for_and_in_order() -> None:
    """Room grows from two to three: two, then three jobs wait for each other, and would wait in vain with less."""
    room, two, three = [2], threading.Barrier(2), threading.Barrier(3)

    def do(side: Side) -> int:
        if side.number < 2:
            two.wait(30)
            room[0] = 3
        else:
            three.wait(30)
        return 10 * side.number

    assert side_by_side(5, do, width=lambda: room[0], tell=lambda *_: None) == [0, 10, 20, 30, 40]


def test_no_more_at_once_than_there_is_room_for() -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def do(side: Side) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        side.over.wait(0.02)
        with lock:
            now[0] -= 1

    side_by_side(7, do, width=lambda: 2, tell=lambda *_: None)
    assert most == [2]
    side_by_side(3, do, width=lambda: 0, tell=lambda *_: None)  # no worker has come up yet


def test_where_one_fails_the_others_are_cancelled_and_none_is_begun() -> None:
    """Cancelled while they run; what they say of it is not what is raised."""
    begun, cancelled, both = list[int](), list[int](), threading.Barrier(2)

    def do(side: Side) -> None:
        begun.append(side.number)
        side.cancel = lambda: cancelled.append(side.number)
        both.wait(30)
        if side.number == 1:
            raise EngineError("the second is lost")
        assert side.over.wait(30)
        raise EngineError("cancelled")

    with pytest.raises(EngineError, match=r"^the second is lost$"):
        side_by_side(5, do, width=lambda: 2, tell=lambda *_: None)
    assert sorted(begun) == [0, 1]
    assert cancelled == [0]


def test_progress_is_of_all_together() -> None:
    told: Told = []

    def do(side: Side) -> None:
        assert not side.accompanied
        side.tell("evaluating", 1, 4)
        side.tell("evaluating", 4, 4)

    side_by_side(2, do, width=lambda: 1, tell=lambda *one: told.append(one))
    assert told == [
        ("0 of 2 batches done, 1 at the server", 25, 200),
        ("0 of 2 batches done, 1 at the server", 100, 200),
        ("1 of 2 batches done, 1 at the server", 125, 200),
        ("1 of 2 batches done, 1 at the server", 200, 200),
    ]


def test_one_alone_is_told_of_as_it_is() -> None:
    told: Told = []

    def do(side: Side) -> threading.Thread:
        side.tell("waiting, 3 jobs before this one", 0, 0)
        return threading.current_thread()

    def width() -> int:
        raise AssertionError("nobody asks how much room there is for one")

    assert side_by_side(1, do, width=width, tell=lambda *one: told.append(one)) == [threading.main_thread()]
    assert told == [("waiting, 3 jobs before this one", 0, 0)]


# ---- batches at a server ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def owner(of: Small) -> Iterator[Owner]:
    made = Owner.generate(of.offer, of.folder / "keys", workers=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(of: Small) -> Iterator[Running]:
    with running(of, "--jobs", 2, "--waiting", 3) as found, httpx2.Client(base_url=found.url) as client:
        while client.get("/health").json()["workers"] < 2:
            time.sleep(0.05)
        yield found


def jobs_of(server: Running) -> Any:
    return httpx2.get(f"{server.url}/v1/jobs").json()


@pytest.mark.slow
def test_one_that_fails_is_told_of_once_and_leaves_no_job(of: Small, server: Running, owner: Owner) -> None:
    """Both run and wait for an answer when one is cancelled at the server: the other is, and no third is begun."""
    both = threading.Barrier(2)

    def asked(path: str) -> None:
        both.wait(60)
        if path == connection.jobs[0]:
            assert httpx2.delete(server.url + path).status_code == 204

    with Watched(server.url, asked=asked) as connection:
        connection.give_keys(owner)
        with pytest.raises(EngineError, match=r"could not do it: the job was cancelled$"):
            connection.infer(owner, of.inputs(2, 4 * SAMPLES))
    assert len(connection.jobs) == 2
    assert jobs_of(server) == []


@pytest.mark.slow
def test_where_the_server_takes_no_more_it_waits_for_its_own(
    of: Small, server: Running, owner: Owner, tmp_path: Path
) -> None:
    """Others of this client hold both workers, so one batch is taken and the next refused until they are gone."""
    inputs, refusals, others = of.inputs(3, 2 * SAMPLES), list[int](), []

    class Hasty(Connection):
        def _put(self, path: str, *more: Any) -> None:
            try:
                super()._put(path, *more)
            except Refused as refused:
                refusals.append(refused.status)
                while others:
                    httpx2.delete(server.url + others.pop())
                raise

    with Hasty(server.url, patience_s=0.5) as connection:
        connection.give_keys(owner)
        owner.encrypt(of.inputs(4), tmp_path / "query")
        for number in range(2):
            path = f"/v1/jobs/00000000-0000-0000-0000-00000000000{number}"
            connection._put(path, tmp_path / "query", "")
            others.append(path)
        found = connection.infer(owner, inputs)
    assert set(refusals) == {429}
    for job in jobs_of(server):
        httpx2.delete(f"{server.url}/v1/jobs/{job['job']}")
    assert_close(found, of.clear(inputs), NOISE, "noise of a scale of 2^30")


@pytest.mark.slow
def test_an_input_of_its_own_is_a_batch_of_one(of: Small, server: Running, owner: Owner) -> None:
    (inputs,) = of.inputs(5, 1)
    with Connection(server.url) as connection:
        connection.give_keys(owner)
        found = connection.infer(owner, inputs)
    assert_close(found, of.clear(inputs[None]), NOISE, "noise of a scale of 2^30")


def test_threads_may_share_an_owner(of: Small, owner: Owner) -> None:
    """Eight threads encrypt and decrypt in turns no one has ordered; every value comes back to who sent it."""
    key, scale = owner.client.owner, of.offer.terms.parameters.scales[-1]
    together, values = threading.Barrier(8), np.random.default_rng(0).uniform(-1, 1, (8, 16))

    def do(side: Side) -> float:
        together.wait(30)
        errors = [key.decrypt(key.encrypt(values[side.number], scale=scale))[:16] for _ in range(5)]
        return float(np.abs(errors - values[side.number]).max())

    assert max(side_by_side(8, do, width=lambda: 8, tell=lambda *_: None)) < 1e-4
