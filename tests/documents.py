"""Profiles and comparisons whose every figure is known, as JSON documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from secureattn.commands.plan_tables import modelled
from secureattn.events import Event
from secureattn.ledger import LAN, WAN, Ledger, Party, to_json

PARAMETERS = {"security_bits": 128, "ring_degree": 16384, "prime_bits": [60, 40, 60], "flooding_bits": None}
MACHINE = {"cpu": "Abacus", "cores": 2, "memory_bytes": 2**34, "python": "3.11.9", "tenseal": None}


def row(region: str, op: str, phase: str, seconds: float, **counts: int) -> Event:
    """An operation that ran once."""
    return Event(region, op, phase, 1, seconds, seconds, dict(counts))


def heading(engine: str, **changed: Any) -> dict[str, Any]:
    """What every document starts with."""
    told = {
        "schema": 1, "model": "toy", "protocol": "safe", "engine": engine, "samples": 8, "tokens": 16,
        "parameters": dict(PARAMETERS), "trust": "semi-honest server and client", "warnings": [],
    }  # fmt: skip
    return {**told, **changed}


def shares(*, slower: float = 1.0, extra: tuple[Event, ...] = ()) -> Ledger:
    """Two parties and a dealer; the client is slower: 0.5 s set-up, 1 s offline, 4 s online, times ``slower``."""
    deal = row("embed", "deal", "offline", 1.0, dealer_bytes=800, dealer_requests=1)
    deal.primitive_s = {"dealer_bytes": 0.75}
    owner = (row("", "connect", "setup", 0.25), deal, row("embed", "linear", "online", 2.0, rounds=2, bytes_sent=1000))
    client = (
        row("", "connect", "setup", 0.5),
        row("embed", "deal", "offline", 1.0),
        row("embed", "linear", "online", 3.0 * slower, rounds=2, bytes_sent=3000),
        row("head", "linear", "online", 1.0, rounds=1, bytes_sent=500),
        *extra,
    )
    dealer = (
        row("", "wait", "offline", 9.0, dealer_requests=1),
        row("product", "derive", "offline", 0.5, dealer_macs=7),
    )
    parties = (Party("model owner", owner), Party("client", client))
    return Ledger("toy · safe", "crypten", parties, measured=True, beside=(Party("dealer", dealer),))


def encrypted() -> Ledger:
    """A CKKS run of both roles: the client 8 + 2 + 1 + 0.5 s, the server 0.25 + 10 + 3 s."""
    events = (
        row("", "other", "keys", 8.0),
        row("", "encode", "setup", 0.25, encodes=5),
        row("", "encrypt", "encrypt", 2.0, encryptions=4, bytes_sent=4096),
        row("layer.0/attention", "scores", "online", 6.0, ct_products=512, rotations=30),
        row("layer.0/attention", "refresh", "refresh", 3.0, rounds=1, bytes_sent=2048, refreshes=96),
        row("layer.0/attention", "answer", "refresh", 1.0),
        row("layer.0/ffn", "linear", "online", 4.0, pt_products=64),
        row("", "decrypt", "decrypt", 0.5, decryptions=1, bytes_sent=1024),
    )
    events[3].primitive_s = {"rotations": 2.5}
    return Ledger("toy · safe", "ckks", (Party("evaluator", events),), measured=True)


def profile(ledger: Ledger, **changed: Any) -> dict[str, Any]:
    """As ``secureattn profile --json``."""
    networks = modelled(ledger, (LAN, WAN))
    told = {"kind": "profile", "changes_model": False, "machine": dict(MACHINE), "networks": networks}
    return {**heading(ledger.engine), **told, **to_json(ledger), **changed}


def comparison(ledger: Ledger, **changed: Any) -> dict[str, Any]:
    """As ``secureattn compare --json``: exact 100 %, clear 87.5 %, encrypted 75 %."""
    told = {
        "kind": "compare",
        "accuracy": {"exact": 1.0, "clear": 0.875, "encrypted": 0.75},
        "agreement": {"clear": 0.875, "encrypted": 0.625, "encrypted_with_clear": 0.5},
        "max_abs_error": {"approximation": 2.5e-3, "encryption": 1.25e-6},
        "escapes": {}, "changes_model": False, "machine": dict(MACHINE),
        "seconds": {**dict.fromkeys(("setup", "keys", "encrypt", "offline", "online", "refresh", "decrypt")),
                    **ledger.phases, "total": ledger.seconds},
    }  # fmt: skip
    return {**heading(ledger.engine), **told, **changed}


def written(path: Path, document: dict[str, Any]) -> Path:
    """A file of it."""
    path.write_text(json.dumps(document))
    return path
