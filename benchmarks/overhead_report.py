"""What the benchmark of recording makes of its raw samples: ratios of paired turns, the checks and the table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import measuring
from checking import Check, Part, at_most, described

BAR = 0.03
"""Share of an evaluation that recording may take."""

_NAMES = {
    "plaintext": "in the clear, 360 images",
    "ckks": "CKKS, 1 image, dense layout, one process",
    "crypten": "shares, 64 images, at the first party",
}
_WAYS = {"on": "recorded", "traced": "traced"}


def ratios(part: Part, way: str) -> list[float]:
    """An evaluation's seconds over those of the unrecorded one of the same turn."""
    seconds = part["seconds"]
    return [taken / off for taken, off in zip(seconds[way], seconds["off"], strict=True)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """What holds the true median with at least 95 % confidence; the extremes where there are too few values.

    Formula: the k-th value from below and above, for the most k with P(fewer than k of n fair coins) ≤ 2.5 %.
    Source: the sign test; David and Nagaraja, Order Statistics, 2003, 7.1.
    """
    n, below, k = len(values), 0.0, 0
    while (below := below + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    ranked = sorted(values)
    return ranked[max(k - 1, 0)], ranked[n - max(k, 1)]


def share(part: Part, way: str) -> float:
    """Calls times what one takes, over the median of the unrecorded evaluations."""
    spent = sum(part["calls"][name] * part["call_s"][way][name] for name in ("op", "primitive"))
    return float(spent / statistics.median(part["seconds"]["off"]))


def checks(parts: Mapping[str, Part], *, quick: bool) -> list[Check]:
    """One row a figure, met or not. Ratios of a few turns show nothing: quick runs check the arithmetic alone."""
    return [check for name, part in parts.items() for check in _checks(name, part, quick=quick)]


def _checks(name: str, part: Part, *, quick: bool) -> Iterator[Check]:
    for way, word in _WAYS.items():
        counted = share(part, way)
        yield at_most(f"{_NAMES[name]}, {word}: calls times their cost, share of an evaluation", counted, BAR)
        if not quick:
            found = ratios(part, way)
            yield at_most(
                f"{_NAMES[name]}, {word}: median ratio of {len(found)} turns", statistics.median(found), 1 + BAR
            )


def document(parts: Mapping[str, Part], *, quick: bool) -> dict[str, Any]:
    """Everything, as JSON: machine, raw samples by part, and the checks computed from them."""
    return described(parts, checks(parts, quick=quick), quick=quick)


def text(document: Mapping[str, Any]) -> str:
    """The table for the README."""
    rows = ["| evaluation | turns | calls | recorded / not | 95 % | traced / not | 95 % | by calls × cost |"]
    rows.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, part in document["parts"].items():
        calls = sum(part["calls"].values())
        cells = [_NAMES[name], str(len(part["seconds"]["off"])), f"{calls:,}"]
        for way in _WAYS:
            low, high = interval(ratios(part, way))
            cells += [f"{statistics.median(ratios(part, way)):.3f}", f"{low:.3f} to {high:.3f}"]
        cells.append(" and ".join(f"{share(part, way):.2%}" for way in _WAYS))
        rows.append(f"| {' | '.join(cells)} |")
    where = (
        f"Medians of paired turns, with the interval that holds the true one with 95 % confidence; measured on "
        f"{measuring.measured_on(document)}; {measuring.loads(document['parts'])}."
    )
    return "\n".join([*rows, "", where, ""])
