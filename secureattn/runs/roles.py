"""The two roles of an encrypted run: the client object holds the secret key, the server object none."""

from __future__ import annotations

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
from secureattn.errors import InputError
from secureattn.events import Recorder
from secureattn.nn.config import ModelConfig
from secureattn.nn.encoder import Encoder
from secureattn.plan import CkksPlan, Plan
from secureattn.plan.choice import widest
from secureattn.plan.terms import Terms
from secureattn.runs.inspection import RESULT
from secureattn.runs.result import Array


class Client:
    """The key owner: encrypts queries, refreshes masked values with so many ``workers``, decrypts results."""

    def __init__(self, terms: Terms, owner: KeyOwner, *, workers: int = 1) -> None:
        self.terms = terms
        self.owner = owner
        self._pool = Pool(self._refreshed, workers if terms.rounds else 1)

    @classmethod
    def generate(cls, terms: Terms, *, workers: int = 1) -> Client:
        """With fresh keys for a plan."""
        return cls(terms, KeyOwner.generate(terms.parameters, terms.rotations), workers=workers)

    @property
    def evaluation_keys(self) -> Any:
        """What the server gets: public, relinearisation and planned Galois keys."""
        return self.owner.evaluation_keys

    def encrypt(self, inputs: Array) -> list[bytes]:
        """``[B,S,F]`` → one ciphertext per feature, or one for all."""
        scale = self.terms.parameters.scales[-1]
        return [
            self.owner.encrypt(column, level, scale)
            for column, level in zip(packed(self.terms, inputs), self.terms.input_levels, strict=True)
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
        return self.terms.flooding.published(scores) if self.terms.flooding else scores

    def _refreshed(self, blob: bytes, level: int) -> bytes:
        (fresh,) = self.owner.refresh([blob], [level])
        return fresh

    def _scores(self, blobs: Sequence[bytes], samples: int) -> Array:
        """``tokens`` classes in each, all in one, or, of scores at every token, one."""
        if self.terms.dense:
            slots = [self.owner.decrypt(blob) for blob in blobs]
            return dense_unpack(slots, (samples, 1, self.terms.config.classes), self.terms.dense)[:, 0]
        tokens, config = self.terms.tokens, self.terms.config
        if config.output == "next":
            slots = [self.owner.decrypt(blob) for blob in blobs]
            return unpack(slots, (samples, config.tokens, config.classes), self.terms.capacity)
        classes = config.classes
        counts = [min(tokens, classes - i) for i in range(0, classes, tokens)]
        scores = [
            self.owner.decrypt_interleaved(blob, count, tokens) for blob, count in zip(blobs, counts, strict=True)
        ]
        return np.ascontiguousarray(np.concatenate(scores).T[:samples])


def packed(terms: Terms, inputs: Array) -> list[Array]:
    """``[B,S,F]`` → slots of the ciphertexts that hold it."""
    if terms.dense:
        return dense_pack(inputs, terms.dense)
    return pack(inputs, terms.tokens, terms.capacity)


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
