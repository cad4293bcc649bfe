"""The main job: classify all held-out images of digits-vit encrypted, on CKKS and on shares, and say what it cost.

Writes JSON and a plot to ``out/``. Run by ``make demo``; ``--samples N`` takes fewer images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from secureattn import load_model, load_protocol
from secureattn.commands import comparison, output, plan_tables, profiling
from secureattn.ledger import LAN, WAN, Ledger, breakdown_table, machine, network_table, region_table, write_plot
from secureattn.plan import make_plan

MODEL = "digits-vit"
PROTOCOLS = ("power-softmax-ckks", "power-softmax-mpc")
OUT = Path("out")


def main() -> None:
    """Plan, compare and profile each protocol, then say where everything was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, help="images (default: all 360)")
    samples = parser.parse_args().samples
    OUT.mkdir(exist_ok=True)
    console = output.stdout(record=True)
    ledgers = [run(protocol, samples, console) for protocol in PROTOCOLS]
    write_plot(ledgers, OUT / "demo.png", described=machine())
    console.save_text(str(OUT / "demo.txt"), clear=False)
    console.print(f"written to {OUT}/: demo.txt (this page), demo.png (the breakdown as a plot), and as JSON")
    for name in PROTOCOLS:
        console.print(f"  demo-{name}.compare.json, demo-{name}.profile.json")


def run(protocol: str, samples: int | None, console: Console) -> Ledger:
    """One protocol: its plan, the three-way comparison, the breakdown of the encrypted run."""
    model = load_model(MODEL)
    inputs, labels = model.samples(samples)
    with output.progress() as tell:
        plan = make_plan(model, load_protocol(protocol), samples=len(inputs))
        compared = comparison.compared(plan, inputs, labels, tell)
    ledger = compared.encrypted.ledger
    console.rule(f"{MODEL} · {protocol}")
    comparison.show(compared, console)
    console.print(region_table(ledger, width=console.width))
    console.print(breakdown_table(ledger, top=12, width=console.width))
    console.print(network_table(ledger, (LAN, WAN)))
    output.write_json(OUT / f"demo-{protocol}.compare.json", compared.document())
    profile = profiling.document(plan, compared.encrypted, (LAN, WAN))
    output.write_json(OUT / f"demo-{protocol}.profile.json", {**profile, "plan": plan_tables.document(plan)})
    return ledger


if __name__ == "__main__":
    main()
