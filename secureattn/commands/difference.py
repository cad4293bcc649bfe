"""``secureattn diff``: two profiles, or two comparisons, side by side: what differs, by how much, and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from secureattn.commands.documents import Document
from secureattn.errors import InputError, SecureAttnError
from secureattn.ledger import Ledger
from secureattn.ledger.ledger import inside

Number = float | int | None
_BASIS = ("model", "protocol", "engine", "samples", "tokens", "new_tokens", "ranges", "measured", "changes_model")
_QUALITY = ("accuracy", "perplexity", "agreement", "max_abs_error", "escapes")
Name = tuple[str, ...]
Figures = tuple[float | None, dict[str, Number]]
"""Seconds and counts of a region or an operation."""


@dataclass(frozen=True)
class Change:
    """A figure in A and in B; None where a file lacks it or does not know it."""

    a: Number
    b: Number

    @property
    def difference(self) -> Number:
        """B − A."""
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def ratio(self) -> float | None:
        """B/A; None of and to nothing."""
        return None if self.a is None or self.b is None or self.a == 0 else self.b / self.a

    @property
    def only(self) -> str | None:
        """The file that alone has it."""
        if (self.a is None) == (self.b is None):
            return None
        return "A" if self.b is None else "B"

    def json(self) -> dict[str, Any]:
        """As JSON."""
        return {"a": self.a, "b": self.b, "difference": self.difference, "ratio": self.ratio, "only_in": self.only}


@dataclass(frozen=True)
class Place:
    """A region, or an operation in a region and phase: its seconds, and every count that either file knows."""

    name: Name
    seconds: Change
    counts: Mapping[str, Change]

    def json(self, keys: Sequence[str]) -> dict[str, Any]:
        """As JSON, its name under ``keys``."""
        counts = {name: change.json() for name, change in self.counts.items()}
        return {**dict(zip(keys, self.name, strict=True)), "seconds": self.seconds.json(), **counts}


@dataclass(frozen=True)
class Difference:
    """Two documents of one kind."""

    a: Document
    b: Document
    basis: Mapping[str, tuple[Any, Any]]
    totals: Mapping[str, Change]
    phases: Mapping[str, Change]
    quality: Mapping[str, Change]
    regions: tuple[Place, ...] = ()
    operations: tuple[Place, ...] = ()

    def figure(self, name: str) -> Change:
        """A total, a count or the seconds of a phase, by name; InputError that lists all where there is none such."""
        found = {**self.phases, **self.totals}
        if name not in found:
            known = ", ".join(key for key, change in found.items() if (change.a, change.b) != (None, None))
            raise InputError(f"--fail-above {name}: there is no such figure; there are {known}")
        return found[name]

    def document(self) -> dict[str, Any]:
        """As JSON, schema 1; ``basis`` has what differs in what was run, and where."""
        return {
            "schema": 1,
            "kind": "diff",
            "of": self.a.kind,
            "files": {"a": self.a.source, "b": self.b.source},
            "basis": {name: {"a": a, "b": b} for name, (a, b) in self.basis.items()},
            "total": {name: change.json() for name, change in self.totals.items()},
            "phases": {name: change.json() for name, change in self.phases.items()},
            "quality": {name: change.json() for name, change in self.quality.items()},
            "regions": [place.json(("region",)) for place in self.regions],
            "operations": [place.json(("region", "op", "phase")) for place in self.operations],
        }


def difference(a: Document, b: Document) -> Difference:
    """Compare two documents; InputError where one is a profile and the other a comparison."""
    if a.kind != b.kind:
        raise InputError(f"{a.source} is a {a.kind}, {b.source} a {b.kind}; give two of the same kind")
    totals, phases = _changes(a.totals, b.totals), _changes(a.phases, b.phases)
    quality = _changes(_quality(a), _quality(b))
    if a.kind == "compare":
        return Difference(a, b, _basis(a, b), totals, phases, quality)
    regions = _places(_regions(a.ledger), _regions(b.ledger))
    operations = _places(_operations(a.ledger), _operations(b.ledger))
    return Difference(a, b, _basis(a, b), totals, phases, quality, regions, operations)


def check(found: Difference, limits: Iterable[tuple[str, float]]) -> None:
    """SecureAttnError that names every figure whose B/A is above its limit; InputError for one that a file lacks."""
    worse = []
    for name, limit in limits:
        change = found.figure(name)
        if change.a is None or change.b is None:
            raise InputError(f"--fail-above {name}: {found.a.source if change.a is None else found.b.source} has none")
        if change.b > limit * change.a:
            ratio = "from none" if change.ratio is None else f"{change.ratio:.4g} times as much"
            worse.append(f"{name} went from {change.a:,} to {change.b:,} ({ratio}, {limit:g} allowed)")
    if worse:
        raise SecureAttnError("; ".join(worse))


# ---- what is compared ----------------------------------------------------------------------------------------


def _basis(a: Document, b: Document) -> dict[str, tuple[Any, Any]]:
    """What was run, with which parameters, where; what differs only."""
    sides = [
        {
            **{name: one.data.get(name) for name in _BASIS},
            **{f"parameters.{name}": value for name, value in one.data.get("parameters", {}).items()},
            **{f"machine.{name}": value for name, value in one.machine.items()},
            "trust": one.data["trust"],
        }
        for one in (a, b)
    ]
    first, second = sides
    names = dict.fromkeys((*first, *second))
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def _quality(document: Document) -> dict[str, Number]:
    if document.kind != "compare":
        return {}
    found = {f"{what}.{name}": value for what in _QUALITY for name, value in document.data.get(what, {}).items()}
    cosines = document.data.get("cosine", {})
    return {**found, **{f"cosine.{run}.{name}": value for run, one in cosines.items() for name, value in one.items()}}


def _changes(a: Mapping[str, Number], b: Mapping[str, Number]) -> dict[str, Change]:
    return {name: Change(a.get(name), b.get(name)) for name in dict.fromkeys((*a, *b))}


def _places(a: Mapping[Name, Figures], b: Mapping[Name, Figures]) -> tuple[Place, ...]:
    nothing: Figures = (None, {})
    found = []
    for name in dict.fromkeys((*a, *b)):
        (seconds_a, counts_a), (seconds_b, counts_b) = a.get(name, nothing), b.get(name, nothing)
        counts = {key: one for key, one in _changes(counts_a, counts_b).items() if one != Change(None, None)}
        found.append(Place(name, Change(seconds_a, seconds_b), counts))
    return tuple(found)


def _regions(ledger: Ledger) -> dict[Name, Figures]:
    """Every region with all inside it, as the ledger's own table; "" is what lies outside any."""
    found: dict[Name, Figures] = {}
    paths = dict.fromkeys(
        path for row in ledger.rows for path in accumulate(row.region.split("/"), lambda a, b: f"{a}/{b}")
    )
    for path in paths:
        seconds = sum(row.seconds_self for row in ledger.rows if inside(row.region, path))
        counts: dict[str, Number] = {name: ledger.total(name, region=path) for name in ledger.counted}
        found[(path,)] = seconds, counts
    return found


def _operations(ledger: Ledger) -> dict[Name, Figures]:
    found: dict[Name, Figures] = {}
    for row in ledger.rows:
        known: dict[str, Number] = {name: ledger.count(row, name) for name in ledger.counted}
        counts: dict[str, Number] = {"calls": row.calls, **known}
        found[row.region, row.op, row.phase] = row.seconds_self, counts
    return found
