"""When and how far shared tensors are truncated: late, once, and all operands of an operation in one round.

The ring has 62 bits for a value's places and its size. A product at twice ``fractional_bits`` leaves room, so it waits:
a periodic function reads it as it is, a sum of products or a linear layer takes it, and what several consumers need
truncated is truncated for the first of them. Tensors cut from one are truncated as that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from secureattn.backends.crypten import encoding
from secureattn.backends.crypten.truncation import truncate

if TYPE_CHECKING:
    from secureattn.backends.crypten.tensor import MpcTensor

_WORTH = 4  # a part is truncated with its whole unless the whole is more than so many times as large


def target(x: MpcTensor) -> int:
    """Places a tensor is truncated to: ``fractional_bits``, and as many more as its values are known to be below 1, the
    largest of them or, where every one has to be right by itself (``fine``), the smallest.
    """
    return x.backend.runtime.parameters.fractional_bits + max(0, -x.size, x.fine)


def settled(x: MpcTensor) -> MpcTensor:
    """The tensor with no more places than ``target``."""
    return settle([(x, target(x))])[0]


def settled_all(xs: Sequence[MpcTensor]) -> list[MpcTensor]:
    """Several of them, in one round."""
    return settle([(x, target(x)) for x in xs])


def settle(wanted: Sequence[tuple[MpcTensor, int]]) -> list[MpcTensor]:
    """Each tensor with at most so many places. Cost: one round where anything has more, of all that do."""
    from secureattn.backends.crypten.tensor import MpcTensor

    needed: dict[tuple[int, int], MpcTensor] = {}
    for x, places in wanted:
        whole = _whole(x)
        if whole.places > places and places not in whole.scaled:
            needed[id(whole), places] = whole
    if needed:
        backend, xs = wanted[0][0].backend, list(needed.values())
        excess = [x.places - places for x, (_, places) in zip(xs, needed, strict=True)]
        for x in xs:
            backend.runtime.truncated[x.places] = backend.runtime.truncated.get(x.places, 0) + x.share.numel()
        with backend.recorder.op("truncate"):
            shares = truncate(backend.runtime, [x.share for x in xs], excess)
        for (_, places), x, share in zip(needed, xs, shares, strict=True):
            x.scaled[places] = MpcTensor(backend, share, places, x.size, fine=x.fine)
    return [_settled(x, places) for x, places in wanted]


def _whole(x: MpcTensor) -> MpcTensor:
    """What x was cut from, if that may as well be truncated at once."""
    whole = x
    while whole.source is not None and whole.source[0].share.numel() <= _WORTH * x.share.numel():
        whole = whole.source[0]
    return whole


def _settled(x: MpcTensor, places: int) -> MpcTensor:
    """x as it was truncated, or cut from what was."""
    if x.places <= places:
        return x
    if places not in x.scaled:
        assert x.source is not None
        whole, view = x.source
        cut = view(_settled(whole, places).share)
        x.scaled[places] = type(x)(x.backend, cut, places, x.size, fine=x.fine)
    return x.scaled[places]


def with_room_for(x: MpcTensor, places: int, size: int) -> MpcTensor:
    """x, truncated if a result of ``places`` more of them below 2^size has no room: as far as need be."""
    parameters = x.backend.runtime.parameters
    size = min(size, parameters.integer_bits)
    if parameters.fits(x.places + places, size):
        return x
    lower = settled(x)
    fits = parameters.fits(lower.places + places, size)
    return lower if fits else settle([(x, parameters.fractional_bits)])[0]


def for_sum(x: MpcTensor, y: MpcTensor) -> tuple[MpcTensor, MpcTensor]:
    """Operands of a sum: where its result has no room, the one with more places is truncated."""
    parameters = x.backend.runtime.parameters
    size = min(max(x.size, y.size) + 1, parameters.integer_bits)
    while not parameters.fits(max(x.places, y.places), size):
        high = x if x.places > y.places else y
        lower = settle([(high, parameters.fractional_bits)])[0]
        if lower.places == high.places:
            break
        x, y = (lower, y) if high is x else (x, lower)
    return x, y


def for_product(x: MpcTensor, y: MpcTensor, *, terms: int = 1) -> tuple[MpcTensor, MpcTensor, int]:
    """Operands of a product, and the size of its result, a sum of ``terms`` of them.

    An operand that is much smaller than the other, such as a value per row, is truncated: the result will have fewer
    places for it. Beyond that operands are truncated, those with most places first, until the result has room. One that
    meets a factor below 1 needs as many places fewer.
    """
    parameters = x.backend.runtime.parameters
    size = min(x.size + y.size + encoding.bits(terms), parameters.integer_bits)
    if x is y:
        x = x if parameters.fits(2 * x.places, size) else settled(x)
        return x, x, size
    pair = [x, y]
    open_ones = [i for i in (0, 1) if pair[i].places > target(pair[i])]
    chosen = [i for i in open_ones if _WORTH * pair[i].share.numel() <= pair[1 - i].share.numel()]

    def places() -> int:
        return sum(target(t) if i in chosen else t.places for i, t in enumerate(pair))

    while not parameters.fits(places(), size) and len(chosen) < len(open_ones):
        chosen.append(max((i for i in open_ones if i not in chosen), key=lambda i: pair[i].places))
    wanted = [(t, t.places) for t in pair]
    for i in chosen:
        below = max(0, -pair[1 - i].size)
        wanted[i] = (pair[i], max(target(pair[i]) - below, parameters.fractional_bits // 2))
    first, second = settle(wanted)
    return first, second, size


def for_combination(xs: Sequence[MpcTensor], terms: int, places: int) -> list[MpcTensor]:
    """Operands of ``combine``: the first ``terms`` meet public factors of ``places``, then come pairs of factors.

    All that have more places than ``target`` are truncated unless the sum of all has room as it is.
    """
    parameters = xs[0].backend.runtime.parameters

    def total(ready: Sequence[MpcTensor]) -> int:
        pairs = zip(ready[terms::2], ready[terms + 1 :: 2], strict=True)
        return max([x.places + places for x in ready[:terms]] + [a.places + b.places for a, b in pairs])

    if parameters.fits(total(xs), parameters.integer_bits):
        return list(xs)
    return settled_all(xs)
