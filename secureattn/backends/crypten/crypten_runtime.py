"""The real runtime: one party's process, on CrypTen's communicator, binary circuits and provider interface.

Masks and shares come from ChaCha20 streams: one key for each party and the dealer, one for each party and its
neighbour, made at set-up by the operating system's generator.
"""

from __future__ import annotations

import time
from collections.abc import MutableSequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from secureattn.backends.crypten.communicator import PartyCommunicator, crypten
from secureattn.backends.crypten.csprng import KEY_BYTES, Csprng, key_to_words, new_key, words_to_key
from secureattn.backends.crypten.dealer import Dealer, deal_keys
from secureattn.backends.crypten.harmonics import turned_back
from secureattn.backends.crypten.material import Kind, Request, draw, elements
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.provider import plug_in
from secureattn.backends.crypten.runtime import Runtime
from secureattn.backends.crypten.transport import Link, join, leave
from secureattn.series import FourierSeries

_primitives: Any = crypten.mpc.primitives
_Arithmetic: Any = _primitives.ArithmeticSharedTensor
_ptype: Any = crypten.mpc.ptype


class CryptenRuntime(Runtime):
    """One party. Made by ``connect``; ``finish`` ends the run in good order."""

    def __init__(self, parameters: MpcParameters, link: Link, group: Any) -> None:
        super().__init__(parameters, link.rank)
        self._link = link
        with link.exchange():
            own, self._dealer = self._dealer_key()
            previous, following = self._neighbour_keys()
        self._stream, self._previous, self._following = Csprng(own), Csprng(previous), Csprng(following)
        self._communicator = PartyCommunicator(group, link, parameters.parties, self.count)
        plug_in(self, self._communicator, previous=self._previous, following=self._following, local=Csprng(new_key()))

    @classmethod
    def connect(
        cls,
        parameters: MpcParameters,
        *,
        rank: int,
        init_method: str,
        waiting: MutableSequence[int] | None = None,
    ) -> CryptenRuntime:
        """Join the other processes at ``init_method`` and agree on keys.

        Cost: 32 bytes to the next party, 32 bytes from the dealer. Not counted in any operation.
        """
        link = Link(rank, waiting)
        with link.exchange():
            group = join(parameters, rank=rank, init_method=init_method)
        return cls(parameters, link, group)

    def finish(self) -> None:
        """Wait for all parties, stop the dealer, close the connections."""
        with self._link.exchange():
            dist.barrier(group=self._communicator.main_group)
            if self.rank == 0 and self.parameters.dealer == "ttp":
                dist.send(Request(Kind.STOP).header(), self.parameters.parties)
        crypten.communicator.DistributedCommunicator.instance = None
        leave()

    # ---- primitives -----------------------------------------------------------------------------------------

    def constant(self, values: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(np.array(values, dtype=np.int64))  # a copy: torch wants writable memory

    def share(self, values: npt.NDArray[np.int64], *, owner: int) -> torch.Tensor:
        zero = self._zero_share(values.shape)
        return zero + self.constant(values) if self.rank == owner else zero

    def reveal(self, share: torch.Tensor, *, to: int | None) -> torch.Tensor | None:
        fresh = share + self._zero_share(tuple(share.shape))  # what is sent tells nothing but the sum
        result = self._communicator.all_reduce(fresh) if to is None else self._communicator.reduce(fresh, to)
        return result if isinstance(result, torch.Tensor) else None

    def _from_first(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        words = values.view(np.int64)
        agreed: npt.NDArray[np.float64] = (
            self._exchange(self.constant(words if self.rank == 0 else np.zeros_like(words))).numpy().view(np.float64)
        )
        return agreed

    def _deal(self, request: Request) -> tuple[torch.Tensor, ...]:
        masks, derived = draw(request, self._stream, derived=self.rank > 0)
        if self.rank == 0:
            flat = self._correction(request)
            parts = torch.split(flat, [elements(shape) for shape in request.derived]) if request.derived else ()
            derived = [part.reshape(shape) for part, shape in zip(parts, request.derived, strict=True)]
        return (*masks, *derived)

    def _exchange(self, flat: torch.Tensor) -> torch.Tensor:
        opened: torch.Tensor = self._communicator.all_reduce(flat)
        return opened

    def _sign_bit(self, share: torch.Tensor) -> torch.Tensor:
        bits = _primitives.converters.convert(_Arithmetic.from_shares(share, precision=0), _ptype.binary)
        bits.share = (bits.share >> 63) & 1
        result: torch.Tensor = _primitives.beaver.B2A_single_bit(bits).share
        return result

    def _multiply(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        start = time.perf_counter()
        product = torch.matmul(x, y)
        self.count("macs", product.numel() * x.shape[-1], time.perf_counter() - start)
        return product

    def _turned_back(
        self, opened: torch.Tensor, dealt: torch.Tensor, series: FourierSeries, bits: int, places: int
    ) -> torch.Tensor:
        start = time.perf_counter()
        total = turned_back(opened, dealt, series, bits, places)
        self.count("harmonics", opened.numel() * series.harmonics, time.perf_counter() - start)
        return total

    # ---- randomness -----------------------------------------------------------------------------------------

    def _zero_share(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Shares that add up to zero, from the keys shared with both neighbours; no message."""
        return self._previous.ring(shape) - self._following.ring(shape)

    def _correction(self, request: Request) -> torch.Tensor:
        if self._dealer is not None:
            return self._dealer.correction(request)
        start, dealer = time.perf_counter(), self.parameters.parties
        correction = torch.empty(request.correction_bytes // 8, dtype=torch.int64)
        with self._link.exchange():
            dist.send(request.header(), dealer)
            if correction.numel():
                dist.recv(correction, dealer)
        seconds = time.perf_counter() - start
        self.count("dealer_bytes", correction.numel() * correction.element_size(), seconds)
        return correction

    def _dealer_key(self) -> tuple[bytes, Dealer | None]:
        """The key shared with the dealer, who is party 0 itself under ``tfp``."""
        parties = self.parameters.parties
        if self.parameters.dealer == "ttp":
            return _receive_key(parties), None
        if self.rank > 0:
            return _receive_key(0), None
        own, others = new_key(), deal_keys(range(1, parties))
        return own, Dealer([own, *(others[rank] for rank in range(1, parties))])

    def _neighbour_keys(self) -> tuple[bytes, bytes]:
        """The key from the party before, and the one made for the party after."""
        parties, following = self.parameters.parties, new_key()
        sent = dist.isend(key_to_words(following), (self.rank + 1) % parties)
        previous = _receive_key((self.rank - 1) % parties)
        if sent is not None:
            sent.wait()
        return previous, following


def _receive_key(source: int) -> bytes:
    words = torch.empty(KEY_BYTES // 8, dtype=torch.int64)
    dist.recv(words, source)
    return words_to_key(words)
