"""Posts of workers: whoever holds one is given runs and watched, and replaced when it has gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from secureattn.deploy.server.hand import Died, Gone, Worker
from secureattn.deploy.server.metrics import Metrics
from secureattn.deploy.server.runs import Run, Runs
from secureattn.deploy.server.settings import Limits
from secureattn.deploy.server.store import DONE, FAILED, QUEUED, RUNNING, Store
from secureattn.errors import EngineError
from secureattn.ledger import units

_LOG = logging.getLogger(__name__)
_LOOK_S = 1.0
_AGAIN_S = 5.0  # until another worker is tried where one could not start


class Post:
    """One post, for a worker that ``hands`` starts; ``staffed`` while one is ready."""

    def __init__(self, runs: Runs, store: Store, limits: Limits, metrics: Metrics, hands: Callable[[], Worker]) -> None:
        self.staffed = False
        self._runs = runs
        self._store = store
        self._limits = limits
        self._metrics = metrics
        self._hands = hands

    async def keep(self) -> None:
        """Have a worker do runs, and another one when it has gone, until cancelled."""
        while True:
            hand: Worker | None = None
            try:
                hand = self._hands()
                await hand.ready()
                self.staffed = True
                try:
                    await self._employ(hand)
                finally:
                    self.staffed = False
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
        taking, heard = asyncio.create_task(self._runs.chosen(hand.keys)), asyncio.create_task(hand.hear())
        try:
            await asyncio.wait({taking, heard}, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                heard.result()
            return await taking
        finally:
            for task in (taking, heard):
                task.cancel()
            await asyncio.gather(taking, heard, return_exceptions=True)

    async def _do(self, run: Run, hand: Worker) -> bool:
        """Do a run; whether its worker may go on."""
        began = time.monotonic()
        tasks: list[asyncio.Task[Any]] = []
        try:
            await self._runs.note_all(run, RUNNING)
            if not run.jobs:
                return True
            tasks = [asyncio.create_task(self._work(run, hand)), asyncio.create_task(self._watch(run, hand))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            working, watching = tasks
            if not working.done():
                await self._runs.note_all(run, FAILED, watching.result())
            return working.done() and working.result()
        except Died as death:
            died = death
        except Exception:  # ours, or a full disk, where even that it failed cannot be kept
            _LOG.exception("a run failed inside the server")
            for job in run.jobs:
                job.state, job.error = FAILED, "the server failed, or cannot keep what it computes; its log says more"
                await self._runs.changed(job)
            return False
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._runs.end(run)
            self._metrics.seconds.observe(time.monotonic() - began)
        await self._lost(run, died)  # now that nothing of this try is left that another one would meet
        return False

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
                    await self._runs.changed(job)
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
            await self._runs.note_all(run, QUEUED)
        else:
            reason = f"its process died {run.tries} times; memory may have run out, send fewer inputs"
            await self._runs.note_all(run, FAILED, reason)

    async def _ended(self, run: Run, told: dict[str, Any]) -> bool:
        """What a worker said last; whether it may go on."""
        if "done" in told:
            for job in run.jobs:
                self._store.finished(run.folder, job)
            await self._runs.note_all(run, DONE)
        else:
            await self._runs.note_all(run, FAILED, str(told.get("refused") or told.get("failed")))
        return "failed" not in told

    async def _round(self, run: Run, hand: Worker, number: int) -> None:
        """A request lies in the run's folder: wait until a client has answered; Died if the worker does meanwhile."""
        run.answered.clear()
        await self._runs.asks(run, number)
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
