"""The evaluator's side of encrypted inference: a model, a plan, and the key owner's public and evaluation keys.

No secret key is anywhere on this side, and a folder that holds one is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from secureattn.backends.ckks.keys import EvaluationKeys
from secureattn.backends.ckks.roles import Answer
from secureattn.deploy import parcel
from secureattn.deploy.checks import check_query, filler, opened_keys, place_of
from secureattn.deploy.merging import merged
from secureattn.deploy.offer import Offer
from secureattn.deploy.parcel import EVALUATION_FILE, PUBLIC_FILE, RESULT, SECRET_FILE, blobs, opened
from secureattn.errors import EngineError, InputError
from secureattn.events import ANSWER, Recorder
from secureattn.ledger import Ledger
from secureattn.plan import Plan
from secureattn.runs.ckks import Meter
from secureattn.runs.result import Progress
from secureattn.runs.roles import Server

_Batch = tuple[list[bytes], int, tuple[int, ...] | None]


def load_keys(folder: Path, offer: Offer) -> tuple[str, EvaluationKeys]:
    """The key owner's keys by name, from the files in a folder; InputError where they are damaged or made for another
    plan, or where a secret key lies beside them.
    """
    if (folder / SECRET_FILE).exists():
        raise InputError(
            f"{folder} holds {SECRET_FILE}, which no evaluator may have; give it {PUBLIC_FILE} and {EVALUATION_FILE}"
        )
    with opened_keys(folder, offer) as (keys, part):
        return keys, EvaluationKeys.of_parts(offer.terms.parameters, offer.terms.rotations, part)


class Evaluator:
    """Evaluates queries under one plan and, at a time, one owner's keys. ``recorder`` has what the last query cost."""

    def __init__(self, plan: Plan, offer: Offer, progress: Progress = lambda *_: None) -> None:
        if plan.ckks is None:
            raise EngineError("the plan has no CKKS part")
        self.plan = plan
        self.offer = offer
        self.keys = ""
        self.recorder = Recorder()
        self.progress = progress
        self._server: Server | None = None

    def use(self, folder: Path) -> None:
        """Load an owner's keys; those before are forgotten."""
        self.keys, self._server = "", None
        keys, loaded = load_keys(folder, self.offer)
        self.recorder = Recorder()
        with self.recorder.phase("setup"):
            self._server = Server(self.plan, loaded, self.recorder)
        self.keys = keys

    def evaluate(self, query: Path | Sequence[Path], result: Path, answer: Answer | None = None) -> None:
        """A query into a result, or several that share slots into one; ``answer`` reaches the key owner, where the plan
        refreshes.
        """
        server, layout = self._server, self.plan.ckks
        if server is None or layout is None:
            raise EngineError("no keys are loaded to evaluate with")
        recorder, ask = server.machine.recorder, answer or _nobody
        recorder.listener = Meter(layout, self.progress)

        def refresh(masked: Sequence[bytes], levels: Sequence[int]) -> list[bytes]:
            with recorder.op(ANSWER):  # the key owner's time, and the way there and back
                return ask(masked, levels)

        parts: dict[str, bytes] = {}
        note: dict[str, Any] = {}
        for number, (ciphertexts, samples, lengths) in enumerate(self._batches(query, note)):
            with recorder.phase("online"):
                made = server.evaluate(ciphertexts, samples, refresh, lengths)
            parts |= {f"{number}/{i}": blob for i, blob in enumerate(made)}
        parcel.write(result, self.offer.label(RESULT, self.keys), blobs(parts), note)

    def _batches(self, query: Path | Sequence[Path], note: dict[str, Any]) -> Iterator[_Batch]:
        """Ciphertexts, inputs and their lengths of each batch; ``note`` learns what the result will say of them."""
        assert self._server is not None
        terms, queries = self.offer.terms, [query] if isinstance(query, Path) else list(query)
        with contextlib.ExitStack() as stack:
            asked = [stack.enter_context(opened(path)) for path in queries]
            shapes = [check_query(one, self.offer, self.keys) for one in asked]
            if place_of(asked[0].note, self.offer) is not None:
                note |= {"samples": terms.slots, "lengths": None}
                device = self._server.machine.device
                yield merged(asked, shapes, self.offer, filler(self.plan.model), device), terms.slots, None
                return
            (one,), (shape,) = asked, shapes
            note |= one.note
            for number, rows in enumerate(terms.batches(shape)):
                lengths = shape.lengths and tuple(shape.lengths[row] for row in rows)
                yield [one.part(f"{number}/{i}") for i in range(len(terms.input_levels))], len(rows), lengths

    @property
    def ledger(self) -> Ledger:
        """What was recorded since the keys were loaded."""
        return Ledger.of(self.recorder, name=self.plan.title, engine="ckks")


def _nobody(masked: Sequence[bytes], levels: Sequence[int]) -> list[bytes]:
    raise EngineError(
        'the plan refreshes, and nobody is there to answer; say who does, or take a protocol with refresh = "none"'
    )
