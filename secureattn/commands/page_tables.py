"""The tables of the report's page: accuracy, and what a profile says of seconds, traffic and primitives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from secureattn.commands.documents import Document
from secureattn.events import PHASES
from secureattn.ledger import (
    Ledger,
    Network,
    breakdown_table,
    network_table,
    phase_table,
    region_table,
    role_table,
    roles,
    units,
)

_TURNS = "Both take turns in one process: their seconds add up to the run's."
_AT_ONCE = "Processes work at once, so their seconds overlap: the run's are the slowest party's. They wait in messages."


@dataclass(frozen=True)
class Grid:
    """A table: which columns hold figures, whether the last row is a total, and a note below."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    total: bool = False
    note: str = ""

    @classmethod
    def of(cls, table: Table, *, caption: str, note: str = "") -> Grid:
        """The same as a table of the terminal."""
        columns = table.columns
        rows = list(zip(*(map(str, column.cells) for column in columns), strict=True))
        total = bool(table.rows) and bool(table.rows[-1].style)
        numeric = [column.justify == "right" for column in columns]
        return cls(caption, [str(column.header) for column in columns], rows, numeric, total, note)


@dataclass(frozen=True)
class Section:
    """Tables under a heading."""

    id: str
    title: str
    grids: Sequence[Grid]


# ---- accuracy ------------------------------------------------------------------------------------------------


def measure(compare: Document) -> str:
    """What the quality of a run is measured by."""
    if compare.data.get("cosine"):
        return "least cosine to exact"
    return "perplexity" if compare.data.get("perplexity") else "accuracy"


def quality(compare: Document, run: str) -> str:
    """Of one run: "exact", "clear" or "encrypted"."""
    data = compare.data
    if data.get("cosine"):
        least = data["cosine"].get(run, {}).get("least")
        return units.UNKNOWN if least is None else f"{least:.6f}"
    if data.get("perplexity"):
        found = data["perplexity"].get(run)
        return units.UNKNOWN if found is None else f"{found:.4f}"
    return percent(data["accuracy"].get(run))


def accuracy(compare: Document) -> Grid:
    """Exact, clear and encrypted."""
    agreement, errors = compare.data["agreement"], compare.data["max_abs_error"]
    unknown = units.UNKNOWN
    clear = [percent(agreement.get("clear")), unknown, f"{_error(errors.get('approximation'))} (approximation)"]
    encrypted = [percent(agreement.get("encrypted")), percent(agreement.get("encrypted_with_clear")),
                 f"{_error(errors.get('encryption'))} (encryption)"]  # fmt: skip
    rows = [
        ["exact", quality(compare, "exact"), unknown, unknown, unknown],
        ["clear", quality(compare, "clear"), *clear],
        ["encrypted", quality(compare, "encrypted"), *encrypted],
    ]
    headings = ["run", measure(compare), "agrees with exact", "agrees with clear", "max |error|"]
    note = "Approximation error is clear minus exact, encryption error encrypted minus clear, the largest of any score."
    caption = "The true functions, the approximations in the clear, and the encrypted run, on the same samples"
    return Grid(caption, headings, rows, [False, *[True] * 4], note=note)


def percent(share: float | None) -> str:
    """Two decimals."""
    return units.UNKNOWN if share is None else f"{share:.2%}"


def _error(value: float | None) -> str:
    return units.UNKNOWN if value is None else f"{value:.1e}"


# ---- cost ----------------------------------------------------------------------------------------------------


def sections(profile: Document, top: int) -> list[Section]:
    """Everything a profile holds, as tables."""
    ledger = profile.ledger
    phases = [Grid.of(phase_table(ledger), caption="Seconds and traffic by phase")]
    if len(roles(ledger)) > 1:
        note = _TURNS if ledger.engine == "ckks" else _AT_ONCE
        phases.append(Grid.of(role_table(ledger), caption="Seconds by role", note=note))
    found = [Section("phases", "Phases and roles", phases)]
    if profile.data["networks"]:
        found.append(Section("networks", "On a network", [_networks(profile)]))
    found.append(Section("regions", "By region", [
        Grid.of(region_table(ledger), caption="Every region of the network with all inside it"),
    ]))  # fmt: skip
    found.append(Section("operations", "By operation", [
        Grid.of(breakdown_table(ledger, top=top), caption="Operations by their own seconds, the longest first"),
    ]))  # fmt: skip
    primitives = _primitives(ledger)
    return [*found, Section("primitives", "By primitive", [primitives])] if primitives.rows else found


def phases_alone(compare: Document) -> list[Section]:
    """The seconds a comparison holds."""
    rows = [[phase, units.seconds(seconds)] for phase, seconds in compare.phases.items()]
    rows.append(["total", units.seconds(compare.totals["seconds"])])
    grid = Grid("Seconds of the encrypted run by phase", ["phase", "seconds"], rows, [False, True], total=True)
    return [Section("phases", "Phases", [grid])]


def _networks(profile: Document) -> Grid:
    """Modelled messages; of files that do not say what a network is like, their seconds alone."""
    caption, networks = "What messages take on a network: modelled, not measured", profile.data["networks"]
    known = [
        Network(name, float(n["bandwidth_bps"]), float(n["round_trip_s"]))
        for name, n in networks.items()
        if (n.get("bandwidth_bps") or 0) > 0 and n.get("round_trip_s") is not None
    ]
    if len(known) == len(networks):
        note = (
            "The run's own seconds hold what its messages took where it ran, so the last column errs on the slow side."
        )
        return Grid.of(network_table(profile.ledger, known), caption=caption, note=note)
    rows = []
    for name, network in networks.items():
        seconds = network.get("modelled_seconds")
        whole = None if seconds is None else seconds + profile.ledger.seconds
        rows.append([name, units.seconds(seconds), units.seconds(whole)])
    return Grid(caption, ["network", "messages", "with the run"], rows, [False, True, True])


def _primitives(ledger: Ledger) -> Grid:
    """Every count by phase, and the seconds its primitive took, of all worker processes together."""
    phases = [phase for phase in PHASES if phase in ledger.phases]
    rows = []
    for name in ledger.counted:
        shown = units.data if "bytes" in name else units.number
        spent = sum(row.primitive_s.get(name, 0.0) for row in ledger.rows)
        by_phase = [shown(ledger.total(name, phase=phase)) for phase in phases]
        if ledger.total(name):
            seconds = units.seconds(spent) if spent else units.UNKNOWN
            rows.append([name.replace("_", " "), *by_phase, shown(ledger.total(name)), seconds])
    headings = ["primitive", *phases, "total", "seconds"]
    note = "Seconds of a primitive are summed over the processes that share its work."
    return Grid("How often every primitive ran", headings, rows, [False, *[True] * (len(headings) - 1)], note=note)
