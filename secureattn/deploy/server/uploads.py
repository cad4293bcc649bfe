"""Bodies of requests and answers: straight to files and from them, never more or for longer than is allowed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from secureattn.deploy.server.service import Refusal, Service
from secureattn.ledger import units

BODY = "application/octet-stream"
_CHUNK = 1 << 18
_LEFT_BYTES, _LEFT_S = 1 << 25, 5.0  # read of a body that was refused, at most


@asynccontextmanager
async def uploaded(request: Request, service: Service, most: int) -> AsyncIterator[tuple[Path, str]]:
    """A request's body as a file, which is gone afterwards unless it was moved, and its hash; Refusal where it is not
    plain bytes, of more than ``most``, or stands still.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != BODY:
        raise Refusal(415, f"the body is {kind[:60] or 'of no stated type'}; send the file as it is, as {BODY}")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "the body is compressed; send the file as it is, residues do not compress")
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > most:
        raise _too_large(most)
    path = service.store.incoming()
    try:
        digest = await _received(request, path, most, service.limits.idle_s)
        service.metrics.received.inc(path.stat().st_size)
        yield path, digest
    finally:
        path.unlink(missing_ok=True)


async def _received(request: Request, path: Path, most: int, idle_s: float) -> str:
    digest, size = hashlib.sha256(), 0
    chunks = request.stream().__aiter__()
    with path.open("xb") as file:
        while True:
            try:
                chunk = await asyncio.wait_for(chunks.__anext__(), idle_s)
            except StopAsyncIteration:
                return digest.hexdigest()
            except asyncio.TimeoutError:
                raise Refusal(408, f"the body stood still for {idle_s:g} s; send it again") from None
            except ClientDisconnect:
                raise Refusal(400, "the connection was lost before the body was whole; send it again") from None
            size += len(chunk)
            if size > most:
                raise _too_large(most)
            digest.update(chunk)
            try:
                file.write(chunk)
            except OSError:
                raise Refusal(507, "the server has no room to keep it; try again later", again_s=60) from None


def sent(path: Path) -> Response:
    """A file as an answer; Refusal where it is gone, as it was needed no longer."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise Refusal(409, "that is over; ask what has become of the job") from None

    def chunks() -> Iterator[bytes]:
        with file:
            while chunk := file.read(_CHUNK):
                yield chunk

    size = os.fstat(file.fileno()).st_size
    return StreamingResponse(chunks(), media_type=BODY, headers={"content-length": str(size)})


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the body is larger than the {units.data(most)} that such a file of this plan has")


class Unread:
    """Reads what a refusal left of a body, up to a point, so that the client hears why before its connection closes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        whole = False

        async def received() -> Message:
            nonlocal whole
            message = await receive()
            whole = whole or message["type"] != "http.request" or not message.get("more_body")
            return message

        async def rest() -> None:
            left = _LEFT_BYTES
            while not whole and left > 0:
                left -= len((await received()).get("body", b""))

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(rest(), _LEFT_S)
            await send(message)

        await self._app(scope, received, sent)
