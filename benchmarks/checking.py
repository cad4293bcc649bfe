"""What the benchmarks' reports share: a check of a figure, and the document around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secureattn.ledger.machine import machine

Part = Mapping[str, Any]
"""Raw samples of one part."""
Check = dict[str, Any]
"""``name``, ``value``, ``bar``, and ``ok``, whether it is met."""


def at_least(name: str, value: float, bar: float) -> Check:
    """A figure that must not lie below its bar."""
    return {"name": name, "value": value, "bar": bar, "ok": bool(value >= bar)}


def at_most(name: str, value: float, bar: float) -> Check:
    """A figure that must not lie above its bar."""
    return {"name": name, "value": value, "bar": bar, "ok": bool(value <= bar)}


def described(parts: Mapping[str, Part], checks: Sequence[Check], *, quick: bool, **more: Any) -> dict[str, Any]:
    """Everything, as JSON: machine, raw samples by part, the checks computed from them, and what a report adds."""
    about = {"schema": 1, "quick": quick, "machine": machine(), "checks": list(checks)}
    return {**about, **more, "parts": dict(parts)}
