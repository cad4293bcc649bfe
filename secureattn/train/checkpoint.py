"""Checkpoints: all that training carries, as safetensors and JSON, so that a resumed run ends with the same bits.

``checkpoint.json`` names the tensor file that belongs to it and takes the place of its predecessor in one rename, so
a folder always holds one whole checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from secureattn.approx import Realisation
from secureattn.errors import InputError
from secureattn.nn.config import ModelConfig
from secureattn.train.data import Split
from secureattn.train.forward import Array
from secureattn.train.objectives import Objective
from secureattn.train.recipe import Recipe
from secureattn.train.state import State

INDEX = "checkpoint.json"
_FORMAT = 1


def identity(
    config: ModelConfig,
    recipe: Recipe,
    objective: Objective,
    served: Mapping[str, Realisation],
    start: Mapping[str, Array],
    split: Split,
) -> dict[str, Any]:
    """What must be the same for a run to go on from a checkpoint, as flat JSON."""
    tables: dict[str, Mapping[str, Any]] = {
        "config": asdict(config),
        "recipe": {**asdict(recipe), "targets": {name: list(ends) for name, ends in recipe.targets.items()}},
        "objective": objective.describe(),
        "served": {site: f"{made.label} on {list(made.domain)}" for site, made in served.items()},
    }
    flat = {f"{table}.{key}": value for table, entries in tables.items() for key, value in entries.items()}
    data = {"inputs": split.train_inputs, "labels": split.train_labels}
    return {**flat, "data": digest(data), "start": digest(start)}


def digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256 of arrays by name."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def exists(folder: Path) -> bool:
    """Whether the folder holds a checkpoint."""
    return (folder / INDEX).is_file()


def save(folder: Path, state: State, about: Mapping[str, Any]) -> None:
    """Write the state after a finished epoch; an older checkpoint gives way when the new one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"state-{state.epoch:06d}.safetensors"
    arrays = {f"weight/{key}": value.detach().contiguous() for key, value in state.weights.items()}
    optimiser = state.optimiser.state_dict()
    keys = list(state.learnt)
    for index, moments in optimiser["state"].items():
        arrays |= {f"{kind}/{keys[index]}": value for kind, value in moments.items()}
    save_file(arrays, folder / name)
    index = {
        "format": _FORMAT,
        "tensors": name,
        "about": about,
        "epoch": state.epoch,
        "last": state.history[-1],
        "best": min(state.history, key=lambda row: row["loss"]),
        "history": state.history,
        "optimiser": optimiser["param_groups"],
        "schedule": state.schedule.state_dict(),
        "generator": state.rng.bit_generator.state,
    }
    draft = folder / f".{INDEX}"
    draft.write_text(json.dumps(index, indent=1, allow_nan=False) + "\n")
    draft.replace(folder / INDEX)
    for old in folder.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()


def restore(folder: Path, state: State, about: Mapping[str, Any]) -> None:
    """Go on where a checkpoint stopped; one of another run is refused, and what differs is named."""
    try:
        index = json.loads((folder / INDEX).read_text())
        if index["format"] != _FORMAT:
            raise ValueError(f"format {index['format']} is not {_FORMAT}, the only version this release reads")
        _same(folder, index["about"], about)
        arrays = load_file(folder / index["tensors"])
        _restore(state, index, arrays)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(f"checkpoint {folder} cannot be read: {error!r}; start again in another folder") from error


def _same(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    here = json.loads(json.dumps(here))
    different = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
    if different:
        parts = [
            f"{key} is another"
            if key in ("data", "start")
            else f"{key} is {there.get(key)} there, {here.get(key)} here"
            for key in different
        ]
        raise InputError(
            f"checkpoint {folder} belongs to another run ({'; '.join(parts)}); resume it as it was started, or start "
            "in another folder"
        )


def _restore(state: State, index: Mapping[str, Any], arrays: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, weight in state.weights.items():
            weight.copy_(arrays[f"weight/{name}"])
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for i, name in enumerate(state.learnt):
        if f"step/{name}" in arrays:  # absent where no gradient has reached the parameter yet
            moments[i] = {kind: arrays[f"{kind}/{name}"] for kind in ("step", "exp_avg", "exp_avg_sq")}
    groups = [{**group, "betas": tuple(group["betas"])} for group in index["optimiser"]]
    state.optimiser.load_state_dict({"state": moments, "param_groups": groups})
    state.schedule.load_state_dict(dict(index["schedule"]))
    state.rng.bit_generator.state = index["generator"]
    state.history = list(index["history"])
