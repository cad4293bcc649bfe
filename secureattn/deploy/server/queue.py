"""Jobs and the workers that do them: which is next, how long it may take, what becomes of it when its worker dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from secureattn.deploy.server.hand import Died, Hand
from secureattn.deploy.server.metrics import Metrics
from secureattn.deploy.server.settings import Limits
from secureattn.deploy.server.store import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Job, Store
from secureattn.errors import EngineError
from secureattn.ledger import units

_LOG = logging.getLogger(__name__)
_LOOK_S = 1.0
_AGAIN_S = 5.0  # until another worker is tried where one could not start


class Queue:
    """All jobs by id; ``hands`` starts a worker."""

    def __init__(self, store: Store, limits: Limits, metrics: Metrics, hands: Callable[[], Hand]) -> None:
        self.jobs: dict[str, Job] = {}
        self.draining = False
        self._closing = False
        self.workers = 0
        self._store = store
        self._limits = limits
        self._metrics = metrics
        self._hands = hands
        self._served: dict[str, float] = {}  # client → when a job of theirs was begun last
        self._answers: dict[str, asyncio.Event] = {}
        self._cancels: dict[str, asyncio.Event] = {}
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

    async def answer(self, job: Job) -> None:
        """The answer to the round that a job waits for lies in its folder."""
        job.round = None
        self._answers[job.id].set()
        await self._changed(job)

    async def cancel(self, job: Job) -> None:
        """It need not be done."""
        if job.id in self._cancels:
            self._cancels[job.id].set()
        elif not job.over:
            await self._note(job, CANCELLED)

    async def changed(self, job: Job, version: int, wait_s: float) -> None:
        """Return when a job is no longer as it was at ``version``, or after so many seconds."""

        async def change() -> None:
            async with self._change:
                await self._change.wait_for(lambda: self._closing or job.version != version)

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(change(), wait_s)

    async def drain(self) -> None:
        """Begin no more jobs; those that run have ``grace_s`` left, the others wait for the next start."""
        self.draining = True
        deadline = time.monotonic() + self._limits.grace_s
        while any(job.state == RUNNING for job in self.jobs.values()) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await self.release()

    async def release(self) -> None:
        """Whoever waits for a change is told how things are, now and from now on at once."""
        async with self._change:
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
            hand: Hand | None = None
            try:
                hand = self._hands()
                await hand.ready()
                self.workers += 1
                try:
                    while await self._do(await self._next(hand.keys), hand):
                        pass
                finally:
                    self.workers -= 1
            except (EngineError, OSError) as error:
                _LOG.error("a worker could not start, or the disk is full: %s", error)
                await asyncio.sleep(_AGAIN_S)
            finally:
                if hand is not None:
                    hand.end()

    async def _next(self, loaded: str) -> Job:
        """The oldest job of the client who was served longest ago, or one of hers whose keys are loaded."""
        async with self._change:
            await self._change.wait_for(lambda: bool(self._waiting()))
            waiting = self._waiting()
            client = min(waiting, key=lambda job: (self._served.get(job.client, 0.0), job.created)).client
            theirs = [job for job in waiting if job.client == client]
            job = next((job for job in theirs if job.keys == loaded), theirs[0])
            self._served[client] = time.monotonic()
            job.tries += 1
            job.state = RUNNING
        return job

    def _waiting(self) -> list[Job]:
        return [] if self.draining else [job for job in self.jobs.values() if job.state == QUEUED]

    async def _do(self, job: Job, hand: Hand) -> bool:
        """Do a job; whether its worker may go on."""
        self._store.clear(job)
        self._cancels[job.id], self._answers[job.id] = asyncio.Event(), asyncio.Event()
        await self._note(job, RUNNING)
        began = time.monotonic()
        working, watching = asyncio.create_task(self._work(job, hand)), asyncio.create_task(self._watch(job, hand))
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await self._note(job, *watching.result())
            return working.done() and working.result()
        except OSError as error:  # of the disk, where even that it failed cannot be kept
            _LOG.error("job %s cannot be kept: %s", job.id, error)
            job.state, job.error = FAILED, "the server cannot keep what it computes; try again later"
            await self._changed(job)
            return False
        finally:
            for task in (working, watching):
                task.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)
            del self._cancels[job.id], self._answers[job.id]
            if job.over:
                self._metrics.seconds.observe(time.monotonic() - began)

    async def _work(self, job: Job, hand: Hand) -> bool:
        try:
            hand.tell(self._store.told(job))
            hand.keys = job.keys
            while True:
                told = await hand.hear()
                if "progress" in told:
                    text, done, of = told["progress"]
                    job.progress = (str(text), int(done), int(of))
                    await self._changed(job)
                elif "round" in told:
                    await self._round(job, hand, int(told["round"]))
                    hand.tell({"answered": told["round"]})
                    self._metrics.rounds.inc()
                else:
                    return await self._ended(job, told)
        except Died as death:
            self._metrics.deaths.inc()
            _LOG.warning("the worker of job %s died: %s", job.id, death)
            if job.tries < self._limits.tries:
                await self._note(job, QUEUED)
            else:
                reason = f"its process died {job.tries} times; memory may have run out, send fewer inputs"
                await self._note(job, FAILED, reason)
            return False

    async def _ended(self, job: Job, told: dict[str, Any]) -> bool:
        """What a worker said last; whether it may go on."""
        if "done" in told:
            await self._note(job, DONE)
        else:
            await self._note(job, FAILED, str(told.get("refused") or told.get("failed")))
        return "failed" not in told

    async def _round(self, job: Job, hand: Hand, number: int) -> None:
        """A request lies in the job's folder: wait until the client has answered; Died if the worker does meanwhile."""
        self._answers[job.id].clear()
        job.round = number
        await self._changed(job)
        answered = asyncio.create_task(self._answers[job.id].wait())
        heard = asyncio.create_task(hand.hear())  # it has nothing to say now, but its death is heard
        try:
            await asyncio.wait({answered, heard}, return_when=asyncio.FIRST_COMPLETED)
            if heard.done():
                heard.result()
        finally:
            answered.cancel()
            heard.cancel()
            await asyncio.gather(answered, heard, return_exceptions=True)

    async def _watch(self, job: Job, hand: Hand) -> tuple[str, str]:
        """How a job ends that does not end by itself: cancelled, or beyond a limit."""
        limits, deadline, asked = self._limits, time.monotonic() + self._limits.job_s, (0, 0.0)
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._cancels[job.id].wait(), _LOOK_S)
                return CANCELLED, ""
            now = time.monotonic()
            if now > deadline:
                return FAILED, f"it took more than {limits.job_s:g} s; send fewer inputs"
            if job.round is None or asked[0] != job.round:
                asked = (job.round or 0, now)
            elif now > asked[1] + limits.answer_s:
                return FAILED, f"refresh {job.round} was not answered within {limits.answer_s:g} s"
            if await asyncio.to_thread(hand.memory_bytes) > limits.memory_bytes:
                return FAILED, f"it took more than {units.data(limits.memory_bytes)} of memory; send fewer inputs"

    # ---- changes --------------------------------------------------------------------------------------------

    async def _note(self, job: Job, state: str, error: str = "") -> None:
        """A job's new state, on disk before anybody hears of it."""
        job.state, job.error, job.changed = state, error, time.time()
        job.round, job.progress = None, ("", 0, 0)
        self._store.note(job)
        if job.over:
            self._metrics.ended.labels(state).inc()
            self._store.clear(job, all_but_result=True)
        for name in (QUEUED, RUNNING):
            self._metrics.jobs.labels(name).set(sum(one.state == name for one in self.jobs.values()))
        await self._changed(job)

    async def _changed(self, job: Job) -> None:
        async with self._change:
            job.version += 1
            self._change.notify_all()
