"""Shared tensors: every operation of the Tensor interface over a runtime, real or planning."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch

from secureattn.backends.crypten import encoding
from secureattn.backends.crypten.weight import MpcWeight
from secureattn.errors import InputError
from secureattn.series import FourierSeries
from secureattn.tensor import Public, Tensor

if TYPE_CHECKING:
    from secureattn.backends.crypten.backend import MpcBackend
    from secureattn.backends.crypten.runtime import Runtime

_SPARE_BITS = 6
_SUM_BITS, _SPARE_SUM_BITS = 61, 2  # of a series before truncation


class MpcTensor(Tensor):
    """A party's share of a fixed-point tensor with ``places`` binary places; results of comparisons have none.

    Costs are for two parties and exact truncation; with local truncation every truncation's round and bytes are nil.
    A product of operands that together have at most ``fractional_bits`` places, such as by a comparison's result or
    a public integer, is not truncated.
    """

    def __init__(self, backend: MpcBackend, share: torch.Tensor, places: int) -> None:
        self.backend: MpcBackend = backend
        self.share = share
        self.places = places
        self.shape: tuple[int, ...] = tuple(share.shape)

    # ---- linear, without a message -----------------------------------------------------------------------------

    def __add__(self, other: MpcTensor | MpcWeight | Public) -> MpcTensor:
        """Sum, broadcasting. Cost: none."""
        with self.backend.recorder.op("add"):
            self._check_shapes("add", other)
            if _is_shared(other):
                places = max(self.places, other.places)
                return self._make(self._lifted(places) + (other.share << (places - other.places)), places)
            values = encoding.as_real(other, "an addend")
            full = self._fractional_bits
            places = max(self.places, min(encoding.places_needed(values, full), full))
            constant = self._runtime.constant(encoding.encode(values, places, "an addend"))
            return self._make(self._runtime.public(self._lifted(places), constant), places)

    def __neg__(self) -> MpcTensor:
        with self.backend.recorder.op("neg"):
            return self._make(-self.share, self.places)

    def sum(self, axis: int) -> MpcTensor:
        """Sum over one axis, kept as 1. Cost: none."""
        with self.backend.recorder.op("sum"):
            return self._make(self.share.sum(self._axis(axis), keepdim=True), self.places)

    def split_heads(self, heads: int) -> MpcTensor:
        """``[B,S,H·Dh]`` → ``[B,H,S,Dh]``. Cost: none."""
        if len(self.shape) != 3 or self.shape[2] % heads:
            raise InputError(f"split_heads({heads}) needs [B,S,H·Dh] with {heads} heads, got {list(self.shape)}")
        with self.backend.recorder.op("split_heads"):
            batch, tokens, width = self.shape
            parts = self.share.reshape(batch, tokens, heads, width // heads)
            return self._make(parts.transpose(1, 2), self.places)

    def merge_heads(self) -> MpcTensor:
        """``[B,H,S,Dh]`` → ``[B,S,H·Dh]``. Cost: none."""
        if len(self.shape) != 4:
            raise InputError(f"merge_heads needs [B,H,S,Dh], got {list(self.shape)}")
        with self.backend.recorder.op("merge_heads"):
            batch, heads, tokens, width = self.shape
            return self._make(self.share.transpose(1, 2).reshape(batch, tokens, heads * width), self.places)

    def take(self, axis: int, index: int | slice) -> MpcTensor:
        """Part of an axis by public index, the axis kept. Cost: none."""
        axis = self._axis(axis)
        length = self.shape[axis]
        if isinstance(index, int) and not -length <= index < length:
            raise InputError(f"take(index={index}) lies outside axis {axis} of {list(self.shape)}")
        with self.backend.recorder.op("take"):
            chosen = [range(length)[index]] if isinstance(index, int) else list(range(length)[index])
            positions = torch.tensor(chosen, dtype=torch.int64, device=self.share.device)
            return self._make(self.share.index_select(axis, positions), self.places)

    def per_key(self) -> MpcTensor:
        """A value per token as a value per key, ``[B,H,S,1]`` → ``[B,H,1,S]``. Cost: none."""
        with self.backend.recorder.op("per_key"):
            return self._make(self.share.transpose(-1, -2), self.places)

    def pool(self, size: int) -> MpcTensor:
        """Mean of every ``size`` tokens in a row, ``[B,H,S,Dh]`` → ``[B,H,S/size,Dh]``. Cost: as a public factor."""
        batch, heads, tokens, width = self.shape
        if tokens % size:
            raise InputError(f"pool({size}) needs a multiple of {size} tokens, got {list(self.shape)}")
        with self.backend.recorder.op("pool"):
            parts = self.share.reshape(batch, heads, tokens // size, size, width)
            return self._make(parts.sum(3), self.places) * (1.0 / size)

    # ---- products --------------------------------------------------------------------------------------------------

    def __mul__(self, other: MpcTensor | MpcWeight | Public) -> MpcTensor:
        """Product, broadcasting.

        **Domain** at 16 fractional bits |x·y| < 2^30, and |x·c| < 2^24 for a public factor c that is no integer.
        **Error** less than one unit in the last place, and 2^-22 of x·c for such a factor (2^-16 if truncated locally).
        Cost: two rounds, 8·(|x|+|y|+|x·y|) bytes, 24·|x·y| dealer bytes; by a public value one round, 8·|x| bytes
        and 16·|x| dealer bytes; by a public integer or an array of them nothing.
        """
        if other is self:
            return self.square()
        with self.backend.recorder.op("mul"):
            self._check_shapes("mul", other)
            if _is_shared(other):
                (product,) = self._runtime.products([(self.share, other.share)])
                return self._scaled(product, self.places + other.places)
            values = encoding.as_real(other, "a factor")
            places = encoding.places_needed(values, self._factor_bits)
            constant = self._runtime.constant(encoding.encode(values, places, "a factor"))
            return self._scaled(self.share * constant, self.places + places)

    def square(self) -> MpcTensor:
        """``x·x``. Cost: two rounds, 16·|x| bytes, 24·|x| dealer bytes."""
        with self.backend.recorder.op("square"):
            (product,) = self._runtime.products([(self.share, self.share)])
            return self._scaled(product, 2 * self.places)

    def combine(
        self,
        terms: Sequence[tuple[float, MpcTensor]] = (),
        products: Sequence[tuple[MpcTensor, MpcTensor]] = (),
        constant: float = 0.0,
    ) -> MpcTensor:
        """``Σ c_i·x_i + Σ a_j·b_j + constant``, all products in one round and truncated once.

        Cost: two rounds, one without products or where everything is an integer; 8·(Σ|a_j|+Σ|b_j|+n) bytes (|a_j|
        once for a square), 8·(products + 2·n) dealer bytes for n elements.
        """
        with self.backend.recorder.op("combine"):
            public = [c for c, _ in terms] + [constant] + [1.0] * bool(products)
            places = encoding.places_needed(encoding.as_real(public, "a factor"), self._factor_bits)
            total = max([places + x.places for _, x in terms] + [a.places + b.places for a, b in products])
            parts = []
            for c, x in terms:
                factor = int(encoding.encode(np.array(c, dtype=float), places, "a factor"))
                parts.append(x.share * factor << total - places - x.places)
            made = self._runtime.products([(a.share, b.share) for a, b in products]) if products else []
            parts += [z << total - a.places - b.places for z, (a, b) in zip(made, products, strict=True)]
            share = functools.reduce(torch.add, parts)
            if constant:
                addend = encoding.encode(np.array(constant, dtype=float), total, "an addend")
                share = self._runtime.public(share, self._runtime.constant(addend))
            return self._scaled(share, total)

    def linear(self, weight: MpcWeight, bias: MpcWeight | None = None) -> MpcTensor:
        """``x·Wᵀ + b`` over the last axis, truncated once.

        Cost: two rounds, 8·(|x|+|y|) bytes, 24·|y| dealer bytes, |x|·Dout MACs online and as many offline; before
        the first use of a weight one round and 8·|W| bytes of set-up.
        """
        if len(weight.shape) != 2 or weight.shape[1] != self.shape[-1]:
            raise InputError(f"linear needs a weight [Dout,{self.shape[-1]}], got {list(weight.shape)}")
        with self.backend.recorder.op("linear"):
            rows = self.share.reshape(-1, self.shape[-1])
            product = self._runtime.matmul_fixed(rows, weight.fixed)
            product = product.reshape(*self.shape[:-1], weight.shape[0])
            places = self.places + weight.places
            if bias is not None:
                product = product + (bias.share << (places - bias.places))
            return self._scaled(product, places)

    def inner(self, other: MpcTensor) -> MpcTensor:
        """Sum of products over the last axis, ``[…,D]``, ``[…,D]`` → ``[…,1]``, truncated once.

        Cost: two rounds, 8·(|x|+|y|+sums) bytes, 8·(|x|+sums) where both are the same tensor; 24 dealer bytes a sum.
        """
        with self.backend.recorder.op("inner"):
            self._check_shapes("inner", other)
            return self._scaled(self._runtime.inner(self.share, other.share), self.places + other.places)

    def scores(self, k: MpcTensor) -> MpcTensor:
        """``q·kᵀ`` per head, ``[B,H,S,Dh]``, ``[B,H,T,Dh]`` → ``[B,H,S,T]``.

        Cost: two rounds, 8·(|q|+|k|+|s|) bytes, 24·|s| dealer bytes, 2·|s|·Dh MACs.
        """
        if self.shape[-1] != k.shape[-1]:
            raise InputError(f"scores needs equal head widths, got {list(self.shape)} and {list(k.shape)}")
        with self.backend.recorder.op("scores"):
            return self._scaled(self._runtime.matmul(self.share, k.share.transpose(-1, -2)), self.places + k.places)

    def mix(self, v: MpcTensor) -> MpcTensor:
        """``a·v`` per head, ``[B,H,S,T]``, ``[B,H,T,Dh]`` → ``[B,H,S,Dh]``.

        Cost: two rounds, 8·(|a|+|v|+|y|) bytes, 24·|y| dealer bytes, 2·|y|·T MACs.
        """
        if self.shape[-1] != v.shape[-2]:
            raise InputError(f"mix needs as many rows in v as columns in a, got {list(self.shape)} and {list(v.shape)}")
        with self.backend.recorder.op("mix"):
            return self._scaled(self._runtime.matmul(self.share, v.share), self.places + v.places)

    # ---- functions of one variable ---------------------------------------------------------------------------------

    def series(self, f: FourierSeries) -> MpcTensor:
        """A Fourier series of every element with K harmonics and Σ|c| = W, in one opening and one truncation.

        **Domain** that of the series; outside it a wrong value, never a gross one but by the linear term.
        **Error** beside the truncation's, below one unit u in the last place: 0.36 u and for a linear term 0.13 u, up
        to where coefficients and places leave less room (W = 64 with K = 64: 19 places); truncated locally at most
        (K+W)/√2 units and |x|/2 for a linear term, without one typically √((K+Σ|c|²)/12).
        Cost: two rounds, 4·|x| bytes (8·|x| if the period has over 32 bits) and 8·|x|, (16·K + 16)·|x| dealer bytes;
        truncated locally one round, 4·|x| bytes and 16·K·|x| dealer bytes; before the first use of a series one round
        and 8 bytes a coefficient of set-up.
        """
        f = self._runtime.agreed(f)
        with self.backend.recorder.op("series"):
            bits = self.places + math.frexp(f.period)[1] - 1
            if not 1 <= bits <= encoding.MAX_BITS:
                raise InputError(
                    f"a series needs a period of 1 to {encoding.MAX_BITS} bits, but {f.period:g} is {bits} bits of "
                    f"values with {self.places} binary places; choose another period"
                )
            factor, dealt = self._series_places(f)
            total = factor + dealt
            share = self._runtime.series(self.share, f, bits=bits, factor_places=factor, dealt_places=dealt)
            if f.linear:
                slope = encoding.encode(np.array(f.linear), total - self.places, "a factor")
                share = share + self.share * int(slope)
            if f.constant:
                addend = encoding.encode(np.array(f.constant), total, "an addend")
                share = self._runtime.public(share, self._runtime.constant(addend))
            return self._scaled(share, total)

    # ---- comparisons -----------------------------------------------------------------------------------------------

    def less(self, other: MpcTensor | Public) -> MpcTensor:
        """1 where ``x < other``, else 0, without binary places. **Domain** |x - other| < 2^(63-places).

        Cost: 8 rounds, 216·n bytes, 112·n dealer bytes for n elements.
        """
        difference = self - other
        with self.backend.recorder.op("less"):
            return self._make(self._runtime.negative(difference.share), 0)

    def max(self, axis: int) -> MpcTensor:
        """Largest value along one axis of n, kept as 1, by a tournament.

        Cost: 9·⌈log2 n⌉ rounds; each of the n - 1 comparisons of a row 232 bytes and 120 dealer bytes.
        """
        axis, best = self._axis(axis), self
        with self.backend.recorder.op("max"):
            while (length := best.shape[axis]) > 1:
                half = length // 2
                first, second = best.take(axis, slice(0, half)), best.take(axis, slice(half, 2 * half))
                winner = first + first.less(second) * (second - first)
                rest = best.share.narrow(axis, 2 * half, length % 2)
                best = self._make(torch.cat([winner.share, rest], axis), self.places)
        return best

    # ---- inside ----------------------------------------------------------------------------------------------------

    @property
    def _runtime(self) -> Runtime:
        return self.backend.runtime

    @property
    def _fractional_bits(self) -> int:
        return self.backend.runtime.parameters.fractional_bits

    @property
    def _factor_bits(self) -> int:
        """Significant bits of a public factor: some to spare where truncation leaves room for them."""
        full, exact = self._fractional_bits, self.backend.runtime.parameters.truncation == "exact"
        return full + (_SPARE_BITS if exact and 2 * full + _SPARE_BITS <= 40 else 0)

    def _series_places(self, f: FourierSeries) -> tuple[int, int]:
        """Binary places of the public factors and of the dealt values of a series.

        Rounding them loses (K·2^-factor + W·2^-dealt)/√2, and the linear factor |x|·2^(places-factor-dealt-1). The
        sum stays below 2^61, so exact truncation holds; local truncation, which goes wrong more often the more places
        there are, gets as many as for a product.
        """
        full, weight, reach = self._fractional_bits, f.weight, max(map(abs, f.domain))
        factor = dealt = full
        if self._runtime.parameters.truncation == "exact":
            factor, dealt = (full + _SPARE_SUM_BITS + _bits(size) for size in (f.harmonics, weight))
            if f.linear:
                factor = max(factor, self.places + full + _SPARE_SUM_BITS + _bits(reach) - dealt)
        largest = weight + abs(f.constant) + abs(f.linear) * reach
        excess = max(0, factor + dealt + _bits(largest) - _SUM_BITS)
        factor, dealt = factor - excess // 2, dealt - (excess + 1) // 2
        lost = (f.harmonics * 2.0**-factor + weight * 2.0**-dealt) / math.sqrt(2)
        if lost > 2.0 ** -(full // 2) or factor + dealt < self.places:
            raise InputError(
                f"a series of {f.harmonics} harmonics whose coefficients add up to {weight:.3g} loses {lost:.2g} to "
                f"rounding at {full} fractional bits of a 64-bit ring; fit it with a smaller weight"
            )
        return factor, dealt

    def _make(self, share: torch.Tensor, places: int) -> MpcTensor:
        return MpcTensor(self.backend, share, places)

    def _lifted(self, places: int) -> torch.Tensor:
        return self.share if places == self.places else self.share << (places - self.places)

    def _scaled(self, share: torch.Tensor, places: int) -> MpcTensor:
        """Back to ``fractional_bits`` places where there are more."""
        excess = places - self._fractional_bits
        if excess <= 0:
            return self._make(share, places)
        (scaled,) = self.backend.runtime.truncate([share], excess)
        return self._make(scaled, self._fractional_bits)

    def _axis(self, axis: int) -> int:
        if not -len(self.shape) <= axis < len(self.shape):
            raise InputError(f"axis {axis} does not exist in {list(self.shape)}")
        return axis % len(self.shape)

    def _check_shapes(self, op: str, other: Any) -> None:
        shape = other.shape if _is_shared(other) else np.shape(other)
        try:
            np.broadcast_shapes(self.shape, shape)
        except ValueError:
            raise InputError(f"{op} cannot broadcast {list(self.shape)} with {list(shape)}") from None


def _bits(size: float) -> int:
    """The least k ≥ 0 with ``size ≤ 2^k``."""
    return math.ceil(math.log2(max(size, 1.0)))


def _is_shared(value: object) -> TypeGuard[MpcTensor | MpcWeight]:
    return isinstance(value, MpcTensor | MpcWeight)
