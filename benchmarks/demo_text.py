"""Private semantic search: a client's sentence goes in as shares, its vector comes out to the client alone, and the
nearest of a list of documents is found, with the plaintext answer beside it and what every step cost.

The documents and their vectors are public here; what stays hidden is the query, its vector, and the model's weights.
Writes JSON to ``out/``. Run by ``make demo-text``; ``--query TEXT`` asks something else.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table

from secureattn import load_model, load_protocol
from secureattn.commands import comparison, output, plan_tables, profiling
from secureattn.ledger import LAN, WAN, breakdown_table, network_table, region_table
from secureattn.nn.model import lines
from secureattn.plan import make_plan
from secureattn.runs import clear_run

MODEL, PROTOCOL = "minilm", "accurate-mpc"
QUERY = "My jumper became too small after I washed it, what did I do wrong?"
DOCUMENTS = Path(__file__).with_name("documents.txt")
OUT = Path("out")
SHOWN = 3

Vectors = npt.NDArray[np.float64]


def main() -> None:
    """Embed the documents in the clear, the query on shares and in the clear, and rank."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--query", default=QUERY, metavar="TEXT", help=f"what to look for (default: {QUERY!r})")
    parser.add_argument("--documents", type=Path, default=DOCUMENTS, metavar="FILE", help="one a line")
    options = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    console = output.stdout()
    model, protocol = load_model(MODEL), load_protocol(PROTOCOL)
    documents = lines(options.documents)
    with output.progress() as tell:
        stored = model.batch(documents)
        query = model.batch([options.query])
        tell(f"planning {PROTOCOL}", 0, 0)
        plan = make_plan(model, protocol, samples=1, shape=query.shape)
        tell(f"embedding {len(documents)} documents in the clear", 0, 0)
        index = clear_run(plan, stored, exact=True)
        compared = comparison.compared(plan, query, None, tell)
    console.rule(f"{MODEL} · {PROTOCOL}")
    show(options.query, documents, index.outputs, compared, console)
    comparison.show(compared, console)
    ledger = compared.encrypted.ledger
    console.print(region_table(ledger, width=console.width))
    console.print(breakdown_table(ledger, top=12, width=console.width))
    console.print(network_table(ledger, (LAN, WAN)))
    profile = profiling.document(plan, compared.encrypted, (LAN, WAN))
    output.write_json(OUT / "demo-text.profile.json", {**profile, "plan": plan_tables.document(plan)})
    console.print(f"written to {OUT}/: demo-text.profile.json")


def show(query: str, documents: list[str], index: Vectors, c: comparison.Comparison, console: Console) -> None:
    """The nearest documents by the vector from shares, and by the one in plaintext."""
    private, plain = (index @ run.outputs[0] for run in (c.encrypted, c.exact))
    places = np.argsort(np.argsort(-plain)) + 1
    console.print(f"query, {c.plan.shape.tokens} tokens: [bold]{query}[/bold]")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "on shares", "plaintext", "its place in plaintext"):
        table.add_column(column, justify="right")
    table.add_column("document")
    for place, i in enumerate(np.argsort(-private)[:SHOWN], 1):
        table.add_row(str(place), f"{private[i]:.5f}", f"{plain[i]:.5f}", str(places[i]), documents[i])
    console.print(table)


if __name__ == "__main__":
    main()
