"""``secureattn diff``: what is compared, what is refused, and when it fails."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import documents
import pytest
from documents import comparison, encrypted, profile, row, shares, written

from secureattn.cli import main
from secureattn.ledger import Ledger, Party, from_json, to_json


def diff(tmp_path: Path, a: dict[str, Any], b: dict[str, Any], *options: str) -> tuple[int, dict[str, Any]]:
    files = [str(written(tmp_path / name, document)) for name, document in (("a.json", a), ("b.json", b))]
    status = main(["diff", *files, "--json", str(tmp_path / "d.json"), *options])
    return status, json.loads((tmp_path / "d.json").read_text())


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line of a command that fails, before it says anything else."""
    capsys.readouterr()
    assert main(["diff", *map(str, arguments)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"secureattn: error: [^\n]+\n", printed.err)
    return printed.err


def change(a: Any, b: Any, only: str | None = None) -> dict[str, Any]:
    known = a is not None and b is not None
    difference, ratio = b - a if known else None, b / a if known and a else None
    return {"a": a, "b": b, "difference": difference, "ratio": ratio, "only_in": only}


# ---- a ledger and back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ledger", [shares(), encrypted()], ids=["crypten", "ckks"])
def test_a_ledger_comes_back_from_its_json(ledger: Ledger) -> None:
    document = json.loads(json.dumps(to_json(ledger)))
    again = from_json(document, name=ledger.name, engine=ledger.engine)
    assert to_json(again) == document
    assert [party.name for party in again.beside] == [party.name for party in ledger.beside]
    assert (again.seconds, again.total("bytes_sent")) == (ledger.seconds, ledger.total("bytes_sent"))


def test_events_of_earlier_files_and_of_unknown_engines_come_back() -> None:
    party = Party("evaluator", (row("", "gate", "online", 1.0, bootstraps=3),))
    document = to_json(Ledger("new", "tfhe", (party,), measured=False))
    del document["beside"], document["roles"]
    document["events"][0]["note"] = "what later versions may add"
    again = from_json(document, name="new", engine="tfhe")
    assert (again.total("bootstraps"), again.counted, again.measured) == (3, ("bootstraps",), False)


# ---- what is compared -------------------------------------------------------------------------------------------


def test_figures_of_two_profiles(tmp_path: Path) -> None:
    extra = (row("head", "reciprocal", "online", 0.5, rounds=6),)
    status, found = diff(tmp_path, profile(shares()), profile(shares(slower=1.5, extra=extra)))
    assert status == 0
    assert found["of"] == "profile"
    assert found["basis"] == {}
    total, phases = found["total"], found["phases"]
    assert total["seconds"] == change(5.5, 7.5)
    assert total["rounds"] == change(3, 9)
    assert total["bytes_sent"] == change(4500, 4500)
    assert total["dealer_bytes"] == change(800, 800)  # what the dealer recorded itself is in no total
    assert total["rotations"] == change(None, None)
    assert (phases["online"], phases["offline"]) == (change(4.0, 6.0), change(1.0, 1.0))
    regions = {one["region"]: one for one in found["regions"]}
    assert regions["embed"]["seconds"] == change(4.0, 5.5)
    assert regions["head"]["seconds"] == change(1.0, 1.5)
    assert regions["head"]["rounds"] == change(1, 7)
    operations = {(one["region"], one["op"], one["phase"]): one for one in found["operations"]}
    assert operations["embed", "linear", "online"]["seconds"] == change(3.0, 4.5)
    new = operations["head", "reciprocal", "online"]
    assert (new["seconds"], new["rounds"]) == (change(None, 0.5, "B"), change(None, 6, "B"))


def test_what_is_not_the_same_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = {**documents.PARAMETERS, "ring_degree": 32768}
    b = profile(shares(), parameters=other, protocol="fast", machine={**documents.MACHINE, "cores": 64})
    _, found = diff(tmp_path, profile(shares()), b)
    assert found["basis"] == {
        "protocol": {"a": "safe", "b": "fast"},
        "parameters.ring_degree": {"a": 16384, "b": 32768},
        "machine.cores": {"a": 2, "b": 64},
    }
    lines = capsys.readouterr().out.splitlines()
    first = [i for i, line in enumerate(lines) if line.startswith("not the same: ")]
    assert [lines[i].rstrip() for i in first] == [
        "not the same: protocol: safe in A, fast in B",
        "not the same: parameters.ring_degree: 16384 in A, 32768 in B",
        "not the same: machine.cores: 2 in A, 64 in B",
    ]
    assert max(first) < min(i for i, line in enumerate(lines) if "totals" in line)


def test_the_tables_say_what_is_only_in_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = (row("head", "reciprocal", "online", 0.5, rounds=6),)
    diff(tmp_path, profile(shares(extra=extra)), profile(shares()))
    out = capsys.readouterr().out
    assert "model, protocol, parameters and machine are the same" in out
    assert re.search(r"seconds +6\.00 s +5\.50 s +-500 ms +0\.9167", out)
    assert re.search(r"rounds +9 +3 +-6 +0\.3333", out)
    assert re.search(r"bytes_sent +4\.39 KiB +4\.39 KiB +0 +1 *\n", out)
    assert re.search(r"head +reciprocal +online +500 ms +-- +-- +only in A", out)
    diff(tmp_path, profile(shares()), profile(shares()), "--top", "1")
    out = capsys.readouterr().out
    assert "counts by operation: all are the same" in out
    assert "and 2 more; --top lists them" in out


def test_two_comparisons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    better = {"exact": 1.0, "clear": 0.875, "encrypted": 1.0}
    status, found = diff(tmp_path, comparison(shares()), comparison(shares(slower=2.0), accuracy=better))
    assert (status, found["of"]) == (0, "compare")
    assert found["quality"]["accuracy.encrypted"] == change(0.75, 1.0)
    assert found["quality"]["max_abs_error.encryption"] == change(1.25e-6, 1.25e-6)
    assert (found["total"]["seconds"], found["phases"]["online"]) == (change(5.5, 8.5), change(4.0, 7.0))
    assert found["regions"] == []
    assert re.search(r"accuracy\.encrypted +0\.75 +1 +\+0\.25 +1\.333", capsys.readouterr().out)


# ---- failing ----------------------------------------------------------------------------------------------------


def test_named_figures_may_not_grow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = profile(shares(slower=1.5, extra=(row("head", "add", "online", 0.0, rounds=3, comparisons=2),)))
    limits = [part for name in ("rounds=2", "online=1.5", "bytes_sent=1") for part in ("--fail-above", name)]
    assert diff(tmp_path, profile(shares()), more, *limits)[0] == 0
    capsys.readouterr()
    limits = [part for name in ("rounds=1.9", "seconds=1.2", "comparisons=5") for part in ("--fail-above", name)]
    assert diff(tmp_path, profile(shares()), more, *limits)[0] == 1
    printed = capsys.readouterr()
    assert "totals" in printed.out  # what differs is told all the same
    assert printed.err == (
        "secureattn: error: rounds went from 3 to 6 (2 times as much, 1.9 allowed); seconds went from 5.5 to 7.0 "
        "(1.273 times as much, 1.2 allowed); comparisons went from 0 to 2 (from none, 5 allowed)\n"
    )
    assert diff(tmp_path, more, profile(shares()), *limits)[0] == 0  # better is no failure


def test_a_figure_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (written(tmp_path / name, profile(shares())) for name in ("a", "b"))
    assert "there is no such figure; there are setup, offline, online, seconds" in refused(
        capsys, a, b, "--fail-above", "round=1"
    )
    capsys.readouterr()
    assert main(["diff", str(a), str(b), "--fail-above", "rotations=1"]) == 1
    assert "--fail-above rotations: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["rounds", "rounds=", "=2", "rounds=nan", "rounds=-1", "rounds=inf"])
def test_a_limit_that_is_none_is_wrong_usage(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["diff", "a", "b", "--fail-above", text])
    assert ended.value.code == 2
    assert "is not NAME=RATIO" in capsys.readouterr().err


# ---- refusing ---------------------------------------------------------------------------------------------------


def without(document: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}


def spoilt(place: str, value: Any) -> dict[str, Any]:
    document = profile(shares())
    document["events"][2] = {**document["events"][2], place: value}
    return document


GOOD = json.dumps(profile(shares()))
BAD: dict[str, tuple[str, str]] = {
    "cut": (GOOD[: len(GOOD) // 2], "is no complete JSON"),
    "empty": ("", "is no complete JSON"),
    "nested": ("[" * 100_000, "is no complete JSON"),
    "nan": (GOOD.replace('"seconds": 5.5', '"seconds": NaN'), "it holds NaN, which is no number"),
    "infinity": (GOOD.replace('"seconds": 5.5', '"seconds": Infinity'), "it holds Infinity"),
    "huge": (GOOD.replace('"seconds": 5.5', '"seconds": 1e999'), "total.seconds must be a number or null"),
    "endless": (GOOD.replace('"seconds": 5.5', f'"seconds": 1{"0" * 400}'), "is damaged"),
    "list": ("[1]", "is no JSON of secureattn"),
    "other": ('{"a": 1}', "is no JSON of secureattn"),
    "schema": (json.dumps({**profile(shares()), "schema": 2}), "has schema 2, this version reads 1"),
    "plan": (json.dumps(without(profile(shares()), "kind", "machine")), "is neither a profile nor a comparison"),
    "kind": (json.dumps({**profile(shares()), "kind": "diff"}), "is neither a profile nor a comparison"),
    "missing": (json.dumps(without(profile(shares()), "phases")), "phases is missing from a profile"),
    "text": (json.dumps({**profile(shares()), "model": 3}), "model must be text"),
    "control": (json.dumps({**profile(shares()), "model": "toy\x1b[2J"}), "holds control characters"),
    "surrogate": (json.dumps({**profile(shares()), "trust": "\ud800"}), "holds control characters"),
    "event": (json.dumps(spoilt("region", None)), "events[2]: region must be text, not None"),
    "phase": (json.dumps(spoilt("phase", "lunch")), "events[2]: phase 'lunch' is none of setup"),
    "count": (json.dumps(spoilt("rounds", -1)), "events[2]: rounds must be a whole number of at least 0"),
    "fraction": (json.dumps(spoilt("bytes_sent", 1.5)), "events[2]: bytes_sent must be a whole number"),
    "seconds": (json.dumps(spoilt("seconds_self", "1")), "events[2]: seconds_self must be a number"),
    "events": (json.dumps({**profile(shares()), "events": {}}), "events must be a list"),
    "total": (json.dumps({**profile(shares()), "total": {}}), "total.seconds is missing"),
    "network": (json.dumps({**profile(shares()), "networks": {"LAN": {"by_phase": 1}}}), "by_phase must be an object"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_document_is_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, said = BAD[name]
    (tmp_path / "bad.json").write_text(text)
    good = written(tmp_path / "good.json", profile(shares()))
    assert said in refused(capsys, tmp_path / "bad.json", good)
    assert said in refused(capsys, good, tmp_path / "bad.json")


def test_what_is_refused_is_else_right() -> None:
    """So that the cases above fail for what they say."""
    assert all(json.dumps(profile(shares())) != text for text, _ in BAD.values())
    assert json.loads(GOOD)["total"]["seconds"] == 5.5


def test_unlike_and_missing_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = written(tmp_path / "a.json", profile(shares()))
    b = written(tmp_path / "b.json", comparison(shares()))
    assert "is a profile" in (line := refused(capsys, a, b))
    assert "b.json a compare; give two of the same kind" in line
    assert "cannot be read: No such file" in refused(capsys, a, tmp_path / "c.json")
    assert "comparisons hold no breakdown to draw" in refused(capsys, b, b, "--plot", tmp_path / "p.svg")
    assert ".png or .svg" in refused(capsys, a, a, "--plot", tmp_path / "p.pdf")


def test_earlier_files_are_told_by_their_keys(tmp_path: Path) -> None:
    old = without(profile(shares()), "kind", "beside", "roles", "changes_model")
    old["networks"] = {"LAN": {"modelled_seconds": 0.5}}
    assert diff(tmp_path, old, profile(shares()))[1]["total"]["seconds"] == change(5.5, 5.5)
    old = without(comparison(shares()), "kind", "machine")
    assert diff(tmp_path, old, old)[1]["quality"]["accuracy.clear"] == change(0.875, 0.875)


# ---- drawing ----------------------------------------------------------------------------------------------------


def test_a_plot_has_a_beside_b_and_every_role(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    b = profile(encrypted(), machine={**documents.MACHINE, "cpu": "Slide rule"})
    status, _ = diff(tmp_path, profile(shares()), b, "--plot", str(tmp_path / "p.svg"))
    assert status == 0
    svg = (tmp_path / "p.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    texts = set(re.findall(r">([^<>\n]+)</t(?:ext|span)>", svg))
    names = {"A: toy · safe", "B: toy · safe", "A: model owner", "A: client", "A: dealer", "B: client", "B: server"}
    assert names | {"waiting", "5.50 s", "24.8 s"} <= texts
    assert {"11.5 s", "13.2 s"} <= texts  # the client's and the server's part of the run under CKKS
    assert any("Abacus, 2 cores, 16 GiB (A) and Slide rule" in text for text in texts)
