"""``secureattn profile``: what every operation of an encrypted run cost."""

from __future__ import annotations

import importlib.util
from argparse import Namespace as Options
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from secureattn import runs
from secureattn.commands import output, planning
from secureattn.commands.comparison import show_basis
from secureattn.commands.output import whole
from secureattn.commands.plan_tables import heading, modelled
from secureattn.errors import EngineError, InputError
from secureattn.ledger import (
    Network,
    breakdown_table,
    load_network,
    machine,
    network_table,
    phase_table,
    region_table,
    role_table,
    to_json,
    write_plot,
    write_trace,
)
from secureattn.ledger.figure import SUFFIXES
from secureattn.plan import Plan
from secureattn.runs import Run


def profile(options: Options) -> None:
    """Run the held-out samples, show and write what every operation cost."""
    output.writable(options.json, options.trace, options.plot)
    check_plot(options.plot)
    networks = [load_network(name) for name in options.network or ("lan", "wan")]
    with output.progress() as tell:
        plan, inputs, _ = planning.sampled(options, tell)
        wanted = {"trace": options.trace is not None, "errors": options.error, "device": options.device}
        run = runs.execute(plan, inputs, progress=tell, **wanted)
    show(plan, run, networks, output.stdout(), top=options.top)
    write(run, trace=options.trace, plot=options.plot)
    if options.json:
        output.write_json(options.json, document(plan, run, networks))


def document(plan: Plan, run: Run, networks: Sequence[Network]) -> dict[str, Any]:
    """The profile as JSON, schema 1."""
    about = heading(plan)
    return {
        **about,
        "kind": "profile",
        "warnings": [*about["warnings"], *run.warnings],
        "changes_model": plan.protocol.changes_model,
        "machine": machine(),
        "networks": modelled(run.ledger, networks),
        **to_json(run.ledger),
    }


def show(plan: Plan, run: Run, networks: Sequence[Network], console: Console, *, top: int | None) -> None:
    """Print phases, regions, operations, networks, and what they rest on."""
    for warning in run.warnings:
        console.print(f"[bold]warning: {warning}[/bold]")
    console.print(phase_table(run.ledger))
    if plan.protocol.engine != "plaintext":
        console.print(role_table(run.ledger))
    console.print(region_table(run.ledger, width=console.width))
    console.print(breakdown_table(run.ledger, top=top, width=console.width))
    if plan.protocol.engine != "plaintext":
        console.print(network_table(run.ledger, networks))
    show_basis(plan, console)


def check_plot(path: Path | None) -> None:
    """Refuse a plot format, or a plot without matplotlib, before anything is run."""
    if path is None:
        return
    if path.suffix not in SUFFIXES:
        raise InputError(f"plot {path} has an unknown format; it must end in {' or '.join(SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise EngineError("a plot needs matplotlib; run pip install matplotlib")


def write(run: Run, *, trace: Path | None, plot: Path | None) -> None:
    """The Chrome trace and the stacked-bar plot, where asked for."""
    if trace is not None:
        with whole(trace) as draft:
            write_trace(run.ledger, draft)
    if plot is not None:
        with whole(plot) as draft:
            write_plot([run.ledger], draft, described=machine())
