"""Parameters of a model: the first party's secret, or public."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from secureattn.backends.crypten.products import fix, matmul_fixed
from secureattn.backends.crypten.runtime import MODEL_OWNER

if TYPE_CHECKING:
    from secureattn.backends.crypten.backend import MpcBackend


class MpcWeight:
    """A parameter, known to its owner alone or (``weights = "public"``) to all. Nothing is shared or sent before it is
    used: as a matrix for ``linear`` it is masked for the others once; anywhere else it is a tensor like any other.
    """

    def __init__(self, backend: MpcBackend, values: npt.NDArray[np.float64]) -> None:
        self.backend = backend
        self.shape = values.shape
        self._values = values
        self._share: torch.Tensor | None = None
        self._matrix: torch.Tensor | None = None
        self._number: int | None = None

    @property
    def public(self) -> bool:
        """Whether all parties know it."""
        return self.backend.runtime.parameters.weights == "public"

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """What this party holds: the parameter at whoever knows it, zeros elsewhere."""
        return self._values

    @property
    def places(self) -> int:
        """Binary places of ``share``."""
        return self.backend.runtime.parameters.fractional_bits

    @property
    def size(self) -> int:
        """Its values lie below 2^size."""
        return self.backend.runtime.parameters.integer_bits

    @property
    def share(self) -> torch.Tensor:
        """This party's share of it. No message."""
        if self._share is None:
            with self.backend.recorder.op("weight"):
                self._share = self.backend.shared(self._values, MODEL_OWNER, self.places, "a weight")
        return self._share

    def applied_to(self, x: torch.Tensor) -> torch.Tensor:
        """A share of ``x·Wᵀ`` for x's ``[m,k]``, with ``weight_bits`` more places.

        Cost: as ``matmul_fixed``; where public no message, and m·n·k MACs at every party.
        """
        self.fix()
        if self._matrix is not None:
            return self.backend.runtime.multiply(x, self._matrix)
        assert self._number is not None
        return matmul_fixed(self.backend.runtime, x, self._number)

    def fix(self) -> None:
        """Get ready for ``applied_to``, in phase "setup". Cost: once, as ``products.fix``; where public none."""
        if self._matrix is not None or self._number is not None:
            return
        recorder = self.backend.recorder
        with recorder.phase("setup"), recorder.op("fix_weight"):
            if self.public:
                self._matrix = self._encoded().t().contiguous()
            else:
                runtime = self.backend.runtime
                known = runtime.rank == MODEL_OWNER
                weight = self._encoded() if known else runtime.constant(np.zeros(self.shape, dtype=np.int64))
                self._number = fix(runtime, weight)

    def _encoded(self) -> torch.Tensor:
        return self.backend.encoded(self._values, self.backend.runtime.parameters.weight_bits, "a weight")
