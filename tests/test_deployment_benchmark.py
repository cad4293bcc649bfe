"""The figures of a deployment: taken from the tests that record them, and every one with its bar."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import BENCHMARKS

RECORDED = """
def test_that_counts(record_property):
    record_property("fed", 12000)
    record_property("amiss", 2)


def test_that_fails():
    assert 1 == 2
"""


@pytest.fixture(scope="module")
def deployment(benchmarks: Callable[[str], ModuleType]) -> ModuleType:
    return benchmarks("deployment")


@pytest.fixture(scope="module")
def report(benchmarks: Callable[[str], ModuleType]) -> ModuleType:
    return benchmarks("deployment_report")


def case(outcome: str = "passed", **figures: float) -> dict[str, Any]:
    return {"case": "that", "outcome": outcome, "reason": None, "seconds": 1.0, "figures": figures}


def test_figures_are_those_that_tests_record(deployment: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_recorded.py").write_text(RECORDED)
    counted, failed = deployment.run([str(tmp_path / "test_recorded.py")])
    assert (counted["outcome"], counted["figures"]) == ("passed", {"fed": 12000.0, "amiss": 2.0})
    assert (failed["outcome"], failed["figures"]) == ("failed", {})
    assert "1 == 2" in failed["reason"]
    with pytest.raises(RuntimeError, match="no tests"):
        deployment.run([f"{tmp_path}/test_recorded.py::test_that_is_not_there"])


def test_every_figure_has_a_bar(report: ModuleType) -> None:
    part = {"tests": {"readers": {"cases": [case(fed=300, amiss=0, grown_bytes=1)]}, "killed": {"cases": [case()] * 2}}}
    quick, full = (report.checks(part, quick=quick) for quick in (True, False))
    assert [check["ok"] for check in quick] == [True] * 5
    assert [check["name"] for check in full if not check["ok"]] == ["spoilt files over every reader: so many"]
    wrong = {"tests": {"readers": {"cases": [case("failed", amiss=1)]}}}
    assert [check["ok"] for check in report.checks(wrong, quick=True)] == [False, False]
    assert report.text(wrong, quick=True).count("**not met**") == 2


def test_what_the_machine_does_not_allow_is_no_figure(report: ModuleType) -> None:
    assert report.checks({"tests": {"capture": {"cases": [case("skipped")]}}}, quick=False) == []


def test_the_tests_that_are_asked_for_are_there(deployment: ModuleType) -> None:
    named = [*deployment.READERS.values(), *deployment.UPLOADS.values(), deployment.CLIENTS, deployment.KILLED]
    for test in (*named, deployment.REQUESTS, deployment.CAPTURE):
        file, name = test.split("::")
        tree = ast.parse((BENCHMARKS.parent / "tests" / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
