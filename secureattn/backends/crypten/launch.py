"""Runs parties and dealer as processes of one machine, and ends all of them at the first failure.

Processes meet at a file in a private directory that is removed afterwards, and talk over the loopback interface.
What an entry is given and what it returns passes through multiprocessing's own pipes between parent and child.
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from secureattn import errors
from secureattn.backends.crypten.meeting import BEAT_S, SILENCE_S
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.party import Failure, Finished, Job, Started, run_process
from secureattn.backends.crypten.transport import world_size
from secureattn.errors import EngineError, InputError, SecureAttnError
from secureattn.events import Event, Span

Entry = str | Callable[..., Any]
Progress = Callable[[str], None]

_CAUSE_S = 1.0  # how long to look for the cause after a mere loss of connection
_LEAVE_S = 5.0  # how long a process whose pipe is closed may take to end


@dataclass
class PartyResult:
    """What one process brings back: its entry's return value (None of the dealer's), its events, and its time line if
    traced, from ``origin_s`` on.
    """

    rank: int
    value: Any
    events: list[Event]
    spans: list[Span] = field(default_factory=list)
    origin_s: float = 0.0


@dataclass
class _Process:
    name: str
    process: Any
    pipe: Connection
    started: bool = False
    finished: Finished | None = None
    failure: Failure | None = None

    @property
    def over(self) -> bool:
        return self.finished is not None or self.failure is not None


def run_parties(
    entry: Entry,
    arguments: Sequence[Any],
    parameters: MpcParameters | None = None,
    *,
    timeout_s: float | None = None,
    progress: Progress | None = None,
    trace: bool = False,
    device: str = "cpu",
) -> list[PartyResult]:
    """Call ``entry(backend, argument)`` in every party, with its own argument, and bring back what they return.

    ``entry`` is "module:function", or a function of a module that a new process can import. A party that raises,
    dies or is not done within ``timeout_s`` ends all processes and raises one error: the party's own where it is a
    SecureAttnError, else an EngineError that names the party and the reason. ``progress`` is told, in a few words,
    when a process starts and ends. ``device``: where shares are, "cpu" or "cuda".
    """
    parameters = parameters or MpcParameters()
    everyone = run_processes(
        entry, arguments, parameters, timeout_s=timeout_s, progress=progress, trace=trace, device=device
    )
    return everyone[: parameters.parties]


def run_processes(
    entry: Entry,
    arguments: Sequence[Any],
    parameters: MpcParameters,
    *,
    timeout_s: float | None = None,
    progress: Progress | None = None,
    trace: bool = False,
    device: str = "cpu",
) -> list[PartyResult]:
    """As ``run_parties``; what the dealer's process recorded comes last, where it has one."""
    if len(arguments) != parameters.parties:
        raise InputError(f"{parameters.parties} parties need as many arguments, not {len(arguments)}")
    with tempfile.TemporaryDirectory(prefix="secureattn-") as directory:
        context = multiprocessing.get_context("spawn")
        waiting = context.Array("b", world_size(parameters), lock=False)
        beats = context.Array("d", world_size(parameters), lock=False)
        processes: list[_Process] = []
        try:
            for rank in range(world_size(parameters)):
                argument = arguments[rank] if rank < parameters.parties else None
                job = Job(rank, parameters, directory, entry, argument, trace, device)
                processes.append(_start(job, waiting, beats))
            _watch(processes, waiting, beats, timeout_s, progress or (lambda _: None))
        finally:
            _end(processes)
    return [
        PartyResult(rank, done.value, done.events, done.spans, done.origin_s)
        for rank, process in enumerate(processes)
        if (done := process.finished) is not None
    ]


def _start(job: Job, waiting: Any, beats: Any) -> _Process:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_process, args=(job, sender, waiting, beats), name=job.name, daemon=True)
    try:
        process.start()
    except Exception as failure:
        receiver.close()
        raise InputError(f"the argument of {job.name} cannot be handed to its process: {failure}") from failure
    finally:
        sender.close()
    return _Process(job.name, process, receiver)


def _watch(processes: list[_Process], waiting: Any, beats: Any, timeout_s: float | None, progress: Progress) -> None:
    """Receive messages until all are finished; raise at the first failure, or when a process gives no sign of life."""
    deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
    while not all(process.over for process in processes):
        if not _receive(processes, min(deadline, time.monotonic() + BEAT_S), progress):
            now = time.monotonic()
            if now >= deadline:
                raise EngineError(_late(processes, waiting, timeout_s))
            hung = [
                p.name for p, beat in zip(processes, beats, strict=True) if not p.over and 0 < beat < now - SILENCE_S
            ]
            if hung:
                raise EngineError(
                    f"{' and '.join(hung)} gave no sign of life for {SILENCE_S:g} s; all processes were ended"
                )
        if any(process.failure for process in processes):
            cause = time.monotonic() + _CAUSE_S
            while _only_links_lost(processes) and _receive(processes, cause, progress):
                pass
            raise _error(processes)


def _receive(processes: list[_Process], deadline: float, progress: Progress) -> bool:
    """Wait for messages and deaths; False where the deadline passed or nothing is left to wait for."""
    open_ones = [process for process in processes if not process.over]
    sources = [source for process in open_ones for source in (process.pipe, process.process.sentinel)]
    timeout = max(0.0, deadline - time.monotonic())
    if not sources or not wait(sources, timeout):
        return False
    for process in open_ones:
        dead = not process.process.is_alive()  # asked before the pipe is drained, so that no last word is lost
        try:
            while not process.over and process.pipe.poll():
                _note(process, process.pipe.recv(), progress)
        except (EOFError, OSError):
            process.process.join(_LEAVE_S)
            dead = True
        if dead and not process.over:
            process.failure = Failure(None, _death(process), {}, link_lost=False)
    return True


def _note(process: _Process, message: Any, progress: Progress) -> None:
    if isinstance(message, Started):
        process.started = True
        progress(f"{process.name} started")
    elif isinstance(message, Finished):
        process.finished = message
        progress(f"{process.name} finished")
    elif isinstance(message, Failure):
        process.failure = message


def _only_links_lost(processes: list[_Process]) -> bool:
    return all(process.failure.link_lost for process in processes if process.failure)


def _death(process: _Process) -> str:
    code = process.process.exitcode
    if code is not None and code < 0:
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
    else:
        how = f"ended with exit code {code}"
    hint = (
        ""
        if process.started
        else ('; a script that starts parties must do so under if __name__ == "__main__"' if code == 1 else "")
    )
    return f"{process.name} {how} before it was done{hint}"


def _late(processes: list[_Process], waiting: Any, timeout_s: float | None) -> str:
    """Name who keeps the others waiting: a process that is not in an exchange itself, or everyone if all are."""
    unfinished = [(process.name, bool(waiting[rank])) for rank, process in enumerate(processes) if not process.over]
    holding = [name for name, waits in unfinished if not waits]
    names = holding or [name for name, _ in unfinished]
    others = [name for name, _ in unfinished if name not in names]
    tail = f"; {' and '.join(others)} waited for it" if others else ""
    return f"{' and '.join(names)} did not finish within {timeout_s:g} s{tail}; all processes were ended"


def _error(processes: list[_Process]) -> SecureAttnError:
    failures = [process.failure for process in processes if process.failure]
    failure = next((failure for failure in failures if not failure.link_lost), failures[0])
    if failure.error is None:
        return EngineError(failure.message)
    kind = getattr(errors, failure.error, SecureAttnError)
    error: SecureAttnError = kind.__new__(kind)
    Exception.__init__(error, failure.message)
    vars(error).update(failure.attributes)
    return error


def _end(processes: list[_Process]) -> None:
    """Leave no process behind. Those that are done have said all they had to, so none needs more time."""
    for process in processes:
        process.process.kill()
    for process in processes:
        process.process.join()
        process.process.close()
        process.pipe.close()
