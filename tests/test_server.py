"""Encrypted inference over HTTP: real server processes, real clients, and whatever may befall either."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import failed
from helpers import assert_close
from service import NOISE, SAMPLES, Running, Small, free_port, running, small

pytest.importorskip("tenseal")
pytest.importorskip("fastapi")

import httpx2
from watching import Watched

from secureattn.deploy.connection import Connection, Refused
from secureattn.deploy.offer import read_offer
from secureattn.deploy.owner import EVALUATOR, Owner
from secureattn.deploy.server.serving import Place, loopback
from secureattn.deploy.server.tokens import Tokens, add
from secureattn.errors import EngineError, InputError
from secureattn.runs import execute

BODY = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def owner(of: Small) -> Iterator[Owner]:
    made = Owner.generate(of.offer, of.folder / "keys")
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokens(of: Small) -> dict[str, str]:
    file = of.folder / "tokens"
    return {name: add(file, name) for name in ("ann", "bob", "cat")}


@pytest.fixture(scope="module")
def server(of: Small, tokens: dict[str, str]) -> Iterator[Running]:
    limits = ("--jobs", 2, "--waiting", 3, "--key-sets", 4, "--answer-time", 30)
    with running(of, "--tokens-file", of.folder / "tokens", *limits) as found:
        yield found


@pytest.fixture(scope="module")
def plain(of: Small, owner: Owner) -> Iterator[Running]:
    """A server of one worker, open to all, that has the owner's keys."""
    with running(of) as found:
        give_keys(found, "", owner)
        yield found


@pytest.fixture
def ann(server: Running, tokens: dict[str, str]) -> Iterator[httpx2.Client]:
    with http(server, tokens["ann"]) as client:
        yield client


def http(server: Running, token: str = "") -> httpx2.Client:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx2.Client(base_url=server.url, headers=headers, timeout=60)


def query_file(of: Small, owner: Owner, seed: int) -> Path:
    path = of.folder / f"query-{seed}"
    owner.encrypt(of.inputs(seed), path)
    return path


def put_job(client: httpx2.Client, query: Path) -> str:
    job = str(uuid.uuid4())
    answer = client.put(f"/v1/jobs/{job}", content=query.read_bytes(), headers=BODY)
    assert answer.status_code == 200, answer.text
    return job


def give_keys(server: Running, token: str, owner: Owner) -> None:
    with Connection(server.url, token=token) as connection:
        connection.give_keys(owner)


def wait_for(client: httpx2.Client, job: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        told: dict[str, Any] = client.get(f"/v1/jobs/{job}").json()
        if wanted(told):
            return told
        time.sleep(0.02)
    raise AssertionError(f"not within a minute: {told}")


# ---- clients and servers ----------------------------------------------------------------------------------------


def test_three_clients_at_once(
    of: Small, server: Running, tokens: dict[str, str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Each a process with keys and inputs of its own, the third with more inputs than a query holds."""
    (tmp_path / "token").write_text(tokens["ann"])
    (tmp_path / "token-of-bob").write_text(tokens["bob"])
    inputs = [of.inputs(seed, count) for seed, count in ((1, SAMPLES), (2, 1), (3, SAMPLES + 1))]
    started = []
    for i, values in enumerate(inputs):
        np.save(tmp_path / f"{i}.npy", values)
        command = [sys.executable, "-m", "secureattn.cli", "query", server.url, f"{i}.npy", "--keys", f"keys-{i}"]
        command += ["--token-file", "token" if i < 2 else "token-of-bob", "-o", f"{i}.json"]
        started.append(
            subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    off = []
    for i, (process, values) in enumerate(zip(started, inputs, strict=True)):
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "128 bits secure" in out
        found = json.loads((tmp_path / f"{i}.json").read_text())
        assert_close(np.array(found["scores"]), of.clear(values), NOISE, "noise of a scale of 2^30")
        off.append(float(np.abs(np.array(found["scores"]) - of.clear(values)).max()))
        assert found["classes"] == of.clear(values).argmax(-1).tolist()
        assert oct((tmp_path / f"keys-{i}" / "secret.key").stat().st_mode)[-3:] == "600"
    record_property("clients", len(off))
    record_property("largest_error", max(off))


def test_batches_of_one_query_run_on_both_workers_at_once(
    of: Small, server: Running, tokens: dict[str, str], owner: Owner
) -> None:
    """Neither answers its first refresh before the other is asked as well."""
    inputs, told, both = of.inputs(20, 2 * SAMPLES - 1), list[tuple[str, int, int]](), threading.Barrier(2)
    watched = Watched(
        server.url,
        token=tokens["ann"],
        asked=lambda _: both.wait(60),
        progress=lambda *one: told.append(one),
    )
    with watched as connection:
        connection.give_keys(owner)
        found = connection.infer(owner, inputs)
    assert_close(found, of.clear(inputs), NOISE, "noise of a scale of 2^30")
    said = [(done, of) for text, done, of in told if text.endswith(" batches done, 2 at the server")]
    assert {of for _, of in said} == {200}
    assert all(0 <= done <= 200 for done, _ in said)


def test_results_are_those_of_a_run_in_one_process(
    of: Small, server: Running, tokens: dict[str, str], owner: Owner
) -> None:
    inputs = of.inputs(4)
    with Connection(server.url, token=tokens["ann"]) as connection:
        assert connection.offer() == read_offer(of.plan_file)
        connection.give_keys(owner)
        found = connection.infer(owner, inputs)
        assert connection._json("GET", "/v1/keys/" + owner.keys)["parts"] == ["public", "evaluation"]
    with http(server, tokens["ann"]) as client:
        assert client.get("/v1/jobs").json() == []  # a job that was fetched is forgotten
    assert_close(found, execute(of.plan, inputs).outputs, 2 * NOISE, "two encrypted runs, each with its own noise")
    assert_close(found, of.clear(inputs), NOISE, "noise of a scale of 2^30")


def test_the_process_that_listens_loads_no_engine(server: Running) -> None:
    """What clients send meets SEAL in a worker alone."""

    def maps(pid: int) -> str:
        return Path(f"/proc/{pid}/maps").read_text()

    assert "sealapi" not in maps(server.process.pid)
    assert all("sealapi" in maps(pid) for pid in server.workers())


@pytest.mark.parametrize("kept", [True, False], ids=["state kept", "state lost"])
def test_a_server_killed_in_the_middle(of: Small, owner: Owner, tmp_path: Path, kept: bool) -> None:
    """With its state kept the job is begun again and the result is right; without, the client hears that it is lost."""
    port, inputs = free_port(), of.inputs(5)
    asked, killed = threading.Event(), threading.Event()
    state = ("--state", tmp_path) if kept else ()
    outcome: dict[str, Any] = {}

    class Slow(Connection):
        def _answer(self, *arguments: Any) -> None:
            super()._answer(*arguments)
            if not asked.is_set():
                asked.set()
                assert killed.wait(60)  # in the middle of an evaluation

    def infer(url: str) -> None:
        try:
            with Slow(url, patience_s=60) as connection:
                connection.give_keys(owner)
                outcome["scores"] = connection.infer(owner, inputs)
        except EngineError as error:
            outcome["error"] = str(error)

    with running(of, *state, port=port) as first:
        client = threading.Thread(target=infer, args=(first.url,))
        client.start()
        assert asked.wait(60)
        first.end(signal.SIGKILL)
        killed.set()
        with running(of, *state, port=port):
            client.join(120)
    assert not client.is_alive()
    if kept:
        assert_close(outcome["scores"], of.clear(inputs), NOISE, "begun again, with the same inputs")
    else:
        assert "scores" not in outcome
        assert "the server forgets those that are long over: send it again" in outcome["error"]


def test_a_worker_that_dies_is_replaced_and_its_job_begun_again(of: Small, owner: Owner, plain: Running) -> None:
    """Once; where it dies each time, the client hears of it."""
    with http(plain) as client:
        before = worker_deaths(client)
        job = put_job(client, query_file(of, owner, 6))
        wait_for(client, job, lambda told: told["round"] == 1)
        (worker,) = plain.workers()
        os.kill(worker, signal.SIGKILL)
        again = wait_for(client, job, lambda told: told["tries"] == 2 and told["round"] == 1)
        assert again["state"] == "running"
        (worker,) = plain.workers()
        os.kill(worker, signal.SIGKILL)
        failed = wait_for(client, job, lambda told: told["state"] == "failed")
        assert "its process died 2 times; memory may have run out" in failed["error"]
        assert worker_deaths(client) - before == 2
    with Connection(plain.url) as connection:
        found = connection.infer(owner, of.inputs(6))
    assert_close(found, of.clear(of.inputs(6)), NOISE, "by another worker")


def worker_deaths(client: httpx2.Client) -> float:
    found = re.search(r"^secureattn_worker_deaths_total (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_workers_that_die_between_jobs_are_replaced_at_once(of: Small, owner: Owner, plain: Running) -> None:
    """No job has to meet them first, and none pays for it with a try."""
    (killed,) = plain.workers()
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while killed in plain.workers() and time.monotonic() < deadline:
        time.sleep(0.05)
    with http(plain) as client:
        job = put_job(client, query_file(of, owner, 17))
        assert wait_for(client, job, lambda told: told["round"] == 1)["tries"] == 1
        assert client.delete(f"/v1/jobs/{job}").status_code == 204


def test_a_server_that_is_told_to_end_loses_nothing(of: Small, owner: Owner, tmp_path: Path) -> None:
    """What runs is finished, what waits is done after the next start, and meanwhile no job is taken."""
    port, seeds, found = free_port(), (7, 8), {}

    def infer(seed: int) -> None:
        with Connection(f"http://127.0.0.1:{port}", patience_s=90) as connection:
            found[seed] = connection.infer(owner, of.inputs(seed))

    with running(of, "--state", tmp_path, port=port) as server, http(server) as client:
        give_keys(server, "", owner)
        job = put_job(client, query_file(of, owner, 9))
        wait_for(client, job, lambda told: told["round"] == 1)
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(infer, seed) for seed in seeds]
            deadline = time.monotonic() + 30
            while len(client.get("/v1/jobs").json()) < 3 and time.monotonic() < deadline:
                time.sleep(0.05)
            server.process.send_signal(signal.SIGTERM)
            while not client.get("/health").json()["draining"]:
                time.sleep(0.05)
            refused = client.put(f"/v1/jobs/{uuid.uuid4()}", content=b"x", headers=BODY)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
            answer_all(client, owner, job, tmp_path)
            assert client.get(f"/v1/jobs/{job}").json()["state"] == "done"
            result = client.get(f"/v1/jobs/{job}/result").content
            assert (
                client.delete(f"/v1/jobs/{job}").status_code == 204
            )  # it was waited for, and is there: now it may end
            assert server.process.wait(60) == 0
            with running(of, "--state", tmp_path, port=port):
                for one in waiting:
                    one.result(90)
    (tmp_path / "result").write_bytes(result)
    assert_close(owner.decrypt(tmp_path / "result"), of.clear(of.inputs(9)), NOISE, "finished before the end")
    for seed in seeds:
        assert_close(found[seed], of.clear(of.inputs(seed)), NOISE, "done after the restart")


def answer_all(client: httpx2.Client, owner: Owner, job: str, folder: Path) -> None:
    while True:
        told = client.get(f"/v1/jobs/{job}").json()
        if told["state"] not in ("queued", "running"):
            return
        if told["round"] is None:
            time.sleep(0.02)
            continue
        path = f"/v1/jobs/{job}/rounds/{told['round']}"
        (folder / "request").write_bytes(client.get(path).content)
        owner.answer(folder / "request", folder / "answer")
        assert client.put(path, content=(folder / "answer").read_bytes(), headers=BODY).status_code == 204


# ---- shared slots -----------------------------------------------------------------------------------------------


def test_small_queries_under_the_same_keys_share_an_evaluation(of: Small, owner: Owner, tmp_path: Path) -> None:
    """Three of one input each for two slots, under the same keys, and one under others: three evaluations for four."""
    seeds = (21, 22, 23)
    other = Owner.generate(of.offer, tmp_path / "other")
    with running(of, "--share", 2) as server, http(server) as client:

        def infer(who: Owner, seed: int) -> Any:
            with Connection(server.url) as connection:
                return connection.infer(who, of.inputs(seed, 1), share=True)

        for who in (owner, other):
            give_keys(server, "", who)
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(infer, owner, seed) for seed in seeds]
            alone = pool.submit(infer, other, 24)
            for seed, one in zip(seeds, asked, strict=True):
                assert_close(one.result(90), of.clear(of.inputs(seed, 1)), NOISE, "its own row of what was shared")
            assert_close(alone.result(90), of.clear(of.inputs(24, 1)), NOISE, "with a public input beside it")
        said = client.get("/metrics").text
        assert 'jobs_ended_total{state="done"} 4.0' in said
        assert "secureattn_job_seconds_count 3.0" in said
    other.close()


def test_who_leaves_shared_slots_leaves_the_others_there(of: Small, owner: Owner, tmp_path: Path) -> None:
    with running(of, "--share", 5) as server, http(server) as client:
        give_keys(server, "", owner)
        jobs, places = [], []
        for seed in (25, 26):
            place = client.post(f"/v1/places/{owner.keys}?samples=1").json()
            owner.encrypt(of.inputs(seed, 1), tmp_path / "query", place=(place["group"], place["offset"]))
            jobs.append(put_job(client, tmp_path / "query"))
            places.append(place)
        assert places[0]["group"] == places[1]["group"]
        assert [place["offset"] for place in places] == [0, 1]
        wait_for(client, jobs[1], lambda told: told["round"] == 1)
        again = client.put(f"/v1/jobs/{uuid.uuid4()}", content=(tmp_path / "query").read_bytes(), headers=BODY)
        assert again.json() == {"error": "that place among the slots is gone; ask for another and encrypt for it"}
        assert client.get(f"/v1/jobs/{jobs[0]}").json()["round"] == 1
        assert client.delete(f"/v1/jobs/{jobs[0]}").status_code == 204
        assert client.get(f"/v1/jobs/{jobs[0]}").json()["state"] == "cancelled"
        answer_all(client, owner, jobs[1], tmp_path)
        (tmp_path / "result").write_bytes(client.get(f"/v1/jobs/{jobs[1]}/result").content)
    assert_close(owner.decrypt(tmp_path / "result")[1:2], of.clear(of.inputs(26, 1)), NOISE, "who stayed")


def test_places_that_are_none(
    of: Small, server: Running, tokens: dict[str, str], owner: Owner, ann: httpx2.Client
) -> None:
    """Where slots are not shared, for keys that are not there, and in files that say what no server gave them."""
    give_keys(server, tokens["ann"], owner)
    path = f"/v1/places/{owner.keys}"
    assert ann.post(f"{path}?samples=1").json()["error"] == "slots are not shared here; send a query of its own"
    for group, offset in (("x", 0), ("0" * 32, -1), ("0" * 32, SAMPLES)):
        with pytest.raises(InputError, match="says a place among the slots that is none"):
            owner.encrypt(of.inputs(27, 1), of.folder / "nowhere", place=(group, offset))
    owner.encrypt(of.inputs(27, 1), of.folder / "nowhere", place=("0" * 32, 0))
    refused = ann.put(f"/v1/jobs/{uuid.uuid4()}", content=(of.folder / "nowhere").read_bytes(), headers=BODY)
    assert (refused.status_code, refused.json()["error"][:34]) == (409, "that place among the slots is gone")


# ---- limits -----------------------------------------------------------------------------------------------------


def test_jobs_can_be_cancelled_and_are_limited(
    of: Small, server: Running, tokens: dict[str, str], owner: Owner, ann: httpx2.Client
) -> None:
    """Three for a client, of which two run: one that runs and one that waits are cancelled, and the rest goes on."""
    give_keys(server, tokens["ann"], owner)
    query = query_file(of, owner, 10)
    jobs = [put_job(ann, query) for _ in range(3)]
    refused = ann.put(f"/v1/jobs/{uuid.uuid4()}", content=query.read_bytes(), headers=BODY)
    assert refused.status_code == 429
    assert refused.json()["error"] == "3 jobs of this client wait, 3 in all; try again later"
    assert refused.headers["retry-after"] == "10"
    for job in jobs[:2]:
        wait_for(ann, job, lambda told: told["round"] == 1)
    assert ann.get(f"/v1/jobs/{jobs[2]}").json()["state"] == "queued"
    for job in (jobs[2], jobs[0]):
        assert ann.delete(f"/v1/jobs/{job}").status_code == 204
        assert wait_for(ann, job, lambda told: told["state"] == "cancelled")["error"] == ""
        assert ann.get(f"/v1/jobs/{job}/result").status_code == 409
        assert ann.delete(f"/v1/jobs/{job}").status_code == 204
        assert ann.get(f"/v1/jobs/{job}").status_code == 404
    answer_all(ann, owner, jobs[1], of.folder)
    assert ann.get(f"/v1/jobs/{jobs[1]}").json()["state"] == "done"
    assert ann.delete(f"/v1/jobs/{jobs[1]}").status_code == 204


def test_the_same_query_again_is_the_same_job(
    of: Small, server: Running, tokens: dict[str, str], owner: Owner, ann: httpx2.Client
) -> None:
    give_keys(server, tokens["ann"], owner)
    query = query_file(of, owner, 11).read_bytes()
    job = f"/v1/jobs/{uuid.uuid4()}"
    first, again = (ann.put(job, content=query, headers=BODY) for _ in range(2))
    assert first.json()["job"] == again.json()["job"]
    assert len(ann.get("/v1/jobs").json()) == 1
    other = query_file(of, owner, 12).read_bytes()
    assert ann.put(job, content=other, headers=BODY).json()["error"].endswith("is another query's; choose another id")
    with http(server, tokens["bob"]) as bob:
        assert bob.put(job, content=query, headers=BODY).status_code == 409
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/result"), ("GET", "/rounds/1")):
            assert bob.request(method, job + path).status_code == 404
        assert bob.get("/v1/jobs").json() == []
        assert bob.get(f"/v1/keys/{owner.keys}").status_code == 404
    assert ann.delete(job).status_code == 204


def test_a_client_that_does_not_answer_loses_the_job_and_nobody_else(of: Small, owner: Owner) -> None:
    with running(of, "--answer-time", 1) as server, http(server) as client:
        give_keys(server, "", owner)
        job = put_job(client, query_file(of, owner, 13))
        failed = wait_for(client, job, lambda told: told["state"] == "failed")
        assert failed["error"] == "refresh 1 was not answered within 1 s"
        with Connection(server.url) as connection:
            assert_close(connection.infer(owner, of.inputs(13)), of.clear(of.inputs(13)), NOISE, "the next one")


LIMITED = """
import sys
from pathlib import Path
from secureattn import load_model, load_protocol
from secureattn.deploy.offer import read_plan
from secureattn.deploy.server.hand import Hand
from secureattn.deploy.server.service import Service
from secureattn.deploy.server.serving import Place, serve
from secureattn.deploy.server.settings import Limits, Served
from secureattn.deploy.server.store import Store
from secureattn.deploy.server.tokens import Tokens

model, protocol, plan, state, port = sys.argv[1:]
_, offer = read_plan(Path(plan), load_model(model), load_protocol(protocol))
limits = Limits(memory_bytes=100 << 20, idle_s=1)
service = Service(offer, Store(Path(state)), limits, lambda: Hand(Served(model, protocol, Path(plan))))
place = Place("127.0.0.1", int(port))
serve(service, Tokens(), place, place.bind(), print)
"""


def test_a_job_that_takes_more_memory_than_allowed_is_ended(of: Small, owner: Owner, tmp_path: Path) -> None:
    """Any worker takes more than 100 MiB; who says nothing for a second, or half of a request, is not waited for. The
    service is used as a library here.
    """
    port = free_port()
    command = [sys.executable, "-c", LIMITED, *of.names, str(of.plan_file), str(tmp_path), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            with httpx2.Client(base_url=url) as client:

                def until_it_failed(path: str) -> None:  # a small job would be done before anybody looks
                    wait_for(client, path.rpartition("/")[2], lambda told: told["state"] == "failed")

                with Watched(url, asked=until_it_failed) as connection:
                    connection.give_keys(owner)
                    with pytest.raises(EngineError, match="it took more than 100 MiB of memory; send fewer inputs"):
                        connection.infer(owner, of.inputs(14))
            for head in (b"", b"GET /health HTTP/1.1\r\nHost: x", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea"):
                with socket.create_connection(("127.0.0.1", port), 30) as slow:
                    slow.sendall(head)
                    while slow.recv(4096):
                        pass  # it ends, by the server's doing
            body = b"PUT /v1/jobs/" + str(uuid.uuid4()).encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
            with socket.create_connection(("127.0.0.1", port), 30) as slow:
                slow.sendall(body + b"Content-Type: application/octet-stream\r\n\r\nhalf")
                assert b" 408 " in slow.recv(4096)
        finally:
            process.kill()


def test_key_sets_are_limited_and_can_be_forgotten(
    of: Small, server: Running, tokens: dict[str, str], owner: Owner
) -> None:
    *given, last = [Owner.generate(of.offer, of.folder / f"more-keys-{i}") for i in range(5)]
    with Connection(server.url, token=tokens["cat"], patience_s=0.1) as connection:
        for one in given:
            connection.give_keys(one)
        with pytest.raises(
            Refused, match=r"4 key sets are kept for this client, \d in all; delete one first"
        ) as caught:
            connection.give_keys(last)
        assert caught.value.status == 429
        connection.forget_keys(given[0])
        with pytest.raises(Refused, match="are not here in full; upload them first"):
            connection.infer(given[0], of.inputs(15))
        connection.give_keys(last)
        for one in (*given[1:], last):
            connection.forget_keys(one)
    for one in (*given, last):
        one.close()


# ---- strangers --------------------------------------------------------------------------------------------------


def test_strangers_get_nowhere(server: Running) -> None:
    some = uuid.uuid4()
    paths = [
        *(("GET", path) for path in ("/metrics", "/v1/jobs", f"/v1/jobs/{some}", f"/v1/keys/{'0' * 32}")),
        *(("DELETE", path) for path in (f"/v1/jobs/{some}", f"/v1/keys/{'0' * 32}")),
        *(("PUT", path) for path in (f"/v1/jobs/{some}", f"/v1/keys/{'0' * 32}/public", f"/v1/jobs/{some}/rounds/1")),
    ]
    for header in ({}, {"authorization": "Bearer nobody"}, {"authorization": "Basic YTpi"}):
        with http(server) as client:
            for method, path in paths:
                answer = client.request(method, path, headers={**BODY, **header})
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json() == {"error": "a token is needed: send Authorization: Bearer TOKEN"}


def test_only_loopback_is_open_to_anyone(tmp_path: Path) -> None:
    assert [loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "example.org")] == [
        True, True, True, False, False, False
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"has no TLS \(--tls-cert, --tls-key\) and no tokens \(--tokens-file\)"):
        Place("0.0.0.0", 1).check(Tokens(), insecure=False)
    Place("0.0.0.0", 1).check(Tokens(), insecure=True)
    with pytest.raises(InputError, match="has no TLS"):
        Place("0.0.0.0", 1).check(Tokens({"x": "y"}), insecure=False)
    Place("0.0.0.0", 1, tmp_path, tmp_path).check(Tokens({"x": "y"}), insecure=False)
    with pytest.raises(InputError, match="needs a certificate and its key"):
        Place("127.0.0.1", 1, tmp_path).check(Tokens(), insecure=True)


def test_tokens_are_kept_as_hashes(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    token = add(file, "ann")
    assert token not in file.read_text()
    assert oct(file.stat().st_mode)[-3:] == "600"
    assert Tokens.load(file).client(f"Bearer {token}") == "ann"
    assert Tokens.load(file).client(f"bearer  {token} ") == "ann"
    for wrong in (None, "", "Bearer", f"Bearer {token[:-1]}", token, f"Basic {token}"):
        assert Tokens.load(file).client(wrong) is None
    with pytest.raises(InputError, match="ann has a token"):
        add(file, "ann")
    for name in ("", "../x", "a b", "anyone", "x" * 65):
        with pytest.raises(InputError, match="is no name of a client"):
            add(file, name)
    file.write_text("ann nothing\n")
    with pytest.raises(InputError, match="line 1"):
        Tokens.load(file)


# ---- TLS --------------------------------------------------------------------------------------------------------


def certificate(folder: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = folder / "cert.pem", folder / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    formats = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, *formats))
    return pem, private


def test_over_tls(of: Small, owner: Owner, tmp_path: Path) -> None:
    pem, key = certificate(tmp_path)
    with running(of, "--tls-cert", pem, "--tls-key", key, scheme="https") as server:
        with Connection(server.url, certificates=pem) as connection:
            connection.give_keys(owner)
            assert_close(connection.infer(owner, of.inputs(16)), of.clear(of.inputs(16)), NOISE, "over TLS")
        for url in (server.url, server.url.replace("https", "http")):  # an unknown authority; no TLS at all
            with Connection(url, patience_s=0.1) as stranger, pytest.raises(EngineError, match="cannot be reached"):
                stranger.offer()


# ---- pages ------------------------------------------------------------------------------------------------------


def test_the_page_for_humans_loads_nothing_from_elsewhere(server: Running) -> None:
    with http(server) as client:
        page = client.get("/docs").text
        sources = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert len(sources) >= 3
        for source in sources:
            assert source.startswith("/"), source
            assert client.get(source).status_code == 200
        described = client.get("/openapi.json").json()
        assert "/v1/jobs/{job}/rounds/{number}" in described["paths"]
        assert client.get("/health").json()["ready"] is True
        assert client.get("/ready").status_code == 200


def test_nothing_that_its_own_description_allows_or_forbids_makes_it_fail(
    server: Running, tokens: dict[str, str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Requests that schemathesis makes of the OpenAPI description, good and bad; every answer is as described there.

    That bytes are a file of ours is more than a description can say, so good requests may be refused.
    """
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{server.url}/openapi.json"]
    command += ["--max-examples", "10", "--seed", "1", "--no-color", "--suppress-health-check", "all"]
    command += ["--exclude-checks", "positive_data_acceptance", "--max-response-time", "60"]
    command += ["-H", f"Authorization: Bearer {tokens['ann']}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    tested = re.search(r"Tested: (\d+)", done.stdout)
    made = re.search(r"(\d+) generated", done.stdout)
    assert tested is not None
    assert made is not None
    assert int(tested[1]) == 15
    assert int(made[1]) > 150
    record_property("requests", int(made[1]))
    assert "Traceback" not in server.errors.read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tokens-file", "nowhere"], "tokens nowhere cannot be read"),
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached from other machines"),
        (["--tls-cert", "x.pem"], "TLS needs a certificate and its key"),
        (["--jobs", "100000"], "jobs at once take"),
        (["--memory", "0.1"], "--memory allows"),
        (["--plan", "nowhere.json"], "cannot be read as a plan"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    of: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    plan = [] if "--plan" in options else ["--plan", str(of.plan_file)]
    monkeypatch.chdir(tmp_path)
    assert said in failed("serve", *of.names, *plan, "--port", "0", *options)


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """40 ms of each, on systems that delay them."""
    with Place("127.0.0.1", 0).bind() as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_taken(of: Small, server: Running) -> None:
    port = server.url.rpartition(":")[2]
    said = failed("serve", *of.names, "--plan", of.plan_file, "--port", port)
    assert "cannot be listened at (Address already in use); choose another" in said


def test_a_client_with_other_keys_or_no_server_hears_so(of: Small, server: Running, tmp_path: Path) -> None:
    with (
        pytest.raises(EngineError, match="cannot be reached"),
        Connection("http://127.0.0.1:9", patience_s=0.1) as nobody,
    ):
        nobody.offer()
    with pytest.raises(InputError, match="cannot be used"):
        Connection("http://127.0.0.1:1", certificates=tmp_path / "nowhere.pem")
    files = contextlib.ExitStack()
    with files, Connection(server.url, token="wrong", patience_s=0.1) as stranger:
        owner = Owner.load(of.folder / "keys")
        files.callback(owner.close)
        assert (of.folder / "keys" / EVALUATOR).is_dir()
        with pytest.raises(Refused, match="a token is needed"):
            stranger.give_keys(owner)
