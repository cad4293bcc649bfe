"""What one realisation costs on each engine, counted by running it on the symbolic engines."""

from __future__ import annotations

from dataclasses import dataclass

from secureattn.approx import Realisation
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.symbolic import SymbolicMpc

_ROWS, _COLUMNS = 125, 16  # of the tensor that is counted; a row function sees rows of 16
_VALUES = _ROWS * _COLUMNS


@dataclass(frozen=True)
class Cost:
    """Per value: under CKKS ``depth`` levels and ``products`` of ciphertexts, None where it cannot run; on shares of
    two parties ``rounds`` (for any number of values), ``bytes_sent`` by each party and ``dealer_bytes``, set-up aside.
    """

    depth: int | None
    products: int | None
    rounds: int
    bytes_sent: float
    dealer_bytes: float


def cost(realisation: Realisation, parameters: MpcParameters | None = None) -> Cost:
    """Count a realisation's cost; an exact one has none, as no engine but the plaintext runs it."""
    backend = SymbolicMpc(parameters or MpcParameters())
    with backend.recorder.phase("online"):
        realisation(backend.shape_input((_ROWS, _COLUMNS)))
    events = backend.recorder.events.values()

    def total(name: str, *phases: str) -> int:
        return sum(event.counts.get(name, 0) for event in events if event.phase in phases)

    return Cost(
        realisation.depth,
        realisation.products,
        total("rounds", "online"),
        total("bytes_sent", "online") / _VALUES,
        total("dealer_bytes", "online", "offline") / _VALUES,
    )
