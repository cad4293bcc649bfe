"""The batch layout: one ciphertext per feature, slot = token·B + query, so a whole batch moves together.

Tokens are padded to a power of two T with T·B = N/2; rotating by B slots then moves every query by one token,
cyclically and without masks. Sums over features are additions. Scores live as cyclic diagonals: the ciphertext for
offset r holds ``q_t·k_{t+r mod T}`` of every token t, so sums over keys are additions as well.

What one block costs, with D features in H heads, F hidden ones, T tokens, and b baby steps, a power of two up to T with
the fewest key switches; P products and R sums with products of a polynomial, on 1 (norm), H (normaliser) or F (GELU)
ciphertexts:

=====================  =====  ================  ========  =========================  ========
operation              ct×ct  relinearisations  rescales  rotations                  ct×pt
=====================  =====  ================  ========  =========================  ========
linear Din → Dout      0      0                 Dout      0                          Din·Dout
inner (norm)           D      1                 1         0                          0
product with a column  D      D                 D         0                          0
scores                 T·D    H·T               H·T       (b + T/b − 2)·D + H·(T−b)  0
power 2^m of scores    m·H·T  m·H·T             m·H·T     0                          0
mix                    T·D    D·T/b             D         (b + T/b − 2)·D + H·(T−b)  0
sum over keys          0      0                 0         0                          0
sum over tokens of C   0      0                 0         C·log2 T                   0
polynomial             P      R                 sums      0                          terms
=====================  =====  ================  ========  =========================  ========

Adding values of two levels takes one ct×pt and one rescale for each ciphertext of the higher one. Rotating once what
keys and values are computed from, instead of both, would save rotations and no time: it lies a level higher, and a
rotation costs the square of the primes left.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from secureattn.backends.ckks.cipher import Cipher
from secureattn.backends.ckks.elementwise import CipherTensor, Parts, as_parts, combined, ids
from secureattn.backends.ckks.layout import baby_steps, common_layout
from secureattn.errors import InputError
from secureattn.tensor import Public

if TYPE_CHECKING:
    from secureattn.backends.ckks.backend import CkksBackend

Columns = npt.NDArray[np.float64]
Turned = list[list[Cipher]]
"""Rotated ciphertexts: ``[shift][ciphertext]``."""


class BatchTensor(CipherTensor):
    """``parts [H or 1, features or offsets]`` of ciphertexts behind a logical shape; a value with one token
    (``[B,1,D]``) is the same at every token of the layout.
    """

    backend: CkksBackend

    def __init__(self, backend: CkksBackend, parts: Parts, shape: tuple[int, ...], *, diagonals: bool = False) -> None:
        self.backend = backend
        self.parts = parts
        self.shape = shape
        self.diagonals = diagonals

    # ---- elementwise ----------------------------------------------------------------------------------------

    def _plus(self, value: Public) -> Parts:
        """Public addends: one number a part where it is the same at every token."""

        return self._by_column(lambda a, column: self._plus_column(self.machine.lowered(a), column), value)

    def _plus_column(self, a: Cipher, column: npt.NDArray[np.float64]) -> Cipher:
        """One number for each slot, for each token, or for all."""
        if self.backend.constant(column):
            return self.machine.add_public(a, float(column[0])) if column[0] else a
        return self.machine.add_public(a, self.backend.token_slots(column))

    def _times(self, value: Public) -> Parts:
        def times(a: Cipher, column: npt.NDArray[np.float64]) -> Cipher:
            if self.backend.constant(column):
                factor = float(column[0])
                return self.machine.times_constant(self.machine.lowered(a, 0 if factor.is_integer() else 1), factor)
            return self.machine.times_vector(self.machine.lowered(a, 1), self.backend.token_slots(column))

        return self._by_column(times, value)

    def _by_column(self, f: Callable[[Cipher, npt.NDArray[np.float64]], Cipher], value: Public) -> Parts:
        columns = self.backend.columns(value, self.shape, diagonals=self.diagonals)
        columns = np.broadcast_to(columns, (*self.parts.shape, columns.shape[-1]))
        places = list(np.ndindex(*self.parts.shape))

        def alike(at: tuple[int, ...]) -> object:
            constant = float(columns[at][0]) if self.backend.constant(columns[at]) else None
            kind = constant if constant is None or constant in (0, 1, 2) else constant.is_integer()
            return id(self.parts[at]), kind

        made = self.machine.map(lambda at: f(self.parts[at], columns[at]), places, alike=alike)
        return as_parts(made, self.parts.shape)

    # ---- linear layers and sums -----------------------------------------------------------------------------

    def linear(self, weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64] | None = None) -> Self:
        machine = self.machine
        with self._op("linear"):
            if self.diagonals or weight.ndim != 2 or weight.shape[1] != self.shape[-1]:
                raise InputError(
                    f"linear needs features and a weight [Dout,Din], got {list(self.shape)} and {list(weight.shape)}"
                )

            shape = (*self.shape[:-1], len(weight))
            columns = self.backend.columns(0.0 if bias is None else bias, shape, diagonals=False)
            columns = np.broadcast_to(columns, (len(self.parts), len(weight), columns.shape[-1]))

            def rows(of: Parts, addends: Columns, outputs: Sequence[int], level: int) -> list[Cipher]:
                some = slice(None) if len(outputs) == len(weight) else list(outputs)
                sums = deque(machine.weighted_sums(weight[some], of, level, machine.target(level)))
                made = (machine.rescale(sums.popleft()) for _ in outputs)  # none is held longer than need be
                return [self._plus_column(a, column) for a, column in zip(made, addends[some], strict=True)]

            outputs, what = range(len(weight)), "a linear layer"
            made = [
                machine.map_together(functools.partial(rows, head, addends), outputs, self.level, what)
                for head, addends in zip(self.parts, columns, strict=True)
            ]
            parts = as_parts([*itertools.chain(*made)], (len(made), len(weight)))
            return self._made(self._layout(parts, shape))

    def inner(self, other: Self) -> Self:
        machine = self.machine
        with self._op("inner"):
            shape, _ = common_layout([self, other])
            if self.parts.shape != other.parts.shape:
                raise InputError(f"inner needs equal widths, got {list(self.shape)} and {list(other.shape)}")
            left = self._valid_parts
            right = left if self is other else other.parts
            rows = list(zip(left, right, strict=True))
            parts = machine.map(
                lambda row: combined(machine, products=list(zip(*row, strict=True))),
                rows,
                alike=lambda row: (ids(row[0]), ids(row[1])),
            )
            return self._made(self._layout(as_parts(parts, (len(rows), 1)), (*shape[:-1], 1)))

    def sum(self, axis: int) -> Self:
        axis %= len(self.shape)
        with self._op("sum"):
            shape = tuple(1 if i == axis else n for i, n in enumerate(self.shape))
            if axis == len(self.shape) - 1:
                parts = self.machine.map(lambda row: functools.reduce(self._sum, row), self._valid_parts, alike=ids)
                return self._made(self._layout(as_parts(parts, (len(parts), 1)), shape))
            if axis == len(self.shape) - 2 and not self.diagonals:
                return self._made(self._layout(self._map(self._sum_tokens), shape))
            raise InputError(f"the batch layout has no sum over axis {axis} of {list(self.shape)}")

    def _sum_tokens(self, a: Cipher) -> Cipher:
        """The sum, at every token. Padded tokens are masked first."""
        if self.shape[-2] == 1:
            return self.machine.lowered(a)
        if not self.backend.padded:
            return self._spread(self.machine.lowered(a))
        valid = self.backend.token_slots(np.ones(self.shape[-2]), padding=0.0)
        return self._spread(self.machine.times_vector(self.machine.lowered(a, 1), valid))

    def _spread(self, a: Cipher) -> Cipher:
        """Rotate and add, log2 T times: every token then holds the sum of all."""
        step = self.backend.batch
        while step < self.machine.slots:
            a = self.machine.add(a, self.machine.rotate(a, step))
            step *= 2
        return a

    def take(self, axis: int, index: int | slice) -> Self:
        axis %= len(self.shape)
        if axis == len(self.shape) - 1 and not self.diagonals:
            part = slice(index, index + 1 or None) if isinstance(index, int) else index
            parts = self.parts[:, part]
            return self._layout(parts, (*self.shape[:-1], parts.shape[1]))
        if axis == 1 and len(self.shape) == 3 and isinstance(index, int):
            with self._op("take"):
                where = np.zeros(self.shape[1])
                where[index] = 1.0
                slots = self.backend.token_slots(where, padding=0.0)

                def at_every_token(a: Cipher) -> Cipher:
                    return self._spread(self.machine.times_vector(self.machine.lowered(a, 1), slots))

                return self._made(self._layout(self._map(at_every_token), (self.shape[0], 1, self.shape[2])))
        raise InputError(f"the batch layout cannot take {index} of axis {axis} of {list(self.shape)}")

    def join(self, others: Sequence[Self], axis: int) -> Self:
        """Features behind features, which takes nothing; tokens share ciphertexts and are not joined."""
        if axis % len(self.shape) != len(self.shape) - 1 or self.diagonals:
            return super().join(others, axis)
        parts = np.concatenate([x.parts for x in (self, *others)], axis=1)
        return self._layout(parts, (*self.shape[:-1], parts.shape[1]))

    # ---- attention ------------------------------------------------------------------------------------------

    def split_heads(self, heads: int) -> Self:
        b, s, d = self.shape
        return self._layout(self.parts.reshape(heads, d // heads), (b, heads, s, d // heads))

    def merge_heads(self) -> Self:
        b, h, s, d = self.shape
        return self._layout(self.parts.reshape(1, h * d), (b, s, h * d))

    def per_key(self) -> Self:
        """Every cyclic diagonal of the row: ``rot_r`` for all offsets r; the logical shape is already broadcast."""
        with self._op("per_key"):
            b, heads, s, _ = self.shape
            (rotated,) = self._rotations((self.parts[:, 0], range(self.backend.tokens)))
            parts = as_parts([*itertools.chain(*rotated)], (self.backend.tokens, heads)).T
            return self._made(self._layout(parts, (b, heads, s, s), diagonals=True))

    def scores(self, k: Self) -> Self:
        """Offset r = i + g·baby: ``rot_{g·baby}( Σ_d rot_{−g·baby}(q_d) · rot_i(k_d) )``; relinearised once a sum.

        One head at a time, so that no more than its rotations are held.
        """
        machine, tokens = self.machine, self.backend.tokens
        heads, width = self.parts.shape
        baby = baby_steps(tokens, lambda b: ((b - 1) + (tokens // b - 1)) * heads * width + heads * (tokens - b))
        with self._op("scores"):
            level = machine.require(min(self.level, k.level), "a product")
            parts: list[Cipher] = []
            for q_head, k_head in zip(self.parts, k.parts, strict=True):
                shifts = range(baby), range(0, -tokens, -baby)
                keys, queries = self._rotations((k_head, shifts[0]), (q_head, shifts[1]), level=level)

                def offset(r: int, keys: Turned = keys, queries: Turned = queries) -> Cipher:
                    pairs = list(zip(queries[r // baby], keys[r % baby], strict=True))
                    return self._rotate(combined(machine, products=pairs), r - r % baby)

                def alike(r: int, keys: Turned = keys, queries: Turned = queries) -> object:
                    return r - r % baby, ids(queries[r // baby]), ids(keys[r % baby])

                parts += machine.map(offset, range(tokens), alike=alike)
            b, _, s, _ = self.shape
            return self._made(self._layout(as_parts(parts, (heads, tokens)), (b, heads, s, s), diagonals=True))

    def mix(self, v: Self) -> Self:
        """``Σ_giant rot_giant( Σ_i rot_{−giant}(a_{giant+i}) · rot_i(v) )``; one rescale for all, a head at a time."""
        machine, tokens = self.machine, self.backend.tokens
        heads, width = v.parts.shape
        features = heads * width
        baby = baby_steps(tokens, lambda b: (b + 2 * (tokens // b) - 2) * features + heads * (tokens - b))
        with self._op("mix"):
            weights = self._valid_parts
            level = machine.require(min(weights[0, 0].level, v.level), "a product")
            parts: list[Cipher] = []
            for a_head, v_head in zip(weights, v.parts, strict=True):
                aligned = [([a], [r % baby - r]) for r, a in enumerate(a_head)]
                values, *rows = self._rotations((v_head, range(baby)), *aligned, level=level)
                turned = [row[0][0] for row in rows]

                def feature(d: int, values: Turned = values, turned: list[Cipher] = turned) -> Cipher:
                    at = machine.begin_at(level, "a product")
                    sums = []
                    for giant in range(0, tokens, baby):
                        pairs = [(turned[giant + i], values[i][d]) for i in range(baby)]
                        sums.append(self._rotate(machine.relinearise(machine.sum_of_products(pairs, at)), giant))
                    return machine.rescale(functools.reduce(machine.add, sums))

                def alike(d: int, values: Turned = values) -> object:
                    return ids(row[d] for row in values)

                parts += machine.map(feature, range(width), alike=alike)
            b, _, s, _ = self.shape
            return self._made(self._layout(as_parts(parts, (heads, width)), (b, heads, s, width)))

    def _rotations(self, *asked: tuple[Sequence[Cipher], Sequence[int]], level: int | None = None) -> list[Turned]:
        """Every ciphertext by every number of tokens, ``[shift][ciphertext]`` for each that is asked, all in one loop;
        on a level, to which they are dropped before: key switching costs the square of the primes left.
        """
        machine = self.machine
        flat = [
            (c if level is None else machine.dropped(c, level), shift)
            for ciphers, shifts in asked
            for shift in shifts
            for c in ciphers
        ]
        moved = machine.map(
            lambda pair: self._rotate(machine.lowered(pair[0]), pair[1]),
            [pair for pair in flat if pair[1]],
            alike=lambda pair: (pair[1], id(pair[0])),
        )
        made, still = iter(moved), iter([c for c, shift in flat if not shift])
        return [
            [[next(made) if shift else next(still) for _ in ciphers] for shift in shifts] for ciphers, shifts in asked
        ]

    def _rotate(self, a: Cipher, tokens: int) -> Cipher:
        return self.machine.rotate(a, tokens * self.backend.batch)

    @functools.cached_property
    def _valid_parts(self) -> Parts:
        """Parts with what belongs to padded keys set to zero: one level, only where there is padding, made once."""
        if not (self.diagonals and self.backend.padded):
            return self.parts
        tokens, keys = self.backend.tokens, self.shape[-1]

        def valid(at: tuple[int, ...]) -> Cipher:
            there = (np.arange(tokens) + at[1]) % tokens < keys
            slots = self.backend.token_slots(there.astype(float))
            return self.machine.times_vector(self.machine.lowered(self.parts[at], 1), slots)

        made = self.machine.map(valid, np.ndindex(*self.parts.shape), alike=lambda at: id(self.parts[at]))
        return as_parts(made, self.parts.shape)

    # ---- inner ----------------------------------------------------------------------------------------------

    def _layout(self, parts: Parts, shape: tuple[int, ...], *, diagonals: bool = False) -> Self:
        return type(self)(self.backend, parts, shape, diagonals=diagonals)

    def _new(self, parts: Parts) -> Self:
        return self._layout(parts, self.shape, diagonals=self.diagonals)

    def _of(self, parts: Parts, tensors: Sequence[Self]) -> Self:
        shape, diagonals = common_layout(tensors)
        return self._layout(parts, shape, diagonals=diagonals)
