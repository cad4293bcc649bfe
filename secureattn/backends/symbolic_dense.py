"""The symbolic engine in the dense layout of CKKS: shapes, levels and costs alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from secureattn.backends.ckks.dense import DenseTensor
from secureattn.backends.ckks.dense_backend import DenseBackend
from secureattn.backends.ckks.machine import Cipher, Machine, NullDevice
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.backends.ckks.roles import MaskedRefresh
from secureattn.backends.ckks.units import Path
from secureattn.events import Recorder


class SymbolicDense(DenseBackend):
    """A CKKS evaluator in the dense layout that computes nothing."""

    def __init__(
        self,
        parameters: CkksParameters,
        *,
        tokens: int,
        features: int,
        heads: int = 1,
        queries: int = 1,
        schedule: Collection[str] = (),
        refresh: bool = True,
        ceilings: Mapping[Path, int] | None = None,
        workers: int = 1,
    ) -> None:
        machine = Machine(parameters, NullDevice(), Recorder(modelled=True), ceilings=ceilings, workers=workers)
        super().__init__(
            machine,
            tokens=tokens,
            features=features,
            heads=heads,
            queries=queries,
            schedule=schedule,
            refresher=MaskedRefresh(machine, None) if refresh else None,
        )
        self.output: DenseTensor

    def input(self, shape: tuple[int, int, int]) -> DenseTensor:
        """A fresh ciphertext for ``[B,S,W]``, on the highest level."""
        parameters = self.machine.parameters
        return self.tensor([Cipher(parameters.levels, parameters.scales[-1], 2, None)], shape)
