"""GPT-NeoX and decoders of its form such as Pythia: attention and FFN in parallel, rotary positions in part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from secureattn.nn.config import ModelConfig
from secureattn.nn.huggingface.family import ACTIVATIONS, Array, Family, Source, kind_of, rotation
from secureattn.nn.parameters import shapes

_PARTS = {
    "attention.output": "attention.dense",
    "attention.norm": "input_layernorm",
    "ffn.in": "mlp.dense_h_to_4h",
    "ffn.out": "mlp.dense_4h_to_h",
    "ffn.norm": "post_attention_layernorm",
}
_JOINT = ("query", "key", "value")
_HEAD = ("embed_out.weight", "lm_head.weight")  # in checkpoints, and in models that transformers 5 has loaded


class GptNeoX(Family):
    """Norms before the parts and before the head; queries, keys and values in one matrix, head by head."""

    model_type = "gpt_neox"
    prefix = "gpt_neox."
    architectures = ("GPTNeoXForCausalLM",)
    allowed: ClassVar = {"hidden_act": tuple(ACTIVATIONS), "is_decoder": (False, True)}
    left = (".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq")

    def unsupported(self, source: Source) -> Iterator[str]:
        yield from super().unsupported(source)
        kind = rotation(source).get("rope_type", "default")
        if kind != "default":
            yield f"rope scaling {kind} is not supported, plain rotary positions are"

    def config(self, name: str, source: Source) -> ModelConfig:
        """Our config."""
        s, rotary = source.settings, rotation(source)
        return ModelConfig(
            name=name,
            tokens=s["max_position_embeddings"],
            features=s["vocab_size"],
            width=s["hidden_size"],
            heads=s["num_attention_heads"],
            hidden=s["intermediate_size"],
            layers=s["num_hidden_layers"],
            classes=s["vocab_size"],
            attention="softmax",
            norm_epsilon=s.get("layer_norm_eps", 1e-5),
            activation=ACTIVATIONS[s.get("hidden_act", "gelu")],
            input="tokens",
            output="next",
            causal=True,
            positions="rotary",
            rotary_base=float(rotary.get("rope_theta", s.get("rotary_emb_base", 10000.0))),
            rotary_share=float(rotary.get("partial_rotary_factor", s.get("rotary_pct", 0.25))),
            parallel=bool(s.get("use_parallel_residual", True)),
            final_norm=True,
            tied=bool(s.get("tie_word_embeddings", False)),
        )

    def parameter(self, ours: str, config: ModelConfig, source: Source) -> Array:
        """Our parameter; biases where the checkpoint has them, else 0."""
        kind = kind_of(ours)
        if ours == "embed.weight":
            return source("embed_in.weight", prefix=self.prefix).T
        if ours == "head.weight":
            return source(*_HEAD)
        if not ours.startswith("layer."):
            final = ours.startswith("final.norm")
            return source(f"final_layer_norm.{kind}", prefix=self.prefix) if final else np.zeros(shapes(config)[ours])
        _, layer, part = ours.rsplit(".", 1)[0].split(".", 2)
        joint = part.removeprefix("attention.")
        name = f"layers.{layer}.{'attention.query_key_value' if joint in _JOINT else _PARTS[part]}.{kind}"
        if kind == "bias" and not (source.has(name) or source.has(self.prefix + name)):
            return np.zeros(shapes(config)[ours])
        found = source(name, prefix=self.prefix)
        if joint not in _JOINT:
            return found
        by_head = found.reshape(config.heads, 3, config.head_width, *found.shape[1:])
        return by_head[:, _JOINT.index(joint)].reshape(-1, *found.shape[1:])

    def may_be_left(self, tensor: str) -> bool:
        """A tied head is its embedding."""
        return super().may_be_left(tensor) or tensor in _HEAD


FAMILIES = (GptNeoX(),)
