"""A plan as tables and as JSON: parameters, functions, predicted cost, whom to trust, what to warn of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from secureattn.backends.ckks.parameters import MAX_MODULUS_BITS
from secureattn.ledger import LAN, WAN, Ledger, Network, network_seconds, network_table, region_table, to_json, units
from secureattn.plan import HIDING_BITS, CkksPlan, MpcPlan, Plan


def parameters(plan: Plan) -> dict[str, Any]:
    """The engine's parameters, for reports; ``security_bits`` is null where no such number exists."""
    if plan.ckks is not None:
        p = plan.ckks.parameters
        return {
            "security_bits": p.security_bits,
            "ring_degree": p.ring_degree,
            "modulus_bits": p.modulus_bits,
            "modulus_bits_allowed": MAX_MODULUS_BITS[p.ring_degree],
            "prime_bits": list(p.prime_bits),
            "scale_bits": p.scale_bits,
            "levels": p.levels,
            "hiding_bits": plan.ckks.hiding_bits,
            "hiding_bits_run": plan.ckks.hiding_bits_run,
            "flooding_bits": plan.ckks.flooding.bits if plan.ckks.flooding else None,
            "precision_bits": plan.ckks.flooding.precision_bits if plan.ckks.flooding else None,
        }
    if plan.mpc is not None:
        mpc = plan.protocol.mpc
        return {
            "security_bits": None,
            "parties": mpc.parties,
            "dealer": mpc.dealer,
            "truncation": mpc.truncation,
            "fractional_bits": mpc.fractional_bits,
            "integer_bits": mpc.integer_bits,
            "weights": mpc.weights,
            "gross_errors_expected": plan.mpc.gross_errors,
            "ring_bits": 64,
        }
    return {"security_bits": None}


def heading(plan: Plan) -> dict[str, Any]:
    """What every JSON document of a plan or its run starts with, schema 1."""
    return {
        "schema": 1,
        "model": plan.model.config.name,
        "protocol": plan.protocol.name,
        "engine": plan.protocol.engine,
        "samples": plan.samples,
        "tokens": plan.shape.tokens,
        "new_tokens": plan.new,
        "ranges": "assumed" if plan.model.ranges.assumed else "calibrated",
        "parameters": parameters(plan),
        "trust": plan.protocol.trust,
        "warnings": list(plan.warnings),
    }


def document(plan: Plan, networks: Sequence[Network] = (LAN, WAN)) -> dict[str, Any]:
    """The plan as JSON."""
    functions = {site: _function(plan, site) for site in plan.realisations}
    made = {
        **heading(plan),
        "functions": functions,
        "networks": modelled(plan.ledger, networks),
        **to_json(plan.ledger),
    }
    if plan.mpc is not None:
        made["mpc"] = {
            "predicted_seconds": dict(plan.mpc.seconds),
            "memory_bytes": {one.name: dict(one.parts()) for one in plan.mpc.memory},
        }
    if plan.ckks is not None:
        c = plan.ckks
        made["ckks"] = {
            "depth": c.depth,
            "batches": c.batches,
            "queries_per_batch": c.capacity,
            "refresh_points": sorted(c.schedule),
            "rotation_keys": len(c.rotations),
            "layout": c.layout,
            "predicted_latency_s": dict(c.predicted),
            "workers": c.workers,
            "bytes": dict(c.sizes),
            "memory_bytes": dict(c.memory.parts()),
            "predicted_seconds": dict(c.seconds),
            "predicted_with": plan.costs.source,
        }
    return made


def modelled(ledger: Ledger, networks: Sequence[Network]) -> dict[str, Any]:
    """Modelled seconds of the messages by phase, on each network; those of computing come on top."""
    return {
        network.name: {
            "bandwidth_bps": network.bandwidth_bps,
            "round_trip_s": network.round_trip_s,
            "modelled_seconds": network_seconds(ledger, network),
            "by_phase": {phase: network_seconds(ledger, network, phase=phase) for phase in ledger.phases},
        }
        for network in networks
    }


def _function(plan: Plan, site: str) -> dict[str, Any]:
    r = plan.realisations[site]
    quality = {"error": r.error, "relative": r.relative, "depth": r.depth}
    return {"realisation": r.label, "domain": list(r.domain), **quality}


def show(plan: Plan, console: Console, networks: Sequence[Network] = (LAN, WAN)) -> None:
    """Print it."""
    tokens = plan.shape.tokens if plan.new is None else f"{plan.shape.tokens - plan.new + 1} tokens and {plan.new} new"
    what = f"{plan.samples} samples of {tokens}{' tokens' if plan.new is None else ' ones'}"
    console.print(f"[bold]{plan.title}[/bold], {what}, engine {plan.protocol.engine}")
    show_trust(plan, console)
    console.print(_functions(plan))
    if plan.ckks is not None:
        _show_ckks(plan, plan.ckks, console)
    elif plan.mpc is not None:
        console.print(_range(plan, plan.mpc))
        console.print(region_table(plan.ledger, width=console.width))
        console.print(network_table(plan.ledger, networks))
        shown = {phase: units.seconds(s) for phase, s in plan.mpc.seconds.items() if s}
        console.print("predicted (all parties and the dealer on two cores): " + _listed(shown))
        for one in plan.mpc.memory:
            parts = {name: units.data(size) for name, size in one.parts().items() if size}
            console.print(f"peak memory predicted, {one.name}: {_listed(parts)}")


def show_trust(plan: Plan, console: Console) -> None:
    """Who is trusted, and what a report must warn of."""
    console.print(f"trust: {plan.protocol.trust}")
    for warning in plan.warnings:
        console.print(f"[bold]warning: {warning}[/bold]")


def _show_ckks(plan: Plan, c: CkksPlan, console: Console) -> None:
    p = c.parameters
    console.print(
        f"ring degree {p.ring_degree}, {p.modulus_bits} modulus bits of {MAX_MODULUS_BITS[p.ring_degree]} allowed at "
        f"{p.security_bits}-bit security (2024 guidelines), {p.levels} levels, scale 2^{p.scale_bits}"
    )
    console.print(
        f"program depth {c.depth} levels; {c.capacity} queries a batch, {c.batches} batch{'es' * (c.batches > 1)}; "
        f"a result ends at level {c.output_level}"
    )
    console.print(_layout(plan, c))
    if c.schedule:
        points = ", ".join(f"{point} ({c.points[point]})" for point in c.points if point in c.schedule)
        console.print(f"refresh by the client, ciphertexts in brackets: {points}")
        console.print(
            f"refresh masks hide every value by {c.hiding_bits:.1f} bits (at least {HIDING_BITS} required), all "
            f"values of the run together by {c.hiding_bits_run:.1f}"
        )
    else:
        console.print("no refresh: one round trip")
    if c.flooding:
        f = c.flooding
        console.print(
            f"scores may be shared: flooded by {f.bits} bits, noise of standard deviation {f.deviation:.2g} on each of "
            f"{f.count}; {f.precision_bits:.1f} bits after the point stay of {f.error_bits}, "
            f"{f.error_bits - f.precision_bits:.1f} are lost"
        )
    console.print("sizes: " + _listed({key.replace("_", " "): units.data(value) for key, value in c.sizes.items()}))
    console.print("peak memory, both roles: " + _listed({k: units.data(v) for k, v in c.memory.parts().items() if v}))
    console.print(region_table(plan.ledger, width=console.width))
    console.print("predicted: " + _listed({phase: units.seconds(value) for phase, value in c.seconds.items()}))
    console.print(f"predicted with {plan.costs.source}")


def _range(plan: Plan, planned: MpcPlan) -> str:
    """The declared range, and what truncation may do to values in it."""
    mpc = plan.protocol.mpc
    told = f"values up to {planned.largest:.3g}, below 2^{mpc.integer_bits} declared; {mpc.truncation} truncation: "
    if planned.gross_errors is None:
        return told + "never grossly wrong in that range"
    return (
        f"{told}{planned.gross_errors:.1e} grossly wrong values expected in a run at most, |z|/2^63 for each of "
        f'{max(r.total("truncations") for r in planned.recorders):,}; truncation = "exact" has none'
    )


def _layout(plan: Plan, c: CkksPlan) -> str:
    """Which layout, and why."""
    others = [f"{name} would take {units.seconds(s)}" for name, s in c.predicted.items() if name != c.layout]
    why = f"for {plan.samples} queries {units.seconds(c.predicted[c.layout])} predicted" if c.predicted else "as asked"
    if plan.protocol.ckks.layout == "auto" and not others:
        why += ", the other does not fit"
    shared = f"; {c.workers} processes" if c.workers > 1 else ""
    return f"{c.layout} layout: {', '.join([why, *others])}{shared}"


def _functions(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("site", "realisation", "domain", "max error", "depth"):
        table.add_column(heading)
    for site, r in plan.realisations.items():
        error = units.UNKNOWN if r.error is None else f"{r.error:.1e}{' relative' if r.relative else ''}"
        depth = units.number(r.depth)
        table.add_row(site, r.label, f"[{r.domain[0]:.4g}, {r.domain[1]:.4g}]".replace("[", "\\["), error, depth)
    return table


def _listed(parts: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parts.items())
