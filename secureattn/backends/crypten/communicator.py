"""CrypTen's communicator with our counting, one message for a batch, and a reveal that tells nobody else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.distributed import ReduceOp

from secureattn.backends.crypten.install import load_crypten
from secureattn.backends.crypten.planning import ring_bytes
from secureattn.backends.crypten.transport import Link
from secureattn.errors import EngineError

crypten = load_crypten()
_Base: Any = crypten.communicator.DistributedCommunicator

Count = Callable[[str, int, float], None]


class PartyCommunicator(_Base):  # type: ignore[misc]
    """What CrypTen's own functions and ours send through. CrypTen's counters keep working underneath.

    ``count`` receives rounds, bytes_sent and openings, measured on the tensors handed to torch.
    """

    def __init__(self, group: Any, link: Link, parties: int, count: Count) -> None:
        # in place of CrypTen's constructor, which reads the environment and would not know our groups
        self.rank = link.rank
        self.world_size = parties
        self.main_group = group
        self.ttp_initialized = False
        self._name = f"party {link.rank}"
        self._link = link
        self._count = count
        self.reset_communication_stats()

    def all_reduce(self, input: Any, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """Combine the parties' tensors for all of them. Cost: one round and 2·(P-1)/P times the tensor's bytes sent."""
        if batched:
            flat = self.all_reduce(torch.cat([part.reshape(-1) for part in input]), op=op)
            parts = torch.split(flat, [part.numel() for part in input])
            return [part.reshape(like.shape) for part, like in zip(parts, input, strict=True)]
        start = time.perf_counter()
        with self._link.exchange():
            result = super().all_reduce(input.contiguous(), op=op)
        self._count("rounds", 1, time.perf_counter() - start)
        self._count("bytes_sent", ring_bytes(input, self.world_size), 0.0)
        self._count("openings", input.numel(), 0.0)
        return result

    def reduce(self, input: Any, dst: int, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """Combine the parties' tensors at ``dst`` alone. Cost: one round, 8·n bytes sent by each of the others.

        Sent point to point: torch's reduce is a reduce-scatter first and leaves parts of the plain result with
        parties that should not see it.
        """
        if batched:
            results = [self.reduce(part, dst, op=op) for part in input]
            return results if self.rank == dst else None
        start, sent = time.perf_counter(), 0
        result = input.contiguous().clone()
        with self._link.exchange():
            if self.rank == dst:
                for other in range(self.world_size):
                    if other != dst:
                        share = self.recv(result, other)
                        result = result ^ share if op == ReduceOp.BXOR else result + share
            else:
                self.send(result, dst)
                sent = result.numel() * result.element_size()
        self._count("rounds", 1, time.perf_counter() - start)
        self._count("bytes_sent", sent, 0.0)
        return result if self.rank == dst else None

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise EngineError("objects are not sent between parties; give shapes instead of broadcast_size=True")

    send_obj = recv_obj = broadcast_obj = _refuse
