"""A model folder: config, weights, calibrated ranges, held-out samples."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
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
from secureattn.nn import huggingface, parameters, text
from secureattn.nn.assumed import ASSUMED, assumed
from secureattn.nn.batch import Batch, numbers
from secureattn.nn.config import ModelConfig
from secureattn.nn.embedding import at_client
from secureattn.nn.ranges import Ranges
from secureattn.nn.text import Tokenizer

Array = npt.NDArray[np.float64]
WEIGHTS = "model.safetensors"
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


class _StandIns(Mapping[str, torch.Tensor]):
    """Normal numbers of the size of weights, of which nothing is kept."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        seed = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        made: torch.Tensor = torch.randn(shape, generator=seed, dtype=torch.float64) * float(shape[-1]) ** -0.5
        return made.abs() if name.endswith(("gain", "variance", "alpha")) else made

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


@dataclass(frozen=True)
class Model:
    """A folder with config.json and ranges.json; weights and samples are read when first asked for, so that a party
    that may not see the weights never does. ``alone``: there is a config and nothing else, for plans; ``notes``: what
    reports of it must say.
    """

    folder: Path
    config: ModelConfig
    ranges: Ranges
    alone: bool = False
    notes: tuple[str, ...] = ()

    @cached_property
    def origin(self) -> Origin | None:
        """Where weights come from if not from this folder."""
        path = self.folder / ORIGIN
        return Origin.load(path) if path.exists() else None

    @property
    def has_weights(self) -> bool:
        """Whether weights are here, or a package is named that carries them."""
        return not self.alone and ((self.folder / WEIGHTS).exists() or self.origin is not None)

    def check_runs(self) -> None:
        """InputError for a model that can be planned and not run."""
        if not self.ranges.assumed:
            return
        if self.has_weights:
            raise InputError(
                f"model {self.config.name} has no ranges.json, without which it is planned and not run; measure them: "
                f"secureattn calibrate {self.folder} --samples FILE"
            )
        raise InputError(
            f"model {self.config.name} is a config alone, which is planned (secureattn plan) and not run; convert "
            "weights of it: secureattn convert CHECKPOINT -o FOLDER"
        )

    @cached_property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """Parameters by name, float64."""
        path = self.folder / WEIGHTS
        if self.alone:
            self.check_runs()
        if self.origin is None or path.exists():
            loaded = parameters.load(path, self.config)
        else:
            source = self.origin.path()
            loaded = huggingface.read(source, self.config.name, tokens=self.config.tokens).parameters
            parameters.check(f"weights {source}", loaded, self.config)
        return {name: torch.as_tensor(value) for name, value in loaded.items()}

    def forget_weights(self) -> None:
        """Drop what was read of them; whoever asks for them again has them read again."""
        self.__dict__.pop("weights", None)

    @cached_property
    def digest(self) -> str:
        """Hex digest of config, ranges and weights: equal exactly when two folders hold the same model."""
        found = hashlib.sha256((self.config.to_json() + self.ranges.to_json()).encode())
        for name in sorted(self.weights):
            values = np.ascontiguousarray(self.weights[name].numpy(), dtype="<f8")
            found.update(f"{name} {values.shape}".encode())
            found.update(values.data)
        return found.hexdigest()

    @cached_property
    def weight_shapes(self) -> Mapping[str, torch.Tensor]:
        """The weights' shapes on torch's meta device, for a party that knows the architecture alone: no memory."""
        shapes = parameters.shapes(self.config)
        return {name: torch.empty(shape, dtype=torch.float64, device="meta") for name, shape in shapes.items()}

    @property
    def stand_ins(self) -> Mapping[str, torch.Tensor]:
        """Random numbers in the place of weights, for plans that ask which weights are 0; made when asked for."""
        return _StandIns(parameters.shapes(self.config))

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
        model's public embedding, for tokens that stand behind ``past`` others; behind an input's end the last one
        again, as anything else might leave the domains of approximations.
        """
        if config.input != "embedded":
            return batch.values
        return batch.filled(at_client(self.config, self.embedding, batch.values, past))

    @cached_property
    def embedding(self) -> Mapping[str, torch.Tensor]:
        """The parameters of the embedding alone, float64."""
        path = self.folder / WEIGHTS
        names = [name for name in parameters.shapes(self.config) if name.startswith(("embed.", "position"))]
        if path.exists():
            return {name: torch.as_tensor(value) for name, value in parameters.some(path, names).items()}
        return {name: self.weights[name] for name in names}

    def samples(self, count: int | None = None) -> tuple[Any, npt.NDArray[np.int64] | None]:
        """Held-out inputs, the first ``count`` or all, and their labels ``[N]`` or None: numbers ``[N,S,F]``, or, where
        the folder has samples.txt, texts, one a line.
        """
        if self.alone:
            self.check_runs()
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
        return numbers(self.config, inputs)


def load_model(path: Path) -> Model:
    """Read a model folder, or a config.json by itself, ours or Hugging Face's; weights are not touched yet.

    Ranges are assumed (``nn.assumed``) where none are there.
    """
    file, folder = (path, path.parent) if path.is_file() else (path / "config.json", path)
    notes: tuple[str, ...] = ()
    if theirs := huggingface.is_settings(file):
        config, notes = huggingface.config_of(file)
    else:
        config = ModelConfig.load(file)
    ranges = folder / "ranges.json"
    alone = theirs or path.is_file() or not any((folder / name).exists() for name in (WEIGHTS, ORIGIN, ranges.name))
    if alone or not ranges.exists():
        return Model(folder, config, assumed(config), alone, (ASSUMED, *notes))
    return Model(folder, config, Ranges.load(ranges, config))


def lines(path: Path) -> list[str]:
    """The lines of a text file, one input each, blank ones too."""
    try:
        found = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text: {error}") from error
    if not found:
        raise InputError(f"{path} is empty")
    return found
