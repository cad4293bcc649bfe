"""How the processes of a run watch each other while they work, so that none waits for one that hangs."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from secureattn.backends.crypten.meeting import BEAT_S, GONE, LINGER_S, SILENCE_S, Meeting
from secureattn.backends.crypten.table import Reached
from secureattn.errors import EngineError


class Pulse:
    """Gives a sign of life every second, over a connection of its own, and ends this process with one line when another
    has given none for a while: whatever the main thread waits for then would never come.

    One thread asks the store, another sees whether the store answers: who keeps it may be the one that hangs.
    """

    def __init__(self, meeting: Meeting, tell: Callable[[str], None]) -> None:
        self._meeting = meeting
        self._tell = tell
        self._stop = threading.Event()
        self._answered = time.monotonic()

    def __enter__(self) -> Pulse:
        self._answered = time.monotonic()
        for work in (self._beat, self._watch):
            threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _beat(self) -> None:
        try:
            store = self._meeting.reached(SILENCE_S)
            with contextlib.closing(store) if isinstance(store, Reached) else contextlib.nullcontext():
                self._ask(store)
        except (*GONE, EngineError):
            if not self._stop.wait(LINGER_S):  # the main thread may know more, or be done
                self._end(f"{self._meeting.names[0]}, who keeps the meeting place, has gone")

    def _ask(self, store: Any) -> None:
        meeting = self._meeting
        others = [rank for rank in range(len(meeting.names)) if rank != meeting.rank]
        seen = dict.fromkeys(others, (0, time.monotonic()))
        while not self._stop.wait(BEAT_S):
            store.add(f"beat/{meeting.rank}", 1)
            for other, (count, since) in seen.items():
                beats, over = store.add(f"beat/{other}", 0), store.check([f"over/{other}"])
                self._answered = now = time.monotonic()
                if beats != count or over:
                    seen[other] = (beats, now)
                elif now - since > SILENCE_S:
                    self._end(f"{meeting.names[other]} has given no sign of life for {SILENCE_S:g} s")

    def _watch(self) -> None:
        while not self._stop.wait(BEAT_S):
            if time.monotonic() - self._answered > SILENCE_S + 2 * BEAT_S:
                self._end(f"{self._meeting.names[0]}, who keeps the meeting place, does not answer")

    def _end(self, message: str) -> None:
        if not self._stop.is_set():
            self._tell(message)
            os._exit(1)
