"""Primitive operations on ciphertexts with exact bookkeeping: levels, scales, counts.

The same code runs on SEAL and on a null device that computes nothing; so a plan counts exactly what a run does.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks.costs import primitive_s
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.errors import PlanError
from secureattn.events import Recorder

Slots = npt.NDArray[np.float64]
Item = TypeVar("Item")
_SAME_SCALE = 2.0**-40  # relative; the evaluator refuses to add what is further apart


@dataclass(frozen=True, slots=True)
class Cipher:
    """A ciphertext: rescales left, exact scale, number of polynomials, and the device's own data."""

    level: int
    scale: float
    size: int
    data: Any


@dataclass(frozen=True, eq=False)
class Vector:
    """Public slots that are multiplied with more than once: encoded the first time they meet a level and scale."""

    slots: Slots
    encoded: dict[tuple[int, float], Any] = field(default_factory=dict, repr=False)


class Device(Protocol):
    """What executes: SEAL's evaluator, or nothing at all."""

    def add(self, a: Any, b: Any) -> Any: ...
    def negate(self, ct: Any) -> Any: ...
    def add_constant(self, ct: Any, value: float) -> Any: ...
    def add_vector(self, ct: Any, slots: Slots) -> Any: ...
    def encode(self, value: Slots, level: int, scale: float) -> Any: ...
    def multiply_encoded(self, ct: Any, plain: Any, scale: float) -> Any: ...
    def multiply(self, a: Any, b: Any) -> Any: ...
    def square(self, ct: Any) -> Any: ...
    def multiply_constant(self, ct: Any, value: float, scale: float) -> Any: ...
    def multiply_vector(self, ct: Any, slots: Slots, scale: float) -> Any: ...
    def relinearize(self, ct: Any) -> Any: ...
    def rescale(self, ct: Any) -> Any: ...
    def rotate(self, ct: Any, steps: int) -> Any: ...
    def drop_to(self, ct: Any, level: int) -> Any: ...
    def rerandomise(self, ct: Any) -> Any: ...


class NullDevice:
    """Computes nothing: every ciphertext is None. The plan's device."""

    def __getattr__(self, operation: str) -> Callable[..., None]:
        return lambda *operands: None


class Machine:
    """Levels, scales and counts around a device. ``steps`` gathers the rotations used, for key generation."""

    def __init__(self, parameters: CkksParameters, device: Device, recorder: Recorder) -> None:
        self.parameters = parameters
        self.device = device
        self.recorder = recorder
        self.steps: set[int] = set()

    def map(self, compute: Callable[[Item], Cipher], items: Iterable[Item]) -> list[Cipher]:
        """``compute`` of every item: one ciphertext each, independent of each other."""
        return [compute(item) for item in items]

    # ---- sums -----------------------------------------------------------------------------------------------

    def add(self, a: Cipher, b: Cipher) -> Cipher:
        """a + b; brought to a common level and scale first, exactly."""
        a, b = self.matched(a, b)
        data = self._run("additions", a.level, lambda: self.device.add(a.data, b.data))
        return Cipher(a.level, a.scale, max(a.size, b.size), data)

    def negate(self, a: Cipher) -> Cipher:
        """−a."""
        return self._like(a, self._run("additions", a.level, lambda: self.device.negate(a.data)))

    def add_public(self, a: Cipher, value: float | Slots) -> Cipher:
        """a + value in every slot, or slot by slot."""
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
        used = [(c, a) for c, a in terms if abs(c) * (scale / a.scale) >= 0.5]
        if not used:
            one = self.weighted_sum([(1.0, terms[0][1])], level, scale)
            return self.add(one, self.negate(one))
        self.count("pt_products", level, len(used))
        self.count("additions", level, len(used) - 1)
        size = max(a.size for _, a in used)
        if isinstance(self.device, NullDevice):
            return Cipher(level, scale, size, None)
        start = time.perf_counter()
        total: Any = None
        for c, a in used:
            operand = a.data if a.level == level else self.device.drop_to(a.data, level)
            part = self.device.multiply_constant(operand, c, scale / a.scale)
            total = part if total is None else self.device.add(total, part)
        self._spent("pt_products", start)
        return Cipher(level, scale, size, total)

    def sum_of_vectors(self, terms: Sequence[tuple[Vector, Cipher]], level: int, scale: float) -> Cipher:
        """``Σ v_i ⊙ a_i`` slot by slot at a level and scale, not rescaled; each vector is encoded at the scale that
        hits it, once.
        """
        parts = []
        for vector, a in terms:
            operand, factor = self.dropped(a, level), scale / a.scale
            plain = self._encoded(vector, level, factor)
            multiply = functools.partial(self.device.multiply_encoded, operand.data, plain, factor)
            parts.append(Cipher(level, scale, operand.size, self._run("pt_products", level, multiply)))
        return functools.reduce(self.add, parts)

    def _encoded(self, vector: Vector, level: int, scale: float) -> Any:
        if (level, scale) not in vector.encoded:
            encode = functools.partial(self.device.encode, vector.slots, level, scale)
            vector.encoded[level, scale] = self._run("encodes", level, encode)
        return vector.encoded[level, scale]

    # ---- products -------------------------------------------------------------------------------------------

    def multiply(self, a: Cipher, b: Cipher, level: int) -> Cipher:
        """a·b at a level: of size 3, scale the product of both, neither relinearised nor rescaled."""
        x, y = self.dropped(a, level), self.dropped(b, level)
        if a is b:
            data = self._run("ct_products", level, lambda: self.device.square(x.data))
        else:
            data = self._run("ct_products", level, lambda: self.device.multiply(x.data, y.data))
        return Cipher(level, a.scale * b.scale, 3, data)

    def sum_of_products(self, pairs: Sequence[tuple[Cipher, Cipher]], level: int | None = None) -> Cipher:
        """``Σ a_j·b_j`` at a level (the lowest of all unless given), of size 3, neither relinearised nor rescaled."""
        if level is None:
            level = self.require(min(min(a.level, b.level) for a, b in pairs), "a product")
        return functools.reduce(self.add, (self.multiply(a, b, level) for a, b in self._matched_pairs(pairs, level)))

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
        self.count("encodes", level)
        data = self._run("pt_products", level, lambda: self.device.multiply_vector(a.data, slots, factor))
        return self.rescale(Cipher(level, a.scale * factor, a.size, data))

    def times_constant(self, a: Cipher, value: float) -> Cipher:
        """a times a number: whole numbers cost no level, others one."""
        if value == 0:
            return self.add(a, self.negate(a))
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
        data = self._run("rescales", level, lambda: self.device.rescale(a.data))
        return Cipher(level - 1, a.scale / self.parameters.primes[level], a.size, data)

    def relinearise(self, a: Cipher) -> Cipher:
        """Back to two polynomials."""
        if a.size == 2:
            return a
        data = self._run("relinearisations", a.level, lambda: self.device.relinearize(a.data))
        return Cipher(a.level, a.scale, 2, data)

    def finish(self, a: Cipher) -> Cipher:
        """Relinearise, then rescale: the end of a sum of products. The other way round is cheaper and far noisier, as
        the rounding of the third polynomial is multiplied by the square of the secret.
        """
        return self.rescale(self.relinearise(a))

    def dropped(self, a: Cipher, level: int) -> Cipher:
        """The same value and scale at a lower level."""
        if a.level == level:
            return a
        return Cipher(level, a.scale, a.size, self.device.drop_to(a.data, level))

    def matched(self, a: Cipher, b: Cipher) -> tuple[Cipher, Cipher]:
        """Both on one level and exact scale: the higher one is multiplied by 1 encoded so as to land on the lower."""
        if a.level < b.level:
            return a, self._landed(b, a.level, a.scale)
        if b.level < a.level:
            return self._landed(a, b.level, b.scale), b
        if abs(a.scale - b.scale) <= _SAME_SCALE * a.scale:
            return a, b
        level = self.require(a.level, "a sum of two scales") - 1
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
        return self._like(a, self._run("rotations", a.level, lambda: self.device.rotate(a.data, steps)))

    def rerandomised(self, a: Cipher) -> Cipher:
        """The same value under fresh randomness, for ciphertexts that leave the evaluator."""
        return self._like(a, self._run("additions", a.level, lambda: self.device.rerandomise(a.data)))

    # ---- counting -------------------------------------------------------------------------------------------

    def _like(self, a: Cipher, data: Any) -> Cipher:
        return Cipher(a.level, a.scale, a.size, data)

    def _run(self, name: str, level: int, compute: Callable[[], Any]) -> Any:
        if self.recorder.modelled:
            self.count(name, level)
            return compute()
        start = time.perf_counter()
        result = compute()
        self.recorder.primitive(name, seconds=time.perf_counter() - start)
        return result

    def count(self, name: str, level: int, times: int = 1) -> None:
        """Count without measuring; on a modelled recorder at the modelled cost."""
        seconds = 0.0
        if self.recorder.modelled:
            seconds = times * primitive_s(name, self.parameters.ring_degree, level + 1)
        self.recorder.primitive(name, times=times, seconds=seconds)

    def _spent(self, name: str, start: float) -> None:
        self.recorder.primitive(name, times=0, seconds=time.perf_counter() - start)


class OutOfLevels(PlanError):
    """An operation needs more levels than are left; ``at`` adds where."""

    def __init__(self, what: str, needed: int = 1, left: int = 0, region: str = "") -> None:
        self.what, self.needed, self.left, self.region = what, needed, left, region
        super().__init__(
            f"{what} needs {needed} level{'s' * (needed > 1)}, {left} remain{'s' * (left == 1)} at "
            f'{region or "the top level"}; use a lower degree, fewer layers, or refresh = "client"'
        )

    def at(self, region: str) -> OutOfLevels:
        """The same error with the region it happened in, unless it knows one already."""
        return self if self.region else OutOfLevels(self.what, self.needed, self.left, region)
