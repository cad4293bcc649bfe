"""The CKKS engine measured: weight products, whole test set, one image, one round trip, TenSEAL's own, growth.

    python benchmarks/ckks.py [--quick] [--json FILE] [--workers N] [--only PART…] [--fresh]

What each part measured is kept in ``out/ckks`` and not measured again, unless ``--fresh``; ``--only`` leaves the other
parts as they are there. Once all parts are there, writes tables, plot and everything as JSON, raw samples and checks,
to ``benchmarks/results``. Wants a quiet machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ckks_growth
import ckks_report
from ckks_runs import ONESHOT_PROTOCOL, REFRESH_PROTOCOL, Job, apart, encrypted, planned, side_by_side
from measuring import measured, tell, verdict, write

RESULTS = Path(__file__).resolve().parent / "results"
OUT = Path("out") / "ckks"
IMAGES = 360
TURNS = 3
"""Samples of a whole run, at each number of workers."""

SINGLE = 9
"""Images that are run one by one."""

PRIMITIVE_LEVELS = {1 << 13: (3,), 1 << 14: (8, 7, 4, 1), 1 << 15: (19, 10)}
"""Where SEAL's primitives are timed: levels by ring degree."""


@dataclass(frozen=True)
class Size:
    """A weight product ``[size,size]`` at a level; a loop of scalar products makes ``rows`` of its results."""

    size: int
    ring_degree: int
    level: int
    rows: int
    turns: int


PRODUCTS = (Size(64, 1 << 14, 7, rows=64, turns=3), Size(256, 1 << 14, 7, rows=8, turns=3))
QUICK_PRODUCTS = (Size(16, 1 << 14, 3, rows=16, turns=1),)


@dataclass(frozen=True)
class Setting:
    """What every part is told: on how many cores, where it may keep files, whether small versions will do."""

    workers: int
    folder: Path
    quick: bool

    @property
    def costs(self) -> Path:
        """Where the parts leave what this machine's primitives cost; all plans rest on it."""
        return self.folder / "costs.json"

    def calibrate(self, *rings: int) -> dict[str, float]:
        """Measure what primitives cost now, on all rings unless some are named: other machines share this one's memory
        and make it slower or faster within minutes, which is no error of a prediction. The rates among them.
        """
        tell("calibrating …")
        found: dict[str, float] = apart(_calibrated, self.costs, rings)["result"]
        return found

    def pace(self) -> float:
        """How many times longer primitives take now than when they were calibrated."""
        return float(apart(_pace, self.costs)["result"])

    def timed(self, job: Job) -> dict[str, Any]:
        """A run, and the machine's pace right before and after it."""
        before = self.pace()
        run = apart(encrypted, job)
        run["result"]["pace"] = [before, self.pace()]
        return run

    def job(self, model: str, protocol: str, samples: int, layout: str = "auto") -> Job:
        """So many of a model's samples on all cores."""
        return Job(model, protocol, samples, workers=self.workers, layout=layout, costs=str(self.costs))


# ---- the parts ----------------------------------------------------------------------------------------------


def primitives(setting: Setting) -> dict[str, Any]:
    """Milliseconds of SEAL's primitives, called as the engine calls them, by ring degree and level; unless quick, the
    cost model is fitted to this machine as ``secureattn plan --calibrate`` does.
    """
    if setting.quick:
        return apart(_primitives, {1 << 13: (3,)})
    setting.costs.unlink(missing_ok=True)
    return {**apart(_primitives, PRIMITIVE_LEVELS), "rates": setting.calibrate()}


def products(setting: Setting) -> dict[str, Any]:
    """Plain weights times ciphertexts, as one matrix product and as a loop, in turn on one core."""
    sizes = QUICK_PRODUCTS if setting.quick else PRODUCTS
    return {"sizes": [apart(_products, size) for size in sizes]}


def digits(setting: Setting) -> dict[str, Any]:
    """The whole test set under refresh, by one process, by all, and by one process several times at once, which shows
    what the cores give to work that shares nothing; in turn, and once more to watch its memory. Quick: a tiny model,
    once.
    """
    if setting.quick:
        place = ckks_growth.random_model(ckks_growth.SMALL, setting.folder)
        run = apart(encrypted, setting.job(str(place), REFRESH_PROTOCOL, 64, "batch"), watched=True)
        return {"runs": [run], "at_once": [], "watched": run}
    job = setting.job("digits-vit", REFRESH_PROTOCOL, IMAGES)
    watched, runs, at_once = apart(encrypted, job, watched=True), [], []
    for turn in range(TURNS):
        tell(f"digits: turn {turn + 1} of {TURNS}")
        setting.calibrate(1 << 14)
        runs += [setting.timed(replace(job, workers=workers)) for workers in dict.fromkeys((1, setting.workers))]
        if setting.workers > 1:
            at_once.append(side_by_side(encrypted, replace(job, workers=1), copies=setting.workers))
    return {"runs": runs, "at_once": at_once, "watched": watched}


def peer(setting: Setting) -> dict[str, Any]:
    """The same model on TenSEAL's own ``CKKSTensor``, by operation, scaled."""
    return apart(_peer)


def dense(setting: Setting) -> dict[str, Any]:
    """Images one by one; what the plan would have taken in the batch layout."""
    job = setting.job("digits-vit", REFRESH_PROTOCOL, 1)
    if not setting.quick:
        setting.calibrate(1 << 14)
    batch = apart(planned, replace(job, layout="batch"))["result"]
    watched = apart(encrypted, job, watched=True)
    runs = [watched] if setting.quick else [setting.timed(replace(job, first=i)) for i in range(SINGLE)]
    return {"runs": runs, "watched": watched, "batch_plan": batch}


def oneshot(setting: Setting) -> dict[str, Any]:
    """The whole test set in one round trip; slots beyond it repeat a query, so a full batch costs the same."""
    setting.calibrate(1 << 14, 1 << 15)
    job = setting.job("digits-vit-oneshot", ONESHOT_PROTOCOL, IMAGES)
    return {"runs": [setting.timed(job)], "watched": apart(encrypted, job, watched=True)}


def growth(setting: Setting) -> dict[str, Any]:
    """Cost over tokens, width and depth."""
    return ckks_growth.growth(setting.folder, setting.workers, str(setting.costs), quick=setting.quick)


PARTS: Mapping[str, Callable[[Setting], dict[str, Any]]] = {
    part.__name__: part for part in (primitives, products, digits, peer, dense, oneshot, growth)
}
QUICK_PARTS = ("primitives", "products", "digits", "dense", "growth")


# ---- what they do in processes of their own -----------------------------------------------------------------


def _primitives(chosen: Mapping[int, tuple[int, ...]]) -> dict[str, Any]:
    from secureattn.backends.ckks.parameters import chain, most_levels
    from secureattn.backends.ckks.primitives import Bench

    found: dict[str, Any] = {}
    for ring, levels in chosen.items():
        bench = Bench.made(chain(ring, most_levels(ring)))
        found[str(ring)] = {str(level): {name: 1e3 * s for name, s in bench.primitives(level)} for level in levels}
    return found


def _calibrated(file: Path, rings: Sequence[int]) -> dict[str, float]:
    """Measure this machine's costs and keep them, beside those of other rings; the rates among them."""
    from secureattn.backends.ckks import calibration
    from secureattn.backends.ckks.parameters import RINGS
    from secureattn.backends.ckks.primitives import measure

    costs, known = measure(lambda *_: None, rings or RINGS), calibration.load(file)
    if known:
        primitives = {name: {**known.primitives[name], **found} for name, found in costs.primitives.items()}
        costs = replace(costs, primitives=primitives)
    calibration.save(costs, file)
    return dict(costs.rates)


def _pace(file: Path, ring: int = 1 << 14, level: int = 4) -> float:
    """The median over primitives of what they take now over what the costs say."""
    from secureattn.backends.ckks import calibration
    from secureattn.backends.ckks.parameters import chain, most_levels
    from secureattn.backends.ckks.primitives import Bench

    costs, bench = calibration.load(file), Bench.made(chain(ring, most_levels(ring)))
    assert costs is not None
    return statistics.median(s / costs.primitive_s(name, ring, level + 1) for name, s in bench.primitives(level))


def _products(size: Size) -> dict[str, Any]:
    """Seconds of both ways, and how far their results lie from each other and from those in the clear."""
    import numpy as np

    from secureattn.backends.ckks.evaluator import SealEvaluator
    from secureattn.backends.ckks.keys import KeyOwner
    from secureattn.backends.ckks.parameters import chain, most_levels

    parameters = chain(size.ring_degree, most_levels(size.ring_degree))
    owner = KeyOwner.generate(parameters, [])
    assert owner.evaluation_keys is not None
    evaluator = SealEvaluator(parameters, owner.evaluation_keys)
    rng = np.random.default_rng(0)
    weights = rng.normal(scale=size.size**-0.5, size=(size.size, size.size))
    values = rng.uniform(-1, 1, (size.size, parameters.slots))
    scale = parameters.scales[size.level]
    factor = parameters.scales[size.level - 1] * parameters.primes[size.level] / scale
    cts = [evaluator.load(owner.encrypt(x, size.level, scale)) for x in values]
    rows = np.linspace(0, size.size - 1, size.rows).round().astype(int)

    def matrix() -> list[Any]:
        integers = np.copysign(np.floor(np.abs(weights) * factor + 0.5), weights)
        return evaluator.multiply_matrix(integers.astype(np.int64), cts, size.level, scale * factor)

    def loop() -> list[Any]:
        made = []
        for row in weights[rows].tolist():
            total = evaluator.multiply_constant(cts[0], row[0], factor)
            for weight, ct in zip(row[1:], cts[1:], strict=True):
                total = evaluator.add(total, evaluator.multiply_constant(ct, weight, factor))
            made.append(total)
        return made

    seconds: dict[str, list[float]] = {"matrix": [], "loop": []}
    for _ in range(size.turns):
        for name, way in (("matrix", matrix), ("loop", loop)):
            start = time.perf_counter()
            made = way()
            seconds[name].append(time.perf_counter() - start)
            if name == "matrix":
                kept = [made[row] for row in rows]
    pairs = list(zip(kept, made, strict=True))
    opened = [np.stack([owner.decrypt(evaluator.save(ct)) for ct in cts]) for cts in zip(*pairs, strict=True)]
    return {
        "size": size.size,
        "ring_degree": size.ring_degree,
        "slots": parameters.slots,
        "primes": size.level + 1,
        "loop_rows": size.rows,
        "matrix_s": seconds["matrix"],
        "loop_s": seconds["loop"],
        "residues_that_differ": sum(int((evaluator.residues(a) != evaluator.residues(b)).sum()) for a, b in pairs),
        "max_abs_difference": float(np.abs(opened[0] - opened[1]).max()),
        "max_abs_error": float(max(np.abs(found - weights[rows] @ values).max() for found in opened)),
    }


def _peer() -> dict[str, Any]:
    import tenseal_peer

    measured: dict[str, Any] = tenseal_peer.measure(quick=False)
    return measured


# ---- all of it ----------------------------------------------------------------------------------------------


def _part(name: str, setting: Setting) -> dict[str, Any]:
    return {"workers": setting.workers, **PARTS[name](setting)}


def main() -> int:
    """Measure what is missing, then write tables, plot and JSON; 1 if a check fails."""
    options = _options()
    folder = OUT / ("quick" if options.quick else "full")
    names = QUICK_PARTS if options.quick else tuple(PARTS)
    wanted = [name for name in names if name in (options.only or names)]
    folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(options.workers, folder, options.quick)
    for name in wanted:
        kept = folder / f"{name}.json"
        if options.fresh or not kept.exists():
            write(kept, measured(name, functools.partial(_part, name, setting)))
    parts = {name: json.loads(kept.read_text()) for name in names if (kept := folder / f"{name}.json").exists()}
    document = ckks_report.document(parts, quick=options.quick)
    if not options.quick and len(parts) == len(names):
        publish(document)
    if options.json:
        write(options.json, document)
    print(ckks_report.text(document))
    return verdict(document)


def publish(document: Mapping[str, Any]) -> None:
    """What README shows and links to."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "ckks.md").write_text(ckks_report.text(document))
    ckks_growth.draw(document["parts"]["growth"], RESULTS / "ckks_growth.png")
    write(RESULTS / "ckks.json", document)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small versions of most parts: a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here too")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help="processes (default: every core)")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--fresh", action="store_true", help="measure again what is kept")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
