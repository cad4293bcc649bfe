"""One time line: all processes of a run on shares, the dealer among them, on one machine and with clocks apart."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secureattn import load_model, load_protocol, make_plan
from secureattn.backends.crypten.clocks import TIMES, Offset, compared, identity
from secureattn.backends.crypten.meeting import Address
from secureattn.backends.crypten.transport import Mesh
from secureattn.cli import main
from secureattn.errors import InputError
from secureattn.ledger import Ledger, Party, busy, roles, to_json, write_trace
from secureattn.ledger.trace import FIRST_CLOCK, join
from secureattn.runs import Run, execute

needs_crypten = pytest.mark.skipif(importlib.util.find_spec("crypten") is None, reason="CrypTen is not installed")
MODEL, SAMPLES = "digits-vit", 4
LIMIT_S = 60.0
OWNER, CLIENT, DEALER = range(3)
Events = list[dict[str, Any]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def spans(events: Events, pid: int, **wanted: str) -> Events:
    """A role's spans that have these arguments, in order."""
    found = [e for e in events if e["ph"] == "X" and e["pid"] == pid]
    return [e for e in found if all(e["args"][name] == value for name, value in wanted.items())]


def end(event: dict[str, Any]) -> float:
    return float(event["ts"] + event["dur"])


def assert_messages_go_forward(events: Events, *, slack_us: float = 0.0) -> None:
    """Nobody has what is sent to him before it was: requests to the dealer, his answers, and the result."""
    asked = spans(events, OWNER, op="deal")
    heard = spans(events, DEALER, op="wait")
    assert len(heard) > 2
    assert asked[0]["ts"] <= end(heard[0]) + slack_us  # the first request was heard after the owner began to ask
    assert end(heard[-1]) + slack_us >= max(e["ts"] for e in spans(events, OWNER, op="deal"))  # "stop" comes last
    dealt = spans(events, DEALER, op="deliver")
    assert dealt[0]["ts"] <= end(asked[-1]) + slack_us
    for one in spans(events, DEALER, op="derive"):
        assert any(asking["ts"] <= one["ts"] + slack_us for asking in asked)
    shown, revealed = (spans(events, party, op="reveal", phase="decrypt")[-1] for party in (OWNER, CLIENT))
    assert shown["ts"] <= end(revealed) + slack_us
    assert revealed["ts"] <= end(spans(events, CLIENT)[-1]) + slack_us
    linked = [spans(events, pid, op="connect")[0] for pid in range(3)]
    assert max(e["ts"] for e in linked) <= min(map(end, linked)) + slack_us  # each waits there for all


# ---- one machine ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run() -> Run:
    model = load_model(MODEL)
    plan = make_plan(model, load_protocol("power-softmax-mpc"), samples=SAMPLES)
    return execute(plan, model.samples(SAMPLES)[0], trace=True)


@pytest.fixture
def line(run: Run, tmp_path: Path) -> dict[str, Any]:
    write_trace(run.ledger, tmp_path / "t.json")
    return dict(json.loads((tmp_path / "t.json").read_text()))


@needs_crypten
def test_parties_and_dealer_are_on_one_line(line: dict[str, Any]) -> None:
    events = line["traceEvents"]
    named = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert named == {OWNER: "model owner", CLIENT: "client", DEALER: "dealer"}
    assert min(e["ts"] for e in events if e["ph"] == "X") == 0
    assert line["otherData"]["clock_error_us"] == 0
    assert "share" in line["otherData"]["clock"]
    assert_messages_go_forward(events)


@needs_crypten
@pytest.mark.parametrize(("pid", "later_us"), [(DEALER, 2e7), (DEALER, -2e7), (CLIENT, 2e7), (CLIENT, -2e7)])
def test_a_shifted_role_would_be_noticed(line: dict[str, Any], pid: int, later_us: float) -> None:
    moved = [{**e, "ts": e["ts"] + later_us} if e["ph"] == "X" and e["pid"] == pid else e for e in line["traceEvents"]]
    with pytest.raises(AssertionError):
        assert_messages_go_forward(moved)


@needs_crypten
def test_the_dealer_deals_what_the_parties_count(run: Run) -> None:
    (dealer,) = run.ledger.beside

    def dealt(name: str) -> int:
        return sum(event.counts.get(name, 0) for event in dealer.events)

    assert dealt("dealer_bytes") == run.ledger.total("dealer_bytes") > 0
    assert dealt("dealer_requests") == run.total("dealer_requests", party=OWNER) + 1  # and "stop"
    assert dealt("dealer_macs") == run.total("dealer_macs", party=OWNER) > 0
    by_party = [run.total("keystream_bytes", party=party) for party in (OWNER, CLIENT)]
    assert dealt("keystream_bytes") == sum(by_party) > 0
    assert {event.op for event in dealer.events} == {
        "other",
        "connect",
        "deal_keys",
        "wait",
        "expand",
        "derive",
        "deliver",
    }
    assert {event.region for event in dealer.events} >= {"", "fix", "matmul_fixed", "truncate"}


@needs_crypten
def test_the_dealer_is_in_no_total(run: Run) -> None:
    ledger = run.ledger
    alone = Ledger(ledger.name, ledger.engine, ledger.parties, measured=True)
    assert (ledger.phases, ledger.seconds, ledger.rows) == (alone.phases, alone.seconds, alone.rows)
    with_dealer, without = to_json(ledger), to_json(alone)
    assert (with_dealer["total"], with_dealer["events"]) == (without["total"], without["events"])
    assert {event["party"] for event in with_dealer["beside"]} == {"dealer"}
    assert list(with_dealer["roles"]) == ["model owner", "client", "dealer"]


@needs_crypten
def test_every_role_is_at_work_or_waits(run: Run) -> None:
    for one, party in zip(busy(run.ledger), roles(run.ledger), strict=True):
        assert one.seconds == pytest.approx(party.seconds())
        assert one.waiting_s > 0
        assert all(seconds >= -1e-6 for seconds in one.phases.values())
    dealer = busy(run.ledger)[DEALER]
    waits = sum(e.seconds_self for e in run.ledger.beside[0].events if e.op == "wait")
    assert dealer.waiting_s == waits


@needs_crypten
def test_a_first_party_that_deals_has_nobody_beside() -> None:
    from secureattn.backends.crypten.launch import run_processes
    from secureattn.backends.crypten.parameters import MpcParameters

    results = run_processes("test_trace:nothing", [None, None], MpcParameters(dealer="tfp"), timeout_s=LIMIT_S)
    assert [result.rank for result in results] == [0, 1]
    assert all(0 < result.origin_s < time.perf_counter() for result in results)


def nothing(backend: Any, argument: Any) -> None:
    """What a party does there."""


# ---- clocks apart -----------------------------------------------------------------------------------------------


def ask_all(clocks: list[Callable[[], float]], names: list[str]) -> list[Offset]:
    with tempfile.TemporaryDirectory() as folder:

        def one(rank: int) -> Offset:
            store = Address(file=f"{folder}/meeting").store(wait_s=5.0)
            with Mesh.connect(store, rank=rank, size=len(clocks)) as mesh:
                return compared(mesh, names, clocks[rank])

        with ThreadPoolExecutor(len(clocks)) as pool:
            return list(pool.map(one, range(len(clocks))))


def test_an_offset_is_found_to_within_its_error() -> None:
    apart = [0.0, 1234.5, -98765.4321, 7.0]
    clocks = [lambda by=by: time.perf_counter() + by for by in apart]  # type: ignore[misc]
    first, *others = ask_all(clocks, ["a", "b", "c", ""])
    assert first == Offset(0.0, 0.0)
    for offset, by in zip(others, apart[1:], strict=True):
        assert 0 < offset.error_s < 0.1
        assert abs(offset.seconds + by) <= offset.error_s + 1e-8  # what is said is rounded to nanoseconds
    assert TIMES >= 4


def test_who_shares_the_first_clock_asks_nothing() -> None:
    def never() -> float:
        raise AssertionError("the clock was read")

    assert ask_all([never, never, never], ["same", "same", "same"]) == [Offset(0.0, 0.0)] * 3
    assert identity() == identity() != ""


def test_clocks_that_drift_add_to_the_error() -> None:
    """An offset that grows evenly from 1 to 1.004 s, measured to 1 ms at both ends, is within the bound all along."""
    draw = random.Random(7)
    for _ in range(100):
        before, after = (Offset(true + draw.uniform(-1e-3, 1e-3), 1e-3) for true in (1.0, 1.004))
        whole = before.along(after)
        assert all(abs(whole.seconds - (1.0 + 0.004 * t / 10)) <= whole.error_s + 1e-12 for t in range(11))
        assert whole.error_s < 4.1e-3
    assert Offset(2.0, 0.5).along(Offset(2.0, 0.25)) == Offset(2.0, 0.5)


# ---- parties of their own ---------------------------------------------------------------------------------------


def other_clocks() -> bool:
    """Whether processes with a clock of their own may be started here."""
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "--time", "--monotonic", "1", "--fork", "true"], capture_output=True).returncode == 0
    )


@needs_crypten
@pytest.mark.parametrize(
    "apart",
    [False, pytest.param(True, marks=pytest.mark.skipif(not other_clocks(), reason="no time namespaces here"))],
    ids=["one clock", "clocks apart"],
)
def test_three_commands_leave_one_line(tmp_path: Path, apart: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """With clocks apart, the client's is 5000 s ahead and the dealer's 300: true offsets, and estimated ones."""
    np.save(tmp_path / "in.npy", load_model(MODEL).samples(2)[0])
    rendezvous = f"127.0.0.1:{free_port()}"
    base = [sys.executable, "-m", "secureattn.cli", "party", MODEL, "accurate-mpc", "--rendezvous", rendezvous]
    files = ["--input", str(tmp_path / "in.npy"), "-o", str(tmp_path / "out.npy")]
    processes = []
    for rank, (name, ahead_s) in enumerate((("owner", 0), ("client", 5000), ("dealer", 300))):
        shifted = ["unshare", "--time", "--monotonic", str(ahead_s), "--fork"] if apart and ahead_s else []
        command = [*shifted, *base, "--rank", name, "--trace", str(tmp_path / f"{rank}.trace")]
        command += files if name == "client" else []
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    ends = [process.communicate(timeout=LIMIT_S) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    parts = [str(tmp_path / f"{rank}.trace") for rank in range(3)]
    assert main(["trace", *parts, "-o", str(tmp_path / "whole.json")]) == 0
    assert "3 processes in" in capsys.readouterr().out
    whole = json.loads((tmp_path / "whole.json").read_text())
    error_us = whole["otherData"]["clock_error_us"]
    assert 0 < error_us < 1e5 if apart else error_us == 0
    events = whole["traceEvents"]
    assert {e["pid"] for e in events} == {OWNER, CLIENT, DEALER}
    assert min(e["ts"] for e in events if e["ph"] == "X") == 0
    assert max(end(e) for e in events if e["ph"] == "X") < 1e6 * LIMIT_S  # not 5000 s
    assert_messages_go_forward(events, slack_us=2 * error_us)
    compare = spans(events, CLIENT, op="compare_clocks")
    assert len(compare) == 2  # before and after


def part(path: Path, pid: int, **changed: Any) -> Path:
    about = {"run": "a run", "clock": FIRST_CLOCK, "clock_error_us": 10.0 * pid, **changed}
    args = {"region": "", "op": "connect", "phase": "setup"}
    event = {
        "ph": "X",
        "name": "connect",
        "cat": "setup",
        "ts": 1e6 + pid,
        "dur": 2.0,
        "pid": pid,
        "tid": 0,
        "args": args,
    }
    path.write_text(json.dumps({"traceEvents": [event], "displayTimeUnit": "ms", "otherData": about}))
    return path


def test_parts_are_joined_from_the_first_event_on(tmp_path: Path) -> None:
    parts = [part(tmp_path / f"{pid}.json", pid) for pid in (2, 1)]
    assert join(parts, tmp_path / "whole.json") == 20.0
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert [(e["pid"], e["ts"]) for e in whole["traceEvents"]] == [(2, 1.0), (1, 0.0)]
    assert whole["otherData"] == {"run": "a run", "clock": FIRST_CLOCK, "clock_error_us": 20.0}


def test_what_is_no_part_is_refused(tmp_path: Path, run: Run) -> None:
    good, whole = part(tmp_path / "good.json", 0), tmp_path / "whole.json"
    write_trace(run.ledger, tmp_path / "line.json")
    for text, said in (
        (None, "cannot be read as a trace"),
        ("{", "cannot be read as a trace"),
        ("[]", "is no time line of one process"),
        (good.read_text().replace("10.0", "NaN").replace("0.0}", "NaN}"), "cannot be read as a trace: NaN"),
        (good.read_text().replace('"dur": 2.0', '"dur": "2"'), "is damaged"),
        (good.read_text().replace('"pid": 0', '"pid": null'), "is damaged"),
        ((tmp_path / "line.json").read_text(), "is no time line of one process; write it with secureattn party"),
    ):
        bad = tmp_path / "bad.json"
        if text is not None:
            bad.write_text(text)
        with pytest.raises(InputError, match=said):
            join([good, bad], whole)
    with pytest.raises(InputError, match="is of 'another'"):
        join([good, part(tmp_path / "1.json", 1, run="another")], whole)
    with pytest.raises(InputError, match="a process is in more than one of"):
        join([good, part(tmp_path / "1.json", 0)], whole)
    assert not whole.exists()


def test_roles_of_a_run_with_one_party_are_that_party() -> None:
    party = Party("plaintext", ())
    assert roles(Ledger("clear", "plaintext", (party,), measured=True)) == (party,)
