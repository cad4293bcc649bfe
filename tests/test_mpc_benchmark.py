"""The secret-sharing benchmark: what it makes of its samples, and all of it in small."""

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

import numpy as np
import pytest
from helpers import BENCHMARKS


@pytest.fixture(scope="module")
def report(benchmarks: Callable[[str], ModuleType]) -> ModuleType:
    return benchmarks("mpc_report")


def party(**changed: Any) -> dict[str, Any]:
    counted = {"rounds": 24, "bytes_sent": 20_000_000, "dealer_bytes": 130_000_000}
    return {"party": "client", **counted, "online_s": 0.5, "offline_s": 0.5, **changed}


def run(error: float, **changed: Any) -> dict[str, Any]:
    region = {"party": "client", "region": "layer.0", "online_s": 0.5, "rounds": 24, "bytes_sent": 9, "dealer_bytes": 9}
    errors = {"exact": error, "clear": error}
    return {"seconds": {}, "parties": [party(**changed)], "regions": [region], "max_abs_error": errors}


def peer(seconds: float) -> dict[str, Any]:
    counted = {"rounds": 190, "bytes_sent": 380_000_000.0}
    return {"seconds": seconds, "triples_s": 1.0, "max_abs_error": 7e-3, **counted}


BLOCK = {
    "shape": {"tokens": 128, "width": 768, "heads": 12, "hidden": 3072},
    "runs": {"accurate-mpc": [run(6e-4)] * 3, "puma": [run(9e-2)] * 3, "mpcformer": [run(5e-4)] * 3},
    "peers": {"default": [peer(5.0), peer(6.0), peer(4.4)], "mpcformer": [peer(2.0)] * 3},
    "plans": {name: [party()] for name in ("accurate-mpc", "puma", "mpcformer")},
}


def failed(report: ModuleType, block: dict[str, Any]) -> list[str]:
    return [check["name"] for check in report.checks({"block": block}, quick=False) if not check["ok"]]


def test_ratios_are_medians_of_turns(report: ModuleType) -> None:
    ours, default = BLOCK["runs"]["accurate-mpc"], BLOCK["peers"]["default"]
    assert report.ratio(default, ours) == pytest.approx(10.0)
    assert report.ratio(default, ours, dealer=True) == pytest.approx(5.0)
    assert failed(report, BLOCK) == []


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({"online_s": 0.7}, ["times faster online than plain CrypTen"]),
        ({"offline_s": 0.8}, ["the same, with the dealer's time"]),
        ({"rounds": 46}, ["online rounds", "planned rounds less counted"]),
        ({"bytes_sent": 50_000_000}, ["online bytes as a share", "planned bytes sent less counted"]),
        ({"dealer_bytes": 1}, ["planned dealer bytes less counted"]),
    ],
)
def test_a_figure_that_falls_short_says_so(report: ModuleType, changed: dict[str, Any], missed: list[str]) -> None:
    block = copy.deepcopy(BLOCK)
    block["runs"]["accurate-mpc"] = [run(6e-4, **changed)] * 3
    found = failed(report, block)
    assert len(found) == len(missed)
    assert all(words in name for words, name in zip(missed, found, strict=True))


def test_errors_have_bars(report: ModuleType) -> None:
    block = copy.deepcopy(BLOCK)
    block["runs"]["accurate-mpc"] = [run(8e-3)] * 3
    names = failed(report, block)
    assert [name.split(": ")[1] for name in names] == [
        "largest error of the block",
        "largest error, as a share of plain CrypTen's",
    ]


def test_gross_errors_fail(report: ModuleType) -> None:
    exact = {"products": 10**8, "gross": 1, "largest_other_units": 0.99, "fractional_bits": 16, "integer_bits": 12}
    part = {"exact": exact, "local": {**exact, "gross": 23}}
    found = {check["name"]: check["ok"] for check in report.checks({"truncation": part}, quick=False)}
    assert found == {
        "products truncated exactly": True,
        "gross errors among them": False,
        "largest other error in units": True,
    }
    assert "1 exactly, 23 locally" in report.text({"machine": {}, "parts": {"truncation": part}})


def test_the_table_has_a_row_for_every_run(report: ModuleType) -> None:
    text = report.text({"machine": {}, "parts": {"block": BLOCK}})
    for name in ("| default | plain CrypTen |", "| mpcformer | plain CrypTen |", "| puma | SecureAttn |"):
        assert text.count(name) == 1
    assert "accurate-mpc is 10.0 times faster online" in text


def test_shipped_figures_are_computed_from_shipped_samples(report: ModuleType) -> None:
    document = json.loads((BENCHMARKS / "results" / "mpc.json").read_text())
    assert document["checks"] == report.checks(document["parts"], quick=False)
    assert (BENCHMARKS / "results" / "mpc.md").read_text() == report.text(document)
    assert all(np.isfinite(check["value"]) for check in document["checks"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("crypten") is None, reason="CrypTen is not installed")
def test_all_of_it_in_small(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "mpc.py"), "--quick", "--fresh", "--json", str(tmp_path / "mpc.json")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "mpc.json").read_text())
    assert document["quick"]
    assert all(check["ok"] for check in document["checks"])
