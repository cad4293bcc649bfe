"""Jobs of several clients through one server: workers of this machine by pipes, and replicas by Ray, one and two.

    python benchmarks/scaling.py [--quick] [--json FILE] [--only PART…] [--fresh]

``alone``: one client, one worker, a job after another, through pipes and through Ray in turn: what a job takes, what
Ray adds to it, how many seconds of a processor the server itself needs for it, and how many bytes it moves.
``together``: two clients, each with a job after another, on one and two workers either way: jobs a minute.
Clients and servers share this machine's cores; what more machines would give is predicted from ``alone`` by a small
model, which ``scaling_report`` says and marks. What each part measured is kept in ``out/scaling``; all parts make
``benchmarks/results/scaling.json``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scaling_report
from measuring import Setting, run_all

from secureattn import load_model, load_protocol, make_plan
from secureattn.deploy import Owner, write_plan
from secureattn.deploy.connection import Connection
from secureattn.deploy.owner import key_sizes
from secureattn.deploy.parcel import EVALUATION_FILE, PUBLIC_FILE
from secureattn.plan import Plan
from secureattn.runs import clear_run

MODEL, PROTOCOL = "digits-vit", "power-softmax-ckks"
WAYS: Mapping[str, list[str]] = {"pipe": [], "ray": ["--cluster", "local"]}
CLIENTS = 2
JOBS, QUICK_JOBS = 3, 1
"""Of a client in a turn, of one image each."""
_START_S = 180.0


@dataclass(frozen=True)
class Work:
    """A plan of one image by one process, its file, and keys for each client."""

    plan: Plan
    file: Path
    owners: list[Owner]

    def inputs(self, client: int, job: int) -> Any:
        """An image of its own for each job."""
        images, _ = self.plan.model.samples(64)
        return np.asarray(images)[[8 * client + job]]


@contextmanager
def work(setting: Setting) -> Iterator[Work]:
    """Planned, with keys made, which takes longer than a job."""
    plan = make_plan(load_model(MODEL), load_protocol(PROTOCOL), samples=1, workers=1)
    file = setting.folder / "plan.json"
    offer = write_plan(plan, file)
    with contextlib.ExitStack() as ending:
        keys = Path(ending.enter_context(tempfile.TemporaryDirectory()))
        owners = [Owner.generate(offer, keys / str(client)) for client in range(CLIENTS)]
        for owner in owners:
            ending.callback(owner.close)
        yield Work(plan, file, owners)


class Server:
    """A server process: what it says of itself, and what the system says of it."""

    def __init__(self, work: Work, way: str, workers: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "secureattn.cli", "serve", MODEL, PROTOCOL, "--plan", str(work.file)]
        command += ["--port", str(port), "--jobs", str(workers), "--waiting", "64", *WAYS[way]]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def wait(self, workers: int) -> None:
        """Until all of its workers are there."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if self._get("/health").count(f'"workers":{workers}'):
                    return
            time.sleep(0.1)
        raise SystemExit(f"no server with {workers} workers came up")

    def processor_s(self) -> float:
        """Seconds of a processor that the process which listens has had."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def spent(self) -> dict[str, float]:
        """So far: its own seconds of a processor, and those that jobs have held a worker, waiting for answers too."""
        return {"front_s": self.processor_s(), "held_s": self.counted("secureattn_job_seconds_sum")}

    def counted(self, name: str) -> float:
        """A figure of its metrics."""
        found = re.search(rf"^{name} (\S+)$", self._get("/metrics"), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return str(answer.read().decode())


@contextmanager
def serving(work: Work, way: str, workers: int) -> Iterator[Server]:
    """A server that has both clients' keys and has done a job of each."""
    server = Server(work, way, workers)
    try:
        server.wait(workers)
        _together(work, server, 1)
        yield server
    finally:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)


@dataclass(frozen=True)
class Done:
    """A job as its client saw it: from inputs to scores, bytes both ways, the largest error against the clear run."""

    seconds: float
    moved_bytes: int
    error: float


def _together(work: Work, server: Server, jobs: int) -> list[Done]:
    """So many jobs of every client, all clients at once."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        told = pool.map(lambda client: _client(work, server, client, jobs), range(CLIENTS))
        return [done for one in told for done in one]


def _client(work: Work, server: Server, client: int, jobs: int) -> list[Done]:
    owner, told = work.owners[client], []
    with Counting(server.url) as connection:
        connection.give_keys(owner)
        for job in range(jobs):
            inputs, before = work.inputs(client, job), connection.moved_bytes
            start = time.perf_counter()
            found = connection.infer(owner, inputs)
            seconds = time.perf_counter() - start
            error = float(np.abs(found - clear_run(work.plan, inputs).outputs).max())
            told.append(Done(seconds, connection.moved_bytes - before, error))
    return told


class Counting(Connection):
    """A client that counts the bytes of the files it sends and gets."""

    moved_bytes = 0

    def _put(self, path: str, file: Path, *more: Any) -> None:
        super()._put(path, file, *more)
        self.moved_bytes += file.stat().st_size

    def _get(self, path: str, file: Path, *more: Any) -> None:
        super()._get(path, file, *more)
        self.moved_bytes += file.stat().st_size


# ---- the parts ----------------------------------------------------------------------------------------------


def alone(setting: Setting) -> dict[str, Any]:
    """One client on one worker, pipe and Ray in turn on servers that both stay; what both spend, by job."""
    jobs = QUICK_JOBS if setting.quick else JOBS
    with work(setting) as made, contextlib.ExitStack() as ending:
        servers = {way: ending.enter_context(serving(made, way, 1)) for way in WAYS}
        before = {way: server.spent() for way, server in servers.items()}
        done: dict[str, list[Done]] = {way: [] for way in WAYS}
        for _ in range(setting.turns):
            for way, server in servers.items():
                done[way] += _client(made, server, 0, jobs)
        ways = {}
        for way, server in servers.items():
            spent = {name: (now - before[way][name]) / len(done[way]) for name, now in server.spent().items()}
            ways[way] = {"jobs": [asdict(one) for one in done[way]], **spent}
        sizes = key_sizes(made.owners[0].offer)
    return {"ways": ways, "key_bytes": sum(sizes[name] for name in (PUBLIC_FILE, EVALUATION_FILE))}


def together(setting: Setting) -> dict[str, Any]:
    """Two clients on one and two workers, either way: seconds for all of their jobs, turn by turn."""
    jobs = QUICK_JOBS if setting.quick else JOBS
    runs: list[dict[str, Any]] = []
    with work(setting) as made:
        for _ in range(setting.turns):
            for way, workers in itertools.product(WAYS, (1, 2)):
                with serving(made, way, workers) as server:
                    start = time.perf_counter()
                    done = _together(made, server, jobs)
                    seconds = time.perf_counter() - start
                kept = [asdict(one) for one in done]
                runs.append({"way": way, "workers": workers, "sent": CLIENTS * jobs, "seconds": seconds, "jobs": kept})
    return {"runs": runs}


PARTS: Mapping[str, Callable[[Setting], dict[str, Any]]] = {part.__name__: part for part in (alone, together)}


if __name__ == "__main__":
    sys.exit(run_all("scaling", __doc__, PARTS, scaling_report))
