"""The text benchmark: what it makes of its samples, the demonstration of text, and all of it in small."""

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

needs_crypten = pytest.mark.skipif(importlib.util.find_spec("crypten") is None, reason="CrypTen is not installed")


@pytest.fixture(scope="module")
def report(benchmarks: Callable[[str], ModuleType]) -> ModuleType:
    return benchmarks("text_report")


@pytest.fixture
def shipped() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((BENCHMARKS / "results" / "text.json").read_text())
    return found


def test_shipped_figures_are_computed_from_shipped_samples(report: ModuleType, shipped: dict[str, Any]) -> None:
    assert shipped["checks"] == report.checks(shipped["parts"], quick=False)
    assert (BENCHMARKS / "results" / "text.md").read_text() == report.text(shipped)


def worse_cosine(parts: dict[str, Any]) -> None:
    parts["sentences"]["cosines"][3] = 0.9985


def other_bytes(parts: dict[str, Any]) -> None:
    parts["sentence"]["runs"][0]["counted"]["bytes_sent"][1] += 8


def slower(parts: dict[str, Any]) -> None:
    for run in parts["sentence"]["runs"]:
        run["seconds"]["online"] = 4.5


def other_tokens(parts: dict[str, Any]) -> None:
    parts["generation"]["bytes-gpt2"]["tokens"][0] = [0] * len(parts["generation"]["bytes-gpt2"]["tokens"][0])


def other_perplexity(parts: dict[str, Any]) -> None:
    parts["generation"]["bytes-llama"]["perplexity"]["encrypted"] *= 1.02


def disagreement(parts: dict[str, Any]) -> None:
    parts["checkpoints"]["models"]["ViTForImageClassification"]["agreement"]["encrypted"] = 0.5


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        (worse_cosine, "worst cosine"),
        (other_bytes, "rounds and bytes counted"),
        (slower, "online s"),
        (other_tokens, "greedy tokens"),
        (other_perplexity, "perplexity encrypted"),
        (disagreement, "convert to compare"),
    ],
)
def test_a_figure_that_falls_short_says_so(
    report: ModuleType, shipped: dict[str, Any], change: Callable[[dict[str, Any]], None], missed: str
) -> None:
    before = [check["name"] for check in shipped["checks"] if not check["ok"]]
    parts = copy.deepcopy(shipped["parts"])
    change(parts)
    found = [check["name"] for check in report.checks(parts, quick=False) if not check["ok"]]
    (new,) = set(found) - set(before)
    assert missed in new


@pytest.mark.slow
@needs_crypten
def test_the_demonstration_finds_the_document_that_plaintext_finds(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "demo_text.py"), "--query", "Is the shop open on Sunday?"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["1"])
    assert first.split()[3] == "1"  # its place in plaintext
    assert "closed on Sundays" in first or "Our shop" in first
    assert (tmp_path / "out" / "demo-text.profile.json").exists()


@pytest.mark.slow
@needs_crypten
def test_all_of_it_in_small(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "text.py"), "--quick", "--fresh", "--json", str(tmp_path / "text.json")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "text.json").read_text())
    assert document["quick"]
    assert all(check["ok"] for check in document["checks"])
