"""A run on shares by the command line's own parties: owner, client and dealer as processes, timed and weighed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SEATS = ("owner", "client", "dealer")


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
    started, running = time.perf_counter(), dict[int, tuple[str, subprocess.Popen[bytes]]]()
    for seat in SEATS:
        more = ["--rank", seat, "--json", str(folder / f"party-{seat}.json"), *(client if seat == "client" else ())]
        process = subprocess.Popen([*command, *more], stdout=subprocess.DEVNULL, env=environment)
        running[process.pid] = seat, process
    found: dict[str, dict[str, Any]] = {}
    for _ in SEATS:
        pid, status, usage = os.wait4(-1, 0)
        (seat, process), seconds = running[pid], time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)  # waited for here, for the sake of its usage
        if status:
            raise SystemExit(f"the {seat} ended with status {process.returncode}")
        profile = json.loads((folder / f"party-{seat}.json").read_text())
        found[seat] = {"seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024, "profile": profile}
    return found
