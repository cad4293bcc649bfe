"""The key owner's side of encrypted inference: makes keys, encrypts inputs, refreshes what is masked, decrypts results.

Her folder holds ``secret.key``, which never leaves it, ``plan.json``, the terms of the plan it is for, and the folder
``evaluator``: what the evaluator needs of her, ``public.key`` and ``evaluation.key``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks import wire
from secureattn.backends.ckks.keys import KeyOwner
from secureattn.backends.ckks.wire import PUBLIC
from secureattn.deploy import parcel
from secureattn.deploy.checks import key_id, place_of, shape_of
from secureattn.deploy.offer import Offer, read_offer, write_offer
from secureattn.deploy.parcel import (
    ANSWER,
    EVALUATION,
    EVALUATION_FILE,
    OFFER_FILE,
    PUBLIC_FILE,
    QUERY,
    REFRESH,
    RESULT,
    SECRET,
    SECRET_FILE,
    blobs,
    opened,
)
from secureattn.errors import InputError
from secureattn.nn.batch import Batch, Shape, numbers
from secureattn.nn.model import Model
from secureattn.runs.result import without_padding
from secureattn.runs.roles import Client

Array = npt.NDArray[np.float64]
EVALUATOR = "evaluator"


def key_sizes(offer: Offer) -> dict[str, int]:
    """Bytes of the files that ``Owner.generate`` makes, but for headers of at most a few KB."""
    sizes = wire.key_sizes(offer.terms.parameters, offer.terms.rotations)
    public = sizes.pop(PUBLIC)
    return {SECRET_FILE: public // 2, PUBLIC_FILE: public, EVALUATION_FILE: sum(sizes.values())}


class Owner:
    """The only holder of a secret key, in ``folder``; ``keys`` is what its key set is called."""

    def __init__(self, folder: Path, offer: Offer, keys: str, owner: KeyOwner, *, workers: int = 1) -> None:
        self.folder = folder
        self.offer = offer
        self.keys = keys
        self.client = Client(offer.terms, owner, workers=workers)

    @classmethod
    def generate(cls, offer: Offer, folder: Path, *, workers: int = 1) -> Owner:
        """Fresh keys in a new or empty folder; InputError where it holds a secret key already."""
        if (folder / SECRET_FILE).exists():
            raise InputError(f"{folder} holds a secret key, which is never overwritten; choose another folder")
        terms = offer.terms
        owner = KeyOwner.generate(terms.parameters, terms.rotations)
        made = owner.evaluation_keys
        assert made is not None
        public = made.part(PUBLIC)
        keys = key_id(public)
        (folder / EVALUATOR).mkdir(parents=True, exist_ok=True)
        write_offer(offer, folder / OFFER_FILE)
        secret = owner.secret()
        parcel.write(folder / SECRET_FILE, offer.label(SECRET, keys), blobs({"secret": secret}), {}, secret=True)
        evaluator = folder / EVALUATOR
        parcel.write(evaluator / PUBLIC_FILE, offer.label(parcel.PUBLIC, keys), blobs({PUBLIC: public}), {})
        sizes = wire.key_sizes(terms.parameters, terms.rotations)
        parts = [(name, size, partial(made.part, name)) for name, size in sizes.items() if name != PUBLIC]
        parcel.write(evaluator / EVALUATION_FILE, offer.label(EVALUATION, keys), parts, {})
        return cls(folder, offer, keys, owner, workers=workers)

    @classmethod
    def load(cls, folder: Path, *, workers: int = 1) -> Owner:
        """The keys that ``generate`` left in a folder."""
        path = folder / SECRET_FILE
        if not path.is_file():
            raise InputError(f"{folder} holds no {SECRET_FILE}; make keys with secureattn keygen")
        if path.stat().st_mode & 0o077:
            raise InputError(f"{path} can be read by others; chmod 600 it, or make new keys if others had access")
        offer = read_offer(folder / OFFER_FILE)
        with opened(path) as inside:
            keys = inside.label.keys
            offer.label(SECRET, keys).check(inside.label, path.name)
            owner = KeyOwner.of_secret(offer.terms.parameters, inside.part("secret"))
        return cls(folder, offer, keys, owner, workers=workers)

    def close(self) -> None:
        """End the processes that refresh."""
        self.client.close()

    # ---- messages -------------------------------------------------------------------------------------------

    def parts(self, inputs: Any, most: int, *, model: Model | None = None) -> list[Batch]:
        """Inputs as ``encrypt`` takes them, in their order, in parts of up to ``most``, each for a query of its own;
        InputError where one of them would have none.
        """
        whole = self._batch(inputs, model)
        rows = range(len(whole))
        parts = [whole.part(rows[i : i + most]) for i in rows[::most]]
        for part in parts:
            self.offer.terms.check(part.shape)
        return parts

    def encrypt(
        self, inputs: Any, path: Path, *, model: Model | None = None, place: tuple[str, int] | None = None
    ) -> Shape:
        """Inputs ``[N,S,F]`` of numbers, or one of their ``parts``, into a query; texts or tokens with their ``model``,
        whose public embedding and tokenizer they need. ``place``: a group and an offset among the slots that a server
        gave, where other queries under these keys share them. What is public of the inputs; InputError for such that
        the plan is not for.
        """
        values, shape = self._entering(inputs, model)
        note: dict[str, Any] = {"samples": shape.samples, "lengths": shape.lengths}
        batches = [values[rows] for rows in self.offer.terms.batches(shape)]
        if place is not None:
            group, offset = place
            note |= {"group": group, "offset": offset}
            place_of(note, self.offer)
            shared = np.zeros((self.offer.terms.capacity, *values.shape[1:]))
            shared[offset : offset + shape.samples] = values
            batches = [shared]
        encrypted = [self.client.encrypt(batch) for batch in batches]
        parts = {f"{number}/{i}": blob for number, batch in enumerate(encrypted) for i, blob in enumerate(batch)}
        parcel.write(path, self.offer.label(QUERY, self.keys), blobs(parts), note)
        return shape

    def answer(self, request: Path, path: Path) -> None:
        """The owner's half of a refresh: masked ciphertexts of a request afresh, into an answer."""
        with opened(request, self.offer.label(REFRESH, self.keys)) as asked:
            levels = asked.note.get("levels")
            most = self.offer.terms.refreshes
            if not isinstance(levels, list) or not 1 <= len(levels) <= most or len(levels) != len(asked.names):
                raise InputError(
                    f"{request.name} asks to refresh {len(asked.names)} ciphertexts, the plan {most} at most"
                )
            if not all(type(level) is int for level in levels):
                raise InputError(f"{request.name} names no levels to refresh to")
            masked = [asked.part(str(i)) for i in range(len(levels))]
            note = {"round": asked.note.get("round"), "run": asked.note.get("run")}
        fresh = self.client.refresh(masked, levels)
        named = {str(i): blob for i, blob in enumerate(fresh)}
        parcel.write(path, self.offer.label(ANSWER, self.keys), blobs(named), note)

    def decrypt(self, result: Path) -> Array:
        """Scores ``[N,C]``, vectors, or scores of every next token ``[N,S,C]`` of a result."""
        terms = self.offer.terms
        with opened(result, self.offer.label(RESULT, self.keys)) as inside:
            shape = shape_of(inside.note, self.offer)
            outputs = []
            for number, rows in enumerate(terms.batches(shape)):
                count = sum(name.startswith(f"{number}/") for name in inside.names)
                ciphertexts = [inside.part(f"{number}/{i}") for i in range(count)]
                outputs.append(self.client.decrypt(ciphertexts, len(rows)))
        return without_padding(shape, np.concatenate(outputs)[: shape.samples])

    def _batch(self, inputs: Any, model: Model | None) -> Batch:
        """Inputs, checked: numbers, or tokens where there is a ``model`` that makes numbers of them."""
        config = self.offer.terms.config
        if model is not None:
            self._same(model)
            return model.batch(inputs)
        if config.input != "features":
            raise InputError(
                f"model {config.name} takes tokens, which its public embedding turns into numbers here; name the model "
                "(--model), a folder with its config, tokenizer and weights or embedding"
            )
        return Batch(numbers(config, inputs.values if isinstance(inputs, Batch) else inputs))

    def _entering(self, inputs: Any, model: Model | None) -> tuple[Array, Shape]:
        """What is encrypted, ``[N,S,D]``, and what is public of it."""
        terms, batch = self.offer.terms, self._batch(inputs, model)
        values = batch.values if model is None else model.entering(terms.config, batch)
        shape = batch.shape
        terms.check(shape)
        if terms.ragged:
            shape = Shape(shape.samples, terms.config.tokens, shape.lengths or (shape.tokens,) * shape.samples)
            missing = shape.tokens - values.shape[1]
            values = np.concatenate([values, np.repeat(values[:, -1:], missing, axis=1)], axis=1)
        return values, shape

    def _same(self, model: Model) -> None:
        theirs = self.offer.terms.config
        if model.config.name != theirs.name:
            raise InputError(f"the plan is for model {theirs.name}, not {model.config.name}")
