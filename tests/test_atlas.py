"""The atlas in small: the command that trains and runs attention variants, and what it makes of its rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from helpers import BENCHMARKS


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a quick run writes, and that it says all is well."""
    folder = tmp_path_factory.mktemp("atlas")
    command = [sys.executable, BENCHMARKS / "atlas.py", "--quick", "--json", "quick.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| scaled |" in done.stdout
    assert "ok   seeds: 1" in done.stdout
    made: dict[str, Any] = json.loads((folder / "quick.json").read_text())
    return made


@pytest.mark.slow
def test_every_figure_has_a_bar_and_is_met(document: dict[str, Any]) -> None:
    assert document["checks"]
    for check in document["checks"]:
        assert set(check) == {"name", "value", "bar", "ok"}
        assert check["ok"] is True, check


@pytest.mark.slow
def test_lines_follow_from_the_rows(document: dict[str, Any]) -> None:
    rows = {row["variant"]: row["engines"] for row in document["runs"]}
    assert {"scaled", "linear", "power_softmax", "nalaformer"} == set(rows)
    for line in document["table"]:
        ckks, mpc = rows[line["variant"]]["ckks"], rows[line["variant"]]["crypten"]
        assert line["crypten"]["encrypted"] == {"mean": mpc["accuracy"]["encrypted"], "spread": 0.0}
        per_query = (mpc["counts"]["bytes_sent"] + mpc["counts"]["dealer_bytes"]) / mpc["samples"]
        assert line["crypten"]["bytes_per_query"] == per_query
        if line["variant"] == "nalaformer":
            assert line["ckks"] is None
            assert "needs comparison" in line["ckks_refused"]
        else:
            assert line["ckks"]["levels"] == ckks["depth"]
            assert line["ckks"]["ct_products"] == ckks["counts"]["ct_products"] > 0
            assert ckks["encryption_error"] < 1e-4


@pytest.mark.slow
def test_a_figure_that_falls_short_stays(benchmarks: Callable[[str], ModuleType], document: dict[str, Any]) -> None:
    rows = json.loads(json.dumps(document["runs"]))
    rows[0]["engines"]["crypten"]["agreement"] = 0.5
    made = benchmarks("atlas_report").document(rows, document["budget"], 7200.0, {}, quick=True)
    failed = {check["name"]: check["value"] for check in made["checks"] if not check["ok"]}
    assert failed == {"minutes": 120.0, "least agreement of encrypted and clear runs": 0.5}


def test_the_shipped_atlas_is_whole() -> None:
    """Every variant, three seeds, and a table that is the one in its file."""
    from secureattn.approx.attention import VARIANTS

    made = json.loads((BENCHMARKS / "results" / "atlas.json").read_text())
    assert {line["variant"] for line in made["table"]} == set(VARIANTS)
    assert {row["seed"] for row in made["runs"]} == {0, 1, 2}
    assert all(check["ok"] for check in made["checks"]), [check for check in made["checks"] if not check["ok"]]
