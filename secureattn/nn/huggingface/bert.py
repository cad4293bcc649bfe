"""BERT and RoBERTa, and encoders of their form such as MiniLM: classes, their own pooler, sentence embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from secureattn.nn.config import ModelConfig
from secureattn.nn.huggingface.family import ACTIVATIONS, Array, Family, Source, kind_of

_PARTS = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "ffn.in": "intermediate.dense",
    "ffn.out": "output.dense",
    "ffn.norm": "output.LayerNorm",
}
_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
_KINDS = ("Transformer", "Pooling", "Normalize")


class Bert(Family):
    """Norms after the sums; token, position and type embeddings; the type is that of a first sentence."""

    model_type = "bert"
    prefix = "bert."
    architectures = ("BertModel", "BertForSequenceClassification")
    skipped_positions = 0
    pooler = "pooler.dense"
    head = "classifier"
    allowed: ClassVar = {
        "hidden_act": tuple(ACTIVATIONS),
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    }
    left = ("position_ids", "token_type_ids", "pooler.")

    def unsupported(self, source: Source) -> Iterator[str]:
        yield from super().unsupported(source)
        kinds = [module["type"].rsplit(".", 1)[-1] for module in source.modules or ()]
        for kind in kinds:
            if kind not in _KINDS:
                yield f"module {kind} of sentence-transformers is not supported"
        modes = [mode for mode, on in (source.pooling or {}).items() if mode.startswith("pooling_mode") and on is True]
        for mode in modes:
            if mode not in _POOLINGS:
                yield f"{mode} is not supported, {' and '.join(_POOLINGS)} are"
        if len(modes) > 1:
            yield f"several poolings at once ({', '.join(modes)}) are not supported"

    def config(self, name: str, source: Source) -> ModelConfig:
        """Our config: classes, or a vector pooled as sentence-transformers says, or else by the model's own pooler."""
        s, scores = source.settings, source.architecture.endswith("ForSequenceClassification")
        own_pooler = scores or (source.pooling is None and self._has_pooler(source))
        modes = [pooling for mode, pooling in _POOLINGS.items() if (source.pooling or {}).get(mode)]
        normalised = any(module["type"].endswith("Normalize") for module in source.modules or ())
        return ModelConfig(
            name=name,
            tokens=s["max_position_embeddings"] - self.skipped_positions,
            features=s["vocab_size"],
            width=s["hidden_size"],
            heads=s["num_attention_heads"],
            hidden=s["intermediate_size"],
            layers=s["num_hidden_layers"],
            classes=len(s.get("id2label") or {0: "", 1: ""}) if scores else s["hidden_size"],
            attention="softmax",
            norm_epsilon=s.get("layer_norm_eps", 1e-12),
            activation=ACTIVATIONS[s.get("hidden_act", "gelu")],
            input="tokens",
            output="scores" if scores else "vector",
            pooling="first" if own_pooler else (modes or ["mean"])[0],
            pooler=own_pooler,
            unit=normalised and not scores,
            norm_after=True,
            embed_norm=True,
        )

    def parameter(self, ours: str, config: ModelConfig, source: Source) -> Array:
        """Our parameter; of embeddings, the positions from the first that is used on, and type 0 as a bias."""
        if ours.startswith("embed") or ours == "position":
            return self._embedding(ours, config, source)
        if ours.startswith(("pooler", "head")):
            part, kind = ours.split(".")
            return source(f"{self.pooler if part == 'pooler' else self.head}.{kind}", prefix=self._outer(part))
        _, layer, part = ours.split(".", 2)
        part = part.rsplit(".", 1)[0]
        return source(f"encoder.layer.{layer}.{_PARTS[part]}.{kind_of(ours)}", prefix=self.prefix)

    def _embedding(self, ours: str, config: ModelConfig, source: Source) -> Array:
        if ours == "embed.weight":
            return source("embeddings.word_embeddings.weight", prefix=self.prefix).T
        if ours == "embed.bias":
            first: Array = source("embeddings.token_type_embeddings.weight", prefix=self.prefix)[0]
            return first
        if ours == "position":
            table = source("embeddings.position_embeddings.weight", prefix=self.prefix)
            found: Array = table[self.skipped_positions : self.skipped_positions + config.tokens]
            return found
        return source(f"embeddings.LayerNorm.{kind_of(ours)}", prefix=self.prefix)

    def _outer(self, part: str) -> str:
        return self.prefix if part == "pooler" else ""

    def _has_pooler(self, source: Source) -> bool:
        return source.has("pooler.dense.weight") or source.has(f"{self.prefix}pooler.dense.weight")


class Roberta(Bert):
    """As BERT, positions from 2 on; for classes a layer with tanh of the head's own."""

    model_type = "roberta"
    prefix = "roberta."
    architectures = ("RobertaModel", "RobertaForSequenceClassification")
    skipped_positions = 2

    def parameter(self, ours: str, config: ModelConfig, source: Source) -> Array:
        """Our parameter; pooler and head of a classifier are layers of its head."""
        if config.output == "scores" and ours.startswith(("pooler", "head")):
            part, kind = ours.split(".")
            return source(f"classifier.{'dense' if part == 'pooler' else 'out_proj'}.{kind}")
        return super().parameter(ours, config, source)


class XlmRoberta(Roberta):
    """RoBERTa with another vocabulary."""

    model_type = "xlm-roberta"
    architectures = ("XLMRobertaModel", "XLMRobertaForSequenceClassification")


FAMILIES = (Bert(), Roberta(), XlmRoberta())
