"""What recording costs: the same evaluation unrecorded, recorded and traced, in turn, on every engine.

    python benchmarks/overhead.py [--quick] [--json FILE] [--only PART…] [--fresh]

In each turn one process (on shares, every party's) evaluates the same network on the same inputs three times, in an
order that changes from turn to turn, with a recorder that keeps nothing, one that records, and one that keeps the time
line too; warm-up comes first. The ratio of a turn is of its own three times, what counts is the median, with the
interval that holds the true one with 95 % confidence: a machine's noise is far above what recording takes. Beside it,
the share that recording takes by arithmetic: calls of the recorder in one evaluation, times what a call takes in a loop
right there. What each part measured is kept in ``out/overhead``; all parts make ``benchmarks/results/overhead.json``.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import overhead_report
import torch
from measuring import Setting, run_all

from secureattn.events import Event, Recorder, Silent

HERE = Path(__file__).resolve().parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])  # the parties'

MODEL = "digits-vit"
TURNS = {"plaintext": 150, "ckks": 15, "crypten": 150}
QUICK_TURNS = {"plaintext": 15, "ckks": 3, "crypten": 15}
CALLS = 20_000
WAYS: Mapping[str, Callable[[], Recorder]] = {
    "off": Silent,
    "on": Recorder,
    "traced": functools.partial(Recorder, trace=True),
}


class Counting(Recorder):
    """Records, and counts its own calls."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = self.counted = 0

    def op(self, name: str) -> AbstractContextManager[Event]:
        """Regions and phases open one as well."""
        self.opened += 1
        return super().op(name)

    def primitive(self, name: str, *, times: int = 1, seconds: float = 0.0) -> None:
        self.counted += 1
        super().primitive(name, times=times, seconds=seconds)


def in_turn(evaluate: Callable[[], Any], record: Callable[[Recorder], None], turns: int) -> dict[str, Any]:
    """Seconds of every evaluation by way, turn by turn; calls of the recorder in one, and what a call takes here."""
    ways = list(WAYS)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    counting = Counting()
    record(counting)
    evaluate()  # the warm-up, whose calls are counted
    for turn in range(turns):
        for way in ways[turn % 3 :] + ways[: turn % 3]:
            record(WAYS[way]())
            start = time.perf_counter()
            evaluate()
            seconds[way].append(time.perf_counter() - start)
    calls = {"op": counting.opened, "primitive": counting.counted}
    return {"seconds": seconds, "calls": calls, "call_s": {way: cost_of(WAYS[way]) for way in ("on", "traced")}}


def cost_of(make: Callable[[], Recorder]) -> dict[str, float]:
    """Seconds of one region with its operation, which costs more than an operation alone, and of one primitive."""
    recorder = make()
    with recorder.op("all"):
        start = time.perf_counter()
        for _ in range(CALLS):
            with recorder.region("layer.0"):
                pass
        opened = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(CALLS):
            recorder.primitive("rounds", seconds=1e-9)
        return {"op": opened / CALLS, "primitive": (time.perf_counter() - start) / CALLS}


# ---- the parts ----------------------------------------------------------------------------------------------


def plaintext(setting: Setting) -> dict[str, Any]:
    """The clear run of all 360 images."""
    from secureattn.backends.plaintext import PlaintextBackend
    from secureattn.nn.encoder import Encoder
    from secureattn.runs.plaintext import entered

    plan, inputs = planned("plaintext", 360)
    backend = PlaintextBackend()
    network = Encoder(plan.folded(), backend)
    values = plan.model.entering(plan.config, inputs)

    def evaluate() -> None:
        with torch.no_grad(), backend.recorder.phase("online"):
            backend.reveal(network(entered(backend, plan.config, values)))

    def record(recorder: Recorder) -> None:
        backend.recorder = recorder

    return in_turn(evaluate, record, turns(setting, "plaintext"))


def ckks(setting: Setting) -> dict[str, Any]:
    """The server's evaluation of one image in the dense layout, with refreshes, by one process."""
    import contextlib

    from secureattn.plan.terms import Terms
    from secureattn.runs.roles import Client, Server

    plan, inputs = planned("power-softmax-ckks", 1, workers=1)
    recorder = Recorder()
    client = Client.generate(Terms.of(plan))
    with contextlib.closing(client):
        server = Server(plan, client.evaluation_keys, recorder)
        blobs = client.encrypt(plan.model.entering(plan.config, inputs))

        def evaluate() -> None:
            with server.machine.recorder.phase("online"):
                server.evaluate(blobs, 1, client.refresh)

        def record(recorder: Recorder) -> None:
            server.machine.recorder = server.backend.recorder = recorder

        return in_turn(evaluate, record, turns(setting, "ckks"))


def crypten(setting: Setting) -> dict[str, Any]:
    """The online phase of 64 images on shares, at the first party; material is dealt when it is needed."""
    from secureattn.backends.crypten.launch import run_parties

    plan, inputs = planned("power-softmax-mpc", 64)
    arguments = [(MODEL, inputs.values, turns(setting, "crypten"))] * 2
    first, *_ = run_parties("overhead:party", arguments, plan.protocol.mpc)
    return dict(first.value)


def party(backend: Any, argument: Any) -> dict[str, Any]:
    """What a party does: the same evaluations as the other, recorded the same way at the same time."""
    from secureattn.nn.encoder import Encoder
    from secureattn.plan.mpc import entered

    name, values, count = argument
    plan, inputs = planned("power-softmax-mpc", len(values), model=name)
    network = Encoder(plan.folded(), backend)
    owned = plan.model.entering(plan.config, inputs)

    def evaluate() -> None:
        with backend.recorder.phase("online"):
            backend.reveal(network(entered(backend, plan.config, plan.shape, owned)))

    def record(recorder: Recorder) -> None:
        backend.recorder = backend.runtime.recorder = recorder

    return in_turn(evaluate, record, count)


def planned(protocol: str, samples: int, *, model: str = MODEL, workers: int | None = None) -> tuple[Any, Any]:
    """A plan and its inputs."""
    from secureattn import load_model, load_protocol
    from secureattn.plan import make_plan

    loaded = load_model(model)
    inputs = loaded.batch(np.asarray(loaded.samples(samples)[0]))
    return make_plan(loaded, load_protocol(protocol), samples=samples, workers=workers), inputs


def turns(setting: Setting, engine: str) -> int:
    """How often the three are measured."""
    return (QUICK_TURNS if setting.quick else TURNS)[engine]


PARTS: Mapping[str, Callable[[Setting], dict[str, Any]]] = {part.__name__: part for part in (plaintext, ckks, crypten)}


if __name__ == "__main__":
    sys.exit(run_all("overhead", __doc__, PARTS, overhead_report))
