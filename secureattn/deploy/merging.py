"""Several queries in the slots of one: ciphertexts under the same key are added, as each is 0 where another has inputs.

What each holds stays where it is, so nothing is rotated or masked and no level is spent; the noise of k fresh
ciphertexts adds up to √k times one's. Where nobody has inputs, a public one is added in the clear: zeros would be data
no model was calibrated on, and a ciphertext where one slot overflows is lost as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.deploy.checks import place_of
from secureattn.deploy.offer import Offer
from secureattn.deploy.parcel import Parcel
from secureattn.errors import InputError
from secureattn.nn.batch import Shape
from secureattn.runs.roles import packed


def merged(
    queries: Sequence[Parcel], shapes: Sequence[Shape], offer: Offer, public: npt.NDArray[np.float64], device: Any
) -> list[bytes]:
    """One query's ciphertexts. InputError where two have the same slots, or they are of different groups."""
    terms = offer.terms
    filled, free = np.tile(public, (terms.capacity, 1, 1)), np.ones(terms.capacity, dtype=bool)
    places = [place_of(query.note, offer) for query in queries]
    for shape, place in zip(shapes, places, strict=True):
        if place is None or places[0] is None or place[0] != places[0][0]:
            raise InputError("queries that share slots must be of one group; ask for places again")
        mine = slice(place[1], place[1] + shape.samples)
        if not free[mine].all():
            raise InputError("two queries have the same slots; ask for places again")
        free[mine], filled[mine] = False, 0.0
    found = []
    for i, column in enumerate(packed(terms, filled)):
        total = device.add_many([device.load(query.part(f"0/{i}")) for query in queries])
        found.append(device.save(device.add_vector(total, column) if free.any() else total))
    return found
