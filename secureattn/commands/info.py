"""``secureattn info``: what is here, and how to get what is not."""

from __future__ import annotations

import importlib.util
from typing import Any

from rich import box
from rich.table import Table

from secureattn import __version__
from secureattn.commands.output import stdout
from secureattn.errors import INSTALL
from secureattn.ledger import machine
from secureattn.ledger.machine import in_words
from secureattn.resources import names

MODULES = {
    "plaintext": ("torch",),
    "ckks": ("tenseal", "zstandard", "cryptography"),
    "crypten": ("crypten", "omegaconf", "yaml", "cryptography"),
}
"""Engine → the modules it needs."""


def describe() -> dict[str, Any]:
    """Versions, machine, engines, models, protocols."""
    engines = {}
    for name, modules in MODULES.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        engines[name] = {"ready": not missing, "missing": missing, "command": INSTALL[name] if missing else None}
    return {
        "schema": 1,
        "version": __version__,
        "machine": machine(),
        "engines": engines,
        "models": names("models"),
        "protocols": names("protocols"),
    }


def show(described: dict[str, Any]) -> None:
    """Print it."""
    console, here = stdout(), described["machine"]
    console.print(f"SecureAttn {described['version']}")
    console.print(f"machine: {in_words(here)}, {here['platform']}")
    versions = ("python", "numpy", "torch", "tenseal", "crypten")
    console.print("versions: " + ", ".join(f"{name} {here[name] or 'missing'}" for name in versions))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("engine", "here", "to get it"):
        table.add_column(heading)
    for name, engine in described["engines"].items():
        table.add_row(
            name, "yes" if engine["ready"] else f"no: {', '.join(engine['missing'])}", engine["command"] or ""
        )
    console.print(table)
    console.print("models:    " + ", ".join(described["models"]))
    console.print("protocols: " + ", ".join(described["protocols"]))
