"""Shared parameters of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from secureattn.backends.crypten.runtime import FixedMatrix

if TYPE_CHECKING:
    from secureattn.backends.crypten.backend import MpcBackend


class MpcWeight:
    """A shared parameter; as a matrix for ``linear`` it is opened against a lasting mask when first used."""

    def __init__(self, backend: MpcBackend, share: torch.Tensor, places: int) -> None:
        self.backend = backend
        self.share = share
        self.places = places
        self.shape = tuple(share.shape)
        self._fixed: FixedMatrix | None = None

    @property
    def fixed(self) -> FixedMatrix:
        """The matrix against its mask. Cost: on first use one round opening its elements, in phase "setup"."""
        if self._fixed is None:
            recorder = self.backend.recorder
            with recorder.phase("setup"), recorder.op("fix_weight"):
                self._fixed = self.backend.runtime.fix(self.share)
        return self._fixed
