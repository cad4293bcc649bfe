"""How much memory a CKKS run takes at its peak, both roles on one machine."""

from __future__ import annotations

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
    included; ciphertexts and what is encoded to be kept; messages of the largest refresh; all workers but the first.
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
        workers=(workers - 1) * (pools.worker + _WORKER_BYTES) if pools.worker else 0,
    )


def resident() -> int:
    """Bytes of this process in memory now, where the system says so; else the most it ever had."""
    try:
        with Path("/proc/self/statm").open() as status:
            return int(status.read().split()[1]) * resource.getpagesize()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
