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
    capabilities = frozenset({Capability.COMPARE, Capability.MATRIX, Capability.JOIN})

    def __init__(self, runtime: Runtime, recorder: Recorder) -> None:
        self.runtime = runtime
        self.recorder = recorder
        runtime.recorder = recorder

    def weight(self, array: Any) -> MpcWeight:
        """A parameter of party 0, the model's owner; elsewhere only the array's shape counts, unless weights are
        public. No message.
        """
        public = self.runtime.parameters.weights == "public"
        if public or self.runtime.rank == MODEL_OWNER:
            return MpcWeight(self, encoding.as_real(array, "a weight"))
        return MpcWeight(self, np.broadcast_to(0.0, np.shape(array)))

    def matrix(self, array: Any) -> MpcWeight:
        """A parameter ``[Dout,Din]`` for ``linear``, masked for the others right away (``MpcWeight.fix``)."""
        weight = self.weight(array)
        weight.fix()
        return weight

    def input(self, array: Any, owner: int = CLIENT) -> MpcTensor:
        """Share data of party ``owner``; elsewhere only the array's shape counts. No message."""
        parties = self.runtime.parameters.parties
        if not 0 <= owner < parties:
            raise InputError(f"an input's owner must be a party from 0 to {parties - 1}, not {owner}")
        places = self.runtime.parameters.fractional_bits
        with self.recorder.op("input"):
            return MpcTensor(self, self.shared(array, owner, places, "an input"), places)

    def tokens(
        self, numbers: npt.NDArray[np.integer[Any]] | None, shape: tuple[int, int], vocabulary: int, owner: int = CLIENT
    ) -> MpcTensor:
        """Share numbers of tokens ``[B,S]`` of party ``owner`` (None elsewhere) as one-hot rows ``[B,S,V]``, without
        binary places. No message.
        """
        rows = np.broadcast_to(0.0, (*shape, vocabulary))
        if numbers is not None:
            rows = np.zeros((*shape, vocabulary))
            np.put_along_axis(rows, numbers[..., None], 1.0, -1)
        with self.recorder.op("input"):
            return MpcTensor(self, self.shared(rows, owner, 0, "tokens"), 0, 1)

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
        return None if plain is None else encoding.decode(plain.cpu().numpy(), tensor.places)

    def region(self, name: str) -> AbstractContextManager[None]:
        """Name the part of the network that runs inside, for the ledger."""
        return self.recorder.region(name)

    def observe(self, site: str, x: Tensor) -> None:
        """Nothing: no party can see a shared value."""

    def encoded(self, values: npt.NDArray[np.float64], places: int, what: str) -> torch.Tensor:
        """Public numbers as ring elements."""
        return self.runtime.constant(encoding.encode(values, places, what))

    def shared(self, array: Any, owner: int, places: int, what: str) -> torch.Tensor:
        """This party's share of numbers that ``owner`` holds. No message."""
        if self.runtime.rank == owner:
            real = encoding.as_real(array, what)
            declared = self.runtime.parameters.integer_bits
            largest = float(np.abs(real).max(initial=0.0))
            if largest > 2.0**declared:
                raise InputError(
                    f"{what} reaches {largest:.3g}, outside the declared range below {2**declared}; scale it down, or "
                    f"raise mpc.integer_bits from {declared}"
                )
            values = encoding.encode(real, places, what)
        else:
            values = np.broadcast_to(np.int64(0), np.shape(array))
        return self.runtime.share(values, owner=owner)
