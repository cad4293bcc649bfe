"""A model folder: config, weights, calibrated ranges, held-out samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from secureattn.errors import InputError
from secureattn.nn import parameters
from secureattn.nn.config import ModelConfig
from secureattn.nn.ranges import Ranges

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """A folder with config.json and ranges.json; weights and samples are read when first asked for, so that a party
    that may not see the weights never does.
    """

    folder: Path
    config: ModelConfig
    ranges: Ranges

    @cached_property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """Parameters by name, float64."""
        loaded = parameters.load(self.folder / "model.safetensors", self.config)
        return {name: torch.as_tensor(value) for name, value in loaded.items()}

    @cached_property
    def weight_shapes(self) -> Mapping[str, torch.Tensor]:
        """Zeros in the weights' shapes, for a party that knows the architecture alone."""
        return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in parameters.shapes(self.config).items()}

    def samples(self, count: int | None = None) -> tuple[Array, npt.NDArray[np.int64]]:
        """Held-out inputs ``[N,S,F]`` and labels ``[N]``: the first ``count``, or all."""
        path = self.folder / "samples.safetensors"
        try:
            arrays = load_file(path)
            inputs, labels = arrays["inputs"].astype(np.float64), arrays["labels"].astype(np.int64)
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"model {self.config.name} has no readable samples at {path}: {error}") from error
        if count is not None and not 1 <= count <= len(labels):
            raise InputError(f"{count} samples were asked for, model {self.config.name} ships {len(labels)}")
        return inputs[:count], labels[:count]

    def check(self, inputs: Array) -> Array:
        """Inputs as float64 ``[N,S,F]``; anything else is refused before it costs anything."""
        wanted = (self.config.tokens, self.config.features)
        dtype = np.asarray(inputs).dtype
        if not (np.issubdtype(dtype, np.integer) or np.issubdtype(dtype, np.floating)):
            raise InputError(f"the input holds {dtype}, real numbers are needed")
        array = np.asarray(inputs, dtype=np.float64)
        if array.shape == wanted:
            array = array[None]
        if array.ndim != 3 or array.shape[1:] != wanted or not len(array):
            raise InputError(
                f"the input has shape {list(array.shape)}, model {self.config.name} needs [N, {wanted[0]}, {wanted[1]}]"
            )
        if not np.isfinite(array).all():
            raise InputError("the input holds values that are not finite (NaN or infinity)")
        return array


def load_model(folder: Path) -> Model:
    """Read a model folder; its weights are not touched yet."""
    config = ModelConfig.load(folder / "config.json")
    return Model(folder, config, Ranges.load(folder / "ranges.json", config))
