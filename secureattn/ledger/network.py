"""What rounds and bytes take on a network: a model, never a measurement."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from secureattn.errors import InputError
from secureattn.events import Event
from secureattn.ledger import units
from secureattn.ledger.ledger import Ledger
from secureattn.ledger.table import lay_out, title

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Network:
    """Bandwidth of each direction of a link, in bits a second, and the time there and back."""

    name: str
    bandwidth_bps: float
    round_trip_s: float

    def seconds(self, rounds: float, bytes_sent: int) -> float:
        """What messages take: ``rounds·round_trip + 8·bytes/bandwidth``; halves of rounds for messages one way."""
        return rounds * self.round_trip_s + 8 * bytes_sent / self.bandwidth_bps


PLANNED = Network("LAN", bandwidth_bps=3e9, round_trip_s=0.8e-3)
"""What CKKS plans weigh refreshes for: the LAN of BOLT (Pang et al., IEEE S&P 2024)."""

LAN = Network("LAN", bandwidth_bps=1e9, round_trip_s=0.5e-3)
WAN = Network("WAN", bandwidth_bps=100e6, round_trip_s=40e-3)
PUMA = Network("PUMA", bandwidth_bps=5e9, round_trip_s=1e-3)
"""The network that PUMA was measured on (Dong et al., arXiv 2307.12533, section 4.1)."""
_NAMED = {"lan": LAN, "wan": WAN, "puma": PUMA}
_KEYS = ("bandwidth_bps", "round_trip_s")
_MESSAGES = ("rounds", "dealer_requests", "bytes_sent", "dealer_bytes")


def load_network(name: str | Path) -> Network:
    """``lan``, ``wan``, ``puma``, or a TOML file with ``bandwidth_bps``, ``round_trip_s`` and maybe ``name``."""
    named = _NAMED.get(str(name).lower())
    if named is not None:
        return named
    path = Path(name)
    if not path.is_file():
        raise InputError(f"no network is called {str(name)!r} and no such file exists; there are {', '.join(_NAMED)}")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"network {path} cannot be read: {error}") from error
    violations = _violations(raw)
    if violations:
        raise InputError(f"network {path}: " + "; ".join(violations))
    return Network(raw.get("name", path.stem), float(raw["bandwidth_bps"]), float(raw["round_trip_s"]))


def network_seconds(ledger: Ledger, network: Network, *, phase: str | None = None) -> float:
    """Seconds that messages of the busiest party take, in one phase or all, computing left out.

    Formula: rounds·round_trip + 8·bytes/bandwidth, where a request to the dealer is a round trip and what the dealer
    sends counts as bytes. Under CKKS a round is a question to the client and its answer; on shares all parties that
    send do so at once, so a round is half a round trip. Each sends over a link of its own; messages that the engine
    does not count (``Ledger.count``) are left out.
    """

    def party_seconds(events: Sequence[Event]) -> float:
        counts = {name: sum(event.counts.get(name, 0) for event in events) for name in _MESSAGES}
        rounds = counts["rounds"] * (0.5 if ledger.engine == "crypten" else 1.0) + counts["dealer_requests"]
        sent = counts["bytes_sent"] + counts["dealer_bytes"]
        return network.seconds(rounds, sent)

    parties = ([e for e in party.events if phase in (None, e.phase)] for party in ledger.parties)
    return max(map(party_seconds, parties), default=0.0)


def network_table(ledger: Ledger, networks: Sequence[Network]) -> Table:
    """Modelled seconds of the messages on each network, phase by phase, and with the run's own seconds added.

    The run's own seconds hold what its messages took where it ran, so the last column errs on the slow side.
    """
    talking = [phase for phase in ledger.phases if network_seconds(ledger, Network("", 1.0, 1.0), phase=phase) > 0]
    body = []
    for network in networks:
        by_phase = [network_seconds(ledger, network, phase=phase) for phase in talking]
        messages = sum(by_phase)
        figures = map(units.seconds, (network.round_trip_s, *by_phase, messages, messages + ledger.seconds))
        body.append([network.name, units.rate(network.bandwidth_bps), *figures])
    headings = ["network", "bandwidth", "round trip", *talking, "messages", "with the run"]
    return lay_out(f"{title(ledger)}, network modelled", headings, body)


def _violations(raw: dict[str, Any]) -> list[str]:
    found = [f"{key} is not known; there are name, {', '.join(_KEYS)}" for key in raw if key not in ("name", *_KEYS)]
    if not isinstance(raw.get("name", ""), str):
        found.append("name must be text")
    for key in _KEYS:
        value = raw.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is None:
            found.append(f"{key} is missing")
        elif not number or value < 0 or (key == "bandwidth_bps" and value == 0):
            least = "above" if key == "bandwidth_bps" else "of at least"
            found.append(f"{key} must be a number {least} 0, not {value!r}")
    return found
