"""Primitive operations on ciphertexts with exact bookkeeping: levels, scales, counts.

The same code runs on SEAL and on a null device that computes nothing; so a plan counts exactly what a run does.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks import gemm
from secureattn.backends.ckks.cipher import Cipher, NullDevice, OutOfLevels, Slots, Vector
from secureattn.backends.ckks.counting import Counting
from secureattn.backends.ckks.pools import Held

_SAME_SCALE = 2.0**-40  # relative; the evaluator refuses to add what is further apart


class Machine(Counting):
    """Levels, scales and counts around a device."""

    # ---- sums -----------------------------------------------------------------------------------------------

    def add(self, a: Cipher, b: Cipher, level: int | None = None) -> Cipher:
        """a + b at a level, the lower one's unless given; brought to it and to a common scale first, exactly."""
        a, b = self.matched(a, b, level)
        self._reads(a, b)
        size = max(a.size, b.size)
        data = self._run("additions", a.level, lambda: self.device.add(a.data, b.data), costs=size / 2)
        return self.made(a.level, a.scale, size, data)

    def negate(self, a: Cipher) -> Cipher:
        """−a."""
        self._reads(a)
        return self._like(a, self._run("additions", a.level, lambda: self.device.negate(a.data)))

    def add_public(self, a: Cipher, value: float | Slots) -> Cipher:
        """a + value in every slot, or slot by slot."""
        self._reads(a)
        if isinstance(value, np.ndarray):
            self.count("encodes", a.level)
            data = self._run("additions", a.level, lambda: self.device.add_vector(a.data, value))
        else:
            data = self._run("additions", a.level, lambda: self.device.add_constant(a.data, value))
        return self._like(a, data)

    def weighted_sum(self, terms: Sequence[tuple[float, Cipher]], level: int, scale: float) -> Cipher:
        """``Σ c_i·a_i`` at a level and scale, not rescaled: each constant is encoded at the scale that hits it.

        Constants that round to nothing are left out; an encryption of zero when all do.
        """
        for _, a in terms:  # what is left out too: the level of a sum is that of its lowest term
            self.uses(a, level)
        used = [(c, a) for c, a in terms if abs(c) * (scale / a.scale) >= 0.5]
        if not used:
            one = self.weighted_sum([(1.0, terms[0][1])], level, scale)
            return self.add(one, self.negate(one))
        self.count("pt_products", level, len(used))
        self.count("additions", level, len(used) - 1)
        size = max(a.size for _, a in used)
        if isinstance(self.device, NullDevice):
            return self.made(level, scale, size)
        start = time.perf_counter()
        total: Any = None
        for c, a in used:
            operand = a.data if a.level == level else self.device.drop_to(a.data, level)
            part = self.device.multiply_constant(operand, c, scale / a.scale)
            total = part if total is None else self.device.accumulate(total, part)
        self._spent("pt_products", start)
        return self.made(level, scale, size, total)

    def weighted_sums(
        self, weights: npt.NDArray[np.float64], inputs: Sequence[Cipher], level: int, scale: float
    ) -> list[Cipher]:
        """``weighted_sum`` for every row of ``weights [Dout,Din]``: scalar products, or BLAS on the residues where that
        is modelled to be faster. The results are the same.
        """
        factors = scale / np.array([a.scale for a in inputs])
        planned = isinstance(self.device, NullDevice)
        products, simple = _all_used(weights, factors) if planned else None, True
        if products is None:
            integers = _rounded(weights * factors)
            used = np.count_nonzero(integers, axis=1)
            products = int(used.sum())
            simple = used.all() and np.abs(integers).max(initial=0) < 2.0**62
        simple = simple and all(a.size == 2 for a in inputs)
        matrix_s = self._matrix_s(len(weights), len(inputs), level)
        scalar_s = self.modelled("pt_products", level, products) + self.modelled("additions", level, products)
        if not simple or scalar_s <= matrix_s:
            return [self.weighted_sum(list(zip(row.tolist(), inputs, strict=True)), level, scale) for row in weights]
        for a in inputs:
            self.uses(a, level)
        self.count("additions", level, products - len(weights), seconds=0.0)
        self.count("pt_products", level, products, seconds=matrix_s)
        if planned:
            return [self.made(level, scale) for _ in weights]
        start = time.perf_counter()
        rows = self.device.multiply_matrix(integers.astype(np.int64), [a.data for a in inputs], level, scale)
        self._spent("pt_products", start)
        return [self.made(level, scale, 2, row) for row in rows]

    def _matrix_s(self, outputs: int, inputs: int, level: int) -> float:
        products = outputs * gemm.gemm_products(self.parameters.primes[: level + 1], inputs)
        return self.costs.matrix_s(self.parameters.ring_degree, level + 1, inputs, outputs, products)

    def sum_of_vectors(self, terms: Sequence[tuple[Vector, Cipher]], level: int, scale: float) -> Cipher:
        """``Σ v_i ⊙ a_i`` slot by slot at a level and scale, not rescaled; each vector is encoded at the scale that
        hits it, once.
        """
        return self._total(self._times_encoded(vector, a, level, scale) for vector, a in terms)

    def _times_encoded(self, vector: Vector, a: Cipher, level: int, scale: float) -> Cipher:
        operand, factor = self.dropped(a, level), scale / a.scale
        self._reads(operand)
        plain = self._encoded(vector, level, factor)
        multiply = functools.partial(self.device.multiply_encoded, operand.data, plain, factor)
        return self.made(level, scale, operand.size, self._run("pt_products", level, multiply))

    def _total(self, parts: Iterable[Cipher]) -> Cipher:
        """The sum of ciphertexts that nobody else holds, all on one level and scale: written over the first."""
        rest = iter(parts)
        total = next(rest)
        for part in rest:
            add, size = functools.partial(self.device.accumulate, total.data, part.data), max(total.size, part.size)
            data = self._run("additions", total.level, add, costs=size / 2)
            total = Cipher(total.level, total.scale, size, total.data if data is None else data)
        return total

    def _encoded(self, vector: Vector, level: int, scale: float) -> Any:
        if (level, scale) not in vector.encoded:
            vector.encoded[level, scale] = self.encode(vector.slots, level, scale)
        return vector.encoded[level, scale]

    def encode(self, slots: Slots, level: int, scale: float) -> Any:
        """A public vector in the form it is multiplied in, to be kept."""
        encoded = self._run("encodes", level, lambda: self.device.encode(slots, level, scale))
        return encoded if self.pools is None else Held(self.pools, 16 * self.slots * (level + 1))

    # ---- products -------------------------------------------------------------------------------------------

    def multiply(self, a: Cipher, b: Cipher, level: int) -> Cipher:
        """a·b at a level: of size 3, scale the product of both, neither relinearised nor rescaled."""
        x, y = self.dropped(a, level), self.dropped(b, level)
        self._reads(x, y)
        if a is b:
            less = self.modelled("squares", level) / self.modelled("ct_products", level)
            data = self._run("ct_products", level, lambda: self.device.square(x.data), costs=less)
        else:
            data = self._run("ct_products", level, lambda: self.device.multiply(x.data, y.data))
        return self.made(level, a.scale * b.scale, 3, data)

    def sum_of_products(self, pairs: Sequence[tuple[Cipher, Cipher]], level: int | None = None) -> Cipher:
        """``Σ a_j·b_j`` at a level, of size 3, neither relinearised nor rescaled; to be rescaled in the unit now open,
        where no level is given.
        """
        if level is None:
            level = self.begin_at(min(min(a.level, b.level) for a, b in pairs), "a product")
        matched = self._matched_pairs(pairs, level)
        if isinstance(self.device, NullDevice):
            return self._planned_products(matched, level)
        return self._total(self.multiply(a, b, level) for a, b in matched)

    def _planned_products(self, pairs: Sequence[tuple[Cipher, Cipher]], level: int) -> Cipher:
        """What multiplying and adding up count and hold, all pairs at once: the most frequent step of a plan."""
        squares = 0
        for a, b in pairs:
            squares += a is b
            self.uses(a, level)
            self.uses(b, level)
        products = len(pairs) - squares
        if products:
            self.count("ct_products", level, products)
        if squares:
            self.count("ct_products", level, squares, seconds=self.modelled("squares", level, squares))
        total = self.made(level, pairs[0][0].scale * pairs[0][1].scale, 3)
        if len(pairs) > 1:
            self.made(level, total.scale, 3)  # held for a moment, beside the sum
            self.count(
                "additions", level, len(pairs) - 1, seconds=1.5 * self.modelled("additions", level, len(pairs) - 1)
            )
        return total

    def _matched_pairs(self, pairs: Sequence[tuple[Cipher, Cipher]], level: int) -> list[tuple[Cipher, Cipher]]:
        """Pairs whose products have one scale: an operand from a higher level lands on the scale that makes it so."""
        settled = [a.scale * b.scale for a, b in pairs if a.level == b.level == level]
        target = settled[0] if settled else pairs[0][0].scale * pairs[0][1].scale
        return [self._matched_pair(a, b, level, target) for a, b in pairs]

    def _matched_pair(self, a: Cipher, b: Cipher, level: int, target: float) -> tuple[Cipher, Cipher]:
        if abs(a.scale * b.scale - target) <= _SAME_SCALE * target:
            return a, b
        if a is b and a.level > level:
            landed = self._landed(a, level, math.sqrt(target))
            return landed, landed
        if b.level > level:
            return a, self._landed(b, level, target / a.scale)
        return (self._landed(a, level, target / b.scale), b) if a.level > level else (a, b)

    def times_vector(self, a: Cipher, slots: Slots) -> Cipher:
        """a times public values slot by slot, rescaled to the canonical scale one level down."""
        level = self.require(a.level, "a product with a public vector")
        factor = self.target(level) / a.scale
        self._reads(a)
        self.count("encodes", level)
        data = self._run("pt_products", level, lambda: self.device.multiply_vector(a.data, slots, factor))
        return self.rescale(self.made(level, a.scale * factor, a.size, data))

    def times_constant(self, a: Cipher, value: float) -> Cipher:
        """a times a number: whole numbers cost no level, others one."""
        if value == 0:
            return self.add(a, self.negate(a))
        if value == 1:
            return a
        self._reads(a)
        if float(value).is_integer():
            if value == 2:
                return self._like(a, self._run("additions", a.level, lambda: self.device.add(a.data, a.data)))
            data = self._run("pt_products", a.level, lambda: self.device.multiply_constant(a.data, value, 1.0))
            return self._like(a, data)
        level = self.require(a.level, "a product with a constant")
        return self.rescale(self.weighted_sum([(value, a)], level, self.target(level)))

    # ---- level and scale ------------------------------------------------------------------------------------

    def target(self, level: int) -> float:
        """The scale before a rescale from ``level`` that makes it canonical below: ``scale[l−1]·q_l``."""
        return self.parameters.scales[level - 1] * self.parameters.primes[level]

    def require(self, level: int, what: str) -> int:
        """The level, which must be at least 1."""
        if level < 1:
            raise OutOfLevels(what)
        return level

    def rescale(self, a: Cipher) -> Cipher:
        """One level down; the scale is divided by the prime dropped."""
        level = self.require(a.level, "a rescale")
        self._reads(a)
        data = self._run("rescales", level, lambda: self.device.rescale(a.data))
        return self.made(level - 1, a.scale / self.parameters.primes[level], a.size, data)

    def relinearise(self, a: Cipher) -> Cipher:
        """Back to two polynomials."""
        if a.size == 2:
            return a
        self._reads(a)
        data = self._run("relinearisations", a.level, lambda: self.device.relinearize(a.data))
        return self.made(a.level, a.scale, 2, data)

    def finish(self, a: Cipher) -> Cipher:
        """Relinearise, then rescale: the end of a sum of products. The other way round is cheaper and far noisier, as
        the rounding of the third polynomial is multiplied by the square of the secret.
        """
        return self.rescale(self.relinearise(a))

    def dropped(self, a: Cipher, level: int) -> Cipher:
        """The same value and scale at a lower level."""
        if a.level == level:
            return a
        self.uses(a, level)
        data = None if self.pools else self.device.drop_to(a.data, level)
        return self.made(level, a.scale, a.size, data)

    def lowered(self, a: Cipher, depth: int = 0) -> Cipher:
        """The same value, no higher than needed for the result of the unit now open, which is ``depth`` lower."""
        return self.dropped(a, self.place.start(a.level, depth))

    def matched(self, a: Cipher, b: Cipher, level: int | None = None) -> tuple[Cipher, Cipher]:
        """Both on one level, the lower one's unless given, and exact scale: the higher one is multiplied by 1 encoded
        so as to land on the other.
        """
        level = min(a.level, b.level) if level is None else level
        if abs(a.scale - b.scale) <= _SAME_SCALE * a.scale:
            return self.dropped(a, level), self.dropped(b, level)
        if a.level > level:
            return self._landed(a, level, b.scale), self.dropped(b, level)
        if b.level > level:
            return self.dropped(a, level), self._landed(b, level, a.scale)
        level = self.require(level, "a sum of two scales") - 1
        canonical = self.parameters.scales[level]
        return self._landed(a, level, canonical), self._landed(b, level, canonical)

    def _landed(self, a: Cipher, level: int, scale: float) -> Cipher:
        if abs(a.scale - scale) <= _SAME_SCALE * scale:
            return self.dropped(a, level)
        total = self.weighted_sum([(1.0, a)], level + 1, scale * self.parameters.primes[level + 1])
        return self.rescale(total)

    # ---- rotations and results ------------------------------------------------------------------------------

    def rotate(self, a: Cipher, steps: int) -> Cipher:
        """Slots moved left by ``steps``."""
        steps %= self.parameters.slots
        if steps == 0:
            return a
        self.steps.add(steps)
        self._reads(a)
        return self._like(a, self._run("rotations", a.level, lambda: self.device.rotate(a.data, steps)))

    def shifted(self, a: Cipher, places: int) -> Cipher:
        """a·X^places: coefficients moved up, without a level or noise."""
        if places == 0:
            return a
        self._reads(a)
        return self._like(a, self._run("pt_products", a.level, lambda: self.device.shift(a.data, places)))

    def rerandomised(self, a: Cipher) -> Cipher:
        """The same value under fresh randomness, for ciphertexts that leave the evaluator."""
        self._reads(a)
        more = self.modelled("encryptions", a.level) / self.modelled("additions", a.level)
        return self._like(a, self._run("additions", a.level, lambda: self.device.rerandomise(a.data), costs=more))


def _rounded(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Whole numbers; halves go away from zero, as SEAL rounds."""
    sizes = np.abs(x)
    whole = np.floor(sizes)
    rounded: npt.NDArray[np.float64] = np.copysign(whole + (sizes - whole >= 0.5), x)
    return rounded


def _all_used(weights: npt.NDArray[np.float64], factors: npt.NDArray[np.float64]) -> int | None:
    """How many products a matrix takes if none of its numbers rounds to nothing or is too large for BLAS; None where
    that is not seen from the least and the largest.
    """
    sizes = np.abs(weights)
    least, most = sizes.min(initial=np.inf) * factors.min(), sizes.max(initial=0.0) * factors.max()
    return weights.size if least >= 0.5 and most < 2.0**62 - 1 else None
