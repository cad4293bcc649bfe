"""How much memory a CKKS run takes at its peak, both roles on one machine."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.backends.ckks.pools import Pools

# Measured with SEAL 4.3, 2^13 to 2^15, 3 to 18 levels: a context holds tables for every prime at every level; a worker
# writes to pages that it shares with its parent at first.
_CONTEXT_BYTES = 75
_WORKER_BYTES = 60 << 20


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak: ``process``, the interpreter with its libraries; the rings of both roles; keys, the public one
    included; ciphertexts and what is encoded to be kept; messages of the largest refresh; what several ``workers`` take
    beside that, as each has for itself what is not worth sharing, and its part of what is before all see it.
    """

    process: int
    contexts: int
    keys: int
    ciphertexts: int
    messages: int
    workers: int

    @property
    def total(self) -> int:
        """All of it, pages that processes share counted once."""
        return self.process + self.contexts + self.keys + self.ciphertexts + self.messages + self.workers

    def parts(self) -> Mapping[str, int]:
        """By name, with the total."""
        names = ("process", "contexts", "keys", "ciphertexts", "messages", "workers", "total")
        return {name: getattr(self, name) for name in names}


def memory(parameters: CkksParameters, pools: Pools, rotations: int, workers: int) -> Memory:
    """The peak of a run whose ciphertexts were planned."""
    primes = len(parameters.primes)
    context = _CONTEXT_BYTES * parameters.ring_degree * primes * (primes + 1) // 2
    return Memory(
        process=resident(),
        contexts=2 * context,
        keys=(rotations + 1) * parameters.key_bytes() + 2 * parameters.public_key_bytes(),
        ciphertexts=pools.ciphertexts,
        messages=pools.messages,
        workers=(workers - 1) * (pools.repeated + _WORKER_BYTES) + workers * pools.worker if pools.worker else 0,
    )


def installed() -> float:
    """Bytes of memory this machine has, or its control group allows; infinite where the system does not say."""
    found = [math.inf]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" is none
            found.append(int(Path(limit).read_text()))
    return min(found)


def resident() -> int:
    """Bytes of this process in memory now, where the system says so; else the most it ever had."""
    try:
        with Path("/proc/self/statm").open() as status:
            return int(status.read().split()[1]) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
