"""A table of a few words that the first party keeps for all.

In place of torch's TCPStore, which neither encrypts nor asks who writes. It is reached over the same kind of connection
as every other process. A process reads all of it, and writes only under keys that end in its own rank. Keys and values
have torch's names for them: set, get, add, check.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from secureattn.backends.crypten.door import Door
from secureattn.backends.crypten.links import Links, exactly

_LENGTH = struct.Struct("!I")
_MOST_BYTES = 1 << 24  # of a request; the largest are the lengths of all inputs


class Table:
    """What is kept, in the first party's process; ``serve`` lets the others in."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}
        self._alone = threading.Lock()
        self._inside: set[socket.socket] = set()
        self.door: Door | None = None

    def serve(self, where: tuple[str, int], links: Links) -> None:
        """Listen at an address; OSError where that cannot be."""
        self.door = Door(where, links, self._attend)

    def close(self) -> None:
        """Send everybody away."""
        if self.door is not None:
            self.door.close()
        with self._alone:
            for connection in self._inside:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def set(self, key: str, value: str | bytes) -> None:
        """Put a value under a key."""
        with self._alone:
            self._kept[key] = value.encode() if isinstance(value, str) else value

    def get(self, key: str) -> bytes:
        """The value under a key; empty where there is none."""
        with self._alone:
            return self._kept.get(key, b"")

    def add(self, key: str, amount: int) -> int:
        """Add to the number under a key, 0 at first; the sum."""
        with self._alone:
            total = int(self._kept.get(key, b"0")) + amount
            if amount:
                self._kept[key] = str(total).encode()
            return total

    def check(self, keys: Sequence[str]) -> bool:
        """Whether there is a value under every key."""
        with self._alone:
            return all(key in self._kept for key in keys)

    def _attend(self, rank: int, connection: socket.socket) -> None:
        """Do what one process asks for, until it goes or asks for what it may not."""
        connection.settimeout(None)
        with connection, self._counted(connection), contextlib.suppress(Exception):  # whatever nonsense it sends
            while True:
                asked = _read(connection)
                what, key, value = asked["what"], asked["key"], asked["value"]
                if what in ("set", "add") and value != 0 and not key.endswith(f"/{rank}"):
                    return
                _write(connection, self._answer(what, key, value))

    @contextlib.contextmanager
    def _counted(self, connection: socket.socket) -> Iterator[None]:
        with self._alone:
            self._inside.add(connection)
        try:
            yield
        finally:
            with self._alone:
                self._inside.discard(connection)

    def _answer(self, what: str, key: str, value: Any) -> Any:
        if what == "set":
            return self.set(key, str(value).encode("latin-1"))
        if what == "get":
            return self.get(key).decode("latin-1")
        if what == "add":
            return self.add(key, int(value))
        return self.check([key])


class Reached:
    """The table as another process has it, on one connection and for one thread; OSError where its keeper has gone."""

    def __init__(self, connection: socket.socket, *, patience_s: float) -> None:
        self._connection = connection
        self._patience_s = patience_s

    def close(self) -> None:
        """Leave."""
        self._connection.close()

    def set(self, key: str, value: str | bytes) -> None:
        """As ``Table.set``."""
        self._ask("set", key, (value.encode() if isinstance(value, str) else value).decode("latin-1"))

    def get(self, key: str) -> bytes:
        """As ``Table.get``."""
        return str(self._ask("get", key)).encode("latin-1")

    def add(self, key: str, amount: int) -> int:
        """As ``Table.add``."""
        return int(self._ask("add", key, amount))

    def check(self, keys: Sequence[str]) -> bool:
        """As ``Table.check``."""
        return all([self._ask("check", key) for key in keys])

    def _ask(self, what: str, key: str, value: Any = None) -> Any:
        try:
            self._connection.settimeout(self._patience_s)
            _write(self._connection, {"what": what, "key": key, "value": value})
            return _read(self._connection)
        except (OSError, ValueError) as failure:
            self.close()  # who did not answer once is not waited for again
            raise ConnectionError(f"the table does not answer: {failure}") from failure


def _write(connection: socket.socket, value: Any) -> None:
    text = json.dumps(value).encode()
    connection.sendall(_LENGTH.pack(len(text)) + text)


def _read(connection: socket.socket) -> Any:
    (length,) = _LENGTH.unpack(exactly(connection, _LENGTH.size))
    if length > _MOST_BYTES:
        raise ValueError(f"{length} bytes are no request")
    return json.loads(exactly(connection, length))
