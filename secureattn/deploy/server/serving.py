"""A server's process: listens, with TLS or without, and ends without losing a job."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from secureattn.deploy.server.app import application
from secureattn.deploy.server.service import Service
from secureattn.deploy.server.tokens import Tokens
from secureattn.errors import InputError

_CONNECTIONS = 256
_HEADERS_BYTES = 1 << 16


@dataclass(frozen=True)
class Place:
    """Where to listen; ``certificate`` and ``key`` are PEM files, both or none."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None

    @property
    def url(self) -> str:
        """What clients call it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' if self.certificate else ''}://{host}:{self.port}"

    def bind(self) -> socket.socket:
        """A socket that listens here; InputError where that cannot be."""
        try:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            found = socket.create_server((self.host, self.port), family=family, backlog=_CONNECTIONS)
            # asyncio does so for sockets that name their protocol; without, answers wait 40 ms for acknowledgements
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return found
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise InputError(f"{self.url} cannot be listened at ({reason}); choose another port or address") from error

    def check(self, tokens: Tokens, *, insecure: bool) -> None:
        """InputError for a place that others can reach without TLS or tokens, unless that is wanted."""
        if (self.certificate is None) != (self.key is None):
            raise InputError("TLS needs a certificate and its key; give --tls-cert and --tls-key")
        missing = [] if self.certificate else ["TLS (--tls-cert, --tls-key)"]
        missing += [] if tokens.required else ["tokens (--tokens-file)"]
        if missing and not insecure and not loopback(self.host):
            raise InputError(
                f"{self.host} can be reached from other machines and has no {' and no '.join(missing)}; give them, or "
                "--insecure behind something that does it"
            )


def loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    service: Service, tokens: Tokens, place: Place, listening: socket.socket, tell: Callable[[str], None]
) -> None:
    """Serve at a socket that ``Place.bind`` made until told to end: at the first SIGTERM or SIGINT jobs that run may
    end and no other is begun, at the second it ends at once.
    """
    config = uvicorn.Config(
        application(service, tokens),
        http=type("Timed", (_Timed,), {"head_s": service.limits.idle_s}),
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=_HEADERS_BYTES,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        ssl_certfile=place.certificate,
        ssl_keyfile=place.key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"{place.certificate} and {place.key} are no certificate and its key: {error}") from error
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    server = _Server(config, service, tell)
    server.run([listening])


class _Timed(H11Protocol):
    """Closes a connection where a request's head does not become whole in time; bodies have a limit of their own."""

    head_s: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Look at it now and then."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.head_s, self._look, True)

    def connection_lost(self, exc: Exception | None) -> None:
        """No more."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self, begun: bool) -> None:
        """``begun``: there was part of a head the last time as well, or nothing has come yet."""
        cycle: RequestResponseCycle | None = self.cycle
        part = cycle is None or (cycle.response_complete and bool(self.conn.trailing_data[0]))
        if part and begun:
            self.transport.close()
            return
        self._timer = self.loop.call_later(self.head_s, self._look, part)


class _Server(uvicorn.Server):
    """Drains before it shuts down: clients must reach it to answer the refreshes of jobs that run."""

    def __init__(self, config: uvicorn.Config, service: Service, tell: Callable[[str], None]) -> None:
        super().__init__(config)
        self._service = service
        self._tell = tell
        self._drain: asyncio.Task[None] | None = None
        self._signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called in the event loop's thread, between its steps."""
        self._signals += 1
        if self._signals > 1:
            self.should_exit = self.force_exit = True
            return
        self._tell(
            f"{signal.Signals(sig).name}: no more jobs are begun; waiting for those that run, again to end at once"
        )
        asyncio.get_running_loop().call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._drain = asyncio.get_running_loop().create_task(self._drained())

    async def _drained(self) -> None:
        await self._service.queue.drain()
        self.should_exit = True
