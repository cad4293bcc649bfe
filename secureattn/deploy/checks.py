"""What can be told of a file without an engine: whose it is, what it holds, and whether it is as large as it must be.

The rest, that residues are below their primes and ciphertexts hide something, is SEAL's to refuse where it is loaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks import wire
from secureattn.deploy import parcel
from secureattn.deploy.offer import Offer
from secureattn.deploy.parcel import ANSWER, EVALUATION, EVALUATION_FILE, PUBLIC_FILE, QUERY, Label, Parcel, opened
from secureattn.errors import InputError
from secureattn.nn.batch import Shape
from secureattn.nn.model import Model

ROOM = 1 << 16
"""Bytes that a file may have beside its parts, and for each of its inputs 16: names, sizes, lengths."""
_ID_BYTES = 16


def key_id(public: bytes) -> str:
    """What a set of keys is called: the beginning of the public key's hash."""
    return hashlib.sha256(public).hexdigest()[: 2 * _ID_BYTES]


def largest(offer: Offer) -> dict[str, int]:
    """Bytes that a file of each kind has at most."""
    terms, parameters = offer.terms, offer.terms.parameters
    sizes = wire.key_sizes(parameters, terms.rotations)
    batch = sum(wire.fresh_bytes(parameters, level) for level in terms.input_levels)
    room = ROOM + 16 * terms.most
    return {
        parcel.PUBLIC: sizes[wire.PUBLIC] + room,
        EVALUATION: sum(sizes.values()) + 256 * len(sizes) + room,
        QUERY: (terms.most // terms.capacity) * (batch + 256 * len(terms.input_levels)) + room,
        ANSWER: terms.refreshes * (wire.fresh_bytes(parameters, parameters.levels) + 256) + room,
    }


def shape_of(note: Mapping[str, Any], offer: Offer) -> Shape:
    """What a query or result says of its inputs; InputError where that is no such thing, or not of the plan."""
    samples, lengths, tokens = note.get("samples"), note.get("lengths"), offer.terms.config.tokens
    listed = isinstance(lengths, list) and all(type(n) is int for n in lengths)
    if type(samples) is not int or not (lengths is None or (listed and len(lengths) == samples)):
        raise InputError("the file does not say how many inputs it holds, or how long they are; encrypt them again")
    if lengths is not None and not all(1 <= n <= tokens for n in lengths):
        raise InputError(f"the file says lengths outside 1..{tokens}; encrypt the inputs again")
    if (lengths is not None) != offer.terms.ragged:
        raise InputError("the file does not say what the plan needs of its inputs' lengths; encrypt them for this plan")
    shape = Shape(samples, tokens, None if lengths is None else tuple(lengths))
    offer.terms.check(shape)
    return shape


def place_of(note: Mapping[str, Any], offer: Offer) -> tuple[str, int] | None:
    """The group and offset of a query that shares its slots with others, None for one that has them alone; InputError
    where it says something else.
    """
    if note.get("group") is None:
        return None
    group, offset, samples = note["group"], note.get("offset"), note.get("samples")
    if (
        type(offset) is not int
        or type(samples) is not int
        or not 0 <= offset < offset + samples <= offer.terms.slots
        or not (isinstance(group, str) and len(group) == 32)
        or offer.terms.ragged
    ):
        raise InputError("the file says a place among the slots that is none; ask for a place and encrypt for it")
    return group, offset


def filler(model: Model) -> npt.NDArray[np.float64]:
    """The public input ``[S,F]`` in slots that nobody uses; InputError where the model has none that would do."""
    if model.config.input != "features":
        raise InputError(f"slots are shared by models of numbers; {model.config.name} takes tokens")
    found: npt.NDArray[np.float64] = model.check(model.samples(1)[0])[0]
    return found


def check_query(query: Parcel, offer: Offer, keys: str) -> Shape:
    """What is public of a query's inputs; InputError unless it is one for these keys, whole."""
    offer.label(QUERY, keys).check(query.label, query.name)
    shape = shape_of(query.note, offer)
    place_of(query.note, offer)
    levels = enumerate(offer.terms.input_levels)
    sizes = {i: wire.fresh_bytes(offer.terms.parameters, level) for i, level in levels}
    batches = range(len(offer.terms.batches(shape)))
    _check_parts(query, {f"{number}/{i}": size for number in batches for i, size in sizes.items()})
    return shape


def check_answer(answer: Parcel, needed: Label, note: Mapping[str, Any]) -> None:
    """InputError unless a file answers the request that said ``note``."""
    needed.check(answer.label, answer.name)
    if any(answer.note.get(name) != note.get(name) for name in ("run", "round")):
        raise InputError(f"{answer.name} answers another request; send the answer to this one")
    if len(answer.names) != len(note["levels"]):
        raise InputError(f"{answer.name} has {len(answer.names)} ciphertexts, {len(note['levels'])} were asked for")


@contextmanager
def opened_keys(folder: Path, offer: Offer) -> Iterator[tuple[str, Callable[[str], bytes]]]:
    """What the keys in a folder are called, and what reads each by its name (``wire.key_sizes``), once all have been
    checked; InputError unless they are those of one owner for this plan, whole.
    """
    sizes = wire.key_sizes(offer.terms.parameters, offer.terms.rotations)
    with opened(folder / PUBLIC_FILE) as public, opened(folder / EVALUATION_FILE) as rest:
        keys = public.label.keys
        offer.label(parcel.PUBLIC, keys).check(public.label, PUBLIC_FILE)
        offer.label(EVALUATION, keys).check(rest.label, EVALUATION_FILE)
        _check_parts(rest, {name: size for name, size in sizes.items() if name != wire.PUBLIC})
        _check_parts(public, {wire.PUBLIC: sizes[wire.PUBLIC]})
        if key_id(public.part(wire.PUBLIC)) != keys:
            raise InputError(f"{PUBLIC_FILE} is damaged: its key has another name; send it again")
        yield keys, lambda name: (public if name == wire.PUBLIC else rest).part(name)


def check_keys(folder: Path, offer: Offer) -> str:
    """What the keys in a folder are called; InputError as for ``opened_keys``."""
    with opened_keys(folder, offer) as (keys, _):
        return keys


def _check_parts(found: Parcel, wanted: Mapping[str, int]) -> None:
    if set(found.names) != set(wanted):
        raise InputError(f"{found.name} holds {len(found.names)} parts, {len(wanted)} others are needed; make it again")
    for name, size in wanted.items():
        if found.size(name) != size:
            raise InputError(
                f"part {name!r} of {found.name} has {found.size(name)} bytes, {size} are needed; make it again"
            )
