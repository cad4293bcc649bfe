"""A ledger as JSON: null is unknown, and there is no NaN."""

from __future__ import annotations

import math
from typing import Any

from secureattn.events import PHASES, Event
from secureattn.ledger.ledger import COUNTS, Ledger
from secureattn.ledger.roles import busy


def to_json(ledger: Ledger) -> dict[str, Any]:
    """``measured``, ``phases`` (seconds), ``total`` (seconds and every count), ``events``, party by party, ``roles``
    (seconds of each by phase, and waiting) and ``beside``, the events of who serves the parties, in no total.

    All phases and counts are always there, so that files of different engines have the same keys; what did not occur
    or is not known is null. Counts stand beside the other fields of an event: ``event["ct_products"]``.
    """
    names = (*COUNTS, *(name for name in ledger.counted if name not in COUNTS))
    return {
        "measured": ledger.measured,
        "phases": {phase: _finite(ledger.phases.get(phase)) for phase in PHASES},
        "total": {"seconds": _finite(ledger.seconds), **{name: ledger.total(name) for name in names}},
        "events": [_event(ledger, party.name, event, names) for party in ledger.parties for event in party.events],
        "roles": {
            one.name: {"phases": one.phases, "waiting_seconds": one.waiting_s, "seconds": one.seconds}
            for one in busy(ledger)
        },
        "beside": [_event(ledger, party.name, event, names) for party in ledger.beside for event in party.events],
    }


def _event(ledger: Ledger, party: str, event: Event, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "region": event.region,
        "op": event.op,
        "phase": event.phase,
        "party": party,
        "calls": event.calls,
        "seconds_self": _finite(event.seconds_self),
        "seconds_total": _finite(event.seconds_total),
        **{name: ledger.count(event, name) for name in names},
        "primitive_seconds": {name: _finite(spent) for name, spent in event.primitive_s.items()},
        "level_in": event.level_in,
        "level_out": event.level_out,
        "error_bits": _finite(event.error_bits),
    }


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
