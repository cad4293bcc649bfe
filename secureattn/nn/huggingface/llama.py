"""LLaMA and decoders of its form: RMSNorm, SwiGLU, rotary positions, heads that share keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from secureattn.nn.config import ModelConfig
from secureattn.nn.huggingface.family import ACTIVATIONS, Array, Family, Source, kind_of, rotation
from secureattn.nn.parameters import shapes

_PARTS = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.norm": "input_layernorm",
    "ffn.in": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.out": "mlp.down_proj",
    "ffn.norm": "post_attention_layernorm",
}


class Llama(Family):
    """Norms before the parts and before the head; biases where the checkpoint has them, else 0."""

    model_type = "llama"
    prefix = "model."
    architectures = ("LlamaForCausalLM",)
    allowed: ClassVar = {"hidden_act": tuple(ACTIVATIONS), "pretraining_tp": (1,), "sliding_window": (None,)}
    left = ("rotary_emb.inv_freq",)

    def unsupported(self, source: Source) -> Iterator[str]:
        yield from super().unsupported(source)
        rotary = rotation(source)
        if rotary.get("rope_type", rotary.get("type", "default")) != "default":
            yield f"rope scaling {rotary} is not supported, plain rotary positions are"
        if rotary.get("partial_rotary_factor", 1.0) != 1.0:
            yield f"partial_rotary_factor {rotary['partial_rotary_factor']} is not supported, 1 is"

    def config(self, name: str, source: Source) -> ModelConfig:
        """Our config."""
        s = source.settings
        size = s.get("head_dim") or s["hidden_size"] // s["num_attention_heads"]
        return ModelConfig(
            name=name,
            tokens=s["max_position_embeddings"],
            features=s["vocab_size"],
            width=s["hidden_size"],
            heads=s["num_attention_heads"],
            kv_heads=s.get("num_key_value_heads"),
            head_size=None if size * s["num_attention_heads"] == s["hidden_size"] else size,
            hidden=s["intermediate_size"],
            layers=s["num_hidden_layers"],
            classes=s["vocab_size"],
            attention="softmax",
            norm="rmsnorm",
            norm_epsilon=s.get("rms_norm_eps", 1e-6),
            activation=ACTIVATIONS[s.get("hidden_act", "silu")],
            gated=True,
            input="tokens",
            output="next",
            causal=True,
            positions="rotary",
            rotary_base=float(rotation(source).get("rope_theta", 10000.0)),
            final_norm=True,
            tied=bool(s.get("tie_word_embeddings", False)),
        )

    def parameter(self, ours: str, config: ModelConfig, source: Source) -> Array:
        """Our parameter."""
        kind = kind_of(ours)
        if ours == "embed.weight":
            return source("embed_tokens.weight", prefix=self.prefix).T
        if ours == "head.weight":
            return source("lm_head.weight")
        if ours.startswith("layer."):
            _, layer, part = ours.rsplit(".", 1)[0].split(".", 2)
            name = f"layers.{layer}.{_PARTS[part]}.{kind}"
        else:
            name = f"{'norm' if ours.startswith('final.norm') else ours}.{kind}"
        if kind == "bias" and not (source.has(name) or source.has(self.prefix + name)):
            return np.zeros(shapes(config)[ours])
        return source(name, prefix=self.prefix)

    def may_be_left(self, tensor: str) -> bool:
        """A tied head is its embedding."""
        return super().may_be_left(tensor) or tensor == "lm_head.weight"


class Mistral(Llama):
    """As LLaMA, where no window slides."""

    model_type = "mistral"
    architectures = ("MistralForCausalLM",)


class Qwen2(Llama):
    """As LLaMA, with biases of queries, keys and values."""

    model_type = "qwen2"
    architectures = ("Qwen2ForCausalLM",)
    allowed: ClassVar = {**Llama.allowed, "use_sliding_window": (False,)}


FAMILIES = (Llama(), Mistral(), Qwen2())
