"""Where the processes of a run meet, what they must agree on before anything is sent, and how they watch each other.

A store of torch.distributed holds a few words of each: a file for processes of one machine, or a table that the first
party serves at an address. Nothing secret is ever in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed

from secureattn.errors import EngineError, InputError

BEAT_S = 1.0
SILENCE_S = 8.0
"""A process that gives no sign of life for so long counts as hung; its peers end."""

_LINGER_S = 3.0  # how long the first party keeps the store for others who still have to read why it goes
_PREFIX = "secureattn"

dist: Any = torch.distributed


@dataclass(frozen=True)
class Address:
    """The first party's address and port, or a file; ``launched``: torchrun serves the store there."""

    host: str = ""
    port: int = 0
    file: str = ""
    launched: bool = False

    @classmethod
    def parse(cls, text: str) -> Address:
        """From ``HOST:PORT``; an IPv6 address stands in brackets."""
        host, _, port = text.removeprefix("tcp://").rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise InputError(f"a rendezvous is the first party's HOST:PORT, not {text!r}")
        return cls(host.strip("[]"), int(port))

    @property
    def shown(self) -> str:
        """For messages."""
        return self.file or f"{self.host}:{self.port}"

    def store(self, *, serve: bool, wait_s: float) -> Any:
        """The store there, served by this process or found; EngineError where nobody is within ``wait_s``."""
        if self.file:
            return dist.FileStore(self.file)
        serve = serve and not self.launched
        try:
            found = dist.TCPStore(
                self.host,
                self.port,
                is_master=serve,
                wait_for_workers=False,
                timeout=timedelta(seconds=wait_s),
            )
        except RuntimeError as failure:
            if serve:
                reason = " ".join(str(failure).split())[:200]
                raise EngineError(f"the first party cannot listen at {self.shown}: {reason}") from failure
            raise EngineError(
                f"nobody answers at {self.shown} within {wait_s:g} s; start the first party (--rank 0) there, or wait "
                "longer with --wait"
            ) from failure
        found.set_timeout(timedelta(seconds=SILENCE_S))
        return dist.PrefixStore(_PREFIX, found)


class Meeting:
    """One process among others, by rank; ``names`` says what each is called."""

    def __init__(self, address: Address, rank: int, names: Sequence[str], *, wait_s: float) -> None:
        self.address = address
        self.rank = rank
        self.names = tuple(names)
        self.wait_s = wait_s
        self.store = address.store(serve=rank == 0, wait_s=wait_s)

    def agree(self, facts: Mapping[str, str], own: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Tell the others ``facts``, in which all must be equal, and what else they need to know (``own``); what they
        tell, by rank. EngineError that says who differs in what, who is missing, or that a rank is taken.
        """
        with self._reaching():
            return self._agree(facts, own or {})

    def _agree(self, facts: Mapping[str, str], own: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self.store.add(f"taken/{self.rank}", 1) > 1:
            raise EngineError(
                f"{self.names[self.rank]} (rank {self.rank}) is at {self.address.shown} already; give every process a "
                "rank of its own"
            )
        self.store.set(f"told/{self.rank}", json.dumps({"facts": dict(facts), "own": dict(own)}))
        told = [json.loads(text) for text in self._read("told")]
        self.store.set(f"heard/{self.rank}", "")
        for name in facts:
            for rank, other in enumerate(told):
                first, here = told[0]["facts"].get(name), other["facts"].get(name)
                if first != here:
                    self._linger("heard")
                    raise EngineError(
                        f"{self.names[0]} runs {name} {first}, {self.names[rank]} runs {here}; give all the same"
                    )
        return [other["own"] for other in told]

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turn torch's errors into one sentence."""
        try:
            yield
        except RuntimeError as failure:
            raise EngineError(
                f"{self.names[0]}, who keeps the meeting place, went from {self.address.shown}"
            ) from failure

    def _read(self, what: str) -> list[bytes]:
        """What every process set, once it has."""
        deadline = time.monotonic() + self.wait_s
        keys = [f"{what}/{rank}" for rank in range(len(self.names))]
        while missing := [rank for rank, key in enumerate(keys) if not self.store.check([key])]:
            if time.monotonic() > deadline:
                who = " and ".join(self.names[rank] for rank in missing)
                raise EngineError(f"{who} did not come to {self.address.shown} within {self.wait_s:g} s")
            time.sleep(0.05)
        return [self.store.get(key) for key in keys]

    def failed(self, message: str) -> None:
        """Leave word for the others of why this process ends."""
        with contextlib.suppress(RuntimeError):
            self.store.set(f"failed/{self.rank}", message)
            self._linger("over")

    def cause(self, *, patience_s: float = 1.0) -> str | None:
        """What another process left word of, if it does within a moment."""
        deadline = time.monotonic() + patience_s
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < deadline:
                for rank in range(len(self.names)):
                    if rank != self.rank and self.store.check([f"failed/{rank}"]):
                        return str(self.store.get(f"failed/{rank}").decode())
                time.sleep(0.05)
        return None

    def over(self) -> None:
        """Say that this process is done; the first party, who may serve the store, waits for the others."""
        with contextlib.suppress(RuntimeError):
            self.store.set(f"over/{self.rank}", "")
            self._linger("over")

    def _linger(self, what: str) -> None:
        if self.rank:
            return
        deadline = time.monotonic() + _LINGER_S
        while time.monotonic() < deadline:
            if all(self.store.check([f"{what}/{rank}"]) for rank in range(1, len(self.names))):
                time.sleep(2 * 0.05)  # they still read
                return
            time.sleep(0.05)


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
        meeting = self._meeting
        others = [rank for rank in range(len(meeting.names)) if rank != meeting.rank]
        try:
            store = meeting.address.store(serve=False, wait_s=SILENCE_S)
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
        except (RuntimeError, EngineError):
            if not self._stop.wait(_LINGER_S):  # the main thread may know more, or be done
                self._end(f"{meeting.names[0]}, who keeps the meeting place, has gone")

    def _watch(self) -> None:
        while not self._stop.wait(BEAT_S):
            if time.monotonic() - self._answered > SILENCE_S + 2 * BEAT_S:
                self._end(f"{self._meeting.names[0]}, who keeps the meeting place, does not answer")

    def _end(self, message: str) -> None:
        if not self._stop.is_set():
            self._tell(message)
            os._exit(1)
