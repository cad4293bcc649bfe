"""What a model computes: its shape, its attention kind, its norms."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from secureattn.approx.attention import VARIANTS, Attention, realisations
from secureattn.errors import ProtocolError

ATTENTIONS = tuple(sorted(VARIANTS))
NORMS = {"layernorm": "rsqrt", "rmsnorm": "rsqrt", "batchnorm": None, "dyt": "tanh", "derf": "erf"}
"""Norm → the function it computes at run time."""
STATISTICS_FREE = ("dyt", "derf")
"""Norms that are a function of each element alone, ``f(α·x)`` with a learnt α."""
ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")
INPUTS = ("features", "tokens", "embedded")
OUTPUTS = ("scores", "vector", "next")
POOLINGS = ("mean", "first")
POSITIONS = ("learned", "rotary")


def _is_number(value: object, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True)
class ModelConfig:
    """A transformer: encoders that classify or give vectors, decoders that score the next token.

    What goes in (``input``): ``features``, numbers ``[tokens, features]``, as many tokens in every input; or
    ``tokens``, at most ``tokens`` of them from a vocabulary of ``features``; or, as a protocol may serve such a model,
    ``embedded``, the same tokens as rows that whoever has them looked up. What comes out (``output``): ``scores`` of
    ``classes``, from the ``pooling`` of all tokens (their mean, or the first); a ``vector``, that pooling itself,
    divided by its length if ``unit``; either through a layer with tanh where there is a ``pooler``; or ``next``, scores
    of the token after each.

    ``width`` D, ``heads`` H of ``head_size`` Dh (D/H), ``kv_heads`` of keys and values, fewer where several heads share
    them (H), ``hidden`` FFN width, ``gated``: the activation multiplies a second layer's values. ``attention`` is one
    of ATTENTIONS, with ``power`` and ``attention_epsilon`` where it has them, ``by_layer`` those of each layer where
    they differ; ``causal``: no token sees a later one.
    ``positions`` are ``learned`` addends or ``rotary``, turned into queries and keys with ``rotary_base``: into all
    features of a head or the first ``rotary_share`` of them. ``parallel``: attention and FFN read the same normed
    stream, one norm serves both, and what both make is added at once.

    ``norm`` is one of NORMS: ``layernorm`` and ``rmsnorm`` need statistics of the features at run time, ``batchnorm``
    folds into the next linear layer, ``dyt`` (arXiv 2503.10622) and ``derf`` are ``tanh(α·x)`` and ``erf(α·x)``. It
    stands before attention and FFN, or, with ``norm_after``, after each sum with what went in; ``embed_norm`` and
    ``final_norm``: one more after the embedding and before the output. ``tied``: the embedding's table is the head's
    too. Without a final norm, the head of a model with LayerNorm reads the stream less its mean over features.
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
    input: str = "features"
    output: str = "scores"
    pooling: str = "mean"
    pooler: bool = False
    unit: bool = False
    head_size: int | None = None
    kv_heads: int | None = None
    gated: bool = False
    causal: bool = False
    positions: str = "learned"
    rotary_base: float = 10000.0
    rotary_share: float = 1.0
    parallel: bool = False
    norm_after: bool = False
    embed_norm: bool = False
    final_norm: bool = False
    tied: bool = False
    by_layer: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [*self._wrong_sizes(), *self._wrong_kinds()]
        wrong = wrong or [*self._wrong_together()]
        if wrong:
            raise ProtocolError(f"model {self.name!r}", wrong)

    def _wrong_sizes(self) -> Iterator[str]:
        optional = [name for name in ("head_size", "kv_heads") if getattr(self, name) is not None]
        for name in ("tokens", "features", "width", "heads", "hidden", "layers", "classes", "power", *optional):
            if not _is_number(getattr(self, name), int) or getattr(self, name) < 1:
                yield f"{name} must be a positive whole number, not {getattr(self, name)!r}"
        for name in ("attention_epsilon", "norm_epsilon", "rotary_base", "rotary_share"):
            if not _is_number(getattr(self, name)) or not 0 < getattr(self, name) < math.inf:
                yield f"{name} must be a positive number, not {getattr(self, name)!r}"

    def _wrong_kinds(self) -> Iterator[str]:
        kinds = {"attention": ATTENTIONS, "norm": tuple(NORMS), "activation": ACTIVATIONS, "input": INPUTS}
        kinds |= {"output": OUTPUTS, "pooling": POOLINGS, "positions": POSITIONS}
        for name, known in kinds.items():
            if getattr(self, name) not in known:
                yield f"{name} {getattr(self, name)!r} is none of {', '.join(known)}"
        if self.by_layer and (len(self.by_layer) != self.layers or not set(self.by_layer) <= set(ATTENTIONS)):
            yield f"by_layer must name an attention for each of {self.layers} layers, not {list(self.by_layer)}"
        for name in ("pooler", "unit", "gated", "causal", "parallel", "norm_after", "embed_norm", "final_norm", "tied"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name} must be true or false, not {getattr(self, name)!r}"

    def _wrong_together(self) -> Iterator[str]:
        if self.head_size is None and self.width % self.heads:
            yield f"width {self.width} does not divide into {self.heads} heads"
        if self.heads % (self.kv_heads or self.heads):
            yield f"{self.heads} heads do not share {self.kv_heads} heads of keys and values evenly"
        if self.attention.startswith("power") and self.power % 2:
            yield f"power must be even, not {self.power}"
        if self.positions == "rotary" and (self.rotary_width % 2 or not 2 <= self.rotary_width <= self.head_width):
            yield (
                f"rotary positions need an even number of features, from 2 to a head's {self.head_width}, not "
                f"{self.rotary_width}"
            )
        if self.parallel and (self.norm_after or self.norm not in ("layernorm", "rmsnorm")):
            yield "attention and FFN in parallel go with a layernorm or rmsnorm before them, the same for both"
        if (self.norm_after or self.embed_norm or self.final_norm) and self.norm not in ("layernorm", "rmsnorm"):
            yield f"norm {self.norm} stands before attention and FFN alone; norms elsewhere are layernorm or rmsnorm"
        if self.norm_after != self.embed_norm or (self.norm_after and self.final_norm):
            yield "norms after attention and FFN go with one after the embedding and none before the output"
        if self.pooler and self.output == "next":
            yield "a pooler goes with scores of classes or a vector, not with scores of the next token"
        if self.unit and self.output != "vector":
            yield f"only a vector is divided by its length, not {self.output}"
        vocabulary = self.features if self.input == "tokens" else self.classes
        outputs = {"vector": self.width, "next": vocabulary}.get(self.output, self.classes)
        if self.classes != outputs:
            yield f"classes must be {outputs} for the output {self.output}, not {self.classes}"
        if self.output == "next" and not (self.variable and self.causal):
            yield "scores of the next token are for causal models of tokens"
        if self.input == "embedded" and self.features != self.width:
            yield f"rows looked up have {self.width} features, not {self.features}"
        if self.tied and self.output != "next":
            yield f"the embedding's table is the head's only where the output is next, not {self.output}"
        unmasked = [name for name in self.by_layer or (self.attention,) if not VARIANTS[name].masks]
        if unmasked and (self.variable or self.causal):
            yield f"attention {', '.join(unmasked)} cannot hide keys, which tokens of any number and causal models need"

    @property
    def variable(self) -> bool:
        """Whether inputs may have fewer than ``tokens`` tokens."""
        return self.input != "features"

    @property
    def head_width(self) -> int:
        """Dh."""
        return self.head_size or self.width // self.heads

    @property
    def rotary_width(self) -> int:
        """How many features of a head are turned by rotary positions."""
        return int(self.rotary_share * self.head_width)

    @property
    def shared_heads(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def variant(self) -> Attention:
        """The attention variant."""
        return VARIANTS[self.attention]

    def variant_of(self, layer: int) -> Attention:
        """The attention variant of one layer."""
        return VARIANTS[self.by_layer[layer]] if self.by_layer else self.variant

    def own_parameters(self, layer: int) -> Mapping[str, tuple[int, ...]]:
        """Name → shape of what the attention variant learns in a layer beside its four matrices."""
        return self.variant_of(layer).parameters(self.heads, self.tokens)

    def layer_sites(self, layer: int) -> dict[str, str]:
        """Every place in a layer where a function of one variable is computed → the function's name."""
        found: dict[str, str] = {}
        norm = NORMS[self.norm]
        if norm:
            found |= {"attention/norm": norm, **({} if self.parallel else {"ffn/norm": norm})}
        found |= {f"attention/{site}": function for site, function in self.variant_of(layer).sites.items()}
        return {**found, f"ffn/{self.activation}": self.activation}

    def sites(self) -> dict[str, str]:
        """The same for the whole model, by path."""
        found = {f"layer.{i}/{site}": f for i in range(self.layers) for site, f in self.layer_sites(i).items()}
        before = {"embed/norm": "rsqrt"} if self.embed_norm and self.input != "embedded" else {}
        after = {"head/norm": "rsqrt"} if self.final_norm else {}
        after |= {"head/tanh": "tanh"} if self.pooler else {}
        after |= {"head/unit": "rsqrt"} if self.unit else {}
        return {**before, **found, **after}

    def forms(self) -> Iterator[ModelConfig]:
        """The model with its attention's function computed in each of its ways, its own first."""
        if self.by_layer:
            yield self
            return
        for variant in realisations(self.attention).values():
            if variant.masks or not (self.variable or self.causal):
                yield replace(self, attention=variant.name)

    def bears(self) -> dict[str, float]:
        """Sites, by path, that may not err by more than so much, relative, for the domains of others to hold."""
        layers = range(self.layers)
        return {f"layer.{i}/attention/{site}": e for i in layers for site, e in self.variant_of(i).bears.items()}

    def spread(self) -> dict[str, tuple[float, float]]:
        """By which factors the ends of sites' domains, by path, may move as others err by what they bear."""
        layers = range(self.layers)
        return {f"layer.{i}/attention/{site}": by for i in layers for site, by in self.variant_of(i).spread.items()}

    def to_json(self) -> str:
        """The text of config.json: what a plain encoder has, and whatever differs from one."""
        plain = {f.name: f.default for f in fields(self)}
        always = list(plain)[: list(plain).index("input")]
        stated = {name: value for name, value in asdict(self).items() if name in always or value != plain[name]}
        return json.dumps({"format": 1, **stated}, indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> ModelConfig:
        """Read config.json; every unknown or missing key is named."""
        try:
            raw = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ProtocolError(f"model config {path}", [str(error)]) from error
        return cls.of(raw, f"model config {path}")

    @classmethod
    def of(cls, raw: Any, where: str) -> ModelConfig:
        """The same from what was read, ``where`` errors say."""
        if not isinstance(raw, dict) or raw.get("format") != 1:
            raise ProtocolError(where, ['"format" must be 1, the only version this release reads'])
        known = {f.name for f in fields(cls)}
        required = {"name", "tokens", "features", "width", "heads", "hidden", "layers", "classes"}
        wrong = [f"unknown key {key!r}" for key in raw if key not in known | {"format"}]
        wrong += [f"missing key {key!r}" for key in sorted(required - set(raw))]
        if wrong:
            raise ProtocolError(where, wrong)
        values = {key: value for key, value in raw.items() if key != "format"}
        if isinstance(values.get("by_layer"), list):
            values["by_layer"] = tuple(map(str, values["by_layer"]))
        return cls(**values)
