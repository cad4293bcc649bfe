"""A client of a server: keys up once, inputs in, scores out; refreshes are answered in between.

What goes over the wire are the files of ``parcel``, as they are. Lost connections are tried again; a server that was
restarted goes on with the job, or says that it does not know it.
"""

from __future__ import annotations

import contextlib
import ssl
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from secureattn import __version__
from secureattn.deploy.offer import Offer
from secureattn.deploy.owner import EVALUATOR, Owner
from secureattn.deploy.parcel import EVALUATION_FILE, PUBLIC_FILE
from secureattn.deploy.side_by_side import GivenUp, Side, side_by_side
from secureattn.errors import INSTALL, EngineError, InputError
from secureattn.nn.batch import Batch
from secureattn.nn.model import Model
from secureattn.runs.result import Progress

try:
    import httpx2
except ModuleNotFoundError as missing:
    raise EngineError(
        f"a client of a server needs the package {missing.name!r}, which is missing; run {INSTALL['serve']}"
    ) from missing

Array = npt.NDArray[np.float64]
_WAIT_S = 20.0  # for the next change of a job, in one request
_PATIENCE_S = 60.0  # for a server that cannot be reached
_CHUNK = 1 << 20
_BEGUN = 4  # times that a job's refreshes are answered from the first on, as it may be begun again
_PLACES = 3  # asked for, one after another, where each is gone before it is filled
_BODY = {"content-type": "application/octet-stream"}
_NEVER = threading.Event()


class Refused(EngineError):
    """The server refuses; ``status`` as HTTP has it, ``later``: it may not, later."""

    def __init__(self, status: int, message: str, *, later: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.later = later


@dataclass(frozen=True)
class _Job:
    """A job on its way: the keys' owner, its path at the server, a folder for its files, and those beside it."""

    owner: Owner
    path: str
    folder: Path
    side: Side


class Connection:
    """A server at ``url``. ``certificates``: a PEM file with whom to trust, the system's unless given; ``token``: ours
    there; ``patience_s``: how long to try to reach it.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        certificates: Path | None = None,
        patience_s: float = _PATIENCE_S,
        progress: Progress = lambda *_: None,
    ) -> None:
        self.url = url.rstrip("/")
        self._patience_s = patience_s
        self._progress = progress
        headers = {"user-agent": f"secureattn/{__version__}"}
        if token:
            headers["authorization"] = f"Bearer {token}"
        try:
            verify: Any = ssl.create_default_context(cafile=certificates) if certificates else True
            timeout = httpx2.Timeout(60.0, connect=10.0)
            self._http = httpx2.Client(base_url=self.url, headers=headers, verify=verify, timeout=timeout)
        except (OSError, ssl.SSLError, ValueError, httpx2.InvalidURL) as error:
            raise InputError(f"{certificates or url} cannot be used: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def offer(self) -> Offer:
        """What is served there, on which terms; InputError where that is nothing this release can use."""
        told = self._json("GET", "/v1/offer")
        found = Offer.read(told.get("offer"), f"the offer of {self.url}")
        if told.get("hash") != found.hash:
            raise InputError(f"the offer of {self.url} is damaged; ask again, or use the same release there and here")
        if found.identity.release != __version__:
            raise InputError(
                f"{self.url} has release {found.identity.release} of secureattn, this is {__version__}; use one on both"
            )
        return found

    def give_keys(self, owner: Owner) -> None:
        """Upload the keys that the server lacks."""
        path = f"/v1/keys/{owner.keys}"
        try:
            there = self._json("GET", path)["parts"]
        except Refused as refused:
            if refused.status != 404:
                raise
            there = []
        for part, name in (("public", PUBLIC_FILE), ("evaluation", EVALUATION_FILE)):
            if part not in there:
                self._put(f"{path}/{part}", owner.folder / EVALUATOR / name, f"uploading {name}")

    def forget_keys(self, owner: Owner) -> None:
        """Have the server forget the keys."""
        self._request("DELETE", f"/v1/keys/{owner.keys}")

    def infer(self, owner: Owner, inputs: Any, *, model: Model | None = None, share: bool = False) -> Array:
        """Scores ``[N,C]``, vectors, or next tokens' scores of inputs, as ``Owner.encrypt`` takes them. ``share`` slots
        with other queries under these keys, whose results can then be read here too.

        More inputs than a batch holds are a job for each batch, as many at once as the server has workers. EngineError
        with the server's reason where one has no result; jobs that are given up are cancelled there.
        """
        terms = owner.offer.terms
        parts = owner.parts(inputs, terms.slots if share else terms.capacity, model=model)

        def scores(side: Side) -> Array:
            with tempfile.TemporaryDirectory(prefix="secureattn-") as name:
                job = _Job(owner, f"/v1/jobs/{uuid.uuid4()}", Path(name), side)
                return self._scores(job, parts[side.number], model, share)

        return np.concatenate(side_by_side(len(parts), scores, width=self._workers, tell=self._progress))

    # ---- a job ----------------------------------------------------------------------------------------------

    def _scores(self, job: _Job, inputs: Batch, model: Model | None, share: bool) -> Array:
        """From inputs of one batch to their scores; nothing of the job is left at the server."""
        job.side.cancel = lambda: self._delete(job)
        try:
            mine = self._sent(job, inputs, model, share)
            self._done(job)
            result = job.folder / "result"
            self._get(f"{job.path}/result", result, job.side.over)
            return job.owner.decrypt(result)[mine]
        except BaseException:
            self._delete(job)  # cancelled, where it is not over, and then forgotten
            raise
        finally:
            self._delete(job)

    def _delete(self, job: _Job) -> None:
        with contextlib.suppress(EngineError, httpx2.HTTPError):
            self._once("DELETE", job.path)

    def _sent(self, job: _Job, inputs: Batch, model: Model | None, share: bool) -> slice:
        """Which rows of its result will be a query's; a place that is lost before it is filled is asked for again."""
        owner, query = job.owner, job.folder / "query"
        for left in reversed(range(_PLACES)):
            place, mine = None, slice(None)
            if share:
                path = f"/v1/places/{owner.keys}"
                told = self._json("POST", path, params={"samples": len(inputs)})
                place, mine = (told["group"], told["offset"]), slice(told["offset"], told["offset"] + len(inputs))
            owner.encrypt(inputs, query, model=model, place=place)
            try:
                self._queued(job, query)
                break
            except Refused as refused:
                if not (share and left and refused.status == 409):
                    raise
        return mine

    def _queued(self, job: _Job, query: Path) -> None:
        """Upload a query; where too many jobs are there and some are those beside it, wait until there is room."""
        while True:
            beside = job.side.accompanied
            try:
                self._put(job.path, query, "uploading the query" if job.side.alone else "", job.side.over)
                return
            except Refused as refused:
                if refused.status != 429 or not (beside or job.side.accompanied):
                    raise

    def _done(self, job: _Job) -> None:
        """Return when a job is done; answer its refreshes until then, no more than its plan has for each time that it
        may have been begun: every answer says whether what was asked fits the key, and no server needs more.
        """
        version: int | None = None
        left = _BEGUN * job.owner.offer.terms.rounds
        while True:
            query = {} if version is None else {"version": version, "wait": _WAIT_S}
            told = self._json("GET", job.path, params=query, over=job.side.over)
            state, version = told["state"], told["version"]
            if state == "done":
                return
            if state in ("failed", "cancelled"):
                raise EngineError(f"{self.url} could not do it: {told['error'] or 'the job was cancelled'}")
            _show(told, job.side.tell)
            if told["round"] is not None:
                left -= 1
                if left < 0:
                    raise EngineError(f"{self.url} asks for more refreshes than its plan has; nothing more is answered")
                self._answer(job, f"{job.path}/rounds/{told['round']}")

    def _answer(self, job: _Job, path: str) -> None:
        request, answer = job.folder / "request", job.folder / "answer"
        try:
            self._get(path, request, job.side.over)
            job.owner.answer(request, answer)
            self._put(path, answer, "", job.side.over)
        except Refused as refused:
            if refused.status != 409:  # the round is over: it was answered, or the job begun again
                raise

    def _workers(self) -> int:
        told = self._json("GET", "/health").get("workers")
        return told if type(told) is int else 1

    # ---- HTTP -----------------------------------------------------------------------------------------------

    def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            told = self._request(method, path, **options).json()
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise InputError(f"{self.url} answers something else than a server of this library")
        return told

    def _put(self, path: str, file: Path, text: str, over: threading.Event = _NEVER) -> None:
        size = file.stat().st_size
        headers = {**_BODY, "content-length": str(size)}
        self._request("PUT", path, headers=headers, over=over, content=lambda: self._chunks(file, size, text))

    def _chunks(self, file: Path, size: int, text: str) -> Iterator[bytes]:
        sent = 0
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                yield chunk
                sent += len(chunk)
                if text:
                    self._progress(text, sent >> 10, size >> 10)

    def _get(self, path: str, file: Path, over: threading.Event = _NEVER) -> None:
        self._request("GET", path, over=over, to=file)

    def _request(self, method: str, path: str, *, over: threading.Event = _NEVER, **options: Any) -> httpx2.Response:
        """An answer that is no refusal; a server that cannot be reached, or says it is busy, is tried again. GivenUp
        where it is ``over`` before.
        """
        deadline, pause = time.monotonic() + self._patience_s, 0.1
        while True:
            if over.is_set():
                raise GivenUp("another job has failed")
            try:
                return self._once(method, path, **options)
            except httpx2.TransportError as error:
                problem: EngineError = EngineError(
                    f"{self.url} cannot be reached: {str(error) or type(error).__name__}"
                )
            except Refused as refused:
                if not refused.later:
                    raise
                problem = refused
            if time.monotonic() + pause > deadline:
                raise problem
            over.wait(pause)
            pause = min(2 * pause, 2.0)

    def _once(
        self,
        method: str,
        path: str,
        *,
        content: Callable[[], Iterator[bytes]] | None = None,
        to: Path | None = None,
        **options: Any,
    ) -> httpx2.Response:
        """One request; what it brings goes ``to`` a file, where one is given."""
        with self._http.stream(method, path, content=content and content(), **options) as answer:
            if answer.status_code < 400 and to is not None:
                with to.open("wb") as file:
                    for chunk in answer.iter_bytes(_CHUNK):
                        file.write(chunk)
                return answer
            answer.read()
        if answer.status_code < 400:
            return answer
        try:
            said = str(answer.json()["error"])
        except (ValueError, KeyError, TypeError):
            said = f"HTTP status {answer.status_code}"
        later = "retry-after" in answer.headers
        raise Refused(answer.status_code, f"{self.url}: {' '.join(said.split())[:500]}", later=later)


def _show(told: dict[str, Any], tell: Progress) -> None:
    progress = told["progress"]
    if told["state"] == "queued":
        tell(f"waiting, {told['before']} jobs before this one", 0, 0)
    else:
        tell(str(progress["text"])[:80] or "evaluating", int(progress["done"]), int(progress["of"]))
