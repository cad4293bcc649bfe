"""Approximations. A function is a file: its true form ``TRUE``, its ``REALISATIONS`` by kind, where its argument may
lie (``RANGE``). Attention variants are in ``attention``. Files are found by themselves: to add one is to write one.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import pkgutil
from collections.abc import Mapping
from numbers import Integral, Real
from types import ModuleType
from typing import Any

from secureattn.approx import realisation
from secureattn.approx.realisation import Interval, Realisation
from secureattn.errors import InputError, PlanError, RangeError


def _modules() -> dict[str, ModuleType]:
    found = (importlib.import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__))
    return {module.__name__.rsplit(".", 1)[-1]: module for module in found if hasattr(module, "TRUE")}


FUNCTIONS = _modules()
"""Function name → the module that holds its realisations (``REALISATIONS``) and its true form (``TRUE``)."""

__all__ = ["FUNCTIONS", "Interval", "Realisation", "exact", "named", "realise", "violations"]


def exact(function: str) -> Realisation:
    """The true function; only the plaintext engine's exact mode can run it."""
    return realisation.exact(function, FUNCTIONS[function].TRUE)


def realise(function: str, options: Mapping[str, Any], interval: Interval) -> Realisation:
    """The realisation ``options["kind"]`` of a function on an interval; the other options are its arguments, but for
    ``beyond``: the kind that serves intervals on which the first misses its ``error``, with the same one.

    Raises InputError for an unknown function, kind or option, RangeError when the interval leaves the domain. Fits take
    a tenth of a second: the same realisation is made once a process.
    """
    wrong = violations(function, options)
    if wrong:
        raise InputError("; ".join(wrong))
    if options["kind"] == "exact":
        return exact(function)
    ends = float(interval[0]), float(interval[1])
    asked = {name: value for name, value in options.items() if name != "beyond"}
    try:
        return _made(function, ends, tuple(sorted(asked.items())))
    except RangeError:
        if "beyond" not in options:
            raise
    return _made(function, ends, (("error", options["error"]), ("kind", options["beyond"])))


@functools.lru_cache(maxsize=4096)
def _made(function: str, interval: Interval, options: tuple[tuple[str, Any], ...]) -> Realisation:
    arguments = dict(options)
    try:
        made: Realisation = FUNCTIONS[function].REALISATIONS[arguments.pop("kind")](interval, **arguments)
    except (PlanError, TypeError, ValueError) as error:
        raise RangeError(str(error)) from error
    if not made.covers(interval):
        raise RangeError(
            f"{made.label} holds on [{made.domain[0]:.4g}, {made.domain[1]:.4g}], the calibrated range is "
            f"[{interval[0]:.4g}, {interval[1]:.4g}]; widen its domain or retrain with a range penalty"
        )
    return made


def named(function: str, offered: Mapping[str, Any]) -> Any:
    """What is offered for a function, or else for the one it is a form of (``LIKE``), or None."""
    return offered.get(function, offered.get(getattr(FUNCTIONS[function], "LIKE", function)))


def violations(function: str, options: Mapping[str, Any]) -> list[str]:
    """What is wrong with a realisation's description, one sentence each; empty when it can be built."""
    if function not in FUNCTIONS:
        return [f"unknown function {function!r}, known are {', '.join(sorted(FUNCTIONS))}"]
    kinds = FUNCTIONS[function].REALISATIONS
    kind = options.get("kind")
    if kind == "exact":
        return [f"{function}: exact takes no option {name!r}" for name in options if name != "kind"]
    if not isinstance(kind, str) or kind not in kinds:
        return [f"{function}: kind {kind!r} is none of exact, {', '.join(sorted(kinds))}"]
    known = {name: p for name, p in inspect.signature(kinds[kind]).parameters.items() if name != "domain"}
    found = []
    for name, value in options.items():
        if name == "kind":
            continue
        if name == "beyond":
            found += _beyond(function, options)
            continue
        if name not in known:
            found.append(f"{function}({kind}): unknown option {name!r}, it takes {', '.join(known) or 'none'}")
            continue
        whole = "float" not in str(known[name].annotation)
        if not _number(value, whole=whole):
            wanted = "a whole number of at least 0" if whole else "a positive number"
            found.append(f"{function}({kind}): {name} must be {wanted}, not {value!r}")
    found += _sizes(f"{function}({kind})", known, options)
    return found


def _beyond(function: str, options: Mapping[str, Any]) -> list[str]:
    """Another kind takes over by the error that both are asked for."""
    kind, beyond, kinds = options["kind"], options["beyond"], FUNCTIONS[function].REALISATIONS
    if "error" not in options:
        return [f"{function}({kind}): beyond, a kind for wider ranges, goes with an error that both are to reach"]
    others = [k for k in sorted(kinds) if k != kind and "error" in inspect.signature(kinds[k]).parameters]
    if beyond not in others:
        return [f"{function}({kind}): beyond must be one of {', '.join(others) or 'none'}, not {beyond!r}"]
    return []


def _sizes(subject: str, known: Mapping[str, inspect.Parameter], options: Mapping[str, Any]) -> list[str]:
    """A size and an error exclude each other; without a default size one of them is needed."""
    size = next((name for name in ("degree", "harmonics") if name in known), None)
    if size is None or "error" not in known:
        return []
    neither = size not in options and "error" not in options and known[size].default is None
    if neither or (size in options and "error" in options):
        what = "a degree" if size == "degree" else size
        return [f"{subject} needs either {what} or an error, not both or neither"]
    return []


def _number(value: object, *, whole: bool) -> bool:
    if isinstance(value, bool):
        return False
    if whole:
        return isinstance(value, Integral) and int(value) >= 0
    return isinstance(value, Real) and 0 < float(value) < math.inf
