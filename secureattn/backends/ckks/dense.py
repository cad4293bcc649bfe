"""The dense layout: all tokens and features of one query, or a few, in one ciphertext; for the least latency.

Elementwise functions then cost one ciphertext, and rotations move values. Where those lie: ``dense_layout``. What an
operation costs, for T tokens, B queries, D features in H heads of Dh places, all powers of two, and N/2 slots: there
are R = N/(2·D·T·B) copies, n = min(T, R) offsets in each of p = T/n ciphertexts of scores, and
bsgs(m, o) = min over powers of two b of (b − 1) + o·(m/b − 1) key switches for o sums of the same m rotations.

===============  ================================  ================  ==========  ========  =============
operation        rotations                         public products   relinear.   rescales  levels
===============  ================================  ================  ==========  ========  =============
linear, o blocks bsgs(D, o)                        o·D               0           o         1
shift            min_b (b − 1) + (2T/b − 1)        2T − 1            0           p         1
… with one head  bsgs(T, 1)                        T                 0           p         1
scores           shift + p·log2 Dh                 shift             p           2p        2, 1 of q
sum of scores    log2 n                            0                 0           0         0
mix              shift + 2·log2 n                  shift + 1         1           p + 2     3, 2 of weights
inner            log2 D (of heads log2 Dh)         0                 1           1         1
sum of features  log2 D (of heads log2 Dh)         0                 0           0         0
sum of tokens    2·log2 T                          1                 0           1         1
value per key    shift                             shift             0           p         1
===============  ================================  ================  ==========  ========  =============

- A linear layer takes D rotations of its D inputs, whatever its outputs are. Three times the inputs' width, as of
  queries, keys and values, comes as three blocks, and so does what is wider than ``features``; ``take`` picks blocks
  for nothing, other features by a linear layer.
- Keys are shifted, copy by copy, by their offset; then one product serves n offsets of all heads. Places are the
  slowest axis, so the sum over them is cyclic, and needs no mask; so is the sum over copies of scores, which are the
  same at every place.
- What is mixed differs by place: its sum over copies is masked and spread again, beside the normaliser's depth.
- What is padded costs a level more in two places: a sum over features where widths or heads are no powers of two, a
  sum over keys where tokens are not. A sum of S tokens takes ⌊log2 S⌋ + (ones among the bits of S) − 1 rotations
  before its mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import Self

from secureattn.backends.ckks.cipher import Cipher, Vector
from secureattn.backends.ckks.elementwise import CipherTensor, Parts, as_parts, combined
from secureattn.errors import InputError
from secureattn.tensor import Public

if TYPE_CHECKING:
    from secureattn.backends.ckks.dense_backend import DenseBackend, DenseWeight


class DenseTensor(CipherTensor):
    """``parts`` of ciphertexts behind a logical shape: blocks of features, or of offsets (``diagonals``).

    ``offsets``: how many a ciphertext of scores holds that this meets, or would be made of this.
    """

    backend: DenseBackend

    def __init__(
        self,
        backend: DenseBackend,
        parts: Parts,
        shape: tuple[int, ...],
        *,
        diagonals: bool = False,
        offsets: int | None = None,
    ) -> None:
        self.backend = backend
        self.parts = parts
        self.shape = shape
        self.diagonals = diagonals
        self.offsets = backend.layout.offsets(self.block) if offsets is None else offsets

    @property
    def block(self) -> tuple[int, ...]:
        """The shape of one part of features."""
        return (*self.shape[:-1], self.shape[-1] // len(self.parts))

    # ---- elementwise ----------------------------------------------------------------------------------------

    def _new(self, parts: Parts) -> Self:
        return type(self)(self.backend, parts, self.shape, diagonals=self.diagonals, offsets=self.offsets)

    def _of(self, parts: Parts, tensors: Sequence[Self]) -> Self:
        shapes = [list(x.shape) for x in tensors]
        wide = [x for x in tensors if x.shape[-1] > 1]
        if len({(x.diagonals, len(x.parts), x.offsets if x.diagonals else 0) for x in wide}) > 1:
            raise InputError(f"the dense layout cannot join scores and features elementwise, the shapes are {shapes}")
        try:
            shape = np.broadcast_shapes(*(x.shape for x in tensors))
        except ValueError:
            raise InputError(f"shapes {shapes} do not broadcast") from None
        offsets = min(x.offsets for x in wide or tensors)
        return type(self)(self.backend, parts, shape, diagonals=any(x.diagonals for x in wide), offsets=offsets)

    def _plus(self, value: Public | DenseWeight) -> Parts:
        def plus(at: int) -> Cipher:
            a, slots = self.machine.lowered(self.parts[at]), public[at]
            if np.ptp(slots) == 0:
                return self.machine.add_public(a, float(slots[0])) if slots[0] else a
            return self.machine.add_public(a, slots)

        public = self.backend.public(value, self)
        return as_parts(self.machine.map(plus, range(len(self.parts))))

    def _times(self, value: Public | DenseWeight) -> Parts:
        def times(at: int) -> Cipher:
            a, vector = self.parts[at], vectors[at]
            if np.ptp(vector.slots) == 0:
                factor = float(vector.slots[0])
                return self.machine.times_constant(self.machine.lowered(a, 0 if factor.is_integer() else 1), factor)
            return self._masked(a, vector)

        vectors = self.backend.factors(value, self)
        return as_parts(self.machine.map(times, range(len(self.parts))))

    def _masked(self, a: Cipher, vector: Vector) -> Cipher:
        """a times public slots, one level down."""
        level = self.machine.begin_at(a.level, "a product with a public vector")
        return self.machine.rescale(self.machine.sum_of_vectors([(vector, a)], level, self.machine.target(level)))

    # ---- linear layers --------------------------------------------------------------------------------------

    def linear(self, weight: DenseWeight, bias: DenseWeight | None = None) -> Self:
        machine = self.machine
        with self._op("linear"):
            if self.diagonals or weight.array.ndim != 2 or weight.array.shape[1] != self.shape[-1]:
                raise InputError(
                    f"linear needs features and a weight [Dout,Din], got {list(self.shape)} and "
                    f"{list(weight.array.shape)}"
                )
            sums, outputs = self.backend.linear_sums(weight, self), len(weight.array)
            made = sums.apply(machine, self.parts, self.level, machine.target, "a linear layer")
            if outputs == 1:
                made = machine.map(lambda a: self._sum_places(machine.lowered(a)), made)
            offsets = self.offsets if outputs == 1 else None
            out = type(self)(self.backend, as_parts(made), (*self.shape[:-1], outputs), offsets=offsets)
            return self._made(out if bias is None else out._new(out._plus(bias)))

    def take(self, axis: int, index: int | slice) -> Self:
        axis %= len(self.shape)
        if axis == len(self.shape) - 1 and not self.diagonals:
            chosen = np.arange(self.shape[-1])[slice(index, index + 1 or None) if isinstance(index, int) else index]
            width = self.block[-1]
            if not chosen[0] % width and np.array_equal(chosen, np.arange(chosen[0], chosen[-1] + 1)):
                if len(chosen) % width == 0:
                    parts = self.parts[chosen[0] // width : (chosen[-1] + 1) // width]
                    return type(self)(self.backend, parts, (*self.shape[:-1], len(chosen)), offsets=self.offsets)
            return self.linear(self.backend.weight(np.eye(self.shape[-1])[chosen]))
        if axis == 1 and len(self.shape) == 3 and isinstance(index, int):
            with self._op("take"):
                token = index % self.shape[1]
                parts = self._map(lambda a: self._one_token(a, token))
                return self._made(type(self)(self.backend, parts, (self.shape[0], 1, self.shape[2])))
        raise InputError(f"the dense layout cannot take {index} of axis {axis} of {list(self.shape)}")

    # ---- sums -----------------------------------------------------------------------------------------------

    def inner(self, other: Self) -> Self:
        machine = self.machine
        with self._op("inner"):
            if self.shape[-1] != other.shape[-1] or self.parts.shape != other.parts.shape:
                raise InputError(f"inner needs equal widths, got {list(self.shape)} and {list(other.shape)}")
            joined = self._of(self.parts, [self, other])
            left = self._valid_parts
            right = left if self is other else other.parts
            pairs = list(zip(left, right, strict=True))
            return self._made(joined._column(lambda: combined(machine, products=pairs)))

    def sum(self, axis: int) -> Self:
        return self._summed(axis, 1.0)

    def mean(self, axis: int) -> Self:
        """Of tokens, the mask between the rotations takes the factor."""
        factor = 1.0 / self.shape[axis]
        return super().mean(axis) if axis % len(self.shape) == len(self.shape) - 1 else self._summed(axis, factor)

    def _summed(self, axis: int, factor: float) -> Self:
        axis %= len(self.shape)
        with self._op("sum"):
            if axis == len(self.shape) - 1:
                parts = self._valid_parts
                return self._made(self._column(lambda: self.machine.lowered(functools.reduce(self._sum, parts))))
            if axis == len(self.shape) - 2 and not self.diagonals:
                if self.shape[axis] == 1:
                    return self._made(self)
                parts = self._map(lambda a: self._sum_tokens(a, factor))
                shape = (*self.shape[:axis], 1, self.shape[-1])
                return self._made(type(self)(self.backend, parts, shape, offsets=self.offsets))
            raise InputError(f"the dense layout has no sum over axis {axis} of {list(self.shape)}")

    def _column(self, total: Callable[[], Cipher]) -> Self:
        """``[…,1]`` from what computes the sum of all parts."""

        def column() -> Cipher:
            if self.shape[-1] == 1:
                return total()
            return self._sum_offsets(total()) if self.diagonals else self._sum_places(total())

        parts = as_parts([self.machine.unit(column)])
        return type(self)(self.backend, parts, (*self.shape[:-1], 1), offsets=self.offsets)

    def _sum_tokens(self, a: Cipher, factor: float) -> Cipher:
        a = self.machine.lowered(a, 1)
        return self._one_token(self._window(a, self.shape[-2], self.backend.batch), 0, factor)

    def _sum_places(self, a: Cipher) -> Cipher:
        """Over features, or those of each head: places are the slowest axis, then copies are alike."""
        layout = self.backend.layout
        places, copies, heads = layout.axes(self.block)
        a = self._window(a, places, copies * heads * layout.block)
        return self._window(a, heads, layout.block) if len(self.shape) == 3 else a

    def _sum_offsets(self, a: Cipher) -> Cipher:
        """Over copies of scores, which are the same at every place."""
        return self._window(a, self.offsets, self.backend.offset_step(self.shape))

    def _window(self, a: Cipher, count: int, step: int) -> Cipher:
        """``Σ_{i<count} rot(a, i·step)``: log2 of count, and one for every bit of it but one."""
        machine, bit, done = self.machine, 1, 0
        total: Cipher | None = None
        while True:
            if count & bit:
                part = machine.rotate(a, done * step)
                total = part if total is None else machine.add(total, part)
                done |= bit
            if done == count:
                assert total is not None
                return total
            a = machine.add(a, machine.rotate(a, bit * step))
            bit *= 2

    def _one_token(self, a: Cipher, token: int, factor: float = 1.0) -> Cipher:
        """One token of the layout, times a factor, at every token."""
        batch, tokens = self.backend.batch, self.backend.tokens
        a = self.machine.rotate(self._masked(a, self.backend.token_mask(token, factor)), token * batch)
        return self._window(a, tokens, -batch)

    @functools.cached_property
    def _valid_parts(self) -> Parts:
        """Parts with what is padded of their last axis set to zero: one level, only where there is, made once."""
        masks = self.backend.valid(self)
        if masks is None:
            return self.parts
        return as_parts(self.machine.map(lambda pair: self._masked(*pair), zip(self.parts, masks, strict=True)))

    # ---- attention ------------------------------------------------------------------------------------------

    def split_heads(self, heads: int) -> Self:
        b, s, d = self.shape
        if heads != self.backend.layout.heads or d % heads or len(self.parts) > 1:
            raise InputError(
                f"the dense layout has {self.backend.layout.heads} heads of one block of features, cannot split "
                f"{list(self.shape)} in {len(self.parts)} blocks into {heads}; make the backend for {heads} heads"
            )
        return type(self)(self.backend, self.parts, (b, heads, s, d // heads), offsets=self.offsets)

    def merge_heads(self) -> Self:
        b, h, s, d = self.shape
        return type(self)(self.backend, self.parts, (b, s, h * d), offsets=self.offsets)

    def per_key(self) -> Self:
        with self._op("per_key"):
            b, heads, s, _ = self.shape
            sums = self.backend.shifts(self, self.offsets, mixed=False)
            parts = sums.apply(self.machine, self.parts, self.level, self.machine.target, "a value per key")
            return self._made(self._diagonals(parts, (b, heads, s, s), self.offsets))

    def scores(self, k: Self) -> Self:
        with self._op("scores"):
            b, heads, s, _ = self.shape
            query = self.parts[0]

            def product(key: Cipher) -> Cipher:
                return self._sum_places(combined(self.machine, products=[(query, key)]))

            parts = self.machine.map(product, self._meet(k, k.offsets, mixed=False))
            return self._made(self._diagonals(parts, (b, heads, s, s), k.offsets))

    def mix(self, v: Self) -> Self:
        machine = self.machine
        with self._op("mix"):
            pairs = list(zip(self.parts, self._meet(v, self.offsets, mixed=True), strict=True))
            total = machine.unit(lambda: self._sum_offsets(combined(machine, products=pairs)))
            if v.shape[-1] > 1 and self.offsets > 1:
                mask, step = self.backend.offset_mask(self), self.backend.offset_step(self.shape)
                first = total
                total = machine.unit(lambda: self._window(self._masked(first, mask), self.offsets, -step))
            return self._made(type(self)(self.backend, as_parts([total]), v.shape, offsets=v.offsets))

    def _meet(self, x: Self, offsets: int, *, mixed: bool) -> list[Cipher]:
        """Every copy of x at its offset of tokens, in ciphertexts of so many; at a scale that makes products with the
        parts of this canonical.
        """
        parameters, own = self.machine.parameters, float(self.parts[0].scale)

        def scale(level: int) -> float:
            return parameters.scales[level - 1] ** 2 / own * parameters.primes[level]

        sums, level = self.backend.shifts(x, offsets, mixed=mixed), min(self.level + 1, x.level)
        return sums.apply(self.machine, x.parts, level, scale, "a shift of keys or values")

    def _diagonals(self, parts: Sequence[Cipher], shape: tuple[int, ...], offsets: int) -> Self:
        return type(self)(self.backend, as_parts(parts), shape, diagonals=True, offsets=offsets)
