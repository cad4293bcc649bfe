"""Where values lie in the dense layout: all tokens and features of a few queries in one ciphertext.

A feature of ``[B,S,W]`` or ``[B,H,S,W]`` is a pair of a head h and a place d in it (one head where W does not divide
into heads). Slot = ``(((d·R + c)·H + h)·T + t)·B + b`` for place d, copy c, head h, token t and query b, with places,
heads and tokens padded to powers of two and R copies filling the slots. A tensor of features is the same in every
copy; scores hold the key at offset ``r = c mod n`` (plus n for every ciphertext before) of query token t in copy c,
``n = min(T, R)``. What is padded repeats the last head, place or token: whatever else it held would leave the domains
that approximations were made for, and a ciphertext where one slot overflows is lost as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secureattn.errors import InputError, PlanError

Array = npt.NDArray[np.float64]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class DenseLayout:
    """``slots`` of a ciphertext, ``sequence`` tokens S of a query, ``heads`` that widths divide into, ``batch`` B
    queries, a power of two.
    """

    slots: int
    sequence: int
    heads: int = 1
    batch: int = 1

    @property
    def tokens(self) -> int:
        """T: tokens, padded."""
        return power_of_two(self.sequence)

    @property
    def block(self) -> int:
        """Slots of one feature in one copy, T·B."""
        return self.tokens * self.batch

    def split(self, shape: Shape) -> tuple[int, int]:
        """Heads and places of ``[B,S,W]`` or ``[B,H,S,W]``."""
        if len(shape) == 4:
            return shape[1], shape[3]
        width = shape[-1]
        return (self.heads, width // self.heads) if width % self.heads == 0 else (1, width)

    def axes(self, shape: Shape) -> tuple[int, int, int]:
        """Places, copies and heads, padded: ``d·c·h·T·B`` slots; PlanError where they are too many."""
        heads, width = (power_of_two(n) for n in self.split(shape))
        copies = self.slots // (width * heads * self.block)
        if not copies:
            raise PlanError(
                f"the dense layout needs {width * heads * self.block} slots for {self.batch} × {self.sequence} tokens "
                f"of {shape[-1] if len(shape) == 3 else shape[1] * shape[3]} features, a ciphertext has {self.slots}; "
                "use the batch layout, or a larger ring"
            )
        return width, copies, heads

    def offsets(self, shape: Shape) -> int:
        """n: offsets of scores that one ciphertext holds beside so many features."""
        return min(self.tokens, self.axes(shape)[1])

    def real(self, shape: Shape) -> npt.NDArray[np.bool_]:
        """``[d,h]``: what a sum over features adds up; of single heads it leaves none out."""
        width, _, heads = self.axes(shape)
        true_heads, true_width = self.split(shape)
        there = heads if len(shape) == 4 else true_heads
        return (np.arange(width) < true_width)[:, None] & (np.arange(heads) < there)

    def there(self, shape: Shape) -> Array:
        """``real`` as slots."""
        places, copies, heads = self.axes(shape)
        real = self.real(shape)[:, None, :, None]
        return self.fill(np.broadcast_to(real, (places, copies, heads, self.tokens)))

    # ---- slots ----------------------------------------------------------------------------------------------

    def fill(self, values: npt.NDArray[np.generic]) -> Array:
        """``[…,h,T]`` → slots: the same for every query, repeated until the slots are full."""
        period = np.repeat(np.ravel(values).astype(np.float64), self.batch)
        return np.tile(period, self.slots // period.size)

    def features(self, array: Array, shape: Shape) -> Array:
        """Public ``[S,W]`` or ``[H,S,W]`` → slots."""
        heads, width = self.split(shape)
        places, copies, padded_heads = self.axes(shape)
        by_head = array if len(shape) == 4 else array.reshape(-1, heads, width).transpose(1, 0, 2)
        padded = zip(by_head.shape, (padded_heads, self.tokens, places), strict=True)
        values = by_head[np.ix_(*(np.minimum(np.arange(n), m - 1) for m, n in padded))].transpose(2, 0, 1)
        return self.fill(np.broadcast_to(values[:, None], (places, copies, padded_heads, self.tokens)))

    def scores(self, array: Array, offsets: int, part: int) -> Array:
        """Public ``[H,S,S]`` → slots of one ciphertext of scores."""
        heads = np.minimum(np.arange(power_of_two(len(array))), len(array) - 1)
        keys = np.minimum(self.keys(offsets, part), array.shape[-1] - 1)
        queries = np.minimum(np.arange(self.tokens), array.shape[-2] - 1)
        return self.fill(array[heads[:, None], queries, keys[:, None]])

    def keys(self, offsets: int, part: int) -> npt.NDArray[np.int64]:
        """``[n,T]``: the key that offset and query token meet at."""
        reach = np.arange(offsets, dtype=np.int64) + part * offsets
        return (reach[:, None] + np.arange(self.tokens)) % self.tokens

    # ---- rotations ------------------------------------------------------------------------------------------

    def feature_step(self, shape: Shape, index: int) -> int:
        """Slots between a feature and the one ``index = d·H + h`` further on; the places are cyclic."""
        _, copies, heads = self.axes(shape)
        return ((index // heads) * copies * heads + index % heads) * self.block

    def matrix(self, matrix: Array, source: Shape, target: Shape) -> dict[int, Array]:
        """``y = M·x`` as ``Σ_l v_l ⊙ rot(x, feature_step(l))``: l → slots, without vectors that are zero.

        ``matrix [Dout,Din]`` is of all heads. As copies are the same, each of the d·h rotations shows every block of
        slots another feature, whatever it is carried over; so every feature is met once.
        """
        extended = np.pad(matrix, ((0, 0), (0, 1)))
        inputs, outputs = self._index(source, padding=-1), self._index(target)
        found = {}
        for index in range(int(np.prod(self.axes(source)[::2]))):
            seen = np.roll(inputs, -self.feature_step(source, index) // self.block)
            values = extended[outputs, seen]
            if values.any():
                found[index] = np.repeat(values, self.block)
        return found

    def _index(self, shape: Shape, padding: int | None = None) -> npt.NDArray[np.int64]:
        """By block of slots: the feature it holds, counted head by head; what is padded may hold none."""
        places, copies, padded_heads = self.axes(shape)
        heads, width = self.split(shape)
        d, h = np.arange(places)[:, None], np.arange(padded_heads)
        index = np.minimum(h, heads - 1) * width + np.minimum(d, width - 1)
        if padding is not None:
            index = np.where((d < width) & (h < heads), index, padding)
        return np.ravel(np.broadcast_to(index[:, None], (places, copies, padded_heads)))

    def shifts(self, shape: Shape, offsets: int, part: int, *, mixed: bool) -> dict[int, Array]:
        """Copy c shifted by its offset of tokens, as ``Σ_s v_s ⊙ rot(x, s·B)``: s → slots.

        What the sum that follows leaves out is zero: padded places or, to be mixed, padded keys. A token carried over
        the end of its block lies in the next head: then s − T serves. With one head it lies in the next copy, which is
        the same, so either serves but at the first and last copy, and T rotations do instead of 2T − 1.
        """
        _, copies, heads = self.axes(shape)
        keys = self.keys(offsets, part)
        reach = np.arange(offsets)[:, None] + part * offsets
        forward = reach + np.arange(self.tokens) < self.tokens
        if heads == 1 and offsets > 1:
            forward = np.broadcast_to(np.arange(offsets)[:, None] < offsets // 2, keys.shape)
        steps = np.where(forward, reach, reach - self.tokens)
        valid = keys < self.sequence if mixed else np.ones(keys.shape, dtype=np.bool_)
        real = (self.real(shape) | mixed)[:, None, :, None]
        found = {}
        for step in np.unique(steps[valid]):
            mask = np.tile(valid & (steps == step), (copies // offsets, 1))[:, None]
            found[int(step)] = self.fill(real & mask)
        return found


def power_of_two(n: int) -> int:
    """The least that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def dense_pack(inputs: Array, layout: DenseLayout) -> list[Array]:
    """``[B,S,W]`` → slots of the one ciphertext that holds them; missing queries repeat the first one."""
    queries, tokens, _ = inputs.shape
    if queries > layout.batch or tokens != layout.sequence:
        raise InputError(
            f"a ciphertext holds {layout.batch} queries of {layout.sequence} tokens, got {queries} of {tokens}; split "
            "them, or plan for them"
        )
    single = DenseLayout(layout.slots // layout.batch, layout.sequence, layout.heads)
    by_query = [single.features(x, inputs.shape) for x in inputs]
    by_query += by_query[:1] * (layout.batch - queries)
    return [np.ascontiguousarray(np.stack(by_query, axis=-1).reshape(-1))]


def dense_unpack(slots: Sequence[Array], shape: Shape, layout: DenseLayout) -> Array:
    """Slots of the ciphertexts of a tensor → its value ``[B,S,W]`` or ``[B,H,S,W]``."""
    block = (*shape[:-1], shape[-1] // len(slots))
    places, copies, padded_heads = layout.axes(block)
    heads, width = layout.split(block)
    parts = []
    for part in slots:
        values = part.reshape(places, copies, padded_heads, layout.tokens, layout.batch)
        by_query = values[:width, 0, :heads, : shape[-2], : shape[0]].transpose(3, 1, 2, 0)  # [B,H,S,W]
        if len(shape) == 3:
            by_query = by_query.transpose(0, 2, 1, 3).reshape(block)
        parts.append(by_query)
    return np.concatenate(parts, axis=-1)
