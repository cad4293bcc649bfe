"""A ledger back from JSON, as ``to_json`` wrote it; whatever else a file may hold is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from secureattn.errors import InputError
from secureattn.events import PHASES, Event
from secureattn.ledger.ledger import COUNTS, Ledger, Party

_FIELDS = frozenset({
    "region", "op", "phase", "party", "calls", "seconds_self", "seconds_total", "primitive_seconds", "level_in",
    "level_out", "error_bits",
})  # fmt: skip


def from_json(document: dict[str, Any], *, name: str, engine: str) -> Ledger:
    """The ledger of ``events`` and ``beside``; InputError that names the first event, and what of it, is wrong.

    The time line is not in JSON, so it is not in the ledger either.
    """
    measured = document.get("measured")
    if not isinstance(measured, bool):
        raise InputError(f"measured must be true or false, not {_shown(measured)}")
    parties = _parties(document.get("events"), "events")
    beside = _parties(document.get("beside", []), "beside")  # files before there were any lack it
    return Ledger(name, engine, parties, measured=measured, beside=beside)


def _parties(found: Any, what: str) -> tuple[Party, ...]:
    if not isinstance(found, list):
        raise InputError(f"{what} must be a list, not {_shown(found)}")
    by_party: dict[str, list[Event]] = {}
    for number, one in enumerate(found):
        try:
            by_party.setdefault(_text(one, "party"), []).append(_event(one))
        except InputError as wrong:
            raise InputError(f"{what}[{number}]: {wrong}") from wrong
    return tuple(Party(name, tuple(events)) for name, events in by_party.items())


def _event(one: dict[str, Any]) -> Event:
    phase = _text(one, "phase")
    if phase not in PHASES:
        raise InputError(f"phase {phase!r} is none of {', '.join(PHASES)}")
    seconds = one.get("primitive_seconds", {})
    if not isinstance(seconds, dict):
        raise InputError(f"primitive_seconds must be an object, not {_shown(seconds)}")
    return Event(
        _text(one, "region"),
        _text(one, "op"),
        phase,
        calls=_count(one, "calls") or 0,
        seconds_self=_number(one, "seconds_self") or 0.0,
        seconds_total=_number(one, "seconds_total") or 0.0,
        counts={key: count for key in _others(one) if (count := _count(one, key)) is not None},
        primitive_s={key: spent for key in seconds if (spent := _number(seconds, key)) is not None},
        level_in=_count(one, "level_in"),
        level_out=_count(one, "level_out"),
        error_bits=_number(one, "error_bits"),
    )


def _others(one: dict[str, Any]) -> Iterable[str]:
    """What is counted: every known count, which must be one, and any other number; other keys are not ours to judge."""
    return (key for key in one if key in COUNTS or (key not in _FIELDS and type(one[key]) is int))


def _text(one: Any, key: str) -> str:
    value = one.get(key) if isinstance(one, dict) else None
    if not isinstance(value, str):
        raise InputError(f"{key} must be text, not {_shown(value)}")
    return value


def _count(one: dict[str, Any], key: str) -> int | None:
    value = one.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise InputError(f"{key} must be a whole number of at least 0 or null, not {_shown(value)}")
    return value


def _number(one: dict[str, Any], key: str) -> float | None:
    value = one.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{key} must be a number or null, not {_shown(value)}")
    return float(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
