"""``secureattn plan --search``: the frontier of cost against accuracy, and a protocol for the point chosen."""

from __future__ import annotations

from argparse import Namespace as Options
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from secureattn import resources
from secureattn.commands import output, planning
from secureattn.commands.approximations import toml
from secureattn.commands.output import whole
from secureattn.errors import InputError
from secureattn.ledger import units
from secureattn.nn.model import Model
from secureattn.protocol import Protocol
from secureattn.runs.search import Found, Point
from secureattn.runs.search import search as searched


def search(options: Options) -> None:
    """Search the realisations that a protocol leaves open, show what was found, write it where asked to."""
    if options.loss is not None and options.budget is not None:
        raise InputError("a search takes either --loss or --budget, not both")
    model, protocol = planning.named(options)
    if options.output:
        check(protocol)
    with output.progress() as tell:
        found = searched(model, protocol, loss=options.loss or 0.0, budget=options.budget, progress=tell)
    show(found, output.stdout())
    if options.output:
        write_protocol(found, resources.find("protocols", options.protocol), options.output)
    if options.json:
        output.write_json(options.json, document(model, protocol, found))


def show(found: Found, console: Console) -> None:
    """Print the frontier, what the protocol costs as it is, and the [sites] of the chosen point."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in (found.unit, "accuracy", "on other samples", "rms error of scores", "sites"):
        table.add_column(heading, justify="left" if heading == "sites" else "right")
    for point in found.frontier:
        table.add_row(*_row(point), style="bold" if point is found.chosen else None)
    table.add_section()
    table.add_row(*_row(found.given)[:-1], "the protocol as it is")
    table.add_row(units.UNKNOWN, *(f"{a:.2%}" for a in found.exact), "0", "true functions")
    console.print(table)
    console.print(f"chosen: {found.chosen.cost} {found.unit}, accuracy {found.chosen.accuracy:.2%}", style="bold")
    console.print(sites_section(found.chosen), markup=False)


def sites_section(point: Point) -> str:
    """The [sites] section of a protocol file."""
    return "\n".join(["[sites]", *(f'"{site}" = {toml(options)}' for site, options in point.sites.items())])


def check(protocol: Protocol) -> None:
    """Refuse a protocol that ``write_protocol`` could not extend, before anything is searched."""
    if protocol.sites:
        raise InputError(f"protocol {protocol.name} has a section [sites] already; search from a protocol without one")


def write_protocol(found: Found, source: Path, path: Path) -> None:
    """The protocol file with the chosen [sites] at its end; it may have none of its own (``check``)."""
    text = source.read_text().rstrip()
    with whole(path) as draft:
        heading = f"# Found by search: {found.chosen.cost} {found.unit}."
        draft.write_text("\n".join([text, "", heading, sites_section(found.chosen), ""]))


def document(model: Model, protocol: Protocol, found: Found) -> dict[str, Any]:
    """As JSON, schema 1."""
    return {
        "schema": 1,
        "model": model.config.name,
        "protocol": protocol.name,
        "unit": found.unit,
        "exact_accuracy": list(found.exact),
        "given": _point(found.given),
        "chosen": _point(found.chosen),
        "frontier": [_point(point) for point in found.frontier],
    }


def _point(point: Point) -> dict[str, Any]:
    quality = {"accuracy": point.accuracy, "checked": point.checked, "rms_error": point.distance}
    return {"cost": point.cost, **quality, "sites": {site: dict(options) for site, options in point.sites.items()}}


def _row(point: Point) -> tuple[str, ...]:
    sites = ", ".join(choice.realisation.label for choice in point.choices.values())
    return str(point.cost), f"{point.accuracy:.2%}", f"{point.checked:.2%}", f"{point.distance:.1e}", sites
