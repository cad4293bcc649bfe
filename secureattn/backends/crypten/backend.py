"""The backend over a runtime: makes weights and inputs, gives results back, names regions."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from secureattn.backends.crypten import encoding
from secureattn.backends.crypten.runtime import CLIENT, MODEL_OWNER, Runtime
from secureattn.backends.crypten.tensor import MpcTensor
from secureattn.backends.crypten.weight import MpcWeight
from secureattn.errors import InputError
from secureattn.events import Recorder
from secureattn.tensor import Capability, Tensor


class MpcBackend:
    """One party's backend, or a plan of it, depending on the runtime. All parties make the same calls in order."""

    name = "crypten"
    capabilities = frozenset({Capability.COMPARE, Capability.MATRIX})

    def __init__(self, runtime: Runtime, recorder: Recorder) -> None:
        self.runtime = runtime
        self.recorder = recorder
        runtime.recorder = recorder

    def weight(self, array: Any) -> MpcWeight:
        """Share a parameter of party 0, the model's owner; elsewhere only the array's shape counts. No message."""
        places = self.runtime.parameters.fractional_bits
        with self.recorder.op("weight"):
            return MpcWeight(self, self._share(array, MODEL_OWNER, places, "a weight"), places)

    def input(self, array: Any, owner: int = CLIENT) -> MpcTensor:
        """Share data of party ``owner``; elsewhere only the array's shape counts. No message."""
        parties = self.runtime.parameters.parties
        if not 0 <= owner < parties:
            raise InputError(f"an input's owner must be a party from 0 to {parties - 1}, not {owner}")
        places = self.runtime.parameters.fractional_bits
        with self.recorder.op("input"):
            return MpcTensor(self, self._share(array, owner, places, "an input"), places)

    def reveal(self, tensor: Tensor, to: int | None = CLIENT) -> npt.NDArray[np.float64] | None:
        """The plain value at party ``to`` and None elsewhere; everywhere with ``to=None``; zeros in a plan.

        Cost: one round, 8 bytes an element from every other party.
        """
        if not isinstance(tensor, MpcTensor):
            raise InputError(f"only a tensor of this engine can be revealed, not {type(tensor).__name__}")
        parties = self.runtime.parameters.parties
        if to is not None and not 0 <= to < parties:
            raise InputError(f"a result can be revealed to a party from 0 to {parties - 1}, not to {to}")
        with self.recorder.op("reveal"):
            plain = self.runtime.reveal(tensor.share, to=to)
        return None if plain is None else encoding.decode(plain.numpy(), tensor.places)

    def region(self, name: str) -> AbstractContextManager[None]:
        """Name the part of the network that runs inside, for the ledger."""
        return self.recorder.region(name)

    def observe(self, site: str, x: Tensor) -> None:
        """Nothing: no party can see a shared value."""

    def _share(self, array: Any, owner: int, places: int, what: str) -> torch.Tensor:
        if self.runtime.rank == owner:
            values = encoding.encode(encoding.as_real(array, what), places, what)
        else:
            values = np.broadcast_to(np.int64(0), np.shape(array))
        return self.runtime.share(values, owner=owner)
