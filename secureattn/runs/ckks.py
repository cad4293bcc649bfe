"""An encrypted run with both roles in one process: the client object holds the secret key, the server object none."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from secureattn.backends.ckks.backend import CkksBackend
from secureattn.backends.ckks.cipher import Cipher
from secureattn.backends.ckks.dense import DenseTensor
from secureattn.backends.ckks.dense_backend import DenseBackend
from secureattn.backends.ckks.dense_layout import dense_pack, dense_unpack
from secureattn.backends.ckks.evaluator import SealEvaluator
from secureattn.backends.ckks.keys import KeyOwner
from secureattn.backends.ckks.machine import Machine
from secureattn.backends.ckks.processes import Pool
from secureattn.backends.ckks.roles import Answer, MaskedRefresh, pack, unpack
from secureattn.errors import EngineError, InputError
from secureattn.events import ANSWER, Event, Recorder
from secureattn.ledger import Ledger
from secureattn.nn.batch import Batch
from secureattn.nn.config import ModelConfig
from secureattn.nn.encoder import Encoder
from secureattn.plan import CkksPlan, Plan
from secureattn.plan.choice import widest
from secureattn.runs.inspection import RESULT, WARNING, Inspector
from secureattn.runs.result import Array, Progress, Run, without_padding


class Client:
    """The key owner: makes keys for a plan, encrypts queries, refreshes masked values, decrypts results."""

    def __init__(self, plan: Plan) -> None:
        assert plan.ckks is not None
        self.plan = plan
        self.layout: CkksPlan = plan.ckks
        self.owner = KeyOwner.generate(self.layout.parameters, self.layout.rotations)
        self._pool = Pool(self._refreshed, self.layout.workers if self.layout.schedule else 1)

    @property
    def evaluation_keys(self) -> Any:
        """What the server gets: public, relinearisation and planned Galois keys."""
        return self.owner.evaluation_keys

    def encrypt(self, inputs: Array) -> list[bytes]:
        """``[B,S,F]`` → one ciphertext per feature, or one for all."""
        if self.layout.dense:
            slots = dense_pack(inputs, self.layout.dense)
        else:
            slots = pack(inputs, self.layout.tokens, self.layout.capacity)
        scale = self.layout.parameters.scales[-1]
        return [
            self.owner.encrypt(column, level, scale)
            for column, level in zip(slots, self.layout.input_levels, strict=True)
        ]

    def refresh(self, blobs: Sequence[bytes], levels: Sequence[int]) -> list[bytes]:
        """Masked ciphertexts → the same values afresh, each on its level."""
        return self._pool.map(blobs, levels)

    def close(self) -> None:
        """End the processes that refresh."""
        self._pool.close()

    def decrypt(self, blobs: Sequence[bytes], samples: int) -> Array:
        """Ciphertexts of class scores → ``[B,C]``, of a next token's ``[B,S,C]``; flooded where the protocol says they
        will be shared.
        """
        scores = self._scores(blobs, samples)
        return self.layout.flooding.published(scores) if self.layout.flooding else scores

    def _refreshed(self, blob: bytes, level: int) -> bytes:
        (fresh,) = self.owner.refresh([blob], [level])
        return fresh

    def _scores(self, blobs: Sequence[bytes], samples: int) -> Array:
        """``tokens`` classes in each, all in one, or, of scores at every token, one."""
        if self.layout.dense:
            slots = [self.owner.decrypt(blob) for blob in blobs]
            return dense_unpack(slots, (samples, 1, self.plan.config.classes), self.layout.dense)[:, 0]
        tokens, config = self.layout.tokens, self.plan.config
        if config.output == "next":
            slots = [self.owner.decrypt(blob) for blob in blobs]
            return unpack(slots, (samples, config.tokens, config.classes), self.layout.capacity)
        classes = config.classes
        counts = [min(tokens, classes - i) for i in range(0, classes, tokens)]
        scores = [
            self.owner.decrypt_interleaved(blob, count, tokens) for blob, count in zip(blobs, counts, strict=True)
        ]
        return np.ascontiguousarray(np.concatenate(scores).T[:samples])


class Server:
    """The evaluator: the model's weights and the client's evaluation keys; nothing reachable from it is secret."""

    def __init__(self, plan: Plan, evaluation_keys: Any, recorder: Recorder) -> None:
        assert plan.ckks is not None
        self.plan = plan.ckks
        self.config = plan.config
        self.machine = Machine(
            self.plan.parameters,
            SealEvaluator(self.plan.parameters, evaluation_keys),
            recorder,
            ceilings=self.plan.ceilings,
            workers=self.plan.workers,
            worth=self.plan.worth,
            costs=plan.costs,
        )
        self.backend = _backend(self.plan, self.config, self.machine)
        self.network = Encoder(plan.folded(), self.backend, blocks=self.plan.blocks)
        if isinstance(self.backend, DenseBackend):
            shape = (min(plan.samples, self.plan.capacity), self.config.tokens, self.config.features)
            self.backend.prepare(lambda x: cast(DenseTensor, self.network(x)), shape)

    def evaluate(
        self, blobs: Sequence[bytes], samples: int, refresh: Answer, lengths: Sequence[int] | None = None
    ) -> list[bytes]:
        """Encrypted queries → encrypted class scores; ``refresh`` reaches the key owner. ``lengths``: tokens of each
        query where they differ, which the evaluator sees.
        """
        device: Any = self.machine.device
        if len(blobs) != len(self.plan.input_levels):
            raise InputError(f"a query has {len(self.plan.input_levels)} ciphertexts, not {len(blobs)}")
        with self.machine.recorder.op("load"):
            levels = self.plan.input_levels
            ciphers = [self._loaded(device.load(blob), level) for blob, level in zip(blobs, levels, strict=True)]
        shape = (samples, self.config.tokens, self.config.features)
        self.backend.refresher = MaskedRefresh(self.machine, refresh)

        def results() -> list[bytes]:
            output: Any = self.network(self.backend.tensor(ciphers, shape), lengths).observe(RESULT)
            finished = self.backend.results(output)
            with self.machine.recorder.op("save"):
                return [device.save_result(cipher.data) for cipher in finished] if self.machine.leads else []

        try:
            return self.machine.together(results)
        finally:
            self.backend.refresher = None  # the way to the key owner is open for the length of one query only

    def _loaded(self, ct: Any, level: int) -> Cipher:
        """A query's ciphertext, which must be what the plan says: fresh, on this level, at the highest one's scale."""
        device: Any = self.machine.device
        scale = self.plan.parameters.scales[-1]
        if (device.level(ct), ct.scale, ct.size()) != (level, scale, 2):
            raise InputError(
                f"a query's ciphertext is at level {device.level(ct)} and scale {ct.scale:.6g}, the plan needs level "
                f"{level} and scale {scale:.6g}; encrypt it for this plan"
            )
        return Cipher(level, scale, 2, ct)


def run(plan: Plan, inputs: Batch, progress: Progress, trace: bool, *, errors: bool = False) -> Run:
    """Class scores ``[N,C]``, batch after batch; keys are made once. With ``errors`` the run is not private: see
    ``inspection``.
    """
    layout = plan.ckks
    if layout is None:
        raise EngineError("the plan has no CKKS part")
    values = plan.model.entering(plan.config, inputs)
    recorder = Recorder(trace=trace, listener=_Meter(layout, progress))
    with recorder.phase("keys"):
        progress("making keys", 0, 0)
        client = Client(plan)
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


def _backend(plan: CkksPlan, config: ModelConfig, machine: Machine) -> CkksBackend | DenseBackend:
    if plan.dense is None:
        return CkksBackend(machine, tokens=config.tokens, schedule=plan.schedule)
    return DenseBackend(
        machine,
        tokens=config.tokens,
        features=widest(config),
        heads=config.heads,
        queries=plan.capacity,
        width=config.width,
        schedule=plan.schedule,
    )


class _Meter:
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
