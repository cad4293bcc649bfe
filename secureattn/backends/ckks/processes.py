"""Work shared between processes. Each is a fork: it inherits all that its parent holds, keys and ciphertexts among it,
and sends back only what it made, through memory both can see.

SEAL's bindings hold Python's lock, so threads run no faster than one.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from secureattn.errors import CapabilityError, EngineError, InputError, PlanError, RangeError, SecureAttnError

_KINDS: dict[str, type[SecureAttnError]] = {
    kind.__name__: kind for kind in (InputError, RangeError, PlanError, CapabilityError, EngineError, SecureAttnError)
}
Item = TypeVar("Item")
Own = TypeVar("Own")
Buffer = Any
"""Contiguous memory: bytes, or an array."""

_END = b"\n"
"""The last byte of a report: what is cut short has none."""

_leaving: set[int] = set()
"""Processes that have delivered and are giving their memory back, which takes as long as starting them."""

_spare: list[int] = []
"""Files in memory that were read: writing over their pages takes a tenth of what new ones take."""


def available() -> bool:
    """Whether this system can share work: Linux, whose forks see the same memory."""
    return sys.platform.startswith("linux") and hasattr(os, "memfd_create")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class Parcel:
    """What a process sends back: large things as they lie in memory, and what describes them, as JSON."""

    buffers: Sequence[Buffer]
    note: Any = None


@dataclass
class Delivery:
    """A parcel as its receiver finds it; buffers are read one after another into memory of the receiver's."""

    note: Any
    sizes: list[int]
    handle: int = field(repr=False)

    def read(self, into: Buffer) -> None:
        """The next buffer, which must have this size."""
        view = memoryview(into).cast("B")
        size = self.sizes.pop(0)
        if len(view) != size:
            raise EngineError(f"a worker process sent {size} bytes where {len(view)} were expected")
        while len(view):
            view = view[os.readv(self.handle, [view]) :]

    def read_bytes(self) -> bytes:
        """The next buffer, whatever its size."""
        into = bytearray(self.sizes[0])
        self.read(into)
        return bytes(into)

    def close(self) -> None:
        """Leave the memory to whoever delivers next; nothing can be read afterwards."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            _spare.append(handle)


def shared(own: Callable[[], Own], others: Sequence[Callable[[], Parcel]]) -> tuple[Own, list[Delivery]]:
    """Run ``own`` here and each of ``others`` in a process of its own, at once; whoever reads a delivery closes it.

    Raises what any of them raised, of our own errors the same, others as an EngineError that names them; all processes
    are gone by then. After success they may still be giving their memory back: ``settle`` waits for that.
    """
    reap(os.WNOHANG)
    children: list[_Child] = []
    try:
        for job in others:
            children.append(_Child(job))
        return own(), [child.delivery() for child in children]
    except BaseException:
        for child in children:
            child.abandon()
        settle()
        raise


def settle() -> None:
    """After the last of several loops: wait until processes that have delivered are gone, give their memory back."""
    reap()
    while _spare:
        os.close(_spare.pop())


def reap(options: int = 0) -> None:
    """Wait until processes that have delivered are gone; with WNOHANG, for none that is not."""
    for pid in list(_leaving):
        try:
            ended, _ = os.waitpid(pid, options)
        except ChildProcessError:  # another thread has waited for it
            ended = pid
        if ended:
            _leaving.discard(pid)


def gathered(compute: Callable[[Item], bytes], items: Sequence[Item], workers: int) -> list[bytes]:
    """``compute`` of every item, by as many processes."""
    if workers < 2 or len(items) < 2 or not available():
        return [compute(item) for item in items]
    mine, *others = portions(items, workers)
    jobs = [lambda share=share: Parcel([compute(item) for item in share]) for share in others]
    made, deliveries = shared(lambda: [compute(item) for item in mine], jobs)
    for delivery in deliveries:
        made += [delivery.read_bytes() for _ in range(len(delivery.sizes))]
        delivery.close()
    return made


def portions(items: Sequence[Item], workers: int) -> list[Sequence[Item]]:
    """Contiguous portions, as equal as they can be, none empty, the largest first."""
    size, extra = divmod(len(items), workers)
    end, made = 0, []
    for i in range(workers):
        begin, end = end, end + size + (i < extra)
        made.append(items[begin:end])
    return [portion for portion in made if portion]


class _Child:
    def __init__(self, job: Callable[[], Parcel]) -> None:
        self.handle = _memory()
        self.pipe, report = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: no child takes a lock of theirs
            self.pid = self._forked(report)
        if not self.pid:
            _work(job, self.handle, report)
        os.close(report)

    def _forked(self, report: int) -> int:
        """A fork; an interrupt reaches the parent alone, which ends its children."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pid = os.fork()
            if not pid:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            return pid
        except OSError as error:
            for handle in (self.handle, self.pipe, report):
                os.close(handle)
            raise EngineError(f"no worker process could be started ({error}); use fewer workers") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def delivery(self) -> Delivery:
        with os.fdopen(self.pipe, "rb") as pipe:
            report = pipe.read()
        self.pipe = -1
        pid, self.pid = self.pid, 0
        if not report.endswith(_END):
            _, status = os.waitpid(pid, 0)
            raise EngineError(
                f"a worker process died (status {os.waitstatus_to_exitcode(status)}); memory may have run out, use "
                "fewer workers or a smaller batch"
            )
        _leaving.add(pid)
        told = json.loads(report)
        if "error" in told:
            raise next(_KINDS[name] for name in told["error"] if name in _KINDS)(told["message"])
        os.lseek(self.handle, 0, os.SEEK_SET)
        return Delivery(told["note"], told["sizes"], self.handle)

    def abandon(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        for handle in (self.pipe, self.handle):
            try:
                os.close(handle)
            except OSError:
                continue


def _memory() -> int:
    """A file in memory to write to from its beginning; it may be longer than what will be written."""
    try:
        handle = _spare.pop()
    except IndexError:
        return os.memfd_create("secureattn")
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


def _work(job: Callable[[], Parcel], handle: int, report: int) -> None:
    """A child's whole life. The report's end is what its parent waits for, so it comes before that of the process."""
    try:
        gc.disable()  # a collection would copy every page it marks
        try:
            parcel = job()
            sizes = [_write(handle, buffer) for buffer in parcel.buffers]
            told: dict[str, Any] = {"note": parcel.note, "sizes": sizes}
        except BaseException as error:
            named = isinstance(error, SecureAttnError)
            text = str(error) if named else f"a worker process failed: {type(error).__name__}: {error}"
            kinds = type(error).__mro__ if named else (EngineError,)
            told = {"error": [kind.__name__ for kind in kinds], "message": text}
        _write(report, json.dumps(told).encode() + _END)
        os.close(report)
    finally:
        os._exit(0)


def _write(handle: int, buffer: Buffer) -> int:
    view = memoryview(buffer).cast("B")
    size = len(view)
    while len(view):
        view = view[os.write(handle, view) :]
    return size
