"""How cost grows with tokens, width and depth: models with random weights, planned, and some of them run.

Weights are drawn with a fixed seed, queries' by a factor smaller so that the normaliser's range stays within two
decades, and ranges are calibrated on random inputs. Such models compute nothing of use, at the price of trained ones.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from ckks_runs import REFRESH_PROTOCOL, Job, apart, computed, encrypted, planned

from secureattn.nn.config import ModelConfig

SEED, CALIBRATION, MARGIN = 0, 512, 0.4
QUERY_FACTOR = 0.3
SLOTS = 1 << 13

SMALL = ModelConfig("tiny", tokens=4, features=4, width=8, heads=2, hidden=16, layers=1, classes=4)
BASE = ModelConfig("digits-shaped", tokens=16, features=4, width=32, heads=2, hidden=64, layers=1, classes=10)
"""digits-vit's shape, around which one size at a time is varied."""

MODELS = (
    ModelConfig("vit-two-blocks", tokens=16, features=4, width=64, heads=4, hidden=128, layers=2, classes=10),
    ModelConfig("text-encoder", tokens=32, features=128, width=128, heads=4, hidden=256, layers=2, classes=2),
)
"""A vision transformer, and an encoder of 32 tokens that the client embeds; both are run, a full batch of queries."""

SERIES: Mapping[str, Sequence[int]] = {"tokens": (4, 8, 16, 32, 64), "width": (16, 32, 64, 128), "layers": (1, 2, 3, 4)}
RUN = (("tokens", 16), ("tokens", 4), ("tokens", 32), ("width", 16), ("width", 64), ("layers", 2))
"""Members of the series that are run as well, in both layouts."""

LAYOUTS = {"batch": None, "dense": 1}
"""Queries at a time: as many as a ciphertext holds, or one."""


def random_model(config: ModelConfig, folder: Path) -> Path:
    """A model folder with random weights, calibrated ranges and a full batch of samples, labelled by the exact run."""
    from secureattn.nn.parameters import initial, save
    from secureattn.train.data import save_samples
    from secureattn.train.forward import forward, tensors, true_functions
    from secureattn.train.ranges import calibrate

    place = folder / config.name
    place.mkdir(parents=True, exist_ok=True)
    parameters = initial(config, SEED)
    for name in parameters:
        if name.endswith("query.weight"):
            parameters[name] = QUERY_FACTOR * parameters[name]
    parameters = {name: value.astype(np.float32).astype(np.float64) for name, value in parameters.items()}
    rng = np.random.default_rng(SEED)
    calibration, queries = (
        rng.uniform(-1, 1, (n, config.tokens, config.features)) for n in (CALIBRATION, full_batch(config))
    )
    scores = forward(config, tensors(parameters), true_functions(config), queries).logits.detach().numpy()
    (place / "config.json").write_text(config.to_json())
    save(place / "model.safetensors", parameters)
    (place / "ranges.json").write_text(calibrate(config, parameters, calibration, margin=MARGIN).to_json())
    save_samples(place / "samples.safetensors", queries, scores.argmax(-1))
    return place


def shaped(size: str, value: int) -> ModelConfig:
    """The base model with one size changed; the hidden width stays twice the width."""
    if value == getattr(BASE, size):
        return BASE
    changed: dict[str, Any] = {size: value, **({"hidden": 2 * value} if size == "width" else {})}
    return replace(BASE, name=f"{BASE.name}-{size}-{value}", **changed)


def full_batch(config: ModelConfig) -> int:
    """Queries that a ciphertext of the batch layout holds."""
    return SLOTS // (1 << (config.tokens - 1).bit_length())


def growth(folder: Path, workers: int, costs: str, *, quick: bool) -> dict[str, Any]:
    """Plans of every model in both layouts, and measured runs of some; quick: the ends of one, planned."""
    chosen = {"tokens": (SERIES["tokens"][0], SERIES["tokens"][-1])} if quick else SERIES
    series = {size: [(value, shaped(size, value)) for value in values] for size, values in chosen.items()}
    configs = {config.name: config for members in series.values() for _, config in members}
    configs |= {} if quick else {config.name: config for config in MODELS}
    models = apart(_plans, list(configs.values()), folder, workers, costs)["result"]
    run = set() if quick else {shaped(*member).name for member in RUN} | {config.name for config in MODELS}
    for name, by_layout in models.items():
        for found in by_layout.values():
            found["run"] = _run(found["job"]) if name in run and found["plan"] else None
    return {
        "series": {size: [(value, config.name) for value, config in members] for size, members in series.items()},
        "models": models,
    }


def _run(job: Mapping[str, Any]) -> dict[str, Any]:
    print(f"growth: running {Path(job['model']).name}, {job['layout']}", file=sys.stderr, flush=True)
    return apart(encrypted, Job(**job))


def _plans(configs: Sequence[ModelConfig], folder: Path, workers: int, costs: str) -> dict[str, dict[str, Any]]:
    """Name → layout → a plan, or why there is none."""
    from secureattn.errors import PlanError

    made: dict[str, dict[str, Any]] = {}
    for config in configs:
        place = str(random_model(config, folder))
        for layout, queries in LAYOUTS.items():
            samples = queries or full_batch(config)
            job = Job(place, REFRESH_PROTOCOL, samples, workers=workers, layout=layout, costs=costs)
            found: dict[str, Any] = {"job": asdict(job), "plan": None, "refused": None}
            try:
                found["plan"] = planned(job)
            except PlanError as error:
                found["refused"] = str(error)
            made.setdefault(config.name, {})[layout] = found
    return made


# ---- what is shown ------------------------------------------------------------------------------------------


def table(part: Mapping[str, Any]) -> str:
    """One line a model: a full batch of queries in the batch layout, then one query in the dense one."""
    head = (
        "| model | tokens | width | blocks | queries | predicted s | measured s | ms a query | ct×ct | MiB a query "
        "| one query: predicted s | measured s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    )
    return "\n".join([*head, *(_line(name, found) for name, found in part["models"].items())]) + "\n"


def _line(name: str, found: Mapping[str, Any]) -> str:
    batch, dense = found["batch"], found["dense"]
    shape = (batch["plan"] or dense["plan"])["shape"]
    queries, run = batch["job"]["samples"], measured(batch)
    cells = [
        BASE.name if name.startswith(BASE.name) else name,
        *(str(shape[size]) for size in SERIES),
        str(queries),
        *_pair(batch),
    ]
    best = computed(run["seconds"]) if run else computed(batch["plan"]["predicted"]) if batch["plan"] else None
    cells += ["--" if best is None else f"{1e3 * best / queries:.0f}"]
    cells += [f"{run['counts']['ct_products']:,}" if run else "--"]
    cells += [f"{sum(run['bytes'].values()) / queries / 2**20:.2f}" if run else "--"]
    return f"| {' | '.join([*cells, *_pair(dense)])} |"


def _pair(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Predicted and measured seconds, encrypt … decrypt."""
    plan, run = found["plan"], measured(found)
    return tuple(f"{computed(s):.1f}" if s else "--" for s in (plan and plan["predicted"], run and run["seconds"]))


def measured(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The run of a model in a layout, if there was one."""
    run: Mapping[str, Any] | None = found["run"] and found["run"]["result"]
    return run


def draw(part: Mapping[str, Any], path: Path) -> None:
    """Log-log: predicted seconds over each size in both layouts, and what was measured; then one against the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from secureattn.ledger.figure import COLOURS, save, styled

    colours = dict(zip(LAYOUTS, COLOURS, strict=False))
    with styled():
        figure = Figure(figsize=(11.5, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        *panels, last = figure.subplots(1, len(SERIES) + 1)
        for axes, (size, members) in zip(panels, part["series"].items(), strict=True):
            for layout, colour in colours.items():
                _draw_series(axes, [(value, part["models"][name][layout]) for value, name in members], colour)
            axes.set(xscale="log", yscale="log", xlabel={"layers": "blocks"}.get(size, size))
            axes.set_xticks([value for value, _ in members], [str(value) for value, _ in members])
            axes.set_xticks([], minor=True)
        ends = [end for axes in panels for end in axes.get_ylim()]
        ticks = [s for s in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if min(ends) <= s <= max(ends)]
        for axes in panels:
            axes.set_ylim(min(ends), max(ends))
            axes.set_yticks(ticks, [f"{s:g}" for s in ticks])
            axes.set_yticks([], minor=True)
        panels[0].set_ylabel("seconds, encrypt … decrypt")
        _draw_agreement(last, part["models"], colours)
        handles = [last.plot([], [], color=colour, marker="o")[0] for colour in colours.values()]
        labels = ["a full batch of queries, batch layout", "one query, dense layout"]
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
        figure.suptitle("digits-vit's shape with one size varied: predicted (lines) and measured (dots)", fontsize=11)
        save(figure, path)


def _draw_series(axes: Any, members: Sequence[tuple[int, Mapping[str, Any]]], colour: str) -> None:
    lines = {
        "-": [(value, found["plan"]["predicted"]) for value, found in members if found["plan"]],
        "o": [(value, run["seconds"]) for value, found in members if (run := measured(found))],
    }
    for style, points in lines.items():
        axes.plot([value for value, _ in points], [computed(s) for _, s in points], style, color=colour)


def _draw_agreement(axes: Any, models: Mapping[str, Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    markers = {config.name: marker for config, marker in zip(MODELS, "s^", strict=True)}
    for name, by_layout in models.items():
        for layout, colour in colours.items():
            if run := measured(by_layout[layout]):
                axes.plot(computed(run["predicted"]), computed(run["seconds"]), markers.get(name, "o"), color=colour)
    axes.set(xscale="log", yscale="log", xlabel="predicted s", ylabel="measured s")
    axes.set_title("□ two blocks, △ text encoder", fontsize=9)
    axes.axline((1.0, 1.0), (10.0, 10.0), color="#999999", linewidth=0.8)
