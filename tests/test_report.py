"""``secureattn report``: what the page says and where, that it loads nothing, and that no value leaves its place."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from documents import comparison, encrypted, profile, row, shares, written

from secureattn.cli import main
from secureattn.ledger import Ledger, Party

pytest.importorskip("jinja2")
needs_crypten = pytest.mark.skipif(importlib.util.find_spec("crypten") is None, reason="CrypTen is not installed")

VOID = {"meta", "br", "hr", "img", "input", "link"}
LOADING = {
    "script",
    "link",
    "img",
    "iframe",
    "object",
    "embed",
    "video",
    "audio",
    "source",
    "base",
    "form",
    "image",
    "use",
}
MARKUP = '</title><script>alert(1)</script><img src=x onerror="alert(1)">\'"&lt;{{ 7*7 }}'


@dataclass
class Element:
    """A tag with what is in it."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(c if isinstance(c, str) else c.text for c in self.children).split())

    def all(self, tag: str) -> list[Element]:
        """Every element of a kind inside, in order."""
        inner = [child for child in self.children if isinstance(child, Element)]
        return [found for child in inner for found in ([child] if child.tag == tag else []) + child.all(tag)]


class Page(HTMLParser):
    """A tree of a page; what is not closed in order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("")
        self._open = [self.root]
        self.feed(text)
        self.close()
        assert self._open == [self.root], [one.tag for one in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].children.append(data)


def elements(root: Element) -> list[Element]:
    inner = [child for child in root.children if isinstance(child, Element)]
    return [found for child in inner for found in [child, *elements(child)]]


def report(tmp_path: Path, *documents: dict[str, Any], options: tuple[str, ...] = ()) -> Element:
    """The page of some documents, parsed."""
    files = [str(written(tmp_path / f"{i}.json", document)) for i, document in enumerate(documents)]
    chosen = [part for file in files for part in ("--from", file)]
    assert main(["report", *chosen, "-o", str(tmp_path / "r.html"), *options]) == 0
    return Page((tmp_path / "r.html").read_text(encoding="utf-8")).root


def table(page: Element, caption: str) -> dict[str, dict[str, str]]:
    """Rows of a table by their first cell, each by heading."""
    (found,) = [one for one in page.all("table") if one.all("caption")[0].text.startswith(caption)]
    head, body = found.all("thead")[0], found.all("tbody")[0]
    headings = [cell.text for cell in head.all("th")]
    rows = [[c.text for c in one.children if isinstance(c, Element)] for one in body.all("tr")]
    assert all(len(cells) == len(headings) for cells in rows)
    return {cells[0]: dict(zip(headings, cells, strict=True)) for cells in rows}


def facts(page: Element, section: str) -> dict[str, str]:
    """A section's names and values."""
    (found,) = [one for one in page.all("section") if one.attributes["aria-labelledby"] == section]
    return {d.all("dt")[0].text: d.all("dd")[0].text for d in found.all("dl")[0].all("div")}


def cards(page: Element) -> dict[str, str]:
    return {d.all("dt")[0].text: d.all("dd")[0].text for d in page.all("header")[0].all("dl")[0].all("div")}


# ---- figures and their places -----------------------------------------------------------------------------------


def test_the_three_columns_and_the_cards(tmp_path: Path) -> None:
    page = report(tmp_path, profile(shares()), comparison(shares()))
    assert [one.text for one in page.all("h1")] == ["toy · safe"]
    assert page.all("title")[0].text == "toy · safe"
    assert cards(page) == {
        "accuracy, encrypted": "75.00%exact 100.00%", "agrees with exact": "62.50%share of samples",
        "security": "128 bits", "whole run": "5.50 sonline 4.00 s", "sent": "4.39 KiBand 800 B dealt", "rounds": "3",
    }  # fmt: skip
    rows = table(page, "The true functions")
    assert list(rows) == ["exact", "clear", "encrypted"]
    assert list(rows["exact"].values()) == ["exact", "100.00%", "--", "--", "--"]
    assert list(rows["clear"].values()) == ["clear", "87.50%", "87.50%", "--", "2.5e-03 (approximation)"]
    assert list(rows["encrypted"].values()) == ["encrypted", "75.00%", "62.50%", "50.00%", "1.3e-06 (encryption)"]


def test_seconds_and_counts_on_shares(tmp_path: Path) -> None:
    page = report(tmp_path, profile(shares()))
    phases = table(page, "Seconds and traffic by phase")
    assert phases["online"] == {"phase": "online", "seconds": "4.00 s", "share": "72.7 %", "rounds": "3", "sent": "4.39 KiB", "dealer": "0"}  # fmt: skip  # noqa: E501
    assert (phases["keys"]["seconds"], phases["total"]["seconds"], phases["total"]["dealer"]) == (
        "--",
        "5.50 s",
        "800 B",
    )
    roles = table(page, "Seconds by role")
    assert list(roles) == ["model owner", "client", "dealer"]
    assert (roles["dealer"]["offline"], roles["dealer"]["waiting"]) == ("500 ms", "9.00 s")
    assert (roles["model owner"]["offline"], roles["model owner"]["waiting"]) == ("250 ms", "750 ms")
    regions = table(page, "Every region")
    assert (regions["embed"]["all"], regions["head"]["sent"], regions["total"]["all"]) == ("4.00 s", "500 B", "5.50 s")
    operations = table(page, "Operations by their own seconds")
    assert operations["head"] == {
        "region": "head", "op": "linear", "phase": "online", "calls": "1", "self": "1.00 s", "share": "18.2 %",
        "rounds": "1", "sent": "500 B", "dealer": "0",
    }  # fmt: skip
    # the busiest party: 3 rounds, half a round trip each, and 3500 bytes; one request and 800 bytes are the owner's
    lan = table(page, "What messages take")["LAN"]
    assert (lan["online"], lan["with the run"]) == ("778 µs", "5.50 s")
    assert table(page, "How often every primitive ran")["dealer bytes"] == {
        "primitive": "dealer bytes", "setup": "--", "offline": "800 B", "online": "0", "total": "800 B",
        "seconds": "--",  # the owner waited for them, and the client was slower
    }  # fmt: skip


def test_seconds_and_counts_under_ckks(tmp_path: Path) -> None:
    page = report(tmp_path, profile(encrypted()))
    roles = table(page, "Seconds by role")
    assert [roles[name]["all"] for name in ("client", "server")] == ["11.5 s", "13.2 s"]
    assert (roles["client"]["refresh"], roles["server"]["refresh"]) == ("1.00 s", "3.00 s")
    primitives = table(page, "How often every primitive ran")
    assert (primitives["rotations"]["online"], primitives["rotations"]["seconds"]) == ("30", "2.50 s")
    assert primitives["ct products"]["total"] == "512"
    regions = table(page, "Every region")
    assert (regions["layer.0/attention"]["all"], regions["layer.0"]["ct×pt"]) == ("10.0 s", "64")
    said = facts(page, "trust")
    assert (said["security bits"], said["ring degree"], said["prime bits"]) == ("128", "16384", "60 + 40 + 60")
    assert "flooding bits" not in said
    assert facts(page, "machine")["memory bytes"] == "16.0 GiB"
    assert "semi-honest server and client" in page.text


def test_operations_below_the_top_are_summed(tmp_path: Path) -> None:
    page = report(tmp_path, profile(shares()), options=("--top", "2"))
    rows = next(one for one in page.all("table") if one.all("caption")[0].text.startswith("Operations")).all("tr")
    assert [one.all("th")[0].text for one in rows[1:]] == ["embed", "embed", "2 more", "total"]


def test_the_bars_are_as_long_as_their_seconds(tmp_path: Path) -> None:
    page = report(tmp_path, profile(shares()))
    by_phase, by_part, by_role = page.all("svg")
    width = float(by_phase.attributes["viewbox"].split()[2])  # type: ignore[union-attr]

    def bars(svg: Element) -> dict[str, float]:
        rects = [one for one in svg.all("rect") if one.all("title")]
        return {one.all("title")[0].text: float(one.attributes["width"] or 0) for one in rects}

    assert bars(by_phase) == {
        "setup: 500 ms": pytest.approx(width * 0.5 / 5.5, abs=0.01),
        "offline: 1.00 s": pytest.approx(width * 1 / 5.5, abs=0.01),
        "online: 4.00 s": pytest.approx(width * 4 / 5.5, abs=0.01),
    }
    assert bars(by_part) == {"embed: 3.00 s": pytest.approx(width * 0.75), "head: 1.00 s": pytest.approx(width * 0.25)}
    assert bars(by_role)["waiting: 9.00 s"] == pytest.approx(width * 9 / 9.5, abs=0.01)
    starts = [float(one.attributes["x"] or 0) for one in by_phase.all("rect") if one.all("title")]
    assert starts == [0, pytest.approx(width * 0.5 / 5.5, abs=0.01), pytest.approx(width * 1.5 / 5.5, abs=0.01)]
    assert by_phase.all("desc")[0].text == "all phases: setup 500 ms, offline 1.00 s, online 4.00 s, 5.50 s in all"
    assert "dealer: offline 500 ms, waiting 9.00 s, 9.50 s in all" in by_role.all("desc")[0].text


def test_warnings_come_first(tmp_path: Path) -> None:
    warned = comparison(
        shares(), warnings=["the first party deals"], escapes={"layer.0/ffn/gelu": 3}, changes_model=True
    )
    page = report(tmp_path, profile(shares(), warnings=["the first party deals"]), warned)
    (listed,) = [one for one in page.all("header")[0].all("ul") if one.attributes["class"] == "warnings"]
    assert [one.text for one in listed.all("li")] == [
        "the first party deals",
        "this protocol computes another function than the model's own",
        "values outside their function's domain: 3 at layer.0/ffn/gelu",
    ]
    assert report(tmp_path, profile(shares())).all("header")[0].all("ul") == []


def test_a_comparison_alone_and_models_without_classes(tmp_path: Path) -> None:
    page = report(tmp_path, comparison(shares()))
    assert page.all("svg") == []
    assert table(page, "Seconds of the encrypted run")["total"]["seconds"] == "5.50 s"
    cosine = {"clear": {"mean": 0.99, "least": 0.9875}, "encrypted": {"mean": 0.98, "least": 0.9625}}
    nobody = {"exact": None, "clear": None, "encrypted": None}
    page = report(tmp_path, comparison(shares(), accuracy=nobody, cosine=cosine))
    assert table(page, "The true functions")["encrypted"]["least cosine to exact"] == "0.962500"
    page = report(tmp_path, comparison(shares(), perplexity={"exact": 4.0, "clear": 4.25, "encrypted": 4.5}))
    assert table(page, "The true functions")["encrypted"]["perplexity"] == "4.5000"


def test_networks_are_those_of_the_file_or_those_asked_for(tmp_path: Path) -> None:
    assert list(table(report(tmp_path, profile(shares())), "What messages take")) == ["LAN", "WAN"]
    page = report(tmp_path, profile(shares()), options=("--network", "puma"))
    assert table(page, "What messages take")["PUMA"]["bandwidth"] == "5 Gbit/s"
    old = profile(shares(), networks={"office": {"modelled_seconds": 0.5}})  # as earlier versions wrote it
    del old["beside"], old["roles"], old["kind"]
    page = report(tmp_path, old)
    assert list(table(page, "What messages take")["office"].values()) == ["office", "500 ms", "6.00 s"]
    assert list(table(page, "Seconds by role")) == ["model owner", "client"]
    clear = Ledger(
        "toy · safe", "plaintext", (Party("plaintext", (row("embed", "linear", "online", 1.0),)),), measured=True
    )
    page = report(tmp_path, profile(clear, networks={}))
    assert len(page.all("svg")) == 2
    assert "role" not in {one.text for one in page.all("th")}


# ---- nothing to load, nothing gets out --------------------------------------------------------------------------


def hostile(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every place of both documents that a stranger may choose, filled with it."""
    events = (row(f"layer.0/{text}", text, "online", 1.0, rounds=1), row(text, "linear", "offline", 1.0, **{text: 4}))
    ledger = Ledger("x", "crypten", (Party(text, events),), measured=True, beside=(Party(f"{text}2", events),))
    changed = {
        "model": text, "protocol": text, "trust": text, "warnings": [text], "tokens": text,
        "parameters": {text: text, "prime_bits": [text], "security_bits": text},
    }  # fmt: skip
    made = profile(ledger, **changed, machine={text: text})
    made["networks"] = {text: made["networks"]["LAN"]}
    return made, comparison(ledger, **changed, escapes={text: 2}, machine={text: text})


@pytest.mark.parametrize("text", [MARKUP, "--><svg onload=alert(1)>", "</style><b>", "javascript:alert(1)", "&amp;<"])
def test_no_value_gets_out_of_its_place(text: str, tmp_path: Path) -> None:
    plain = report(tmp_path, *hostile(re.sub("[^/]", "x", text)))  # as many regions
    page = report(tmp_path, *hostile(text))
    assert [one.tag for one in elements(page)] == [one.tag for one in elements(plain)]
    assert [set(one.attributes) for one in elements(page)] == [set(one.attributes) for one in elements(plain)]
    assert page.all("h1")[0].text == f"{text} · {text}"
    assert page.all("title")[0].text == f"{text} · {text}"
    assert text in facts(page, "machine")
    assert {text, f"{text}2"} == set(table(page, "Seconds by role"))
    assert f"layer.0/{text}" in table(page, "Every region")
    assert text in {one.text for one in page.all("li")}


@pytest.mark.parametrize("ledger", [shares(), encrypted()], ids=["crypten", "ckks"])
def test_the_page_loads_nothing(ledger: Ledger, tmp_path: Path) -> None:
    page = report(tmp_path, profile(ledger), comparison(ledger))
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert not LOADING & {one.tag for one in elements(page)}
    named = {name for one in elements(page) for name in one.attributes}
    assert not {"src", "href", "srcset", "data", "action", "background", "xlink:href"} & named
    assert not any(name.startswith("on") for name in named)
    assert not re.search(r"url\(|@import|https?://|//[a-z]", text)
    policy = [m.attributes["content"] for m in page.all("meta") if m.attributes.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_the_page_can_be_read_aloud(tmp_path: Path) -> None:
    page = report(tmp_path, profile(shares()), comparison(shares()))
    assert page.all("html")[0].attributes["lang"] == "en"
    tables = page.all("table")
    assert len(tables) >= 7
    for one in tables:
        assert one.all("caption")[0].text
        assert all(cell.attributes.get("scope") in ("col", "row") for cell in one.all("th"))
        assert all(r.all("th")[0].attributes["scope"] == "row" for r in one.all("tbody")[0].all("tr"))
    ids = [one.attributes["id"] for one in elements(page) if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    for svg in page.all("svg"):
        assert svg.attributes["role"] == "img"
        named = (svg.attributes["aria-labelledby"] or "").split()
        assert [next(o for o in elements(svg) if o.attributes.get("id") == n).tag for n in named] == ["title", "desc"]
        assert svg.all("desc")[0].text
    style = page.all("style")[0].text
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style


# ---- the command ------------------------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    capsys.readouterr()
    assert main(["report", *map(str, arguments)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"secureattn: error: [^\n]+\n", printed.err)
    return printed.err


def test_files_of_different_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = written(tmp_path / "1.json", profile(shares()))
    other = written(tmp_path / "2.json", comparison(shares(), samples=9))
    page = tmp_path / "r.html"
    line = refused(capsys, "--from", one, "--from", other, "-o", page)
    assert "1.json has samples 8" in line
    assert "2.json 9; give files of the same run" in line
    assert "are both a profile; give one of each" in refused(capsys, "--from", one, "--from", one, "-o", page)
    assert "is no complete JSON" in refused(capsys, "--from", Path(__file__), "-o", page)
    assert "name it r.html" in refused(capsys, "--from", one, "-o", tmp_path / "r.pdf")
    assert not page.exists()


@pytest.mark.parametrize("given", [[], ["digits-vit"], ["digits-vit", "plaintext", "--from", "a.json"]])
def test_either_a_run_or_files(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", *given, "-o", str(tmp_path / "r.html")])
    assert ended.value.code == 2
    assert "give either MODEL and PROTOCOL, or --from FILE" in capsys.readouterr().err


def test_a_missing_template_engine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = written(tmp_path / "1.json", profile(shares()))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert "pip install 'secureattn[report]'" in refused(capsys, "--from", one, "-o", tmp_path / "r.html")


@needs_crypten
def test_a_run_and_its_files_make_the_same_page(tmp_path: Path) -> None:
    made = ["report", "digits-vit", "power-softmax-mpc", "--samples", "4", "-o", str(tmp_path / "run.html")]
    assert main([*made, "--json", str(tmp_path / "both.json")]) == 0
    both = json.loads((tmp_path / "both.json").read_text())
    page = report(tmp_path, both["profile"], both["compare"])
    again = (tmp_path / "r.html").read_text(encoding="utf-8")
    first = (tmp_path / "run.html").read_text(encoding="utf-8")
    source = re.compile(r"from [^<]*?\. Seconds are")
    assert source.sub("", again) == source.sub("", first)
    total = both["profile"]["total"]
    assert table(page, "Seconds and traffic by phase")["total"]["rounds"] == str(total["rounds"])
    assert cards(page)["rounds"] == str(total["rounds"])
    assert (
        table(page, "The true functions")["encrypted"]["accuracy"] == f"{both['compare']['accuracy']['encrypted']:.2%}"
    )
    assert list(table(page, "Seconds by role")) == ["model owner", "client", "dealer"]
