"""``secureattn keygen``, ``encrypt``, ``evaluate``, ``refresh`` and ``decrypt``: CKKS by files."""

from __future__ import annotations

import contextlib
import shutil
import sys
from argparse import Namespace as Options
from pathlib import Path
from typing import Any

from secureattn import load_model, runs
from secureattn.commands import inference, output, planning
from secureattn.deploy import rounds
from secureattn.deploy.evaluator import Evaluator
from secureattn.deploy.offer import Offer, read_offer, read_plan, write_plan
from secureattn.deploy.owner import EVALUATOR, Owner, key_sizes
from secureattn.deploy.parcel import OFFER_FILE, SECRET_FILE
from secureattn.errors import InputError, PlanError
from secureattn.ledger import machine, phase_table, to_json, units
from secureattn.plan import Plan
from secureattn.plan.memory import installed
from secureattn.runs.result import Progress


def keygen(options: Options) -> None:
    """Plan unless there is a plan, say how large the keys will be, make them."""
    runs.require("ckks")
    folder: Path = options.output
    if (folder / SECRET_FILE).exists():
        raise InputError(f"{folder} holds a secret key, which is never overwritten; choose another folder")
    output.writable(options.json)
    with output.progress() as tell:
        plan = None if options.plan else _planned(options, tell)
        offer = read_offer(options.plan) if plan is None else Offer.of(plan)
        sizes = key_sizes(offer)
        if sum(sizes.values()) > installed() / 4:
            raise PlanError(f"keys of {units.data(sum(sizes.values()))} are more than this machine can make")
        said = ", ".join(f"{name} {units.data(size)}" for name, size in sizes.items())
        print(f"making keys for {offer.title}: {said}", file=sys.stderr)
        tell("making keys", 0, 0)
        owner = Owner.generate(offer, folder)
    owner.close()
    _give_plan(plan, options.plan, folder / EVALUATOR / OFFER_FILE)
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    console = output.stdout()
    console.print(f"[bold]{offer.title}[/bold]: keys {owner.keys}, {offer.terms.parameters.security_bits} bits secure")
    for name, size in files.items():
        console.print(f"  {name:24} {units.data(size):>10}  {_MEANT.get(name, '')}")
    console.print(f"trust: {offer.trust}")
    if options.json:
        output.write_json(options.json, {"schema": 1, "keys": owner.keys, "bytes": files, "plan": offer.hash})


def _planned(options: Options, tell: Progress) -> Plan:
    model, protocol = planning.named(options)
    return planning.planned(model, protocol, planning.asked(model, options.batch, options.tokens), tell)


_MEANT = {
    SECRET_FILE: "stays here, for its owner alone (mode 0600)",
    f"{EVALUATOR}/public.key": "for the evaluator",
    f"{EVALUATOR}/evaluation.key": "for the evaluator",
    f"{EVALUATOR}/{OFFER_FILE}": "for the evaluator",
}


def _give_plan(plan: Plan | None, file: Path | None, to: Path) -> None:
    """Beside the evaluator's keys goes the whole plan, or as much of it as is here."""
    if plan is not None:
        write_plan(plan, to)
    elif file is not None:
        shutil.copyfile(file, to)


def encrypt(options: Options) -> None:
    """Inputs of a file into a query."""
    runs.require("ckks")
    output.writable(options.json, options.output)
    given = inference.read_inputs(options.input)
    model = load_model(options.model) if options.model else None
    with contextlib.closing(Owner.load(options.keys)) as owner:
        terms = owner.offer.terms
        if model is not None:
            output.warn(inference.cut(model, given))
        shape = owner.encrypt(given, options.output, model=model)
        if terms.input_range is not None:
            output.warn(inference.outside(terms.config.name, terms.input_range, given))
        size = options.output.stat().st_size
        console = output.stdout()
        console.print(f"{owner.offer.title}: {shape.samples} inputs in {options.output}, {units.data(size)}")
        console.print("public: how many inputs there are" + (", and their lengths" if shape.lengths else ""))
        if options.json:
            output.write_json(options.json, {"schema": 1, "samples": shape.samples, "bytes": size, "keys": owner.keys})


def evaluate(options: Options) -> None:
    """A query of a file into a result, refreshes through a folder."""
    runs.require("ckks")
    output.writable(options.json, options.output)
    model, protocol = planning.named(options)
    plan, offer = read_plan(options.plan or options.keys / OFFER_FILE, model, protocol)
    if offer.terms.rounds and options.rounds is None:
        raise InputError(
            f"{offer.title} refreshes {offer.terms.rounds} times; name a folder where the key owner runs secureattn "
            'refresh (--rounds), use secureattn serve, or a protocol with refresh = "none"'
        )
    with output.progress() as tell, _folder(options.rounds):
        evaluator = Evaluator(plan, offer, tell)
        tell("loading keys", 0, 0)
        evaluator.use(options.keys)
        answer = None
        if options.rounds is not None:
            wait = rounds.waiting(options.rounds, wait_s=options.wait)
            answer = rounds.Rounds(options.rounds, offer, evaluator.keys, wait)
        evaluator.evaluate(options.query, options.output, answer)
    console, ledger = output.stdout(), evaluator.ledger
    console.print(phase_table(ledger))
    console.print(f"{offer.title}: {options.output}, {units.data(options.output.stat().st_size)}")
    console.print(f"trust: {offer.trust}")
    if options.json:
        about = {"schema": 1, "model": model.config.name, "protocol": protocol.name, "engine": "ckks"}
        output.write_json(options.json, {**about, "trust": offer.trust, "machine": machine(), **to_json(ledger)})


def _folder(path: Path | None) -> Any:
    return contextlib.nullcontext() if path is None else rounds.meeting(path)


def refresh(options: Options) -> None:
    """Answer refreshes until the evaluator is done."""
    runs.require("ckks")
    output.writable(options.json)
    with contextlib.closing(Owner.load(options.keys)) as owner, output.progress() as tell:
        planned = owner.offer.terms.rounds

        def told(number: int) -> None:
            tell("refreshing", number, planned)

        served = rounds.serve(owner, options.rounds, wait_s=options.wait, tell=told)
    output.stdout().print(f"{owner.offer.title}: {served} rounds answered")
    if options.json:
        output.write_json(options.json, {"schema": 1, "rounds": served, "keys": owner.keys})


def decrypt(options: Options) -> None:
    """A result into scores or vectors."""
    runs.require("ckks")
    output.writable(options.json, options.output)
    inference.check_output(options.output)
    with contextlib.closing(Owner.load(options.keys)) as owner:
        outputs, config = owner.decrypt(options.result), owner.offer.terms.config
        output.warn(inference.lost(outputs))
        inference.write_outputs(options.output, outputs, kind=config.output)
        made = "vectors" if config.output == "vector" else "scores"
        output.stdout().print(f"{owner.offer.title}: {made} of {len(outputs)} inputs in {options.output}")
        if options.json:
            output.write_json(options.json, {"schema": 1, "samples": len(outputs), "keys": owner.keys})
