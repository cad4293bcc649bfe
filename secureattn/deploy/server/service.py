"""What clients may do: put in keys and queries, answer refreshes, ask, fetch, cancel. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from secureattn.deploy.checks import check_answer, check_keys, check_query, largest, place_of
from secureattn.deploy.offer import Offer
from secureattn.deploy.parcel import ANSWER, EVALUATION, PUBLIC, QUERY, Label, opened
from secureattn.deploy.rounds import answer_path, request_path
from secureattn.deploy.server.hand import Worker
from secureattn.deploy.server.metrics import Metrics
from secureattn.deploy.server.places import Place, Places
from secureattn.deploy.server.queue import Queue
from secureattn.deploy.server.settings import Limits
from secureattn.deploy.server.store import DONE, FAILED, KEY_FILES, QUEUED, RUNNING, Job, Store
from secureattn.errors import InputError, SecureAttnError

_SWEEP_S = 30.0
_KEYS = re.compile(r"[0-9a-f]{32}")
_KINDS = {"public": PUBLIC, "evaluation": EVALUATION}


class Refusal(SecureAttnError):
    """What was asked is not to be had; ``status`` as HTTP has it, ``again_s``: when it may be."""

    def __init__(self, status: int, message: str, *, again_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.again_s = again_s


class Service:
    """One offer, its queue, and what is kept for clients; none sees what is another's."""

    def __init__(self, offer: Offer, store: Store, limits: Limits, hands: Callable[[], Worker]) -> None:
        self.offer = offer
        self.limits = limits
        self.metrics = Metrics()
        self.sizes = largest(offer)
        self.places = Places(offer.terms.slots, limits.share_s)
        self.queue = Queue(store, limits, self.metrics, self.places, hands)
        self.store = store
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take up the jobs that were kept, start the workers."""
        for job in self.store.jobs():
            if not job.over and job.plan != self.offer.hash:
                job.state, job.error = FAILED, "the server has another plan since; encrypt for it and send again"
            elif job.state == RUNNING:
                job.state = QUEUED
            await self.queue.add(job)
        self.queue.start()
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """End what was started."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self.queue.stop()

    @property
    def ready(self) -> bool:
        """Whether a worker is there and jobs are taken."""
        return self.queue.workers > 0 and not self.queue.draining

    # ---- keys -----------------------------------------------------------------------------------------------

    def room_for_keys(self, client: str, keys: str, part: str) -> int:
        """Bytes that an upload of a part may have; Refusal where there is no room for another key set."""
        sets = set(self.store.key_sets())
        if (client, keys) not in sets:
            theirs = sum(owner == client for owner, _ in sets)
            if theirs >= self.limits.key_sets or len(sets) >= self.limits.key_sets_in_all:
                raise Refusal(429, f"{theirs} key sets are kept for this client, {len(sets)} in all; delete one first")
        elif self._in_use(client, keys):
            raise Refusal(409, f"keys {keys} are in use by a job; wait until it is over")
        return self.sizes[_KINDS[part]]

    async def add_key(self, client: str, keys: str, part: str, upload: Path) -> None:
        """A part of a key set that was uploaded; InputError where it is not what it should be."""
        await asyncio.to_thread(self._check_key, keys, part, upload)
        self.store.add_key(client, keys, part, upload)
        if len(self.store.key_parts(client, keys)) == len(KEY_FILES):
            try:
                await asyncio.to_thread(check_keys, self.store.keys(client, keys), self.offer)
            except SecureAttnError:
                self.store.drop_keys(client, keys)
                raise

    def _check_key(self, keys: str, part: str, upload: Path) -> None:
        with opened(upload, self.offer.label(_KINDS[part], keys), f"the {_KINDS[part]}"):
            pass

    def key_parts(self, client: str, keys: str) -> list[str]:
        """Which parts of a key set are here; Refusal where none is."""
        parts = self.store.key_parts(client, keys) if _KEYS.fullmatch(keys) else []
        if not parts:
            raise Refusal(404, f"no keys {keys[:32]} are here; upload them")
        return parts

    def drop_keys(self, client: str, keys: str) -> None:
        """Forget a key set; Refusal where a job needs it."""
        self.key_parts(client, keys)
        if self._in_use(client, keys):
            raise Refusal(409, f"keys {keys} are in use by a job; cancel it, or wait until it is over")
        self.store.drop_keys(client, keys)

    def _in_use(self, client: str, keys: str) -> bool:
        return any((job.client, job.keys) == (client, keys) and not job.over for job in self.queue.jobs.values())

    # ---- jobs -----------------------------------------------------------------------------------------------

    def room_for_job(self, client: str, job_id: str) -> Job | None:
        """The job that has this id already; Refusal where it is another client's, or no more are taken."""
        known = self.queue.jobs.get(job_id)
        if known is not None:
            if known.client != client:
                raise Refusal(409, f"{job_id} is taken; choose another id")
            return known
        if self.queue.draining:
            raise Refusal(503, "the server is shutting down; try again later", again_s=30)
        waiting = [job for job in self.queue.jobs.values() if not job.over]
        theirs = sum(job.client == client for job in waiting)
        if theirs >= self.limits.waiting or len(waiting) >= self.limits.waiting_in_all:
            raise Refusal(429, f"{theirs} jobs of this client wait, {len(waiting)} in all; try again later", again_s=10)
        return None

    async def add_job(self, client: str, job_id: str, upload: Path, digest: str) -> Job:
        """A query that was uploaded becomes a job; the same one again is the job it was."""
        if known := self.room_for_job(client, job_id):
            if known.query_hash != digest:
                raise Refusal(409, f"{job_id} is another query's; choose another id")
            return known
        keys, samples, place = await asyncio.to_thread(self._check_query, upload)
        if len(self.store.key_parts(client, keys)) < len(KEY_FILES):
            raise Refusal(409, f"keys {keys} are not here in full; upload them first")
        if known := self.room_for_job(client, job_id):
            return known
        if place and not self.places.holds(client, keys, place):
            raise Refusal(409, "that place among the slots is gone; ask for another and encrypt for it")
        job = Job(job_id, client, keys, samples, digest, self.offer.hash, place.group if place else "")
        self.store.add_job(job, upload)
        await self.queue.add(job)
        return job

    def _check_query(self, upload: Path) -> tuple[str, int, Place | None]:
        with opened(upload, name="the query") as query:
            keys = query.label.keys
            samples, place = check_query(query, self.offer, keys).samples, place_of(query.note, self.offer)
            return keys, samples, place and Place(*place, samples)

    def place(self, client: str, keys: str, samples: int) -> Place:
        """Slots for a query that shares them; Refusal where none are shared, or there are not so many."""
        if not self.limits.share_s:
            raise Refusal(409, "slots are not shared here; send a query of its own")
        if samples > self.places.slots:
            raise Refusal(409, f"{samples} inputs are more than the {self.places.slots} slots there are; send fewer")
        self.key_parts(client, keys)
        return self.places.give(client, keys, samples)

    def job(self, client: str, job_id: str) -> Job:
        """A client's job; Refusal where there is none, whoever else may have one."""
        found = self.queue.jobs.get(job_id)
        if found is None or found.client != client:
            raise Refusal(404, f"no job {job_id} is here; the server forgets those that are long over: send it again")
        return found

    def jobs(self, client: str) -> list[Job]:
        """A client's jobs, oldest first."""
        return [job for job in self.queue.jobs.values() if job.client == client]

    def position(self, job: Job) -> int:
        """How many jobs were waiting before this one when it came."""
        waiting = (other for other in self.queue.jobs.values() if other.state == QUEUED)
        return sum(other.created < job.created for other in waiting)

    def request(self, job: Job, number: int) -> Path:
        """The file of the round that a job waits for; Refusal where it waits for no such."""
        if job.round != number:
            raise Refusal(409, f"job {job.id} does not wait for round {number}; ask what it waits for")
        return request_path(self.queue.folder(job), number)

    async def answer(self, job: Job, number: int, upload: Path) -> None:
        """An answer that was uploaded; InputError where it answers something else, and the job goes on waiting."""
        request = self.request(job, number)
        try:
            await asyncio.to_thread(self._check_answer, job, request, upload)
        except InputError:
            self.request(job, number)  # who shares the slots may have answered meanwhile
            raise
        self.request(job, number)
        upload.replace(answer_path(self.queue.folder(job), number))
        await self.queue.answer(job)

    def _check_answer(self, job: Job, request: Path, upload: Path) -> None:
        with opened(request, name="the request") as asked:
            note = asked.note
        with opened(upload, name="the answer") as answer:
            check_answer(answer, self.offer.label(ANSWER, job.keys), note)

    def result(self, job: Job) -> Path:
        """The file of a result; Refusal while there is none."""
        if job.state != DONE:
            raise Refusal(409, f"job {job.id} is {job.state} and has no result{job.error and ': '}{job.error}")
        return self.store.job(job.id) / "result"

    async def drop_job(self, job: Job) -> None:
        """Cancel a job, or forget one that is over."""
        if job.over:
            self._forget(job)
        else:
            await self.queue.cancel(job)

    def _forget(self, job: Job) -> None:
        self.queue.jobs.pop(job.id, None)
        self.store.drop_job(job.id)

    async def _sweep(self) -> None:
        """Forget what is long over, and keys that nobody has used for long."""
        while True:
            now = time.time()
            for job in list(self.queue.jobs.values()):
                if job.over and now > job.changed + self.limits.keep_s:
                    self._forget(job)
            for client, keys in self.store.key_sets():
                if not self._in_use(client, keys) and now > self.store.used(client, keys) + self.limits.keep_keys_s:
                    self.store.drop_keys(client, keys)
            await asyncio.sleep(_SWEEP_S)

    def label(self, kind: str, keys: str) -> Label:
        """What a file of a kind must say of itself."""
        return self.offer.label(kind, keys)

    def describe(self, job: Job) -> dict[str, Any]:
        """A job as clients see it."""
        text, done, of = job.progress
        return {
            "job": job.id,
            "state": job.state,
            "version": job.version,
            "samples": job.samples,
            "before": self.position(job) if job.state == QUEUED else 0,
            "round": job.round,
            "progress": {"text": text, "done": done, "of": of},
            "tries": job.tries,
            "error": job.error,
        }

    @property
    def most_query_bytes(self) -> int:
        """Bytes of a query at most."""
        return self.sizes[QUERY]
