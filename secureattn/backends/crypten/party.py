"""What one process of a local run does: the dealer serves, a party calls the entry; both report to the parent."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, MutableSequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from secureattn.backends.crypten import dealer
from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.links import LinkLost
from secureattn.backends.crypten.meeting import BEAT_S, SILENCE_S, Address
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.transport import Mesh, world_size
from secureattn.errors import InputError, SecureAttnError
from secureattn.events import Event, Recorder, Span


@dataclass(frozen=True)
class Job:
    """What a process is told: its rank (the dealer's is the number of parties), the directory to meet in, its call."""

    rank: int
    parameters: MpcParameters
    directory: str
    entry: str | Callable[..., Any]
    argument: Any
    trace: bool
    device: str = "cpu"

    @property
    def address(self) -> Address:
        return Address(file=str(Path(self.directory) / "rendezvous"))

    @property
    def name(self) -> str:
        return f"party {self.rank}" if self.rank < self.parameters.parties else "the dealer"


@dataclass(frozen=True)
class Started:
    """The process is up and has met the others."""


@dataclass(frozen=True)
class Finished:
    """The process did its part."""

    value: Any
    events: list[Event]
    spans: list[Span]
    origin_s: float


@dataclass(frozen=True)
class Failure:
    """The process could not go on. ``error`` names one of our error classes, or is None for anything else."""

    error: str | None
    message: str
    attributes: dict[str, Any]
    link_lost: bool


def run_process(job: Job, pipe: Connection, waiting: MutableSequence[int], beats: MutableSequence[float]) -> None:
    """The body of a process: set up, work, report; whatever goes wrong becomes a Failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt ends
    _end_with_parent(job.directory)
    _beat(beats, job.rank)
    warnings.simplefilter("ignore", category=FutureWarning)
    torch.set_num_threads(max(1, _cores() // job.parameters.parties))
    try:
        outcome: Finished | Failure = _work(job, pipe, waiting)
    except BaseException as failure:
        outcome = _failure(job, failure)
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        _send(job, pipe, outcome)
    pipe.close()


def resolve(entry: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function an entry names, "module:function"."""
    if not isinstance(entry, str):
        return entry
    module, _, function = entry.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as missing:
        raise InputError(f'entry {entry!r} must be "module:function" and importable: {missing}') from missing
    return found


def _work(job: Job, pipe: Connection, waiting: MutableSequence[int]) -> Finished:
    store = job.address.store(wait_s=SILENCE_S)
    recorder = Recorder(trace=job.trace)
    with recorder.phase("setup"), recorder.op("connect"):
        mesh = Mesh.connect(store, rank=job.rank, size=world_size(job.parameters), waiting=waiting)
    with mesh:
        if job.rank == job.parameters.parties:
            pipe.send(Started())
            dealer.serve(job.parameters, mesh, recorder)
            return _finished(None, recorder)
        from secureattn.backends.crypten.crypten_runtime import CryptenRuntime  # the dealer needs no CrypTen

        entry = resolve(job.entry)
        with recorder.phase("setup"), recorder.op("connect"):
            runtime = CryptenRuntime(job.parameters, mesh, device=job.device)
        pipe.send(Started())
        value = entry(MpcBackend(runtime, recorder), job.argument)
        runtime.finish()
        return _finished(value, recorder)


def _finished(value: Any, recorder: Recorder) -> Finished:
    return Finished(value, list(recorder.events.values()), recorder.spans, recorder.origin_s)


def _send(job: Job, pipe: Connection, outcome: Finished | Failure) -> None:
    try:
        pipe.send(outcome)
    except (TypeError, ValueError, AttributeError) as failure:
        message = f"{job.name} returned what cannot be brought back to the parent: {failure}"
        pipe.send(Failure("InputError", message, {}, link_lost=False))


def _failure(job: Job, failure: BaseException) -> Failure:
    if isinstance(failure, LinkLost):
        return Failure("EngineError", f"{job.name}: {failure}", {}, link_lost=True)
    if isinstance(failure, SecureAttnError):
        known = next(base for base in type(failure).__mro__ if base.__module__ == SecureAttnError.__module__)
        return Failure(known.__name__, str(failure), dict(vars(failure)), link_lost=False)
    reason = " ".join(str(failure).split())
    return Failure(None, f"{job.name} failed: {type(failure).__name__}: {reason}", {}, link_lost=False)


def _end_with_parent(directory: str) -> None:
    """Leave at once when the parent is gone, however it went, and clear up the directory in its place."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int) -> None:
        wait([sentinel])
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def _beat(beats: MutableSequence[float], rank: int) -> None:
    """Note the time every second, for the parent to see that this process is not hung."""

    def beat() -> None:
        while True:
            beats[rank] = time.monotonic()
            time.sleep(BEAT_S)

    threading.Thread(target=beat, daemon=True).start()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
