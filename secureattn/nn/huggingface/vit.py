"""Vision transformers: classes, or the vector of the class token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from secureattn.nn.config import ModelConfig
from secureattn.nn.huggingface.family import ACTIVATIONS, Array, Family, Source, kind_of

_PARTS = {
    "attention.query": ("encoder.layer.{}.attention.attention.query", "layers.{}.attention.q_proj"),
    "attention.key": ("encoder.layer.{}.attention.attention.key", "layers.{}.attention.k_proj"),
    "attention.value": ("encoder.layer.{}.attention.attention.value", "layers.{}.attention.v_proj"),
    "attention.output": ("encoder.layer.{}.attention.output.dense", "layers.{}.attention.o_proj"),
    "attention.norm": ("encoder.layer.{}.layernorm_before", "layers.{}.layernorm_before"),
    "ffn.in": ("encoder.layer.{}.intermediate.dense", "layers.{}.mlp.fc1"),
    "ffn.out": ("encoder.layer.{}.output.dense", "layers.{}.mlp.fc2"),
    "ffn.norm": ("encoder.layer.{}.layernorm_after", "layers.{}.layernorm_after"),
}
"""Names in checkpoints, and in models that transformers 5 has loaded."""


class Vit(Family):
    """Norms before the parts and before the output; the first token, in front of the image's patches, is a class token:
    an input's first row is 0, and the token itself is part of the first position.
    """

    model_type = "vit"
    prefix = "vit."
    architectures = ("ViTModel", "ViTForImageClassification")
    allowed: ClassVar = {"hidden_act": tuple(ACTIVATIONS), "pooler_act": ("tanh",)}
    left = ("mask_token",)

    def unsupported(self, source: Source) -> Iterator[str]:
        yield from super().unsupported(source)
        for name in ("image_size", "patch_size"):
            if not isinstance(source.settings.get(name), int):
                yield f"{name} is {source.settings.get(name)!r}, supported are squares, by one whole number"

    def config(self, name: str, source: Source) -> ModelConfig:
        """Our config."""
        s, scores = source.settings, source.architecture.endswith("Classification")
        return ModelConfig(
            name=name,
            tokens=(s["image_size"] // s["patch_size"]) ** 2 + 1,
            features=s.get("num_channels", 3) * s["patch_size"] ** 2,
            width=s["hidden_size"],
            heads=s["num_attention_heads"],
            hidden=s["intermediate_size"],
            layers=s["num_hidden_layers"],
            classes=len(s.get("id2label") or {0: "", 1: ""}) if scores else s["hidden_size"],
            attention="softmax",
            norm_epsilon=s.get("layer_norm_eps", 1e-12),
            activation=ACTIVATIONS[s.get("hidden_act", "gelu")],
            output="scores" if scores else "vector",
            pooling="first",
            pooler=not scores and source.has("pooler.dense.weight"),
            final_norm=True,
        )

    def parameter(self, ours: str, config: ModelConfig, source: Source) -> Array:
        """Our parameter; the convolution over patches is a linear layer."""
        kind = kind_of(ours)
        convolution = "embeddings.patch_embeddings.projection"
        if ours == "embed.weight":
            return source(f"{convolution}.weight", prefix=self.prefix).reshape(config.width, config.features)
        if ours == "embed.bias":
            return source(f"{convolution}.bias", prefix=self.prefix)
        if ours == "position":
            table = np.array(source("embeddings.position_embeddings", prefix=self.prefix)[0])
            bias = source(f"{convolution}.bias", prefix=self.prefix)
            table[0] += source("embeddings.cls_token", prefix=self.prefix)[0, 0] - bias
            return table
        if ours.startswith("final.norm"):
            return source(f"layernorm.{kind}", prefix=self.prefix)
        if ours.startswith(("pooler", "head")):
            return source(f"{'pooler.dense' if ours.startswith('pooler') else 'classifier'}.{kind}")
        _, layer, part = ours.split(".", 2)
        names = [f"{name.format(layer)}.{kind}" for name in _PARTS[part.rsplit(".", 1)[0]]]
        absent = kind == "bias" and source.settings.get("qkv_bias") is False
        if absent and part.split(".")[1] in ("query", "key", "value"):
            return np.zeros(config.width)
        return source(*names, prefix=self.prefix)


def patches(images: Array, size: int) -> Array:
    """Images ``[N,C,H,W]`` → inputs ``[N,1+(H/p)·(W/p),C·p²]``, p the size: 0 for the class token, then patches."""
    n, c, h, w = images.shape
    cut = images.reshape(n, c, h // size, size, w // size, size).transpose(0, 2, 4, 1, 3, 5)
    rows = cut.reshape(n, (h // size) * (w // size), c * size * size)
    return np.concatenate([np.zeros((n, 1, rows.shape[-1])), rows], 1)


FAMILIES = (Vit(),)
