"""``secureattn infer``: inputs from a file, through an engine, class scores to a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from secureattn.commands.output import whole
from secureattn.errors import InputError
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


def check_output(path: Path) -> None:
    """Refuse an output format before anything is computed."""
    if path.suffix not in OUTPUTS:
        raise InputError(f"output {path} has an unknown format; it must end in {' or '.join(OUTPUTS)}")


def write_outputs(path: Path, scores: Array) -> None:
    """Scores ``[N,C]`` as .npy, or classes and scores as .json."""
    with whole(path) as draft:
        if path.suffix == ".npy":
            np.save(draft, scores)
        else:
            found = {"classes": scores.argmax(-1).tolist(), "scores": scores.tolist()}
            draft.write_text(json.dumps(found, allow_nan=False) + "\n")
