"""``secureattn approx``: what there is, what one promises and costs, and the cheapest for a need."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from secureattn.approx import FUNCTIONS, Interval, Realisation, realise
from secureattn.approx.attention import VARIANTS, Attention
from secureattn.commands.curves import write_curves
from secureattn.errors import InputError, SecureAttnError
from secureattn.ledger import units
from secureattn.plan.costs import Cost, cost
from secureattn.plan.select import Choice, candidates, cheapest, described, typical

SCHEMA = 1


@dataclass(frozen=True)
class Shown:
    """A realisation on a domain, with its cost; ``refused`` says why there is none."""

    function: str
    kind: str
    domain: Interval
    options: Mapping[str, Any]
    realisation: Realisation | None
    cost: Cost | None
    refused: str = ""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        made, c = self.realisation, self.cost
        found: dict[str, Any] = {"function": self.function, "kind": self.kind, "options": dict(self.options)}
        found["domain"] = list(self.domain)
        if made is None or c is None:
            return {**found, "refused": self.refused}
        return {
            **found,
            "error": made.error,
            "relative": made.relative,
            "changes_model": made.changes_model,
            "engines": engines(made.needs),
            "depth": c.depth,
            "products": c.products,
            "rounds": c.rounds,
            "bytes_sent": c.bytes_sent,
            "dealer_bytes": c.dealer_bytes,
            "source": made.source,
        }


def engines(needs: frozenset[Any]) -> list[str]:
    """Where something with these needs runs."""
    return ["plaintext", "crypten"] if needs else ["plaintext", "ckks", "crypten"]


def every() -> list[Shown]:
    """Every realisation of every function on a typical domain."""
    return [
        shown(f, kind, typical(f, kind), described(f, kind)) for f, m in FUNCTIONS.items() for kind in m.REALISATIONS
    ]


def shown(function: str, kind: str, domain: Interval, options: Mapping[str, Any]) -> Shown:
    """One realisation; where it cannot be made on the domain, why."""
    try:
        made = realise(function, options, domain)
    except SecureAttnError as error:
        return Shown(function, kind, domain, options, None, None, str(error))
    return Shown(function, kind, domain, options, made, cost(made))


def named(name: str, domain: Interval | None, options: Mapping[str, Any]) -> list[Shown] | Attention:
    """What ``show NAME`` is about: a function, ``function/kind``, or an attention variant."""
    function, _, kind = name.partition("/")
    if function in FUNCTIONS:
        kinds = FUNCTIONS[function].REALISATIONS
        if kind and kind not in kinds:
            raise InputError(f"{function} has no realisation {kind!r}, it has {', '.join(kinds)}")
        if None not in options.values():
            raise InputError(f"{name} is made for {' or '.join(options)}, not both")
        wanted = {k: _options(function, k, options) for k in ([kind] if kind else kinds)}
        for option, value in options.items():
            if value is not None and not any(option in found for found in wanted.values()):
                raise InputError(f"{name} takes no {option}; leave it out")
        rows = [shown(function, k, domain or typical(function, k), found) for k, found in wanted.items()]
        if all(row.realisation is None for row in rows):
            raise InputError(rows[0].refused)
        return rows
    if name in VARIANTS:
        return VARIANTS[name]
    raise InputError(
        f"nothing is called {name!r}; functions are {', '.join(FUNCTIONS)}, attention variants {', '.join(VARIANTS)}"
    )


def _options(function: str, kind: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a kind, with those asked for that it takes; an error replaces a size."""
    taken = inspect.signature(FUNCTIONS[function].REALISATIONS[kind]).parameters
    fitting = {name: value for name, value in wanted.items() if name in taken and value is not None}
    base = described(function, kind)
    if "error" in fitting:
        base = {"kind": kind}
    return {**base, **fitting}


def show_list(console: Console, rows: Sequence[Shown]) -> None:
    """Print all realisations and all attention variants."""
    console.print(_table(rows))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("attention", "weights", "needs", "runs on", "source"):
        table.add_column(heading)
    for variant in VARIANTS.values():
        table.add_row(variant.name, variant.formula, variant.demands, ", ".join(engines(variant.needs)), variant.source)
    console.print(table)


def show(console: Console, found: list[Shown] | Attention) -> None:
    """Print one realisation in full, a function's realisations side by side, or an attention variant."""
    if isinstance(found, Attention):
        _show_attention(console, found)
        return
    if len(found) == 1:
        (one,) = found
        build = FUNCTIONS[one.function].REALISATIONS[one.kind]
        console.print(f"[bold]{one.function}/{one.kind}[/bold]")
        console.print(inspect.cleandoc(build.__doc__ or ""), markup=False)
    console.print(_table(found))


def show_fit(console: Console, choices: Sequence[Choice]) -> None:
    """Print the cheapest realisation as a protocol's line, and what it was chosen from."""
    best = choices[0]
    console.print(f"{best.realisation.function} = {toml(best.options)}", markup=False, style="bold")
    console.print(_table([chosen(choice) for choice in choices]))


def chosen(choice: Choice) -> Shown:
    """A choice as a row."""
    made = choice.realisation
    return Shown(made.function, made.kind, made.domain, choice.options, made, choice.cost)


def fit(function: str, domain: Interval, error: float, engine: str) -> list[Choice]:
    """Every candidate, cheapest first; PlanError where there is none."""
    cheapest(function, domain, error, engine)
    return sorted(candidates(function, domain, error, engine), key=lambda choice: choice.rank(engine))


def toml(options: Mapping[str, Any]) -> str:
    """A realisation's options as a protocol file writes them."""
    parts = (
        f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value!r}" for name, value in options.items()
    )
    return "{ " + ", ".join(parts) + " }"


def _table(rows: Sequence[Shown]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in (
        "realisation",
        "on",
        "max error",
        "runs on",
        "depth",
        "products",
        "rounds",
        "bytes",
        "dealer bytes",
    ):
        table.add_column(heading, justify="left" if heading in ("realisation", "on", "runs on") else "right")
    table.add_column("source")
    for row in rows:
        made, c = row.realisation, row.cost
        on = "\\[{:.4g}, {:.4g}]".format(*row.domain)
        if made is None or c is None:
            table.add_row(f"{row.function}({row.kind})", on, "refused", *[units.UNKNOWN] * 6, row.refused)
            continue
        error = "another function" if made.changes_model else f"{made.error:.1e}{' rel.' if made.relative else ''}"
        counts = (units.number(c.depth), units.number(c.products), units.number(c.rounds))
        traffic = (f"{c.bytes_sent:.0f}", f"{c.dealer_bytes:.0f}")
        table.add_row(made.label, on, error, ", ".join(engines(made.needs)), *counts, *traffic, made.source)
    return table


def _show_attention(console: Console, variant: Attention) -> None:
    console.print(f"[bold]{variant.name}[/bold]: {variant.formula}")
    console.print(f"needs {variant.demands}; runs on {', '.join(engines(variant.needs))}")
    for site, function in variant.sites.items():
        console.print(f"site {site}: {function}")
    if variant.same_as:
        console.print(f"computes the function of {variant.same_as} in another way")
    console.print(f"source: {variant.source}")


def plot(found: list[Shown] | Attention, path: Path) -> None:
    """Plot the realisations of one function that are shown on the same domain as the first."""
    if isinstance(found, Attention):
        raise InputError(f"{found.name} is a function of whole rows; plot one of its functions instead")
    made = [row.realisation for row in found if row.realisation is not None and row.domain == found[0].domain]
    write_curves(made, found[0].domain, path)


def list_document(rows: Sequence[Shown]) -> dict[str, Any]:
    """Everything there is, as JSON."""
    return {**document(list(rows)), "attention": [_attention(variant) for variant in VARIANTS.values()]}


def document(found: list[Shown] | Attention) -> dict[str, Any]:
    """What was shown, as JSON."""
    if isinstance(found, Attention):
        return {"schema": SCHEMA, "attention": [_attention(found)]}
    return {"schema": SCHEMA, "realisations": [row.document() for row in found]}


def _attention(variant: Attention) -> dict[str, Any]:
    return {
        "name": variant.name,
        "formula": variant.formula,
        "needs": variant.demands,
        "sites": dict(variant.sites),
        "engines": engines(variant.needs),
        "same_as": variant.same_as,
        "source": variant.source,
    }
