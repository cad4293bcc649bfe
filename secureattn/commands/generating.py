"""``secureattn generate``: a prompt in, tokens out, with what a token costs."""

from __future__ import annotations

from argparse import Namespace as Options
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from secureattn import runs
from secureattn.commands import comparison, output, planning
from secureattn.commands.inference import read_inputs
from secureattn.errors import InputError
from secureattn.ledger import machine, units
from secureattn.ledger import to_json as as_json
from secureattn.nn.choice import Choice
from secureattn.nn.model import Model
from secureattn.runs import generation
from secureattn.runs.generation import Generated


def generate(options: Options) -> None:
    """Go on from one prompt, or from a file of prompts of one length; print the text and the cost of a token."""
    model, protocol = planning.named(options)
    output.writable(options.json)
    if (options.prompt is None) == (options.file is None):
        raise InputError("give either a PROMPT or a --file of prompts")
    prompt = model.batch([options.prompt] if options.file is None else read_inputs(options.file))
    choice = Choice(options.top_k, options.temperature, options.seed)
    runs.require(protocol.engine)
    with output.progress() as tell:
        tell("planning", 0, 0)
        plan = generation.planned(model, protocol, prompt.shape, options.new)
        made = generation.generate(plan, prompt, options.new, choice, progress=tell)
        known = generation.clear(plan, prompt, options.new, Choice(), exact=True) if options.compare else None
    console = output.stdout()
    shape = prompt.shape
    console.print(
        f"[bold]{plan.title}[/bold]: {shape.samples} prompt(s) of {shape.tokens} tokens, {options.new} new ones each"
    )
    for given, tokens in zip(prompt.values, made.tokens, strict=True):
        console.print(_words(model, given, tokens), markup=False, highlight=False)
    if known is not None:
        console.print(f"agrees with the plaintext model's greedy tokens: {np.mean(made.tokens == known.tokens):.2%}")
    show(made, console)
    comparison.show_basis(plan, console)
    if options.json:
        output.write_json(options.json, document(plan, made, known))


def show(made: Generated, console: Console) -> None:
    """The pass over the prompt, and one over a new token."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("a pass of", "passes", "online", "dealt ahead", "rounds", "sent", "dealer"):
        table.add_column(heading, justify="left" if heading == "a pass of" else "right")
    for name, cost in made.costs().items():
        table.add_row(
            name,
            units.number(round(cost["passes"])),
            units.seconds(cost["online_s"]),
            units.seconds(cost["offline_s"]),
            units.number(round(cost["rounds"])),
            units.data(round(cost["bytes_sent"])),
            units.data(round(cost["dealer_bytes"])),
        )
    console.print(table)


def document(plan: Any, made: Generated, known: Generated | None) -> dict[str, Any]:
    """As JSON, schema 1."""
    return {
        "schema": 1,
        "model": plan.model.config.name,
        "protocol": plan.protocol.name,
        "engine": plan.protocol.engine,
        "tokens": made.tokens.tolist(),
        "agrees_with_plaintext": None if known is None else float(np.mean(made.tokens == known.tokens)),
        "by_pass": made.costs(),
        "seconds": list(made.seconds),
        "trust": plan.protocol.trust,
        "machine": machine(),
        **as_json(made.ledger),
    }


def _words(model: Model, prompt: Any, tokens: Any) -> str:
    """Text where the model has a tokenizer, numbers where not."""
    try:
        return model.tokenizer.decode([*prompt.tolist(), *tokens.tolist()])
    except InputError:
        return f"{prompt.tolist()} → {tokens.tolist()}"
