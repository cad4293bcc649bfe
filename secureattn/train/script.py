"""What training leaves behind: a complete model folder; and what a shipped model's train.py does."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from secureattn.approx import Realisation
from secureattn.nn.config import ModelConfig
from secureattn.nn.parameters import save
from secureattn.train.data import Split, digits, save_samples
from secureattn.train.forward import Array
from secureattn.train.loop import accuracy, train
from secureattn.train.ranges import calibrate
from secureattn.train.recipe import Recipe


def run(folder: Path, recipe: Recipe) -> None:
    """Train the model that ``folder/config.json`` describes on the digits; one thread, so that results repeat."""
    torch.set_num_threads(1)
    config, split = ModelConfig.load(folder / "config.json"), digits()
    parameters = train(config, split, recipe, progress=_tell)
    write(folder, config, parameters, split)
    counts = {"training": len(split.train_labels), "held-out": len(split.test_labels)}
    for part, share in accuracies(config, parameters, split).items():
        print(f"{config.name}: accuracy on {counts[part]} {part} images {share:.4f}", file=sys.stderr)


def write(folder: Path, config: ModelConfig, parameters: Mapping[str, Array], split: Split) -> None:
    """Weights, ranges calibrated on the training inputs, held-out samples."""
    save(folder / "model.safetensors", parameters)
    (folder / "ranges.json").write_text(calibrate(config, parameters, split.train_inputs).to_json())
    save_samples(folder / "samples.safetensors", split.test_inputs, split.test_labels)


def accuracies(
    config: ModelConfig,
    parameters: Mapping[str, Array],
    split: Split,
    served: Mapping[str, Realisation] | None = None,
) -> dict[str, float]:
    """Accuracy on ``training`` and ``held-out`` data, with the true functions unless realisations are given."""
    return {
        "training": accuracy(config, parameters, split.train_inputs, split.train_labels, served),
        "held-out": accuracy(config, parameters, split.test_inputs, split.test_labels, served),
    }


def _tell(text: str, done: int, of: int) -> None:
    if sys.stderr.isatty() or done % 20 == 0:
        print(text, file=sys.stderr)
