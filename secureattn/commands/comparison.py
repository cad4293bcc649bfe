"""``secureattn compare``: exact, approximated in the clear, and encrypted, side by side."""

from __future__ import annotations

import math
from argparse import Namespace as Options
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table

from secureattn.commands import output, planning
from secureattn.commands.plan_tables import heading, parameters, show_trust
from secureattn.events import PHASES
from secureattn.ledger import machine, phase_table, units
from secureattn.nn.batch import Batch
from secureattn.plan import Plan
from secureattn.runs import Progress, Run, agreement, clear_run, cosines, execute, perplexity


@dataclass(frozen=True)
class Comparison:
    """Three runs of one model on the same samples."""

    plan: Plan
    labels: npt.NDArray[np.int64] | None
    inputs: Batch
    exact: Run
    clear: Run
    encrypted: Run

    def accuracy(self, run: Run) -> float | None:
        """Share of samples classified right; None where nobody knows."""
        return None if self.labels is None else float((run.outputs.argmax(-1) == self.labels).mean())

    def agreement(self, run: Run, other: Run) -> float:
        """Share of samples with the same class, or, of vectors, with the same nearest other sample."""
        return agreement(run.outputs, other.outputs, vectors=self.vectors)

    @property
    def vectors(self) -> bool:
        """Whether outputs are vectors, not scores."""
        return self.plan.config.output == "vector"

    @property
    def next(self) -> bool:
        """Whether outputs are scores of next tokens."""
        return self.plan.config.output == "next"

    def perplexity(self, run: Run) -> float | None:
        """Of the inputs' own tokens; None for other models."""
        return perplexity(run.outputs, self.inputs.values, self.inputs.lengths) if self.next else None

    def document(self) -> dict[str, Any]:
        """As JSON, schema 1."""
        seconds = self.encrypted.seconds()
        return {
            **heading(self.plan),
            "kind": "compare",
            "accuracy": {
                "exact": self.accuracy(self.exact),
                "clear": self.accuracy(self.clear),
                "encrypted": self.accuracy(self.encrypted),
            },
            "agreement": {
                "clear": self.agreement(self.clear, self.exact),
                "encrypted": self.agreement(self.encrypted, self.exact),
                "encrypted_with_clear": self.agreement(self.encrypted, self.clear),
            },
            **self._cosines(),
            **({"perplexity": {name: self.perplexity(run) for name, run in self._runs().items()}} if self.next else {}),
            "max_abs_error": {
                "approximation": _finite(_distance(self.clear, self.exact)),
                "encryption": _finite(_distance(self.encrypted, self.clear)),
            },
            "escapes": dict(self.clear.escapes),
            "seconds": {name: seconds.get(name) for name in (*PHASES, "total")},
            "changes_model": self.plan.protocol.changes_model,
            "machine": machine(),
        }

    def _runs(self) -> dict[str, Run]:
        return {"exact": self.exact, "clear": self.clear, "encrypted": self.encrypted}

    def _cosines(self) -> dict[str, Any]:
        if not self.vectors:
            return {}
        found = {"clear": cosines(self.clear.outputs, self.exact.outputs)}
        found["encrypted"] = cosines(self.encrypted.outputs, self.exact.outputs)
        return {"cosine": {name: {"mean": float(c.mean()), "least": float(c.min())} for name, c in found.items()}}


def compare(options: Options) -> None:
    """Run the held-out samples in all three ways and show them."""
    output.writable(options.json)
    with output.progress() as tell:
        plan, inputs, labels = planning.sampled(options, tell)
        found = compared(plan, inputs, labels, tell, device=options.device)
    show(found, output.stdout())
    if options.json:
        output.write_json(options.json, found.document())


def compared(
    plan: Plan, inputs: Batch, labels: npt.NDArray[np.int64] | None, progress: Progress, *, device: str = "cpu"
) -> Comparison:
    """Run all three; the encrypted one last, as it takes longest."""
    progress("running in the clear", 0, 0)
    exact, clear = clear_run(plan, inputs, exact=True), clear_run(plan, inputs)
    encrypted = execute(plan, inputs, progress=progress, device=device)
    return Comparison(plan, labels, inputs, exact, clear, encrypted)


def show(c: Comparison, console: Console) -> None:
    """Print the three columns as rows, the phases, and what they rest on."""
    console.print(f"[bold]{c.plan.title}[/bold], {c.plan.samples} samples, engine {c.plan.protocol.engine}")
    what = "cosine to exact, least" if c.vectors else "perplexity" if c.next else "accuracy"
    last = "vectors" if c.vectors else "scores"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("run", what, "agrees with exact", "agrees with clear", f"max |error| of {last}"):
        table.add_column(column, justify="left" if column == "run" else "right")
    table.add_row("exact", _quality(c, c.exact), units.UNKNOWN, units.UNKNOWN, units.UNKNOWN)
    rows = (("clear", c.clear, c.exact, "approximation"), ("encrypted", c.encrypted, c.clear, "encryption"))
    for name, run, reference, kind in rows:
        table.add_row(
            name,
            _quality(c, run),
            f"{c.agreement(run, c.exact):.2%}",
            units.UNKNOWN if run is c.clear else f"{c.agreement(run, c.clear):.2%}",
            f"{_distance(run, reference):.1e} ({kind})",
        )
    console.print(table)
    if c.clear.escapes:
        left = ", ".join(f"{n} at {site}" for site, n in c.clear.escapes.items())
        console.print(f"warning: values outside their function's domain: {left}")
    console.print(phase_table(c.encrypted.ledger))
    show_basis(c.plan, console)


def show_basis(plan: Plan, console: Console) -> None:
    """What the numbers above rest on: parameters, trust model, warnings."""
    known = {name: value for name, value in parameters(plan).items() if value is not None}
    if known:
        console.print("parameters: " + ", ".join(f"{k.replace('_', ' ')} {_shown(v)}" for k, v in known.items()))
    if plan.protocol.changes_model:
        console.print("this protocol computes another function than the model's own")
    show_trust(plan, console)


def _quality(c: Comparison, run: Run) -> str:
    if c.vectors:
        return units.UNKNOWN if run is c.exact else f"{cosines(run.outputs, c.exact.outputs).min():.6f}"
    if c.next:
        return f"{c.perplexity(run):.4f}"
    accuracy = c.accuracy(run)
    return units.UNKNOWN if accuracy is None else f"{accuracy:.2%}"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _finite(x: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return x if math.isfinite(x) else None


def _distance(a: Run, b: Run) -> float:
    apart = np.abs(a.outputs - b.outputs)
    return float(np.nanmax(apart) if apart.ndim > 2 else apart.max())  # scores of next tokens are padded with NaN
