"""Jobs of clients: taken in, given up, waited for; done by as many workers as there are posts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from secureattn.deploy.server.hand import Worker
from secureattn.deploy.server.metrics import Metrics
from secureattn.deploy.server.places import Places
from secureattn.deploy.server.posts import Post
from secureattn.deploy.server.runs import Runs
from secureattn.deploy.server.settings import Limits
from secureattn.deploy.server.store import CANCELLED, DONE, QUEUED, RUNNING, Job, Store


class Queue:
    """All jobs by id; ``hands`` starts a worker."""

    def __init__(
        self, store: Store, limits: Limits, metrics: Metrics, places: Places, hands: Callable[[], Worker]
    ) -> None:
        self._limits = limits
        self._runs = Runs(store, metrics, places)
        self._posts = [Post(self._runs, store, limits, metrics, hands) for _ in range(limits.jobs)]
        self._kept: list[asyncio.Task[None]] = []
        self._closing = False

    @property
    def jobs(self) -> dict[str, Job]:
        """Those that a client may still ask for."""
        return self._runs.jobs

    @property
    def draining(self) -> bool:
        """Whether no more are begun."""
        return self._runs.closed

    @property
    def workers(self) -> int:
        """How many are there to do them."""
        return sum(post.staffed for post in self._posts)

    def start(self) -> None:
        """Start the workers."""
        self._kept = [asyncio.create_task(post.keep()) for post in self._posts]

    async def add(self, job: Job) -> None:
        """One more job, whose files are in the store."""
        self.jobs[job.id] = job
        await self._runs.note(job, job.state)

    def folder(self, job: Job) -> Path:
        """Where the requests and answers of a job that runs lie."""
        return self._runs.of(job).folder

    async def answer(self, job: Job) -> None:
        """The answer to the round that a job waits for lies in that folder."""
        run = self._runs.of(job)
        await self._runs.asks(run, None)
        run.answered.set()

    async def cancel(self, job: Job) -> None:
        """It need not be done; who shares its slots goes on."""
        if job.over:
            return
        await self._runs.note(job, CANCELLED)
        self._runs.leave(job)

    async def changed(self, job: Job, version: int, wait_s: float) -> None:
        """Return when a job is no longer as it was at ``version``, or after so many seconds."""

        async def change() -> None:
            async with self._runs.change:
                await self._runs.change.wait_for(lambda: self._closing or job.version != version)

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(change(), wait_s)

    async def drain(self) -> None:
        """Begin no more jobs. Those that run have ``grace_s`` left, their results to be fetched included; the others
        wait for the next start.
        """
        self._runs.closed, began = True, time.time()
        deadline = time.monotonic() + self._limits.grace_s

        def busy() -> bool:
            fresh = (job.state == DONE and job.changed >= began for job in self.jobs.values())
            return self._runs.busy or any(fresh)

        while busy() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        async with self._runs.change:  # whoever waits for a change is told how things are, now and from now on at once
            self._closing = True
            self._runs.change.notify_all()

    async def stop(self) -> None:
        """End the workers. Jobs that were running wait for the next start."""
        self._runs.closed = True
        for post in self._kept:
            post.cancel()
        await asyncio.gather(*self._kept, return_exceptions=True)
        for job in self.jobs.values():
            if job.state == RUNNING:
                await self._runs.note(job, QUEUED)
