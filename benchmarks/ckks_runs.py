"""Encrypted runs to measure: each in a process of its own, whose memory can be watched from outside.

A run's peak then holds nothing that earlier ones left behind. Watching takes some of a core, so runs whose seconds are
compared go unwatched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from processes import descendants

WATCH_S, WATCH_SHARE = 0.2, 0.03
"""Memory is looked at so often, but for no more than this share of the time."""

REFRESH_PROTOCOL, ONESHOT_PROTOCOL = "power-softmax-ckks", "power-softmax-ckks-oneshot"


@dataclass(frozen=True)
class Job:
    """So many of a model's samples, from ``first`` on, under a protocol; ``workers`` None: every core; ``costs``, a
    file that planning takes them from: what this machine's user has, where there is none.
    """

    model: str
    protocol: str
    samples: int
    first: int = 0
    workers: int | None = None
    layout: str = "auto"
    costs: str | None = None


def apart(work: Callable[..., Any], *arguments: Any, watched: bool = False) -> dict[str, Any]:
    """What ``work`` returns as ``result``, its seconds, the load before and after, and where it is ``watched`` the peak
    memory of all its processes.
    """
    before, start = os.getloadavg()[0], time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(work, *arguments)
        peak = _peak_bytes(future) if watched else None
        result = future.result()
    return {
        "result": result,
        "wall_s": time.perf_counter() - start,
        "load": [before, os.getloadavg()[0]],
        "peak_bytes": peak,
    }


def side_by_side(work: Callable[..., Any], *arguments: Any, copies: int) -> list[dict[str, Any]]:
    """``apart``, so often at once."""
    with ThreadPoolExecutor(copies) as pool:
        return [future.result() for future in [pool.submit(apart, work, *arguments) for _ in range(copies)]]


def _peak_bytes(future: Future[Any]) -> int:
    """The most that this process's descendants held together until the future was done."""
    peak, pause_s = 0, WATCH_S
    while not wait([future], timeout=pause_s).done:
        start = time.perf_counter()
        peak = max(peak, held_bytes(os.getpid()))
        pause_s = max(WATCH_S, (time.perf_counter() - start) / WATCH_SHARE)
    return peak


def encrypted(job: Job) -> dict[str, Any]:
    """Plan and run a job, and compare with the clear and the exact run; everything measured, as JSON."""
    from secureattn import runs

    plan, seconds = _planned(job)
    inputs, labels = plan.model.samples(job.first + job.samples)
    inputs, labels = inputs[job.first :], labels[job.first :]
    before = held_bytes(os.getpid(), itself=True)
    cpu = _cpu_s()
    run = runs.execute(plan, inputs)
    cpu = _cpu_s() - cpu
    exact, clear = runs.clear_run(plan, inputs, exact=True), runs.clear_run(plan, inputs)
    outputs = {"exact": exact.outputs, "clear": clear.outputs, "encrypted": run.outputs}
    sent = {phase: run.ledger.total("bytes_sent", phase=phase) or 0 for phase in ("encrypt", "refresh", "decrypt")}
    names = ("ct_products", "pt_products", "rotations", "relinearisations", "rescales", "refreshes", "rounds")
    return {
        **asdict(job),
        **described(plan),
        "plan_s": seconds,
        "before_bytes": before,
        "seconds": run.seconds(),
        "cpu_s": cpu,
        "counts": {name: run.total(name) for name in names},
        "bytes": {"query": sent["encrypt"], "refresh": sent["refresh"], "result": sent["decrypt"]},
        "accuracy": {name: float((scores.argmax(-1) == labels).mean()) for name, scores in outputs.items()},
        "agreement": {name: runs.agreement(run.outputs, outputs[name]) for name in ("exact", "clear")},
        "max_abs_error": {
            "encryption": float(abs(run.outputs - clear.outputs).max()),
            "approximation": float(abs(clear.outputs - exact.outputs).max()),
        },
        "escapes": dict(clear.escapes),
    }


def _cpu_s() -> float:
    """Seconds that this process and the children it waited for have had a core."""
    return sum(os.times()[:4])


def planned(job: Job) -> dict[str, Any]:
    """The plan of a job that is not run."""
    plan, seconds = _planned(job)
    return {**asdict(job), **described(plan), "plan_s": seconds}


def described(plan: Any) -> dict[str, Any]:
    """What a plan chose and predicts."""
    ckks, config, memory = plan.ckks, plan.model.config, plan.ckks.memory
    return {
        "shape": {name: getattr(config, name) for name in ("tokens", "features", "width", "heads", "hidden", "layers")},
        "predicted_with": plan.costs.source,
        "workers": plan.workers,
        "layout": ckks.layout,
        "ring_degree": ckks.parameters.ring_degree,
        "prime_bits": list(ckks.parameters.prime_bits),
        "capacity": ckks.capacity,
        "batches": ckks.batches,
        "refresh_points": sorted(ckks.schedule),
        "sizes": dict(ckks.sizes),
        "predicted": dict(ckks.seconds),
        "predicted_layouts": dict(ckks.predicted),
        "predicted_peak_bytes": memory.total,
        "predicted_memory": dict(memory.parts()),
    }


def computed(seconds: Mapping[str, float]) -> float:
    """Seconds of what grows with the number of batches: all phases but set-up and keys."""
    return sum(seconds.get(phase, 0.0) for phase in ("encrypt", "online", "refresh", "decrypt"))


def held_bytes(pid: int, *, itself: bool = False) -> int:
    """Bytes of memory that the descendants of a process hold together, and with ``itself`` the process too: each
    page once.
    """
    return sum(map(_proportional_bytes, ([pid] if itself else []) + list(descendants(pid))))


def _planned(job: Job) -> tuple[Any, float]:
    from secureattn import load_model, load_protocol
    from secureattn.backends.ckks import calibration
    from secureattn.plan import make_plan

    protocol = load_protocol(job.protocol)
    protocol = replace(protocol, ckks=replace(protocol.ckks, layout=job.layout))
    costs = calibration.load(Path(job.costs)) if job.costs else None
    start = time.perf_counter()
    plan = make_plan(load_model(job.model), protocol, samples=job.samples, workers=job.workers, costs=costs)
    return plan, time.perf_counter() - start


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
