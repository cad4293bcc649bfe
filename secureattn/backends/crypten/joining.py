"""How every process of a run gets a connection to every other, once they can tell each other where they listen."""

from __future__ import annotations

import contextlib
import queue
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any

from secureattn.backends.crypten.door import Door
from secureattn.backends.crypten.links import TOKEN_BYTES, LinkLost, Links, NobodyThere


class Link:
    """A connection on which nothing waits: BlockingIOError where nothing moves. TLS must not be read and written by two
    threads at once, so each call has the connection alone.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self._connection = connection
        self._alone = threading.Lock() if isinstance(connection, ssl.SSLSocket) else contextlib.nullcontext()

    def fileno(self) -> int:
        """For polls."""
        return self._connection.fileno()

    def close(self) -> None:
        """Go."""
        self._connection.close()

    def send(self, part: memoryview) -> int:
        """Send some octets; how many went."""
        try:
            with self._alone:
                return self._connection.send(part)
        except ssl.SSLError as failure:
            raise _meant(failure) from failure

    def receive(self, part: memoryview) -> int:
        """Fill some of ``part``; how many octets came, 0 once the other side has gone."""
        try:
            with self._alone:
                return self._connection.recv_into(part)
        except ssl.SSLError as failure:
            raise _meant(failure) from failure


def _meant(failure: ssl.SSLError) -> OSError:
    """What an error of TLS is about a connection on which nothing waits."""
    if isinstance(failure, (ssl.SSLWantReadError, ssl.SSLWantWriteError)):
        return BlockingIOError()
    if isinstance(failure, ssl.SSLEOFError):
        return ConnectionResetError("the other side has gone")
    return ConnectionAbortedError("something on the way altered what was sent")


def join(store: Any, links: Links, *, host: str, wait_s: float) -> dict[int, Link]:
    """A connection to every other process, by rank; all leave at ``store`` where they listen, this one on ``host``.

    Whoever calls has to know a number that the first process left at ``store``, so that nobody of another run is taken
    for one of this. LinkLost where somebody does not come or goes; EngineError where links do not fit.
    """
    deadline = time.monotonic() + wait_s
    if links.rank == 0:
        store.set("token/0", secrets.token_bytes(TOKEN_BYTES))
    token = _told(store, "token/0", deadline)
    callers: queue.SimpleQueue[tuple[int, socket.socket]] = queue.SimpleQueue()
    expected = set(range(links.rank + 1, len(links.names)))

    def welcome(rank: int) -> str:
        try:
            expected.remove(rank)  # at once, whatever other callers do meanwhile
        except KeyError:
            return f"{links.names[links.rank]} expects no call of {links.names[rank]}, or had it already"
        return ""

    found: dict[int, socket.socket] = {}
    try:
        door = Door((host, 0), links, lambda *caller: callers.put(caller), token=token, welcome=welcome)
        with contextlib.closing(door):
            store.set(f"at/{links.rank}", f"{host} {door.port}")
            found.update(_called(store, links, token, deadline))
            while len(found) < len(links.names) - 1:
                rank, found[rank] = _caller(callers, deadline, door)
        return {rank: Link(connection) for rank, connection in found.items()}
    except BaseException as failure:
        while not callers.empty():
            rank, found[rank] = callers.get()
        for connection in found.values():
            connection.close()
        if isinstance(failure, (OSError, NobodyThere)):
            raise LinkLost(f"the other processes cannot be reached: {failure}") from failure
        raise


def _called(store: Any, links: Links, token: bytes, deadline: float) -> Iterator[tuple[int, socket.socket]]:
    """Call all processes of lower ranks."""
    for other in range(links.rank):
        where, port = _told(store, f"at/{other}", deadline).decode().split()
        left = max(deadline - time.monotonic(), 0.0)
        yield other, links.call((where, int(port)), other, token=token, wait_s=left)


def _caller(callers: Any, deadline: float, door: Door) -> tuple[int, socket.socket]:
    """The next of the others who calls."""
    try:
        found: tuple[int, socket.socket] = callers.get(timeout=max(deadline - time.monotonic(), 0.0))
    except queue.Empty:
        raise LinkLost("; ".join(["the other processes did not call in time", *door.refused])) from None
    return found


def _told(store: Any, key: str, deadline: float) -> bytes:
    """What another process leaves under a key."""
    while not store.check([key]):
        if time.monotonic() > deadline:
            raise LinkLost("the other processes did not come in time")
        time.sleep(0.01)
    found: bytes = store.get(key)
    return found
