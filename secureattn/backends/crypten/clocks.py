"""Where a process's clock stands against the first one's, so that what all recorded fits on one time line.

Processes of one machine share its monotonic clock. Between machines the offset is estimated over their connection.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from secureattn.backends.crypten.transport import Mesh

TIMES = 8
"""Questions to the first process, of which the one answered soonest counts."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Offset:
    """``seconds`` to add to this process's clock for the first one's, wrong by ``error_s`` at most."""

    seconds: float
    error_s: float

    def along(self, later: Offset) -> Offset:
        """For a whole run, measured before it and after: the middle of both; clocks that drift apart add to the error.

        ``|o(t) − (a+b)/2| ≤ |a−b|/2 + max(error)`` where the offset changes evenly.
        """
        apart = abs(later.seconds - self.seconds)
        return Offset((self.seconds + later.seconds) / 2, apart / 2 + max(self.error_s, later.error_s))


def identity() -> str:
    """Equal for processes that share a clock: a hash of this boot and time namespace; empty where nobody knows."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        offsets = Path("/proc/self/timens_offsets")
        boot += offsets.read_text(encoding="ascii") if offsets.exists() else ""
    except OSError:
        return ""
    return hashlib.sha256(boot.encode()).hexdigest()[:16]


def compared(mesh: Mesh, clocks: Sequence[str], clock: Clock = time.perf_counter) -> Offset:
    """This process's offset to the first one, who is asked by all others, in turn; every process has to call this.

    ``clocks``: identities by rank; an empty one is shared with nobody. Formula: with the question sent at a, the answer
    read at b and t said meanwhile, the offset is t − (a + b)/2, wrong by at most (b − a)/2. Cost: 8 round trips of 8
    bytes each way; none, and no error, for processes that share the first one's clock.
    Source: Cristian, Probabilistic clock synchronization, Distributed Computing 3, 1989.
    """
    apart = [rank for rank, other in enumerate(clocks) if rank and not (other and other == clocks[0])]
    question = torch.zeros(1, dtype=torch.int64)
    if mesh.rank == 0:
        for other in apart:
            for _ in range(TIMES):
                mesh.receive(question, other)
                mesh.send(torch.tensor([round(clock() * 1e9)]), other)
        return Offset(0.0, 0.0)
    if mesh.rank not in apart:
        return Offset(0.0, 0.0)
    found = []
    for _ in range(TIMES):
        asked = clock()
        mesh.send(question, 0)
        said = int(mesh.receive(question, 0)) / 1e9
        read = clock()
        found.append(Offset(said - (asked + read) / 2, (read - asked) / 2))
    return min(found, key=lambda offset: offset.error_s)
