"""``secureattn approx``: everything is listed, what is shown is what realisations promise, refusals are one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secureattn.approx import FUNCTIONS, realise
from secureattn.approx.attention import VARIANTS
from secureattn.cli import main
from secureattn.plan.costs import cost
from secureattn.plan.select import cheapest

KEYS = {"error", "relative", "engines", "depth", "products", "rounds", "bytes_sent", "dealer_bytes", "source"}


def done(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["approx", *map(str, arguments)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["approx", *map(str, arguments)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("secureattn: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def misused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["approx", *arguments])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert "usage: secureattn approx" in printed.err
    return printed.err


# ---- list -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What ``list`` prints and writes; run once."""
    from contextlib import redirect_stdout
    from io import StringIO

    path, text = tmp_path_factory.mktemp("list") / "list.json", StringIO()
    with redirect_stdout(text):
        assert main(["approx", "list", "--json", str(path)]) == 0
    return text.getvalue(), json.loads(path.read_text())


def test_list_has_every_realisation_and_every_variant(listed: tuple[str, dict[str, Any]]) -> None:
    text, document = listed
    assert document["schema"] == 1
    rows = {(row["function"], row["kind"]) for row in document["realisations"]}
    assert rows == {(name, kind) for name, module in FUNCTIONS.items() for kind in module.REALISATIONS}
    assert [row["name"] for row in document["attention"]] == list(VARIANTS)
    for function, kind in rows:
        assert f"{function}({kind}" in text
    for name in VARIANTS:
        assert f"\n {name} " in text


def test_list_refuses_nothing_and_shows_each_where_it_holds(listed: tuple[str, dict[str, Any]]) -> None:
    text, document = listed
    assert "refused" not in text
    for row in document["realisations"]:
        assert set(row) >= KEYS
        assert row["changes_model"] or row["error"] < 0.3, row
        assert ("ckks" in row["engines"]) == (row["depth"] is not None)
        assert row["domain"][0] < row["domain"][1]
    domains = {(row["function"], row["kind"]): tuple(row["domain"]) for row in document["realisations"]}
    assert {domains["exp", kind] for kind in FUNCTIONS["exp"].REALISATIONS} == {(-8, 0)}
    assert domains["clip", "compare"] == domains["clip", "none"] == (-4, 12)
    assert domains["erf", "crypten"] == (-2, 2)
    assert domains["erf", "remez"] == (-8, 8)


def test_what_is_listed_is_what_realisations_promise(listed: tuple[str, dict[str, Any]]) -> None:
    rows = listed[1]["realisations"]
    for row in rows[:: len(rows) // 12]:
        made = realise(row["function"], row["options"], tuple(row["domain"]))
        assert (row["error"], row["depth"], row["products"]) == (made.error, made.depth, made.products)
        counted = cost(made)
        assert (row["rounds"], row["bytes_sent"], row["dealer_bytes"]) == (
            counted.rounds,
            counted.bytes_sent,
            counted.dealer_bytes,
        )


# ---- show -------------------------------------------------------------------------------------------------------


def test_show_of_a_kind_tells_all_of_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = done(capsys, "show", "gelu/bolt", "--domain", "-6", "6", "--json", tmp_path / "s.json")
    for word in ("gelu/bolt", "Domain:", "Error:", "Cost:", "Source:", "BOLT", "[-6, 6]", "plaintext, crypten"):
        assert word in text
    (row,) = json.loads((tmp_path / "s.json").read_text())["realisations"]
    made = realise("gelu", {"kind": "bolt"}, (-6.0, 6.0))
    assert row["error"] == made.error
    assert row["depth"] is None
    assert row["engines"] == ["plaintext", "crypten"]
    assert f"{made.error:.1e}" in text
    assert f" {row['rounds']} " in text


def test_show_of_a_function_compares_its_kinds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = done(capsys, "show", "sigmoid", "--degree", "7", "--domain", "-4", "4", "--json", tmp_path / "s.json")
    assert "sigmoid(remez, degree 7)" in text
    rows = {row["kind"]: row for row in json.loads((tmp_path / "s.json").read_text())["realisations"]}
    assert set(rows) == set(FUNCTIONS["sigmoid"].REALISATIONS)
    assert rows["remez"]["options"] == {"kind": "remez", "degree": 7}
    assert rows["remez"]["error"] < rows["chebyshev"]["error"]
    assert rows["remez"]["depth"] == 4


def test_show_takes_an_error_instead_of_a_degree(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done(capsys, "show", "tanh/remez", "--error", "1e-3", "--domain", "-3", "3", "--json", tmp_path / "s.json")
    (row,) = json.loads((tmp_path / "s.json").read_text())["realisations"]
    assert row["options"] == {"kind": "remez", "error": 1e-3}
    assert row["error"] <= 1e-3


@pytest.mark.parametrize("name", ["softmax", "gaussian", "softmax_max_shift"])
def test_show_of_an_attention_variant(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = done(capsys, "show", name, "--json", tmp_path / "s.json")
    (row,) = json.loads((tmp_path / "s.json").read_text())["attention"]
    variant = VARIANTS[name]
    assert row["name"] == name
    assert row["sites"] == dict(variant.sites)
    for word in (variant.formula.split()[0], variant.source.split(",")[0], *variant.sites):
        assert word in text
    assert ("ckks" in row["engines"]) == (not variant.needs)


@pytest.mark.parametrize(("suffix", "starts"), [("png", b"\x89PNG\r\n\x1a\n"), ("svg", b"<?xml")], ids=["png", "svg"])
def test_plots_are_images(suffix: str, starts: bytes, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"p.{suffix}"
    done(capsys, "show", "erf", "--plot", path)
    image = path.read_bytes()
    assert image.startswith(starts)
    assert len(image) > 10_000
    if suffix == "svg":
        assert b"erf on [-8, 8]" in image
        assert b"erf(remez, degree 15)" in image
        assert b"erf(crypten" not in image  # shown on another domain
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


# ---- fit --------------------------------------------------------------------------------------------------------


def test_fit_prints_the_line_of_a_protocol(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("fit", "gelu", "--domain", "-4", "4", "--error", "1e-3", "--engine", "ckks")
    text = done(capsys, *arguments, "--json", tmp_path / "f.json")
    best = cheapest("gelu", (-4.0, 4.0), 1e-3, "ckks")
    line = text.split("\n")[0]
    assert line == f'gelu = {{ kind = "{best.options["kind"]}", degree = {best.options["degree"]} }}'
    rows = json.loads((tmp_path / "f.json").read_text())["realisations"]
    assert rows[0]["options"] == best.options
    assert all(row["error"] <= 1e-3 and row["depth"] >= rows[0]["depth"] for row in rows)
    assert "crypten" not in {row["kind"] for row in rows}


@pytest.mark.parametrize("engine", ["plaintext", "crypten"])
def test_fit_for_the_other_engines(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = done(capsys, "fit", "relu", "--domain", "-2", "2", "--error", "1e-3", "--engine", engine)
    assert "relu(compare)" in text
    assert text.startswith("relu = { kind = ")


# ---- refusals and help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("show", "gello"), "nothing is called 'gello'; functions are"),
        (("show", "gelu/magic"), "gelu has no realisation 'magic', it has"),
        (("show", "erf/crypten", "--domain", "-3", "3"), "holds on [-2, 2]"),
        (("show", "log", "--domain", "-1", "1"), "positive domain"),
        (("show", "gelu", "--domain", "4", "-4"), "ascending order"),
        (("show", "gelu", "--domain", "0", "inf"), "two finite ends"),
        (("show", "gelu/bolt", "--degree", "3"), "gelu/bolt takes no degree"),
        (("show", "gelu", "--degree", "3", "--error", "0.1"), "not both"),
        (("show", "gelu/remez", "--error", "-1"), "error must be a positive number"),
        (("show", "gelu", "--plot", "p.gif"), ".png or .svg"),
        (("show", "max", "--plot", "p.png"), "function of a row"),
        (("show", "softmax", "--plot", "p.png"), "whole rows"),
        (("show", "gelu", "--json", "no/such/folder.json"), "does not exist"),
        (("fit", "gello", "--domain", "-4", "4", "--error", "1e-3", "--engine", "ckks"), "unknown function 'gello'"),
        (("fit", "gelu", "--domain", "-4", "4", "--error", "0", "--engine", "ckks"), "positive"),
        (("fit", "gelu", "--domain", "-4", "4", "--error", "1e-20", "--engine", "ckks"), "allow a larger error"),
        (("fit", "gelu", "--domain", "1", "1", "--error", "1e-3", "--engine", "ckks"), "ascending order"),
        (("fit", "log", "--domain", "0", "1", "--error", "1e-3", "--engine", "ckks"), "positive domain"),
    ],
)
def test_refusals_are_one_line(
    arguments: tuple[str, ...],
    word: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert word in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("dance",),
        ("show",),
        ("show", "gelu", "--degree", "0"),
        ("show", "gelu", "--domain", "1"),
        ("fit", "gelu", "--domain", "-1", "1", "--error", "1e-3"),
        ("fit", "gelu", "--domain", "-1", "1", "--error", "1e-3", "--engine", "abacus"),
        ("fit", "gelu", "--domain", "-1", "1", "--error", "small", "--engine", "ckks"),
    ],
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    misused(capsys, *arguments)


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ((), ("list", "show", "fit")),
        (("list",), ("--json",)),
        (("show",), ("NAME", "--domain A B", "--degree N", "--error E", "--plot FILE", "--json")),
        (("fit",), ("FUNCTION", "--domain A B", "--error E", "--engine {plaintext,ckks,crypten}", "--json")),
    ],
)
def test_help_names_every_option(
    action: tuple[str, ...], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["approx", *action, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in words:
        assert word in text
