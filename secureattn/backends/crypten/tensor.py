"""Shared tensors: every operation of the Tensor interface over a runtime, real or planning."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch

from secureattn.backends.crypten import comparison, encoding, products, scaling
from secureattn.backends.crypten.lasting import Lasting, matmul_lasting
from secureattn.backends.crypten.parameters import RING_BITS
from secureattn.backends.crypten.periodic import harmonics_of, places_of
from secureattn.backends.crypten.weight import MpcWeight
from secureattn.errors import InputError
from secureattn.series import FourierSeries
from secureattn.tensor import Public, Tensor, grouped, ungrouped

if TYPE_CHECKING:
    from secureattn.backends.crypten.backend import MpcBackend
    from secureattn.backends.crypten.runtime import Runtime

_ANGLE_BITS = 32  # of a series' argument: what is opened in four bytes
_SPARE_ANGLE_BITS = 4

View = Callable[[torch.Tensor], torch.Tensor]


class MpcTensor(Tensor):
    """A party's share of a fixed-point tensor: ``places`` binary places, values below 2^``size`` in magnitude.

    A product is left with the places it has; it is truncated when an operation has no room for them, all operands of
    that operation in one round, and never twice (``scaling``). So costs below are without truncation, which takes one
    round, 8 bytes and 16 dealer bytes an element (nothing if local). They are for two parties.
    ``size`` is never above ``integer_bits``, the declared range. ``fine``: places beyond ``fractional_bits`` that the
    smallest values need. ``kept``: what is opened of a tensor that lasts. Results of comparisons have no places.
    """

    def __init__(
        self,
        backend: MpcBackend,
        share: torch.Tensor,
        places: int,
        size: int | None = None,
        source: tuple[MpcTensor, View] | None = None,
        fine: int = 0,
    ) -> None:
        self.backend: MpcBackend = backend
        self.share = share
        self.places = places
        most = backend.runtime.parameters.integer_bits
        self.size = most if size is None else min(size, most)
        self.source = source
        self.fine = fine
        self.scaled: dict[int, MpcTensor] = {}
        self.kept: Lasting | None = None
        self.shape: tuple[int, ...] = tuple(share.shape)

    # ---- linear, without a message -----------------------------------------------------------------------------

    def __add__(self, other: MpcTensor | MpcWeight | Public) -> MpcTensor:
        """Sum, broadcasting. Cost: none."""
        with self.backend.recorder.op("add"):
            self._check_shapes("add", other)
            if self._is_shared(other):
                x, y = scaling.for_sum(self, self._tensor(other))
                places = max(x.places, y.places)
                return self._make(lifted(x, places) + lifted(y, places), places, max(x.size, y.size) + 1)
            values = encoding.as_real(self._values(other), "an addend")
            full = self._fractional_bits
            size = max(self.size, encoding.size(values)) + 1
            x = scaling.with_room_for(self, 0, size)
            places = max(x.places, min(encoding.places_needed(values, full), full))
            constant = self._runtime.constant(encoding.encode(values, places, "an addend"))
            return self._make(self._runtime.public(lifted(x, places), constant), places, size)

    def __neg__(self) -> MpcTensor:
        return self._view("neg", lambda x: -x)

    def sum(self, axis: int) -> MpcTensor:
        """Sum over one axis, kept as 1. Cost: none."""
        with self.backend.recorder.op("sum"):
            axis = self._axis(axis)
            size = self.size + encoding.bits(self.shape[axis])
            x = scaling.with_room_for(self, 0, size)
            return self._make(x.share.sum(axis, keepdim=True), x.places, size)

    def split_heads(self, heads: int) -> MpcTensor:
        """``[B,S,H·Dh]`` → ``[B,H,S,Dh]``. Cost: none."""
        if len(self.shape) != 3 or self.shape[2] % heads:
            raise InputError(f"split_heads({heads}) needs [B,S,H·Dh] with {heads} heads, got {list(self.shape)}")
        batch, tokens, width = self.shape
        return self._view("split_heads", lambda x: x.reshape(batch, tokens, heads, width // heads).transpose(1, 2))

    def merge_heads(self) -> MpcTensor:
        """``[B,H,S,Dh]`` → ``[B,S,H·Dh]``. Cost: none."""
        if len(self.shape) != 4:
            raise InputError(f"merge_heads needs [B,H,S,Dh], got {list(self.shape)}")
        batch, heads, tokens, width = self.shape
        return self._view("merge_heads", lambda x: x.transpose(1, 2).reshape(batch, tokens, heads * width))

    def take(self, axis: int, index: int | slice) -> MpcTensor:
        """Part of an axis by public index, the axis kept. Cost: none."""
        axis = self._axis(axis)
        length = self.shape[axis]
        if isinstance(index, int) and not -length <= index < length:
            raise InputError(f"take(index={index}) lies outside axis {axis} of {list(self.shape)}")
        chosen = [range(length)[index]] if isinstance(index, int) else list(range(length)[index])
        positions = torch.tensor(chosen, dtype=torch.int64, device=self.share.device)
        return self._view("take", lambda x: x.index_select(axis, positions))

    def per_key(self) -> MpcTensor:
        """A value per token as a value per key, ``[B,H,S,1]`` → ``[B,H,1,S]``. Cost: none."""
        return self._view("per_key", lambda x: x.transpose(-1, -2))

    def join(self, others: Sequence[MpcTensor], axis: int) -> MpcTensor:
        """One after another, truncated first where it was not: what is kept is then truncated once. Cost: that."""
        parts = scaling.settled_all([self, *others])
        with self.backend.recorder.op("join"):
            places, size = max(x.places for x in parts), max(x.size for x in parts)
            if not self._runtime.parameters.fits(places, size):
                parts = scaling.settle([(x, self._fractional_bits) for x in parts])
                places = max(x.places for x in parts)
            return self._make(torch.cat([lifted(x, places) for x in parts], axis), places, size)

    def lasting(self) -> MpcTensor:
        """The same, of which products open every row once (``lasting``); truncated, as an opened row must not change.
        Cost: of truncation.
        """
        (x,) = scaling.settle([(self, self._fractional_bits)])
        made = self._make(x.share, x.places, x.size)
        made.kept = Lasting(self._runtime.lasting)
        self._runtime.lasting += 1
        return made

    def extended(self, rows: MpcTensor) -> MpcTensor:
        """Rows behind those of a ``lasting`` tensor, which hands on what was opened of it. Cost: of truncation."""
        (rows,) = scaling.settle([(rows, self.places)])
        with self.backend.recorder.op("join"):
            joined = torch.cat([self.share, lifted(rows, self.places)], -2)
            made = self._make(joined, self.places, max(self.size, rows.size))
        made.kept, self.kept = self.kept, None
        return made

    def group_heads(self, groups: int) -> MpcTensor:
        """``[B,H,S,Dh]`` → ``[B,H/g,g·S,Dh]``. Cost: none."""
        return self._view("group_heads", lambda x: grouped(x, groups))

    def ungroup_heads(self, groups: int) -> MpcTensor:
        """``[B,H/g,g·S,Dh]`` → ``[B,H,S,Dh]``. Cost: none."""
        return self._view("ungroup_heads", lambda x: ungrouped(x, groups))

    def pool(self, size: int) -> MpcTensor:
        """Mean of every ``size`` tokens in a row, ``[B,H,S,Dh]`` → ``[B,H,S/size,Dh]``. Cost: as a public factor."""
        batch, heads, tokens, width = self.shape
        if tokens % size:
            raise InputError(f"pool({size}) needs a multiple of {size} tokens, got {list(self.shape)}")
        with self.backend.recorder.op("pool"):
            x = scaling.with_room_for(self, 0, self.size + encoding.bits(size))
            parts = x.share.reshape(batch, heads, tokens // size, size, width)
            return self._make(parts.sum(3), x.places, self.size + encoding.bits(size)) * (1.0 / size)

    # ---- products --------------------------------------------------------------------------------------------------

    def __mul__(self, other: MpcTensor | MpcWeight | Public) -> MpcTensor:
        """Product, broadcasting.

        **Domain** |x|, |y| and |x·y| in the declared range. **Error** that of truncating the operands, if they are.
        Cost: one round, 8·(|x|+|y|) bytes, 8·|x·y| dealer bytes; by a public value nothing.
        """
        if other is self:
            return self.square()
        with self.backend.recorder.op("mul"):
            self._check_shapes("mul", other)
            if self._is_shared(other):
                x, y, size = scaling.for_product(self, self._tensor(other))
                (product,) = products.products(self._runtime, [(x.share, y.share)])
                fine = max(0 if y.places else x.fine, 0 if x.places else y.fine)  # whole numbers lose nothing
                return self._finished(product, x.places + y.places, size, fine)
            return self._times(encoding.as_real(self._values(other), "a factor"))

    def square(self) -> MpcTensor:
        """``x·x``. Cost: one round, 8·|x| bytes, 8·|x| dealer bytes."""
        with self.backend.recorder.op("square"):
            x, _, size = scaling.for_product(self, self)
            (product,) = products.products(self._runtime, [(x.share, x.share)])
            return self._finished(product, 2 * x.places, size)

    def combine(
        self,
        terms: Sequence[tuple[float, MpcTensor]] = (),
        products: Sequence[tuple[MpcTensor, MpcTensor]] = (),
        constant: float = 0.0,
    ) -> MpcTensor:
        """``Σ c_i·x_i + Σ a_j·b_j + constant``, all products in one round.

        Cost: one round and 8·(Σ|a_j|+Σ|b_j|) bytes (|a_j| once for a square), 8 dealer bytes a product; without
        products nothing.
        """
        with self.backend.recorder.op("combine"):
            factors = encoding.as_real([c for c, _ in terms], "a factor")
            places = encoding.places_needed(factors, self._runtime.parameters.factor_bits) if len(factors) else 0
            room = RING_BITS - self._runtime.parameters.integer_bits - self._fractional_bits
            places = min(places, max(room, self._fractional_bits))
            flat = [x for _, x in terms] + [operand for pair in products for operand in pair]
            ready = scaling.for_combination(flat, len(terms), places)
            xs, pairs = ready[: len(terms)], list(zip(ready[len(terms) :: 2], ready[len(terms) + 1 :: 2], strict=True))
            made = _products(self._runtime, pairs)
            total = max([places + x.places for x in xs] + [a.places + b.places for a, b in pairs])
            parts = []
            for (c, _), x in zip(terms, xs, strict=True):
                factor = int(encoding.encode(np.array(c, dtype=float), places, "a factor"))
                parts.append(x.share * factor << total - places - x.places)
            parts += [z << total - a.places - b.places for z, (a, b) in zip(made, pairs, strict=True)]
            share = functools.reduce(torch.add, parts)
            if constant:
                addend = encoding.encode(np.array(constant, dtype=float), total, "an addend")
                share = self._runtime.public(share, self._runtime.constant(addend))
            return self._finished(share, total)

    def linear(self, weight: MpcWeight, bias: MpcWeight | None = None) -> MpcTensor:
        """``x·Wᵀ + b`` over the last axis.

        Cost: one round in which all but the weight's owner send 8·|x| bytes, 8·|y| dealer bytes, |x|·Dout MACs at the
        owner online and as many at each other party offline; before the first use of a weight one round and 8·|W| bytes
        of set-up. Public weights: |x|·Dout MACs at every party and nothing else.
        """
        if len(weight.shape) != 2 or weight.shape[1] != self.shape[-1]:
            raise InputError(f"linear needs a weight [Dout,{self.shape[-1]}], got {list(weight.shape)}")
        with self.backend.recorder.op("linear"):
            parameters = self._runtime.parameters
            x = scaling.with_room_for(self, parameters.weight_bits, parameters.integer_bits)
            product = weight.applied_to(x.share.reshape(-1, self.shape[-1]))
            result = self._make(product.reshape(*self.shape[:-1], weight.shape[0]), x.places + parameters.weight_bits)
            if bias is not None:
                result = result + bias
            return self._finished(result.share, result.places)

    def inner(self, other: MpcTensor) -> MpcTensor:
        """Sum of products over the last axis, ``[…,D]``, ``[…,D]`` → ``[…,1]``.

        Cost: one round, 8·(|x|+|y|) bytes, 8·|x| where both are the same tensor; 8 dealer bytes a sum.
        """
        with self.backend.recorder.op("inner"):
            self._check_shapes("inner", other)
            x, y, size = scaling.for_product(self, other, terms=self.shape[-1])
            return self._finished(products.inner(self._runtime, x.share, y.share), x.places + y.places, size)

    def scores(self, k: MpcTensor) -> MpcTensor:
        """``q·kᵀ`` per head, ``[B,H,S,Dh]``, ``[B,H,T,Dh]`` → ``[B,H,S,T]``.

        Cost: one round, 8·(|q|+|k|) bytes, 8·|s| dealer bytes, 2·|s|·Dh MACs; of a lasting k only new rows are sent.
        """
        if self.shape[-1] != k.shape[-1]:
            raise InputError(f"scores needs equal head widths, got {list(self.shape)} and {list(k.shape)}")
        with self.backend.recorder.op("scores"):
            return self._matmul(k, k.shape[-1], transposed=True)

    def mix(self, v: MpcTensor) -> MpcTensor:
        """``a·v`` per head, ``[B,H,S,T]``, ``[B,H,T,Dh]`` → ``[B,H,S,Dh]``.

        Cost: one round, 8·(|a|+|v|) bytes, 8·|y| dealer bytes, 2·|y|·T MACs; of a lasting v only new rows are sent.
        """
        if self.shape[-1] != v.shape[-2]:
            raise InputError(f"mix needs as many rows in v as columns in a, got {list(self.shape)} and {list(v.shape)}")
        with self.backend.recorder.op("mix"):
            return self._matmul(v, v.shape[-2], transposed=False)

    # ---- functions of one variable ---------------------------------------------------------------------------------

    def series(self, f: FourierSeries) -> MpcTensor:
        """A Fourier series of every element with K harmonics and Σ|c| = W, in one opening; x is not truncated before.

        **Domain** that of the series; outside it a wrong value, never a gross one but by the linear term.
        **Error** from rounding, typically: at most half a unit of ``fractional_bits``, or three where the result has no
        more places than a product (``periodic.places_of``); x itself is read to 2^-32 of the period, to the last place
        where the period has more than 32 bits at ``fractional_bits`` + 4.
        Cost: one round, 4·|x| bytes (8·|x| for such a period) and 16·K·|x| dealer bytes; before the first use of a
        series one round and 8 bytes a coefficient of set-up.
        """
        f = self._runtime.agreed(f)
        with self.backend.recorder.op("series"):
            period = math.frexp(f.period)[1] - 1
            x = self if period + self.places <= encoding.MAX_BITS and not f.linear else scaling.settled(self)
            bits = period + x.places
            if not 1 <= bits <= encoding.MAX_BITS:
                raise InputError(
                    f"a series needs a period of 1 to {encoding.MAX_BITS} bits, but {f.period:g} is {bits} bits of "
                    f"values with {x.places} binary places; choose another period"
                )
            short = period + self._fractional_bits + _SPARE_ANGLE_BITS <= _ANGLE_BITS
            dropped = max(0, bits - _ANGLE_BITS) if short else 0
            factor, dealt, size, fine = places_of(f, x.places, self._runtime.parameters)
            share = harmonics_of(
                self._runtime, x.share, f, bits=bits, dropped=dropped, factor_places=factor, dealt_places=dealt
            )
            total = factor + dealt
            if f.linear:
                slope = encoding.encode(np.array(f.linear), total - x.places, "a factor")
                share = share + x.share * int(slope)
            if f.constant:
                share = self._runtime.public(share, self._runtime.constant(encoding.wrapped(f.constant, total)))
            return self._finished(share, total, size, fine)

    # ---- comparisons -----------------------------------------------------------------------------------------------

    def less(self, other: MpcTensor | Public) -> MpcTensor:
        """1 where ``x < other``, else 0, without binary places. **Domain** both in the declared range.

        Cost: 3 rounds, 7 bytes and 88 dealer bytes an element at 29 bits (``comparison.negative``).
        """
        return self.less_each([other])[0]

    def less_each(self, others: Sequence[MpcTensor | Public]) -> list[MpcTensor]:
        """``less`` for several, in the same 3 rounds."""
        tensors = [other for other in others if isinstance(other, MpcTensor)]
        if len(others) == len(tensors) == 1:  # of two tensors the difference alone is truncated
            differences = [self - tensors[0]]
        else:
            x, *settled = scaling.settled_all([self, *tensors])
            ready = iter(settled)
            differences = [x - (next(ready) if isinstance(other, MpcTensor) else other) for other in others]
        differences = scaling.settled_all(differences)
        sizes = [other.size if isinstance(other, MpcTensor) else encoding.size(np.asarray(other)) for other in others]
        with self.backend.recorder.op("less"):
            bits = max(x.places + max(self.size, size) + 1 for x, size in zip(differences, sizes, strict=True))
            found = comparison.negative(self._runtime, [x.share for x in differences], bits)
            return [self._make(share, 0, 1) for share in found]

    def max(self, axis: int) -> MpcTensor:
        """Largest value along one axis of n, kept as 1, by a tournament.

        Cost: 4·⌈log2 n⌉ rounds; each of the n - 1 comparisons of a row 23 bytes and 96 dealer bytes at 29 bits.
        """
        axis, best = self._axis(axis), scaling.settled(self)
        with self.backend.recorder.op("max"):
            while (length := best.shape[axis]) > 1:
                half = length // 2
                first, second = best.take(axis, slice(0, half)), best.take(axis, slice(half, 2 * half))
                winner = first + first.less(second) * (second - first)
                rest = best.share.narrow(axis, 2 * half, length % 2)
                best = self._make(torch.cat([winner.share, rest], axis), best.places, self.size)
        return best

    # ---- inside ----------------------------------------------------------------------------------------------------

    @property
    def _runtime(self) -> Runtime:
        return self.backend.runtime

    @property
    def _fractional_bits(self) -> int:
        return self.backend.runtime.parameters.fractional_bits

    def _times(self, values: encoding.Real) -> MpcTensor:
        places = encoding.places_needed(values, self._runtime.parameters.factor_bits)
        size = self.size + encoding.size(values)
        x = scaling.with_room_for(self, places, size)
        constant = self._runtime.constant(encoding.encode(values, places, "a factor"))
        return self._finished(x.share * constant, x.places + places, size)

    def _matmul(self, other: MpcTensor, terms: int, *, transposed: bool) -> MpcTensor:
        x, y, size = scaling.for_product(self, other, terms=terms)
        if y.kept is not None:
            product, y.kept = matmul_lasting(self._runtime, x.share, y.share, y.kept, transposed=transposed)
        else:
            share = y.share.transpose(-1, -2) if transposed else y.share
            product = products.matmul(self._runtime, x.share, share)
        return self._finished(product, x.places + y.places, size)

    def _make(self, share: torch.Tensor, places: int, size: int | None = None) -> MpcTensor:
        return MpcTensor(self.backend, share, places, size)

    def _view(self, op: str, view: View) -> MpcTensor:
        with self.backend.recorder.op(op):
            return MpcTensor(
                self.backend, view(self.share), self.places, self.size, source=(self, view), fine=self.fine
            )

    def _finished(self, share: torch.Tensor, places: int, size: int | None = None, fine: int = 0) -> MpcTensor:
        """A result, truncated at once where there is no room to leave it as it is."""
        made = MpcTensor(self.backend, share, places, size, fine=fine)
        return made if self._runtime.parameters.fits(made.places, made.size) else scaling.settled(made)

    def _is_shared(self, value: object) -> TypeGuard[MpcTensor | MpcWeight]:
        return isinstance(value, MpcTensor) or (isinstance(value, MpcWeight) and not value.public)

    def _values(self, value: Any) -> Any:
        return value.values if isinstance(value, MpcWeight) else value

    def _tensor(self, value: MpcTensor | MpcWeight) -> MpcTensor:
        return value if isinstance(value, MpcTensor) else self._make(value.share, value.places, value.size)

    def _axis(self, axis: int) -> int:
        if not -len(self.shape) <= axis < len(self.shape):
            raise InputError(f"axis {axis} does not exist in {list(self.shape)}")
        return axis % len(self.shape)

    def _check_shapes(self, op: str, other: Any) -> None:
        shape = other.shape if isinstance(other, MpcTensor | MpcWeight) else np.shape(other)
        try:
            np.broadcast_shapes(self.shape, shape)
        except ValueError:
            raise InputError(f"{op} cannot broadcast {list(self.shape)} with {list(shape)}") from None


def lifted(x: MpcTensor, places: int) -> torch.Tensor:
    """x's share with that many places."""
    return x.share if places == x.places else x.share << (places - x.places)


def _products(runtime: Runtime, pairs: Sequence[tuple[MpcTensor, MpcTensor]]) -> list[torch.Tensor]:
    return products.products(runtime, [(a.share, b.share) for a, b in pairs]) if pairs else []
