"""``secureattn convert`` of a Hugging Face checkpoint: its model folder, tokenizer included, nothing trained."""

from __future__ import annotations

import shutil
from argparse import Namespace as Options
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from secureattn.commands import output
from secureattn.commands.inference import read_inputs
from secureattn.errors import InputError
from secureattn.nn import huggingface, parameters, text
from secureattn.nn.config import ModelConfig
from secureattn.nn.model import SAMPLES, Model
from secureattn.nn.ranges import UNMEASURED
from secureattn.train.ranges import calibrate


def convert(options: Options, source: Path) -> None:
    """Write config, weights, tokenizer and card; ranges too where there is something to calibrate on."""
    folder: Path = options.output
    output.writable(options.json)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not a new or empty folder; name another")
    seen, samples = (None if file is None else read_inputs(file) for file in (options.calibrate, options.samples))
    made = huggingface.read(source, folder.name, tokens=options.tokens)
    folder.mkdir(parents=True, exist_ok=True)
    parameters.save(folder / "model.safetensors", made.parameters)
    if made.tokenizer is not None:
        shutil.copyfile(made.tokenizer, folder / text.FILE)
    (folder / "config.json").write_text(made.config.to_json())
    (folder / "README.md").write_text(_card(made.config, source))
    model = Model(folder, made.config, UNMEASURED)
    if samples is not None:
        _keep(folder, model, samples)
    console = output.stdout()
    numbers = sum(value.size for value in made.parameters.values())
    console.print(f"{folder.name}: {_words(made.config)}, {numbers / 1e6:.1f} M parameters, written to {folder}")
    if seen is None:
        console.print(f"next: secureattn calibrate {folder} --samples FILE")
    else:
        with output.progress() as tell:
            ranges = calibrate(
                made.config,
                made.parameters,
                model.calibration(seen),
                margin=options.margin,
                progress=lambda done, of: tell("calibrating", done, of),
            )
        (folder / "ranges.json").write_text(ranges.to_json())
        console.print(f"calibrated on {len(seen)} inputs of {options.calibrate}, margin {options.margin:g}")
    if options.json:
        about = {"schema": 1, "model": folder.name, "folder": str(folder), "parameters": numbers}
        output.write_json(options.json, {**about, "calibrated": seen is not None})


def _keep(folder: Path, model: Model, samples: Any) -> None:
    """What compare and profile will run, as it came."""
    model.batch(samples)
    if isinstance(samples, list):
        (folder / SAMPLES).write_text("".join(f"{line}\n" for line in samples), encoding="utf-8")
    else:
        kind = np.int64 if model.config.variable else np.float32
        save_file({"inputs": np.ascontiguousarray(samples, dtype=kind)}, folder / "samples.safetensors")


def _words(config: ModelConfig) -> str:
    what = "decoder" if config.output == "next" else "encoder"
    return f"{config.layers} layers of a transformer {what}, width {config.width}, {config.heads} heads"


def _card(config: ModelConfig, source: Path) -> str:
    return (
        f"# {config.name}\n\n{_words(config)}: {config.attention} attention, {config.norm}, {config.activation}.\n\n"
        f"Converted from the checkpoint {source.name}; weights unchanged but for their order and 32-bit floats.\n"
    )
