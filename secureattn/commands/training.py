"""``secureattn train``, ``convert`` and ``calibrate``: models made, converted and measured on the digits."""

from __future__ import annotations

import shutil
from argparse import Namespace as Options
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from secureattn import load_protocol
from secureattn.approx import Realisation
from secureattn.commands import importing, output
from secureattn.commands.inference import read_inputs
from secureattn.errors import InputError
from secureattn.nn import parameters
from secureattn.nn.batch import Batch
from secureattn.nn.config import ModelConfig
from secureattn.nn.huggingface import is_checkpoint
from secureattn.nn.model import Array, Model
from secureattn.nn.ranges import UNMEASURED
from secureattn.protocol import Protocol
from secureattn.resources import find, names
from secureattn.train import checkpoint
from secureattn.train.convert import convert as distil
from secureattn.train.convert import student_start
from secureattn.train.data import Split, digits
from secureattn.train.loop import Checkpoints
from secureattn.train.loop import train as from_scratch
from secureattn.train.objectives import Distillation
from secureattn.train.ranges import calibrate as measure
from secureattn.train.recipe import Recipe
from secureattn.train.report import ERRORS, SiteRange, report, report_of
from secureattn.train.script import accuracies, write

CONVERSION = Recipe(epochs=40, learning_rate=3e-3)
"""What a student of a digits model needs to follow its teacher."""
FURTHER = Recipe(epochs=10, learning_rate=1e-3)
"""What a trained model needs to get used to its approximations."""
_UNFINISHED = "checkpoint"  # folder within the model's, while training lasts


def train(options: Options) -> None:
    """Train a config from scratch, or a model further through a protocol's approximations, and write its folder."""
    output.writable(options.json)
    torch.set_num_threads(1)
    path = find("models", options.config)
    if options.through:
        _train_through(options, path)
        return
    config = ModelConfig.load(path / "config.json" if path.is_dir() else path)
    split = _split(config)
    recipe = _recipe(options, Recipe(), config)
    kept = _claimed(options)
    with output.progress() as tell:
        trained = from_scratch(config, split, recipe, checkpoints=kept, progress=tell)
    _finish(options, config, trained, split, {"recipe": asdict(recipe)}, {})


def _train_through(options: Options, folder: Path) -> None:
    config, start = _read(folder)
    split, protocol = _split(config), load_protocol(options.through)
    recipe = _recipe(options, FURTHER, config)
    form, functions = _served(protocol, config, start, split)
    kept = _claimed(options)
    with output.progress() as tell:
        trained = from_scratch(form, split, recipe, start, served=functions, checkpoints=kept, progress=tell)
    others = {
        "before": accuracies(config, start, split),
        f"before, {protocol.name}": accuracies(form, start, split, functions),
    }
    form, functions = _served(protocol, config, trained, split)
    others[f"model, {protocol.name}"] = accuracies(form, trained, split, functions)
    _finish(options, config, trained, split, {"recipe": asdict(recipe)}, others)


def _served(
    protocol: Protocol, config: ModelConfig, weights: Mapping[str, Array], split: Split
) -> tuple[ModelConfig, dict[str, Realisation]]:
    """The model as a protocol computes it, and what serves its sites on ranges calibrated now."""
    model = Model(Path(), config, measure(config, weights, split.train_inputs))
    return protocol.served(config), protocol.realisations(model)


def convert(options: Options) -> None:
    """Convert a Hugging Face checkpoint, or distil a model into one with another attention or norm."""
    output.writable(options.json)
    torch.set_num_threads(1)
    source = find("models", options.model)
    if is_checkpoint(source):
        if options.attention is not None:
            raise InputError("a checkpoint keeps its attention; convert it first, then the model that makes")
        importing.convert(options, source)
        return
    if options.attention is None:
        raise InputError("which attention? name it with --attention (a Hugging Face checkpoint would keep its own)")
    known, weights = _read(source)
    changes = {name: getattr(options, name) for name in ("attention", "power", "norm", "activation")}
    config = replace(known, name=options.output.name, **{k: v for k, v in changes.items() if v is not None})
    split = _split(config)
    recipe = _recipe(options, CONVERSION, config)
    how = Distillation(**_given(options, Distillation))
    before = student_start(known, weights, config, split.train_inputs, recipe.seed)
    kept = _claimed(options)
    with output.progress() as tell:
        student = distil((known, weights), config, split, recipe, how=how, checkpoints=kept, progress=tell)
    others = {
        "teacher": accuracies(known, weights, split),
        "before": accuracies(config, before, split),
    }
    _finish(options, config, student, split, {"recipe": asdict(recipe), "distillation": asdict(how)}, others)


def calibrate(options: Options) -> None:
    """Measure a model's ranges on data, print the report, write ranges.json."""
    folder = find("models", options.model)
    path = options.output or folder / "ranges.json"
    output.writable(options.json, path)
    shipped = {find("models", name) / "ranges.json" for name in names("models")}
    if path.resolve() in {file.resolve() for file in shipped} and not options.overwrite:
        raise InputError(f"{path} belongs to a shipped model; name another file with -o, or add --overwrite")
    config = ModelConfig.load(folder / "config.json")
    model = Model(folder, config, UNMEASURED)
    weights = {name: value.numpy() for name, value in model.weights.items()}
    inputs = model.calibration(read_inputs(options.samples) if options.samples else _split(config).train_inputs)
    with output.progress() as tell:
        ranges = measure(
            config, weights, inputs, margin=options.margin, progress=lambda done, of: tell("calibrating", done, of)
        )
        if isinstance(inputs, Batch):
            rows = report_of(config, ranges)
        else:
            rows = report(config, weights, inputs, _targets(options, config), margin=options.margin)
    with output.whole(path) as draft:
        draft.write_text(ranges.to_json())
    console = output.stdout()
    show_report(console, rows)
    interval = "" if ranges.input is None else " in [{:.4g}, {:.4g}]".format(*ranges.input)
    console.print(f"{config.name}: {len(inputs)} inputs{interval}, margin {options.margin:g}: {path}")
    if options.json:
        table = {"sites": [asdict(row) for row in rows], "input": ranges.input, "bounds": dict(ranges.bounds)}
        about = {"schema": 1, "model": config.name, "samples": len(inputs), "margin": options.margin, "file": str(path)}
        output.write_json(options.json, {**about, "errors": ERRORS, **table})


def show_report(console: Console, rows: Iterable[SiteRange]) -> None:
    """The range report as a table; intervals to three digits."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("site", "function", "observed", "99.8 %", "target", "outside", "domain", "high/low"):
        table.add_column(heading)
    for error in ERRORS:
        table.add_column(f"degree for {error:g}", justify="right")
    for row in rows:
        intervals = (row.observed, row.central, row.target, row.domain)
        spans = ["--" if ends is None else f"{ends[0]:.3g} … {ends[1]:.3g}" for ends in intervals]
        degrees = ["--" if degree is None else str(degree) for degree in row.degrees]
        ratio = "--" if row.ratio is None else f"{row.ratio:.1f}"
        outside = "--" if row.outside is None else f"{row.outside:.2%}"
        table.add_row(row.site, row.function, *spans[:3], outside, spans[3], ratio, *degrees)
    console.print(table)


def _finish(
    options: Options,
    config: ModelConfig,
    trained: parameters.Parameters,
    split: Split,
    made: Mapping[str, Mapping[str, Any]],
    others: Mapping[str, Mapping[str, float]],
) -> None:
    """Write the whole folder, then drop the checkpoint; say how well the model does, and the models it came from."""
    folder: Path = options.output
    write(folder, config, trained, split)
    found = {**others, "model": accuracies(config, trained, split)}
    (folder / "config.json").write_text(config.to_json())
    (folder / "README.md").write_text(_card(config, found, made))
    shutil.rmtree(folder / _UNFINISHED)
    console = output.stdout()
    for name, shares in found.items():
        console.print(f"{config.name}, {name}: " + ", ".join(f"{share:.2%} {part}" for part, share in shares.items()))
    console.print(f"written to {folder}")
    if options.json:
        about = {"schema": 1, "model": config.name, "folder": str(folder)}
        output.write_json(options.json, {**about, "accuracy": found, **made})


def _card(config: ModelConfig, found: Mapping[str, Mapping[str, float]], made: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"# {config.name}", "", f"A transformer encoder of {config.layers} block(s), width {config.width}, "]
    lines[-1] += f"{config.heads} head(s): {config.attention} attention, {config.norm}, {config.activation}."
    lines += ["", "| | |", "|---|---|"]
    lines.append("| Data | scikit-learn's digits (Alpaydin & Kaynak, 1998), 360 of 1,797 held out |")
    for name, shares in found.items():
        lines.append(f"| Accuracy, {name} | " + ", ".join(f"{v:.2%} {part}" for part, v in shares.items()) + " |")
    for table, entries in made.items():
        said = ", ".join(f"{key} {_words(value)}" for key, value in entries.items() if value != {})
        lines.append(f"| {table.capitalize()} | {said} |")
    lines.append("| Ranges | `ranges.json`, calibrated on the training images alone, margin 10 % |")
    return "\n".join(lines) + "\n"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} [{low:g}, {high:g}]" for name, (low, high) in value.items())
    return f"{value:g}"


def _claimed(options: Options) -> Checkpoints:
    """The output folder's checkpoints; a folder that holds anything else is refused."""
    folder: Path = options.output
    kept = folder / _UNFINISHED
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (options.resume and checkpoint.exists(kept)):
        if checkpoint.exists(kept):
            raise InputError(f"{folder} holds an unfinished training; add --resume, or name another folder")
        raise InputError(f"{folder} is not empty and holds no training to resume; name another folder")
    return Checkpoints(kept, options.every, options.resume)


def _recipe(options: Options, default: Recipe, config: ModelConfig) -> Recipe:
    recipe = replace(default, **_given(options, Recipe), targets=_targets(options, config))
    if not recipe.learning_rate:
        raise InputError("the learning rate must be positive, not 0")
    return recipe


def _given(options: Options, kind: type) -> dict[str, Any]:
    """The fields of a dataclass that were set by an option of the same name."""
    given = {f.name: getattr(options, f.name, None) for f in fields(kind) if f.name != "targets"}
    return {name: value for name, value in given.items() if value is not None}


def _targets(options: Options, config: ModelConfig) -> dict[str, tuple[float, float]]:
    known = sorted({site.rsplit("/", 1)[-1] for site in config.sites()})
    found = {}
    for site, low, high in options.target or ():
        if site not in known:
            raise InputError(f"model {config.name} has no site {site!r} to target; its sites are {', '.join(known)}")
        try:
            found[site] = (float(low), float(high))
        except ValueError as error:
            raise InputError(f"the target of {site} needs two numbers, got {low!r} and {high!r}") from error
        if not found[site][0] < found[site][1]:
            raise InputError(f"the target of {site} needs its ends in ascending order, got {low} and {high}")
    return found


def _read(folder: Path) -> tuple[ModelConfig, dict[str, Array]]:
    """Config and weights of a folder that may lack ranges."""
    config = ModelConfig.load(folder / "config.json")
    return config, parameters.load(folder / "model.safetensors", config)


def _split(config: ModelConfig) -> Split:
    """The digits, if the model reads them."""
    split = digits()
    here = (*split.train_inputs.shape[1:], int(split.train_labels.max()) + 1)
    if (config.tokens, config.features, config.classes) != here:
        raise InputError(
            f"model {config.name} has {config.tokens} tokens of {config.features} features and {config.classes} "
            f"classes, the digits {here[0]} of {here[1]} and {here[2]}"
        )
    return split
