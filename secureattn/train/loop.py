"""Training through the plaintext engine: cross-entropy plus a penalty that keeps every site's range narrow."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from secureattn.approx import Interval, Realisation, exact
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.nn.config import ModelConfig
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import fold
from secureattn.nn.parameters import Parameters, initial
from secureattn.train.data import Split, shifted
from secureattn.train.ranges import Values, range_penalty, site_units

Array = npt.NDArray[np.float64]
_STATISTICS = (".norm.mean", ".norm.variance")


@dataclass(frozen=True)
class Recipe:
    """How to train: ``targets`` maps the last part of a site's path to the interval its values should keep to."""

    targets: Mapping[str, Interval]
    epochs: int = 160
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    penalty: float = 2.0
    label_smoothing: float = 0.05
    momentum: float = 0.1
    seed: int = 0


def train(config: ModelConfig, split: Split, recipe: Recipe, start: Parameters | None = None) -> Parameters:
    """Train with the true functions (those of the plaintext engine's exact mode); returns the last parameters.

    The range penalty is on from the first step. BatchNorm's statistics follow the data by exponential averaging and
    are constants to the optimiser, so training sees the very folded network that is served.
    """
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    parameters = start or initial(config, recipe.seed)
    weights = {name: torch.tensor(value, dtype=torch.float32) for name, value in parameters.items()}
    learnt = [w.requires_grad_() for name, w in weights.items() if not name.endswith(_STATISTICS)]
    optimiser = torch.optim.AdamW(learnt, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(split.train_inputs) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps)
    served = {site: exact(function) for site, function in config.sites().items()}
    targets = {s: recipe.targets[s.rsplit("/", 1)[-1]] for s in served if s.rsplit("/", 1)[-1] in recipe.targets}
    for epoch in range(recipe.epochs):
        order = rng.permutation(len(split.train_inputs))
        for batch in np.array_split(order, -(-len(order) // recipe.batch)):
            logits, values = _forward(config, weights, served, shifted(split.train_inputs[batch], rng))
            labels = torch.as_tensor(split.train_labels[batch])
            loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
            penalty = range_penalty(site_units(config, values), targets)
            optimiser.zero_grad()
            (loss + recipe.penalty * penalty).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(learnt, 1.0)
            optimiser.step()
            schedule.step()
            _follow_statistics(config, weights, values, recipe.momentum)
        _report(epoch, recipe.epochs, loss.item(), penalty.item())
    return {name: w.detach().numpy().astype(np.float64) for name, w in weights.items()}


def accuracy(
    config: ModelConfig,
    parameters: Mapping[str, Array],
    inputs: Array,
    labels: npt.NDArray[np.int64],
    served: Mapping[str, Realisation] | None = None,
) -> float:
    """Share of samples classified right, with the true functions unless realisations are given."""
    weights = {name: torch.as_tensor(value) for name, value in parameters.items()}
    served = served or {site: exact(function) for site, function in config.sites().items()}
    with torch.no_grad():
        logits, _ = _forward(config, weights, served, inputs, torch.float64)
    return float((logits.argmax(-1).numpy() == labels).mean())


def _forward(
    config: ModelConfig,
    weights: Mapping[str, torch.Tensor],
    served: Mapping[str, Realisation],
    inputs: Array,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    backend = PlaintextBackend(exact=True, dtype=dtype)
    values = Values()
    backend.observers.append(values)
    scores: Any = Encoder(fold(config, weights, served), backend)(backend.input(inputs))
    return scores.data.squeeze(1), values.last


def _follow_statistics(
    config: ModelConfig, weights: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor], momentum: float
) -> None:
    if config.norm != "batchnorm":
        return
    with torch.no_grad():
        for i in range(config.layers):
            for part in ("attention", "ffn"):
                seen = values[f"layer.{i}/{part}/norm"].flatten(0, 1)
                weights[f"layer.{i}.{part}.norm.mean"].lerp_(seen.mean(0), momentum)
                weights[f"layer.{i}.{part}.norm.variance"].lerp_(seen.var(0), momentum)


def _report(epoch: int, epochs: int, loss: float, penalty: float) -> None:
    if sys.stderr.isatty() or (epoch + 1) % 20 == 0:
        print(f"epoch {epoch + 1}/{epochs}  loss {loss:.3f}  range penalty {penalty:.4f}", file=sys.stderr)
