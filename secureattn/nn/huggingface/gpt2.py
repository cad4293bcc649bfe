"""GPT-2: a decoder with learned positions, whose embedding is its head."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from secureattn.nn.config import ModelConfig
from secureattn.nn.huggingface.family import ACTIVATIONS, Array, Family, Source, kind_of

_PARTS = {
    "attention.output": "attn.c_proj",
    "attention.norm": "ln_1",
    "ffn.in": "mlp.c_fc",
    "ffn.out": "mlp.c_proj",
    "ffn.norm": "ln_2",
}
_JOINT = ("query", "key", "value")


class Gpt2(Family):
    """Norms before the parts and before the head; matrices are ``[Din,Dout]``, queries, keys and values in one."""

    model_type = "gpt2"
    prefix = "transformer."
    architectures = ("GPT2LMHeadModel",)
    allowed: ClassVar = {
        "activation_function": tuple(ACTIVATIONS),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    }
    left = (".attn.bias", ".attn.masked_bias", "lm_head.weight")

    def config(self, name: str, source: Source) -> ModelConfig:
        """Our config."""
        s = source.settings
        return ModelConfig(
            name=name,
            tokens=s["n_positions"],
            features=s["vocab_size"],
            width=s["n_embd"],
            heads=s["n_head"],
            hidden=s.get("n_inner") or 4 * s["n_embd"],
            layers=s["n_layer"],
            classes=s["vocab_size"],
            attention="softmax",
            norm_epsilon=s.get("layer_norm_epsilon", 1e-5),
            activation=ACTIVATIONS[s.get("activation_function", "gelu_new")],
            input="tokens",
            output="next",
            causal=True,
            final_norm=True,
            tied=True,
        )

    def parameter(self, ours: str, config: ModelConfig, source: Source) -> Array:
        """Our parameter."""
        kind = kind_of(ours)
        outer = {"embed.weight": "wte.weight", "position": "wpe.weight"}
        if ours in ("embed.bias", "head.bias"):
            return np.zeros(config.width if ours == "embed.bias" else config.classes)
        if ours in outer:
            value = source(outer[ours], prefix=self.prefix)
            return value.T if ours == "embed.weight" else value[: config.tokens]
        if ours.startswith("final.norm"):
            return source(f"ln_f.{kind}", prefix=self.prefix)
        _, layer, part = ours.split(".", 2)
        part = part.rsplit(".", 1)[0]
        if part.removeprefix("attention.") in _JOINT:
            joint = source(f"h.{layer}.attn.c_attn.{kind}", prefix=self.prefix)
            found: Array = np.split(joint, 3, axis=-1)[_JOINT.index(part.removeprefix("attention."))]
        else:
            found = source(f"h.{layer}.{_PARTS[part]}.{kind}", prefix=self.prefix)
        return found.T


FAMILIES = (Gpt2(),)
