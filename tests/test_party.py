"""Parties started one by one: how they meet, what they refuse, and how all end when one does."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wire

from secureattn import load_model, load_protocol, make_plan
from secureattn.backends.crypten.links import LinkLost
from secureattn.backends.crypten.meeting import SILENCE_S, Address, Meeting
from secureattn.backends.crypten.table import Table
from secureattn.backends.crypten.transport import Mesh
from secureattn.commands.parties import inputs_of, seat_of
from secureattn.errors import EngineError, InputError
from secureattn.ledger import Network

needs_crypten = pytest.mark.skipif(importlib.util.find_spec("crypten") is None, reason="CrypTen is not installed")
COMMAND = [sys.executable, "-m", "secureattn.cli", "party"]
MODEL, PROTOCOL, SAMPLES = "digits-vit", "accurate-mpc", 12
NAMES = ["model owner", "client", "dealer"]
ENDED_S = 15.0  # by when every process is over once one died or hung
LIMIT_S = 60.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def at_once(work: Callable[[int], Any], count: int) -> list[Any]:
    """``work(rank)`` in a thread each; what they return, or the error they raise."""

    def caught(rank: int) -> Any:
        try:
            return work(rank)
        except EngineError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(caught, range(count)))


def meet(facts: list[Mapping[str, str]], *, ranks: list[int] | None = None, wait_s: float = 5.0) -> list[Any]:
    """Every process tells its facts; what each is told, or the error."""
    address = Address("127.0.0.1", free_port())
    ranks = ranks or list(range(len(facts)))

    with contextlib.ExitStack() as kept:  # the first one's table lives until all are done

        def one(i: int) -> Any:
            meeting = kept.enter_context(Meeting(address, ranks[i], NAMES[: max(2, len(facts))], wait_s=wait_s))
            return meeting.agree(facts[i], {"samples": 7} if ranks[i] == 1 else None)

        return at_once(one, len(facts))


# ---- meeting ----------------------------------------------------------------------------------------------------


def test_who_agrees_is_told_what_the_others_have_to_say() -> None:
    same = {"secureattn": "1", "model": "digits (ab)"}
    assert meet([same, same, same]) == [[{}, {"samples": 7}, {}]] * 3


@pytest.mark.parametrize("differs", [1, 2])
@pytest.mark.parametrize("what", ["secureattn", "protocol", "model"])
def test_a_difference_ends_all_with_the_same_line(what: str, differs: int) -> None:
    facts = [{"secureattn": "0.1.0", "protocol": "p (aa)", "model": "m (bb)"} for _ in NAMES]
    facts[differs][what] = "other"
    errors = meet(facts)
    assert {str(error) for error in errors} == {
        f"model owner runs {what} {facts[0][what]}, {NAMES[differs]} runs other; give all the same"
    }


def test_who_does_not_come_is_named() -> None:
    (error,) = meet([{"model": "m"}], wait_s=0.3)
    assert "client did not come to 127.0.0.1:" in str(error)
    assert "within 0.3 s" in str(error)


def test_a_rank_is_taken_once() -> None:
    results = meet([{"model": "m"}] * 3, ranks=[0, 1, 1], wait_s=1.0)
    assert sum("is at 127.0.0.1:" in str(error) and "rank of its own" in str(error) for error in results) == 1


def test_nobody_at_the_address_is_one_sentence() -> None:
    port = free_port()
    with pytest.raises(EngineError, match=rf"^nobody answers at 127\.0\.0\.1:{port} within 1 s; start the first party"):
        Meeting(Address("127.0.0.1", port), 1, NAMES, wait_s=1.0)


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(EngineError, match=rf"^the first party cannot listen at 127\.0\.0\.1:{port}"):
            Meeting(Address("127.0.0.1", port), 0, NAMES, wait_s=2.0)


@pytest.mark.parametrize("text", ["host", "host:", ":5", "host:0", "host:70000", "host:a", ""])
def test_an_address_is_host_and_port(text: str) -> None:
    with pytest.raises(InputError, match="a rendezvous is the first party's HOST:PORT"):
        Address.parse(text)


def test_a_process_that_ends_leaves_word() -> None:
    address = Address("127.0.0.1", free_port())

    def one(rank: int) -> str | None:
        with Meeting(address, rank, NAMES[:2], wait_s=5.0) as meeting:
            if rank:
                meeting.failed("client ended: disk full")
                return None
            return meeting.cause(patience_s=5.0)

    assert at_once(one, 2)[0] == "client ended: disk full"


@pytest.mark.slow
def test_a_pulse_tells_of_silence_and_not_of_who_is_done() -> None:
    """Three processes, one of which never beats; one that said it was over may be silent."""
    program = (
        "import sys, time\n"
        "from secureattn.backends.crypten.meeting import Address, Meeting\n"
        "from secureattn.backends.crypten.pulse import Pulse\n"
        "rank, port, over = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == 'over'\n"
        "m = Meeting(Address('127.0.0.1', port), rank, ['a', 'b', 'c'], wait_s=30)\n"
        "m.agree({})\n"
        "if rank == 2:\n"
        "    if over: m.over()\n"
        "    time.sleep(14)\n"
        "else:\n"
        "    with Pulse(m, lambda text: print(text, flush=True)):\n"
        "        time.sleep(13)\n"
        "        print('lived')\n"
        "    m.over()\n"
    )
    ends = []
    for how in ("silent", "over"):
        port = str(free_port())
        command = [sys.executable, "-c", program]
        ends += [
            subprocess.Popen([*command, str(rank), port, how], stdout=subprocess.PIPE, text=True) for rank in range(3)
        ]
    said = [(process.communicate(timeout=LIMIT_S)[0].strip(), process.returncode) for process in ends]
    silence = (f"c has given no sign of life for {SILENCE_S:g} s", 1)
    assert said == [silence, silence, ("", 0), ("lived", 0), ("lived", 0), ("", 0)]


# ---- connections ------------------------------------------------------------------------------------------------


@pytest.fixture
def store() -> Any:
    return Table()


def test_large_messages_cross_without_a_deadlock(store: Any) -> None:
    own = [torch.full((1 << 20,), rank, dtype=torch.int64) for rank in range(3)]

    def one(rank: int) -> list[int]:
        others = [other for other in range(3) if other != rank]
        with Mesh.connect(store, rank=rank, size=3) as mesh:
            found = [int(tensor.sum()) >> 20 for tensor in mesh.exchange(own[rank], others)]
            mesh.barrier(others)
            return found

    assert at_once(one, 3) == [[1, 2], [0, 2], [0, 1]]


def test_what_is_delivered_arrives_in_order(store: Any) -> None:
    sizes = [1, 1 << 18, 7, 0, 1 << 16]

    def one(rank: int) -> list[int]:
        with Mesh.connect(store, rank=rank, size=2) as mesh:
            if rank:
                return [int(mesh.receive(torch.empty(n, dtype=torch.int64), 0).sum()) for n in sizes]
            for i, n in enumerate(sizes):
                mesh.deliver(torch.full((n,), i, dtype=torch.int64), 1)
            mesh.delivered()
            return []

    assert at_once(one, 2)[1] == [i * n for i, n in enumerate(sizes)]


def test_parties_out_of_step_notice(store: Any) -> None:
    def one(rank: int) -> Any:
        with Mesh.connect(store, rank=rank, size=2) as mesh:
            return list(mesh.exchange(torch.zeros(3 + rank, dtype=torch.int64), [1 - rank]))

    errors = at_once(one, 2)
    assert all(isinstance(error, LinkLost) for error in errors)
    assert any("sent 32 bytes where 24 were expected: out of step" in str(error) for error in errors)


def test_a_peer_that_goes_is_noticed(store: Any) -> None:
    def one(rank: int) -> Any:
        with Mesh.connect(store, rank=rank, size=2) as mesh:
            return None if rank else mesh.receive(torch.empty(5), 1)

    error = at_once(one, 2)[0]
    assert isinstance(error, LinkLost)
    assert "the connection to the other processes was lost" in str(error)


def test_a_stranger_is_not_taken_for_a_party(store: Any) -> None:
    results: list[Any] = []

    def first() -> None:
        with Mesh.connect(store, rank=0, size=2, wait_s=10.0) as mesh:
            results.append(mesh.receive(torch.empty(1, dtype=torch.int64), 1).item())

    thread = threading.Thread(target=first)
    thread.start()
    while not store.check(["at/0"]):
        time.sleep(0.01)
    host, port = store.get("at/0").decode().split()
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(b"\0\0\0\1" + bytes(16))
        while stranger.recv(64):  # it is told that it is no process of the run
            pass
    with Mesh.connect(store, rank=1, size=2) as mesh:
        mesh.send(torch.tensor([42]), 0)
        thread.join(10)
    assert results == [42]


# ---- the command ------------------------------------------------------------------------------------------------


def seat(rank: str | None = None, rendezvous: str | None = None, **environment: str) -> Any:
    return seat_of(load_protocol(PROTOCOL), rank, rendezvous, 5.0, environment)


def test_a_seat_is_given_or_taken_from_torchrun() -> None:
    assert [seat(r, "h:5").rank for r in ("owner", "client", "dealer", "1")] == [0, 1, 2, 1]
    torchrun = {"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "there", "MASTER_PORT": "99"}
    launched = seat(**torchrun, TORCHELASTIC_USE_AGENT_STORE="True")
    assert (launched.rank, launched.address) == (2, Address("there", 99, launched=True))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rendezvous": "h:5"}, "which party is this"),
        ({"rank": "owner"}, "where do the parties meet"),
        ({"rank": "boss", "rendezvous": "h:5"}, "a rank is a number, or one of owner, client, dealer"),
        ({"rank": "3", "rendezvous": "h:5"}, "with ranks from 0 to 2, not 3"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "5"}, "is for 3 processes"),
    ],
)
def test_a_seat_that_does_not_exist_is_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        seat(**given)


def test_files_are_the_clients_unless_all_are_launched_at_once(tmp_path: Path) -> None:
    model, file, output = load_model(MODEL), tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(file, model.samples(2)[0])
    torchrun = {"WORLD_SIZE": "3", "MASTER_ADDR": "h", "MASTER_PORT": "5"}
    assert inputs_of(model, seat(RANK="2", **torchrun), file, output) is None
    given = inputs_of(model, seat(RANK="1", **torchrun), file, output)
    assert given is not None
    assert len(given) == 2
    with pytest.raises(InputError, match="the client alone"):
        inputs_of(model, seat("owner", "h:5"), file, output)
    with pytest.raises(InputError, match="the client needs --input FILE"):
        inputs_of(model, seat("client", "h:5"), None, output)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("party") / "inputs.npy"
    np.save(path, load_model(MODEL).samples(SAMPLES)[0])
    return path


def commands(rendezvous: str, inputs: Path, folder: Path, *more: str) -> list[list[str]]:
    """What to type on three machines: owner, client, dealer."""
    base = [*COMMAND, MODEL, PROTOCOL, "--rendezvous", rendezvous, *more]
    files = ["--input", str(inputs), "-o", str(folder / "scores.npy"), "--json", str(folder / "client.json")]
    return [
        [*base, "--rank", "owner", "--json", str(folder / "owner.json")],
        [*base, "--rank", "client", *files],
        [*base, "--rank", "dealer"],
    ]


def started(lines: list[list[str]]) -> list[subprocess.Popen[str]]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(line, **pipes) for line in lines]  # type: ignore[call-overload]


def online(document: dict[str, Any], name: str) -> Any:
    return sum(event[name] or 0 for event in document["events"] if event["phase"] == "online")


@needs_crypten
def test_three_commands_classify_what_the_client_has(inputs: Path, tmp_path: Path) -> None:
    processes = started(commands(f"127.0.0.1:{free_port()}", inputs, tmp_path))
    ends = [process.communicate(timeout=LIMIT_S) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    for name, (out, err) in zip(NAMES, ends, strict=True):
        assert out.startswith(f"{name}: {SAMPLES} inputs, done")
        assert "neither encrypted nor authenticated" in out
        assert err == ""
    plan = make_plan(load_model(MODEL), load_protocol(PROTOCOL), samples=SAMPLES)
    from secureattn.runs import clear_run

    clear = clear_run(plan, np.load(inputs)).outputs
    assert np.abs(np.load(tmp_path / "scores.npy") - clear).max() < 2e-3
    assert plan.mpc is not None
    for rank, name in enumerate(("owner", "client")):
        document = json.loads((tmp_path / f"{name}.json").read_text())
        for count in ("rounds", "bytes_sent"):
            assert online(document, count) == plan.mpc.recorders[rank].total(count, phase="online")


@needs_crypten
@pytest.mark.parametrize(
    ("victim", "how"),
    [
        (2, signal.SIGKILL),
        *(
            pytest.param(victim, how, marks=pytest.mark.slow)
            for victim, how in ((0, signal.SIGKILL), (1, signal.SIGKILL), (0, signal.SIGSTOP), (1, signal.SIGSTOP))
        ),
    ],
)
def test_all_end_when_one_dies_or_hangs(victim: int, how: signal.Signals, inputs: Path, tmp_path: Path) -> None:
    """Within 15 seconds, with one line each, and no scores are left behind."""
    port = free_port()
    processes = started(commands(f"127.0.0.1:{port}", inputs, tmp_path))
    try:
        wait_for_all(port)
        os.kill(processes[victim].pid, how)
        since = time.monotonic()
        ends = [p.communicate(timeout=LIMIT_S) for i, p in enumerate(processes) if i != victim]
        assert time.monotonic() - since < ENDED_S
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for out, err in ends:
        assert out == ""
        assert err.startswith("secureattn: error: ")
        assert err.count("\n") == 1
    assert not (tmp_path / "scores.npy").exists()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for_all(port: int) -> None:
    """Until all three have met. A store's own attempts to connect grow seconds apart: the run may be over by then."""
    deadline = time.monotonic() + LIMIT_S
    while not listens(port):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with Meeting(Address("127.0.0.1", port), 1, NAMES, wait_s=LIMIT_S) as meeting:
        while not meeting.store.check([f"heard/{rank}" for rank in range(3)]):
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.slow
@needs_crypten
def test_another_model_is_refused_by_all(inputs: Path, tmp_path: Path) -> None:
    lines = commands(f"127.0.0.1:{free_port()}", inputs, tmp_path)
    lines[2][lines[2].index(MODEL)] = "digits-vit-oneshot"
    processes = started(lines)
    errors = {process.communicate(timeout=LIMIT_S)[1] for process in processes}
    assert [process.returncode for process in processes] == [1, 1, 1]
    (line,) = errors
    assert line.startswith("secureattn: error: model owner runs model digits-vit (")
    assert line.count("\n") == 1


# ---- a slow network ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_crypten
@pytest.mark.skipif(not wire.permitted(), reason="no network namespaces or TUN devices may be made here")
def test_measured_time_is_what_the_network_model_says(inputs: Path, tmp_path: Path) -> None:
    """Three network namespaces, 100 Mbit/s and 40 ms there and back, against a wire without delay."""
    seconds = {}
    slow = Network("slow", 1e8, 0.04)
    for name, network in (("fast", Network("fast", 1e10, 0.0)), ("slow", slow)):
        folder = tmp_path / name
        folder.mkdir()
        script = [sys.executable, str(Path(__file__).with_name("wire.py")), str(network.bandwidth_bps)]
        script += [
            str(network.round_trip_s),
            json.dumps(commands(f"{wire.address(0)}:29500", inputs, folder, "--insecure-links")),
        ]
        done = subprocess.run([*wire.ISOLATED, *script], capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        owner, client = (json.loads((folder / f"{party}.json").read_text()) for party in ("owner", "client"))
        seconds[name] = max(document["phases"]["online"] for document in (owner, client))
    rounds = online(client, "rounds")
    modelled = slow.seconds(rounds / 2, online(client, "bytes_sent"))
    took = seconds["slow"] - seconds["fast"]
    assert 0.8 * modelled < took < 1.5 * modelled, (modelled, seconds)
