"""The real runtime: one party's process, on CrypTen's communicator, binary circuits and provider interface.

Masks and shares come from ChaCha20 streams: one key for each party and the dealer, one for each party and its
neighbour, made at set-up by the operating system's generator.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.distributed import ReduceOp

from secureattn.backends.crypten import ring
from secureattn.backends.crypten.communicator import PartyCommunicator, crypten
from secureattn.backends.crypten.csprng import KEY_BYTES, Csprng, key_to_words, new_key, words_to_key
from secureattn.backends.crypten.dealer import Dealer, ask, deal_keys
from secureattn.backends.crypten.harmonics import turned_back
from secureattn.backends.crypten.material import Kind, Request, draw, elements
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.provider import plug_in
from secureattn.backends.crypten.runtime import Runtime
from secureattn.backends.crypten.transport import Mesh
from secureattn.series import FourierSeries


class CryptenRuntime(Runtime):
    """One party, on its connections; ``finish`` ends the run in good order.

    Shares are on ``device``, "cpu" or "cuda"; parties may differ in it. Agrees on keys first: 32 bytes to the next
    party, 32 bytes from the dealer, not counted in any operation.
    """

    def __init__(self, parameters: MpcParameters, mesh: Mesh, *, device: str = "cpu") -> None:
        super().__init__(parameters, mesh.rank)
        self.device = ring.device_of(device)
        self._mesh = mesh
        own, self._dealer = self._dealer_key()
        previous, following = self._neighbour_keys()
        self._stream, self._previous, self._following = Csprng(own), Csprng(previous), Csprng(following)
        self._communicator = PartyCommunicator(mesh, parameters.parties, self.count)
        plug_in(self, self._communicator, previous=self._previous, following=self._following, local=Csprng(new_key()))

    def finish(self) -> None:
        """Wait for all parties and stop the dealer."""
        self._communicator.barrier()
        if self.rank == 0 and self.parameters.dealer == "ttp":
            ask([Request(Kind.STOP)], self._mesh, self.parameters.parties)
        crypten.communicator.DistributedCommunicator.instance = None

    # ---- primitives -----------------------------------------------------------------------------------------

    def constant(self, values: npt.NDArray[np.int64]) -> torch.Tensor:
        own = torch.from_numpy(np.array(values, dtype=np.int64))  # a copy: torch wants writable memory
        return own.to(self.device)

    def share(self, values: npt.NDArray[np.int64], *, owner: int) -> torch.Tensor:
        zero = self._zero_share(values.shape)
        return zero + self.constant(values) if self.rank == owner else zero

    def reveal(self, share: torch.Tensor, *, to: int | None) -> torch.Tensor | None:
        fresh = share + self._zero_share(tuple(share.shape))  # what is sent tells nothing but the sum
        result = self._communicator.all_reduce(fresh) if to is None else self._communicator.reduce(fresh, to)
        return result if isinstance(result, torch.Tensor) else None

    def from_first(self, values: torch.Tensor) -> torch.Tensor:
        told: torch.Tensor = self._communicator.broadcast(values, 0)
        return told

    def to_first(self, flat: torch.Tensor) -> torch.Tensor | None:
        total: torch.Tensor | None = self._communicator.reduce(flat, 0)
        self.count("openings", flat.numel())
        return total

    def exchange(self, flat: torch.Tensor, *, xor: bool = False) -> torch.Tensor:
        opened: torch.Tensor = self._communicator.all_reduce(flat, op=ReduceOp.BXOR if xor else ReduceOp.SUM)
        return opened

    def _dealt(self, requests: Sequence[Request]) -> Iterator[tuple[torch.Tensor, ...]]:
        if self.rank == 0 and self._dealer is None:
            ask(requests, self._mesh, self.parameters.parties)
        for request in requests:
            masks, derived = draw(request, self._stream, self.rank)
            if self.rank == 0:
                flat = self._correction(request)
                parts = torch.split(flat, [elements(shape) for shape in request.derived]) if request.derived else ()
                derived = [part.reshape(shape) for part, shape in zip(parts, request.derived, strict=True)]
            yield tuple(part.to(self.device) for part in (*masks, *derived))

    def multiply(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        product = ring.matmul(x, y)
        self.count("macs", product.numel() * x.shape[-1], time.perf_counter() - start)
        return product

    def turned_back(
        self, opened: torch.Tensor, dealt: torch.Tensor, series: FourierSeries, bits: int, places: int
    ) -> torch.Tensor:
        start = time.perf_counter()
        total = turned_back(opened, dealt, series, bits, places)
        self.count("harmonics", opened.numel() * series.harmonics, time.perf_counter() - start)
        return total

    # ---- randomness -----------------------------------------------------------------------------------------

    def _zero_share(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Shares that add up to zero, from the keys shared with both neighbours; no message."""
        zero = self._previous.ring(shape) - self._following.ring(shape)
        return zero.to(self.device)

    def _correction(self, request: Request) -> torch.Tensor:
        if self._dealer is not None:
            return self._dealer.correction(request)
        start, dealer = time.perf_counter(), self.parameters.parties
        correction = torch.empty(request.correction_bytes // 8, dtype=torch.int64)
        if correction.numel():
            correction = self._mesh.receive(correction, dealer)
        seconds = time.perf_counter() - start
        self.count("dealer_bytes", correction.numel() * correction.element_size(), seconds)
        return correction

    def _dealer_key(self) -> tuple[bytes, Dealer | None]:
        """The key shared with the dealer, who is party 0 itself under ``tfp``."""
        parties = self.parameters.parties
        if self.parameters.dealer == "ttp":
            return self._receive_key(parties), None
        if self.rank > 0:
            return self._receive_key(0), None
        own, others = new_key(), deal_keys(self._mesh, range(1, parties))
        return own, Dealer([own, *(others[rank] for rank in range(1, parties))])

    def _neighbour_keys(self) -> tuple[bytes, bytes]:
        """The key from the party before, and the one made for the party after."""
        parties, following = self.parameters.parties, new_key()
        self._mesh.deliver(key_to_words(following), (self.rank + 1) % parties)
        previous = self._receive_key((self.rank - 1) % parties)
        self._mesh.delivered()
        return previous, following

    def _receive_key(self, source: int) -> bytes:
        return words_to_key(self._mesh.receive(torch.empty(KEY_BYTES // 8, dtype=torch.int64), source))
