"""What training minimises beside the range penalty: a classification loss, or the distance to a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from secureattn.errors import InputError
from secureattn.nn.config import ModelConfig
from secureattn.train.forward import Array, Pass, Tensors, forward, true_functions


@dataclass(frozen=True)
class Batch:
    """Inputs ``[N,S,F]``, labels ``[N]``, and the epoch they are shown in, from 0."""

    inputs: Array
    labels: torch.Tensor
    epoch: int


class Objective(Protocol):
    """A loss, and which parameters it trains when."""

    def __call__(self, seen: Pass, batch: Batch) -> torch.Tensor: ...

    def learns(self, name: str, epoch: int) -> bool:
        """Whether the parameter is changed in this epoch."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What a checkpoint must agree on, for JSON."""
        ...


@dataclass(frozen=True)
class Classification:
    """Cross-entropy with smoothed labels."""

    label_smoothing: float

    def __call__(self, seen: Pass, batch: Batch) -> torch.Tensor:
        return cross_entropy(seen.logits, batch.labels, label_smoothing=self.label_smoothing)

    def learns(self, name: str, epoch: int) -> bool:
        return True

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "classification", **asdict(self)}


@dataclass(frozen=True)
class Distillation:
    """How a student follows its teacher: weights of the loss's parts.

    ``T²·KL(teacher ‖ student)`` of the class scores at temperature T (Hinton et al., arXiv 1503.02531), plus
    ``context`` and ``blocks`` times the squared error of every attention's context and every block's output, relative
    to the teacher's mean square, plus ``labels`` times cross-entropy. For the first ``attention_first`` share of the
    epochs only the context counts, and only the attention's own matrices learn.
    """

    temperature: float = 2.0
    context: float = 1.0
    blocks: float = 1.0
    labels: float = 0.0
    attention_first: float = 0.25

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"the temperature must be positive, not {self.temperature:g}")
        if not 0 <= self.attention_first <= 1:
            raise InputError(f"the share of epochs for attention must be within 0 and 1, not {self.attention_first:g}")


class Teacher:
    """The distance to a teacher run with its true functions."""

    def __init__(self, config: ModelConfig, weights: Tensors, how: Distillation, epochs: int) -> None:
        self.how = how
        self._config, self._functions = config, true_functions(config)
        self._weights = {name: weight.to(torch.float32) for name, weight in weights.items()}
        self._staged = round(how.attention_first * epochs)
        self._contexts = [f"layer.{i}/attention/context" for i in range(config.layers)]
        ends = [f"layer.{i}/attention/input" for i in range(1, config.layers)]
        self._blocks = [f"layer.{i}/ffn/input" for i in range(config.layers)] + [*ends, "head/input"]

    def __call__(self, seen: Pass, batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            shown = forward(self._config, self._weights, self._functions, batch.inputs)
        context = self.how.context * _distance(seen, shown, self._contexts)
        if batch.epoch < self._staged:
            return context
        t = self.how.temperature
        scores = log_softmax(seen.logits / t, -1), log_softmax(shown.logits / t, -1)
        loss = t**2 * kl_div(*scores, reduction="batchmean", log_target=True)
        loss = loss + context + self.how.blocks * _distance(seen, shown, self._blocks)
        return loss + self.how.labels * cross_entropy(seen.logits, batch.labels) if self.how.labels else loss

    def learns(self, name: str, epoch: int) -> bool:
        return epoch >= self._staged or (".attention." in name and ".norm." not in name)

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "distillation", **asdict(self.how)}


def _distance(seen: Pass, shown: Pass, points: list[str]) -> torch.Tensor:
    """Mean over points of the squared error relative to the teacher's mean square."""
    total = torch.zeros(())
    for point in points:
        wanted = shown.points[point]
        total = total + (seen.points[point] - wanted).square().mean() / wanted.square().mean()
    return total / len(points)
