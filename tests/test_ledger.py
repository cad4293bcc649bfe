"""The ledger: sums over parties, tables, JSON, trace, plot, and the network model."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from secureattn.errors import EngineError, InputError
from secureattn.events import PHASES, Event, Recorder
from secureattn.ledger import (
    COUNTS,
    ENGINE_COUNTS,
    LAN,
    PUMA,
    WAN,
    Ledger,
    Network,
    Party,
    breakdown_table,
    busy,
    load_network,
    machine,
    network_seconds,
    network_table,
    phase_table,
    region_table,
    role_table,
    to_json,
    units,
    write_plot,
    write_trace,
)
from secureattn.ledger.plot import part, parts
from secureattn.ledger.trace import ONE_CLOCK

MIB = 2**20


def ckks_recorder(layers: int = 1) -> Recorder:
    """A modelled CKKS run, whose seconds are known: 1 + 8 + 2 + 0.5 outside, 4 + 3 + 6 a layer, 0.25 in the head."""
    recorder = Recorder(modelled=True)

    def op(name: str, seconds: float, **counts: int) -> None:
        with recorder.op(name):
            for primitive, times in counts.items():
                recorder.primitive(primitive, times=times)
            recorder.primitive("additions", seconds=seconds)
            if "refreshes" not in counts:
                recorder.levels(7, 5)

    for phase, seconds in (("setup", 1.0), ("keys", 8.0), ("encrypt", 2.0)):
        with recorder.phase(phase):
            op(f"make_{phase}", seconds)
    for i in range(layers):
        with recorder.region(f"layer.{i}"):
            with recorder.region("attention"):
                op("scores", 4.0, ct_products=512, relinearisations=32, rescales=32, rotations=30)
                with recorder.phase("refresh"):
                    op("refresh", 3.0, rounds=1, bytes_sent=160 * MIB, refreshes=96)
            with recorder.region("ffn"), recorder.region("gelu"):
                op("polynomial", 6.0, ct_products=300, pt_products=2048)
    with recorder.region("head"):
        op("linear", 0.25, pt_products=320)
    with recorder.phase("decrypt"):
        op("make_decrypt", 0.5)
    return recorder


def ckks(layers: int = 1, name: str = "power-softmax-ckks") -> Ledger:
    return Ledger.of(ckks_recorder(layers), name=name, engine="ckks")


def row(region: str, op: str, phase: str, seconds: float, **counts: int) -> Event:
    return Event(region, op, phase, 1, seconds, seconds, dict(counts))


def mpc() -> Ledger:
    """Two parties of which the second is slower: 10.25 against 8 seconds."""
    first = (
        row("", "connect", "setup", 1.0),
        row("embed", "deal", "offline", 5.0, dealer_bytes=800, dealer_requests=1),
        row("embed", "linear", "online", 2.0, rounds=2, bytes_sent=1000, products=7),
    )
    second = (
        row("", "connect", "setup", 1.25),
        row("embed", "deal", "offline", 1.0, dealer_requests=1),
        row("embed", "linear", "online", 8.0, rounds=2, bytes_sent=3000, products=7),
    )
    return Ledger("power-softmax-mpc", "crypten", (Party("party 0", first), Party("party 1", second)), measured=True)


def cells(table: Table) -> dict[str, dict[str, str]]:
    """Rows by their text columns, each by heading."""
    columns = [(str(column.header), list(map(str, column.cells))) for column in table.columns]
    text = sum(column.justify == "left" for column in table.columns)
    rows = zip(*(found for _, found in columns), strict=True)
    return {" ".join(filter(None, r[:text])): dict(zip([h for h, _ in columns], r, strict=True)) for r in rows}


def printed(table: Table, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(table)
    return console.export_text()


# ---- sums ---------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["op", "region", "phase", "close"]), max_size=40), st.booleans())
def test_self_times_of_the_rows_sum_to_the_total(steps: list[str], two_parties: bool) -> None:
    recorder = Recorder(trace=True)
    names = {"op": "linear", "region": "layer.0", "phase": "refresh"}

    def play(rest: list[str]) -> list[str]:
        while rest and rest[0] != "close":
            with getattr(recorder, rest[0])(names[rest[0]]):
                rest = play(rest[1:])
        return rest[1:]

    with recorder.op("run"):
        play(steps)
    ledger = Ledger.of(recorder, name="random", engine="ckks")
    if two_parties:
        ledger = Ledger("random", "crypten", (*ledger.parties, Party("idle", ())), measured=True)
    resolution = time.get_clock_info("perf_counter").resolution * len(recorder.spans)
    total = pytest.approx(recorder.spans[-1].duration_s, rel=1e-9, abs=resolution)
    assert ledger.seconds == total
    assert sum(row.seconds_self for row in ledger.rows) == total
    assert sum(ledger.phases.values()) == total


def test_phases_that_did_not_occur_are_absent_and_the_others_in_order() -> None:
    assert ckks().phases == {"setup": 1, "keys": 8, "encrypt": 2, "online": 10.25, "refresh": 3, "decrypt": 0.5}
    assert list(ckks().phases) == [phase for phase in PHASES if phase != "offline"]
    assert ckks().seconds == 24.75


def test_the_slowest_party_gives_the_seconds_and_traffic_is_summed() -> None:
    ledger = mpc()
    assert ledger.phases == {"setup": 1.25, "offline": 1.0, "online": 8.0}
    assert ledger.seconds == 10.25 == sum(row.seconds_self for row in ledger.rows)
    assert {name: ledger.total(name) for name in ("rounds", "bytes_sent", "dealer_bytes", "products")} == {
        "rounds": 2, "bytes_sent": 4000, "dealer_bytes": 800, "products": 7,
    }  # fmt: skip
    assert ledger.total("bytes_sent", phase="offline") == 0
    linear = next(row for row in ledger.rows if row.op == "linear")
    assert (linear.seconds_self, linear.counts) == (8.0, {"rounds": 2, "bytes_sent": 4000, "products": 7})


def test_phases_that_the_slowest_party_never_entered_come_from_the_other() -> None:
    client = Party("client", (row("", "encrypt", "encrypt", 1.0), row("", "decrypt", "decrypt", 0.5)))
    evaluator = Party("evaluator", (row("head", "linear", "online", 4.0),))
    ledger = Ledger("two roles", "ckks", (client, evaluator), measured=True)
    assert ledger.phases == {"encrypt": 1.0, "online": 4.0, "decrypt": 0.5}
    assert ledger.seconds == sum(row.seconds_self for row in ledger.rows) == 5.5


def test_a_missing_count_is_none_where_nobody_keeps_it_and_0_where_the_engine_does() -> None:
    ledger = ckks()
    scores = next(row for row in ledger.rows if row.op == "scores")
    encrypt = next(row for row in ledger.rows if row.op == "make_encrypt")
    assert (ledger.count(scores, "rounds"), ledger.count(scores, "pt_products")) == (0, 0)
    assert (ledger.count(scores, "dealer_bytes"), ledger.total("dealer_bytes")) == (None, None)
    assert (ledger.count(encrypt, "bytes_sent"), ledger.count(encrypt, "ct_products")) == (None, 0)
    assert (ledger.total("rounds", phase="online"), ledger.total("rounds", phase="keys")) == (0, None)
    assert (ledger.total("ct_products"), ledger.total("ct_products", region="layer.0/ffn")) == (812, 300)
    assert ledger.total("ct_products", region="layer") is None


def test_counts_of_an_unknown_engine_are_those_found() -> None:
    party = Party("evaluator", (row("", "gate", "online", 1.0, bootstraps=3),))
    ledger = Ledger("new", "tfhe", (party,), measured=True)
    assert ledger.counted == ("bootstraps",)
    assert to_json(ledger)["total"]["bootstraps"] == 3
    assert to_json(ledger)["events"][0]["bootstraps"] == 3


def test_a_ledger_keeps_what_it_was_made_of() -> None:
    recorder = ckks_recorder()
    ledger = Ledger.of(recorder, name="run", engine="ckks")
    with recorder.region("head"), recorder.op("linear"):
        recorder.primitive("pt_products", times=99, seconds=9.0)
    assert (ledger.seconds, ledger.total("pt_products")) == (24.75, 2368)


def test_every_count_of_the_engines_is_reported() -> None:
    assert set(COUNTS) == {name for names in ENGINE_COUNTS.values() for name in names}


# ---- tables -------------------------------------------------------------------------------------------------


def test_breakdown_says_unknown_and_none_apart() -> None:
    table = breakdown_table(ckks())
    rows = cells(table)
    assert list(rows)[:2] == ["(top) make_keys keys", "layer.0/ffn/gelu polynomial online"]
    assert rows["(top) make_keys keys"]["sent"] == rows["(top) make_keys keys"]["rounds"] == "--"
    assert rows["layer.0/ffn/gelu polynomial online"] == {
        "region": "layer.0/ffn/gelu", "op": "polynomial", "phase": "online", "calls": "1", "self": "6.00 s",
        "share": "24.2 %", "levels": "7→5", "ct×ct": "300", "ct×pt": "2,048", "rotat.": "0", "relin.": "0",
        "rescal.": "0", "rounds": "0", "sent": "0",
    }  # fmt: skip
    assert rows["layer.0/attention refresh refresh"]["levels"] == "--"
    assert rows["layer.0/attention refresh refresh"]["sent"] == "160 MiB"
    assert rows["total"]["self"] == "24.8 s"
    assert (rows["total"]["share"], rows["total"]["ct×ct"], rows["total"]["rounds"]) == ("100.0 %", "812", "1")
    text = printed(table)
    assert "power-softmax-ckks on ckks, modelled, by operation" in text
    assert "dealer" not in text
    assert "nan" not in text.lower()


def test_breakdown_sums_what_is_below_the_top() -> None:
    rows = cells(breakdown_table(ckks(), top=2))
    assert list(rows) == ["(top) make_keys keys", "layer.0/ffn/gelu polynomial online", "16 more", "total"]
    assert tuple(rows["16 more"][heading] for heading in ("self", "ct×ct", "sent")) == ("10.8 s", "512", "160 MiB")
    assert cells(breakdown_table(ckks(), top=100)) == cells(breakdown_table(ckks()))


def test_columns_an_engine_cannot_have_are_left_out() -> None:
    shared = set(cells(breakdown_table(mpc()))["total"])
    assert {"rounds", "sent", "dealer"} <= shared
    assert shared.isdisjoint({"levels", "ct×ct", "ct×pt", "rotat.", "relin.", "rescal."})
    clear = Ledger("clear", "plaintext", (Party("here", (row("embed", "linear", "online", 1.0),)),), measured=True)
    assert list(cells(breakdown_table(clear))["total"]) == ["region", "op", "phase", "calls", "self", "share"]


def test_error_bits_are_shown_where_asked_for() -> None:
    events = (row("embed", "linear", "online", 1.0), row("head", "linear", "online", 1.0))
    events[0].error_bits = -21.25
    table = cells(breakdown_table(Ledger("run", "ckks", (Party("evaluator", events),), measured=True)))
    assert table["embed linear online"]["error bits"] == "-21.2"
    assert table["head linear online"]["error bits"] == table["total"]["error bits"] == "--"


@pytest.mark.parametrize("width", [70, 80, 100, 120, 200])
def test_a_narrow_table_leaves_columns_out_and_cuts_no_figure(width: int) -> None:
    for table, whole in ((breakdown_table(ckks(), width=width), 130), (region_table(ckks(), width=width), 115)):
        text = printed(table, width)
        assert "…" not in text
        assert "layer.0/ffn/gelu" in text
        assert max(map(len, text.splitlines())) <= width
        assert ("left out for width: rescal." in " ".join(text.split())) == (width < whole)


def test_regions_hold_the_regions_inside_them() -> None:
    rows = cells(region_table(ckks(layers=2)))
    assert list(rows) == [
        "(top)", "layer.0", "layer.0/attention", "layer.0/ffn", "layer.0/ffn/gelu",
        "layer.1", "layer.1/attention", "layer.1/ffn", "layer.1/ffn/gelu", "head", "total",
    ]  # fmt: skip
    assert [rows["layer.0"][heading] for heading in ("online", "refresh", "all")] == ["10.0 s", "3.00 s", "13.0 s"]
    assert (rows["layer.1/attention"]["all"], rows["layer.1/attention"]["ct×ct"]) == ("7.00 s", "512")
    assert (rows["head"]["refresh"], rows["head"]["ct×pt"]) == ("--", "320")
    assert (rows["total"]["all"], rows["(top)"]["all"]) == ("37.8 s", "11.5 s")
    assert "keys" not in rows["total"]


def test_who_serves_the_parties_is_in_a_table_of_roles_and_in_no_sum() -> None:
    dealer = Party(
        "dealer", (row("", "wait", "offline", 90.0), row("product", "derive", "offline", 4.0, dealer_macs=9))
    )
    beside = Ledger("power-softmax-mpc", "crypten", mpc().parties, measured=True, beside=(dealer,))
    assert (beside.phases, beside.rows, beside.counted) == (mpc().phases, mpc().rows, mpc().counted)
    assert beside.total("dealer_macs") == mpc().total("dealer_macs") == 0
    assert network_seconds(beside, WAN) == network_seconds(mpc(), WAN)
    rows = cells(role_table(beside))
    assert list(rows) == ["party 0", "party 1", "dealer"]
    assert rows["dealer"] == {
        "role": "dealer", "setup": "--", "offline": "4.00 s", "online": "--", "waiting": "90.0 s", "all": "94.0 s",
    }  # fmt: skip
    assert (rows["party 1"]["online"], rows["party 1"]["waiting"]) == ("8.00 s", "0")


def test_messages_are_waiting_and_not_work() -> None:
    events = (row("embed", "linear", "online", 5.0, rounds=2), row("embed", "deal", "offline", 2.0))
    events[0].primitive_s = {"rounds": 1.5, "macs": 2.0}
    events[1].primitive_s = {"dealer_bytes": 2.5}  # measured around more than the operation itself
    (one,) = busy(Ledger("run", "crypten", (Party("party 0", events),), measured=True))
    assert (one.phases, one.waiting_s, one.seconds) == ({"offline": 0.0, "online": 3.5}, 3.5, 7.0)


def test_phases_print_unknown_where_they_did_not_occur() -> None:
    rows = cells(phase_table(ckks()))
    assert list(rows) == [*PHASES, "total"]
    assert rows["offline"] == {"phase": "offline", "seconds": "--", "share": "--", "rounds": "--", "sent": "--"}
    assert list(rows["refresh"].values()) == ["refresh", "3.00 s", "12.1 %", "1", "160 MiB"]
    assert (rows["online"]["sent"], rows["keys"]["sent"], rows["total"]["seconds"]) == ("0", "--", "24.8 s")
    assert "measured" in printed(phase_table(mpc()))


def test_an_empty_ledger_makes_tables() -> None:
    empty = Ledger("nothing", "ckks", (Party("evaluator", ()),), measured=True)
    for table in (breakdown_table(empty), region_table(empty), phase_table(empty)):
        assert cells(table)["total"]["share"] == "--"


def test_units() -> None:
    figures = (0.0, 1.5e-6, 12.34e-6, 0.0123, 0.9999, 61.149, 1234.5, float("nan"), None)
    assert [units.seconds(s) for s in figures] == [
        "0", "1.50 µs", "12.3 µs", "12.3 ms", "1.00 s", "61.1 s", "1,234 s", "--", "--",
    ]  # fmt: skip
    amounts = (0, 512, 1536, 10 * MIB, 3 * 2**30, 5 * 2**40, None)
    assert [units.data(b) for b in amounts] == ["0", "512 B", "1.50 KiB", "10.0 MiB", "3.00 GiB", "5.00 TiB", "--"]
    assert [units.rate(b) for b in (3e9, 1e8, 5e3, 12)] == ["3 Gbit/s", "100 Mbit/s", "5 kbit/s", "12 bit/s"]
    assert (units.number(1234567), units.number(0), units.number(None)) == ("1,234,567", "0", "--")
    assert (units.share(1, 4), units.share(0.0, 4), units.share(None, 4)) == ("25.0 %", "0.0 %", "--")


# ---- JSON ---------------------------------------------------------------------------------------------------

EVENT_KEYS = {
    "region", "op", "phase", "party", "calls", "seconds_self", "seconds_total", "primitive_seconds",
    "level_in", "level_out", "error_bits", *COUNTS,
}  # fmt: skip


@pytest.mark.parametrize("ledger", [ckks(), mpc()], ids=["ckks", "crypten"])
def test_json_has_the_same_keys_for_every_engine(ledger: Ledger) -> None:
    document = json.loads(json.dumps(to_json(ledger), allow_nan=False))
    assert set(document) == {"measured", "phases", "total", "events", "roles", "beside"}
    assert list(document["phases"]) == list(PHASES)
    assert set(document["total"]) == {"seconds", *COUNTS}
    assert all(set(event) == EVENT_KEYS for event in document["events"])
    assert document["measured"] is ledger.measured
    assert document["total"]["seconds"] == ledger.seconds


def test_json_says_null_for_unknown() -> None:
    document = to_json(ckks())
    assert document["phases"]["offline"] is None
    assert [document["total"][name] for name in ("dealer_bytes", "rounds", "comparisons")] == [None, 1, None]
    by_op = {event["op"]: event for event in document["events"]}
    assert (by_op["scores"]["rounds"], by_op["make_keys"]["rounds"], by_op["scores"]["dealer_bytes"]) == (0, None, None)
    assert (by_op["scores"]["level_in"], by_op["refresh"]["level_in"], by_op["scores"]["error_bits"]) == (7, None, None)
    assert by_op["scores"]["primitive_seconds"] == {"additions": 4.0}
    assert by_op["scores"]["party"] == "evaluator"


def test_json_has_the_events_of_every_party() -> None:
    found = [(event["party"], event["op"], event["bytes_sent"]) for event in to_json(mpc())["events"]]
    assert found == [
        ("party 0", "connect", None), ("party 0", "deal", 0), ("party 0", "linear", 1000),
        ("party 1", "connect", None), ("party 1", "deal", 0), ("party 1", "linear", 3000),
    ]  # fmt: skip


def test_json_never_holds_nan() -> None:
    event = row("embed", "linear", "online", 1.0)
    event.error_bits = float("inf")
    document = to_json(Ledger("run", "ckks", (Party("evaluator", (event,)),), measured=True))
    assert document["events"][0]["error_bits"] is None


# ---- trace --------------------------------------------------------------------------------------------------


def traced() -> Ledger:
    recorders = [Recorder(trace=True) for _ in range(2)]
    for recorder in recorders:
        with recorder.phase("setup"), recorder.op("connect"):
            pass
        with recorder.region("embed"):
            for _ in range(20):
                with recorder.op("linear"), recorder.phase("offline"), recorder.op("deal"):
                    sum(range(500))
    parties = tuple(Party.of(f"party {i}", recorder) for i, recorder in enumerate(recorders))
    return Ledger("power-softmax-mpc", "crypten", parties, measured=True)


def test_a_trace_nests_and_names_its_parties(tmp_path: Path) -> None:
    ledger = traced()
    write_trace(ledger, tmp_path / "trace.json")
    document = json.loads((tmp_path / "trace.json").read_text())
    assert document["otherData"] == {
        "run": "power-softmax-mpc", "engine": "crypten", "how": "measured", "clock": ONE_CLOCK, "clock_error_us": 0.0,
    }  # fmt: skip
    heads = [e for e in document["traceEvents"] if e["ph"] == "M"]
    named = [(e["pid"], e["args"]["name"]) for e in heads if e["name"] == "process_name"]
    assert named == [(0, "party 0"), (1, "party 1")]
    for pid, party in enumerate(ledger.parties):
        spans = [e for e in document["traceEvents"] if e["ph"] == "X" and e["pid"] == pid]
        assert len(spans) == len(party.spans) == 2 + 1 + 20 * 3
        assert {e["cat"] for e in spans} == {"setup", "offline", "online"}
        assert {e["name"] for e in spans} == {"setup", "connect", "embed", "linear", "deal"}
        assert_nested(spans)
        longest = max(party.spans, key=lambda span: span.duration_s)
        assert max(e["dur"] for e in spans) == pytest.approx(1e6 * longest.duration_s, abs=0.002)


def assert_nested(spans: list[dict[str, Any]]) -> None:
    open_ends: list[float] = []
    for span in spans:
        while open_ends and open_ends[-1] <= span["ts"]:
            open_ends.pop()
        end = span["ts"] + span["dur"]
        assert not open_ends or end <= open_ends[-1] + 1e-6
        open_ends.append(end)


def test_what_two_recorders_saw_is_on_one_line(tmp_path: Path) -> None:
    """The second was made while the first was at work, and began after it had ended."""
    first = Recorder(trace=True)
    with first.op("early"):
        time.sleep(0.02)
        second = Recorder(trace=True)
        time.sleep(0.02)
    with second.op("late"):
        pass
    parties = (Party.of("first", first), Party.of("second", second))
    write_trace(Ledger("two", "crypten", parties, measured=True), tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    early, late = (e for e in events if e["ph"] == "X")
    assert early["ts"] == 0
    assert late["ts"] >= early["ts"] + early["dur"] >= 4e4
    apart = parties[1].origin_s + parties[1].spans[0].start_s - parties[0].origin_s - parties[0].spans[0].start_s
    assert late["ts"] == pytest.approx(1e6 * apart, abs=0.002)


def test_nesting_is_really_checked() -> None:
    with pytest.raises(AssertionError):
        assert_nested([{"ts": 0.0, "dur": 2.0}, {"ts": 1.0, "dur": 2.0}])


def test_no_time_line_and_no_place_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"power-softmax-mpc has no time line.*Recorder\(trace=True\)"):
        write_trace(mpc(), tmp_path / "trace.json")
    with pytest.raises(InputError, match="a modelled run has none"):
        write_trace(ckks(), tmp_path / "trace.json")
    with pytest.raises(InputError, match=r"cannot be written to .*No such file"):
        write_trace(traced(), tmp_path / "missing" / "trace.json")
    assert list(tmp_path.iterdir()) == []


# ---- plot ---------------------------------------------------------------------------------------------------


def test_parts_of_the_online_phase() -> None:
    assert [part(region) for region in ("embed", "layer.1/attention/softmax", "layer.1/ffn", "layer.1", "")] == [
        "embed", "layer.1/attention", "layer.1/ffn", "other", "other",
    ]  # fmt: skip
    assert parts(ckks(2)) == {
        "layer.0/attention": 4, "layer.0/ffn": 6, "layer.1/attention": 4, "layer.1/ffn": 6, "head": 0.25,
    }  # fmt: skip
    assert parts(ckks(2), layers_apart=False) == {"attention": 8, "ffn": 12, "head": 0.25}


@pytest.mark.parametrize("layers", [1, 3, 12])
def test_a_plot_is_a_png_of_some_size(tmp_path: Path, layers: int) -> None:
    pytest.importorskip("matplotlib")
    write_plot([ckks(layers), mpc()], tmp_path / "plot.png")
    image = (tmp_path / "plot.png").read_bytes()
    assert image[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", image[16:24])
    assert width > 1500
    assert height > 700
    assert len(image) > 20_000


def test_a_plot_says_what_it_shows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_plot([ckks(), mpc()], tmp_path / "plot.svg", described={"cpu": "Abacus", "cores": 1, "memory_bytes": 2**33})
    svg = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    texts = set(re.findall(r">([^<>\n]+)</text>", svg)) | set(re.findall(r">([^<>\n]+)</tspan>", svg))
    expected = ["layer.0/attention", "layer.0/ffn", "head", "offline", "refresh", "10.2 s", "24.8 s", "ckks, modelled"]
    assert set(expected) <= texts
    assert "Measured or modelled as said, on Abacus, 1 core, 8 GiB." in texts
    assert "crypten, measured" in texts


def test_plots_of_one_ledger_and_of_nothing_online(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    keys = Ledger("keys only", "ckks", (Party("client", (row("", "make", "keys", 1.0),)),), measured=True)
    for name, ledgers in (("one", [mpc()]), ("none", [keys]), ("both", [keys, ckks()])):
        write_plot(ledgers, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"plot\.pdf is neither; name it plot\.png"):
        write_plot([ckks()], tmp_path / "plot.pdf")
    with pytest.raises(InputError, match="no ledger to draw"):
        write_plot([], tmp_path / "plot.png")
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=r"pip install 'secureattn\[plot\]'"):
        write_plot([ckks()], tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []


def test_a_plot_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="cannot be written to"):
        write_plot([ckks()], tmp_path / "missing" / "plot.png")


def test_the_ledger_loads_neither_engines_nor_matplotlib() -> None:
    heavy = "('torch', 'tenseal', 'crypten', 'matplotlib')"
    code = f"import sys, secureattn.ledger as l; l.machine(); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- network and machine ------------------------------------------------------------------------------------


def test_network_arithmetic_by_hand() -> None:
    slow = Network("slow", bandwidth_bps=8e3, round_trip_s=0.5)
    # the busiest party online: 2 rounds, in which all send at once, and 3000 bytes at 1000 bytes a second
    assert network_seconds(mpc(), slow, phase="online") == pytest.approx(2 * 0.25 + 3.0)
    # party 0 offline: one request, there and back, and 800 bytes from the dealer
    assert network_seconds(mpc(), slow, phase="offline") == pytest.approx(0.5 + 0.8)
    assert network_seconds(mpc(), slow) == pytest.approx(2 * 0.25 + 0.5 + 3.0)
    assert network_seconds(mpc(), slow, phase="setup") == 0
    # under CKKS a round is a question and its answer
    assert network_seconds(ckks(), WAN) == pytest.approx(0.04 + 8 * 160 * MIB / 100e6)
    assert network_seconds(Ledger("none", "ckks", (), measured=True), LAN) == 0


def test_network_table_says_that_it_is_modelled() -> None:
    table = network_table(ckks(), [LAN, WAN])
    assert cells(table)["WAN"] == {
        "network": "WAN", "bandwidth": "100 Mbit/s", "round trip": "40.0 ms", "refresh": "13.5 s",
        "messages": "13.5 s", "with the run": "38.2 s",
    }  # fmt: skip
    assert "network modelled" in printed(table)
    assert list(cells(network_table(mpc(), [LAN]))["LAN"])[3:5] == ["offline", "online"]


def test_networks_by_name_and_file(tmp_path: Path) -> None:
    assert (load_network("lan"), load_network("WAN")) == (LAN, WAN)
    assert load_network("puma") == PUMA == Network("PUMA", 5e9, 0.001)
    file = tmp_path / "campus.toml"
    file.write_text("bandwidth_bps = 1_000_000_000\nround_trip_s = 0.002\n")
    assert load_network(file) == load_network(str(file)) == Network("campus", 1e9, 0.002)
    file.write_text('name = "office"\nbandwidth_bps = 1e9\nround_trip_s = 0\n')
    assert load_network(file) == Network("office", 1e9, 0.0)


def test_bad_networks_list_every_violation(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text('name = 3\nbandwidth_bps = 0\nround_trip_s = "80 ms"\nlatency = 1\n')
    with pytest.raises(InputError) as caught:
        load_network(file)
    named = ("name must be text", "bandwidth_bps must be a number above 0, not 0", "'80 ms'", "latency is not known")
    assert all(violation in str(caught.value) for violation in named)
    file.write_text("round_trip_s = -1.0")
    with pytest.raises(InputError, match=r"bandwidth_bps is missing; round_trip_s must be .* at least 0, not -1\.0"):
        load_network(file)
    file.write_text("bandwidth_bps = = 1")
    with pytest.raises(InputError, match="cannot be read"):
        load_network(file)
    with pytest.raises(InputError, match=r"no network is called 'moon'.*there are lan, wan, puma"):
        load_network("moon")


def test_machine_describes_itself() -> None:
    described = machine()
    assert set(described) == {
        "cpu", "cores", "memory_bytes", "platform", "python", "numpy", "torch", "tenseal", "crypten",
    }  # fmt: skip
    assert described["cores"] >= 1
    assert described["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert described["numpy"]
    json.dumps(described, allow_nan=False)
