"""The benchmark of what recording costs: what it makes of its samples, and how it takes them."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from helpers import BENCHMARKS

from secureattn.events import Recorder, Silent


@pytest.fixture(scope="module")
def report(benchmarks: Callable[[str], ModuleType]) -> ModuleType:
    return benchmarks("overhead_report")


def part(**changed: Any) -> dict[str, Any]:
    seconds = {"off": [1.0, 2.0, 4.0], "on": [1.01, 2.04, 4.0], "traced": [1.02, 2.0, 4.08]}
    calls = {way: {"op": 2e-6, "primitive": 1e-6} for way in ("on", "traced")}
    return {"seconds": seconds, "calls": {"op": 1000, "primitive": 2000}, "call_s": calls, **changed}


def failed(report: ModuleType, one: dict[str, Any], *, quick: bool = False) -> list[str]:
    return [check["name"] for check in report.checks({"ckks": one}, quick=quick) if not check["ok"]]


def test_ratios_are_of_one_turn(report: ModuleType) -> None:
    assert report.ratios(part(), "on") == pytest.approx([1.01, 1.02, 1.0])
    assert report.share(part(), "on") == pytest.approx((1000 * 2e-6 + 2000 * 1e-6) / 2.0)
    values = [check["value"] for check in report.checks({"ckks": part()}, quick=False)]
    assert values == pytest.approx([0.002, 1.01, 0.002, 1.02])
    assert failed(report, part()) == []


def test_the_interval_holds_the_median_as_often_as_it_says(report: ModuleType) -> None:
    assert report.interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert report.interval([float(i) for i in range(11)]) == (1.0, 9.0)  # P(fewer than 2 of 11) = 0.6 %, 3: 3.3 %
    draw = random.Random(5)
    held = 0
    for _ in range(2000):
        low, high = report.interval([draw.expovariate(1.0) for _ in range(40)])
        held += low <= math.log(2) <= high
    assert 0.95 - 0.015 <= held / 2000 <= 0.99


def test_checks_fail_for_what_they_say(report: ModuleType) -> None:
    slow = part(seconds={"off": [1.0] * 20, "on": [1.0] * 9 + [1.04] * 11, "traced": [1.0] * 11 + [2.0] * 9})
    (name,) = failed(report, slow)
    assert "recorded: median ratio of 20 turns" in name
    assert failed(report, slow, quick=True) == []
    many = part(calls={"op": 40_000, "primitive": 0})
    assert len(failed(report, many)) == len(failed(report, many, quick=True)) == 2


def test_samples_are_taken_in_turn_and_recorded_as_said(benchmarks: Callable[[str], ModuleType]) -> None:
    overhead = benchmarks("overhead")
    current: list[Recorder] = []
    order: list[str] = []

    def evaluate() -> None:
        recorder = current[-1]
        kind = "off" if isinstance(recorder, Silent) else "traced" if recorder.trace else "on"
        order.append(kind)
        with recorder.region("layer.0"), recorder.op("linear"):
            recorder.primitive("rounds")
            time.sleep(0.001)

    found = overhead.in_turn(evaluate, current.append, 3)
    assert order == ["on", "off", "on", "traced", "on", "traced", "off", "traced", "off", "on"]
    assert found["calls"] == {"op": 2, "primitive": 1}
    assert all(len(taken) == 3 and min(taken) >= 0.001 for taken in found["seconds"].values())
    assert all(0 < cost < 1e-3 for way in found["call_s"].values() for cost in way.values())


def test_the_published_checks_follow_from_their_samples(report: ModuleType) -> None:
    kept = json.loads((BENCHMARKS / "results" / "overhead.json").read_text())
    assert report.checks(kept["parts"], quick=False) == kept["checks"]
    assert (BENCHMARKS / "results" / "overhead.md").read_text() == report.text(kept)
    assert all(check["ok"] for check in kept["checks"])
