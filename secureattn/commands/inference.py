"""``secureattn infer``: inputs from a file, through an engine, class scores to a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from secureattn.commands.output import whole
from secureattn.errors import InputError
from secureattn.nn.model import Model
from secureattn.runs import Array

INPUTS = (".npy", ".json", ".safetensors")
OUTPUTS = (".npy", ".json")


def read_inputs(path: Path) -> Array:
    """Inputs ``[N,S,F]`` from .npy, .json (nested lists) or .safetensors (the tensor called inputs)."""
    if path.suffix not in INPUTS:
        raise InputError(f"input {path} has an unknown format; it must end in {', '.join(INPUTS)}")
    try:
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        if path.suffix == ".json":
            return np.asarray(json.loads(path.read_text()))
        return load_file(path)["inputs"]
    except (OSError, ValueError, KeyError, EOFError, SafetensorError) as error:
        raise InputError(f"input {path} cannot be read: {error}") from error


def outside(model: Model, inputs: Array) -> str:
    """What to warn of inputs that leave the interval the model was calibrated on; empty where none do."""
    if model.ranges.input is None:
        return ""
    low, high = model.ranges.input
    left = int(((inputs < low) | (inputs > high)).sum())
    if not left:
        return ""
    return (
        f"{left} of {inputs.size} input values lie outside [{low:g}, {high:g}], for which model {model.config.name} "
        "was calibrated; approximations may leave their domains and the results may be wrong"
    )


def lost(scores: Array) -> str:
    """What to warn of scores ``[N,C]`` that are not finite; empty where all are."""
    rows = int((~np.isfinite(scores).all(-1)).sum())
    return (
        f"{rows} of {len(scores)} inputs have scores that are not finite, as values left their domains" if rows else ""
    )


def check_output(path: Path) -> None:
    """Refuse an output format before anything is computed."""
    if path.suffix not in OUTPUTS:
        raise InputError(f"output {path} has an unknown format; it must end in {' or '.join(OUTPUTS)}")


def write_outputs(path: Path, scores: Array) -> None:
    """Scores ``[N,C]`` as .npy, or classes and scores as .json, where null stands for scores that are not finite."""
    with whole(path) as draft:
        if path.suffix == ".npy":
            np.save(draft, scores)
        else:
            finite = [row if np.isfinite(row).all() else None for row in scores]
            found = {
                "classes": [row if row is None else int(row.argmax()) for row in finite],
                "scores": [row if row is None else row.tolist() for row in finite],
            }
            draft.write_text(json.dumps(found, allow_nan=False) + "\n")
