"""``secureattn infer``: inputs from a file, through an engine, class scores to a file."""

from __future__ import annotations

import json
from argparse import Namespace as Options
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from secureattn import runs
from secureattn.commands import comparison, output, planning, profiling
from secureattn.errors import InputError
from secureattn.nn.model import Model, lines
from secureattn.runs import Array

INPUTS = (".npy", ".json", ".safetensors", ".txt")
OUTPUTS = (".npy", ".json")


def infer(options: Options) -> None:
    """Run the inputs of a file and write what comes out."""
    output.writable(options.json, options.output)
    check_output(options.output)
    model, protocol = planning.named(options)
    given = read_inputs(options.input)
    batch = model.batch(given)
    runs.require(protocol.engine)
    interval = None if model.config.variable else model.ranges.input
    output.warn(outside(model.config.name, interval, batch.values))
    output.warn(cut(model, given))
    with output.progress() as tell:
        plan = planning.planned(model, protocol, batch.shape, tell, workers=options.workers, memory_gib=options.memory)
        run = runs.execute(plan, batch, progress=tell, device=options.device)
    output.warn(lost(run.outputs))
    write_outputs(options.output, run.outputs, kind=model.config.output)
    console = output.stdout()
    seconds, made = run.seconds()["total"], "vectors" if model.config.output == "vector" else "scores"
    console.print(f"{plan.title}: {len(batch)} inputs in {seconds:.1f} s, {made} in {options.output}")
    comparison.show_basis(plan, console)
    if options.json:
        output.write_json(options.json, profiling.document(plan, run, ()))


def read_inputs(path: Path) -> Any:
    """Inputs ``[N,S,F]``, or numbers of tokens ``[N,S]``, from .npy, .json (nested lists) or .safetensors (the tensor
    called inputs); texts from .txt, one a line.
    """
    if path.suffix not in INPUTS:
        raise InputError(f"input {path} has an unknown format; it must end in {', '.join(INPUTS)}")
    try:
        if path.suffix == ".txt":
            return lines(path)
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        if path.suffix == ".json":
            return np.asarray(json.loads(path.read_text()))
        return load_file(path)["inputs"]
    except (OSError, ValueError, KeyError, EOFError, SafetensorError) as error:
        raise InputError(f"input {path} cannot be read: {error}") from error


def outside(name: str, interval: tuple[float, float] | None, values: Any) -> str:
    """What to warn of inputs that leave the interval a model was calibrated on; empty where none do, or none is."""
    if interval is None:
        return ""
    low, high = interval
    left = int(((values < low) | (values > high)).sum())
    if not left:
        return ""
    return (
        f"{left} of {values.size} input values lie outside [{low:g}, {high:g}], for which model {name} was calibrated; "
        "approximations may leave their domains and the results may be wrong"
    )


def cut(model: Model, inputs: Any) -> str:
    """What to warn of texts that were cut to the tokens a model takes; empty where none were."""
    many = model.tokenizer.cut(inputs) if isinstance(inputs, list) and isinstance(inputs[0], str) else 0
    return f"{many} of {len(inputs)} texts were cut to {model.config.tokens} tokens" if many else ""


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


def write_outputs(path: Path, outputs: Array, *, kind: str = "scores") -> None:
    """Outputs ``[N,C]`` as .npy, or as .json: vectors, or classes and scores, null for what is not finite."""
    with output.whole(path) as draft:
        if path.suffix == ".npy":
            np.save(draft, outputs)
            return
        finite = [row if np.isfinite(row).all() else None for row in outputs]
        found = {f"{kind}s" if kind == "vector" else kind: [row if row is None else row.tolist() for row in finite]}
        if kind == "scores":
            found = {"classes": [row if row is None else int(row.argmax()) for row in finite], **found}
        draft.write_text(json.dumps(found, allow_nan=False) + "\n")
