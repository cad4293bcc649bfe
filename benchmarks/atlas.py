"""The atlas: every attention variant trained on the digits with the same budget, and run on every engine that can.

    python benchmarks/atlas.py [--quick] [--json FILE] [--seeds N] [--workers N]

Each (variant, seed) is trained, calibrated, given the cheapest realisations that err by at most 1e-3, and run on all
held-out images: exact, clear, under CKKS, on shares. What is finished is kept in ``out/atlas`` and not run again,
unless ``--fresh``. Writes a table to ``benchmarks/results/atlas.md``, and everything, raw rows and checks, as JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import atlas_report
import measuring

RESULTS = Path(__file__).resolve().parent / "results"
OUT = Path("out") / "atlas"
ERROR = 1e-3
ERRORS = {"relu": 2e-2, "clip": 2e-2}  # a polynomial cannot follow a kink more closely at a bearable degree
PROTOCOLS = {"ckks": "power-softmax-ckks", "crypten": "power-softmax-mpc"}
QUICK_VARIANTS = ("power_softmax", "scaled", "nalaformer")


@dataclass(frozen=True)
class Budget:
    """What every variant gets: the architecture, epochs, seeds, held-out images."""

    width: int = 24
    heads: int = 2
    hidden: int = 48
    norm: str = "batchnorm"
    epochs: int = 100
    seeds: int = 3
    samples: int | None = None


QUICK = Budget(width=4, heads=1, hidden=8, epochs=2, seeds=1, samples=32)


def main() -> int:
    """Run what is missing, then write table and JSON; 1 if a check fails."""
    options = _options()
    budget = replace(QUICK if options.quick else Budget(), **({"seeds": options.seeds} if options.seeds else {}))
    folder = OUT / ("quick" if options.quick else "full")
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    rows = measure(_trained(options.quick), budget, folder, options.workers)
    extra = {} if options.quick else atlas_report.further_checks()
    seconds = spent(folder, time.perf_counter() - start)
    document = atlas_report.document(rows, asdict(budget), seconds, extra, quick=options.quick)
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "atlas.md").write_text(atlas_report.table(document))
        measuring.write(RESULTS / "atlas.json", document)
    if options.json:
        measuring.write(options.json, document)
    print(atlas_report.table(document))
    return measuring.verdict(document)


def spent(folder: Path, seconds: float) -> float:
    """Seconds of this call and of those before it whose rows it kept."""
    kept = folder / "seconds.json"
    total = seconds + (json.loads(kept.read_text()) if kept.exists() else 0.0)
    measuring.write(kept, total)
    return total


def measure(variants: Sequence[str], budget: Budget, folder: Path, workers: int) -> list[dict[str, Any]]:
    """One row a variant, way and seed; finished ones are read from the folder."""
    jobs = [(variant, seed) for seed in range(budget.seeds) for variant in variants]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with ProcessPoolExecutor(workers) as pool:
        waiting = {pool.submit(job, *each, budget, folder): each for each in jobs}
        for done, future in enumerate(as_completed(waiting), 1):
            variant, seed = waiting[future]
            found[variant, seed] = future.result()
            print(f"{done}/{len(jobs)}  {variant}, seed {seed}", file=sys.stderr, flush=True)
    return [row for each in jobs for row in found[each]]


def job(variant: str, seed: int, budget: Budget, folder: Path) -> list[dict[str, Any]]:
    """Train one variant with one seed and run it; one row for every way to compute its function."""
    import torch

    from secureattn import load_model
    from secureattn.approx.attention import realisations

    torch.set_num_threads(1)
    place = folder / f"{variant}-{seed}"
    kept = place / "rows.json"
    if kept.exists():
        rows: list[dict[str, Any]] = json.loads(kept.read_text())
        return rows
    seconds = _train(variant, seed, budget, place)
    model = load_model(place)
    rows = []
    for way in realisations(variant).values():
        runs = {engine: _attempt(functools.partial(_run, model, way.name, engine, budget)) for engine in PROTOCOLS}
        about = {"variant": way.name, "trained_as": variant, "seed": seed, "train_s": seconds}
        rows.append({**about, "engines": runs})
    measuring.write(kept, rows)
    return rows


def _train(variant: str, seed: int, budget: Budget, place: Path) -> float:
    """A model folder with weights, ranges and samples."""
    from secureattn.nn.config import ModelConfig
    from secureattn.train.data import digits
    from secureattn.train.loop import train
    from secureattn.train.recipe import Recipe
    from secureattn.train.script import write

    config = ModelConfig(
        name=f"{variant}-{seed}",
        tokens=16,
        features=4,
        width=budget.width,
        heads=budget.heads,
        hidden=budget.hidden,
        layers=1,
        classes=10,
        attention=variant,
        norm=budget.norm,
    )
    split = digits()
    start = time.perf_counter()
    parameters = train(config, split, Recipe(epochs=budget.epochs, seed=seed))
    seconds = time.perf_counter() - start
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(config.to_json())
    write(place, config, parameters, split)
    return seconds


def _attempt(run: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    from secureattn.errors import SecureAttnError

    try:
        return run()
    except SecureAttnError as error:
        return {"refused": str(error)}


def _run(model: Any, way: str, engine: str, budget: Budget) -> dict[str, Any]:
    """Exact, clear and encrypted on the held-out images, with the cheapest realisations for the error."""
    from secureattn import load_protocol, runs
    from secureattn.plan import make_plan, program_cost
    from secureattn.plan.select import fitted

    inputs, labels = model.samples(budget.samples)
    base = load_protocol(PROTOCOLS[engine])
    base = replace(base, softmax=way) if model.config.attention == "softmax" else base
    plan = make_plan(model, fitted(base, model, ERROR, ERRORS), samples=len(inputs))
    exact, clear = runs.clear_run(plan, inputs, exact=True), runs.clear_run(plan, inputs)
    encrypted = runs.execute(plan, inputs)

    def accuracy(outputs: Any) -> float:
        return float((outputs.argmax(-1) == labels).mean())

    names = ("ct_products", "rotations", "refreshes", "rounds", "bytes_sent", "dealer_bytes")
    return {
        "samples": len(inputs),
        "accuracy": {
            "exact": accuracy(exact.outputs),
            "clear": accuracy(clear.outputs),
            "encrypted": accuracy(encrypted.outputs),
        },
        "agreement": runs.agreement(encrypted.outputs, clear.outputs),
        "encryption_error": float(abs(encrypted.outputs - clear.outputs).max()),
        "approximation_error": float(abs(clear.outputs - exact.outputs).max()),
        "escapes": dict(clear.escapes),
        "depth" if engine == "ckks" else "online_rounds": program_cost(plan),
        "sites": {site: dict(options) for site, options in plan.protocol.sites.items()},
        "counts": {name: encrypted.ledger.total(name) for name in names},
        "seconds": encrypted.seconds(),
        "trust": plan.protocol.trust,
    }


def _trained(quick: bool) -> list[str]:
    """Variants to train: each function once, whatever ways there are to compute it."""
    from secureattn.approx.attention import VARIANTS

    names = [variant.name for variant in VARIANTS.values() if variant.same_as is None]
    return [name for name in names if name in QUICK_VARIANTS] if quick else names


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few variants, few epochs, one seed: a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here too")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds (default 3; 1 if quick)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument("--fresh", action="store_true", help="forget what is finished")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
