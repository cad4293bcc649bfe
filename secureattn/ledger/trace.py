"""A run on a time line, in Chrome's trace event format: open it in Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secureattn.errors import InputError
from secureattn.events import Span
from secureattn.ledger.ledger import Ledger, Party
from secureattn.ledger.roles import roles

ONE_CLOCK = "the monotonic clock that all processes of this machine share"
FIRST_CLOCK = "the first process's, as estimated over the connection"


def write_trace(ledger: Ledger, path: str | Path) -> None:
    """Write complete events ("ph": "X", microseconds) with pid = role, all on one time line from the first event on.

    Raises InputError where nothing was traced. Source: Trace Event Format (Google).
    """
    there = [party for party in roles(ledger) if party.spans]
    if not there:
        why = "record with Recorder(trace=True)" if ledger.measured else "a modelled run has none; trace a real one"
        raise InputError(f"{ledger.name} has no time line to trace; {why}")
    start_s = min(party.origin_s + span.start_s for party in there for span in party.spans)
    events = [event for pid, party in enumerate(roles(ledger)) for event in _role(pid, party, start_s)]
    _write(path, events, {**_about(ledger), "clock": ONE_CLOCK, "clock_error_us": 0.0})


def write_part(ledger: Ledger, path: str | Path, *, pid: int, error_s: float) -> None:
    """Write the time line of one process of several, to be joined with the others': on the first process's clock, with
    a bound of how far off it may be.
    """
    (party,) = ledger.parties
    error = {"clock": FIRST_CLOCK, "clock_error_us": round(error_s * 1e6, 3)}
    _write(path, _role(pid, party, 0.0), {**_about(ledger), **error})


def join(paths: Sequence[Path], path: Path) -> float:
    """Write the parts of one run as one time line; by how many microseconds any of them may be off.

    Raises InputError for what is no part, for parts of several runs, and for a process that is there twice.
    """
    parts = [_read_part(one) for one in paths]
    first = parts[0]["otherData"]
    for one, part in zip(paths, parts, strict=True):
        if part["otherData"]["run"] != first["run"]:
            raise InputError(
                f"{one} is of {part['otherData']['run']!r}, {paths[0]} of {first['run']!r}; join one run's"
            )
    owners = [{event["pid"] for event in part["traceEvents"]} for part in parts]
    if sum(map(len, owners)) > len(set().union(*owners)):
        raise InputError(f"a process is in more than one of {', '.join(map(str, paths))}; give each part once")
    events = [event for part in parts for event in part["traceEvents"]]
    start = min((event["ts"] for event in events if event["ph"] == "X"), default=0.0)
    moved = [{**event, "ts": round(event["ts"] - start, 3)} if event["ph"] == "X" else event for event in events]
    error = max(part["otherData"]["clock_error_us"] for part in parts)
    _write(path, moved, {**first, "clock_error_us": error})
    return float(error)


def _about(ledger: Ledger) -> dict[str, Any]:
    return {"run": ledger.name, "engine": ledger.engine, "how": ledger.how}


def _write(path: str | Path, events: list[dict[str, Any]], about: dict[str, Any]) -> None:
    document = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}
    try:
        Path(path).write_text(json.dumps(document, allow_nan=False, separators=(",", ":")), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the trace cannot be written to {path}: {error.strerror or error}") from error


def _role(pid: int, party: Party, start_s: float) -> list[dict[str, Any]]:
    named = [("process_name", {"name": party.name}), ("process_sort_index", {"sort_index": pid})]
    named.append(("thread_name", {"name": "operations"}))
    heads: list[dict[str, Any]] = [{"ph": "M", "name": n, "pid": pid, "tid": 0, "args": args} for n, args in named]
    # the outer of two spans that start together comes first
    spans = sorted(party.spans, key=lambda span: (span.start_s, -span.duration_s))
    return heads + [_complete(pid, span, party.origin_s - start_s) for span in spans]


def _complete(pid: int, span: Span, later_s: float) -> dict[str, Any]:
    # both ends are rounded to whole nanoseconds, not the duration, so that nested spans stay nested
    begins = later_s + span.start_s
    start, end = round(begins * 1e9), round((begins + span.duration_s) * 1e9)
    return {
        "ph": "X",
        "name": (span.region or span.phase) if span.op == "other" else span.op,
        "cat": span.phase,
        "ts": start / 1000,
        "dur": (end - start) / 1000,
        "pid": pid,
        "tid": 0,
        "args": {"region": span.region, "op": span.op, "phase": span.phase},
    }


def _read_part(path: Path) -> dict[str, Any]:
    found: Any
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a trace: {' '.join(str(error).split())}") from error
    about = found.get("otherData") if isinstance(found, dict) else None
    if not isinstance(about, dict) or about.get("clock") != FIRST_CLOCK or not isinstance(about.get("run"), str):
        raise InputError(f"{path} is no time line of one process; write it with secureattn party --trace")
    events = found.get("traceEvents")
    if not _number(about.get("clock_error_us")) or not isinstance(events, list) or not all(map(_event, events)):
        raise InputError(f"{path} is damaged: its events are not as secureattn party writes them")
    return {"traceEvents": events, "otherData": about}


def _event(event: Any) -> bool:
    if not isinstance(event, dict) or type(event.get("pid")) is not int:
        return False
    return event.get("ph") == "M" or (event.get("ph") == "X" and _number(event.get("ts")) and _number(event.get("dur")))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is no number")
