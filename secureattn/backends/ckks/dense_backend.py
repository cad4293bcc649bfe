"""The CKKS engine in the dense layout: the evaluator's side of a run for one query, or a few."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from secureattn.backends.ckks.cipher import Cipher, NullDevice, Slots, Vector
from secureattn.backends.ckks.dense import DenseTensor
from secureattn.backends.ckks.dense_layout import Array, DenseLayout, Shape, power_of_two
from secureattn.backends.ckks.elementwise import as_parts
from secureattn.backends.ckks.evaluating import Evaluating, Refresher
from secureattn.backends.ckks.machine import Machine
from secureattn.backends.ckks.roles import MaskedRefresh
from secureattn.backends.ckks.rotated import RotatedSums, Term
from secureattn.errors import InputError
from secureattn.events import Recorder
from secureattn.tensor import Public

Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class DenseWeight:
    """A parameter, in the clear at the evaluator, and what was made of it for the layouts that it met."""

    array: Array
    prepared: dict[Any, Any] = field(default_factory=dict, repr=False)


class DenseBackend(Evaluating):
    """Runs a program on ciphertexts in the dense layout.

    ``tokens`` S of a query; ``features``, the largest width of the program; ``heads``, of all its attention; ``width``,
    what three times as many outputs are queries, keys and values of, anything unless given;
    ``queries`` that should share a ciphertext, as far as they fit: ``batch``, a power of two, do. ``schedule`` names
    the refresh points that are used; ``refresher`` serves them. PlanError where one query does not fit.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        tokens: int,
        features: int,
        heads: int = 1,
        queries: int = 1,
        width: int | None = None,
        schedule: Collection[str] = (),
        refresher: Refresher | None = None,
    ) -> None:
        super().__init__(machine, schedule, refresher)
        self.features = features
        self.width = width
        single = DenseLayout(machine.parameters.slots, tokens, heads)
        _, most, _ = single.axes((1, tokens, features))
        self.layout = DenseLayout(machine.parameters.slots, tokens, heads, min(most, power_of_two(queries)))
        self.tokens, self.batch = self.layout.tokens, self.layout.batch
        self._prepared: dict[Any, Any] = {}

    def weight(self, array: Any) -> DenseWeight:
        """A parameter, in the clear at the evaluator; its slots are laid out when first used, and kept."""
        return DenseWeight(np.asarray(array, dtype=np.float64))

    def matrix(self, array: Any) -> DenseWeight:
        """The same."""
        return self.weight(array)

    def tensor(self, ciphers: Sequence[Cipher], shape: Shape) -> DenseTensor:
        """Encrypted input ``[B,S,W]``, as ``DenseLayout.pack`` lays it out: where a program begins."""
        return DenseTensor(self, as_parts(self.begin(ciphers)), shape)

    def results(self, output: DenseTensor) -> list[Cipher]:
        """What leaves the evaluator: every part, under fresh randomness."""
        return self.rerandomised(list(output.parts))

    def prepare(self, program: Callable[[DenseTensor], DenseTensor], shape: Shape) -> None:
        """Run a program on no data, so that what it multiplies with is encoded before a query comes."""
        machine, refresher, points = self.machine, self.refresher, dict(self.refresh_points)
        parameters = machine.parameters
        with self.recorder.phase("setup"), self.recorder.op("encode"):
            self.machine = Machine(parameters, _Rehearsal(machine), Recorder(), ceilings=machine.place.ceilings)
            self.recorder = self.machine.recorder
            self.refresher = MaskedRefresh(self.machine, None)
            try:
                with self.recorder.phase("online"):
                    program(self.tensor([self.machine.made(parameters.levels, parameters.scales[-1])], shape))
            finally:
                self.machine, self.recorder, self.refresher = machine, machine.recorder, refresher
                self.refresh_points = points

    # ---- public slots ---------------------------------------------------------------------------------------

    def public(self, value: Public | DenseWeight, x: DenseTensor) -> list[Array]:
        """The slots of a public value that meets x, by part."""
        array = value.array if isinstance(value, DenseWeight) else np.asarray(value, dtype=np.float64)
        if array.ndim == 0:
            return [np.full(self.layout.slots, float(array))] * len(x.parts)
        try:
            array = np.broadcast_to(array, (1, *x.shape[1:]))[0]
        except ValueError:
            raise InputError(
                f"a public value of shape {list(array.shape)} does not fit {list(x.shape)}; it must be the same for "
                "every query of a batch"
            ) from None
        if x.diagonals:
            return [self.layout.scores(array, x.offsets, part) for part in range(len(x.parts))]
        return [self.layout.features(block, x.block) for block in np.split(array, len(x.parts), axis=-1)]

    def factors(self, value: Public | DenseWeight, x: DenseTensor) -> list[Vector]:
        """The same as factors; those of a weight are kept."""

        def made() -> list[Vector]:
            return [Vector(slots) for slots in self.public(value, x)]

        if not isinstance(value, DenseWeight):
            return made()
        return _kept(value.prepared, (x.shape[1:], len(x.parts), x.diagonals, x.offsets), made)

    def valid(self, x: DenseTensor) -> list[Vector] | None:
        """1 where the last axis of x is, 0 where it is padded; None where it is not."""
        if x.shape[-1] == 1:
            return None
        if x.diagonals:
            complete = self.tokens == x.shape[-1]
            step = self.offset_step(x.shape) // self.layout.block

            def made() -> list[Array]:
                keys = [self.layout.keys(x.offsets, part)[:, None] < x.shape[-1] for part in range(len(x.parts))]
                return [self.layout.fill(np.repeat(valid, step, axis=1)) for valid in keys]
        else:
            complete = bool(self.layout.real(x.block).all())

            def made() -> list[Array]:
                return [self.layout.there(x.block)] * len(x.parts)

        if complete:
            return None
        key = ("valid", x.shape[1:], x.diagonals, x.offsets, len(x.parts))
        return self._kept(key, lambda: [Vector(slots) for slots in made()])

    def token_mask(self, token: int, factor: float) -> Vector:
        """A factor at one token of the layout, 0 at all others."""
        return self._kept(
            ("token", token, factor),
            lambda: Vector(self.layout.fill(np.where(np.arange(self.tokens) == token, factor, 0))),
        )

    def offset_mask(self, x: DenseTensor) -> Vector:
        """1 in the copies of scores x whose offset is the first of their ciphertext."""
        step = self.offset_step(x.shape) // self.batch

        def made() -> Vector:
            return Vector(self.layout.fill(np.repeat(np.arange(x.offsets) == 0, step)))

        return self._kept(("offset", x.offsets, step), made)

    def offset_step(self, shape: Shape) -> int:
        """Slots between two copies of scores ``[B,H,S,S]``."""
        return power_of_two(shape[1]) * self.layout.block

    # ---- rotations ------------------------------------------------------------------------------------------

    def linear_sums(self, weight: DenseWeight, x: DenseTensor) -> RotatedSums:
        """A linear layer of x, by blocks of its outputs; one output is left to be summed over all places."""
        return _kept(weight.prepared, (x.shape[1:], len(x.parts)), lambda: self._linear_sums(weight.array, x))

    def _linear_sums(self, array: Array, x: DenseTensor) -> RotatedSums:
        layout, heads = self.layout, x.shape[1] if len(x.shape) == 4 else 1
        step = functools.partial(layout.feature_step, x.block)
        terms: dict[Term, Array] = {}
        sources = np.split(array, len(x.parts), axis=1)
        if len(array) == 1:
            for source, row in enumerate(sources):
                values = np.broadcast_to(row[0], x.block[1:])
                terms[0, source, 0] = layout.features(values, x.block) * layout.there(x.block)
            return RotatedSums(terms, step)
        blocks = self._blocks(x.shape, len(array))
        target = (*x.shape[:-1], len(array) // blocks)
        for source, columns in enumerate(sources):
            for output, matrix in enumerate(np.split(columns, blocks, axis=0)):
                every_head = np.kron(np.eye(heads), matrix).astype(np.float64)
                found = layout.matrix(every_head, x.block, target)
                terms |= {(output, source, index): slots for index, slots in found.items()}
        for output in set(range(blocks)) - {output for output, *_ in terms}:
            terms[output, 0, 0] = np.zeros(layout.slots)  # without any weight it is still a ciphertext
        return RotatedSums(terms, step)

    def _blocks(self, shape: Shape, outputs: int) -> int:
        """Ciphertexts of a linear layer's outputs: queries, keys and values, and what is too wide, come apart."""
        triple = outputs == 3 * shape[-1] and self.width in (None, shape[-1])
        if len(shape) == 3 and outputs % shape[-1] == 0 and (triple or outputs > self.features):
            return outputs // shape[-1]
        return 1

    def shifts(self, x: DenseTensor, offsets: int, *, mixed: bool) -> RotatedSums:
        """Copies of x shifted by offsets of tokens; to be mixed, without padded keys."""

        def made() -> RotatedSums:
            terms: dict[Term, Array] = {}
            for part in range(self.tokens // offsets):
                masks = self.layout.shifts(x.block, offsets, part, mixed=mixed)
                terms |= {(part, 0, tokens): slots for tokens, slots in masks.items()}
            return RotatedSums(terms, functools.partial(operator.mul, self.batch))

        return self._kept(("shifts", x.shape[1:], offsets, mixed), made)

    def _kept(self, key: Any, make: Callable[[], Made]) -> Made:
        return _kept(self._prepared, key, make)


class _Rehearsal(NullDevice):
    """Computes nothing but what is encoded to be kept."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def encode(self, slots: Slots, level: int, scale: float) -> Any:
        return self._machine.encode(slots, level, scale)


def _kept(store: dict[Any, Any], key: Any, make: Callable[[], Made]) -> Made:
    if key not in store:
        store[key] = make()
    made: Made = store[key]
    return made
