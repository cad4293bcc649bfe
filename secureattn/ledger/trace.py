"""A run on a time line, in Chrome's trace event format: open it in Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from secureattn.errors import InputError
from secureattn.events import Span
from secureattn.ledger.ledger import Ledger, Party


def write_trace(ledger: Ledger, path: str | Path) -> None:
    """Write complete events ("ph": "X", microseconds) with pid = party.

    Each party's time starts when its recorder was made, so parties' time lines may be shifted against each other by
    the time between their starts. Raises InputError where nothing was traced. Source: Trace Event Format (Google).
    """
    if not any(party.spans for party in ledger.parties):
        why = "record with Recorder(trace=True)" if ledger.measured else "a modelled run has none; trace a real one"
        raise InputError(f"{ledger.name} has no time line to trace; {why}")
    events = [event for pid, party in enumerate(ledger.parties) for event in _party(pid, party)]
    document = {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"run": ledger.name, "engine": ledger.engine, "how": ledger.how},
    }
    try:
        Path(path).write_text(json.dumps(document, allow_nan=False, separators=(",", ":")), encoding="utf-8")
    except OSError as error:
        raise InputError(f"the trace cannot be written to {path}: {error.strerror or error}") from error


def _party(pid: int, party: Party) -> list[dict[str, Any]]:
    named = [("process_name", {"name": party.name}), ("process_sort_index", {"sort_index": pid})]
    named.append(("thread_name", {"name": "operations"}))
    heads: list[dict[str, Any]] = [{"ph": "M", "name": n, "pid": pid, "tid": 0, "args": args} for n, args in named]
    # the outer of two spans that start together comes first
    spans = sorted(party.spans, key=lambda span: (span.start_s, -span.duration_s))
    return heads + [_complete(pid, span) for span in spans]


def _complete(pid: int, span: Span) -> dict[str, Any]:
    # both ends are rounded to whole nanoseconds, not the duration, so that nested spans stay nested
    start, end = round(span.start_s * 1e9), round((span.start_s + span.duration_s) * 1e9)
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
