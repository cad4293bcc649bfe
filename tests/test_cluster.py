"""Replicas of the evaluator on a cluster: real Ray, real servers, and whatever may befall a replica or its machine."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_close
from service import NOISE, Running, Small, running, small
from strangers import LOOPBACK, STRANGERS, assert_refused, knock

pytest.importorskip("tenseal")
pytest.importorskip("fastapi")
pytest.importorskip("ray", reason="a cluster needs ray: pip install ray")

from watching import Watched

from secureattn import __version__
from secureattn.deploy.owner import Owner
from secureattn.deploy.parcel import EVALUATION_FILE, PUBLIC_FILE
from secureattn.deploy.server import cluster
from secureattn.deploy.server.hand import Died, Gone, Hand
from secureattn.deploy.server.replica import KEPT, Replica
from secureattn.deploy.server.settings import Served
from secureattn.errors import EngineError

REPLICA, WORKER = "ray::Replica", "secureattn.deploy.worker"


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def owners(of: Small) -> Iterator[list[Owner]]:
    made = [Owner.generate(of.offer, of.folder / f"keys-{i}") for i in range(2)]
    yield made
    for owner in made:
        owner.close()


@pytest.fixture(scope="module")
def server(of: Small) -> Iterator[Running]:
    with running(of, "--jobs", 2, "--cluster", "local") as found:
        eventually(lambda: len(family(found, WORKER)) == 2, "two replicas with a worker each")
        yield found
        assert found.end() == 0


def family(server: Running, called: str = "") -> list[int]:
    """Processes that a server began, and theirs, of a kind."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, new = set[int](), {server.process.pid}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new}
        found |= new
    return [pid for pid in sorted(found) if called in command(pid)]


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def eventually(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, f"not within a minute: {what}"
        time.sleep(0.05)


def infer(server: Running, owner: Owner, inputs: Any, asked: Callable[[], Any] = lambda: None) -> Any:
    """Scores; ``asked`` is called before the first refresh of each job is answered."""
    with Watched(server.url, asked=lambda _: asked()) as connection:
        connection.give_keys(owner)
        return connection.infer(owner, inputs)


# ---- what clients get -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_replicas_serve_two_clients_at_once(of: Small, server: Running, owners: list[Owner]) -> None:
    """Neither answers its first refresh before the other is asked as well."""
    both = threading.Barrier(2)
    with ThreadPoolExecutor() as pool:
        inputs = [of.inputs(seed) for seed in (1, 2)]
        asked = [lambda: both.wait(60)] * 2
        found = list(pool.map(lambda one: infer(server, *one), zip(owners, inputs, asked, strict=True)))
    for scores, values in zip(found, inputs, strict=True):
        assert_close(scores, of.clear(values), NOISE, "noise of a scale of 2^30")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [REPLICA, WORKER])
def test_a_death_in_the_middle_loses_nothing(of: Small, server: Running, owners: list[Owner], killed: str) -> None:
    """All processes of a kind are killed at a refresh, so the job's own is among them: it is begun again elsewhere."""
    before = family(server, killed)
    assert len(before) == 2

    def kill() -> None:
        for pid in before:
            os.kill(pid, signal.SIGKILL)

    assert_close(infer(server, owners[0], of.inputs(3), kill), of.clear(of.inputs(3)), NOISE, "the second try")
    eventually(lambda: len(family(server, WORKER)) == 2, "two workers again")
    assert not set(before) & set(family(server))
    assert " died: " in server.errors.read_text()


@pytest.mark.slow
def test_keys_travel_once(of: Small, server: Running, owners: list[Owner]) -> None:
    for seed in range(4, 8):  # until both replicas have them
        infer(server, owners[1], of.inputs(seed))

    def kept() -> set[tuple[str, int]]:
        folders = [folder_of(pid) for pid in family(server, REPLICA)]
        paths = [path for folder in folders for path in folder.glob(f"keys/*/{EVALUATION_FILE}")]
        return {(str(path), path.stat().st_mtime_ns) for path in paths}

    before = kept()
    assert before
    infer(server, owners[1], of.inputs(8))
    assert before <= kept()


def folder_of(replica: int) -> Path:
    """The one whose lock a replica holds."""
    links = [path.readlink() for path in Path(f"/proc/{replica}/fd").iterdir() if path.is_symlink()]
    return next(link.parent for link in links if link.parent.name.startswith("secureattn-replica-"))


# ---- who can reach it -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_only_workers_load_an_engine(server: Running) -> None:
    def loaded(pid: int) -> bool:
        return "sealapi" in Path(f"/proc/{pid}/maps").read_text()

    assert not loaded(server.process.pid)
    assert [loaded(pid) for pid in family(server, REPLICA)] == [False, False]
    assert [loaded(pid) for pid in family(server, WORKER)] == [True, True]


@pytest.mark.slow
def test_a_cluster_of_one_machine_listens_on_loopback_alone(server: Running) -> None:
    sockets = set()
    for pid in family(server):
        with contextlib.suppress(OSError):
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.add(str(handle.readlink()))
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                listening.append(fields[1].rpartition(":")[0])
    own = {"0100007F", "0" * 24 + "01000000", "0000000000000000FFFF00000100007F"}
    assert listening
    assert set(listening) <= own


def told(pid: int) -> dict[str, str]:
    """What a process was told by its environment."""
    lines = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def address_of(server: Running) -> str:
    """Where the head of a server's own cluster listens."""
    (raylet,) = family(server, "raylet/raylet")
    found = re.search(r"--gcs-address=(127\.0\.0\.1:\d+)", command(raylet))
    assert found
    return found[1]


@pytest.mark.slow
def test_who_has_the_token_gets_in(server: Running) -> None:
    (head,) = family(server, "gcs_server")
    token = {name: value for name, value in told(head).items() if name.startswith("RAY_AUTH")}
    assert len(token["RAY_AUTH_TOKEN"]) == 64
    said, errors = knock(address_of(server), {**LOOPBACK, **token})
    assert said == "in\n", errors


@pytest.mark.slow
@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_who_learn_the_port_are_refused(server: Running, stranger: str) -> None:
    assert_refused(knock(address_of(server), {**LOOPBACK, **STRANGERS[stranger]}))


# ---- beginning and end ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_is_left_of_it(of: Small) -> None:
    with running(of, "--cluster", "local") as found:
        began, folder = family(found), folder_of(family(found, REPLICA)[0])
        said = {pid: command(pid) for pid in began}
        found.end()
    eventually(lambda: not [pid for pid in began if command(pid) == said[pid] != ""], "no process of it is left")
    assert not folder.parent.exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:9", "no cluster at 127.0.0.1:9 can be reached ([Errno 111] Connection refused); start one: ray"),
        ("here", "'here' is no cluster: local, auto, or HOST:PORT of its head are"),
        ("ray://127.0.0.1:10001", "'ray://127.0.0.1:10001' is no cluster: local, auto, or HOST:PORT"),
    ],
)
def test_no_cluster_is_one_line(of: Small, tmp_path: Path, address: str, said: str) -> None:
    errors = refused(of, tmp_path, "--cluster", address)
    assert said in errors
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_something_else_at_its_address_is_one_line(of: Small, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        errors = refused(of, tmp_path, "--cluster", address)
    assert f"no cluster at {address} can be joined" in errors.splitlines()[-1]


def refused(of: Small, folder: Path, *options: str) -> str:
    """What a server says that does not start."""
    serve = [sys.executable, "-m", "secureattn.cli", "serve", *of.names, "--plan", str(of.plan_file), "--port", "0"]
    done = subprocess.run([*serve, *options], capture_output=True, text=True, cwd=folder, timeout=120, check=False)
    assert done.returncode == 1
    return done.stderr


def test_nobody_loads_ray_who_was_not_told_of_a_cluster() -> None:
    code = "import sys, secureattn.commands.serving, secureattn.deploy.server.cluster; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_a_cluster_is_not_begun_where_it_would_listen_to_strangers() -> None:
    """Ray decides when it is loaded; it is, by this file."""
    with pytest.raises(EngineError, match="ray is loaded already and would listen beyond this machine"):
        cluster.joined("local", cluster.Size(1, 1, 1, 1)).__enter__()


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    with pytest.raises(EngineError, match="needs the package 'ray', which is missing; pip install ray"):
        cluster.joined("local", cluster.Size(1, 1, 1, 1)).__enter__()


# ---- a replica's folder -----------------------------------------------------------------------------------------


def test_a_replica_keeps_the_key_sets_used_last(tmp_path: Path) -> None:
    replica = Replica(str(tmp_path))
    for number in range(KEPT + 2):
        replica._prepare({"query-0": b"query"}, f"set-{number}", {PUBLIC_FILE: b"p", EVALUATION_FILE: b"e"})
        os.utime(replica._keys("set-0") / PUBLIC_FILE, (2e9, 2e9))  # used after all others
    names = {path.name for path in replica._keys("x").parent.iterdir()}
    asyncio.run(replica.end())
    assert names == {"set-0", *(f"set-{number}" for number in range(3, KEPT + 2))}


def test_what_killed_replicas_left_is_taken_away(tmp_path: Path) -> None:
    living, left = Replica(str(tmp_path)), Replica(str(tmp_path))
    fcntl.flock(left._lock, fcntl.LOCK_UN)  # as if its process were gone
    last = Replica(str(tmp_path))
    assert living._folder.exists()
    assert not left._folder.exists()
    for replica in (living, left, last):
        asyncio.run(replica.end())
    assert not list(tmp_path.iterdir())


# ---- a worker that is gone --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("note", "kind"), [({"run": "x"}, Gone), ({"answered": 1}, Died)])
def test_a_job_is_not_to_blame_for_a_worker_that_was_gone(of: Small, note: dict[str, Any], kind: type[Died]) -> None:
    hand = Hand(Served(*of.names, of.plan_file))
    hand._process.kill()
    hand._process.wait()
    with pytest.raises(Died, match=r"^signal 9 \(SIGKILL\)$") as death:
        asyncio.run(hand.tell(note))
    hand.end()
    assert death.type is kind


@pytest.mark.slow
def test_a_replica_says_that_its_worker_was_gone(of: Small, tmp_path: Path) -> None:
    async def begun() -> str:
        replica = Replica(str(tmp_path))
        names, goods = cluster.packed(Served(*of.names, of.plan_file))
        assert await replica.ready(__version__, names, goods) == ""
        assert replica._hand is not None
        replica._hand._process.kill()
        replica._hand._process.wait()
        said = await replica.begin("keys", [b"query"], "place", {PUBLIC_FILE: b"p", EVALUATION_FILE: b"e"})
        await replica.end()
        return said

    assert asyncio.run(begun()) == "signal 9 (SIGKILL)"
