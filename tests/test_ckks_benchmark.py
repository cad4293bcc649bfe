"""The CKKS benchmark: what it makes of its samples, what it measures with, and the command in small."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers import BENCHMARKS

pytest.importorskip("tenseal")
PHASES = {"keys": 1.0, "encrypt": 0.5, "online": 8.0, "refresh": 2.0, "decrypt": 0.5}
MIB = 1 << 20


@pytest.fixture(scope="module")
def modules(benchmarks: Callable[[str], ModuleType]) -> dict[str, ModuleType]:
    return {name: benchmarks(name) for name in ("ckks", "ckks_report", "ckks_growth", "ckks_runs")}


def run(model: str = "digits-vit", **changed: Any) -> dict[str, Any]:
    """A run as a process of its own brings it back, with figures that meet every bar."""
    result = {
        "model": model,
        "samples": 360,
        "workers": 2,
        "layout": "batch",
        "capacity": 512,
        "predicted_with": "typical costs",
        "seconds": dict(PHASES),
        "predicted": {**PHASES, "online": 3.75},
        "pace": [1.5, 2.5],
        "predicted_peak_bytes": 2_200_000_000,
        "counts": {"rounds": 5, "ct_products": 100},
        "bytes": {"query": 3600, "refresh": 36000, "result": 360},
        "accuracy": {"exact": 0.98, "clear": 0.98, "encrypted": 0.98},
        "agreement": {"exact": 1.0, "clear": 1.0},
        "max_abs_error": {"encryption": 1e-6, "approximation": 1e-3},
    }
    return {"result": {**result, **changed}, "peak_bytes": 2_000_000_000, "load": [0.5, 2.0]}


def slower(factor: float) -> dict[str, float]:
    return {phase: factor * seconds for phase, seconds in PHASES.items()}


def product(size: int, loop_s: float) -> dict[str, Any]:
    return {
        "result": {
            "size": size,
            "loop_rows": 8,
            "matrix_s": [2.0, 1.0, 9.0],
            "loop_s": [loop_s],
            "residues_that_differ": 0,
            "max_abs_difference": 0.0,
            "max_abs_error": 1e-8,
        }
    }


def good_parts(modules: dict[str, ModuleType]) -> dict[str, Any]:
    """Every part, every bar met."""
    one = run(model="one", samples=1, layout="dense")
    twice = {**slower(1.7), "online": 14.0}
    single = run(workers=1, seconds=twice, predicted=twice, pace=[1.0, 1.0])
    whole = run("digits-vit-oneshot", capacity=1024, counts={"rounds": 0, "ct_products": 1})
    shape = {"tokens": 16, "width": 64, "layers": 2}
    plan = {"predicted": dict(PHASES), "shape": shape}
    models = {
        config.name: {
            "batch": {"job": {"samples": 512}, "plan": plan, "refused": None, "run": run(config.name)},
            "dense": {"job": {"samples": 1}, "plan": None, "refused": "too wide", "run": None},
        }
        for config in modules["ckks_growth"].MODELS
    }
    parts = {
        "primitives": {"result": {"16384": {"8": {"additions": 1.0, "rotations": 33.0}, "0": {"additions": 0.1}}}},
        "products": {"sizes": [product(64, 1.0), product(256, 0.6)]},
        "digits": {
            "runs": [single, run(), single, run()],
            "at_once": [[run(seconds=slower(1.9)), run(seconds=slower(2.0))]],
            "watched": run(),
        },
        "peer": {
            "result": {
                "images": 360,
                "slots": 8192,
                "validation": {"ratio": 1.1},
                "scaled_seconds": 1100.0,
                "deferred": {"scaled_seconds": 550.0},
            }
        },
        "dense": {"runs": [one] * 5, "watched": one, "batch_plan": {"predicted": dict(PHASES)}},
        "oneshot": {"runs": [whole], "watched": whole},
        "growth": {"series": {}, "models": models},
    }
    return {name: {"commit": "abc1234", **part} for name, part in parts.items()}


# ---- checks -----------------------------------------------------------------------------------------------------


def test_every_figure_has_a_bar(modules: dict[str, ModuleType]) -> None:
    found = modules["ckks_report"].checks(good_parts(modules), quick=False)
    assert all(set(check) == {"name", "value", "bar", "ok"} for check in found)
    assert [check for check in found if not check["ok"]] == []
    assert len({check["name"] for check in found}) == len(found) == 34
    values = {check["name"]: check["value"] for check in found}
    assert values["64×64 weights: times faster than multiply_plain and add"] == 64 / 8 / 2
    assert values["256×256 weights: times faster than multiply_plain and add"] == pytest.approx(0.6 * 256 / 8 / 2)
    assert values["digits-vit: times faster on all cores than on one"] == pytest.approx(17.4 / 10)
    assert values["digits-vit: times faster per image than TenSEAL's CKKSTensor"] == 100.0
    assert values[
        "digits-vit, 2 workers: online s measured, off the predicted at the pace of then by"
    ] == pytest.approx(8 / 7.5 - 1)
    assert values["digits-vit: peak memory of both roles, GB"] == 2.0


FALLS_SHORT: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "64×64 weights: times faster than multiply_plain and add": ("products", [product(64, 0.7)]),
    "digits-vit, 360 images: online s, all cores": (
        "digits",
        [run(seconds={**PHASES, "online": 60.1}, predicted={**PHASES, "online": 30.0})],
    ),
    "digits-vit: accuracy lost by encryption": (
        "digits",
        [run(accuracy={"exact": 0.98, "clear": 0.98, "encrypted": 0.97})],
    ),
    "digits-vit: agreement with the clear run, and the exact one": (
        "digits",
        [run(), run(agreement={"exact": 0.98, "clear": 1.0})],
    ),
    "digits-vit: largest error of scores": (
        "digits",
        [run(), run(max_abs_error={"encryption": 2e-5, "approximation": 0.0})],
    ),
    "digits-vit: peak memory, off the predicted by": ("digits", [run(predicted_peak_bytes=1_600_000_000)]),
    "digits-vit, 2 workers: online s measured, off the predicted at the pace of then by": (
        "digits",
        [run(predicted={**PHASES, "online": 5.5})],
    ),
    "one image: plans that choose the dense layout": ("dense", [run(), run(layout="dense")]),
    "digits-vit-oneshot: refresh rounds": ("oneshot", [run("digits-vit-oneshot", capacity=1024)]),
}


@pytest.mark.parametrize("name", list(FALLS_SHORT))
def test_a_figure_that_falls_short_stays(modules: dict[str, ModuleType], name: str) -> None:
    part, runs = FALLS_SHORT[name]
    key = "sizes" if part == "products" else "runs"
    found = modules["ckks_report"].checks({part: {key: runs, "watched": runs[0]}}, quick=False)
    assert [check["name"] for check in found if not check["ok"]] == [name]


def test_parts_that_are_missing_have_no_checks(modules: dict[str, ModuleType]) -> None:
    parts = good_parts(modules)
    assert modules["ckks_report"].checks({"peer": parts["peer"]}, quick=False) == []
    quick = modules["ckks_report"].checks({"digits": parts["digits"]}, quick=True)
    assert len(quick) == 5
    assert not any("times" in check["name"] or "online" in check["name"] for check in quick)


def test_tables_hold_the_figures(modules: dict[str, ModuleType]) -> None:
    document = modules["ckks_report"].document(good_parts(modules), quick=False)
    text = modules["ckks_report"].text(document)
    assert document["primitives"] == good_parts(modules)["primitives"]["result"]
    assert "| online | 14.0 s (14.0 s) | 8.00 s (7.50 s) | 8.00 s (7.50 s) | 8.00 s (7.50 s) |" in text
    assert "| ms at N, primes | 2^14, 9 | 2^14, 1 |" in text
    assert "| rotations | 33 | -- |" in text
    assert "| query bytes an image | 10 B | 10 B | 3.52 KiB | 10 B |" in text
    assert "would take 1,100 s for the 360 images (100 times as long)" in text
    assert "load was 0.5 to 2.0 around" in text
    assert "2 runs by one process each, which share nothing, were 1.74 times faster at once" in text
    assert "A whole run on fewer tokens took 1.10 times" in text
    assert "Provisional" not in text
    document["parts"]["peer"]["commit"] = "abc1234-dirty"
    assert "parts come from different revisions (abc1234; abc1234-dirty)" in modules["ckks_report"].text(document)
    assert "The 256×256 loop ran 8 rows" in text


def test_the_growth_is_drawn(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    growth = modules["ckks_growth"]
    part = good_parts(modules)["growth"]
    first = growth.MODELS[0].name
    part["series"] = {size: [(4, first), (16, first)] for size in growth.SERIES}
    growth.draw(part, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


# ---- what it measures with --------------------------------------------------------------------------------------

HOLD = """
import mmap, os, sys
held = bytearray(os.urandom(1)) * {bytes}
file = os.memfd_create("secureattn")
os.write(file, bytes({bytes}))
mapped = mmap.mmap(file, {bytes}) if {bytes} else b""
sum(mapped[::mmap.PAGESIZE])
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def child(size: int) -> Iterator[None]:
    """A process that holds so many bytes, and as many in a file that it maps."""
    command = [sys.executable, "-c", HOLD.format(bytes=size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield
        process.communicate()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's /proc")
def test_memory_of_children_is_seen(modules: dict[str, ModuleType]) -> None:
    held = modules["ckks_runs"].held_bytes
    before = held(os.getpid())
    with child(0):
        empty = held(os.getpid()) - before
        with child(64 * MIB):
            more = held(os.getpid()) - before - 2 * empty
    assert more == pytest.approx(2 * 64 * MIB, abs=8 * MIB)
    assert held(os.getpid()) == pytest.approx(before, abs=MIB)
    assert held(os.getpid(), itself=True) > before + 50 * MIB


def test_work_runs_apart(modules: dict[str, ModuleType]) -> None:
    apart = modules["ckks_runs"].apart
    alone = apart(divmod, 7, 2)
    assert (alone["result"], alone["peak_bytes"]) == ((3, 1), None)
    watched = apart(time.sleep, 1.0, watched=True)
    assert watched["result"] is None
    assert watched["wall_s"] >= 1
    assert watched["peak_bytes"] > MIB
    with pytest.raises(ZeroDivisionError):
        apart(divmod, 1, 0, watched=True)


def test_both_ways_of_a_product_are_the_same(modules: dict[str, ModuleType]) -> None:
    found = modules["ckks"]._products(modules["ckks"].Size(5, 1 << 13, 2, rows=3, turns=1))
    assert found["residues_that_differ"] == 0
    assert found["max_abs_difference"] == 0.0
    assert 0 < found["max_abs_error"] < 1e-6
    assert (found["slots"], found["primes"]) == (4096, 3)
    assert len(found["matrix_s"]) == len(found["loop_s"]) == 1


def test_random_models_are_whole_and_sane(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    from secureattn import load_model, load_protocol, runs
    from secureattn.plan import Plan

    growth = modules["ckks_growth"]
    for config in (growth.SMALL, growth.shaped("layers", 2)):
        places = [growth.random_model(config, tmp_path / part) for part in ("a", "b")]
        files = ("model.safetensors", "ranges.json", "samples.safetensors", "config.json")
        assert all((places[0] / file).read_bytes() == (places[1] / file).read_bytes() for file in files)
        model, protocol = load_model(places[0]), load_protocol("power-softmax-ckks")
        assert max(high / low for low, high in model.ranges.domains.values() if low > 0) < 100
        inputs, labels = model.samples()
        assert len(inputs) == growth.full_batch(config) == 8192 // config.tokens
        plan = Plan(model, protocol, len(inputs), protocol.realisations(model))
        exact, clear = runs.clear_run(plan, inputs, exact=True), runs.clear_run(plan, inputs)
        assert (exact.outputs.argmax(-1) == labels).all()
        assert sum(clear.escapes.values()) == 0
        assert np.abs(clear.outputs - exact.outputs).max() < 0.1 * np.abs(exact.outputs).max()


# ---- the command ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_in_small(tmp_path: Path) -> None:
    command = [sys.executable, BENCHMARKS / "ckks.py", "--quick", "--json", "quick.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads((tmp_path / "quick.json").read_text())
    assert set(made) == {"schema", "quick", "machine", "primitives", "checks", "parts"}
    assert set(made["parts"]) == {"primitives", "products", "digits", "dense", "growth"}
    assert made["primitives"]["8192"]["3"]["rotations"] > 0
    assert made["parts"]["digits"]["watched"]["peak_bytes"] > 100 * MIB
    assert made["parts"]["dense"]["runs"][0]["result"]["layout"] == "dense"
    assert len(made["checks"]) >= 8
    kept = (tmp_path / "out/ckks/quick/digits.json").stat().st_mtime_ns
    again = subprocess.run([*command, "--only", "products"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    assert again.stderr == ""
    assert (tmp_path / "out/ckks/quick/digits.json").stat().st_mtime_ns == kept


def test_the_shipped_figures_follow_from_their_samples(modules: dict[str, ModuleType]) -> None:
    made = json.loads((BENCHMARKS / "results" / "ckks.json").read_text())
    report = modules["ckks_report"]
    assert set(made["parts"]) == set(modules["ckks"].PARTS)
    assert made["checks"] == report.checks(made["parts"], quick=False)
    assert (BENCHMARKS / "results" / "ckks.md").read_text() == report.text(made)
