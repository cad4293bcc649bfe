"""Jobs and the workers that do them: which are next, how long they may take, what becomes of them with a worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secureattn.deploy.server.hand import Died, Gone, Worker
from secureattn.deploy.server.metrics import Metrics
from secureattn.deploy.server.places import Places
from secureattn.deploy.server.settings import Limits
from secureattn.deploy.server.store import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Job, Store
from secureattn.errors import EngineError
from secureattn.ledger import units

_LOG = logging.getLogger(__name__)
_LOOK_S = 1.0
_AGAIN_S = 5.0  # until another worker is tried where one could not start


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


class Queue:
    """All jobs by id, and the runs of those that are being done; ``hands`` starts a worker."""

    def __init__(
        self, store: Store, limits: Limits, metrics: Metrics, places: Places, hands: Callable[[], Worker]
    ) -> None:
        self.jobs: dict[str, Job] = {}
        self.draining = False
        self.workers = 0
        self._closing = False
        self._store = store
        self._limits = limits
        self._metrics = metrics
        self._places = places
        self._hands = hands
        self._runs: dict[str, Run] = {}  # by job
        self._served: dict[str, float] = {}  # client → when a job of theirs was begun last
        self._change = asyncio.Condition()
        self._slots: list[asyncio.Task[None]] = []

    # ---- from outside ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the workers."""
        self._slots = [asyncio.create_task(self._slot()) for _ in range(self._limits.jobs)]

    async def add(self, job: Job) -> None:
        """One more job, whose files are in the store."""
        self.jobs[job.id] = job
        await self._note(job, job.state)

    def folder(self, job: Job) -> Path:
        """Where the requests and answers of a job that runs lie."""
        return self._runs[job.id].folder

    async def answer(self, job: Job) -> None:
        """The answer to the round that a job waits for lies in that folder."""
        run = self._runs[job.id]
        await self._asks(run, None)
        run.answered.set()

    async def cancel(self, job: Job) -> None:
        """It need not be done; who shares its slots goes on."""
        if job.over:
            return
        await self._note(job, CANCELLED)
        if run := self._runs.pop(job.id, None):
            run.jobs.remove(job)
            if not run.jobs:
                run.unwanted.set()

    async def changed(self, job: Job, version: int, wait_s: float) -> None:
        """Return when a job is no longer as it was at ``version``, or after so many seconds."""

        async def change() -> None:
            async with self._change:
                await self._change.wait_for(lambda: self._closing or job.version != version)

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(change(), wait_s)

    async def drain(self) -> None:
        """Begin no more jobs. Those that run have ``grace_s`` left, their results to be fetched included; the others
        wait for the next start.
        """
        self.draining, began = True, time.time()
        deadline = time.monotonic() + self._limits.grace_s

        def busy() -> bool:
            fresh = (job.state == DONE and job.changed >= began for job in self.jobs.values())
            return bool(self._runs) or any(fresh)

        while busy() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        async with self._change:  # whoever waits for a change is told how things are, now and from now on at once
            self._closing = True
            self._change.notify_all()

    async def stop(self) -> None:
        """End the workers. Jobs that were running wait for the next start."""
        self.draining = True
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)
        for job in self.jobs.values():
            if job.state == RUNNING:
                await self._note(job, QUEUED)

    # ---- workers --------------------------------------------------------------------------------------------

    async def _slot(self) -> None:
        """One worker's place: give it jobs, put another in its place when it has gone."""
        while True:
            hand: Worker | None = None
            try:
                hand = self._hands()
                await hand.ready()
                self.workers += 1
                try:
                    await self._employ(hand)
                finally:
                    self.workers -= 1
            except EngineError as error:
                _LOG.error("a worker could not start: %s", error)
                await asyncio.sleep(_AGAIN_S)
            except Exception:  # ours, or of the system: the place is not lost for it
                _LOG.exception("a worker's place failed inside the server")
                await asyncio.sleep(_AGAIN_S)
            finally:
                if hand is not None:
                    hand.end()

    async def _employ(self, hand: Worker) -> None:
        """Give a worker jobs until it has gone."""
        try:
            while await self._do(await self._taken(hand), hand):
                pass
        except Died as death:
            self._metrics.deaths.inc()
            _LOG.warning("a worker without a job died: %s", death)

    async def _taken(self, hand: Worker) -> Run:
        """The next run; Died where the worker dies before there is one."""
        taking, heard = asyncio.create_task(self._next(hand.keys)), asyncio.create_task(hand.hear())
        try:
            await asyncio.wait({taking, heard}, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                heard.result()
            return await taking
        finally:
            for task in (taking, heard):
                task.cancel()
            await asyncio.gather(taking, heard, return_exceptions=True)

    async def _next(self, loaded: str) -> Run:
        """The oldest job of the client who was served longest ago, or one of hers whose keys are loaded; with it those
        that share its slots.
        """
        while True:
            async with self._change:
                if ready := self._ready():
                    client = min(ready, key=lambda job: (self._served.get(job.client, 0.0), job.created)).client
                    theirs = [job for job in ready if job.client == client]
                    first = next((job for job in theirs if job.keys == loaded), theirs[0])
                    return self._begin(first)
                with contextlib.suppress(asyncio.TimeoutError):  # a group may close without a change
                    await asyncio.wait_for(self._change.wait(), _LOOK_S / 4 if self._waiting() else None)

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
        return [] if self.draining else [job for job in self.jobs.values() if job.state == QUEUED]

    def _ready(self) -> list[Job]:
        """Those that wait for a worker alone, and not for others that may still share their slots."""
        waiting = self._waiting()
        filled: dict[str, int] = {}
        for job in waiting:
            filled[job.group] = filled.get(job.group, 0) + job.samples
        return [job for job in waiting if not job.group or not self._places.waits_s(job.group, filled[job.group])]

    async def _do(self, run: Run, hand: Worker) -> bool:
        """Do a run; whether its worker may go on."""
        began = time.monotonic()
        tasks: list[asyncio.Task[Any]] = []
        try:
            await self._note_all(run, RUNNING)
            if not run.jobs:
                return True
            tasks = [asyncio.create_task(self._work(run, hand)), asyncio.create_task(self._watch(run, hand))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            working, watching = tasks
            if not working.done():
                await self._note_all(run, FAILED, watching.result())
            return working.done() and working.result()
        except Died as death:
            died = death
        except Exception:  # ours, or a full disk, where even that it failed cannot be kept
            _LOG.exception("a run failed inside the server")
            for job in run.jobs:
                job.state, job.error = FAILED, "the server failed, or cannot keep what it computes; its log says more"
                await self._changed(job)
            return False
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._put_away(run)
            self._metrics.seconds.observe(time.monotonic() - began)
        await self._lost(run, died)  # now that nothing of this try is left that another one would meet
        return False

    def _put_away(self, run: Run) -> None:
        for job in run.jobs:
            self._runs.pop(job.id, None)
        self._store.end(run.folder)

    async def _work(self, run: Run, hand: Worker) -> bool:
        """Tell a worker of a run and hear what becomes of it; whether the worker may go on. Died where it dies."""
        await hand.tell(self._store.told(run.folder, run.jobs))
        hand.keys = run.jobs[0].keys
        while True:
            told = await hand.hear()
            if "progress" in told:
                text, done, of = told["progress"]
                for job in run.jobs:
                    job.progress = (str(text), int(done), int(of))
                    await self._changed(job)
            elif "round" in told:
                await self._round(run, hand, int(told["round"]))
                await hand.tell({"answered": told["round"]})
                self._metrics.rounds.inc()
            else:
                return await self._ended(run, told)

    async def _lost(self, run: Run, death: Died) -> None:
        """Begin a run's jobs again whose worker died; they fail where it has done so too often."""
        self._metrics.deaths.inc()
        _LOG.warning("a worker died: %s", death)
        for job in run.jobs:
            job.tries -= isinstance(death, Gone)
        if run.tries < self._limits.tries:
            await self._note_all(run, QUEUED)
        else:
            reason = f"its process died {run.tries} times; memory may have run out, send fewer inputs"
            await self._note_all(run, FAILED, reason)

    async def _ended(self, run: Run, told: dict[str, Any]) -> bool:
        """What a worker said last; whether it may go on."""
        if "done" in told:
            for job in run.jobs:
                self._store.finished(run.folder, job)
            await self._note_all(run, DONE)
        else:
            await self._note_all(run, FAILED, str(told.get("refused") or told.get("failed")))
        return "failed" not in told

    async def _round(self, run: Run, hand: Worker, number: int) -> None:
        """A request lies in the run's folder: wait until a client has answered; Died if the worker does meanwhile."""
        run.answered.clear()
        await self._asks(run, number)
        answered = asyncio.create_task(run.answered.wait())
        heard = asyncio.create_task(hand.hear())  # it has nothing to say now, but its death is heard
        try:
            await asyncio.wait({answered, heard}, return_when=asyncio.FIRST_COMPLETED)
            if heard.done():
                heard.result()
        finally:
            answered.cancel()
            heard.cancel()
            await asyncio.gather(answered, heard, return_exceptions=True)

    async def _asks(self, run: Run, number: int | None) -> None:
        run.request = number
        for job in run.jobs:
            job.round = number
            await self._changed(job)

    async def _watch(self, run: Run, hand: Worker) -> str:
        """Why a run ends that does not end by itself: nobody wants it any more, or it is beyond a limit."""
        limits, deadline, asked = self._limits, time.monotonic() + self._limits.job_s, (0, 0.0)
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(run.unwanted.wait(), _LOOK_S)
                return ""
            now = time.monotonic()
            if now > deadline:
                return f"it took more than {limits.job_s:g} s; send fewer inputs"
            if run.request is None or asked[0] != run.request:
                asked = (run.request or 0, now)
            elif now > asked[1] + limits.answer_s:
                return f"refresh {run.request} was not answered within {limits.answer_s:g} s"
            if await hand.memory_bytes() > limits.memory_bytes:
                return f"it took more than {units.data(limits.memory_bytes)} of memory; send fewer inputs"

    # ---- changes --------------------------------------------------------------------------------------------

    async def _note_all(self, run: Run, state: str, error: str = "") -> None:
        """The new state of all jobs of a run, but for those that are cancelled meanwhile."""
        for job in list(run.jobs):
            if job in run.jobs:
                await self._note(job, state, error)

    async def _note(self, job: Job, state: str, error: str = "") -> None:
        """A job's new state, on disk before anybody hears of it."""
        job.state, job.error, job.changed = state, error, time.time()
        job.round, job.progress = None, ("", 0, 0)
        self._store.note(job)
        if job.over:
            self._metrics.ended.labels(state).inc()
            self._store.forget_query(job)
        for name in (QUEUED, RUNNING):
            self._metrics.jobs.labels(name).set(sum(one.state == name for one in self.jobs.values()))
        await self._changed(job)

    async def _changed(self, job: Job) -> None:
        async with self._change:
            job.version += 1
            self._change.notify_all()
