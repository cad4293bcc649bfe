"""What a family of checkpoints has to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from secureattn.nn.config import ModelConfig

Array = npt.NDArray[np.float64]

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Their names of functions → ours."""


def kind_of(ours: str) -> str:
    """What the last part of our parameter's name is there: weight or bias."""
    last = ours.rsplit(".", 1)[-1]
    return "weight" if last == "gain" else last


@dataclass
class Source:
    """A checkpoint: its settings (config.json), its tensors by name, and how sentence-transformers pools it, if it
    does. It remembers which tensors were used.
    """

    settings: Mapping[str, Any]
    tensors: Mapping[str, Array]
    modules: Any = None
    pooling: Any = None
    _used: set[str] = field(default_factory=set)

    @property
    def architecture(self) -> str:
        """The class the checkpoint was saved from."""
        return str((self.settings.get("architectures") or ["none"])[0])

    def __call__(self, *names: str, prefix: str = "") -> Array:
        """A tensor by one of its names, which may carry the prefix that classes with a head give to their encoder's;
        KeyError with the first if none is there.
        """
        found = next((key for name in names for key in (prefix + name, name) if key in self.tensors), None)
        if found is None:
            raise KeyError(prefix + names[0])
        self._used.add(found)
        return self.tensors[found]

    def has(self, name: str) -> bool:
        """Whether a tensor is there; of settings alone, without tensors, what their class has is taken to be."""
        return not self.tensors or name in self.tensors

    def unused(self) -> set[str]:
        """Names of tensors nobody asked for."""
        return set(self.tensors) - self._used


def rotation(source: Source) -> dict[str, Any]:
    """Settings of rotary positions, from where transformers 5 or earlier ones keep them."""
    old = {"rope_theta": source.settings["rope_theta"]} if "rope_theta" in source.settings else {}
    return {**old, **(source.settings.get("rope_scaling") or {}), **(source.settings.get("rope_parameters") or {})}


class Family(ABC):
    """How checkpoints of one ``model_type`` become models of ours."""

    model_type: str
    architectures: tuple[str, ...]
    allowed: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Settings that must have one of these values, where a checkpoint states them."""
    left: ClassVar[tuple[str, ...]] = ()
    """Parts of the names of tensors that compute nothing of what we run."""

    @abstractmethod
    def config(self, name: str, source: Source) -> ModelConfig:
        """Our config."""

    @abstractmethod
    def parameter(self, ours: str, config: ModelConfig, source: Source) -> Array:
        """Our parameter of that name; KeyError, with their tensor's name, if that is missing."""

    def unsupported(self, source: Source) -> Iterator[str]:
        """All settings that cannot be followed."""
        for name, values in self.allowed.items():
            if name in source.settings and source.settings[name] not in values:
                yield f"{name} is {source.settings[name]!r}, supported is {' or '.join(map(repr, values))}"

    def may_be_left(self, tensor: str) -> bool:
        """Whether a tensor computes nothing of what we run."""
        return any(part in tensor for part in self.left)
