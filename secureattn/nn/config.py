"""What a model computes: its shape, its attention kind, its norms."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from secureattn.approx.attention import VARIANTS, Attention
from secureattn.errors import ProtocolError

ATTENTIONS = tuple(sorted(VARIANTS))
NORMS = {"layernorm": "rsqrt", "rmsnorm": "rsqrt", "batchnorm": None, "dyt": "tanh", "derf": "erf"}
"""Norm → the function it computes at run time."""
STATISTICS_FREE = ("dyt", "derf")
"""Norms that are a function of each element alone, ``f(α·x)`` with a learnt α."""
ACTIVATIONS = ("gelu", "silu", "relu")


def _is_number(value: object, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True)
class ModelConfig:
    """A transformer encoder for classification; with LayerNorm the head reads the stream less its mean over features.

    ``tokens`` S, ``features`` per token before embedding, ``width`` D, ``heads`` H, ``hidden`` FFN width, ``classes``.
    ``attention`` is one of ATTENTIONS, with ``power`` and ``attention_epsilon`` where it has them; ``activation`` is
    one of ACTIVATIONS. ``norm`` is one of NORMS: ``layernorm`` and ``rmsnorm`` need statistics of the features at run
    time, ``batchnorm`` folds into the next linear layer, ``dyt`` (arXiv 2503.10622) and ``derf`` are ``tanh(α·x)`` and
    ``erf(α·x)``.
    """

    name: str
    tokens: int
    features: int
    width: int
    heads: int
    hidden: int
    layers: int
    classes: int
    attention: str = "power_softmax"
    power: int = 4
    attention_epsilon: float = 1.0
    norm: str = "layernorm"
    norm_epsilon: float = 1e-5
    activation: str = "gelu"

    def __post_init__(self) -> None:
        wrong = [
            f"{name} must be a positive whole number, not {getattr(self, name)!r}"
            for name in ("tokens", "features", "width", "heads", "hidden", "layers", "classes", "power")
            if not _is_number(getattr(self, name), int) or getattr(self, name) < 1
        ]
        if not wrong and self.width % self.heads:
            wrong.append(f"width {self.width} does not divide into {self.heads} heads")
        if self.attention not in ATTENTIONS:
            wrong.append(f"attention {self.attention!r} is none of {', '.join(ATTENTIONS)}")
        if self.norm not in NORMS:
            wrong.append(f"norm {self.norm!r} is none of {', '.join(NORMS)}")
        if self.activation not in ACTIVATIONS:
            wrong.append(f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")
        if not wrong and self.attention.startswith("power") and self.power % 2:
            wrong.append(f"power must be even, not {self.power}")
        wrong += [
            f"{name} must be a positive number, not {getattr(self, name)!r}"
            for name in ("attention_epsilon", "norm_epsilon")
            if not _is_number(getattr(self, name)) or not 0 < getattr(self, name) < math.inf
        ]
        if wrong:
            raise ProtocolError(f"model {self.name!r}", wrong)

    @property
    def head_width(self) -> int:
        """Dh = D/H."""
        return self.width // self.heads

    @property
    def variant(self) -> Attention:
        """The attention variant."""
        return VARIANTS[self.attention]

    def own_parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Name → shape of what the attention variant learns in a layer beside its four matrices."""
        return self.variant.parameters(self.heads, self.tokens)

    def layer_sites(self) -> dict[str, str]:
        """Every place in a layer where a function of one variable is computed → the function's name."""
        found: dict[str, str] = {}
        norm = NORMS[self.norm]
        if norm:
            found |= {"attention/norm": norm, "ffn/norm": norm}
        found |= {f"attention/{site}": function for site, function in self.variant.sites.items()}
        return {**found, f"ffn/{self.activation}": self.activation}

    def sites(self) -> dict[str, str]:
        """The same for all layers, by path."""
        layer = self.layer_sites()
        return {f"layer.{i}/{site}": function for i in range(self.layers) for site, function in layer.items()}

    def to_json(self) -> str:
        """The text of config.json."""
        return json.dumps({"format": 1, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> ModelConfig:
        """Read config.json; every unknown or missing key is named."""
        try:
            raw: Mapping[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ProtocolError(f"model config {path}", [str(error)]) from error
        if not isinstance(raw, dict) or raw.get("format") != 1:
            raise ProtocolError(f"model config {path}", ['"format" must be 1, the only version this release reads'])
        known = {f.name for f in fields(cls)}
        required = {"name", "tokens", "features", "width", "heads", "hidden", "layers", "classes"}
        wrong = [f"unknown key {key!r}" for key in raw if key not in known | {"format"}]
        wrong += [f"missing key {key!r}" for key in sorted(required - set(raw))]
        if wrong:
            raise ProtocolError(f"model config {path}", wrong)
        return cls(**{key: value for key, value in raw.items() if key != "format"})
