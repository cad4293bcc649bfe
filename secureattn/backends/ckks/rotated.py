"""Sums of rotated ciphertexts times public slots, by baby-step giant-step: what the dense layout moves values with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from secureattn.backends.ckks.cipher import Cipher, Slots, Vector
from secureattn.backends.ckks.machine import Machine

Term = tuple[int, int, int]
"""Output, input, index of the rotation."""
Baby = tuple[int, int]
"""Input, index of the rotation."""


class RotatedSums:
    """``y_o = Σ v_(o,i,l) ⊙ rot(x_i, step(l))`` for terms (o, i, l), with at least one for every output o.

    With ``step(g + i) = step(g) + step(i)`` for g a multiple of a power of two above i, every input is rotated by its
    baby steps i once for all outputs, and every output by its giant steps g, with the slots rotated back in advance.
    Key switches: steps but 0 of babies and giants; the width with the fewest is taken. A baby is made of the one
    without its lowest bit, and giants in turn (Horner), so that almost all rotations are by powers of two: few keys.
    """

    def __init__(self, terms: Mapping[Term, Slots], step: Callable[[int], int]) -> None:
        self.outputs = 1 + max(output for output, *_ in terms)
        self._step = step
        width = _fewest_key_switches(list(terms))
        self._giants: list[dict[int, list[tuple[Vector, Baby]]]] = [{} for _ in range(self.outputs)]
        for (output, source, index), slots in sorted(terms.items(), key=lambda term: term[0]):
            baby = index % width
            vector = Vector(np.roll(slots, step(index - baby)))
            self._giants[output].setdefault(index - baby, []).append((vector, (source, baby)))
        self._babies = _with_parents(baby for giants in self._giants for row in giants.values() for _, baby in row)

    def apply(
        self, machine: Machine, ciphers: Sequence[Cipher], level: int, scale: Callable[[int], float], what: str
    ) -> list[Cipher]:
        """The outputs from a level, one below; ``scale`` before the rescale, by the level that is begun at."""
        babies = self._rotated(machine, ciphers, level, what)

        def output(giants: Mapping[int, Sequence[tuple[Vector, Baby]]]) -> Cipher:
            start = machine.begin_at(level, what)

            def giant(steps: int) -> Cipher:
                terms = [(vector, babies[at]) for vector, at in giants[steps]]
                return machine.sum_of_vectors(terms, start, scale(start))

            sums = dict(zip(giants, machine.map(giant, giants), strict=True))
            ends = [sorted(g for g in giants if g >= 0), sorted((g for g in giants if g < 0), reverse=True)]
            return machine.rescale(functools.reduce(machine.add, [self._chained(machine, sums, e) for e in ends if e]))

        return machine.map(output, self._giants)

    def _rotated(self, machine: Machine, ciphers: Sequence[Cipher], level: int, what: str) -> dict[Baby, Cipher]:
        made: dict[Baby, Cipher] = {}

        def baby(at: Baby) -> Cipher:
            source, index = at
            start = machine.begin_at(level, what, 0)
            if not index:
                return machine.dropped(ciphers[source], start)
            parent = index & (index - 1)
            return machine.rotate(machine.dropped(made[source, parent], start), self._step(index - parent))

        for bits in sorted({index.bit_count() for _, index in self._babies}):
            wave = [at for at in self._babies if at[1].bit_count() == bits]
            made |= zip(wave, machine.map(baby, wave), strict=True)
        return made

    def _chained(self, machine: Machine, sums: Mapping[int, Cipher], giants: Sequence[int]) -> Cipher:
        """``Σ rot(sums[g], step(g))`` for giants on one side of 0, the nearest first."""
        total = sums[giants[-1]]
        for g, beyond in zip(reversed(giants[:-1]), reversed(giants[1:]), strict=True):
            total = machine.add(sums[g], machine.rotate(total, self._step(beyond) - self._step(g)))
        return machine.rotate(total, self._step(giants[0]))


def _with_parents(babies: Iterable[Baby]) -> list[Baby]:
    found: set[Baby] = set()
    for source, index in babies:
        found.add((source, 0))
        while index:
            found.add((source, index))
            index &= index - 1
    return sorted(found)


def _fewest_key_switches(terms: Sequence[Term]) -> int:
    def switches(width: int) -> int:
        babies = _with_parents((source, index % width) for _, source, index in terms)
        giants = {(output, index // width) for output, _, index in terms if index // width}
        return sum(index != 0 for _, index in babies) + len(giants)

    reach = max(abs(index) for *_, index in terms) + 1
    return min((1 << i for i in range(reach.bit_length() + 1)), key=switches)
