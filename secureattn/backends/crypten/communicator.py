"""CrypTen's communicator with our counting, one message for a batch, and a reveal that tells nobody else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch
from torch.distributed import ReduceOp

from secureattn.backends.crypten.install import load_crypten
from secureattn.backends.crypten.transport import Mesh
from secureattn.errors import EngineError

crypten = load_crypten()
_Base: Any = crypten.communicator.DistributedCommunicator

Count = Callable[[str, int, float], None]


class PartyCommunicator(_Base):  # type: ignore[misc]
    """What CrypTen's own functions and ours send through.

    ``count`` receives rounds, bytes_sent and openings, measured on the tensors handed over.
    """

    def __init__(self, mesh: Mesh, parties: int, count: Count) -> None:
        # in place of CrypTen's constructor, which reads the environment and talks through torch.distributed
        self.rank = mesh.rank
        self.world_size = parties
        self.main_group = None
        self.ttp_initialized = False
        self._name = f"party {mesh.rank}"
        self._mesh = mesh
        self._others = [rank for rank in range(parties) if rank != mesh.rank]
        self._count = count
        self.reset_communication_stats()

    def all_reduce(self, input: Any, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """Combine the parties' tensors for all of them: each sends its own to every other, all at once.

        Cost: one round and P-1 times the tensor's bytes sent.
        """
        if batched:
            flat = self.all_reduce(torch.cat([part.reshape(-1) for part in input]), op=op)
            parts = torch.split(flat, [part.numel() for part in input])
            return [part.reshape(like.shape) for part, like in zip(parts, input, strict=True)]
        start = time.perf_counter()
        own = input.detach().cpu().contiguous()
        result = _combined(own, self._mesh.exchange(own, self._others), op)
        self._note(start, own.numel() * own.element_size() * len(self._others), own.numel())
        return result.to(input.device)

    def reduce(self, input: Any, dst: int, op: Any = ReduceOp.SUM, batched: bool = False) -> Any:
        """Combine the parties' tensors at ``dst`` alone. Cost: one round, 8·n bytes sent by each of the others."""
        if batched:
            results = [self.reduce(part, dst, op=op) for part in input]
            return results if self.rank == dst else None
        start, sent = time.perf_counter(), 0
        own, result = input.detach().cpu().contiguous(), None
        if self.rank == dst:
            shares = (self._mesh.receive(own, other) for other in self._others)
            result = _combined(own, shares, op).to(input.device)
        else:
            self._mesh.send(own, dst)
            sent = own.numel() * own.element_size()
        self._note(start, sent)
        return result

    def broadcast(self, input: Any, src: int, group: Any = None, batched: bool = False) -> Any:
        """The tensor of ``src`` at every party. Cost: one round, its bytes from ``src`` to each other."""
        if batched:
            return [self.broadcast(part, src) for part in input]
        start, sent = time.perf_counter(), 0
        own = input.detach().cpu().contiguous()
        if self.rank == src:
            for other in self._others:
                self._mesh.send(own, other)
                sent += own.numel() * own.element_size()
        else:
            own = self._mesh.receive(own, src)
        self._note(start, sent)
        return own.to(input.device)

    def barrier(self) -> None:
        """Wait for all parties. Not counted."""
        self._mesh.barrier(self._others)

    def get_rank(self) -> int:
        """This party."""
        return self.rank

    def get_world_size(self) -> int:
        """The number of parties."""
        return self.world_size

    def _note(self, start: float, sent: int, opened: int = 0) -> None:
        self._count("rounds", 1, time.perf_counter() - start)
        self._count("bytes_sent", sent, 0.0)
        if opened:
            self._count("openings", opened, 0.0)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise EngineError("objects are not sent between parties; give shapes instead of broadcast_size=True")

    send_obj = recv_obj = broadcast_obj = _refuse


def _combined(own: torch.Tensor, shares: Iterable[torch.Tensor], op: Any) -> torch.Tensor:
    if op not in (ReduceOp.SUM, ReduceOp.BXOR):
        raise EngineError(f"shares are added or XORed, not combined by {op}")
    total = own.clone()
    for share in shares:
        total = total.bitwise_xor_(share) if op == ReduceOp.BXOR else total.add_(share)
    return total
