"""Runs of jobs: what one is, which is next, and what is noted of its jobs on the way."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

from secureattn.deploy.server.metrics import Metrics
from secureattn.deploy.server.places import Places
from secureattn.deploy.server.store import QUEUED, RUNNING, Job, Store

_LOOK_S = 0.25


@dataclass
class Run:
    """An evaluation of one job, or of several that share slots, in a folder of its own."""

    folder: Path
    jobs: list[Job]
    request: int | None = None
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    unwanted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def tries(self) -> int:
        """How often the job that was begun most often was."""
        return max((job.tries for job in self.jobs), default=0)


class Runs:
    """All jobs by id, and the runs of those that are being done; none is begun once it is ``closed``. ``change`` tells
    of every change of a job.
    """

    def __init__(self, store: Store, metrics: Metrics, places: Places) -> None:
        self.jobs: dict[str, Job] = {}
        self.closed = False
        self.change = asyncio.Condition()
        self._store = store
        self._metrics = metrics
        self._places = places
        self._runs: dict[str, Run] = {}  # by job
        self._served: dict[str, float] = {}  # client → when a job of theirs was begun last

    @property
    def busy(self) -> bool:
        """Whether there are any."""
        return bool(self._runs)

    def of(self, job: Job) -> Run:
        """The run of a job that is being done."""
        return self._runs[job.id]

    def leave(self, job: Job) -> None:
        """A job need not be done; who shares its slots goes on."""
        if run := self._runs.pop(job.id, None):
            run.jobs.remove(job)
            if not run.jobs:
                run.unwanted.set()

    def end(self, run: Run) -> None:
        """It is over, whatever came of it."""
        for job in run.jobs:
            self._runs.pop(job.id, None)
        self._store.end(run.folder)

    # ---- choice ---------------------------------------------------------------------------------------------

    async def chosen(self, loaded: str) -> Run:
        """The oldest job of the client who was served longest ago, or one of hers whose keys are loaded; with it those
        that share its slots.
        """
        while True:
            async with self.change:
                if ready := self._ready():
                    client = min(ready, key=lambda job: (self._served.get(job.client, 0.0), job.created)).client
                    theirs = [job for job in ready if job.client == client]
                    first = next((job for job in theirs if job.keys == loaded), theirs[0])
                    return self._begin(first)
                with contextlib.suppress(asyncio.TimeoutError):  # a group may close without a change
                    await asyncio.wait_for(self.change.wait(), _LOOK_S if self._waiting() else None)

    def _begin(self, first: Job) -> Run:
        self._served[first.client] = time.monotonic()
        jobs = [first]
        if first.group:
            self._places.begin(first.group)
            same = (first.group, first.client, first.keys)
            jobs = [job for job in self._waiting() if (job.group, job.client, job.keys) == same]
        run = Run(self._store.begin(), jobs)
        for job in jobs:
            job.state, job.tries = RUNNING, job.tries + 1
        self._runs |= {job.id: run for job in jobs}
        return run

    def _waiting(self) -> list[Job]:
        return [] if self.closed else [job for job in self.jobs.values() if job.state == QUEUED]

    def _ready(self) -> list[Job]:
        """Those that wait for a worker alone, and not for others that may still share their slots."""
        waiting = self._waiting()
        filled: dict[str, int] = {}
        for job in waiting:
            filled[job.group] = filled.get(job.group, 0) + job.samples
        return [job for job in waiting if not job.group or not self._places.waits_s(job.group, filled[job.group])]

    # ---- changes --------------------------------------------------------------------------------------------

    async def note_all(self, run: Run, state: str, error: str = "") -> None:
        """The new state of all jobs of a run, but for those that are cancelled meanwhile."""
        for job in list(run.jobs):
            if job in run.jobs:
                await self.note(job, state, error)

    async def note(self, job: Job, state: str, error: str = "") -> None:
        """A job's new state, on disk before anybody hears of it."""
        job.state, job.error, job.changed = state, error, time.time()
        job.round, job.progress = None, ("", 0, 0)
        self._store.note(job)
        if job.over:
            self._metrics.ended.labels(state).inc()
            self._store.forget_query(job)
        for name in (QUEUED, RUNNING):
            self._metrics.jobs.labels(name).set(sum(one.state == name for one in self.jobs.values()))
        await self.changed(job)

    async def asks(self, run: Run, number: int | None) -> None:
        """The number of the request that waits for an answer; None where none does any more."""
        run.request = number
        for job in run.jobs:
            job.round = number
            await self.changed(job)

    async def changed(self, job: Job) -> None:
        """Tell whoever waits for a change of it."""
        async with self.change:
            job.version += 1
            self.change.notify_all()
