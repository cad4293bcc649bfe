"""A worker process as the server sees it: started, told a job, listened to, ended with all it has forked."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Protocol

from secureattn.backends.ckks.processes import Link
from secureattn.deploy.server.settings import Served
from secureattn.errors import EngineError


class Died(EngineError):
    """The worker is gone in the middle of a job."""


class Gone(Died):
    """The worker was gone before it was told of a job, which is not to blame."""


class Worker(Protocol):
    """What the queue needs of a worker, wherever it is. ``keys``: those of the job it did last, which it has loaded."""

    keys: str

    async def ready(self) -> None:
        """Wait until it has loaded the model; EngineError where it cannot."""

    async def tell(self, note: Any) -> None:
        """Say a few words; Gone where nobody was there to be told of a job, else Died where it dies."""

    async def hear(self) -> dict[str, Any]:
        """What it says next; Died where it is gone. May be given up and asked again: nothing it says is lost."""

    async def memory_bytes(self) -> int:
        """What it has in memory; 0 where nobody says."""

    def end(self) -> None:
        """It is over, whatever it is doing."""


class Hand:
    """A worker process on this machine."""

    def __init__(self, served: Served) -> None:
        self.keys = ""
        ours, theirs = Pipe()
        handle = theirs.fileno()
        command = [sys.executable, "-m", "secureattn.deploy.worker", str(handle)]
        command += [served.model, served.protocol, str(served.plan)]
        self._process = subprocess.Popen(command, pass_fds=[handle], start_new_session=True, stdin=subprocess.DEVNULL)
        theirs.close()
        self._link = Link(ours)

    async def ready(self) -> None:
        """Wait until it has loaded the model; EngineError where it cannot."""
        told = await self.hear()
        if "unfit" in told:
            raise EngineError(str(told["unfit"]))

    async def tell(self, note: Any) -> None:
        """Say a few words; Gone or Died where nobody is there."""
        try:
            self._link.send(note)
        except OSError:
            raise (Died if "answered" in note else Gone)(self._death()) from None

    async def hear(self) -> dict[str, Any]:
        """What it says next; Died where it is gone."""
        loop, heard = asyncio.get_running_loop(), asyncio.Event()
        handle = self._link.way.fileno()
        if not self._link.way.poll():
            loop.add_reader(handle, heard.set)
            try:
                await heard.wait()
            finally:
                loop.remove_reader(handle)
        try:
            note, _ = self._link.receive()
        except (EOFError, OSError):
            raise Died(self._death()) from None
        return dict(note)

    async def memory_bytes(self) -> int:
        """What its processes have in memory, pages that they share counted once; 0 where the system does not say."""
        return await asyncio.to_thread(lambda: sum(map(_proportional, _session(self._process.pid))))

    def end(self) -> None:
        """It is over, whatever it is doing, with every process it has forked."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._link.way.close()

    def _death(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


def _session(leader: int) -> list[int]:
    """The processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int(path.read_text().rpartition(")")[2].split()[3]) == leader:
                found.append(int(path.parent.name))
    return found


def _proportional(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0
