"""A runtime that computes nothing: the same protocols over shapes alone, counting what the real one will do.

Needs torch and not CrypTen. Seconds are modelled from the counts by ``UNIT_S``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from secureattn.backends.crypten.material import Kind, Request
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.runtime import Asked, Runtime
from secureattn.series import FourierSeries

UNIT_S = {
    "rounds": 1.0e-3,
    "bytes_sent": 1.4e-9,
    "openings": 6e-9,
    "dealer_requests": 8e-4,
    "dealer_bytes": 1.4e-9,
    "dealer_macs": 2.1e-10,
    "keystream_bytes": 1.4e-9,
    "products": 8e-9,
    "macs": 2.1e-10,
    "harmonics": 2.7e-8,
    "truncations": 8e-9,
    "comparisons": 5.5e-7,
}
"""Modelled seconds a primitive: two parties and a dealer sharing two x86-64 cores (AVX-512), torch 2.13, loopback.

Measured on [360,16,64] values and 200 squares of 64; matrices and harmonics in runs of BERT-base and GPT-2, where they
are most of the work. ``keystream_bytes`` holds the dealer's expansion of both keys, for which party 0 waits; batched
products of small matrices are slower than ``macs`` says, by up to 8 times. Not modelled: reading a model, and memory
that is touched for the first time, which on virtual machines takes 0.5 to 4 ns a byte."""


class NullRuntime(Runtime):
    """Plans for party ``rank``. ``asked`` notes what the dealer will be asked once matrices are fixed, in order and
    with the region it is asked in, for ``prepare``; ``ahead`` counts it as one request, as ``prepare`` makes it.
    """

    def __init__(self, parameters: MpcParameters | None = None, rank: int = 0, *, ahead: bool = False) -> None:
        super().__init__(parameters or MpcParameters(), rank)
        self.asked: list[Asked] = []
        self.largest = 0  # elements of what is opened, multiplied or turned back
        self._as_one = ahead
        self._quiet = False

    def constant(self, values: npt.NDArray[np.int64]) -> torch.Tensor:
        return _meta(values.shape)

    def share(self, values: npt.NDArray[np.int64], *, owner: int) -> torch.Tensor:
        return _meta(values.shape)

    def reveal(self, share: torch.Tensor, *, to: int | None) -> torch.Tensor | None:
        if to is None:
            return torch.zeros(self.exchange(share).shape, dtype=torch.int64)
        self.count("rounds", 1)
        self.count("bytes_sent", 0 if self.rank == to else 8 * share.numel())
        return torch.zeros(share.shape, dtype=torch.int64) if self.rank == to else None

    def deal(self, request: Request) -> tuple[torch.Tensor, ...]:
        """As of any runtime, and noted."""
        if request.kind is not Kind.FIX:
            self.asked.append(Asked(self.recorder.path, request))
            self._quiet = self._as_one
        try:
            return super().deal(request)
        finally:
            self._quiet = False

    def ask_once(self) -> None:
        """Count the one request that ``prepare`` makes, where nothing else was counted (``ahead``)."""
        if self._as_one and self.asked:
            with self.offline():
                self.count("dealer_requests", 1)

    def count(self, name: str, times: int, seconds: float = 0.0) -> None:
        if name == "dealer_requests" and self._quiet:
            return
        super().count(name, times, UNIT_S[name] * times)

    def _worked_on(self, elements: int) -> None:
        self.largest = max(self.largest, elements)

    def from_first(self, values: torch.Tensor) -> torch.Tensor:
        self.count("rounds", 1)
        self.count("bytes_sent", 0 if self.rank else 8 * values.numel() * (self.parameters.parties - 1))
        return values

    def to_first(self, flat: torch.Tensor) -> torch.Tensor | None:
        self.count("rounds", 1)
        self.count("openings", flat.numel())
        self.count("bytes_sent", 8 * flat.numel() if self.rank else 0)
        self._worked_on(flat.numel())
        return None if self.rank else flat

    def exchange(self, flat: torch.Tensor, *, xor: bool = False) -> torch.Tensor:
        self.count("rounds", 1)
        self.count("openings", flat.numel())
        self.count("bytes_sent", flat.numel() * flat.element_size() * (self.parameters.parties - 1))
        self._worked_on(flat.numel())
        return flat

    def _dealt(self, requests: Sequence[Request]) -> Iterator[tuple[torch.Tensor, ...]]:
        for request in requests:
            if self.rank == 0 and self.parameters.dealer == "ttp":
                self.count("dealer_bytes", request.correction_bytes)
            yield tuple(_meta(shape) for shape in (*request.masks, *request.derived))

    def multiply(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        product = torch.matmul(x, y)
        self.count("macs", product.numel() * x.shape[-1])
        self._worked_on(product.numel())
        return product

    def turned_back(
        self, opened: torch.Tensor, dealt: torch.Tensor, series: FourierSeries, bits: int, places: int
    ) -> torch.Tensor:
        self.count("harmonics", opened.numel() * series.harmonics)
        return _meta(opened.shape)


def _meta(shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=torch.int64, device="meta")
