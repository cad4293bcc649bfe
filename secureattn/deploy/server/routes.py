"""The routes by which clients reach a service."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response, Security
from fastapi import Path as InPath
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from secureattn.deploy.parcel import ANSWER
from secureattn.deploy.server.service import Refusal, Service
from secureattn.deploy.server.shapes import Health, JobState, KeyState, OfferDocument, PlaceDocument, Problem
from secureattn.deploy.server.uploads import BODY, sent, uploaded

_MOST_WAIT_S = 30.0
_BYTES: dict[str, Any] = {"content": {BODY: {"schema": {"type": "string", "format": "binary"}}}}
_UPLOAD = {"requestBody": {"required": True, **_BYTES}}
_REASONS = {
    400: "the file or request is not what it should be",
    401: "a token is needed",
    404: "there is no such thing, or it is another client's",
    408: "the upload stood still",
    409: "it does not fit what is here now",
    413: "the upload is too large",
    415: "the upload is not plain bytes",
    422: "a parameter is not what it should be",
    429: "too much of it is here already",
    503: "the server is shutting down, or has no worker",
    507: "the server has no room to keep it",
}
_BEARER = HTTPBearer(auto_error=False, description="a token that secureattn token made")


def service_of(request: Request) -> Service:
    """The service that the application is for."""
    found: Service = request.app.state.service
    return found


def client_of(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)] = None) -> str:
    """Who asks, by their token; Refusal of strangers."""
    found: str | None = request.app.state.tokens.client(request.headers.get("authorization"))
    if found is None:
        raise Refusal(401, "a token is needed: send Authorization: Bearer TOKEN")
    return found


def refusals(*codes: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer beside what it is for; parameters that are none are refused everywhere."""
    return {code: {"model": Problem, "description": _REASONS[code]} for code in (*codes, 422)}


Of = Annotated[Service, Depends(service_of)]
Who = Annotated[str, Depends(client_of)]
Keys = Annotated[str, InPath(pattern="^[0-9a-f]{32}$", description="what a key set is called, as in secret.key")]
Round = Annotated[int, InPath(ge=1, le=1_000_000, description="a round that a job waits for")]
Samples = Annotated[int, Query(ge=1, le=1_000_000, description="inputs of the query")]
PartName = Literal["public", "evaluation"]

about = APIRouter(tags=["about"])


@about.get("/health", summary="Whether the server lives")
async def health(service: Of) -> Health:
    queue = service.queue
    return Health(ready=service.ready, workers=queue.workers, draining=queue.draining)


@about.get("/ready", summary="Whether the server takes jobs", responses=refusals(503))
async def ready(service: Of) -> Health:
    if not service.ready:
        raise Refusal(503, "the server has no worker yet, or is shutting down; try again later", again_s=5)
    return await health(service)


@about.get("/v1/offer", summary="What is served, on which terms")
async def offer(service: Of) -> OfferDocument:
    limits = service.limits
    told = {"answer_s": limits.answer_s, "job_s": limits.job_s, "keep_s": limits.keep_s, "share_s": limits.share_s}
    return OfferDocument(offer=service.offer.document(), hash=service.offer.hash, bytes=service.sizes, limits=told)


@about.get("/metrics", summary="Counters for Prometheus", response_class=Response, responses=refusals(401))
async def metrics(service: Of, _: Who) -> Response:
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


keys_of = APIRouter(prefix="/v1/keys", tags=["keys"])


@keys_of.put(
    "/{keys}/{part}",
    summary="Upload public.key or evaluation.key",
    responses=refusals(400, 401, 408, 409, 413, 415, 429, 507),
    openapi_extra=_UPLOAD,
)
async def put_key(request: Request, service: Of, keys: Keys, part: PartName, whose: Who) -> KeyState:
    most = service.room_for_keys(whose, keys, part)
    async with uploaded(request, service, most) as (path, _):
        await service.add_key(whose, keys, part, path)
    return KeyState(keys=keys, parts=service.key_parts(whose, keys))


@keys_of.get("/{keys}", summary="Which parts of a key set are here", responses=refusals(401, 404))
async def get_keys(service: Of, keys: Keys, whose: Who) -> KeyState:
    return KeyState(keys=keys, parts=service.key_parts(whose, keys))


@keys_of.delete("/{keys}", status_code=204, summary="Forget a key set", responses=refusals(401, 404, 409))
async def delete_keys(service: Of, keys: Keys, whose: Who) -> None:
    service.drop_keys(whose, keys)


jobs_of = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@jobs_of.get("", summary="All jobs of this client", responses=refusals(401))
async def get_jobs(service: Of, whose: Who) -> list[JobState]:
    return [JobState(**service.describe(job)) for job in service.jobs(whose)]


@jobs_of.put(
    "/{job}",
    summary="Upload a query, under an id that the client chooses; again, it is the same job",
    responses=refusals(400, 401, 408, 409, 413, 415, 429, 503, 507),
    openapi_extra=_UPLOAD,
)
async def put_job(request: Request, service: Of, job: UUID, whose: Who) -> JobState:
    service.room_for_job(whose, str(job))
    async with uploaded(request, service, service.most_query_bytes) as (path, digest):
        return JobState(**service.describe(await service.add_job(whose, str(job), path, digest)))


@jobs_of.get("/{job}", summary="What has become of a job, or the next change", responses=refusals(401, 404))
async def get_job(
    service: Of,
    job: UUID,
    whose: Who,
    version: Annotated[int | None, Query(description="wait while the job is still as it was then")] = None,
    wait: Annotated[float, Query(ge=0, le=_MOST_WAIT_S, description="seconds to wait")] = 0,
) -> JobState:
    found = service.job(whose, str(job))
    if version is not None and wait > 0:
        await service.queue.changed(found, version, wait)
    return JobState(**service.describe(found))


@jobs_of.get(
    "/{job}/rounds/{number}",
    summary="The masked ciphertexts that a job wants refreshed",
    response_class=Response,
    responses={200: _BYTES, **refusals(401, 404, 409)},
)
async def get_round(service: Of, job: UUID, number: Round, whose: Who) -> Response:
    return sent(service.request(service.job(whose, str(job)), number))


@jobs_of.put(
    "/{job}/rounds/{number}",
    status_code=204,
    summary="The same afresh",
    responses=refusals(400, 401, 404, 408, 409, 413, 415, 507),
    openapi_extra=_UPLOAD,
)
async def put_round(request: Request, service: Of, job: UUID, number: Round, whose: Who) -> None:
    found = service.job(whose, str(job))
    service.request(found, number)
    async with uploaded(request, service, service.sizes[ANSWER]) as (path, _):
        await service.answer(found, number, path)


@jobs_of.get(
    "/{job}/result",
    summary="The encrypted result of a job that is done",
    response_class=Response,
    responses={200: _BYTES, **refusals(401, 404, 409)},
)
async def get_result(service: Of, job: UUID, whose: Who) -> Response:
    return sent(service.result(service.job(whose, str(job))))


@jobs_of.delete(
    "/{job}", status_code=204, summary="Cancel a job, or forget one that is over", responses=refusals(401, 404)
)
async def delete_job(service: Of, job: UUID, whose: Who) -> None:
    await service.drop_job(service.job(whose, str(job)))


places_of = APIRouter(prefix="/v1/places", tags=["jobs"])


@places_of.post(
    "/{keys}",
    summary="Slots for a query that shares them with others under the same keys",
    responses=refusals(401, 404, 409),
)
async def post_place(service: Of, keys: Keys, samples: Samples, whose: Who) -> PlaceDocument:
    return PlaceDocument(**vars(service.place(whose, keys, samples)))
