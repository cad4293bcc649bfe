"""Writes the generated parts of README.md: what the demo measured (from ``out/``) and what runs where (from the code).

``make demo && python benchmarks/report.py`` (the plot goes along); ``--check`` only says whether the support table is
up to date.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from secureattn.approx import FUNCTIONS, realise
from secureattn.ledger import units
from secureattn.ledger.machine import in_words

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
OUT = ROOT / "out"
PROTOCOLS = ("power-softmax-ckks", "power-softmax-mpc")
PHASES = ("setup", "keys", "encrypt", "offline", "online", "refresh", "decrypt")
DOMAINS = {"gelu": (-4.0, 4.0), "exp": (-8.0, 0.0), "reciprocal": (1.0, 16.0), "rsqrt": (0.0625, 1.0)}
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {("exp", "chebyshev"): {"degree": 7, "squarings": 2}}


def main() -> int:
    """Rewrite the parts between markers, or check the one that needs no run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = README.read_text()
    if parser.parse_args().check:
        current = replaced(text, "support", support_table()) == text
        print("README.md is up to date" if current else "README.md is out of date: run python benchmarks/report.py")
        return 0 if current else 1
    text = replaced(text, "support", support_table())
    text = replaced(text, "accuracy", accuracy_table())
    text = replaced(text, "profile", profile_table())
    text = replaced(text, "output", demo_output())
    README.write_text(text)
    shutil.copyfile(OUT / "demo.png", ROOT / "benchmarks" / "demo.png")
    return 0


def replaced(text: str, name: str, table: str) -> str:
    """The text with a new body between the markers called ``name``."""
    pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)"
    new, found = re.subn(pattern, lambda match: f"{match[1]}{table}{match[2]}", text, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"README.md has {found} places for the table {name!r}, 1 is needed")
    return new


def support_table() -> str:
    """Every realisation, where it runs, its error and depth on a typical domain."""
    rows = [
        "| function | realisation | plaintext | CKKS | shares | max error | on | depth |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for function, module in FUNCTIONS.items():
        for kind, build in module.REALISATIONS.items():
            rows.append(_support_row(function, kind, build))
    return "\n".join(rows) + "\n"


def _support_row(function: str, kind: str, build: Any) -> str:
    default = {"degree": 15} if "degree" in inspect.signature(build).parameters and kind == "chebyshev" else {}
    made = realise(function, {"kind": kind, **OPTIONS.get((function, kind), default)}, DOMAINS[function])
    ckks = "needs comparison" if made.needs_comparison else "yes"
    error = "another function" if made.changes_model else f"{made.error:.1e}{' rel.' if made.relative else ''}"
    domain = "[{:g}, {:g}]".format(*DOMAINS[function])
    return f"| {function} | {made.label} | yes | {ckks} | yes | {error} | {domain} | {units.number(made.depth)} |"


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
