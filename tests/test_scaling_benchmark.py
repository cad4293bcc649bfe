"""The benchmark of workers: what it makes of its samples, and what it predicts of them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def report(benchmarks: Callable[[str], ModuleType]) -> ModuleType:
    return benchmarks("scaling_report")


def jobs(*seconds: float, error: float = 1e-5, moved: int = 2_000_000) -> list[dict[str, Any]]:
    return [{"seconds": one, "moved_bytes": moved, "error": error} for one in seconds]


def alone(**changed: Any) -> dict[str, Any]:
    ways = {
        "pipe": {"jobs": jobs(1.9, 2.0, 4.0), "front_s": 0.02, "held_s": 1.8},
        "ray": {"jobs": jobs(2.0, 2.1, 2.2), "front_s": 0.05, "held_s": 2.0},
    }
    return {"ways": ways, "key_bytes": 10**8, "load_before": 0.1, **changed}


def together(**lost: int) -> dict[str, Any]:
    runs = []
    for way, workers, seconds in (("pipe", 1, 20.0), ("pipe", 2, 10.0), ("ray", 1, 24.0), ("ray", 2, 16.0)):
        done = jobs(*[2.0] * (8 - lost.get(way, 0)))
        runs.append({"way": way, "workers": workers, "sent": 8, "seconds": seconds, "jobs": done})
    return {"runs": runs, "load_before": 0.9}


def test_what_ray_adds_is_of_medians(report: ModuleType) -> None:
    assert report.added_s(alone()) == pytest.approx(0.1)
    assert report.per_minute(together(), "ray", 2) == pytest.approx([30.0])


def test_predictions_are_bound_by_what_is_scarce(report: ModuleType) -> None:
    """2 s a job on a replica, 0.05 s of the server: 40 replicas are as many as it serves; a network of 10 MB/s: 10."""
    assert report.predicted(alone(), 8, 1e9) == (pytest.approx(240), "replicas")
    assert report.predicted(alone(), 64, 1e9) == (pytest.approx(1200), "the server's process")
    assert report.predicted(alone(), 64, 1e7) == (pytest.approx(300), "its network")


def test_checks_fail_for_what_they_say(report: ModuleType) -> None:
    def failed(**parts: Any) -> list[str]:
        return [check["name"] for check in report.checks(parts) if not check["ok"]]

    assert failed(alone=alone(), together=together()) == []
    slow = alone()
    slow["ways"]["ray"]["jobs"] = jobs(2.3, 2.3, 2.3)
    assert failed(alone=slow) == ["alone: what Ray adds to a job, share of it"]
    slow["ways"]["ray"]["jobs"] = jobs(2.0, error=2e-4)
    assert failed(alone=slow) == ["alone: largest error of a score against the clear run"]
    assert failed(together=together(ray=1)) == ["together: jobs that were lost"]


def test_tables_say_what_is_measured_and_what_predicted(report: ModuleType) -> None:
    text = report.text(report.document({"alone": alone(), "together": together()}, quick=False))
    assert "| processes of this machine | 24.0 (24.0 to 24.0) | 48.0 (48.0 to 48.0) | 2.00 |" in text
    assert "(**predicted**) | 1 | 2 | 4 | 8 | 16 | 32 | 64 |" in text
    assert "| jobs a minute, 1 Gbit/s | 30 | 60 | 120 | 240 | 480 | 960 | 1200* |" in text
