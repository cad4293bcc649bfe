"""What the protocols on shares stand on: the primitives of one party's view of a run, and what all of them share.

The protocols are files of their own, written over this interface: ``products``, ``truncation``, ``periodic`` (series)
and ``comparison``. The real runtime is ``CryptenRuntime``; the one of ``planning`` computes nothing, runs the same code
on torch's meta tensors, and so counts what the real one will do.

Counted (``recorder.primitive``): ``rounds`` are messages that all parties wait for, sent at once by all who send;
``bytes_sent`` what this party sends to other parties, 8·n·(P-1) bytes for n opened elements of 8 bytes among P parties,
8·n from all but the first for what the first alone collects; ``openings`` opened elements; ``dealer_bytes`` what this
party receives from the dealer; ``dealer_requests`` round trips with it; ``dealer_macs`` its matrix work;
``keystream_bytes`` this party's part of the masks; ``products`` elementwise Beaver products; ``macs`` ring
multiply-accumulates of this party's matrix products;
``harmonics`` elements of a series times its harmonics; ``truncations`` and ``comparisons`` elements. What the dealer
does is in phase "offline".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from secureattn.backends.crypten.material import Kind, Request
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.errors import EngineError
from secureattn.events import Recorder
from secureattn.series import FourierSeries

MODEL_OWNER = 0
CLIENT = 1


@dataclass(frozen=True)
class Asked:
    """A request to the dealer, and the region of the program that made it."""

    region: str
    request: Request


class Runtime(ABC):
    """One party's view of a run. Shares are int64 tensors that add up to the value in Z_2^64."""

    def __init__(self, parameters: MpcParameters, rank: int) -> None:
        self.parameters = parameters
        self.rank = rank
        self.recorder = Recorder()
        self.matrices: dict[int, torch.Tensor] = {}  # by number, as products.fix leaves them
        self.lasting = 0  # operands that stay, so far (``lasting``)
        self.truncated: dict[int, int] = {}  # elements truncated, by the places they had
        self._agreed: dict[FourierSeries, FourierSeries] = {}
        self._ahead: deque[tuple[Request, tuple[torch.Tensor, ...]]] = deque()

    # ---- primitives -----------------------------------------------------------------------------------------

    @abstractmethod
    def constant(self, values: npt.NDArray[np.int64]) -> torch.Tensor:
        """Public ring elements as a tensor of this runtime."""

    @abstractmethod
    def share(self, values: npt.NDArray[np.int64], *, owner: int) -> torch.Tensor:
        """This party's share of what ``owner`` holds; the others' values are ignored. No message is sent."""

    @abstractmethod
    def reveal(self, share: torch.Tensor, *, to: int | None) -> torch.Tensor | None:
        """The plain value at party ``to``, None elsewhere; at every party for ``to=None``. One round."""

    @abstractmethod
    def from_first(self, values: torch.Tensor) -> torch.Tensor:
        """The first party's public ring elements at every party; the others' values are ignored. One round."""

    @abstractmethod
    def to_first(self, flat: torch.Tensor) -> torch.Tensor | None:
        """Sum over all parties at the first party, None at the others; counts rounds, bytes_sent and openings."""

    @abstractmethod
    def exchange(self, flat: torch.Tensor, *, xor: bool = False) -> torch.Tensor:
        """Sum (or XOR) over all parties, known to all; counts rounds, bytes_sent and openings."""

    @abstractmethod
    def _dealt(self, requests: Sequence[Request]) -> Iterator[tuple[torch.Tensor, ...]]:
        """This party's shares of masks and derived values, in turn; counts dealer_bytes."""

    @abstractmethod
    def multiply(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """A local matrix product in the ring; counts macs."""

    @abstractmethod
    def turned_back(
        self, opened: torch.Tensor, dealt: torch.Tensor, series: FourierSeries, bits: int, places: int
    ) -> torch.Tensor:
        """Local: see ``harmonics.turned_back``; counts harmonics."""

    def count(self, name: str, times: int, seconds: float = 0.0) -> None:
        """Count a primitive with the seconds it took."""
        self.recorder.primitive(name, times=times, seconds=seconds)

    # ---- dealer ---------------------------------------------------------------------------------------------

    def deal(self, request: Request) -> tuple[torch.Tensor, ...]:
        """Correlated randomness for one step, from what ``prepare`` dealt ahead or else from the dealer now."""
        if self._ahead and request.kind is not Kind.FIX:  # a matrix is masked in set-up, before or between runs
            expected, material = self._ahead.popleft()
            if expected != request:
                raise EngineError(f"{request} was asked for, but {expected} was prepared; prepare the same run")
            return material
        with self.offline():
            self.count("dealer_requests", 1)
            self._count_material(request)
            (material,) = self._dealt([request])
            return self._completed(request, material)

    def prepare(self, asked: Sequence[Asked]) -> None:
        """Deal ahead, in one request to the dealer, what a planning run noted in ``NullRuntime.asked``; counted where
        it will be used. Holds it all in memory. Matrices that linear layers use must be fixed before.
        """
        if not asked:
            return
        numbers = {one.request.argument for one in asked if one.request.kind is Kind.MATMUL_FIXED}
        if not numbers <= self.matrices.keys():
            raise EngineError("matrices must be fixed before material for them is prepared; use backend.matrix")
        with self.offline():
            self.count("dealer_requests", 1)
        dealt = self._dealt([one.request for one in asked])
        for one in asked:
            with self.recorder.region(one.region) if one.region else nullcontext(), self.offline():
                self._count_material(one.request)
                self._ahead.append((one.request, self._completed(one.request, next(dealt))))

    def _count_material(self, request: Request) -> None:
        self.count("keystream_bytes", request.keystream_bytes(self.rank))
        self.count("dealer_macs", request.dealer_macs)
        if request.dealer_harmonics:
            self.count("harmonics", request.dealer_harmonics)

    def _completed(self, request: Request, material: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """What is dealt, with the product of a mask and the masked matrix (see ``products.matmul_fixed``) added."""
        if request.kind is not Kind.MATMUL_FIXED or self.rank == 0:
            return material
        a, c = material
        return a, c + self.multiply(a, self.matrices[request.argument])

    @contextmanager
    def offline(self) -> Iterator[None]:
        """Attribute what happens inside to the dealer's phase."""
        with self.recorder.phase("offline"), self.recorder.op("deal"):
            yield

    # ---- what protocols share ---------------------------------------------------------------------------------

    def open(self, shares: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Plain values of several shared tensors at all parties. Cost: one round, 8 bytes an element (P = 2)."""
        return split(self.exchange(joined(shares)), shares)

    def public(self, share: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Add a public tensor: one party does, the others only broadcast."""
        if self.rank == 0:
            return share + values
        return share.expand(np.broadcast_shapes(share.shape, values.shape))

    def agreed(self, f: FourierSeries) -> FourierSeries:
        """The series with the first party's coefficients.

        A fit may differ in its last bits from machine to machine, and public factors must not: a factor that is one
        unit off at one party adds a whole random share. Cost: on first use one round of 8 bytes a coefficient from the
        first party to every other, in phase "setup".
        """
        if f not in self._agreed:
            own = np.array([f.constant, f.linear, *f.cosines, *f.sines])
            with self.recorder.phase("setup"), self.recorder.op("agree"):
                told = self.from_first(self.constant(own.view(np.int64)))
            values = own.tolist() if told.is_meta else told.cpu().numpy().view(np.float64).tolist()
            cosines, sines = values[2 : 2 + f.harmonics], values[2 + f.harmonics :]
            self._agreed[f] = replace(
                f, constant=values[0], linear=values[1], cosines=tuple(cosines), sines=tuple(sines)
            )
        return self._agreed[f]


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """All elements one after another."""
    return parts[0].reshape(-1) if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])


def split(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What ``joined`` put together, in the shapes it had."""
    parts = torch.split(flat, [part.numel() for part in like])
    return [part.reshape(shape.shape) for part, shape in zip(parts, like, strict=True)]
