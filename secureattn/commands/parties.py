"""``secureattn party``: one party of a run on secret shares, or the dealer, here or on another machine."""

from __future__ import annotations

import os
import sys
from argparse import Namespace as Options
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from secureattn import runs
from secureattn.backends.crypten.meeting import Address
from secureattn.backends.crypten.runtime import CLIENT
from secureattn.commands import inference, output, planning
from secureattn.deploy.party import PLAIN, Outcome, Seat, check, names, take_part
from secureattn.errors import InputError
from secureattn.ledger import machine, phase_table, role_table, to_json
from secureattn.ledger.trace import write_part
from secureattn.nn.batch import Batch
from secureattn.nn.model import Model
from secureattn.protocol import Protocol

_ROLES = {"owner": 0, "client": CLIENT}


def party(options: Options) -> None:
    """Take part in a run in one role, and write what this process has of it."""
    output.writable(options.json, options.output, options.trace)
    model, protocol = planning.named(options)
    links = {"tls": options.tls, "insecure": options.insecure_links}
    seat = seat_of(protocol, options.rank, options.rendezvous, float(options.wait), **links)
    inputs = inputs_of(model, seat, options.input, options.output)
    runs.require(protocol.engine)
    output.warn(lost(seat))
    alone = inputs is not None or not seat.launched  # launched at once, all are told the same files
    trace = trace_of(options.trace, seat)
    outcome = take_part(model, protocol, seat, inputs, device=options.device, trace=trace is not None, tell=_fail)
    write(outcome, protocol, options.output, options.json if alone else None, trace)
    show(outcome, protocol, output.stdout())


def _fail(text: str) -> None:
    print(f"secureattn: error: {text}", file=sys.stderr, flush=True)


def seat_of(
    protocol: Protocol,
    rank: str | None,
    rendezvous: str | None,
    wait_s: float,
    environment: Mapping[str, str] = os.environ,
    *,
    tls: Path | None = None,
    insecure: bool = False,
) -> Seat:
    """Rank and address as given, or as torchrun says (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    text = rank if rank is not None else environment.get("RANK")
    if text is None:
        raise InputError("which party is this? give --rank, or start it with torchrun")
    roles = {**_ROLES, "dealer": protocol.mpc.parties}
    if text not in roles and not text.isdecimal():
        raise InputError(f"a rank is a number, or one of {', '.join(roles)}, not {text!r}")
    chosen = roles[text] if text in roles else int(text)
    launched = rank is None and "WORLD_SIZE" in environment
    check(protocol, chosen, int(environment["WORLD_SIZE"]) if launched else None)
    if rendezvous is not None:
        return Seat(chosen, Address.parse(rendezvous), wait_s, launched, tls, insecure)
    if "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
        raise InputError("where do the parties meet? give --rendezvous HOST:PORT, or start them with torchrun")
    address = Address.parse(f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}")
    agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Seat(chosen, Address(address.host, address.port, launched=agent), wait_s, launched, tls, insecure)


def inputs_of(model: Model, seat: Seat, file: Path | None, scores: Path | None) -> Batch | None:
    """The client's inputs; a client without files is refused, and others with them unless all were launched at once."""
    if seat.rank != CLIENT:
        if not seat.launched and (file is not None or scores is not None):
            raise InputError("the client alone (--rank client) reads an input and writes an output")
        return None
    if file is None or scores is None:
        raise InputError("the client needs --input FILE and --output FILE")
    inference.check_output(scores)
    return model.batch(inference.read_inputs(file))


def trace_of(file: Path | None, seat: Seat) -> Path | None:
    """Where this process's time line goes; launched at once, all are told one name, to which each adds its rank."""
    if file is None or not seat.launched:
        return file
    return file.with_name(f"{file.stem}.{seat.rank}{file.suffix}")


def show(outcome: Outcome, protocol: Protocol, console: Console) -> None:
    """Print what this process did and cost, and who is trusted."""
    console.print(f"[bold]{outcome.name}[/bold]: {outcome.samples} inputs, done")
    console.print(phase_table(outcome.ledger))
    console.print(role_table(outcome.ledger))
    console.print(f"trust: {protocol.trust}")
    console.print(f"links between the processes: {outcome.links}")


def lost(seat: Seat) -> str:
    """What a run over open links gives up."""
    if not seat.insecure:
        return ""
    return (
        f"links are {PLAIN} (--insecure-links): who reads all of them can work out inputs and weights, who writes to "
        "them can pose as a party"
    )


def write(outcome: Outcome, protocol: Protocol, scores: Path | None, json: Path | None, trace: Path | None) -> None:
    """The scores, this party's own profile as JSON, and its time line."""
    if outcome.outputs is not None and scores is not None:
        inference.write_outputs(scores, outcome.outputs, kind=outcome.kind)
    if json is not None:
        output.write_json(json, _document(outcome, protocol))
    if trace is not None and outcome.clock_error_s is not None:
        with output.whole(trace) as draft:
            write_part(outcome.ledger, draft, pid=outcome.rank, error_s=outcome.clock_error_s)


def _document(outcome: Outcome, protocol: Protocol) -> dict[str, Any]:
    return {
        "schema": 1,
        "party": outcome.name,
        "processes": names(protocol),
        "protocol": protocol.name,
        "samples": outcome.samples,
        "trust": protocol.trust,
        "links": outcome.links,
        "machine": machine(),
        **to_json(outcome.ledger),
    }
