"""A replica as the server sees it: what the queue says and hears of a worker, by way of a Ray actor.

The server's folders stay the server's: it reads what a replica needs, and writes what comes back. On the way these are
bytes, which Ray carries and nobody unpickles. Keys travel once for each replica and key set.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from secureattn import __version__
from secureattn.deploy.parcel import EVALUATION_FILE
from secureattn.deploy.rounds import answer_path, request_path
from secureattn.deploy.server.hand import Died, Gone
from secureattn.deploy.server.store import KEY_FILES
from secureattn.errors import EngineError

_LOG = logging.getLogger(__name__)
_ROOM_S = 30.0  # until it is said that a replica waits for a place


class RemoteHand:
    """A worker somewhere in the cluster. ``actor``: a replica's handle; ``goods``: where its files are in Ray's store;
    ``ended`` is told of the last thing asked of it.
    """

    def __init__(
        self, actor: Any, served: tuple[str, str, str], goods: Any, ended: Callable[[ObjectRef[Any]], None]
    ) -> None:
        self.keys = ""
        self._actor = actor
        self._served = served
        self._goods = goods
        self._ended = ended
        self._folder = Path()
        self._next: asyncio.Future[Any] | None = None

    async def ready(self) -> None:
        """Wait until there is room for it and it has loaded the model; EngineError where it cannot."""
        starting = _future(self._actor.ready.remote(__version__, self._served, self._goods))
        await asyncio.wait({starting}, timeout=_ROOM_S)
        if not starting.done():
            _LOG.warning("a replica waits for free processors and memory in the cluster; add machines, or free some")
        if reason := await _said(starting):
            raise EngineError(str(reason))

    async def tell(self, note: Any) -> None:
        """A job or an answer, with its files; Gone where nobody was there to be told of a job, else Died."""
        if "answered" in note:
            await self._answer(int(note["answered"]))
            return
        self._folder, keys = Path(note["run"]), Path(note["key_folder"])
        place = _place(keys)
        try:
            there = await _asked(self._actor.has, place)
        except Died as death:
            raise Gone(str(death)) from None
        files = {} if there else await asyncio.to_thread(_read, keys)
        queries = await asyncio.to_thread(lambda: [Path(query).read_bytes() for query in note["queries"]])
        if gone := await _asked(self._actor.begin, note["keys"], queries, place, files):
            raise Gone(gone)

    async def hear(self) -> dict[str, Any]:
        """What it says next, once the file it speaks of lies in the run's folder; Died where it is gone."""
        if self._next is None:
            self._next = _future(self._actor.hear.remote())
        note, data = await _said(self._next)
        if "died" in note:
            raise Died(note["died"])
        if "round" in note:
            await asyncio.to_thread(request_path(self._folder, note["round"]).write_bytes, data)
        elif "done" in note:
            await asyncio.to_thread((self._folder / "result").write_bytes, data)
        self._next = None
        return dict(note)

    async def memory_bytes(self) -> int:
        """What its worker has in memory; 0 where it is gone, which is heard elsewhere."""
        try:
            return int(await _asked(self._actor.memory_bytes))
        except Died:
            return 0

    def end(self) -> None:
        """It is over, whatever it is doing. Ray ends the actor once nobody holds its handle."""
        if self._actor is not None:
            self._ended(self._actor.end.remote())
            self._actor = None

    async def _answer(self, number: int) -> None:
        request, answer = request_path(self._folder, number), answer_path(self._folder, number)
        data = await asyncio.to_thread(answer.read_bytes)
        await _asked(self._actor.answered, number, data)
        for path in (request, answer):
            path.unlink(missing_ok=True)


def _future(ref: ObjectRef[Any]) -> asyncio.Future[Any]:
    """Its failure may go unheard, where what was asked is given up."""
    future: asyncio.Future[Any] = asyncio.wrap_future(ref.future())
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


async def _asked(method: Any, *arguments: Any) -> Any:
    """What a replica answers; what is sent may be large, and its copying is no business of the loop's."""
    try:
        ref = await asyncio.to_thread(method.remote, *arguments)
    except RayError as error:
        raise Died(f"its replica cannot be reached ({_first_line(error)})") from None
    return await _said(_future(ref))


async def _said(future: asyncio.Future[Any]) -> Any:
    """An answer, which goes on coming where nobody waits for it any longer; Died where none will."""
    try:
        return await asyncio.shield(future)
    except RayTaskError as error:
        raise Died(f"its replica failed ({error.cause!r})") from None
    except RayError as error:
        raise Died(f"its replica is gone ({_first_line(error)})") from None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _place(folder: Path) -> str:
    """What replicas call a key set: another owner's, or one that was uploaded again, has another name."""
    stamp = (folder / EVALUATION_FILE).stat().st_mtime_ns
    return hashlib.sha256(f"{folder} {stamp}".encode()).hexdigest()[:32]


def _read(folder: Path) -> Mapping[str, bytes]:
    return {name: (folder / name).read_bytes() for name in KEY_FILES.values()}
