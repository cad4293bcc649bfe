"""The ASGI application of a service, with its OpenAPI description and a page for humans at /docs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Route

from secureattn import __version__
from secureattn.deploy.server import routes
from secureattn.deploy.server.service import Refusal, Service
from secureattn.deploy.server.tokens import Tokens
from secureattn.deploy.server.uploads import Unread
from secureattn.errors import SecureAttnError

_LOG = logging.getLogger(__name__)
_ROUTERS = (routes.about, routes.keys_of, routes.jobs_of, routes.places_of)
_Handler = Callable[[Request, Any], Awaitable[Response]]


def application(service: Service, tokens: Tokens) -> FastAPI:
    """The application of a service, which it starts and stops."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app: FastAPI = FastAPIOffline(
        title="SecureAttn",
        version=__version__,
        description=f"Encrypted inference of {service.offer.title} under CKKS. Trust: {service.offer.trust}.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.add_middleware(Unread)
    app.state.service, app.state.tokens = service, tokens
    _answer_errors(app, service)
    for router in _ROUTERS:
        app.include_router(router)
    return app


def _answer_errors(app: FastAPI, service: Service) -> None:
    """Every refusal is one sentence; what is ours to mend is logged here and not shown."""

    def problem(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
        service.metrics.refused.labels(str(status)).inc()
        return JSONResponse({"error": " ".join(message.split())}, status, headers)

    def on(kind: type[Exception]) -> Callable[[_Handler], _Handler]:
        return app.exception_handler(kind)

    @on(Refusal)
    async def refused(_: Request, error: Refusal) -> Response:
        headers = {"Retry-After": str(error.again_s)} if error.again_s else {}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return problem(error.status, str(error), headers)

    @on(SecureAttnError)
    async def wrong(_: Request, error: SecureAttnError) -> Response:
        return problem(400, str(error))

    @on(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        said = [f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors()]
        return problem(422, "; ".join(said)[:500])

    @on(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:  # of all routes with this path, not of the first alone
            there = [one for router in _ROUTERS for one in router.routes if isinstance(one, Route)]
            methods = {m for one in there if one.path_regex.match(request.url.path) for m in one.methods or ()}
            headers["allow"] = ", ".join(sorted(methods))
        return problem(error.status_code, str(error.detail), headers)

    @on(Exception)
    async def ours(request: Request, error: Exception) -> Response:
        _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(500, "the server failed; its log says more")
