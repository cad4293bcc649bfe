"""What the benchmarks' command line measures, keeps, and takes from what was published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ELSEWHERE = {"cpu": "that", "cores": 4}


class Bench:
    """Two parts that count how often they are measured, published by another machine."""

    def __init__(self, measuring: ModuleType) -> None:
        self.measuring = measuring
        self.counts = {"first": 0, "second": 0}
        self.report = SimpleNamespace(document=self.document, text=self.measuring.measured_on)

    def document(self, parts: dict[str, Any], *, quick: bool) -> dict[str, Any]:
        return {"machine": {"cpu": "this", "cores": 2}, "quick": quick, "checks": [], "parts": parts}

    def publish(self) -> None:
        parts = {name: {"commit": "abc", "value": 0} for name in self.counts}
        published = {**self.document(parts, quick=False), "machine": ELSEWHERE}
        self.measuring.write(self.measuring.RESULTS / "some.json", published)

    def part(self, name: str) -> Callable[[Any], dict[str, Any]]:
        def measure(setting: Any) -> dict[str, Any]:
            self.counts[name] += 1
            return {"value": self.counts[name]}

        return measure

    def values(self, patch: pytest.MonkeyPatch, *options: str) -> dict[str, int]:
        """What a run's document holds of each part."""
        patch.setattr("sys.argv", ["some.py", "--json", "all.json", *options])
        assert self.measuring.run_all("some", None, {name: self.part(name) for name in self.counts}, self.report) == 0
        return {name: part["value"] for name, part in json.loads(Path("all.json").read_text())["parts"].items()}


@pytest.fixture
def bench(benchmarks: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    measuring = benchmarks("measuring")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    return Bench(measuring)


def test_one_part_is_measured_beside_the_published_ones(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.publish()
    assert bench.values(monkeypatch, "--only", "second") == {"first": 0, "second": 1}
    document = json.loads(Path("some.json").read_text())
    assert document["parts"]["first"]["machine"] == ELSEWHERE
    assert document["parts"]["second"]["machine"]["cores"] >= 1
    assert Path("some.md").read_text().startswith("that, 4 cores (first at abc) and on ")
    assert bench.values(monkeypatch, "--only", "second") == {"first": 0, "second": 1}
    assert bench.values(monkeypatch, "--only", "second", "--fresh") == {"first": 0, "second": 2}


def test_a_run_of_all_parts_measures_what_it_has_not_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.publish()
    assert bench.values(monkeypatch) == {"first": 1, "second": 1}
    assert bench.values(monkeypatch) == {"first": 1, "second": 1}
    assert bench.values(monkeypatch, "--fresh") == {"first": 2, "second": 2}


def test_small_versions_are_no_mixture(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.publish()
    before = Path("some.json").read_text()
    assert bench.values(monkeypatch, "--quick", "--only", "first") == {"first": 1}
    assert Path("some.json").read_text() == before


def test_tables_wait_until_all_parts_are_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench.values(monkeypatch, "--only", "first") == {"first": 1}
    assert not Path("some.json").exists()
    assert bench.values(monkeypatch, "--only", "second") == {"first": 1, "second": 1}
    assert Path("some.json").exists()


def test_notes_say_where_parts_differ(benchmarks: Callable[[str], ModuleType]) -> None:
    measured_on = benchmarks("measuring").measured_on
    here, there = {"cpu": "this"}, {"cpu": "that"}
    same = {"a": {"machine": here, "commit": "abc"}, "b": {"commit": "abc"}}
    assert measured_on({"machine": here, "parts": same}) == "this"
    later = {**same, "c": {"commit": "def"}, "d": {"machine": there, "commit": None}}
    expected = "this (a, b at abc; c at def) and on that (d at an unknown revision)"
    assert measured_on({"machine": here, "parts": later}) == expected
