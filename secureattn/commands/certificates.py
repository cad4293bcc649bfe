"""``secureattn certificates``: for each process of a run, what it proves its role with."""

from __future__ import annotations

from argparse import Namespace as Options

from secureattn.commands import output
from secureattn.errors import EngineError


def make(options: Options) -> None:
    """Make them, and say what goes where."""
    try:
        from secureattn.deploy import certificates
    except ModuleNotFoundError as missing:
        raise EngineError(f"certificates need the package {missing.name}; run pip install cryptography") from missing

    made = certificates.make(options.output, options.roles, hosts=dict(options.hosts or ()), days=options.days)
    console = output.stdout()
    for folder in made:
        console.print(f"{folder}: for the machine of {folder.name}, as --tls FOLDER; valid {options.days} days")
    console.print(
        f"{options.output / certificates.KEPT}: the key that signs; keep it here, it goes to no other machine"
    )
