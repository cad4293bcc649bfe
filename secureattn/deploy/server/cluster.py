"""Machines that work behind one queue, joined by Ray: replicas of the evaluator wherever there is room for them.

Ray pickles what the server's own processes tell each other, so whoever it lets in can run code. It can want a token
(RAY_AUTH_MODE), which crosses its links as it is: they must be private, or TLS (RAY_USE_TLS). A cluster of this machine
alone listens on loopback and wants one that nobody else has.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secureattn.deploy.server.replica import Replica
from secureattn.deploy.server.settings import Served
from secureattn.errors import INSTALL, EngineError, InputError
from secureattn.ledger import units
from secureattn.resources import find

if TYPE_CHECKING:
    from secureattn.deploy.server.remote import RemoteHand

LOCAL, FOUND = "local", "auto"
"""A cluster of this machine alone, begun and ended with the server; one that this machine is part of already."""

PLAIN = (
    "the cluster's links are plain: whoever reads them can take its token, and with that, or where none is wanted, run "
    "code on its machines; keep its network private, or set RAY_USE_TLS on all of them"
)

_LEAST_STORE_BYTES = 1 << 28
_REACH_S, _END_S = 5.0, 5.0
_GOODS = (".json", ".safetensors")


@dataclass(frozen=True)
class Size:
    """So many ``replicas``, each of so many ``processes`` and ``memory_bytes``; ``job_bytes``: what travels for a job,
    keys included.
    """

    replicas: int
    processes: int
    memory_bytes: int
    job_bytes: int


class Cluster:
    """Where replicas are begun. ``plain``: other machines are part of it and its links have no TLS."""

    def __init__(self, size: Size, folder: Path | None) -> None:
        self._size = size
        self._folder = folder
        self._goods: Any = None
        self._names = ("", "", "")
        self._ending: list[Any] = []

    def serve(self, served: Served) -> None:
        """Lay what is served, a model, a protocol and their plan, where every replica can have it."""
        import ray

        self._names, goods = packed(served)
        self._goods = ray.put(goods)

    def hand(self) -> RemoteHand:
        """Another replica, once there is room for it."""
        import ray

        from secureattn.deploy.server.remote import RemoteHand

        place = {"num_cpus": self._size.processes, "memory": self._size.memory_bytes}
        made = ray.remote(Replica).options(**place, max_restarts=0, scheduling_strategy="SPREAD")
        return RemoteHand(made.remote(self._folder and str(self._folder)), self._names, self._goods, self._ended)

    def _ended(self, ref: Any) -> None:
        self._ending = [*self._ending[-64:], ref]

    def rest(self) -> None:
        """Let replicas that were told to end take their folders away."""
        import ray

        if self._ending:
            ray.wait(self._ending, num_returns=len(self._ending), timeout=_END_S)

    @property
    def plain(self) -> bool:
        """Whether anybody on the way between its machines reads all, and can write."""
        import ray

        hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        return len(hosts) > 1 and os.environ.get("RAY_USE_TLS", "0") not in ("1", "true", "True")

    def check(self, address: str) -> None:
        """InputError where not all replicas have room, with all of the cluster to themselves."""
        import ray

        there, size = ray.cluster_resources(), self._size
        processes, memory = size.replicas * size.processes, size.replicas * size.memory_bytes
        if processes > there.get("CPU", 0) or memory > there.get("memory", 0):
            raise InputError(
                f"{size.replicas} replicas take {processes} processors and {units.data(memory)} as planned, the "
                f"cluster at {address} has {there.get('CPU', 0):g} and {units.data(int(there.get('memory', 0)))}; "
                "serve fewer at once, plan with fewer --workers, or add machines"
            )


@contextmanager
def joined(address: str, size: Size) -> Iterator[Cluster]:
    """The cluster at an address, or of this machine (LOCAL), until the end of the block; EngineError where there is
    none, or one of another release of Ray or Python.
    """
    if importlib.util.find_spec("ray") is None:
        raise EngineError(f"a cluster needs the package 'ray', which is missing; {INSTALL['ray']}")
    with contextlib.ExitStack() as ending:
        folder = _folder(ending) if address == LOCAL else None
        ending.enter_context(_environment({**_SETTINGS, **(_THERE if folder is None else _alone())}))
        if folder is None:
            _probe(address)
        import ray

        ending.callback(ray.shutdown)
        try:
            ray.init(address, logging_level=logging.ERROR, **_own(folder, size))
        except Exception as error:  # of any kind: Ray has no class for them
            raise EngineError(f"no cluster at {address} can be joined: {_reason(error)}") from error
        cluster = Cluster(size, folder)
        if folder is None:
            cluster.check(address)
        ending.callback(cluster.rest)
        yield cluster


def _folder(ending: contextlib.ExitStack) -> Path:
    """For all that a cluster of this machine writes; EngineError where Ray has decided where to listen already."""
    if "ray" in sys.modules:
        raise EngineError("ray is loaded already and would listen beyond this machine; begin a cluster before")
    # a short name, as sockets lie in it; Ray's processes may write their last words as it goes
    made = tempfile.TemporaryDirectory(prefix="sa-", ignore_cleanup_errors=True)
    return Path(ending.enter_context(made))


_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

_THERE = {"RAY_NUM_REDIS_GET_RETRIES": "2"}
"""Tries to hear from a head that is there, of up to 40 s each; Ray's own number is 20."""


def _alone() -> dict[str, str]:
    """Loopback and nothing else, for those who know what only our processes are told."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {**token, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # what it is called where loopback is the default


def _own(folder: Path | None, size: Size) -> dict[str, Any]:
    """Settings of a cluster that is begun here; none where it is there already."""
    if folder is None:
        return {}
    return {
        "num_cpus": size.replicas * size.processes,
        "num_gpus": 0,
        "include_dashboard": False,
        "object_store_memory": max(_LEAST_STORE_BYTES, 2 * size.replicas * size.job_bytes),
        "_memory": size.replicas * size.memory_bytes,
        "_temp_dir": str(folder),
    }


def packed(served: Served) -> tuple[tuple[str, str, str], dict[str, bytes]]:
    """Names for a model, a protocol and a plan in a replica's folder, and their files."""
    model, protocol = find("models", served.model), find("protocols", served.protocol)
    kept = [path for path in sorted(model.iterdir()) if path.suffix in _GOODS]
    files = {f"model/{path.name}": path for path in kept}
    names = ("model", f"protocol/{protocol.name}", "plan.json")
    files |= {names[1]: protocol, names[2]: served.plan}
    return names, {name: path.read_bytes() for name, path in files.items()}


def _probe(address: str) -> None:
    """EngineError unless somebody listens, which Ray itself finds out only after minutes."""
    if address == FOUND:
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise InputError(f"{address!r} is no cluster: {LOCAL}, {FOUND}, or HOST:PORT of its head are")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
    except (OSError, OverflowError) as error:
        raise EngineError(f"no cluster at {address} can be reached ({error}); start one: ray start --head") from error


def _reason(error: BaseException) -> str:
    """In one line, what is at the bottom of it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables that Ray reads, and the processes that it begins, until the end of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
