"""Who did what: a run's events and time line by role, client and server, parties and dealer.

Under CKKS one recorder sees both roles, which take turns: a phase is the client's or the server's, and so is what the
client does while a refresh waits for it. On shares every process has a recorder of its own. Roles are another cut of
the same run than the ledger's sums: those of a party that waits for a slower one, and a dealer's, come beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

from secureattn.events import ANSWER, PHASES, WAIT, Event, Span
from secureattn.ledger.ledger import Ledger, Party

CLIENT_PHASES = frozenset({"keys", "encrypt", "decrypt"})
"""What a key owner does under CKKS, besides answering refreshes."""

_MESSAGES = ("rounds", "dealer_bytes")  # primitives whose seconds are spent in an exchange
WAITING = "waiting"


@dataclass(frozen=True)
class Busy:
    """Seconds of one role: ``phases`` at work, in the order of PHASES, and ``waiting_s`` in messages, for others."""

    name: str
    phases: dict[str, float]
    waiting_s: float

    @property
    def seconds(self) -> float:
        """At work and waiting."""
        return sum(self.phases.values()) + self.waiting_s


def roles(ledger: Ledger) -> tuple[Party, ...]:
    """Every role with the events and spans that are its own; the parties first, then who serves them."""
    if ledger.engine != "ckks" or len(ledger.parties) != 1:
        return (*ledger.parties, *ledger.beside)
    (whole,) = ledger.parties
    return tuple(_part(whole, name, client=name == "client") for name in ("client", "server"))


def busy(ledger: Ledger) -> tuple[Busy, ...]:
    """What every role spent its seconds on; messages count as waiting, whatever part of them was work."""
    return tuple(_busy(party) for party in roles(ledger))


def _busy(party: Party) -> Busy:
    phases, waiting = {}, 0.0
    for phase in PHASES:
        events = [event for event in party.events if event.phase == phase]
        if not events:
            continue
        waits = sum(map(_waited, events))
        phases[phase] = sum(event.seconds_self for event in events) - waits
        waiting += waits
    return Busy(party.name, phases, waiting)


def _waited(event: Event) -> float:
    if event.op == WAIT:
        return event.seconds_self
    return min(sum(event.primitive_s.get(name, 0.0) for name in _MESSAGES), event.seconds_self)


def _part(whole: Party, name: str, *, client: bool) -> Party:
    events = tuple(event for event in whole.events if _clients(event) == client)
    return Party(name, events, tuple(span for span in whole.spans if _clients(span) == client), whole.origin_s)


def _clients(one: Event | Span) -> bool:
    return one.phase in CLIENT_PHASES or (one.phase == "refresh" and one.op == ANSWER)
