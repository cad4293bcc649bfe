"""The costs measured on this machine, in a file of the user's cache. Needs no engine.

Another machine's figures would be worse than typical ones: the file says which processor, how many cores and which
TenSEAL it was made on, and is not used elsewhere.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from secureattn.backends.ckks import processes
from secureattn.backends.ckks.costs import PRIMITIVES, RATES, TYPICAL, Coefficients, Costs
from secureattn.backends.ckks.parameters import MAX_MODULUS_BITS
from secureattn.errors import InputError

_FORMAT = 2


def path() -> Path:
    """``$XDG_CACHE_HOME/secureattn/ckks-costs.json``, in ``~/.cache`` where that is not set."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "secureattn" / "ckks-costs.json"


def current() -> Costs:
    """This machine's costs where they were measured, else typical ones; a damaged file is ignored with a warning."""
    try:
        return load(path()) or TYPICAL
    except InputError as error:
        logging.getLogger(__name__).warning("secureattn: warning: %s", error)
        return TYPICAL


def save(costs: Costs, file: Path) -> None:
    """Write costs measured on this machine, the folder with them where it is missing."""
    document = {"format": _FORMAT, "machine": machine(), **as_json(costs)}
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    draft.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(file)


def load(file: Path) -> Costs | None:
    """Costs from a file; None where there is none, or one of another machine or version; InputError where damaged."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if (document["format"], document["machine"]) != (_FORMAT, machine()):
            return None
        datetime.date.fromisoformat(document["date"])
        return costs_of(document)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is damaged and not used; run secureattn plan --calibrate, which writes it again"
        ) from error


def as_json(costs: Costs) -> dict[str, Any]:
    """Costs as JSON."""
    rings = {name: {str(ring): row for ring, row in rows.items()} for name, rows in costs.primitives.items()}
    return {"date": costs.measured, "primitives": rings, "rates": dict(costs.rates)}


def costs_of(document: Any) -> Costs:
    """Costs from what ``as_json`` gave; ValueError, KeyError or TypeError where it is damaged."""
    primitives = {name: _rings(document["primitives"][name]) for name in PRIMITIVES}
    rates = {name: _number(document["rates"][name]) for name in RATES}
    if min(rates.values()) < 0:
        raise ValueError("a rate is negative")
    return Costs(primitives, rates, str(document["date"]))


def machine() -> dict[str, Any]:
    """What costs depend on."""
    return {"cpu": _processor(), "cores": processes.cores(), "tenseal": _tenseal()}


def _rings(rows: dict[str, list[float]]) -> dict[int, Coefficients]:
    rings = {}
    for ring, row in rows.items():
        a, b, c = map(_number, row)
        if int(ring) not in MAX_MODULUS_BITS or not (a + b + c > 0 and b >= 0 and c >= 0):
            raise ValueError(f"coefficients {row} give no seconds on ring {ring}")
        rings[int(ring)] = (a, b, c)
    if not rings:
        raise ValueError("no ring was measured")
    return rings


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _tenseal() -> str | None:
    try:
        return version("tenseal")
    except PackageNotFoundError:
        return None
