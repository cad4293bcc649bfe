"""A runtime that computes nothing: the same protocols over shapes alone, counting what the real one will do.

Needs torch and not CrypTen. Seconds are modelled from the counts by ``UNIT_S``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from secureattn.backends.crypten.material import Kind, Request, elements
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.runtime import Runtime
from secureattn.series import FourierSeries

UNIT_S = {
    "rounds": 1.0e-3,
    "bytes_sent": 1.4e-9,
    "openings": 6e-9,
    "dealer_requests": 8e-4,
    "dealer_bytes": 7e-10,
    "dealer_macs": 1.3e-10,
    "keystream_bytes": 1.4e-9,
    "products": 8e-9,
    "macs": 1.3e-10,
    "harmonics": 1.5e-8,
    "truncations": 8e-9,
    "comparisons": 5.5e-7,
}
"""Modelled seconds a primitive: two parties and a dealer sharing two x86-64 cores (AVX-512), torch 2.13, loopback.

Measured on [360,16,64] values and 200 squares of 64. ``keystream_bytes`` holds the dealer's expansion of both keys,
for which party 0 waits; batched products of small matrices are slower than ``macs`` says, by up to 8 times."""

_ADDER_LEVELS = 6  # log2 of 64 bits


class NullRuntime(Runtime):
    """Plans for party ``rank``. ``requests`` notes what the dealer will be asked, in order, for ``prepare``."""

    def __init__(self, parameters: MpcParameters | None = None, rank: int = 0) -> None:
        super().__init__(parameters or MpcParameters(), rank)
        self.requests: list[Request] = []

    def constant(self, values: npt.NDArray[np.int64]) -> torch.Tensor:
        return _meta(values.shape)

    def share(self, values: npt.NDArray[np.int64], *, owner: int) -> torch.Tensor:
        return _meta(values.shape)

    def reveal(self, share: torch.Tensor, *, to: int | None) -> torch.Tensor | None:
        if to is None:
            return torch.zeros(self._exchange(share).shape, dtype=torch.int64)
        self.count("rounds", 1)
        self.count("bytes_sent", 0 if self.rank == to else 8 * share.numel())
        return torch.zeros(share.shape, dtype=torch.int64) if self.rank == to else None

    def count(self, name: str, times: int, seconds: float = 0.0) -> None:
        super().count(name, times, UNIT_S[name] * times)

    def _from_first(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        self._exchange(_meta(values.shape))
        return values

    def _deal(self, request: Request) -> tuple[torch.Tensor, ...]:
        self.requests.append(request)
        if self.rank == 0 and self.parameters.dealer == "ttp":
            self.count("dealer_bytes", request.correction_bytes)
        return tuple(_meta(shape) for shape in (*request.masks, *request.derived))

    def _exchange(self, flat: torch.Tensor) -> torch.Tensor:
        self.count("rounds", 1)
        self.count("openings", flat.numel())
        self.count("bytes_sent", ring_bytes(flat, self.parameters.parties))
        return flat

    def _sign_bit(self, share: torch.Tensor) -> torch.Tensor:
        """Replay CrypTen's circuits: add the parties' shares as binary numbers pairwise, then convert one bit.

        An adder of n numbers is one AND of n and six of 2n elements; P parties' shares take ⌈log2 P⌉ levels of them.
        """
        n, left = share.numel(), self.parameters.parties
        while left > 1:
            self._and((left // 2 * n,))
            for _ in range(_ADDER_LEVELS):
                self._and((2 * (left // 2) * n,))
            left -= left // 2
        self.deal(Request(Kind.BIT, tuple(share.shape)))
        return self._exchange(_meta(share.shape))

    def _and(self, shape: Sequence[int]) -> None:
        self.deal(Request(Kind.AND, tuple(shape), tuple(shape)))
        self._exchange(_meta((2 * elements(shape),)))

    def _multiply(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        product = torch.matmul(x, y)
        self.count("macs", product.numel() * x.shape[-1])
        return product

    def _turned_back(
        self, opened: torch.Tensor, dealt: torch.Tensor, series: FourierSeries, bits: int, places: int
    ) -> torch.Tensor:
        self.count("harmonics", opened.numel() * series.harmonics)
        return _meta(opened.shape)


def ring_bytes(sent: torch.Tensor, parties: int) -> int:
    """Bytes a party sends in an all-reduce over a ring: 2·(P-1)/P times the tensor's."""
    return 2 * sent.numel() * sent.element_size() * (parties - 1) // parties


def _meta(shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=torch.int64, device="meta")
