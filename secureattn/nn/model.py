"""A model folder: config, weights, calibrated ranges, held-out samples."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from secureattn.errors import EngineError, InputError
from secureattn.nn import parameters, text
from secureattn.nn.batch import Batch
from secureattn.nn.config import ModelConfig
from secureattn.nn.embedding import at_client
from secureattn.nn.ranges import Ranges
from secureattn.nn.text import Tokenizer

Array = npt.NDArray[np.float64]
SAMPLES = "samples.txt"
ORIGIN = "origin.json"


@dataclass(frozen=True)
class Origin:
    """Where a model's weights and tokenizer come from when its folder has none: a Python package that carries them, the
    folder in it that holds a Hugging Face checkpoint, and the command that installs it (origin.json).
    """

    package: str
    folder: str
    install: str

    @classmethod
    def load(cls, path: Path) -> Origin:
        """Read origin.json."""
        try:
            raw = json.loads(path.read_text())
            return cls(str(raw["package"]), str(raw["folder"]), str(raw["install"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read: {error!r}") from error

    def path(self) -> Path:
        """The checkpoint's folder; EngineError, with the command that helps, without the package."""
        spec = importlib.util.find_spec(self.package)
        for place in (spec and spec.submodule_search_locations) or ():
            if (Path(place) / self.folder).is_dir():
                return Path(place) / self.folder
        raise EngineError(f"weights come from the package {self.package}, which is missing; run {self.install}")


@dataclass(frozen=True)
class Model:
    """A folder with config.json and ranges.json; weights and samples are read when first asked for, so that a party
    that may not see the weights never does.
    """

    folder: Path
    config: ModelConfig
    ranges: Ranges

    @cached_property
    def origin(self) -> Origin | None:
        """Where weights come from if not from this folder."""
        path = self.folder / ORIGIN
        return Origin.load(path) if path.exists() else None

    @cached_property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """Parameters by name, float64."""
        path = self.folder / "model.safetensors"
        if self.origin is None or path.exists():
            loaded = parameters.load(path, self.config)
        else:
            from secureattn.nn import huggingface

            source = self.origin.path()
            loaded = huggingface.read(source, self.config.name, tokens=self.config.tokens).parameters
            parameters.check(f"weights {source}", loaded, self.config)
        return {name: torch.as_tensor(value) for name, value in loaded.items()}

    @cached_property
    def weight_shapes(self) -> Mapping[str, torch.Tensor]:
        """Zeros in the weights' shapes, for a party that knows the architecture alone."""
        zero = torch.zeros((), dtype=torch.float64)  # expanded: a large model's shapes take no memory
        return {name: zero.expand(shape) for name, shape in parameters.shapes(self.config).items()}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's own; InputError if it has none."""
        for folder in (self.folder, *([self.origin.path()] if self.origin else [])):
            if (folder / text.FILE).exists():
                return Tokenizer(folder / text.FILE, self.config.tokens)
        raise InputError(f"model {self.config.name} has no {text.FILE}: it takes numbers of tokens, not text")

    def batch(self, inputs: Batch | Sequence[str] | npt.ArrayLike) -> Batch:
        """Inputs of any kind the model takes, checked: numbers ``[N,S,F]``, or, of models of tokens, texts, numbers of
        tokens ``[N,S]``, or a batch of them. Anything else is refused before it costs anything.
        """
        if self.config.input == "features":
            return Batch(self.check(inputs.values if isinstance(inputs, Batch) else inputs))
        if isinstance(inputs, Batch):
            made = inputs
        elif isinstance(inputs, Sequence) and inputs and all(isinstance(one, str) for one in inputs):
            made = Batch.of_tokens(self.tokenizer.encode([str(one) for one in inputs]))
        else:
            made = Batch(np.atleast_2d(np.asarray(inputs)))
        values = made.values
        if values.ndim != 2 or not values.size or not np.issubdtype(values.dtype, np.integer):
            raise InputError(
                f"model {self.config.name} takes texts or numbers of tokens [N, S], not {values.dtype} "
                f"{list(values.shape)}"
            )
        if values.shape[1] > self.config.tokens:
            raise InputError(f"{values.shape[1]} tokens are more than the {self.config.tokens} of {self.config.name}")
        wrong = values[(values < 0) | (values >= self.config.features)]
        if wrong.size:
            raise InputError(f"token {wrong[0]} is outside a vocabulary of {self.config.features}")
        return made

    def calibration(self, inputs: Any) -> Batch | Array:
        """Inputs to calibrate on, as ``calibrate`` takes them."""
        batch = self.batch(inputs)
        return batch if self.config.variable else self.check(batch.values)

    def entering(self, config: ModelConfig, batch: Batch, past: int = 0) -> Any:
        """What a client puts into a network served as ``config``: the batch's values, or the rows it looks up in the
        model's public embedding, for tokens that stand behind ``past`` others.
        """
        if config.input != "embedded":
            return batch.values
        return at_client(self.config, self.embedding, batch.values, past)

    @cached_property
    def embedding(self) -> Mapping[str, torch.Tensor]:
        """The parameters of the embedding alone, float64."""
        path = self.folder / "model.safetensors"
        names = [name for name in parameters.shapes(self.config) if name.startswith(("embed.", "position"))]
        if path.exists():
            return {name: torch.as_tensor(value) for name, value in parameters.some(path, names).items()}
        return {name: self.weights[name] for name in names}

    def samples(self, count: int | None = None) -> tuple[Any, npt.NDArray[np.int64] | None]:
        """Held-out inputs, the first ``count`` or all, and their labels ``[N]`` or None: numbers ``[N,S,F]``, or, where
        the folder has samples.txt, texts, one a line.
        """
        path = self.folder / SAMPLES
        if path.exists():
            inputs, labels = lines(path), None
        else:
            inputs, labels = self._sampled()
        if count is not None and not 1 <= count <= len(inputs):
            raise InputError(f"{count} samples were asked for, model {self.config.name} ships {len(inputs)}")
        return inputs[:count], None if labels is None else labels[:count]

    def _sampled(self) -> tuple[Any, npt.NDArray[np.int64] | None]:
        path = self.folder / "samples.safetensors"
        try:
            arrays = load_file(path)
            kind = np.float64 if self.config.input == "features" else np.int64
            return arrays["inputs"].astype(kind), arrays["labels"].astype(np.int64) if "labels" in arrays else None
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"model {self.config.name} has no readable samples at {path}: {error}") from error

    def check(self, inputs: npt.ArrayLike) -> Array:
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


def lines(path: Path) -> list[str]:
    """The lines of a text file, one input each, blank ones too."""
    try:
        found = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from error
    if not found:
        raise InputError(f"{path} is empty")
    return found
