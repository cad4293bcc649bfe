"""The batch layout: one ciphertext per feature, slot = token·B + query, so a whole batch moves together.

Tokens are padded to a power of two T with T·B = N/2; rotating by B slots then moves every query by one token,
cyclically and without masks. Sums over features are additions. Scores live as cyclic diagonals: the ciphertext for
offset r holds ``q_t·k_{t+r mod T}`` of every token t, so sums over keys are additions as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from secureattn.backends.ckks.layout import baby_steps, common_layout, common_parts
from secureattn.backends.ckks.machine import Cipher, Machine, OutOfLevels
from secureattn.errors import InputError
from secureattn.polynomial import Polynomial
from secureattn.tensor import Public, Tensor

if TYPE_CHECKING:
    from secureattn.backends.ckks.backend import CkksBackend

Parts = Any
"""An object array of Ciphers, ``[H or 1, features or offsets]``."""


class BatchTensor(Tensor):
    """``parts [H or 1, features or offsets]`` of ciphertexts behind a logical shape; a value with one token
    (``[B,1,D]``) is the same at every token of the layout.
    """

    backend: CkksBackend

    def __init__(self, backend: CkksBackend, parts: Parts, shape: tuple[int, ...], *, diagonals: bool = False) -> None:
        self.backend = backend
        self.parts = parts
        self.shape = shape
        self.diagonals = diagonals

    @property
    def level(self) -> int:
        """Rescales left in the lowest part."""
        return int(min(part.level for part in self.parts.flat))

    @property
    def machine(self) -> Machine:
        return self.backend.machine

    # ---- elementwise ----------------------------------------------------------------------------------------

    def __add__(self, other: Self | Public) -> Self:
        with self._op("add"):
            if isinstance(other, BatchTensor):
                return self._joined(self.machine.add, other)
            return self._made(self._plus(other))

    def __mul__(self, other: Self | Public) -> Self:
        machine = self.machine
        with self._op("multiply"):
            if isinstance(other, BatchTensor):
                return self._joined(lambda a, b: machine.finish(machine.sum_of_products([(a, b)])), other)
            return self._made(self._times(other))

    def __neg__(self) -> Self:
        with self._op("negate"):
            return self._made(self._map(self.machine.negate))

    def square(self) -> Self:
        return self.combine(products=[(self, self)])

    def combine(
        self,
        terms: Sequence[tuple[float, Self]] = (),
        products: Sequence[tuple[Self, Self]] = (),
        constant: float = 0.0,
    ) -> Self:
        tensors = [x for _, x in terms] + [x for pair in products for x in pair]
        with self._op("combine" if terms or len(products) > 1 else "square"):
            level = self.machine.require(min(x.level for x in tensors), "a sum of products")
            shape, diagonals = common_layout(tensors)
            wide: dict[int, Parts] = {id(x): np.broadcast_to(x.parts, common_parts(tensors)) for x in tensors}
            parts: Parts = np.empty(common_parts(tensors), dtype=object)
            for at in np.ndindex(*parts.shape):
                pairs = [(wide[id(a)][at], wide[id(b)][at]) for a, b in products]
                parts[at] = self._combine_at([(c, wide[id(x)][at]) for c, x in terms], pairs, constant, level)
            return self._made(parts, shape, diagonals=diagonals)

    def _combine_at(
        self, terms: list[tuple[float, Cipher]], pairs: list[tuple[Cipher, Cipher]], constant: float, level: int
    ) -> Cipher:
        """One part of ``combine``: everything at one level and one scale, then one rescale and one relinearisation."""
        machine = self.machine
        total = machine.sum_of_products(pairs, level) if pairs else None
        if terms:
            linear = machine.weighted_sum(terms, level, machine.target(level) if total is None else total.scale)
            total = linear if total is None else machine.add(total, linear)
        assert total is not None
        if constant:
            total = machine.add_public(total, constant)
        return machine.finish(total)

    def polynomial(self, p: Polynomial) -> Self:
        if p.depth > self.level:
            raise OutOfLevels(f"a polynomial of degree {p.degree}", p.depth, self.level).at(self.backend.recorder.path)
        return super().polynomial(p)

    def _plus(self, value: Public) -> Parts:
        """Public addends: one number a part where it is the same at every token."""

        def plus(a: Cipher, column: npt.NDArray[np.float64]) -> Cipher:
            if np.ptp(column) == 0:
                return self.machine.add_public(a, float(column[0])) if column[0] else a
            return self.machine.add_public(a, self.backend.token_slots(column))

        return self._by_column(plus, value)

    def _times(self, value: Public) -> Parts:
        def times(a: Cipher, column: npt.NDArray[np.float64]) -> Cipher:
            if np.ptp(column) == 0:
                return self.machine.times_constant(a, float(column[0]))
            return self.machine.times_vector(a, self.backend.token_slots(column))

        return self._by_column(times, value)

    def _by_column(self, f: Callable[[Cipher, npt.NDArray[np.float64]], Cipher], value: Public) -> Parts:
        columns = self.backend.columns(value, self.shape, diagonals=self.diagonals)
        columns = np.broadcast_to(columns, (*self.parts.shape, columns.shape[-1]))
        parts: Parts = np.empty(self.parts.shape, dtype=object)
        for at in np.ndindex(*self.parts.shape):
            parts[at] = f(self.parts[at], columns[at])
        return parts

    # ---- linear layers and sums -----------------------------------------------------------------------------

    def linear(self, weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64] | None = None) -> Self:
        machine = self.machine
        with self._op("linear"):
            if self.diagonals or weight.ndim != 2 or weight.shape[1] != self.shape[-1]:
                raise InputError(
                    f"linear needs features and a weight [Dout,Din], got {list(self.shape)} and {list(weight.shape)}"
                )
            level = machine.require(self.level, "a linear layer")
            parts: Parts = np.empty((len(self.parts), len(weight)), dtype=object)
            for h, j in np.ndindex(*parts.shape):
                terms = list(zip(weight[j].tolist(), self.parts[h], strict=True))
                parts[h, j] = machine.rescale(machine.weighted_sum(terms, level, machine.target(level)))
            out = self._new(parts, (*self.shape[:-1], len(weight)))
            return self._made(parts if bias is None else out._plus(bias), out.shape)

    def inner(self, other: Self) -> Self:
        machine = self.machine
        with self._op("inner"):
            shape, _ = common_layout([self, other])
            if self.parts.shape != other.parts.shape:
                raise InputError(f"inner needs equal widths, got {list(self.shape)} and {list(other.shape)}")
            parts: Parts = np.empty((self.parts.shape[0], 1), dtype=object)
            left = self._valid_parts
            right = left if self is other else other.parts
            for h in range(self.parts.shape[0]):
                parts[h, 0] = machine.finish(machine.sum_of_products(list(zip(left[h], right[h], strict=True))))
            return self._made(parts, (*shape[:-1], 1), diagonals=False)

    def sum(self, axis: int) -> Self:
        axis %= len(self.shape)
        with self._op("sum"):
            shape = tuple(1 if i == axis else n for i, n in enumerate(self.shape))
            if axis == len(self.shape) - 1:
                parts: Parts = np.empty((self.parts.shape[0], 1), dtype=object)
                for h, row in enumerate(self._valid_parts):
                    parts[h, 0] = functools.reduce(self.machine.add, row)
                return self._made(parts, shape, diagonals=False)
            if axis == len(self.shape) - 2 and not self.diagonals:
                return self._made(self._map(self._sum_tokens), shape)
            raise InputError(f"the batch layout has no sum over axis {axis} of {list(self.shape)}")

    def _sum_tokens(self, a: Cipher) -> Cipher:
        """The sum, at every token. Padded tokens are masked first."""
        if self.shape[-2] == 1:
            return a
        if self.backend.padded:
            a = self.machine.times_vector(a, self.backend.token_slots(np.ones(self.shape[-2]), padding=0.0))
        return self._spread(a)

    def _spread(self, a: Cipher) -> Cipher:
        """Rotate and add, log2 T times: every token then holds the sum of all."""
        step = self.backend.batch
        while step < self.machine.parameters.slots:
            a = self.machine.add(a, self.machine.rotate(a, step))
            step *= 2
        return a

    def take(self, axis: int, index: int | slice) -> Self:
        axis %= len(self.shape)
        if axis == len(self.shape) - 1 and not self.diagonals:
            part = slice(index, index + 1 or None) if isinstance(index, int) else index
            parts = self.parts[:, part]
            return self._new(parts, (*self.shape[:-1], parts.shape[1]))
        if axis == 1 and len(self.shape) == 3 and isinstance(index, int):
            with self._op("take"):
                where = np.zeros(self.shape[1])
                where[index] = 1.0
                slots = self.backend.token_slots(where, padding=0.0)
                chosen = self._new(self._map(lambda a: self.machine.times_vector(a, slots)), self.shape)
                return self._made(chosen._map(self._spread), (self.shape[0], 1, self.shape[2]))
        raise InputError(f"the batch layout cannot take {index} of axis {axis} of {list(self.shape)}")

    # ---- attention ------------------------------------------------------------------------------------------

    def split_heads(self, heads: int) -> Self:
        b, s, d = self.shape
        return self._new(self.parts.reshape(heads, d // heads), (b, heads, s, d // heads))

    def merge_heads(self) -> Self:
        b, h, s, d = self.shape
        return self._new(self.parts.reshape(1, h * d), (b, s, h * d))

    def per_key(self) -> Self:
        """Every cyclic diagonal of the row: ``rot_r`` for all offsets r; the logical shape is already broadcast."""
        with self._op("per_key"):
            b, heads, s, _ = self.shape
            rotated = [self._rotated(r)[:, 0] for r in range(self.backend.tokens)]
            return self._made(np.stack(rotated, axis=1), (b, heads, s, s), diagonals=True)

    def scores(self, k: Self) -> Self:
        """Offset r = i + g·baby: ``rot_{g·baby}( Σ_d rot_{−g·baby}(q_d) · rot_i(k_d) )``; relinearised once a sum."""
        machine, tokens = self.machine, self.backend.tokens
        heads, width = self.parts.shape
        baby = baby_steps(tokens, lambda b: ((b - 1) + (tokens // b - 1)) * heads * width + heads * (tokens - b))
        with self._op("scores"):
            level = machine.require(min(self.level, k.level), "a product")
            q, k = self._dropped(level), k._dropped(level)
            keys = [k._rotated(i) for i in range(baby)]
            parts: Parts = np.empty((heads, tokens), dtype=object)
            for giant in range(0, tokens, baby):
                queries = q._rotated(-giant)
                for i, h in np.ndindex(baby, heads):
                    total = machine.sum_of_products(list(zip(queries[h], keys[i][h], strict=True)))
                    parts[h, giant + i] = machine.rotate(machine.finish(total), giant * self.backend.batch)
            b, _, s, _ = self.shape
            return self._made(parts, (b, heads, s, s), diagonals=True)

    def mix(self, v: Self) -> Self:
        """``Σ_giant rot_giant( Σ_i rot_{−giant}(a_{giant+i}) · rot_i(v) )``; one rescale for all."""
        machine, tokens = self.machine, self.backend.tokens
        heads, width = v.parts.shape
        features = heads * width
        baby = baby_steps(tokens, lambda b: (b + 2 * (tokens // b) - 2) * features + heads * (tokens - b))
        with self._op("mix"):
            weights = self._valid_parts
            level = machine.require(min(weights[0, 0].level, v.level), "a product")
            low = v._dropped(level)
            values = [low._rotated(i) for i in range(baby)]
            parts: Parts = np.empty((heads, width), dtype=object)
            for h, giant in np.ndindex(heads, tokens // baby):
                shift = giant * baby
                row = [self._rotate_part(machine.dropped(weights[h, shift + i], level), -shift) for i in range(baby)]
                for d in range(width):
                    pairs = [(row[i], values[i][h, d]) for i in range(baby)]
                    inner = machine.relinearise(machine.sum_of_products(pairs, level))
                    inner = self._rotate_part(inner, shift)
                    parts[h, d] = inner if parts[h, d] is None else machine.add(parts[h, d], inner)
            for at in np.ndindex(heads, width):
                parts[at] = machine.rescale(parts[at])
            b, _, s, _ = self.shape
            return self._made(parts, (b, heads, s, width), diagonals=False)

    def _dropped(self, level: int) -> Self:
        """All parts at a level, before they are rotated: key switching costs the square of the primes left."""
        return self._new(self._map(lambda a: self.machine.dropped(a, level)), self.shape)

    def _rotated(self, tokens: int) -> Parts:
        return self._map(lambda a: self._rotate_part(a, tokens))

    def _rotate_part(self, a: Cipher, tokens: int) -> Cipher:
        return self.machine.rotate(a, tokens * self.backend.batch)

    @functools.cached_property
    def _valid_parts(self) -> Parts:
        """Parts with what belongs to padded keys set to zero: one level, only where there is padding, made once."""
        if not (self.diagonals and self.backend.padded):
            return self.parts
        tokens, keys = self.backend.tokens, self.shape[-1]
        parts: Parts = np.empty(self.parts.shape, dtype=object)
        for h, r in np.ndindex(*self.parts.shape):
            valid = (np.arange(tokens) + r) % tokens < keys
            parts[h, r] = self.machine.times_vector(self.parts[h, r], self.backend.token_slots(valid.astype(float)))
        return parts

    # ---- levels ---------------------------------------------------------------------------------------------

    def refresh(self, site: str) -> Self:
        parts = self.backend.refresh(site, self)
        return self if parts is None else self._new(parts, self.shape)

    # ---- inner ----------------------------------------------------------------------------------------------

    @contextmanager
    def _op(self, name: str) -> Iterator[None]:
        """An operation for the ledger; levels that run out are reported with the place."""
        recorder = self.backend.recorder
        with recorder.op(name):
            try:
                yield
            except OutOfLevels as error:
                raise error.at(recorder.path) from None

    def _made(self, parts: Parts, shape: tuple[int, ...] | None = None, *, diagonals: bool | None = None) -> Self:
        """The result of the operation now open."""
        kind = self.diagonals if diagonals is None else diagonals
        out = type(self)(self.backend, parts, self.shape if shape is None else shape, diagonals=kind)
        self.backend.recorder.levels(self.level, out.level)
        return out

    def _new(self, parts: Parts, shape: tuple[int, ...]) -> Self:
        return type(self)(self.backend, parts, shape, diagonals=self.diagonals)

    def _map(self, f: Callable[[Cipher], Cipher]) -> Parts:
        parts: Parts = np.empty(self.parts.shape, dtype=object)
        for at in np.ndindex(*self.parts.shape):
            parts[at] = f(self.parts[at])
        return parts

    def _joined(self, f: Callable[[Cipher, Cipher], Cipher], other: BatchTensor) -> Self:
        """Part by part, broadcasting."""
        shape, diagonals = common_layout([self, other])
        pair: Parts = np.broadcast_arrays(self.parts, other.parts)
        left, right = pair
        parts: Parts = np.empty(left.shape, dtype=object)
        for at in np.ndindex(*left.shape):
            parts[at] = f(left[at], right[at])
        return self._made(parts, shape, diagonals=diagonals)
