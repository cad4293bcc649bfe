"""Writes the generated parts of README.md: what the demo measured (from ``out/``) and what runs where (from the code).

``make demo && python benchmarks/report.py`` (the plot goes along). ``--tables`` writes only what needs no run: which
approximations there are, the atlas, both engines' benchmarks and the peers as last measured; ``--check`` says whether
those are up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from secureattn.approx.attention import VARIANTS
from secureattn.commands import approximations
from secureattn.ledger import units
from secureattn.ledger.machine import in_words

ROUNDING = 1e-12
ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
OUT = ROOT / "out"
PROTOCOLS = ("power-softmax-ckks", "power-softmax-mpc")
PHASES = ("setup", "keys", "encrypt", "offline", "online", "refresh", "decrypt")


def main() -> int:
    """Rewrite the parts between markers, or check those that need no run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the tables that need no run are current")
    parser.add_argument("--tables", action="store_true", help="write only the tables that need no run")
    options = parser.parse_args()
    old = README.read_text()
    text = unmeasured(old)
    if options.check:
        print(
            "README.md is " + ("up to date" if text == old else "out of date: run python benchmarks/report.py --tables")
        )
        return 0 if text == old else 1
    if options.tables:
        README.write_text(text)
        return 0
    text = replaced(text, "accuracy", accuracy_table())
    text = replaced(text, "profile", profile_table())
    text = replaced(text, "output", demo_output())
    README.write_text(text)
    shutil.copyfile(OUT / "demo.png", ROOT / "benchmarks" / "demo.png")
    return 0


def unmeasured(text: str) -> str:
    """The text with the tables that need no run."""
    tables = {
        "support": support_table,
        "attention": attention_table,
        "atlas": atlas_table,
        "mpc": mpc_table,
        "text": text_table,
        "scale": scale_table,
        "ckks": ckks_table,
        "overhead": overhead_table,
        "links": links_table,
        "scaling": scaling_table,
        "peers": peers_table,
    }
    for name, table in tables.items():
        text = replaced(text, name, table())
    return text


def replaced(text: str, name: str, table: str) -> str:
    """The text with a new body between the markers called ``name``."""
    pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)"
    new, found = re.subn(pattern, lambda match: f"{match[1]}{table}{match[2]}", text, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"README.md has {found} places for the table {name!r}, 1 is needed")
    return new


def support_table() -> str:
    """Every realisation on a typical domain: error, cost on each engine, source."""
    rows = [
        "| realisation | on | max error | runs on | levels | ct×ct | rounds | bytes | source |",
        "|---|---|---|---|---:|---:|---:|---:|---|",
    ]
    for shown in approximations.every():
        one = shown.document()
        domain = "[{:.3g}, {:.3g}]".format(*one["domain"])
        label = shown.realisation.label if shown.realisation else f"{shown.function}({shown.kind})"
        if "refused" in one:
            rows.append(f"| {label} | {domain} | {one['refused']} | -- | -- | -- | -- | -- | |")
            continue
        error = "another function" if one["changes_model"] else f"{_error(one['error'])}{' rel.' * one['relative']}"
        where = "all" if "ckks" in one["engines"] else "clear, shares"
        counts = [units.number(one[name]) for name in ("depth", "products", "rounds")]
        traffic = f"{one['bytes_sent'] + one['dealer_bytes']:.0f}"
        rows.append(f"| {label} | {domain} | {error} | {where} | {' | '.join(counts)} | {traffic} | {one['source']} |")
    return "\n".join(rows) + "\n"


def _error(value: float) -> str:
    """Below what doubles hold, processors differ in the digits."""
    return f"{value:.1e}" if value == 0 or value >= ROUNDING else f"< {ROUNDING:.0e}"


def attention_table() -> str:
    """Every attention variant: its weights, what it needs, where it runs."""
    rows = ["| attention | weights | needs | runs on | source |", "|---|---|---|---|---|"]
    for variant in VARIANTS.values():
        where = "all" if "ckks" in approximations.engines(variant.needs) else "clear, shares"
        formula = variant.formula.replace("|", "\\|")
        rows.append(f"| {variant.name} | {formula} | {variant.demands} | {where} | {variant.source} |")
    return "\n".join(rows) + "\n"


def atlas_table() -> str:
    """The atlas as it was last measured."""
    return (ROOT / "benchmarks" / "results" / "atlas.md").read_text()


def ckks_table() -> str:
    """The CKKS benchmark as it was last measured."""
    return (ROOT / "benchmarks" / "results" / "ckks.md").read_text()


def mpc_table() -> str:
    """The secret-sharing benchmark as it was last measured."""
    return (ROOT / "benchmarks" / "results" / "mpc.md").read_text()


def text_table() -> str:
    """The text benchmark as it was last measured."""
    return (ROOT / "benchmarks" / "results" / "text.md").read_text()


def scale_table() -> str:
    """What models cost at scale, as it was last planned and measured."""
    return (ROOT / "benchmarks" / "results" / "scale.md").read_text()


def overhead_table() -> str:
    """What recording costs, as it was last measured."""
    return (ROOT / "benchmarks" / "results" / "overhead.md").read_text()


def links_table() -> str:
    """What TLS between parties costs, as it was last measured."""
    return (ROOT / "benchmarks" / "results" / "links.md").read_text()


def scaling_table() -> str:
    """Jobs by workers, as they were last measured."""
    return (ROOT / "benchmarks" / "results" / "scaling.md").read_text()


def peers_table() -> str:
    """The comparison with peers as it was last measured."""
    return (ROOT / "benchmarks" / "results" / "peers.md").read_text()


def demo_output() -> str:
    """What the demo printed."""
    lines = [line.rstrip() for line in (OUT / "demo.txt").read_text().splitlines()]
    headings = (re.sub("^─+ (.*?) ─+$", r"──── \1 ────", line) for line in lines)
    return "```\n" + "\n".join(headings) + "\n```\n"


def accuracy_table() -> str:
    """Exact, clear, encrypted for both protocols."""
    rows = [
        "| protocol | images | exact | clear | encrypted | agrees with clear | approximation | encryption |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for protocol in PROTOCOLS:
        c = _read(protocol, "compare")
        a, e = c["accuracy"], c["max_abs_error"]
        agrees = c["agreement"]["encrypted_with_clear"]
        rows.append(
            f"| {protocol} | {c['samples']} | {a['exact']:.2%} | {a['clear']:.2%} | {a['encrypted']:.2%} "
            f"| {agrees:.2%} | {e['approximation']:.1e} | {e['encryption']:.1e} |"
        )
    return "\n".join(rows) + "\n"


def profile_table() -> str:
    """Seconds by phase, and what was counted."""
    profiles = [_read(protocol, "profile") for protocol in PROTOCOLS]
    rows = [f"| {profiles[0]['samples']} images | {' | '.join(PROTOCOLS)} |", "|---|---:|---:|"]
    for phase in PHASES:
        rows.append(_row(phase, [units.seconds(p["phases"][phase]) for p in profiles]))
    rows.append(_row("**total**", [f"**{units.seconds(p['total']['seconds'])}**" for p in profiles]))
    rows.append(_row("rounds", [units.number(p["total"]["rounds"]) for p in profiles]))
    rows.append(_row("bytes sent", [units.data(p["total"]["bytes_sent"]) for p in profiles]))
    rows.append(_row("bytes from the dealer", [units.data(p["total"]["dealer_bytes"]) for p in profiles]))
    for name in ("ct_products", "pt_products", "rotations", "relinearisations", "rescales", "refreshes"):
        rows.append(_row(name.replace("_", " "), [units.number(p["total"][name]) for p in profiles]))
    machine = profiles[0]["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "tenseal", "crypten"))
    return "\n".join(rows) + f"\n\nMeasured on {in_words(machine)}; {versions}.\n"


def _row(name: str, figures: list[str]) -> str:
    return f"| {name} | {' | '.join(figures)} |"


def _read(protocol: str, kind: str) -> dict[str, Any]:
    return dict(json.loads((OUT / f"demo-{protocol}.{kind}.json").read_text()))


if __name__ == "__main__":
    sys.exit(main())
