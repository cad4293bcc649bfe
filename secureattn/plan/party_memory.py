"""How much memory the processes of a run on secret shares take at their peak."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secureattn.backends.crypten.material import Request, elements

# Measured with Python 3.11, torch 2.13 on the CPU and CrypTen 0.4.1: a process that has loaded what it needs and
# planned its part. While a matrix is masked there are its encoding, the mask, their difference and its transpose; of
# the tensor an operation works on, its operands, what is sent and received, and what follows from them.
_PARTY_BYTES = 321 << 20
_DEALER_BYTES = 320 << 20
_MASKING = 4
_DRAWING = 3  # a mask, its transpose, and the stream of bytes it came from
_CORRECTING = 2  # of each party's draws, bytes and numbers; of what follows from their sum, it and what is on its way
_WORKING = 8
_WORD = 8


@dataclass(frozen=True)
class Held:
    """What a plan counted of one party, in elements of 8 bytes: its ``matrices``, what it asks of the dealer part by
    part, all of which it holds until the part is done, and the ``largest`` tensor it works on.
    """

    matrices: Sequence[int]
    asked: Sequence[Sequence[Request]]
    largest: int


@dataclass(frozen=True)
class PartyMemory:
    """Bytes at the peak of one process: ``process``, the interpreter with its libraries; ``reading``, weights as they
    are read and folded, at whoever knows them, and ``weights``, the folded ones that stay; ``masking``, the most there
    is in set-up of matrices and of the one being masked; ``matrices``, ``dealt`` and ``working``, what there is in the
    run of them, of the dealer's, and of an operation.
    """

    name: str
    process: int
    reading: int
    weights: int
    masking: int
    matrices: int
    dealt: int
    working: int

    @property
    def total(self) -> int:
        """While weights are read, in set-up or in the run, whichever is most."""
        after = max(self.masking, self.matrices + self.dealt + self.working)
        return self.process + max(self.reading, self.weights + after)

    def parts(self) -> Mapping[str, int]:
        """By name, with the total."""
        names = ("process", "reading", "weights", "masking", "matrices", "dealt", "working", "total")
        return {name: getattr(self, name) for name in names}


def taking_part(name: str, rank: int, weights: int, held: Held) -> PartyMemory:
    """Of party ``rank``, which reads so many ``weights`` and folds the matrices among them, or knows none."""
    folded = sum(held.matrices) if weights else 0
    return PartyMemory(
        name,
        process=_PARTY_BYTES,
        reading=_WORD * (weights + folded),
        weights=_WORD * folded,
        masking=_WORD * _masking(held.matrices, _MASKING),
        matrices=_WORD * sum(held.matrices),
        dealt=_WORD * max((sum(_drawn(one, rank) for one in part) for part in held.asked), default=0),
        working=_WORD * _WORKING * held.largest,
    )


def dealing(held: Held, parties: int) -> PartyMemory:
    """Of the dealer, who keeps the masks of matrices and makes one correction after the other: every party's draws as
    bytes and as numbers, what follows from their sum, and the correction before, which is on its way.
    """
    requests = [one for part in held.asked for one in part]
    made = max((sum(map(elements, (*one.masks, *one.derived))) for one in requests), default=0)
    return PartyMemory(
        "dealer",
        process=_DEALER_BYTES,
        reading=0,
        weights=0,
        masking=_WORD * _masking(held.matrices, _DRAWING),
        matrices=_WORD * sum(held.matrices),
        dealt=0,
        working=_WORD * _CORRECTING * (parties + 1) * made,
    )


def _masking(matrices: Sequence[int], times: int) -> int:
    """The most elements there are while matrices are masked one after the other, each in so many copies meanwhile."""
    before = itertools.accumulate(matrices, initial=0)
    return max((done + times * one for done, one in zip(before, matrices, strict=False)), default=0)


def _drawn(request: Request, rank: int) -> int:
    """Elements of one request that a party holds: its masks, if it has a part in them, and derived values."""
    masks = request.masks if request.draws(rank) else ()
    return sum(map(elements, (*masks, *request.derived)))
