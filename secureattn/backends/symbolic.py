"""The symbolic engine: runs a program on shapes, levels and costs alone. It shares all protocols and layouts with the
real engines and needs neither of their libraries, so what it counts is what a run will count.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

from secureattn.backends.ckks.backend import CkksBackend
from secureattn.backends.ckks.batch import BatchTensor
from secureattn.backends.ckks.cipher import Cipher, NullDevice
from secureattn.backends.ckks.machine import Machine
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.backends.ckks.roles import MaskedRefresh
from secureattn.backends.ckks.units import Path
from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.planning import NullRuntime
from secureattn.backends.crypten.tensor import MpcTensor
from secureattn.events import Recorder


class SymbolicCkks(CkksBackend):
    """A CKKS evaluator that computes nothing."""

    def __init__(
        self,
        parameters: CkksParameters,
        *,
        tokens: int,
        schedule: Collection[str] = (),
        refresh: bool = True,
        ceilings: Mapping[Path, int] | None = None,
        workers: int = 1,
    ) -> None:
        machine = Machine(parameters, NullDevice(), Recorder(modelled=True), ceilings=ceilings, workers=workers)
        refresher = MaskedRefresh(machine, None) if refresh else None
        super().__init__(machine, tokens=tokens, schedule=schedule, refresher=refresher)
        self.output: BatchTensor
        self.input_levels: tuple[int, ...] = ()
        self.results: tuple[int, ...] = ()

    @property
    def highest(self) -> int:
        """The highest level that anything lay on."""
        assert self.machine.demand is not None
        return max(self.machine.demand.made.values())

    def input(self, shape: tuple[int, int, int]) -> BatchTensor:
        """Fresh ciphertexts for ``[B,S,F]``, on the highest level."""
        parameters = self.machine.parameters
        fresh = Cipher(parameters.levels, parameters.scales[-1], 2, None)
        return self.tensor([fresh] * shape[2], shape)


class SymbolicMpc(MpcBackend):
    """One party of a secret-sharing run that computes nothing."""

    def __init__(self, parameters: MpcParameters, rank: int = 0) -> None:
        super().__init__(NullRuntime(parameters, rank), Recorder(modelled=True))

    def shape_input(self, shape: tuple[int, ...]) -> MpcTensor:
        """The client's data, by shape."""
        return self.input(np.broadcast_to(0.0, shape))


@dataclass(frozen=True)
class Unlimited:
    """Stands in for CKKS parameters to find a program's depth: more levels than anything needs, no primes."""

    ring_degree: int
    levels: int = 200
    scale_bits: int = 40
    scales: tuple[float, ...] = field(default=(2.0**40,) * 201)
    primes: tuple[int, ...] = field(default=(1 << 40,) * 202)

    @property
    def slots(self) -> int:
        """N/2."""
        return self.ring_degree // 2
