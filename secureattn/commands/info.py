"""``secureattn info``: what is here, and how to get what is not."""

from __future__ import annotations

import importlib.util
from argparse import Namespace as Options
from typing import Any

from rich import box
from rich.table import Table

from secureattn import __version__
from secureattn.commands import output
from secureattn.errors import INSTALL
from secureattn.ledger import machine
from secureattn.ledger.machine import in_words
from secureattn.nn.model import ORIGIN, Origin
from secureattn.resources import find, names

MODULES = {
    "plaintext": ("torch",),
    "ckks": ("tenseal", "zstandard", "cryptography"),
    "crypten": ("crypten", "omegaconf", "yaml", "cryptography"),
    "text": ("tokenizers",),
}
"""Engine, or text as input → the modules it needs."""


def info(options: Options) -> None:
    """Say what is here."""
    output.writable(options.json)
    described = describe()
    show(described)
    if options.json:
        output.write_json(options.json, described)


def describe() -> dict[str, Any]:
    """Versions, machine, engines and text, weights that other packages carry, models that run, configs to plan,
    protocols.
    """
    parts = {name: _part(modules, INSTALL[name]) for name, modules in MODULES.items()}
    origins = {name: find("models", name) / ORIGIN for name in names("models")}
    weights = {name: Origin.load(path) for name, path in origins.items() if path.exists()}
    run = [name for name in names("models") if (find("models", name) / "ranges.json").exists()]
    return {
        "schema": 1,
        "version": __version__,
        "machine": machine(),
        "engines": {name: part for name, part in parts.items() if name != "text"},
        "text": parts["text"],
        "weights": {name: _part((origin.package,), origin.install) for name, origin in weights.items()},
        "models": run,
        "configs": [name for name in names("models") if name not in run],
        "protocols": names("protocols"),
    }


def _part(modules: tuple[str, ...], command: str) -> dict[str, Any]:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return {"ready": not missing, "missing": missing, "command": command if missing else None}


def show(described: dict[str, Any]) -> None:
    """Print it."""
    console, here = output.stdout(), described["machine"]
    console.print(f"SecureAttn {described['version']}")
    console.print(f"machine: {in_words(here)}, {here['platform']}")
    versions = ("python", "numpy", "torch", "tenseal", "crypten")
    console.print("versions: " + ", ".join(f"{name} {here[name] or 'missing'}" for name in versions))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("part", "here", "to get it"):
        table.add_column(heading)
    weights = {f"weights of {name}": part for name, part in described["weights"].items()}
    for name, part in {**described["engines"], "text": described["text"], **weights}.items():
        table.add_row(name, "yes" if part["ready"] else f"no: {', '.join(part['missing'])}", part["command"] or "")
    console.print(table)
    console.print("models:    " + ", ".join(described["models"]))
    console.print("configs alone, to plan or to convert weights for: " + ", ".join(described["configs"]))
    console.print("protocols: " + ", ".join(described["protocols"]))
