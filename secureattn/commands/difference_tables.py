"""What ``secureattn diff`` prints: what was not the same first, then totals, phases, regions, operations, counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secureattn.commands.difference import Change, Difference, Number, Place
from secureattn.commands.documents import Document
from secureattn.commands.output import whole
from secureattn.errors import InputError
from secureattn.events import PHASES
from secureattn.ledger import units, write_plot
from secureattn.ledger.machine import in_words
from secureattn.ledger.table import lay_out

_TITLES = {"total": "totals", "phase": "seconds by phase", "quality": "quality"}
_FIGURES = ("A", "B", "B − A", "B / A")
Row = list[str]


def show(found: Difference, console: Console, *, top: int) -> None:
    """Print everything; tables by region and operation list the ``top`` largest differences, and say what they omit."""
    console.print(f"A: {escape(found.a.source)}: {escape(_about(found.a))}")
    console.print(f"B: {escape(found.b.source)}: {escape(_about(found.b))}")
    for name, (a, b) in found.basis.items():
        console.print(f"not the same: {escape(f'{name}: {_value(a)} in A, {_value(b)} in B')}", style="bold")
    if not found.basis:
        console.print("model, protocol, parameters and machine are the same")
    console.print(_table("total", found.totals.items()))
    console.print(_table("phase", found.phases.items()))
    if found.quality:
        console.print(_table("quality", found.quality.items()))
    for title, places in (("region", found.regions), ("operation", found.operations)):
        if places:
            console.print(_seconds(title, places, top))
            console.print(_counts(title, places, top))


def plot(found: Difference, path: Path) -> None:
    """Draw A beside B."""
    check_plot(found)
    machines = [in_words(dict(one.machine)) for one in (found.a, found.b)]
    where = machines[0] if machines[0] == machines[1] else f"{machines[0]} (A) and {machines[1]} (B)"
    with whole(path) as draft:
        write_plot([found.a.ledger, found.b.ledger], draft, described=where, marks=("A", "B"))


def check_plot(found: Difference) -> None:
    """InputError for comparisons, which have no breakdown to draw."""
    if found.a.kind != "profile":
        raise InputError("comparisons hold no breakdown to draw; give JSON files of secureattn profile for --plot")


def _about(document: Document) -> str:
    return f"{document.kind} of {document.title}, {document.data['samples']} samples"


def _value(value: Any) -> str:
    return units.UNKNOWN if value is None else str(value)


def _table(what: str, changes: Iterable[tuple[str, Change]]) -> Table:
    """Figures that are not nothing in both files."""
    rows = [[name, *_cells(name, change)] for name, change in changes if change.a or change.b]
    return lay_out(_TITLES[what], ["figure", *_FIGURES], rows)


def _seconds(title: str, places: Sequence[Place], top: int) -> Table:
    """Seconds of the places that differ most, and of those that only one file has."""
    ranked = sorted(places, key=lambda place: -abs((place.seconds.b or 0.0) - (place.seconds.a or 0.0)))
    rows = [[*_named(place), *_cells("seconds", place.seconds)] for place in ranked[:top]]
    return _listed(f"seconds by {title}", _headings(title), rows, len(places) - top)


def _counts(title: str, places: Sequence[Place], top: int) -> Table | str:
    """Counts that differ, the largest ratios first."""
    apart = [(p, name, one) for p in places for name, one in p.counts.items() if (one.a or 0) != (one.b or 0)]
    apart.sort(key=lambda item: -_far(item[2]))
    rows = [[*_named(place), name, *_cells(name, one)] for place, name, one in apart[:top]]
    if not rows:
        return f"counts by {title}: all are the same"
    return _listed(f"counts by {title} that differ", [*_headings(title), "count"], rows, len(apart) - top)


def _listed(heading: str, names: Sequence[str], rows: list[Row], more: int) -> Table:
    table = lay_out(heading, [*names, *_FIGURES], rows)
    if more > 0:
        table.caption = f"and {more} more; --top lists them"
    return table


def _headings(title: str) -> list[str]:
    return ["region"] if title == "region" else ["region", "op", "phase"]


def _named(place: Place) -> Row:
    return [escape(part) for part in (place.name[0] or "(top)", *place.name[1:])]


def _far(change: Change) -> float:
    """How far a ratio is from 1; infinitely for what only one file has."""
    if change.a is None or change.b is None or not change.a or not change.b:
        return float("inf")
    return max(change.b / change.a, change.a / change.b)


def _cells(name: str, change: Change) -> Row:
    """A, B, their difference and ratio; of what one file alone has, that."""
    shown = unit(name)
    ratio = (
        f"only in {change.only}" if change.only else units.UNKNOWN if change.ratio is None else f"{change.ratio:.4g}"
    )
    if change.a == change.b and change.ratio is None and change.a is not None:
        ratio = "1"
    sign = "+" if change.difference is not None and change.difference > 0 else ""
    return [shown(change.a), shown(change.b), sign + shown(change.difference), ratio]


def unit(name: str) -> Callable[[Number], str]:
    """How a figure is written: bytes and seconds with units, counts with thousands apart, shares and errors plainly."""
    if name.endswith("bytes") or name == "bytes_sent":
        return lambda value: units.data(None if value is None else int(value))
    if "." in name:
        return lambda value: units.UNKNOWN if value is None else f"{value:.6g}"
    if name in ("seconds", *PHASES):
        return units.seconds
    return lambda value: units.number(None if value is None else int(value))
