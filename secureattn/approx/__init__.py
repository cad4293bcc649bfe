"""Approximations, one family a file. ``realise`` builds one by name; ``FUNCTIONS`` says what there is."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from secureattn.approx import exp, gelu, reciprocal, rsqrt
from secureattn.approx.realisation import Interval, Realisation, exact
from secureattn.errors import InputError, PlanError, RangeError

FUNCTIONS = {"gelu": gelu, "exp": exp, "reciprocal": reciprocal, "rsqrt": rsqrt}
"""Function name → the module that holds its realisations (``REALISATIONS``) and its true form (``TRUE``)."""

__all__ = ["FUNCTIONS", "Interval", "Realisation", "exact", "realise", "violations"]


def realise(function: str, options: Mapping[str, Any], interval: Interval) -> Realisation:
    """The realisation ``options["kind"]`` of a function on an interval; the other options are its arguments.

    Raises InputError for an unknown function, kind or option, RangeError when the interval leaves the domain.
    """
    wrong = violations(function, options)
    if wrong:
        raise InputError("; ".join(wrong))
    arguments = {name: value for name, value in options.items() if name != "kind"}
    if options["kind"] == "exact":
        return exact(function)
    try:
        made: Realisation = FUNCTIONS[function].REALISATIONS[options["kind"]](interval, **arguments)
    except (PlanError, TypeError, ValueError) as error:
        raise RangeError(str(error)) from error
    if not made.covers(interval):
        raise RangeError(
            f"{made.label} holds on [{made.domain[0]:.4g}, {made.domain[1]:.4g}], the calibrated range is "
            f"[{interval[0]:.4g}, {interval[1]:.4g}]; widen its domain or retrain with a range penalty"
        )
    return made


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
        if name not in known:
            found.append(f"{function}({kind}): unknown option {name!r}, it takes {', '.join(known) or 'none'}")
            continue
        whole = "float" not in str(known[name].annotation)
        if not _number(value, whole=whole):
            wanted = "a whole number of at least 0" if whole else "a positive number"
            found.append(f"{function}({kind}): {name} must be {wanted}, not {value!r}")
    if {"degree", "error"} <= known.keys() and ("degree" in options) == ("error" in options):
        found.append(f"{function}({kind}) needs either a degree or an error, not both or neither")
    return found


def _number(value: object, *, whole: bool) -> bool:
    if isinstance(value, bool):
        return False
    if whole:
        return isinstance(value, Integral) and int(value) >= 0
    return isinstance(value, Real) and 0 < float(value) < math.inf
