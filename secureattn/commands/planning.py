"""``secureattn plan``: what a run will cost, before any key is made; and the plans that other commands begin with."""

from __future__ import annotations

from argparse import Namespace as Options
from typing import Any

from secureattn import load_model, load_protocol, runs
from secureattn.commands import output, plan_tables
from secureattn.errors import InputError
from secureattn.ledger import load_network
from secureattn.nn.batch import Batch, Shape
from secureattn.nn.model import Model
from secureattn.plan import Plan, make_plan
from secureattn.protocol import Protocol
from secureattn.runs.result import Progress


def plan(options: Options) -> None:
    """Measure the machine, search or plan, as asked for; without a model, measure alone."""
    alone = options.model is None
    output.writable(options.json, options.output, options.save)
    if options.calibrate:
        from secureattn.commands import calibrating

        calibrating.calibrate(shown=alone, json=options.json if alone else None)
    if alone:
        return
    if options.search:
        from secureattn.commands import searching

        searching.search(options)
        return
    for name in ("loss", "budget", "output"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name} is for a search; add --search")
    networks = [load_network(name) for name in options.network or ("lan", "wan")]
    with output.progress() as tell:
        model, protocol = named(options, runs=False)
        shape = asked(model, options.batch, options.tokens, options.new)
        made = planned(
            model, protocol, shape, tell, workers=options.workers, memory_gib=options.memory, new=options.new
        )
    plan_tables.show(made, output.stdout(), networks)
    if options.save:
        from secureattn.deploy.offer import write_plan

        write_plan(made, options.save)
    if options.json:
        output.write_json(options.json, plan_tables.document(made, networks))


def named(options: Options, *, runs: bool = True) -> tuple[Model, Protocol]:
    """The model and the protocol that a command names; one that can only be planned is refused where it ``runs``."""
    model, protocol = load_model(options.model), load_protocol(options.protocol)
    if runs:
        model.check_runs()
    return model, protocol


def asked(model: Model, samples: int, tokens: int | None, new: int | None = None) -> Shape:
    """What is to be planned for: inputs of so many tokens, unless given as many as leave room for the ``new`` ones;
    InputError for such that the model does not take.
    """
    most = model.config.tokens
    if tokens is not None and (tokens > most or (tokens < most and not model.config.variable)):
        limit = f"up to {most}" if model.config.variable else f"always {most}"
        raise InputError(f"inputs of model {model.config.name} have {limit} tokens, not {tokens}")
    return Shape(samples, tokens or max(most + 1 - (new or 1), 1))


def planned(
    model: Model,
    protocol: Protocol,
    shape: Shape,
    tell: Progress,
    *,
    workers: int | None = None,
    memory_gib: float | None = None,
    new: int | None = None,
) -> Plan:
    """A plan for inputs of a shape, which says what it does; the rest as ``make_plan`` takes it."""
    return make_plan(
        model,
        protocol,
        samples=shape.samples,
        workers=workers,
        progress=lambda text: tell(text, 0, 0),
        shape=shape,
        new=new,
        memory_bytes=memory_gib and memory_gib * 2**30,
    )


def sampled(options: Options, tell: Progress) -> tuple[Plan, Batch, Any]:
    """A plan for the model's held-out samples, the samples, and their labels; a missing engine is refused first."""
    model, protocol = named(options)
    runs.require(protocol.engine)
    inputs, labels = model.samples(options.samples)
    batch = model.batch(inputs)
    made = planned(model, protocol, batch.shape, tell, workers=options.workers, memory_gib=options.memory)
    return made, batch, labels
