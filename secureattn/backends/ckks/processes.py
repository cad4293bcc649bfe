"""Processes that share work. Each is a fork: it inherits all that its parent holds, keys and ciphertexts among it.

SEAL's bindings hold Python's lock, so threads run no faster than one.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import Pipe, connection
from typing import Any, NoReturn, TypeVar

from secureattn.errors import CapabilityError, EngineError, InputError, PlanError, RangeError, SecureAttnError

_KINDS: dict[str, type[SecureAttnError]] = {
    kind.__name__: kind for kind in (InputError, RangeError, PlanError, CapabilityError, EngineError, SecureAttnError)
}
Item = TypeVar("Item")
Message = tuple[Any, list[bytes]]
"""What processes tell each other: something that JSON can say, and bytes."""


def available() -> bool:
    """Whether this system can share work: Linux, whose forks see the same memory."""
    return sys.platform.startswith("linux") and hasattr(os, "memfd_create")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def portions(items: Sequence[Item], workers: int) -> list[Sequence[Item]]:
    """Contiguous portions, as equal as they can be, none empty, the largest first."""
    size, extra = divmod(len(items), workers)
    end, made = 0, []
    for i in range(workers):
        begin, end = end, end + size + (i < extra)
        made.append(items[begin:end])
    return [portion for portion in made if portion]


class Link:
    """One end of the way between a parent and its child."""

    def __init__(self, way: connection.Connection) -> None:
        self.way = way

    def send(self, note: Any, blobs: Sequence[bytes] = ()) -> None:
        """Tell the other end; it must be listening if this is more than a pipe holds."""
        self.way.send_bytes(json.dumps({"note": note, "blobs": len(blobs)}).encode())
        for blob in blobs:
            self.way.send_bytes(blob)

    def receive(self) -> Message:
        """What the other end sent next; EOFError where it is gone, and what it raised where it failed."""
        told = json.loads(self.way.recv_bytes())
        if "error" in told:
            raise next(_KINDS[name] for name in told["error"] if name in _KINDS)(told["message"])
        return told["note"], [self.way.recv_bytes() for _ in range(told["blobs"])]

    def failed(self, error: BaseException) -> None:
        """Tell the other end why this one ends: our own errors as they are, others by name."""
        named = isinstance(error, SecureAttnError)
        text = str(error) if named else f"a worker process failed: {type(error).__name__}: {error}"
        kinds = type(error).__mro__ if named else (EngineError,)
        self.way.send_bytes(json.dumps({"error": [kind.__name__ for kind in kinds], "message": text}).encode())


class Child:
    """A fork that does ``work`` with its link to the parent, and ends. ``siblings``, forked before it, are none of its
    business: each hears of its parent's death by the end of their link, so no other process may hold that.
    """

    def __init__(self, work: Callable[[Link], object], siblings: Iterable[Child] = ()) -> None:
        ours, theirs = Pipe()
        self.link = Link(ours)
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: no child takes a lock of theirs
            try:
                self.pid = _forked()
            except OSError as error:
                ours.close()
                theirs.close()
                raise EngineError(f"no worker process could be started ({error}); use fewer workers") from error
        if not self.pid:
            for link in (self.link, *(sibling.link for sibling in siblings)):
                link.way.close()
            _live(work, Link(theirs))
        theirs.close()

    def send(self, note: Any, blobs: Sequence[bytes] = ()) -> None:
        """Tell it; EngineError where it is dead."""
        try:
            self.link.send(note, blobs)
        except OSError:
            with contextlib.suppress(EOFError, OSError):
                self.link.receive()  # why it has ended, where it could say so
            self._raise_death()

    def receive(self) -> Message:
        """What it sent next; what it raised where it failed, EngineError where it is dead."""
        try:
            return self.link.receive()
        except (EOFError, OSError):
            self._raise_death()

    def _raise_death(self) -> NoReturn:
        pid, self.pid = self.pid, 0
        _, status = os.waitpid(pid, 0)
        raise EngineError(
            f"a worker process died (status {os.waitstatus_to_exitcode(status)}); memory may have run out, use fewer "
            "workers or a smaller batch"
        )

    def end(self) -> None:
        """Whatever it is doing, it is over, and gone."""
        pid, self.pid = self.pid, 0
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.link.way.close()


def collected(children: Sequence[Child]) -> list[Message]:
    """The next message of each child, read as they come, so that one's death is heard while another is busy."""
    waiting, found = {child.link.way: child for child in children}, {}
    while waiting:
        for way in connection.wait(list(waiting)):
            child = waiting.pop(way)  # type: ignore[call-overload]
            found[child.pid] = child.receive()
    return [found[child.pid] for child in children]


class Pool:
    """A function of bytes and a note, computed by this process and others, which are forked at once and know what was
    known then. Threads may share it, and have it in turn.
    """

    def __init__(self, compute: Callable[[bytes, Any], bytes], workers: int) -> None:
        self._compute = compute
        self._children: list[Child] = []
        self._turn = threading.Lock()
        try:
            for _ in range(1, workers if available() else 1):
                self._children.append(Child(self._serve, self._children))
        except BaseException:
            self.close()
            raise

    def map(self, blobs: Sequence[bytes], notes: Sequence[Any]) -> list[bytes]:
        """The function of every blob and its note. After an error only ``close`` is left to do."""
        with self._turn:
            return self._map(blobs, notes)

    def _map(self, blobs: Sequence[bytes], notes: Sequence[Any]) -> list[bytes]:
        mine, *others = portions(list(zip(blobs, notes, strict=True)), 1 + len(self._children)) or [[]]
        asked = self._children[: len(others)]
        for child, share in zip(asked, others, strict=True):
            child.send([note for _, note in share], [blob for blob, _ in share])
        made = [self._compute(*one) for one in mine]
        for _, answers in collected(asked):
            made += answers
        return made

    def close(self) -> None:
        """End the other processes."""
        while self._children:
            self._children.pop().end()

    def _serve(self, link: Link) -> None:
        while True:
            notes, blobs = link.receive()
            link.send(None, [self._compute(blob, note) for blob, note in zip(blobs, notes, strict=True)])


def _forked() -> int:
    """A fork; an interrupt reaches the parent alone, which ends its children."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _live(work: Callable[[Link], object], link: Link) -> NoReturn:
    """A child's whole life."""
    try:
        gc.freeze()  # a collection of what was inherited would copy every page it marks
        try:
            work(link)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass  # the parent is gone
        except BaseException as error:
            link.failed(error)
    finally:
        os._exit(0)
