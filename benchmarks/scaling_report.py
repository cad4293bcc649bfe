"""What the benchmark of workers makes of its raw samples: what Ray adds, jobs a minute, and what more would give."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import measuring
from checking import Check, Part, at_most, described

NETWORKS = {"1 Gbit/s": 1e9 / 8, "10 Gbit/s": 1e10 / 8}
"""Bytes a second, each way."""
WORKERS = (1, 2, 4, 8, 16, 32, 64)
ERROR = 1e-4
"""Of scores against the clear run, as the CKKS benchmark has it for one image."""
SHARE = 0.1
"""Of a job's time that Ray may add."""
_WAYS = {"pipe": "processes of this machine", "ray": "replicas by Ray"}


def median_s(alone: Part, way: str) -> float:
    """Of a job with a worker to itself, as its client sees it."""
    return float(statistics.median(job["seconds"] for job in alone["ways"][way]["jobs"]))


def added_s(alone: Part) -> float:
    """What Ray adds to a job: the difference of medians, of jobs in turn."""
    return median_s(alone, "ray") - median_s(alone, "pipe")


def moved_bytes(alone: Part) -> float:
    """Bytes of a job between client and server, both ways together."""
    return float(statistics.median(job["moved_bytes"] for job in alone["ways"]["ray"]["jobs"]))


def predicted(alone: Part, workers: int, bytes_s: float) -> tuple[float, str]:
    """Jobs a minute of replicas on machines of their own, and what they are bound by.

    Formula: 60 · min(n / w, 1 / f, B / b). w: seconds that a job holds a replica, waiting for its client too; f:
    seconds of a processor that the server's one Python process needs for it; b: its bytes, all of which enter and all
    of which leave the server's machine, once from or to the client and once to or from the replica; B: bytes a second
    each way.
    Left out: keys, which travel once for each replica and key set; what a busy queue evens out; the latency of a
    network, which a job feels and throughput does not.
    """
    ray = alone["ways"]["ray"]
    bounds = {
        "replicas": workers / ray["held_s"],
        "the server's process": 1 / ray["front_s"],
        "its network": bytes_s / moved_bytes(alone),
    }
    bound = min(bounds, key=lambda name: bounds[name])
    return 60 * bounds[bound], bound


def per_minute(together: Part, way: str, workers: int) -> list[float]:
    """Jobs a minute, run by run."""
    runs = [run for run in together["runs"] if (run["way"], run["workers"]) == (way, workers)]
    return [60 * len(run["jobs"]) / run["seconds"] for run in runs]


def checks(parts: Mapping[str, Part]) -> list[Check]:
    """One row a figure, met or not: results are right, none is lost, Ray adds little."""
    return list(_checks(parts))


def _checks(parts: Mapping[str, Part]) -> Iterator[Check]:
    if (alone := parts.get("alone")) is not None:
        errors = [job["error"] for way in alone["ways"].values() for job in way["jobs"]]
        yield at_most("alone: largest error of a score against the clear run", max(errors), ERROR)
        yield at_most("alone: what Ray adds to a job, share of it", added_s(alone) / median_s(alone, "pipe"), SHARE)
    if (together := parts.get("together")) is not None:
        errors = [job["error"] for run in together["runs"] for job in run["jobs"]]
        yield at_most("together: largest error of a score against the clear run", max(errors), ERROR)
        lost = sum(run["sent"] - len(run["jobs"]) for run in together["runs"])
        yield at_most("together: jobs that were lost", lost, 0)


def document(parts: Mapping[str, Part], *, quick: bool) -> dict[str, Any]:
    """Everything, as JSON: machine, raw samples by part, the checks, and what is predicted, marked as such."""
    rows = [(name, count) for name in NETWORKS for count in WORKERS if "alone" in parts]
    told = [(name, count, *predicted(parts["alone"], count, NETWORKS[name])) for name, count in rows]
    names = ("network", "replicas", "jobs_per_minute", "bound")
    found = [dict(zip(names, row, strict=True)) for row in told]
    return described(parts, checks(parts), quick=quick, predicted=found)


def text(document: Mapping[str, Any]) -> str:
    """The tables for the README."""
    parts = document["parts"]
    lines = [*_together(parts["together"])] if "together" in parts else []
    lines += _alone(parts["alone"]) if "alone" in parts else []
    where = f"Measured on {measuring.measured_on(document)}, clients and servers together"
    lines += [f"{where}; {measuring.loads(parts)}.", ""]
    return "\n".join(lines)


def _together(together: Part) -> Iterator[str]:
    yield "| two clients, jobs a minute (measured) | 1 worker | 2 workers | ratio |"
    yield "|---|---:|---:|---:|"
    for way, words in _WAYS.items():
        one, two = (per_minute(together, way, workers) for workers in (1, 2))
        ratio = statistics.median(two) / statistics.median(one)
        yield f"| {words} | {_spread(one)} | {_spread(two)} | {ratio:.2f} |"
    yield ""


def _alone(alone: Part) -> Iterator[str]:
    pipe, ray = (alone["ways"][way] for way in _WAYS)
    yield (
        f"A job alone takes {median_s(alone, 'pipe'):.2f} s by a pipe and {median_s(alone, 'ray'):.2f} s by Ray "
        f"(medians of {len(ray['jobs'])}); it holds a replica for {ray['held_s']:.2f} s, takes "
        f"{1e3 * ray['front_s']:.0f} ms of the server's own process ({1e3 * pipe['front_s']:.0f} ms by a pipe) and "
        f"moves {moved_bytes(alone) / 1e6:.2f} MB; keys, {alone['key_bytes'] / 1e6:.0f} MB, travel once."
    )
    yield ""
    yield f"| replicas on machines of their own (**predicted**) | {' | '.join(map(str, WORKERS))} |"
    yield f"|---|{'---:|' * len(WORKERS)}"
    for name, bytes_s in NETWORKS.items():
        cells = [predicted(alone, count, bytes_s) for count in WORKERS]
        figures = " | ".join(f"{rate:.0f}{'' if bound == 'replicas' else '*'}" for rate, bound in cells)
        yield f"| jobs a minute, {name} | {figures} |"
    yield ""
    yield "\\* bound by the server's one process or its network, not by replicas."
    yield ""


def _spread(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):.1f} ({low:.1f} to {high:.1f})"
