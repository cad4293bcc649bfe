"""Encrypted inference between machines.

Under CKKS by files or over HTTP: ``Owner`` makes keys, encrypts and decrypts, ``Evaluator`` computes, ``write_plan``
and ``read_plan`` keep what both must agree on; ``Connection`` has a server evaluate. On secret shares: ``party``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secureattn.deploy.connection import Connection
    from secureattn.deploy.evaluator import Evaluator
    from secureattn.deploy.offer import Offer, read_offer, read_plan, write_offer, write_plan
    from secureattn.deploy.owner import Owner
    from secureattn.deploy.rounds import Rounds

__all__ = [
    "Connection",
    "Evaluator",
    "Offer",
    "Owner",
    "Rounds",
    "read_offer",
    "read_plan",
    "write_offer",
    "write_plan",
]

_HOMES = {"Connection": "connection", "Evaluator": "evaluator", "Owner": "owner", "Rounds": "rounds"}


def __getattr__(name: str) -> Any:
    """Each is loaded when it is asked for, as some need an engine's library."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'offer')}"), name)
