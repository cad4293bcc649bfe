"""The ledger: the events of all parties of a run, and the rules by which they add up.

Seconds are those of the slowest party, whose rows therefore sum to the total; phases that it never entered (a client
encrypts, an evaluator computes) are those of the party that spent longest in them. Traffic is summed over parties;
any other count is the highest of a party, since all of them take part in the same products, openings and rounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from secureattn.events import PHASES, Event, Recorder, Span

_CKKS = (
    "ct_products",
    "pt_products",
    "rotations",
    "relinearisations",
    "rescales",
    "additions",
    "encodes",
    "refreshes",
    "rounds",
    "bytes_sent",
)
_CRYPTEN = (
    "rounds",
    "bytes_sent",
    "dealer_bytes",
    "openings",
    "products",
    "macs",
    "harmonics",
    "truncations",
    "comparisons",
    "dealer_requests",
    "dealer_macs",
    "keystream_bytes",
)
ENGINE_COUNTS: dict[str, tuple[str, ...]] = {"plaintext": (), "ckks": _CKKS, "crypten": _CRYPTEN}
"""Primitives each engine keeps count of; any other count of that engine is unknown."""

COUNTS = tuple(dict.fromkeys((*_CKKS, *_CRYPTEN)))
"""All primitives, in the order they are reported."""

_PASSING_BY = frozenset({"rounds", "bytes_sent", "dealer_bytes", "dealer_requests", "keystream_bytes", "encodes"})
_RUNNING = frozenset({"offline", "online", "refresh"})


@dataclass(frozen=True)
class Party:
    """What one process recorded: its events, and its time line where it was traced, which begins at ``origin_s`` of
    the clock that all processes of a machine share.
    """

    name: str
    events: tuple[Event, ...]
    spans: tuple[Span, ...] = ()
    origin_s: float = 0.0

    @classmethod
    def of(cls, name: str, recorder: Recorder) -> Party:
        """A copy of what a recorder holds now."""
        return cls(name, tuple(map(_copy, recorder.events.values())), tuple(recorder.spans), recorder.origin_s)

    def seconds(self, phase: str | None = None) -> float:
        """Self seconds of one phase, or of all."""
        return sum(event.seconds_self for event in self.events if phase in (None, event.phase))


@dataclass(frozen=True)
class Ledger:
    """What one run cost, or is modelled to cost. ``engine`` decides which counts can be known (``ENGINE_COUNTS``).

    ``beside`` are processes that serve the parties, such as a dealer: they add nothing to seconds and counts, as the
    parties wait for them and count what they get.
    """

    name: str
    engine: str
    parties: tuple[Party, ...]
    measured: bool = field(kw_only=True)
    beside: tuple[Party, ...] = field(default=(), kw_only=True)

    @classmethod
    def of(cls, recorder: Recorder, *, name: str, engine: str, party: str = "evaluator") -> Ledger:
        """The ledger of a run that one recorder saw."""
        return cls(name, engine, (Party.of(party, recorder),), measured=not recorder.modelled)

    @property
    def how(self) -> str:
        """ "measured" or "modelled"."""
        return "measured" if self.measured else "modelled"

    # ---- seconds --------------------------------------------------------------------------------------------

    @cached_property
    def clocks(self) -> dict[str, Party]:
        """For each phase that occurred, in the order of PHASES, the party whose seconds count."""
        chosen = {}
        for phase in PHASES:
            there = [party for party in self.parties if any(event.phase == phase for event in party.events)]
            if there:
                slowest = max(self.parties, key=Party.seconds)
                chosen[phase] = slowest if slowest in there else max(there, key=lambda party: party.seconds(phase))
        return chosen

    @property
    def phases(self) -> dict[str, float]:
        """Seconds of each phase that occurred, in the order of PHASES."""
        return {phase: party.seconds(phase) for phase, party in self.clocks.items()}

    @property
    def seconds(self) -> float:
        """Seconds of the whole run: the sum of the phases, and of the rows' self seconds."""
        return sum(self.phases.values())

    # ---- counts ---------------------------------------------------------------------------------------------

    def count(self, event: Event, name: str) -> int | None:
        """How often an event ran a primitive; None where nobody knows.

        A count that is missing is 0 if the engine keeps that count. Messages outside offline, online and refresh
        (set-up, keys, encrypted inputs and results), and what a client encodes, pass the engines by: unknown there.
        """
        if name in event.counts:
            return event.counts[name]
        if name not in ENGINE_COUNTS.get(self.engine, ()):
            return None
        return None if name in _PASSING_BY and event.phase not in _RUNNING else 0

    def total(self, name: str, *, phase: str | None = None, region: str | None = None) -> int | None:
        """A primitive's count in the run, a phase, or a region with all inside it; None where no event knows it."""
        by_party = []
        for events in self._inside.get(region, ()):
            known = [count for e in events if phase in (None, e.phase) and (count := self.count(e, name)) is not None]
            if known:
                by_party.append(sum(known))
        return _combined(name, by_party)

    @cached_property
    def _inside(self) -> dict[str | None, list[list[Event]]]:
        """Region → the events in it and in all inside it, of each party; None → all."""
        found: dict[str | None, list[list[Event]]] = {None: [list(party.events) for party in self.parties]}
        for number, party in enumerate(self.parties):
            for event in party.events:
                parts = event.region.split("/")
                for path in ("/".join(parts[: i + 1]) for i in range(len(parts))):
                    found.setdefault(path, [[] for _ in self.parties])[number].append(event)
        return found

    @cached_property
    def counted(self) -> tuple[str, ...]:
        """Primitives that the engine keeps count of or that were counted, in the order of reports."""
        here = dict.fromkeys(name for party in self.parties for event in party.events for name in event.counts)
        can = {*here, *ENGINE_COUNTS.get(self.engine, ())}
        return (*(name for name in COUNTS if name in can), *(name for name in here if name not in COUNTS))

    # ---- rows -----------------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> tuple[Event, ...]:
        """One event for each operation, region and phase, all parties together, in the order they first ran.

        A row that only a faster party has takes no seconds: it ran beside the slowest one's.
        """
        together: dict[tuple[str, str, str], list[tuple[Party, Event]]] = {}
        for party in self.parties:
            for event in party.events:
                together.setdefault((event.region, event.op, event.phase), []).append((party, event))
        return tuple(self._row(found) for found in together.values())

    def _row(self, found: list[tuple[Party, Event]]) -> Event:
        events = [event for _, event in found]
        clock = self.clocks[events[0].phase]
        row = Event(events[0].region, events[0].op, events[0].phase, max(event.calls for event in events))
        for event in (event for party, event in found if party is clock):
            row.seconds_self += event.seconds_self
            row.seconds_total += event.seconds_total
            row.primitive_s = dict(event.primitive_s)
        for name in dict.fromkeys(name for event in events for name in event.counts):
            row.counts[name] = _combined(name, [event.counts.get(name, 0) for event in events]) or 0
        row.level_in = max((e.level_in for e in events if e.level_in is not None), default=None)
        row.level_out = min((e.level_out for e in events if e.level_out is not None), default=None)
        row.error_bits = min((e.error_bits for e in events if e.error_bits is not None), default=None)
        return row


def inside(path: str, region: str | None) -> bool:
    """Whether a region path is the region or lies in it; every path lies in None."""
    return region is None or path == region or (region != "" and path.startswith(f"{region}/"))


def _combined(name: str, by_party: Iterable[int]) -> int | None:
    counts = list(by_party)
    if not counts:
        return None
    return sum(counts) if name.endswith(("_bytes", "bytes_sent")) else max(counts)


def _copy(event: Event) -> Event:
    return replace(event, counts=dict(event.counts), primitive_s=dict(event.primitive_s))
