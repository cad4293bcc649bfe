"""An encrypted run with both roles in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from secureattn.errors import EngineError
from secureattn.events import ANSWER, Event, Recorder
from secureattn.ledger import Ledger
from secureattn.nn.batch import Batch
from secureattn.plan import CkksPlan, Plan
from secureattn.plan.terms import Terms
from secureattn.runs.inspection import WARNING, Inspector
from secureattn.runs.result import Array, Progress, Run, without_padding
from secureattn.runs.roles import Client, Server


def run(plan: Plan, inputs: Batch, progress: Progress, trace: bool, *, errors: bool = False) -> Run:
    """Class scores ``[N,C]``, batch after batch; keys are made once. With ``errors`` the run is not private: see
    ``inspection``.
    """
    layout = plan.ckks
    if layout is None:
        raise EngineError("the plan has no CKKS part")
    values = plan.model.entering(plan.config, inputs)
    recorder = Recorder(trace=trace, listener=Meter(layout, progress))
    with recorder.phase("keys"):
        progress("making keys", 0, 0)
        client = Client.generate(Terms.of(plan), workers=layout.workers)
    with contextlib.closing(client):
        with recorder.phase("setup"):
            server = Server(plan, client.evaluation_keys, recorder)
        inspector = Inspector(plan, client.owner, server.machine.device, recorder)
        server.backend.observers += [inspector] * errors
        outputs = []
        for rows in plan.batches:
            if errors:
                inspector.expect(values[rows], plan.lengths_of(rows))
            outputs.append(_run_batch(client, server, values[rows], plan.lengths_of(rows), recorder))
    ledger = Ledger.of(recorder, name=plan.title, engine="ckks")
    return Run(
        without_padding(plan.shape, np.concatenate(outputs)[: plan.samples]), ledger, warnings=(WARNING,) * errors
    )


class Meter:
    """Tells how far a run is, in per cent of the seconds its plan predicts."""

    def __init__(self, layout: CkksPlan, progress: Progress) -> None:
        events = layout.recorder.events
        self._share = {key: event.seconds_self / event.calls for key, event in events.items()}
        once = layout.recorder.seconds("setup")
        self._whole = layout.batches * (layout.recorder.seconds() - once) + once
        self._done = 0.0
        self._progress = progress

    def __call__(self, event: Event) -> None:
        self._done += self._share.get((event.region, event.op, event.phase), 0.0)
        self._progress(f"evaluating {event.region}", round(100 * self._done / self._whole), 100)


def _run_batch(
    client: Client, server: Server, batch: Array, lengths: Sequence[int] | None, recorder: Recorder
) -> Array:
    with recorder.phase("encrypt"), recorder.op("encrypt"):
        blobs = client.encrypt(batch)
        recorder.primitive("encryptions", times=len(blobs))
        recorder.primitive("bytes_sent", times=sum(map(len, blobs)))

    def answer(masked: Sequence[bytes], levels: Sequence[int]) -> list[bytes]:
        with recorder.op(ANSWER):
            return client.refresh(masked, levels)

    with recorder.phase("online"):
        results = server.evaluate(blobs, len(batch), answer, lengths)
    with recorder.phase("decrypt"), recorder.op("decrypt"):
        recorder.primitive("decryptions", times=len(results))
        recorder.primitive("bytes_sent", times=sum(map(len, results)))
        return client.decrypt(results, len(batch))
