"""What a model folder's train.py does: train, calibrate on the training data, write everything the library loads."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from secureattn.nn.config import ModelConfig
from secureattn.nn.parameters import save
from secureattn.train.data import digits, save_samples
from secureattn.train.loop import Recipe, accuracy, train
from secureattn.train.ranges import calibrate


def run(folder: Path, recipe: Recipe) -> None:
    """Train the model that ``folder/config.json`` describes on the digits; one thread, so that results repeat."""
    torch.set_num_threads(1)
    config, split = ModelConfig.load(folder / "config.json"), digits()
    parameters = train(config, split, recipe)
    save(folder / "model.safetensors", parameters)
    (folder / "ranges.json").write_text(calibrate(config, parameters, split.train_inputs).to_json())
    save_samples(folder / "samples.safetensors", split.test_inputs, split.test_labels)
    for part, inputs, labels in (
        ("training", split.train_inputs, split.train_labels),
        ("held-out", split.test_inputs, split.test_labels),
    ):
        share = accuracy(config, parameters, inputs, labels)
        print(f"{config.name}: accuracy on {len(labels)} {part} images {share:.4f}", file=sys.stderr)
