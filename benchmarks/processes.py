"""Processes timed and weighed: a command, a run on shares by the command line's own owner, client and dealer, or what
a call starts.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

SEATS = ("owner", "client", "dealer")
_EVERY_S = 0.05
_Found = TypeVar("_Found")
Running = Mapping[str, "subprocess.Popen[bytes]"]


def weighed(command: Sequence[str]) -> tuple[float, int]:
    """Seconds a command took, and bytes at its peak; SystemExit where it fails."""
    ((_, seconds, peak),) = _ended({" ".join(command): subprocess.Popen(command, stdout=subprocess.DEVNULL)})
    return seconds, peak


def parties(model: str | Path, protocol: str, inputs: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """What each process took: seconds from its start to its end, bytes at its peak, and its own profile, in which the
    dealer has no events. SystemExit where one fails. Each computes on one thread, as they share this machine's cores.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "secureattn.cli", "party", str(model), protocol]
    command += ["--rendezvous", f"127.0.0.1:{port}", "--wait", "300"]
    client = ["--input", str(inputs), "-o", str(folder / "party.npy")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = {}
    for seat in SEATS:
        more = ["--rank", seat, "--json", str(folder / f"party-{seat}.json"), *(client if seat == "client" else ())]
        running[seat] = subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, env=environment)
    found = {}
    for seat, seconds, peak in _ended(running):
        profile = json.loads((folder / f"party-{seat}.json").read_text())
        found[seat] = {"seconds": seconds, "peak_bytes": peak, "profile": profile}
    return {seat: found[seat] for seat in SEATS}


def heaviest(work: Callable[[], _Found]) -> tuple[_Found, int]:
    """What a call returns, and bytes at the peak of the largest process that it started."""
    peaks, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(_EVERY_S):
            peaks.extend(map(peak_bytes, descendants(os.getpid())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return work(), max(peaks)
    finally:
        over.set()
        watcher.join()


def _ended(processes: Running) -> Iterator[tuple[str, float, int]]:
    """Each as it ends, by name: seconds since now, and its peak."""
    started, running, peaks = time.perf_counter(), dict(processes), dict.fromkeys(processes, 0)
    while running:
        time.sleep(_EVERY_S)
        for name, process in list(running.items()):
            peaks[name] = max(peaks[name], peak_bytes(process.pid))
            if process.poll() is None:
                continue
            if process.returncode:
                raise SystemExit(f"{name} ended with status {process.returncode}")
            del running[name]
            yield name, time.perf_counter() - started, peaks[name]


def peak_bytes(pid: int) -> int:
    """The most memory a process has had since it was started; what the system says of ended ones counts its parent's.

    0 for one that has ended.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def descendants(pid: int) -> Iterator[int]:
    """Processes that a process started, and those that they started."""
    parents = dict(filter(None, map(_parent, Path("/proc").iterdir())))
    for one in parents:
        at: int | None = parents[one]
        while at is not None and at != pid:
            at = parents.get(at)
        if at == pid:
            yield one


def _parent(folder: Path) -> tuple[int, int] | None:
    if not folder.name.isdigit():
        return None
    try:
        return int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended
        return None
