"""What happened: a recorder that nests regions and operations, and the flat events they add up to.

The recorder knows no engine. Backends open an operation, count primitives inside it and close it; time that
belongs to no operation stays with the region that encloses it, so self times always sum to the total.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

PHASES = ("setup", "keys", "encrypt", "offline", "online", "refresh", "decrypt")
"""Phases of a run, in the order they are reported."""

WAIT = "wait"
"""The operation in which a process does nothing but wait for another."""

ANSWER = "answer"
"""The operation in which a key owner serves a refresh, while the evaluator waits."""

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


class _Operation:
    """An operation while it is open. A class, as generators would take several times as long to open and close."""

    __slots__ = ("_name", "_recorder", "children_s", "event", "modelled_s", "start")

    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder = recorder
        self._name = name
        self.children_s = 0.0
        self.modelled_s = 0.0

    def __enter__(self) -> Event:
        recorder = self._recorder
        key = (recorder.path, self._name, recorder._phase)
        event = recorder.events.get(key)
        if event is None:
            event = recorder.events[key] = Event(*key)
        self.event = event
        recorder._stack.append(self)
        self.start = recorder._now()
        return event

    def __exit__(self, *_: object) -> None:
        recorder, event = self._recorder, self.event
        elapsed = self.modelled_s if recorder.modelled else recorder._now() - self.start
        recorder._stack.pop()
        event.calls += 1
        event.seconds_self += elapsed - self.children_s
        for outer in recorder._stack:
            if outer.event is event:  # nested in itself, it is in the total already
                break
        else:
            event.seconds_total += elapsed
        if recorder._stack:
            outer = recorder._stack[-1]
            outer.children_s += elapsed
            outer.modelled_s += elapsed
        recorder._ended(self._name, event, self.start, elapsed)


class _Within:
    """A region or a phase while it is open: what is not in an operation of its own is in one called "other"."""

    __slots__ = ("_before", "_field", "_other", "_recorder", "_value")

    def __init__(self, recorder: Recorder, field: str, value: str) -> None:
        self._recorder = recorder
        self._field = field
        self._value = value

    def __enter__(self) -> None:
        self._before = getattr(self._recorder, self._field)
        setattr(self._recorder, self._field, self._value)
        self._other = self._recorder.op("other")
        self._other.__enter__()

    def __exit__(self, *error: Any) -> None:
        try:
            self._other.__exit__(*error)
        finally:
            setattr(self._recorder, self._field, self._before)


class Recorder:
    """Collects events. ``modelled=True`` takes time from ``primitive(seconds=…)`` alone and never reads a clock;
    ``listener`` is told of every operation that ends; ``last`` is the one that did, not counting "other".
    ``origin_s``: when it was made, by the monotonic clock that all processes of one machine share.
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
        self.path = ""
        self._phase = "online"
        self._stack: list[_Operation] = []
        self.origin_s = self._now()

    def region(self, name: str) -> AbstractContextManager[None]:
        """Open a named region; regions nest. ``path`` is the one now open, such as ``layer.0/attention``."""
        return _Within(self, "path", f"{self.path}/{name}" if self.path else name)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Attribute what happens inside to a phase, one of PHASES."""
        if name not in PHASES:
            raise ValueError(f"phase {name!r} is none of {', '.join(PHASES)}")
        return _Within(self, "_phase", name)

    def op(self, name: str) -> AbstractContextManager[Event]:
        """Open an operation; what nests inside is taken off its self time."""
        return _Operation(self, name)

    def _ended(self, name: str, event: Event, start: float, elapsed: float) -> None:
        if self.trace and not self.modelled:
            self.spans.append(Span(event.region, event.op, event.phase, start - self.origin_s, elapsed))
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


class Silent(Recorder):
    """Keeps nothing and reads no clock, but knows the region that is open, which programs ask for."""

    def __init__(self) -> None:
        super().__init__()
        self._nothing = Event("", "other", "online")

    def region(self, name: str) -> AbstractContextManager[None]:
        """Open a named region; regions nest."""
        return _Within(self, "path", f"{self.path}/{name}" if self.path else name)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def op(self, name: str) -> AbstractContextManager[Event]:
        """Nothing."""
        return nullcontext(self._nothing)

    def primitive(self, name: str, *, times: int = 1, seconds: float = 0.0) -> None:
        """Nothing."""

    def levels(self, level_in: int, level_out: int) -> None:
        """Nothing."""
