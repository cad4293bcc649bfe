"""Conversion by distillation: a trained model becomes one with another attention, or norm, that follows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from secureattn.errors import ProtocolError
from secureattn.nn.config import STATISTICS_FREE, ModelConfig
from secureattn.nn.model import Model
from secureattn.nn.parameters import Parameters, initial, shapes
from secureattn.train.data import Split
from secureattn.train.forward import Array, Pass, forward, tensors, true_functions
from secureattn.train.loop import Checkpoints, Progress, optimise
from secureattn.train.objectives import Distillation, Teacher
from secureattn.train.recipe import Recipe
from secureattn.train.targets import RATIO, floor_of

_SHAPE = ("tokens", "features", "width", "heads", "hidden", "layers", "classes")
_LOOK = 256  # training samples from which statistics and scales of a start are taken


def convert(
    teacher: Model | tuple[ModelConfig, Mapping[str, Array]],
    config: ModelConfig,
    split: Split,
    recipe: Recipe,
    *,
    how: Distillation | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
) -> Parameters:
    """Train a student of equal shape from its teacher's weights to the teacher's scores, blocks and contexts.

    Attention, norm and activation may differ. ``accuracy`` of ``student_start`` and of what this returns says what was
    gained. Raises ProtocolError where the shapes differ.
    """
    known, weights = (teacher.config, _arrays(teacher)) if isinstance(teacher, Model) else teacher
    start = student_start(known, weights, config, split.train_inputs, recipe.seed)
    objective = Teacher(known, tensors(weights), how or Distillation(), recipe.epochs)
    return optimise(config, split, recipe, start, objective, checkpoints=checkpoints, progress=progress)


def student_start(
    teacher_config: ModelConfig, teacher: Mapping[str, Array], config: ModelConfig, inputs: Array, seed: int = 0
) -> Parameters:
    """A student's first parameters: its teacher's, and fresh ones for what only the student learns.

    LayerNorm's mean, where the student has none, goes into the weights that write to the stream, which changes nothing.
    A BatchNorm starts from the stream's statistics, as the teacher's norm at its typical size. Scores of homogeneous
    weights (powers) are scaled to fit their ε, as nothing else decides their size.
    """
    _check_shapes(teacher_config, config)
    wanted = shapes(config)
    start = initial(config, seed)
    start |= {name: value for name, value in teacher.items() if wanted.get(name) == value.shape}
    if teacher_config.norm == "layernorm" != config.norm:
        for name in start:
            if (
                name in ("embed.weight", "embed.bias", "position")
                or ".attention.output." in name
                or ".ffn.out." in name
            ):
                axis = 0 if name.endswith("weight") else -1
                start[name] = start[name] - start[name].mean(axis, keepdims=True)
    for i in range(config.layers):
        for part in ("attention", "ffn"):
            if config.norm == "batchnorm" != teacher_config.norm:
                _set_statistics(teacher_config, config, start, f"layer.{i}", part, inputs)
            if part == "attention":
                _scale_scores(config, start, f"layer.{i}", inputs)
    return start


def _arrays(model: Model) -> Parameters:
    return {name: weight.numpy() for name, weight in model.weights.items()}


def _check_shapes(teacher: ModelConfig, student: ModelConfig) -> None:
    wrong = [
        f"{name} is {getattr(student, name)}, the teacher's {getattr(teacher, name)}"
        for name in _SHAPE
        if getattr(teacher, name) != getattr(student, name)
    ]
    if wrong:
        raise ProtocolError(f"student {student.name} needs the shape of its teacher {teacher.name}", wrong)


def _look(config: ModelConfig, parameters: Parameters, inputs: Array) -> Pass:
    with torch.no_grad():
        return forward(config, tensors(parameters), true_functions(config), inputs[:_LOOK], torch.float64)


def _set_statistics(
    teacher: ModelConfig, config: ModelConfig, start: Parameters, layer: str, part: str, inputs: Array
) -> None:
    """``gain·(x−μ)/σ + bias`` that equals ``gain_t·x/r + bias_t``, r the root mean square of the stream."""
    stream = _look(config, start, inputs).points[f"{layer}/{part}/norm"].flatten(0, 1)
    mean, variance = stream.mean(0).numpy(), stream.var(0).numpy()
    norm = f"{layer}.{part}.norm"
    start[f"{norm}.mean"], start[f"{norm}.variance"] = mean, variance
    if teacher.norm in STATISTICS_FREE:
        return
    size = float(stream.square().mean().sqrt())
    gain = start[f"{norm}.gain"] / size
    start[f"{norm}.bias"] = start[f"{norm}.bias"] + gain * mean
    start[f"{norm}.gain"] = gain * (variance + config.norm_epsilon) ** 0.5


def _scale_scores(config: ModelConfig, start: Parameters, layer: str, inputs: Array) -> None:
    """Queries scaled so that the mean normaliser lies in the middle of its default target, √RATIO·ε."""
    site = f"{layer}/attention/normaliser"
    floor = floor_of(config, site)
    follows_epsilon = floor != floor_of(replace(config, attention_epsilon=2 * config.attention_epsilon), site)
    if config.variant.homogeneous is None or not follows_epsilon:
        return
    above = float(_look(config, start, inputs).arguments[site].mean()) - floor
    factor = ((RATIO**0.5 - 1) * floor / above) ** (1 / config.variant.homogeneous(config.power))
    for name in (f"{layer}.attention.query.weight", f"{layer}.attention.query.bias"):
        start[name] = start[name] * factor
