"""What happened: a recorder that nests regions and operations, and the flat events they add up to.

The recorder knows no engine. Backends open an operation, count primitives inside it and close it; time that
belongs to no operation stays with the region that encloses it, so self times always sum to the total.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PHASES = ("setup", "keys", "encrypt", "offline", "online", "refresh", "decrypt")
"""Phases of a run, in the order they are reported."""

Spent = tuple[dict[str, int], dict[str, float]]
"""How often each primitive ran, and the seconds each took."""


@dataclass
class Event:
    """All calls of one operation in one region and phase.

    ``seconds_self`` excludes operations nested inside; ``counts`` holds how often each primitive ran (ct_products,
    rotations, rounds, bytes_sent, …) and ``primitive_s`` the seconds they took. ``level_in``/``level_out`` are the
    highest and lowest CKKS level seen, None where there are no levels.
    """

    region: str
    op: str
    phase: str
    calls: int = 0
    seconds_self: float = 0.0
    seconds_total: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    primitive_s: dict[str, float] = field(default_factory=dict)
    level_in: int | None = None
    level_out: int | None = None
    error_bits: float | None = None


@dataclass
class Span:
    """One call on the time line, for traces: start and duration in seconds since the recorder was made."""

    region: str
    op: str
    phase: str
    start_s: float
    duration_s: float


class _Frame:
    __slots__ = ("children_s", "event", "modelled_s", "start")

    def __init__(self, event: Event, start: float) -> None:
        self.event = event
        self.start = start
        self.children_s = 0.0
        self.modelled_s = 0.0


class Recorder:
    """Collects events. ``modelled=True`` takes time from ``primitive(seconds=…)`` alone and never reads a clock;
    ``listener`` is told of every operation that ends; ``last`` is the one that did, not counting "other".
    """

    def __init__(
        self, *, modelled: bool = False, trace: bool = False, listener: Callable[[Event], None] | None = None
    ) -> None:
        self.modelled = modelled
        self.trace = trace
        self.listener = listener
        self.events: dict[tuple[str, str, str], Event] = {}
        self.spans: list[Span] = []
        self.last: Event | None = None
        self._path: list[str] = []
        self._phase = "online"
        self._stack: list[_Frame] = []
        self._origin = self._now()

    @property
    def path(self) -> str:
        """The region now open, such as ``layer.0/attention``; empty at the top."""
        return "/".join(self._path)

    @contextmanager
    def region(self, name: str) -> Iterator[None]:
        """Open a named region; regions nest."""
        self._path.append(name)
        try:
            with self.op("other"):
                yield
        finally:
            self._path.pop()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute what happens inside to a phase, one of PHASES."""
        if name not in PHASES:
            raise ValueError(f"phase {name!r} is none of {', '.join(PHASES)}")
        before, self._phase = self._phase, name
        try:
            with self.op("other"):
                yield
        finally:
            self._phase = before

    @contextmanager
    def op(self, name: str) -> Iterator[Event]:
        """Open an operation; what nests inside is taken off its self time."""
        key = (self.path, name, self._phase)
        event = self.events.get(key)
        if event is None:
            event = self.events[key] = Event(*key)
        frame = _Frame(event, self._now())
        self._stack.append(frame)
        try:
            yield event
        finally:
            self._stack.pop()
            elapsed = frame.modelled_s if self.modelled else self._now() - frame.start
            event.calls += 1
            event.seconds_self += elapsed - frame.children_s
            if all(outer.event is not event for outer in self._stack):  # nested in itself, it is in the total already
                event.seconds_total += elapsed
            if self._stack:
                self._stack[-1].children_s += elapsed
                self._stack[-1].modelled_s += elapsed
            if self.trace and not self.modelled:
                start = frame.start - self._origin
                self.spans.append(Span(event.region, event.op, event.phase, start, elapsed))
            if name != "other":
                self.last = event
            if self.listener is not None:
                self.listener(event)

    def primitive(self, name: str, *, times: int = 1, seconds: float = 0.0) -> None:
        """Count a primitive in the operation now open, with the seconds it took or is modelled to take."""
        if not self._stack:
            raise RuntimeError(f"primitive {name!r} was counted outside any operation")
        frame = self._stack[-1]
        counts, spent = frame.event.counts, frame.event.primitive_s
        counts[name] = counts.get(name, 0) + times
        if seconds:
            spent[name] = spent.get(name, 0.0) + seconds
            frame.modelled_s += seconds

    @property
    def modelled_s(self) -> float:
        """Seconds modelled so far in the operation now open, 0 outside any."""
        return self._stack[-1].modelled_s if self._stack else 0.0

    def rewind(self, modelled_s: float) -> None:
        """Set the seconds modelled in the operation now open: what was modelled one after another runs at once."""
        if self._stack:
            self._stack[-1].modelled_s = modelled_s

    def spent(self, before: Spent | None = None) -> Spent:
        """Counts and seconds of the primitives of the operation now open, since ``before``; nothing outside any."""
        if not self._stack:
            return {}, {}
        event, (counts, seconds) = self._stack[-1].event, before or ({}, {})
        return (
            {name: count - counts.get(name, 0) for name, count in event.counts.items()},
            {name: s - seconds.get(name, 0.0) for name, s in event.primitive_s.items()},
        )

    def absorb(self, spent: Spent) -> None:
        """Add what another process spent to the operation now open, whose own time goes on meanwhile."""
        if not self._stack:
            return
        event, (counts, seconds) = self._stack[-1].event, spent
        for name, count in counts.items():
            event.counts[name] = event.counts.get(name, 0) + count
        for name, s in seconds.items():
            if s:
                event.primitive_s[name] = event.primitive_s.get(name, 0.0) + s

    def levels(self, level_in: int, level_out: int) -> None:
        """Note the CKKS levels an operation started from and ended at."""
        event = self._stack[-1].event
        event.level_in = level_in if event.level_in is None else max(event.level_in, level_in)
        event.level_out = level_out if event.level_out is None else min(event.level_out, level_out)

    def total(self, name: str, *, phase: str | None = None) -> int:
        """How often a primitive was counted, over all events or one phase."""
        return sum(event.counts.get(name, 0) for event in self.events.values() if phase is None or event.phase == phase)

    def seconds(self, phase: str | None = None) -> float:
        """Self seconds of one phase, or of all."""
        return sum(e.seconds_self for e in self.events.values() if phase is None or e.phase == phase)

    def _now(self) -> float:
        return 0.0 if self.modelled else time.perf_counter()
