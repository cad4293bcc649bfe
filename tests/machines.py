"""Machines of a cluster that are none: the namespaces of ``capture``, with processes of ours in them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import capture

_NEW_NET = 0x40000000  # CLONE_NEWNET


@dataclass(frozen=True)
class Machine:
    """One of them: the process that holds its namespace, and its address."""

    holder: int
    address: str

    def run(self, *command: str) -> str:
        """What a command prints that ends well there."""
        done = subprocess.run([*capture.inside(self.holder), *command], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def processes(self, called: str = "") -> list[int]:
        """What runs there, by process, but for what holds it and ourselves."""
        found, here = [], Path(f"/proc/{self.holder}/ns/net").readlink()
        for path in Path("/proc").glob("[0-9]*"):
            pid = int(path.name)
            with contextlib.suppress(OSError):
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if (
                    (path / "ns" / "net").readlink() == here
                    and pid not in (self.holder, os.getpid())
                    and called in line
                ):
                    found.append(pid)
        return sorted(found)

    def kill(self) -> None:
        """All that runs there is gone, as if power were."""
        while living := self.processes():
            for pid in living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and what it starts, there until the end of the block."""
        with Path("/proc/thread-self/ns/net").open() as own, Path(f"/proc/{self.holder}/ns/net").open() as there:
            _enter(there)
            try:
                yield
            finally:
                _enter(own)


def _enter(namespace: IO[str]) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _NEW_NET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def machines() -> Iterator[list[Machine]]:
    """Three, each with a way to each; whatever runs there ends with the block."""
    with capture.joined() as holders:
        made = [Machine(holder, capture.address(i)) for i, holder in enumerate(holders)]
        try:
            yield made
        finally:
            for machine in made:
                machine.kill()
