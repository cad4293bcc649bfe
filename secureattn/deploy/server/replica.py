"""A replica of the evaluator on any machine of a cluster: a worker process, and a folder in place of the server's.

What the server's worker would read and write in the server's folders comes and goes as bytes. It knows nothing of Ray,
which makes one object of it a process; the worker is a process of its own, so a crash in SEAL is heard, not shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secureattn import __version__
from secureattn.deploy.parcel import PUBLIC_FILE
from secureattn.deploy.rounds import answer_path, request_path
from secureattn.deploy.server.hand import Died, Hand
from secureattn.deploy.server.settings import Served
from secureattn.errors import SecureAttnError

KEPT = 4
"""Key sets that a replica keeps."""

_PREFIX, _LOCK = "secureattn-replica-", "lock"
Said = tuple[dict[str, Any], bytes]
"""A worker's words, and the file they are about."""


class Replica:
    """Does a job at a time. ``base``: where it makes its folder, the system's own place unless given."""

    def __init__(self, base: str | None = None) -> None:
        place = Path(base or tempfile.gettempdir())
        _sweep(place)
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        self._lock = (self._folder / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._job = self._folder / "job"
        self._hand: Hand | None = None

    async def ready(self, release: str, served: tuple[str, str, str], goods: Mapping[str, bytes]) -> str:
        """Start the worker on the files of a model, a protocol and a plan; why it cannot, or nothing."""
        if release != __version__:
            return f"a machine of the cluster has secureattn {__version__}, the server {release}; install the same"
        await asyncio.to_thread(_lay, self._folder, goods)
        model, protocol, plan = (self._folder / name for name in served)
        try:
            self._hand = Hand(Served(str(model), str(protocol), plan))
            await self._hand.ready()
        except (SecureAttnError, OSError) as error:
            return str(error)
        return ""

    async def has(self, place: str) -> bool:
        """Whether a key set is here, which then is the last to go."""
        there = (self._keys(place) / PUBLIC_FILE).exists()
        if there:
            (self._keys(place) / PUBLIC_FILE).touch()
        return there

    async def begin(self, keys: str, queries: Sequence[bytes], place: str, files: Mapping[str, bytes]) -> str:
        """Begin a run of one or several queries; ``files`` of the keys are none where they are here. What became of the
        worker, where it was gone before.
        """
        named = {f"query-{i}": query for i, query in enumerate(queries)}
        await asyncio.to_thread(self._prepare, named, place, files)
        paths = [str(self._job / name) for name in named]
        note = {"run": str(self._job), "queries": paths, "keys": keys, "key_folder": str(self._keys(place))}
        assert self._hand is not None
        try:
            await self._hand.tell(note)
        except Died as death:
            return str(death)
        return ""

    async def answered(self, number: int, answer: bytes) -> None:
        """Go on after a refresh."""
        answer_path(self._job, number).write_bytes(answer)
        assert self._hand is not None
        with contextlib.suppress(Died):  # which is heard next
            await self._hand.tell({"answered": number})

    async def hear(self) -> Said:
        """What the worker says next, ``died`` where it is gone, with the request or the result that it speaks of."""
        assert self._hand is not None
        try:
            note = await self._hand.hear()
        except Died as death:
            return {"died": str(death)}, b""
        if "round" in note:
            return note, await asyncio.to_thread(request_path(self._job, note["round"]).read_bytes)
        if "done" in note:
            return note, await asyncio.to_thread((self._job / "result").read_bytes)
        return note, b""

    async def memory_bytes(self) -> int:
        """What the worker's processes have in memory."""
        return 0 if self._hand is None else await self._hand.memory_bytes()

    async def end(self) -> None:
        """The worker and the folder are gone."""
        if self._hand is not None:
            self._hand.end()
        self._lock.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _keys(self, place: str) -> Path:
        return self._folder / "keys" / place

    def _prepare(self, queries: Mapping[str, bytes], place: str, keys: Mapping[str, bytes]) -> None:
        shutil.rmtree(self._job, ignore_errors=True)
        _lay(self._job, queries)
        if keys:
            _lay(self._keys(place), keys)
        there = sorted((self._folder / "keys").iterdir(), key=lambda one: (one / PUBLIC_FILE).stat().st_mtime)
        for old in there[:-KEPT]:
            shutil.rmtree(old)


def _lay(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _sweep(place: Path) -> None:
    """Take away the folders of replicas that were killed: nobody holds their lock."""
    for folder in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
