"""At scale, on paper: what BERT, GPT-2, Pythia and LLaMA-7B would cost, beside published figures.

And how well the predictor does on what can be run.

    python benchmarks/scale.py [--quick] [--json FILE] [--only PART…] [--fresh]

What each part found is kept in ``out/scale`` and not found again, unless ``--fresh``; ``--only`` leaves the other
parts as they are there. Once all parts are there, writes tables and everything as JSON, raw samples and checks, to
``benchmarks/results``. Wants a quiet machine with two cores and 20 GiB of memory.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scale_report
from measuring import Setting, run_all, tell
from processes import SEATS, parties, weighed
from scale_ckks import homomorphic

PROTOCOLS = ("accurate-mpc", "puma")
# What is predicted: model, tokens, new tokens (None: one pass over them, scores of classes).
WORKLOADS: Mapping[str, tuple[str, int, int | None]] = {
    "BERT-base, 128 tokens": ("bert-base", 128, None),
    "BERT-large, 128 tokens": ("bert-large", 128, None),
    "GPT-2 small, 32 in, 1 out": ("gpt2", 32, 1),
    "GPT-2 medium, 32 in, 1 out": ("gpt2-medium", 32, 1),
    "GPT-2 large, 32 in, 1 out": ("gpt2-large", 32, 1),
    "Pythia-70M, 128 in, 1 out": ("pythia-70m", 128, 1),
    "Pythia-70M with Power-Softmax, 128 in, 1 out": ("pythia-70m-power", 128, 1),
    "LLaMA-7B, 4 in, 1 out": ("llama-7b", 4, 1),
    "LLaMA-7B, 8 in, 1 out": ("llama-7b", 8, 1),
}
# What is run: model → what it is called, inputs, tokens of each. Configs alone get random weights, for the cost.
RUNS: Mapping[str, tuple[str, int, int]] = {
    "minilm": ("minilm, 1 × 16 tokens", 1, 16),
    "digits-vit": ("digits-vit, 64 images", 64, 16),
    "bytes-gpt2": ("bytes-gpt2, 4 × 32 tokens", 4, 32),
    "bytes-gpt2-power": ("bytes-gpt2-power, 4 × 32 tokens", 4, 32),
    "bytes-llama": ("bytes-llama, 4 × 32 tokens", 4, 32),
    "bytes-llama-power": ("bytes-llama-power, 4 × 32 tokens", 4, 32),
    "bert-base": ("BERT-base, 128 tokens", 1, 128),
    "gpt2": ("GPT-2 small, 32 tokens, scores of all", 1, 32),
    "pythia-70m": ("Pythia-70M, 128 tokens, scores of all", 1, 128),
}
QUICK = ("bytes-gpt2", "bert-base")
PAIRS = ("minilm", "bytes-gpt2", "bytes-llama", "bytes-gpt2-power", "bytes-llama-power")
PROTOCOL = "accurate-mpc"


def predictions(setting: Setting) -> dict[str, Any]:
    """Plans of configs alone."""
    found: dict[str, Any] = {}
    for workload, (name, tokens, new) in WORKLOADS.items():
        if setting.quick and name not in QUICK:
            continue
        for protocol in PROTOCOLS:
            tell(f"predictions: {workload}, {protocol}")
            found.setdefault(workload, {})[protocol] = scale_report.of_plan(_plan(name, protocol, 1, tokens, new))
    return {"workloads": found}


def _plan(model: Any, protocol: str, samples: int, tokens: int, new: int | None = None) -> Any:
    from secureattn import load_model, load_protocol
    from secureattn.nn.batch import Shape
    from secureattn.plan import make_plan

    model = load_model(model) if isinstance(model, str | Path) else model
    return make_plan(model, load_protocol(protocol), samples=samples, shape=Shape(samples, tokens), new=new)


def planning(setting: Setting) -> dict[str, Any]:
    """What the largest plan takes itself, in a process of its own."""
    name = "bert-base" if setting.quick else "llama-7b"
    command = [sys.executable, "-m", "secureattn.cli", "plan", name, PROTOCOL, "--tokens", "8"]
    seconds, peak = weighed(command)
    return {"model": name, "seconds": seconds, "peak_bytes": peak}


def assumptions(setting: Setting) -> dict[str, Any]:
    """Costs under assumed ranges and under calibrated ones, of models that have both."""
    from dataclasses import replace

    from secureattn import load_model
    from secureattn.nn.assumed import assumed

    found = {}
    for name in PAIRS:
        model = load_model(name)
        ranges = {"calibrated": model.ranges, "assumed": assumed(model.config)}
        found[name] = {
            kind: scale_report.of_plan(_plan(replace(model, ranges=of), PROTOCOL, 1, 16)) for kind, of in ranges.items()
        }
    return {"models": found}


def run(setting: Setting, name: str) -> dict[str, Any]:
    """What was planned of a model, and what processes of the command line then took: of shipped ones several times, of
    configs alone once; in small a block of one, and few models.
    """
    title, samples, tokens = RUNS[name]
    if setting.quick and name not in QUICK:
        return {"left_out": title}
    folder, random = _runnable(name, setting.folder, 1 if setting.quick else None)
    inputs = _inputs(name, folder, samples, tokens, setting.folder)
    plan = scale_report.of_plan(_plan(folder, PROTOCOL, samples, tokens))
    taken = []
    for _ in range(1 if random else setting.turns):
        load = os.getloadavg()[0]
        one = scale_report.of_run(parties(folder, PROTOCOL, inputs, setting.folder), SEATS)
        taken.append({"load_before": load, **one})
    return {"title": title, "random_weights": random, "planned": plan, "taken": taken}


def _runnable(name: str, folder: Path, layers: int | None) -> tuple[Path, bool]:
    """A model's folder; one of a config alone is made, with random weights and the assumed ranges, so that what runs is
    what was planned. ``layers``: of such a one, if fewer.
    """
    from dataclasses import replace

    from secureattn import load_model
    from secureattn.nn import parameters
    from secureattn.nn.assumed import assumed

    model = load_model(name)
    if not model.alone:
        return model.folder, False
    made = folder / name
    made.mkdir(exist_ok=True)
    config = replace(model.config, layers=layers or model.config.layers)
    (made / "config.json").write_text(config.to_json())
    (made / "ranges.json").write_text(assumed(config).to_json())
    if not (made / "model.safetensors").exists():
        parameters.save(made / "model.safetensors", parameters.initial(config, 0))
    return made, True


def _inputs(name: str, folder: Path, samples: int, tokens: int, keep: Path) -> Path:
    """Inputs of the right shape; which tokens they are changes no cost."""
    from secureattn import load_model

    model = load_model(folder)
    path = keep / f"{name}.npy"
    if model.config.variable:
        numbers = np.random.default_rng(0).integers(0, model.config.features, (samples, tokens))
        np.save(path, numbers)
    else:
        np.save(path, model.samples(samples)[0])
    return path


PARTS: Mapping[str, Callable[[Setting], dict[str, Any]]] = {
    **{part.__name__: part for part in (predictions, homomorphic, planning, assumptions)},
    **{name: functools.partial(run, name=name) for name in RUNS},
}


if __name__ == "__main__":
    sys.exit(run_all("scale", __doc__, PARTS, scale_report))
