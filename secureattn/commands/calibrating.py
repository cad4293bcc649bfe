"""``secureattn plan --calibrate``: what this machine's primitives cost, measured once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from secureattn.backends.ckks import calibration
from secureattn.backends.ckks.costs import PRIMITIVES, Costs
from secureattn.backends.ckks.parameters import RINGS, most_levels
from secureattn.commands import output


def calibrate(*, shown: bool, json: Path | None) -> None:
    """Measure this machine and keep the result for later plans; print it, write it as JSON where asked to."""
    from secureattn.backends.ckks.primitives import measure

    with output.progress() as tell:
        costs = measure(tell)
    calibration.save(costs, calibration.path())
    if shown:
        show(costs, output.stdout())
    if json:
        output.write_json(json, document(costs))


def show(costs: Costs, console: Console) -> None:
    """Print milliseconds of every primitive on every ring, and the other rates."""
    console.print(f"[bold]{costs.source}[/bold], kept in {calibration.path()}")
    columns = [(ring, primes) for ring in RINGS for primes in _shown(ring)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="milliseconds by ring degree and primes left")
    table.add_column("primitive")
    for ring, primes in columns:
        table.add_column(f"{ring}\n{primes}", justify="right")
    for name in PRIMITIVES:
        seconds = (costs.primitive_s(name, ring, primes) for ring, primes in columns)
        table.add_row(name.replace("_", " "), *(f"{1e3 * s:.3g}" for s in seconds))
    console.print(table)
    rates = costs.rates
    console.print(
        f"matrix products, nanoseconds: {1e9 * rates['matrix_inputs']:.3g} a residue in, "
        f"{1e9 * rates['matrix_outputs']:.3g} a residue out, {1e9 * rates['matrix_products']:.3g} a product"
    )
    console.print(f"memory used for the first time: {1e3 * 2**30 * rates['fresh_bytes']:.3g} ms a GiB")
    console.print(
        f"processes: {1e3 * rates['processes']:.3g} ms to start one, {1e3 * rates['exchanges']:.3g} ms to wait for "
        f"one, {1e9 * rates['residues_sent']:.3g} ns a residue shown, work together takes {rates['together']:.2f} "
        "times as long"
    )


def document(costs: Costs) -> dict[str, Any]:
    """The costs as JSON, in seconds: coefficients (a, b, c) of ``a + b·k + c·k²`` for k primes left, by ring degree."""
    return {
        "schema": 1,
        "source": costs.source,
        "machine": calibration.machine(),
        "primitives": {
            name: {str(ring): list(row) for ring, row in rings.items()} for name, rings in costs.primitives.items()
        },
        "rates": dict(costs.rates),
    }


def _shown(ring_degree: int) -> tuple[int, ...]:
    """One, half of and all primes that a ciphertext can have on a ring."""
    most = most_levels(ring_degree) + 1
    return 1, most // 2, most
