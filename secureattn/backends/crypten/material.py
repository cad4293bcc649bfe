"""What a dealer hands out: for every kind of correlated randomness its masks, what follows from them, and its header.

A request expands to *masks*, drawn by every party from the key it shares with the dealer, and *derived* values,
computed by the dealer from the masks' plain sums. All parties but the first draw their share of a derived value too;
the first receives what is missing, the correction. So one party receives 8 bytes an element and the others nothing.
A mask that hides what one party alone holds is drawn by that party alone; it has no part at the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import torch

from secureattn.backends.crypten.bit_tables import BitTables
from secureattn.backends.crypten.harmonics import of_mask
from secureattn.errors import EngineError

if TYPE_CHECKING:
    from secureattn.backends.crypten.csprng import Csprng

Shape = tuple[int, ...]
MAX_AXES = 8
_BITS_LIMIT = 64
HEADER_WORDS = 4 + 2 * MAX_AXES  # kind, argument, axes of both shapes, then the shapes


class Kind(IntEnum):
    """Kinds of correlated randomness; additive sharing unless said otherwise."""

    STOP = 0
    PRODUCT = 1  # a, b → a·b, broadcasting
    SQUARE = 2  # a → a²
    INNER = 3  # a, b → Σ a·b over the last axis, kept as 1
    INNER_SQUARE = 4  # a → Σ a² over the last axis, kept as 1
    MATMUL = 5  # a [..,m,k], b [..,k,n] → a·b
    FIX = 6  # b, drawn by party 0 alone and kept by the dealer under the argument's number
    MATMUL_FIXED = 7  # a [m,k], drawn by all but party 0 → a·bᵀ with the kept b [n,k]
    AND = 8  # a, b → a & b, all XOR shared
    BIT = 9  # a bit, XOR shared → the same bit, additively shared
    TRUNCATE = 10  # r → r >> argument, top bit of r; r as an unsigned number
    SERIES = 11  # δ [n] → cos and sin [2,K,n] of 2πk·δ/2^bits; second shape [2,K], argument by ``series_argument``
    LESS = 12  # r, and masks of bits, XOR shared → tables, XOR shared, and monomials; argument: bits (``bit_tables``)
    GROW = 13  # b, kept by the dealer as rows behind those it has under the argument's number
    MATMUL_GROWN = 14  # a [..,m,k] → a·b with the kept b, second its shape; argument: 2·number, +1 for it transposed


@dataclass(frozen=True)
class Request:
    """One request to the dealer: a kind, the shapes of its masks, and a number (see Kind)."""

    kind: Kind
    first: Shape = ()
    second: Shape = ()
    argument: int = 0

    @property
    def masks(self) -> tuple[Shape, ...]:
        """Shapes every party expands from its key."""
        if self.kind in (Kind.PRODUCT, Kind.INNER, Kind.MATMUL, Kind.AND):
            return (self.first, self.second)
        if self.kind is Kind.LESS:
            return (self.first, self.first)
        return () if self.kind is Kind.STOP else (self.first,)

    def draws(self, rank: int) -> bool:
        """Whether party ``rank`` has a part in the masks."""
        if self.kind is Kind.FIX:
            return rank == 0
        return self.kind is not Kind.MATMUL_FIXED or rank > 0

    @property
    def xor(self) -> tuple[bool, ...]:
        """For each mask and then each derived value: whether it is XOR shared and not additively."""
        if self.kind is Kind.AND:
            return (True, True, True)
        if self.kind is Kind.BIT:
            return (True, False)
        if self.kind is Kind.LESS:
            return (False, True, True, False)
        return (False,) * (len(self.masks) + len(self.derived))

    @property
    def derived(self) -> tuple[Shape, ...]:
        """Shapes of the values that follow from the masks."""
        if self.kind in (Kind.STOP, Kind.FIX, Kind.GROW):
            return ()
        if self.kind is Kind.TRUNCATE:
            return (self.first, self.first)
        if self.kind is Kind.SERIES:
            return ((*self.second, *self.first),)
        if self.kind is Kind.LESS:
            tables = BitTables(self.argument)
            return (tables.tables, *self.first), (tables.monomials, *self.first)
        if self.kind in (Kind.SQUARE, Kind.BIT):
            return (self.first,)
        if self.kind is Kind.INNER_SQUARE:
            return ((*self.first[:-1], 1),)
        if self.kind in (Kind.MATMUL, Kind.MATMUL_GROWN):
            batch = np.broadcast_shapes(self.first[:-2], self.second[:-2])
            return ((*batch, self.first[-2], self.second[-1]),)
        if self.kind is Kind.MATMUL_FIXED:
            return ((self.first[0], self.second[0]),)
        shape = np.broadcast_shapes(self.first, self.second)
        return ((*shape[:-1], 1),) if self.kind is Kind.INNER else (shape,)

    @property
    def correction_bytes(self) -> int:
        """Bytes the dealer sends to the first party."""
        return 8 * sum(elements(shape) for shape in self.derived)

    @property
    def dealer_macs(self) -> int:
        """Ring multiply-accumulates of the dealer's matrix product."""
        if self.kind in (Kind.MATMUL, Kind.MATMUL_FIXED, Kind.MATMUL_GROWN):
            return elements(self.derived[0]) * self.first[-1]
        return 0

    @property
    def dealer_harmonics(self) -> int:
        """Harmonics of single values the dealer works out."""
        return elements(self.first) * self.second[1] if self.kind is Kind.SERIES else 0

    def keystream_bytes(self, rank: int) -> int:
        """Bytes of key stream party ``rank`` expands."""
        masks = sum(elements(shape) for shape in self.masks) if self.draws(rank) else 0
        derived = sum(elements(shape) for shape in self.derived) if rank else 0
        return (1 if self.kind is Kind.BIT else 8) * masks + 8 * derived

    def header(self) -> torch.Tensor:
        """The request as a fixed-length int64 tensor."""
        for shape in (self.first, self.second):
            if len(shape) > MAX_AXES:
                raise EngineError(f"a dealer request holds at most {MAX_AXES} axes, {shape} has {len(shape)}")
        words = torch.zeros(HEADER_WORDS, dtype=torch.int64)
        words[:4] = torch.tensor([int(self.kind), self.argument, len(self.first), len(self.second)])
        for start, shape in ((4, self.first), (4 + MAX_AXES, self.second)):
            words[start : start + len(shape)] = torch.tensor(shape, dtype=torch.int64)
        return words

    @classmethod
    def parse(cls, header: torch.Tensor) -> Request:
        """The request a header holds; refuses what no party of ours sends."""
        kind, argument, axes_first, axes_second, *axes = header.tolist()
        known = kind in list(Kind) and all(0 <= n <= MAX_AXES for n in (axes_first, axes_second))
        if not known or any(axis < 0 for axis in axes):
            raise EngineError("the dealer received a malformed request; all parties must run the same version")
        second = axes[MAX_AXES : MAX_AXES + axes_second]
        return cls(Kind(kind), tuple(axes[:axes_first]), tuple(second), argument)


def draw(request: Request, stream: Csprng, rank: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """A party's shares of the masks, 0 where it has no part, and of the derived values where it draws those as well."""
    mask = stream.bits if request.kind is Kind.BIT else stream.ring
    own = request.draws(rank)
    masks = [mask(shape) if own else torch.zeros((), dtype=torch.int64) for shape in request.masks]
    return masks, [stream.ring(shape) for shape in request.derived] if rank else []


class Kept:
    """Masks that stay with the dealer, in plain, by number: ``matrices`` of FIX, transposed, and ``rows`` of GROW."""

    def __init__(self) -> None:
        self.matrices: dict[int, torch.Tensor] = {}
        self.rows: dict[int, torch.Tensor] = {}

    def take(self, request: Request, mask: torch.Tensor) -> None:
        """Keep the mask of a FIX or a GROW."""
        if request.kind is Kind.FIX:
            self.matrices[request.argument] = mask.t().contiguous()
            return
        before = self.rows.get(request.argument)
        self.rows[request.argument] = mask if before is None else torch.cat([before, mask], -2)

    def grown(self, request: Request) -> torch.Tensor:
        """What the mask of a MATMUL_GROWN is multiplied by."""
        number, transposed = divmod(request.argument, 2)
        rows = self.rows.get(number, torch.empty(0, 0, dtype=torch.int64))
        rows = rows.transpose(-1, -2) if transposed else rows
        if tuple(rows.shape) != request.second:
            raise EngineError(
                f"rows of shape {list(rows.shape)} are kept, and a product with {request.second} was asked"
            )
        return rows


def derive(request: Request, masks: Sequence[torch.Tensor], kept: Kept) -> list[torch.Tensor]:
    """The derived values in plain, from the masks in plain and what the dealer has kept."""
    kind = request.kind
    if kind in (Kind.FIX, Kind.GROW):
        return []
    if kind is Kind.BIT:
        return [masks[0].clone()]
    if kind is Kind.TRUNCATE:
        low = (1 << (64 - request.argument)) - 1
        return [(masks[0] >> request.argument) & low, (masks[0] >> 63) & 1]
    if kind is Kind.MATMUL:
        return [torch.matmul(masks[0], masks[1])]
    if kind is Kind.MATMUL_FIXED:
        return [torch.matmul(masks[0], kept.matrices[request.argument])]
    if kind is Kind.MATMUL_GROWN:
        return [torch.matmul(masks[0], kept.grown(request))]
    if kind is Kind.AND:
        return [masks[0] & masks[1]]
    if kind is Kind.LESS:
        return list(BitTables(request.argument).deal(masks[0], masks[1]))
    if kind is Kind.SERIES:
        places, bits = divmod(request.argument, _BITS_LIMIT)
        return [of_mask(masks[0], bits, request.second[1], places)]
    product = masks[0] * masks[1 if len(masks) == 2 else 0]
    return [product.sum(-1, keepdim=True) if kind in (Kind.INNER, Kind.INNER_SQUARE) else product]


def combine(shares: Sequence[torch.Tensor], *, xor: bool) -> torch.Tensor:
    """The plain value of a mask from all its shares."""
    total = shares[0].clone()
    for share in shares[1:]:
        total = total ^ share if xor else total + share
    return total


def remove(value: torch.Tensor, share: torch.Tensor, *, xor: bool) -> None:
    """Take another party's share off a derived value, in place."""
    if xor:
        value ^= share
    else:
        value -= share


def series_argument(bits: int, places: int) -> int:
    """The argument of SERIES: masks count modulo 2^bits, bits < 64, and what is dealt has ``places`` binary places."""
    return places * _BITS_LIMIT + bits


def elements(shape: Sequence[int]) -> int:
    """How many elements a shape holds."""
    return math.prod(shape)
