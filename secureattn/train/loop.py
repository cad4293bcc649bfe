"""Training through the plaintext engine: an objective plus a penalty that keeps every site's range narrow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from secureattn.approx import Interval, Realisation
from secureattn.errors import InputError
from secureattn.nn.config import ModelConfig
from secureattn.nn.parameters import Parameters, initial
from secureattn.train import checkpoint
from secureattn.train.data import Split, shifted
from secureattn.train.forward import Array, Tensors, forward, tensors, true_functions
from secureattn.train.objectives import Batch, Classification, Objective
from secureattn.train.recipe import Recipe
from secureattn.train.state import State
from secureattn.train.targets import range_penalty, targets_of

Progress = Callable[[str, int, int], None]
"""Told what is going on, how many epochs are done, and of how many."""


@dataclass(frozen=True)
class Checkpoints:
    """Where training keeps its state, every how many epochs, and whether it goes on from what is there."""

    folder: Path
    every: int = 10
    resume: bool = False


def train(
    config: ModelConfig,
    split: Split,
    recipe: Recipe,
    start: Mapping[str, Array] | None = None,
    *,
    served: Mapping[str, Realisation] | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
) -> Parameters:
    """Train from scratch or from given parameters; returns the last ones.

    Sites are served by the true functions (those of the plaintext engine's exact mode) or by ``served``, whose
    gradients then are those of the approximations (see ``ranges.served_by``). One seed gives the same bits on one
    thread, with or without an interruption.
    """
    start = start or initial(config, recipe.seed)
    objective = Classification(recipe.label_smoothing)
    return optimise(config, split, recipe, start, objective, served=served, checkpoints=checkpoints, progress=progress)


def optimise(
    config: ModelConfig,
    split: Split,
    recipe: Recipe,
    start: Mapping[str, Array],
    objective: Objective,
    *,
    served: Mapping[str, Realisation] | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
) -> Parameters:
    """Minimise an objective plus the range penalty by AdamW on shifted images.

    The range penalty is on from the first step. BatchNorm's statistics follow the data by exponential averaging and
    are constants to the optimiser, so training sees the very folded network that is served.
    """
    served = served or true_functions(config)
    targets = targets_of(config, recipe.targets, start, split.train_inputs)
    state = State(config, recipe, start, len(split.train_inputs))
    about = checkpoint.identity(config, recipe, objective, served, start, split)
    if checkpoints:
        _begin(checkpoints, state, about)
    for epoch in range(state.epoch, recipe.epochs):
        state.history.append(_epoch(config, split, recipe, state, objective, served, targets))
        if checkpoints and ((epoch + 1) % checkpoints.every == 0 or epoch + 1 == recipe.epochs):
            checkpoint.save(checkpoints.folder, state, about)
        if progress:
            progress(_words(state, recipe), epoch + 1, recipe.epochs)
    return state.parameters()


def accuracy(
    config: ModelConfig,
    parameters: Mapping[str, Array],
    inputs: Array,
    labels: npt.NDArray[np.int64],
    served: Mapping[str, Realisation] | None = None,
) -> float:
    """Share of samples classified right, with the true functions unless realisations are given."""
    with torch.no_grad():
        seen = forward(config, tensors(parameters), served or true_functions(config), inputs, torch.float64)
    return float((seen.logits.argmax(-1).numpy() == labels).mean())


def _begin(checkpoints: Checkpoints, state: State, about: Mapping[str, object]) -> None:
    there = checkpoint.exists(checkpoints.folder)
    if checkpoints.resume and not there:
        raise InputError(f"{checkpoints.folder} holds no checkpoint to resume; start without resuming")
    if there and not checkpoints.resume:
        raise InputError(f"{checkpoints.folder} holds a checkpoint; resume it, or start in another folder")
    if there:
        checkpoint.restore(checkpoints.folder, state, about)


def _epoch(
    config: ModelConfig,
    split: Split,
    recipe: Recipe,
    state: State,
    objective: Objective,
    served: Mapping[str, Realisation],
    targets: Mapping[str, Interval],
) -> dict[str, float]:
    epoch, weights = state.epoch, state.weights
    learning = [weight for name, weight in state.learnt.items() if objective.learns(name, epoch)]
    order = state.rng.permutation(len(split.train_inputs))
    for chosen in np.array_split(order, -(-len(order) // recipe.batch)):
        labels = torch.as_tensor(split.train_labels[chosen])
        batch = Batch(shifted(split.train_inputs[chosen], state.rng), labels, epoch)
        seen = forward(config, weights, served, batch.inputs)
        loss = objective(seen, batch)
        penalty = range_penalty(seen.arguments, targets)
        state.optimiser.zero_grad()
        (loss + recipe.penalty * penalty).backward()  # type: ignore[no-untyped-call]
        _keep_only(learning, state)
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        state.optimiser.step()
        state.schedule.step()
        _follow_statistics(config, weights, seen.points, recipe.momentum)
    found = {"epoch": epoch + 1, "loss": loss.item(), "penalty": penalty.item()}
    if not np.isfinite([found["loss"], found["penalty"]]).all():
        raise InputError(
            f"training {config.name} diverged in epoch {epoch + 1}: the loss is {found['loss']}; lower the learning "
            "rate or widen the domains of the approximations"
        )
    return found


def _keep_only(learning: list[torch.Tensor], state: State) -> None:
    """Without a gradient the optimiser leaves a parameter as it is, weight decay and all."""
    if len(learning) < len(state.learnt):
        kept = {id(weight) for weight in learning}
        for weight in state.learnt.values():
            if id(weight) not in kept:
                weight.grad = None


def _follow_statistics(config: ModelConfig, weights: Tensors, points: Tensors, momentum: float) -> None:
    if config.norm != "batchnorm":
        return
    with torch.no_grad():
        for i in range(config.layers):
            for part in ("attention", "ffn"):
                seen = points[f"layer.{i}/{part}/norm"].flatten(0, 1)
                weights[f"layer.{i}.{part}.norm.mean"].lerp_(seen.mean(0), momentum)
                weights[f"layer.{i}.{part}.norm.variance"].lerp_(seen.var(0), momentum)


def _words(state: State, recipe: Recipe) -> str:
    last = state.history[-1]
    return f"epoch {state.epoch}/{recipe.epochs}  loss {last['loss']:.3f}  range penalty {last['penalty']:.4f}"
