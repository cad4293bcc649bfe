"""Where the processes of a run meet, what they must agree on before anything is sent, and how they watch each other.

A table holds a few words of each: the first party keeps it at its address, inside TLS where links have it; processes
that this library starts itself meet at a file, and torchrun brings a store of its own, by torch.distributed, which
speaks plain TCP and asks nobody who he is. Nothing secret is in it but the token that keeps strangers from plain links.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed

from secureattn.backends.crypten.links import Links, NobodyThere
from secureattn.backends.crypten.table import Reached, Table
from secureattn.backends.crypten.tls import Identity
from secureattn.errors import EngineError, InputError

BEAT_S = 1.0
SILENCE_S = 8.0
"""A process that gives no sign of life for so long counts as hung; its peers end."""

LINGER_S = 3.0
"""How long the first party keeps the table for others who still have to read why it goes."""

_PREFIX = "secureattn"

dist: Any = torch.distributed

GONE = (RuntimeError, OSError)
"""What a store that has gone raises: torch's, or ours."""


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

    @property
    def own(self) -> bool:
        """Whether the first party keeps the table itself, and not torch."""
        return not self.file and not self.launched

    def store(self, *, wait_s: float) -> Any:
        """torch's store there; EngineError where nobody serves it within ``wait_s``."""
        if self.file:
            return dist.FileStore(self.file)
        wait = timedelta(seconds=wait_s)
        try:
            found = dist.TCPStore(self.host, self.port, is_master=False, wait_for_workers=False, timeout=wait)
        except RuntimeError as failure:
            raise EngineError(f"torchrun's store does not answer at {self.shown} within {wait_s:g} s") from failure
        found.set_timeout(timedelta(seconds=SILENCE_S))
        return dist.PrefixStore(_PREFIX, found)


class Meeting:
    """One process among others, by rank; ``names`` says what each is called. With an ``identity`` all is inside TLS."""

    def __init__(
        self,
        address: Address,
        rank: int,
        names: Sequence[str],
        *,
        wait_s: float,
        identity: Identity | None = None,
    ) -> None:
        self.address = address
        self.rank = rank
        self.names = tuple(names)
        self.wait_s = wait_s
        self.links = Links(rank, self.names, identity)
        self._table = self._served() if rank == 0 and address.own else None
        self.store = self.reached(wait_s)

    def _served(self) -> Table:
        table = Table()
        try:
            table.serve((self.address.host, self.address.port), self.links)
        except OSError as failure:
            raise EngineError(f"the first party cannot listen at {self.address.shown}: {failure}") from failure
        return table

    def reached(self, wait_s: float) -> Any:
        """The table, on a connection of its own; EngineError where nobody keeps it within ``wait_s``."""
        if self._table is not None:
            return self._table
        if not self.address.own:
            return self.address.store(wait_s=wait_s)
        try:
            connection = self.links.call((self.address.host, self.address.port), 0, wait_s=wait_s)
        except NobodyThere as failure:
            raise EngineError(
                f"nobody answers at {self.address.shown} within {wait_s:g} s; start the first party (--rank 0) there, "
                f"or wait longer with --wait ({failure})"
            ) from failure
        return Reached(connection, patience_s=SILENCE_S)

    def close(self) -> None:
        """Leave; the first party's table is gone then."""
        for kept in (self._table, self.store):
            if isinstance(kept, (Table, Reached)):
                kept.close()

    def __enter__(self) -> Meeting:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        """Turn a table that is gone into one sentence."""
        try:
            yield
        except GONE as failure:
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
                raise EngineError(
                    f"{who} did not come to {self.address.shown} within {self.wait_s:g} s{self._strangers()}"
                )
            time.sleep(0.05)
        return [self.store.get(key) for key in keys]

    def _strangers(self) -> str:
        """Who came in place of whoever is waited for."""
        door = None if self._table is None else self._table.door
        return "".join(f"; {said}" for said in door.refused) if door is not None else ""

    def failed(self, message: str) -> None:
        """Leave word for the others of why this process ends."""
        with contextlib.suppress(*GONE):
            self.store.set(f"failed/{self.rank}", message)
            self._linger("over")

    def cause(self, *, patience_s: float = 1.0) -> str | None:
        """What another process left word of, if it does within a moment."""
        deadline = time.monotonic() + patience_s
        with contextlib.suppress(*GONE):
            while time.monotonic() < deadline:
                for rank in range(len(self.names)):
                    if rank != self.rank and self.store.check([f"failed/{rank}"]):
                        return str(self.store.get(f"failed/{rank}").decode())
                time.sleep(0.05)
        return None

    def over(self) -> None:
        """Say that this process is done; the first party, who may keep the table, waits for the others."""
        with contextlib.suppress(*GONE):
            self.store.set(f"over/{self.rank}", "")
            self._linger("over")

    def _linger(self, what: str) -> None:
        if self.rank:
            return
        deadline = time.monotonic() + LINGER_S
        while time.monotonic() < deadline:
            if all(self.store.check([f"{what}/{rank}"]) for rank in range(1, len(self.names))):
                time.sleep(2 * 0.05)  # they still read
                return
            time.sleep(0.05)
