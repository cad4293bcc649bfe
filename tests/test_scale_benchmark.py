"""The benchmark at scale: its tables are its JSON's, its checks are its samples', published figures are as stated."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import BENCHMARKS

README = (BENCHMARKS.parent / "README.md").read_text()
needs_crypten = pytest.mark.skipif(importlib.util.find_spec("crypten") is None, reason="CrypTen is not installed")


@pytest.fixture(scope="module")
def report(benchmarks: Callable[[str], ModuleType]) -> ModuleType:
    return benchmarks("scale_report")


@pytest.fixture
def shipped() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((BENCHMARKS / "results" / "scale.json").read_text())
    return found


def test_shipped_figures_are_computed_from_shipped_samples(report: ModuleType, shipped: dict[str, Any]) -> None:
    assert shipped["checks"] == report.checks(shipped["parts"], quick=False)
    assert (BENCHMARKS / "results" / "scale.md").read_text() == report.text(shipped)
    assert report.text(shipped) in README


def test_every_row_says_what_it_is(report: ModuleType, shipped: dict[str, Any]) -> None:
    """Published, predicted or measured, and on what."""
    table = report.text(shipped).split("\n\n")[0].splitlines()[2:]
    kinds = [line.split(" | ")[2].split(",")[0] for line in table]
    random = [one for one in report.models_run(shipped["parts"]).values() if one["random_weights"]]
    encrypted = [one for one in shipped["parts"]["homomorphic"]["workloads"].values() if "refused" not in one]
    assert 2 * len(shipped["parts"]["predictions"]["workloads"]) == 18
    assert kinds.count("predicted") == 18 + len(encrypted)
    assert kinds.count("published") == len(report.PUBLISHED) == 9
    assert kinds.count("measured") == len(random)
    assert len(kinds) == 18 + len(encrypted) + 9 + len(random)
    assert all(line.rstrip(" |").rsplit(" | ", 1)[-1] not in ("", "--") for line in table)


def test_published_figures_are_shown_beside_ours(report: ModuleType, shipped: dict[str, Any]) -> None:
    """Of every workload that has one."""
    assert {one.workload for one in report.PUBLISHED} <= shipped["parts"]["predictions"]["workloads"].keys()
    for words in ("| 33.9 s | -- | -- | 10.8 GB |", "| 122.0 s | -- | -- | 0.9 GB |", "| 93.0 s |"):
        assert words in report.text(shipped)


def test_what_was_planned_was_counted(report: ModuleType, shipped: dict[str, Any]) -> None:
    runs = report.models_run(shipped["parts"])
    assert "digits-vit, 64 images" in runs
    for one in runs.values():
        assert all(run["counts"] == one["planned"]["counts"] for run in one["taken"])


def other_bytes(parts: dict[str, Any]) -> None:
    parts["digits-vit"]["taken"][0]["counts"]["online"]["bytes_sent"][1] += 8


def more_memory(parts: dict[str, Any]) -> None:
    for run in parts["digits-vit"]["taken"]:
        run["peak_bytes"]["client"] *= 2


def slower(parts: dict[str, Any]) -> None:
    for run in parts["digits-vit"]["taken"]:
        run["seconds"] = {phase: 100 * seconds for phase, seconds in run["seconds"].items()}


def wider_guess(parts: dict[str, Any]) -> None:
    counts = parts["assumptions"]["models"]["minilm"]["assumed"]["counts"]
    counts["offline"]["dealer_bytes"][0] *= 2


def larger_plan(parts: dict[str, Any]) -> None:
    parts["planning"]["peak_bytes"] *= 8


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        (other_bytes, "rounds and bytes counted"),
        (more_memory, "peak memory of the client"),
        (slower, "seconds with the dealer's"),
        (wider_guess, "dealer_bytes under assumed ranges"),
        (larger_plan, "peak bytes of its plan"),
    ],
)
def test_a_figure_that_falls_short_says_so(
    report: ModuleType, shipped: dict[str, Any], change: Callable[[dict[str, Any]], None], missed: str
) -> None:
    parts = copy.deepcopy(shipped["parts"])
    change(parts)
    changed = [
        new["name"]
        for old, new in zip(shipped["checks"], report.checks(parts, quick=False), strict=True)
        if new["value"] > old["value"] and not new["ok"]
    ]
    (name,) = changed
    assert missed in name


@pytest.mark.slow
@needs_crypten
def test_all_of_it_in_small(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "scale.py"), "--quick", "--fresh", "--json", str(tmp_path / "s.json")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "s.json").read_text())
    assert document["quick"]
    assert all(check["ok"] for check in document["checks"])
