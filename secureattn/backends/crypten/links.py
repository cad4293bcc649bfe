"""How a connection between two processes begins: who calls says who it is, who is called answers whether it is welcome.

With certificates all of it is inside TLS 1.3, and what the caller says must be what its certificate says; without, a
caller is believed if it knows the run's token. Everything has a deadline. Whoever is refused is told why.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from secureattn.backends.crypten.tls import Identity, Refused, check_role, part, refusal, role_of
from secureattn.errors import EngineError

HANDSHAKE_S = 10.0
"""How long a connection may take to be made once somebody answers."""

TOKEN_BYTES = 16
NO_TOKEN = bytes(TOKEN_BYTES)

_MAGIC = b"secattn\x01"
_TLS = b"\x16"  # the first octet of whoever speaks TLS
_HELLO = struct.Struct(f"!I{TOKEN_BYTES}s")
_ANSWER = struct.Struct("!8sH")
_RETRY_S = 0.1


class LinkLost(EngineError):
    """Another process went away in the middle of an exchange: a consequence, rarely the cause."""


class NobodyThere(EngineError):
    """Nobody took a connection in time."""


@dataclass(frozen=True)
class Links:
    """How this process connects with others: its rank, what all are called, its certificates if links have TLS."""

    rank: int
    names: Sequence[str]
    identity: Identity | None = None

    def call(self, where: tuple[str, int], other: int, *, token: bytes = NO_TOKEN, wait_s: float) -> socket.socket:
        """A connection to another process, tried again for ``wait_s`` while nobody takes it; then NobodyThere.

        EngineError at once where somebody is there who is not who it should be, or does not let this process in.
        """
        deadline = time.monotonic() + wait_s
        while True:
            try:
                left = max(deadline - time.monotonic(), _RETRY_S)
                return self._introduced(socket.create_connection(where, timeout=left), other, token)
            except Refused as refused:
                advice = "; give all processes --tls FOLDER, or none" if "not speak TLS" in str(refused) else ""
                named = f"{self.names[other]} at {where[0]}:{where[1]}"
                raise EngineError(f"no connection to {named}: {refused}{advice}") from refused
            except OSError as failure:
                if time.monotonic() + _RETRY_S > deadline:
                    raise NobodyThere(str(failure)) from failure
                time.sleep(_RETRY_S)

    def _introduced(self, connection: socket.socket, other: int, token: bytes) -> socket.socket:
        """Say who this is, and hear that it is welcome."""
        deadline = time.monotonic() + HANDSHAKE_S
        connection.settimeout(HANDSHAKE_S)
        if self.identity is not None:
            connection = self.identity.shake(connection, called=False)
        try:
            if isinstance(connection, ssl.SSLSocket):
                check_role(connection, role_of(self.names[other]))
            connection.sendall(_MAGIC + _HELLO.pack(self.rank, token))
            magic, length = _ANSWER.unpack(exactly(connection, _ANSWER.size, deadline))
            if magic != _MAGIC:
                raise Refused("it is no process of a run")
            if length:
                said = exactly(connection, length, deadline).decode(errors="replace")
                raise Refused(f"it refuses this process ({said})")
        except (OSError, Refused) as failure:
            connection.close()
            raise (refusal(failure) if isinstance(failure, OSError) else failure) from failure
        return connection

    def answer(
        self, connection: socket.socket, token: bytes | None, welcome: Callable[[int], str]
    ) -> tuple[int, socket.socket]:
        """Hear who calls, and say that it is welcome unless ``welcome(rank)`` says why not. Takes the connection over;
        OSError or Refused where nothing came of it.
        """
        deadline = time.monotonic() + HANDSHAKE_S
        connection.settimeout(HANDSHAKE_S)
        try:
            speaks_tls = connection.recv(1, socket.MSG_PEEK) == _TLS
            if speaks_tls != (self.identity is not None):
                raise Refused("it speaks TLS, and this process does not" if speaks_tls else "it does not speak TLS")
            if self.identity is not None:
                connection = self.identity.shake(connection, called=True)
            rank = self._introduction(connection, deadline, token)
            if said := welcome(rank):
                raise Refused(said)
            connection.sendall(_ANSWER.pack(_MAGIC, 0))
        except (OSError, Refused) as failure:
            found = refusal(failure) if isinstance(failure, OSError) else failure
            with contextlib.suppress(OSError):
                text = str(found).encode()
                connection.sendall(_ANSWER.pack(_MAGIC, len(text)) + text)
            part(connection)
            raise found from failure
        return rank, connection

    def _introduction(self, connection: socket.socket, deadline: float, token: bytes | None) -> int:
        """Who a caller says it is, and can prove to be."""
        if exactly(connection, len(_MAGIC), deadline) != _MAGIC:
            raise Refused("it is no process of a run")
        rank, shown = _HELLO.unpack(exactly(connection, _HELLO.size, deadline))
        if not 0 <= rank < len(self.names) or rank == self.rank:
            raise Refused(f"there is no place for rank {rank}")
        if isinstance(connection, ssl.SSLSocket):
            check_role(connection, role_of(self.names[rank]))
        if token is not None and not secrets.compare_digest(shown, token):
            raise Refused("it is of another run")
        return int(rank)


def exactly(connection: socket.socket, count: int, deadline: float | None = None) -> bytes:
    """So many octets, by the deadline if there is one; OSError if the other side goes before."""
    found = bytearray()
    while len(found) < count:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        more = connection.recv(count - len(found))
        if not more:
            raise ConnectionResetError("the other side has gone")
        found += more
    return bytes(found)
