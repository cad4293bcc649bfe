"""Tables of a ledger: by operation, by region, by phase. Columns an engine cannot have are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from rich import box
from rich.table import Table

from secureattn.events import PHASES, Event
from secureattn.ledger import units
from secureattn.ledger.ledger import Ledger, inside
from secureattn.ledger.roles import WAITING, busy

COLUMNS: dict[str, tuple[str, Callable[[int | None], str]]] = {
    "ct_products": ("ct×ct", units.number),
    "pt_products": ("ct×pt", units.number),
    "rotations": ("rotat.", units.number),
    "relinearisations": ("relin.", units.number),
    "rescales": ("rescal.", units.number),
    "rounds": ("rounds", units.number),
    "bytes_sent": ("sent", units.data),
    "dealer_bytes": ("dealer", units.data),
}
"""Counts that tables show, with heading and unit; ``to_json`` has them all."""

_OUTSIDE = "(top)"
_TEXT = ("region", "op", "phase", "network", "role", "figure", "count")
_GAP = 2
_DISPENSABLE = (
    "rescal.", "relin.", "ct×pt", "calls", "dealer", "levels", "rotat.", "sent", "rounds", "ct×ct",
    "offline", "online", "refresh", "share", "phase",
)  # fmt: skip
"""What a narrow table does without, first to last."""

Row = list[str]


def breakdown_table(ledger: Ledger, *, top: int | None = None, width: int | None = None) -> Table:
    """Operations by self time, longest first, with a total; after ``top`` rows the others are summed in one.

    ``width`` is how many characters there are; columns that do not fit are left out and named below the table.
    """
    rows = sorted(ledger.rows, key=lambda row: -row.seconds_self)
    shown = rows if top is None else rows[:top]
    levels = ledger.engine == "ckks" or any(row.level_in is not None for row in rows)
    errors = any(row.error_bits is not None for row in rows)

    def cells(what: Row, of: Sequence[Event], counts: Row, at: str = units.UNKNOWN, bits: str = units.UNKNOWN) -> Row:
        calls = units.number(sum(row.calls for row in of))
        return [*what, calls, *_time(_seconds(of) or 0.0, ledger), *[at] * levels, *counts, *[bits] * errors]

    headings = ["region", "op", "phase", "calls", "self", "share", *["levels"] * levels, *_headings(ledger)]
    body = [
        cells([row.region or _OUTSIDE, row.op, row.phase], [row], _counts(ledger, [row]), _levels(row), _bits(row))
        for row in shown
    ]
    if rest := rows[len(shown) :]:
        body.append(cells([f"{len(rest)} more", "", ""], rest, _counts(ledger, rest)))
    total = cells(["total", "", ""], rows, _totals(ledger))
    return lay_out(f"{title(ledger)}, by operation", [*headings, *["error bits"] * errors], body, total, width=width)


def region_table(ledger: Ledger, *, width: int | None = None) -> Table:
    """Regions in the order they ran, each with all regions inside it; ``(top)`` is what lies outside any.

    Seconds are of the phases that ran inside regions, and of all; ``width`` as in ``breakdown_table``.
    """
    paths = (row.region.split("/") for row in ledger.rows)
    regions = dict.fromkeys("/".join(parts) for path in paths for parts in accumulate([part] for part in path))
    named = {row.phase for row in ledger.rows if row.region}
    phases = [phase for phase in ledger.phases if phase in named]
    levels = ledger.engine == "ckks"
    errors = any(row.error_bits is not None for row in ledger.rows)
    body = []
    for region in regions:
        rows = [row for row in ledger.rows if inside(row.region, region)]
        by_phase = [units.seconds(_seconds(row for row in rows if row.phase == phase)) for phase in phases]
        counts = _totals(ledger, region=region)
        span = [_span(rows)] * levels
        body.append(
            [region or _OUTSIDE, *by_phase, *_time(_seconds(rows), ledger), *span, *counts, *[_worst(rows)] * errors]
        )
    by_phase = [units.seconds(ledger.phases[phase]) for phase in phases]
    total = ["total", *by_phase, *_time(ledger.seconds, ledger), *[units.UNKNOWN] * levels, *_totals(ledger)]
    total += [units.UNKNOWN] * errors
    headings = ["region", *phases, "all", "share", *["levels"] * levels, *_headings(ledger), *["error bits"] * errors]
    return lay_out(f"{title(ledger)}, by region", headings, body, total, width=width)


def phase_table(ledger: Ledger) -> Table:
    """All phases with their seconds and traffic; one that did not occur prints ``--``."""
    traffic = [name for name in ("rounds", "bytes_sent", "dealer_bytes") if name in ledger.counted]
    body = [
        [phase, *_time(ledger.phases.get(phase), ledger), *(_total(ledger, name, phase=phase) for name in traffic)]
        for phase in PHASES
    ]
    total = ["total", *_time(ledger.seconds, ledger), *(_total(ledger, name) for name in traffic)]
    headings = ["phase", "seconds", "share", *(COLUMNS[name][0] for name in traffic)]
    return lay_out(f"{title(ledger)}, by phase", headings, body, total)


def role_table(ledger: Ledger) -> Table:
    """Seconds of each role, at work by phase and waiting in messages; they overlap, so there is no total."""
    found = busy(ledger)
    phases = [phase for phase in PHASES if any(phase in one.phases for one in found)]
    body = [
        [one.name, *(units.seconds(one.phases.get(phase)) for phase in phases), units.seconds(one.waiting_s),
         units.seconds(one.seconds)]
        for one in found
    ]  # fmt: skip
    return lay_out(f"{title(ledger)}, by role", ["role", *phases, WAITING, "all"], body)


def title(ledger: Ledger) -> str:
    """What ran where, and whether it was measured or modelled."""
    return f"{ledger.name} on {ledger.engine}, {ledger.how}"


def lay_out(
    heading: str, columns: Sequence[str], body: Sequence[Row], total: Row | None = None, *, width: int | None = None
) -> Table:
    """A table of our look: text to the left, figures to the right, never cut; a total below a line."""
    rows = [*body, *([total] if total else [])]
    kept, left_out = _fitting(columns, rows, width)
    caption = f"left out for width: {', '.join(left_out)}" if left_out else None
    table = Table(title=heading, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD,
                  pad_edge=False, collapse_padding=True)  # fmt: skip
    for i in kept:
        text = columns[i] in _TEXT
        table.add_column(columns[i], justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in body:
        table.add_row(*(row[i] for i in kept))
    if total:
        table.add_section()
        table.add_row(*(total[i] for i in kept), style="bold")
    return table


def _fitting(columns: Sequence[str], rows: Sequence[Row], width: int | None) -> tuple[list[int], list[str]]:
    """The columns that fit, and the headings of those left out."""
    wide = [max([len(heading), *(len(row[i]) for row in rows)]) + _GAP for i, heading in enumerate(columns)]
    kept = list(range(len(columns)))
    left_out: list[str] = []
    for heading in _DISPENSABLE:
        if width is not None and heading in columns[1:] and sum(wide[i] for i in kept) > width:
            kept.remove(columns.index(heading))
            left_out.append(heading)
    return kept, left_out


def _shown(ledger: Ledger) -> list[str]:
    return [name for name in COLUMNS if name in ledger.counted]


def _headings(ledger: Ledger) -> Row:
    return [COLUMNS[name][0] for name in _shown(ledger)]


def _counts(ledger: Ledger, rows: Sequence[Event]) -> Row:
    """Counts of some rows; unknown where no row knows."""
    cells = []
    for name in _shown(ledger):
        known = [count for row in rows if (count := ledger.count(row, name)) is not None]
        cells.append(COLUMNS[name][1](sum(known) if known else None))
    return cells


def _totals(ledger: Ledger, *, region: str | None = None) -> Row:
    return [_total(ledger, name, region=region) for name in _shown(ledger)]


def _total(ledger: Ledger, name: str, *, phase: str | None = None, region: str | None = None) -> str:
    return COLUMNS[name][1](ledger.total(name, phase=phase, region=region))


def _time(seconds: float | None, ledger: Ledger) -> tuple[str, str]:
    return units.seconds(seconds), units.share(seconds, ledger.seconds)


def _seconds(rows: Iterable[Event]) -> float | None:
    """Self seconds of some rows; unknown of none."""
    found = [row.seconds_self for row in rows]
    return sum(found) if found else None


def _span(rows: Sequence[Event]) -> str:
    """Highest and lowest level of any operation inside: where several refreshes fall, less than the depth used."""
    known = [row for row in rows if row.level_in is not None and row.level_out is not None]
    if not known:
        return units.UNKNOWN
    return f"{max(row.level_in or 0 for row in known)}→{min(row.level_out or 0 for row in known)}"


def _levels(row: Event) -> str:
    if row.level_in is None or row.level_out is None:
        return units.UNKNOWN
    return f"{row.level_in}→{row.level_out}"


def _worst(rows: Sequence[Event]) -> str:
    """The least exact of some rows."""
    known = [row.error_bits for row in rows if row.error_bits is not None]
    return f"{min(known):.1f}" if known else units.UNKNOWN


def _bits(row: Event) -> str:
    return units.UNKNOWN if row.error_bits is None else f"{row.error_bits:.1f}"
