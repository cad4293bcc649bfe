"""The symbolic engine: runs a program on shapes, levels and costs alone. It shares all protocols and layouts with the
real engines and needs neither of their libraries, so what it counts is what a run will count.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch

from secureattn.backends.ckks.backend import CkksBackend
from secureattn.backends.ckks.batch import BatchTensor
from secureattn.backends.ckks.cipher import Cipher, NullDevice
from secureattn.backends.ckks.costs import TYPICAL, Costs
from secureattn.backends.ckks.dense import DenseTensor
from secureattn.backends.ckks.dense_backend import DenseBackend, DenseWeight
from secureattn.backends.ckks.evaluating import Evaluating
from secureattn.backends.ckks.machine import Machine
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.backends.ckks.pools import Pools
from secureattn.backends.ckks.roles import MaskedRefresh
from secureattn.backends.ckks.units import Demand, Path
from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.planning import NullRuntime
from secureattn.backends.crypten.runtime import Asked
from secureattn.backends.crypten.tensor import MpcTensor
from secureattn.backends.crypten.weight import MpcWeight
from secureattn.events import Recorder

_MOST_LEVELS = 1 << 14  # of a program that is never refreshed: a large model's block takes 80


class SymbolicEvaluating(Evaluating):
    """A CKKS evaluator that computes nothing, in any layout; a planner notes the program's input and output on it."""

    input_levels: tuple[int, ...] = ()
    output: Any
    result_levels: tuple[int, ...] = ()

    @property
    def demand(self) -> Demand:
        """What the program needs at which level."""
        assert self.machine.demand is not None
        return self.machine.demand

    @property
    def pools(self) -> Pools:
        """What it holds at once."""
        assert self.machine.pools is not None
        return self.machine.pools

    @property
    def highest(self) -> int:
        """The highest level that anything lay on."""
        return max(self.demand.made.values())

    def fresh(self) -> Cipher:
        """A fresh ciphertext, on the highest level."""
        parameters = self.machine.parameters
        return self.machine.made(parameters.levels, parameters.scales[-1])


def null_machine(
    parameters: CkksParameters, ceilings: Mapping[Path, int] | None, workers: int, costs: Costs
) -> Machine:
    """A machine that computes nothing."""
    return Machine(parameters, NullDevice(), Recorder(modelled=True), ceilings=ceilings, workers=workers, costs=costs)


class SymbolicCkks(SymbolicEvaluating, CkksBackend):
    """In the batch layout."""

    def __init__(
        self,
        parameters: CkksParameters,
        *,
        tokens: int,
        schedule: Collection[str] = (),
        refresh: bool = True,
        ceilings: Mapping[Path, int] | None = None,
        workers: int = 1,
        costs: Costs = TYPICAL,
    ) -> None:
        machine = null_machine(parameters, ceilings, workers, costs)
        refresher = MaskedRefresh(machine, None) if refresh else None
        super().__init__(machine, tokens=tokens, schedule=schedule, refresher=refresher)

    def input(self, shape: tuple[int, int, int]) -> BatchTensor:
        """Fresh ciphertexts for ``[B,S,F]``, one a feature."""
        return self.tensor([self.fresh() for _ in range(shape[2])], shape)


class SymbolicDense(SymbolicEvaluating, DenseBackend):
    """In the dense layout. What public slots were laid out is held in ``kept``, and not encoded again."""

    def __init__(
        self,
        parameters: CkksParameters,
        *,
        tokens: int,
        features: int,
        heads: int = 1,
        queries: int = 1,
        width: int | None = None,
        schedule: Collection[str] = (),
        refresh: bool = True,
        ceilings: Mapping[Path, int] | None = None,
        workers: int = 1,
        costs: Costs = TYPICAL,
        kept: dict[Any, Any] | None = None,
    ) -> None:
        machine = null_machine(parameters, ceilings, workers, costs)
        refresher = MaskedRefresh(machine, None) if refresh else None
        self._weights: dict[Any, Any] = {} if kept is None else kept
        super().__init__(
            machine,
            tokens=tokens,
            features=features,
            heads=heads,
            queries=queries,
            width=width,
            schedule=schedule,
            refresher=refresher,
        )
        self._prepared = self._weights.setdefault("prepared", {})

    def weight(self, array: Any) -> DenseWeight:
        """A parameter; laid out once for all runs that have ``kept`` in common, and the same ring."""
        return cast(DenseWeight, self._weights.setdefault(id(array), super().weight(array)))

    def input(self, shape: tuple[int, int, int]) -> DenseTensor:
        """A fresh ciphertext for ``[B,S,W]``."""
        return self.tensor([self.fresh()], shape)


class SymbolicMpc(MpcBackend):
    """One party of a secret-sharing run that computes nothing; ``ahead`` as for ``NullRuntime``."""

    def __init__(self, parameters: MpcParameters, rank: int = 0, *, ahead: bool = False) -> None:
        self.planner = NullRuntime(parameters, rank, ahead=ahead)
        super().__init__(self.planner, Recorder(modelled=True))
        self.asked: list[list[Asked]] = []

    def weight(self, array: Any) -> MpcWeight:
        """A parameter, by shape."""
        return MpcWeight(self, np.broadcast_to(0.0, np.shape(array)))

    def encoded(self, values: Any, places: int, what: str) -> torch.Tensor:
        """Ring elements, by shape: what a plan is given says nothing of values."""
        return self.runtime.constant(np.broadcast_to(np.int64(0), np.shape(values)))

    def shared(self, array: Any, owner: int, places: int, what: str) -> torch.Tensor:
        """A share, by shape."""
        return self.runtime.share(np.broadcast_to(np.int64(0), np.shape(array)), owner=owner)

    def end_part(self) -> None:
        """Set apart, and count as one request, what was asked of the dealer since the last part ended."""
        self.planner.ask_once()
        self.asked.append(self.planner.asked)
        self.planner.asked = []

    def shape_input(self, shape: tuple[int, ...]) -> MpcTensor:
        """The client's data, by shape."""
        return self.input(np.broadcast_to(0.0, shape))


@dataclass(frozen=True)
class Unlimited:
    """Stands in for CKKS parameters to find a program's depth: more levels than anything needs, no primes."""

    ring_degree: int
    levels: int = _MOST_LEVELS
    scale_bits: int = 40
    scales: tuple[float, ...] = field(default=(2.0**40,) * (_MOST_LEVELS + 1))
    primes: tuple[int, ...] = field(default=(1 << 40,) * (_MOST_LEVELS + 2))

    @property
    def slots(self) -> int:
        """N/2."""
        return self.ring_degree // 2

    def key_bytes(self) -> int:
        """None are made."""
        return 0
