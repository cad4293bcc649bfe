"""The evaluator's side: operations on ciphertexts with public keys only, and its half of the masked refresh."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks import gemm
from secureattn.backends.ckks import residues as ring
from secureattn.backends.ckks.keys import EvaluationKeys, galois_element
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.backends.ckks.seal import Ciphertext, Ring, Slots, sealapi
from secureattn.errors import EngineError, InputError, PlanError

SCALE_TOLERANCE = 2.0**-40
"""Scales closer than this (relative) count as equal: far below the noise of any ciphertext."""


@dataclass(frozen=True)
class Mask:
    """The evaluator's secret for one refresh in flight: never sent, used once."""

    element: ring.WideIntegers = field(repr=False)
    scale: float
    level: int


class SealEvaluator:
    """The server: computes on ciphertexts with evaluation keys, and holds no secret.

    Every method returns a new ciphertext and leaves its arguments alone. A ciphertext at level l has l rescales left.
    PlanError where levels or a planned rotation are missing.
    """

    def __init__(self, parameters: CkksParameters, evaluation_keys: EvaluationKeys) -> None:
        if evaluation_keys.parameters != parameters:
            raise EngineError("evaluation keys were made for other parameters; generate keys for these")
        self.parameters = parameters
        self._keys = evaluation_keys
        self._ring = Ring(parameters)
        self._evaluator = self._ring.evaluator
        self._encryptor = sealapi.Encryptor(self._ring.context, evaluation_keys.public)

    # ---- wire and arrays ------------------------------------------------------------------------------------

    def load(self, blob: bytes) -> Ciphertext:
        """A ciphertext from wire form, of any level and scale; InputError when truncated, foreign or damaged."""
        return self._ring.load(blob)

    def save(self, ct: Ciphertext) -> bytes:
        """The ciphertext in wire form, level and scale inside."""
        return self._ring.save(ct)

    def save_result(self, ct: Ciphertext) -> bytes:
        """The ciphertext (size 2) as small as a result can be sent: at level 0, without the bits noise has drowned."""
        return self._ring.save_result(ct)

    def residues(self, ct: Ciphertext) -> ring.Residues:
        """Residues ``[size][level+1][N]`` in NTT form."""
        return self._ring.residues(ct)

    def from_residues(self, residues: ring.Residues, scale: float) -> Ciphertext:
        """The ciphertext with residues ``[size][level+1][N]`` in NTT form, each below its prime."""
        return self._ring.from_residues(residues, scale)

    def memory(self, ct: Ciphertext) -> ring.Residues:
        """All residues as one piece of memory, for other processes."""
        return self.residues(ct)

    def over(self, words: ring.Residues, size: int, level: int, scale: float) -> Ciphertext:
        """The ciphertext whose residues, all of them, these words are; they must outlive it, unchanged."""
        return self._ring.over(words.reshape(size, level + 1, -1), scale)

    def level(self, ct: Ciphertext) -> int:
        """Rescales left."""
        return int(ct.coeff_modulus_size()) - 1

    # ---- sums -----------------------------------------------------------------------------------------------

    def add(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """a + b, on the same level and scale."""
        return self._aligned(self._evaluator.add, a, b)

    def accumulate(self, total: Ciphertext, b: Ciphertext) -> Ciphertext:
        """total + b, on the same level and scale, written over total: for sums nobody else has seen."""
        own = b.scale
        self._check_aligned(total, b)
        b.scale = total.scale
        try:
            self._evaluator.add_inplace(total, b)
        except RuntimeError as error:
            if "transparent" not in str(error):
                raise
            return self._zero(self.level(total), total.scale)
        finally:
            b.scale = own
        return total

    def sub(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """a - b, on the same level and scale."""
        return self._aligned(self._evaluator.sub, a, b)

    def negate(self, ct: Ciphertext) -> Ciphertext:
        """-ct."""
        return self._new(self._evaluator.negate, ct)

    def add_many(self, cts: Sequence[Ciphertext]) -> Ciphertext:
        """Sum of one or more ciphertexts on the same level and scale."""
        if not cts:
            raise ValueError("add_many of nothing")
        total = self._copy(cts[0])
        for ct in cts[1:]:
            total = self.add(total, ct)
        return total

    def add_constant(self, ct: Ciphertext, value: float) -> Ciphertext:
        """ct + value in every slot, encoded at the ciphertext's exact scale."""
        return self._new(self._evaluator.add_plain, ct, self._ring.encode(value, self.level(ct), ct.scale))

    def add_vector(self, ct: Ciphertext, slots: Slots) -> Ciphertext:
        """ct + slots ``[≤ N/2]``, encoded at the ciphertext's exact scale."""
        return self._new(self._evaluator.add_plain, ct, self._ring.encode(slots, self.level(ct), ct.scale))

    # ---- products -------------------------------------------------------------------------------------------

    def multiply(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """a·b on the same level, of size 3; the scales multiply. Relinearise and rescale when the sum is done."""
        self._same_level(a, b)
        self._needs_level(a, "multiply")
        return self._new(self._evaluator.multiply, a, b, scale=a.scale * b.scale)

    def square(self, ct: Ciphertext) -> Ciphertext:
        """ct², of size 3; the scale squares."""
        self._needs_level(ct, "square")
        return self._new(self._evaluator.square, ct, scale=ct.scale * ct.scale)

    def multiply_matrix(
        self, weights: npt.NDArray[np.int64], cts: Sequence[Ciphertext], level: int, scale: float
    ) -> list[Ciphertext]:
        """``Σ_i weights[j,i]·cts[i]`` for every row of integers ``[Dout,Din]``, at a level no higher than any of the
        ciphertexts (size 2), and with a scale the caller knows.
        """
        results = [self._ring.empty(2, level, scale) for _ in weights]
        inputs = [self._ring.residues(ct) for ct in cts]
        outputs = [self._ring.residues(ct) for ct in results]
        gemm.multiply(weights, inputs, outputs, self.parameters.primes[: level + 1])
        return [self._ring.written(ct) for ct in results]

    def multiply_constant(self, ct: Ciphertext, value: float, scale: float) -> Ciphertext:
        """ct·value in every slot, value encoded at ``scale``; a fresh encryption of zero where it rounds to 0."""
        return self._multiply_plain(ct, value, scale)

    def multiply_vector(self, ct: Ciphertext, slots: Slots, scale: float) -> Ciphertext:
        """ct·slots, slots ``[≤ N/2]`` encoded at ``scale``; a fresh encryption of zero where they round to 0."""
        return self._multiply_plain(ct, slots, scale)

    def encode(self, value: Slots, level: int, scale: float) -> Any:
        """slots ``[≤ N/2]`` as a plaintext for ``multiply_encoded``."""
        return self._ring.encode(value, level, scale)

    def multiply_encoded(self, ct: Ciphertext, plain: Any, scale: float) -> Ciphertext:
        """ct·plain, encoded at ``scale`` on the level of ct; a fresh encryption of zero where plain is 0."""
        if plain.is_zero():
            return self._zero(self.level(ct), ct.scale * scale)
        return self._new(self._evaluator.multiply_plain, ct, plain, scale=ct.scale * scale)

    def shift(self, ct: Ciphertext, places: int) -> Ciphertext:
        """ct·X^places, 0 ≤ places < N, exact: coefficients move up, and those past the end come back negated."""
        primes = self.parameters.primes[: self.level(ct) + 1]
        monomial = np.zeros((len(primes), self.parameters.ring_degree), dtype=np.uint64)
        monomial[:, places] = 1
        by_prime = zip(self.residues(ct).swapaxes(0, 1), self._ring.ntt(monomial), primes, strict=True)
        return self.from_residues(np.stack([ring.mulmod(a, b, q) for a, b, q in by_prime], axis=1), ct.scale)

    def relinearize(self, ct: Ciphertext) -> Ciphertext:
        """The same value at size 2."""
        return self._new(self._evaluator.relinearize, ct, self._keys.relin)

    def rescale(self, ct: Ciphertext) -> Ciphertext:
        """The same value one level lower, its scale divided by the prime dropped.

        Relinearise before: the rounding of a third polynomial meets s², an error of 7e-6 instead of 1e-7 (measured
        at N=2^13, scale 2^38).
        """
        self._needs_level(ct, "rescale")
        return self._new(self._evaluator.rescale_to_next, ct)

    def rotate(self, ct: Ciphertext, steps: int) -> Ciphertext:
        """Slots rotated left by ``steps`` (right if negative), size 2 only; PlanError without a key for it."""
        step = steps % self.parameters.slots
        if step == 0:
            return self._copy(ct)
        if step not in self._keys.rotation_steps:
            raise PlanError(f"rotation by {steps} has no key; add it to the rotation steps the keys are generated for")
        element = galois_element(step, self.parameters)
        return self._new(self._evaluator.apply_galois, ct, element, self._keys.galois)

    def drop_to(self, ct: Ciphertext, level: int) -> Ciphertext:
        """The same value and scale at a lower (or the same) level."""
        if not 0 <= level <= self.level(ct):
            raise PlanError(f"drop_to({level}) needs a level of 0..{self.level(ct)}; a refresh raises levels")
        # SEAL would go down level by level; a lower level has the first residues, as they are.
        return self._ring.from_residues(self._ring.residues(ct)[:, : level + 1], ct.scale)

    # ---- refresh --------------------------------------------------------------------------------------------

    def rerandomise(self, ct: Ciphertext) -> Ciphertext:
        """ct plus a fresh public-key encryption of zero: the same value with a fresh c1. Apply to every result.

        It hides how c1 was computed (under RLWE), not the noise in the value's lowest bits, which still depends on
        the computation; only a mask (``mask``) floods that.
        """
        return self.add(ct, self._zero(self.level(ct), ct.scale))

    def draw_mask(self, scale: float, level: int | None = None) -> Mask:
        """A mask for one refresh of a ciphertext at a scale: r, uniform on [-2^(w-1), 2^(w-1)) for every coefficient,
        w = ``parameters.mask_bits``. ``level`` is what will be asked for, the highest unless given.
        """
        element = ring.uniform_mask(self.parameters.ring_degree, self.parameters.mask_bits)
        return Mask(element, scale, self.parameters.levels if level is None else level)

    def mask(self, ct: Ciphertext, mask: Mask) -> bytes:
        """The evaluator's first half of the masked refresh: what to send to the owner.

        Takes a size-2 ciphertext at level ≥ 1 to level 1, Q = q₀·q₁, rerandomises it and adds the mask.
        **Domain**: coefficients within Q/4; ``parameters.refresh_hiding_bits`` says how well r hides them.
        **Cost**: one round, one ciphertext at level 1 out, one fresh (seeded) ciphertext back.
        **Source**: flooding for circuit privacy, Gentry 2009 (thesis, ch. 2.1 and 21).
        """
        self._needs_level(ct, "refresh")
        if ct.size() != 2:
            raise ValueError(f"refresh needs a relinearised ciphertext of size 2, got {ct.size()}")
        # The owner knows s, so she sees c1 and the phase c0 + c1·s. r floods the phase, noise included. But c1 would
        # still be a known linear function of her own ciphertexts, whose coefficients are the weights: two or three
        # of them solve for those. The fresh encryption of zero adds u·p1 + e1 to c1, pseudorandom under RLWE even to
        # who knows s, as u is the evaluator's own.
        return self.save(self._plus(self.rerandomise(self.drop_to(ct, 1)), mask.element))

    def unmask(self, blob: bytes, mask: Mask) -> Ciphertext:
        """The evaluator's second half: the refreshed value on the level asked for, at the scale it had before."""
        ct = self.load(blob)
        if self.level(ct) != mask.level or ct.size() != 2 or not _close(ct.scale, mask.scale):
            raise InputError("the key owner's answer to a refresh has another level or scale; answer each mask once")
        return self._plus(ct, -mask.element)

    def _plus(self, ct: Ciphertext, element: ring.WideIntegers) -> Ciphertext:
        """ct + a ring element, for which SEAL has no plaintext wide enough."""
        primes = self.parameters.primes[: self.level(ct) + 1]
        residues = np.array(self.residues(ct))
        residues[0] = ring.addmod(residues[0], self._ring.ntt(element.residues(primes)), primes)
        return self.from_residues(residues, ct.scale)

    # ---- inner ----------------------------------------------------------------------------------------------

    def _new(
        self, operation: Callable[..., None], ct: Ciphertext, *rest: Any, scale: float | None = None
    ) -> Ciphertext:
        """Run an operation into a new ciphertext; where SEAL refuses a result without c1 (x - x), encrypt zero."""
        out = sealapi.Ciphertext()
        try:
            operation(ct, *rest, out)
        except RuntimeError as error:
            if "transparent" not in str(error):
                raise
            return self._zero(self.level(ct), ct.scale if scale is None else scale)
        return out

    def _zero(self, level: int, scale: float) -> Ciphertext:
        zero = sealapi.Ciphertext()
        self._encryptor.encrypt_zero(self._ring.parms_ids[level], zero)
        zero.scale = scale
        return zero

    def _copy(self, ct: Ciphertext) -> Ciphertext:
        return self._new(self._evaluator.mod_switch_to, ct, ct.parms_id())

    def _multiply_plain(self, ct: Ciphertext, value: Slots | float, scale: float) -> Ciphertext:
        return self.multiply_encoded(ct, self._ring.encode(value, self.level(ct), scale), scale)

    def _aligned(self, operation: Callable[..., None], a: Ciphertext, b: Ciphertext) -> Ciphertext:
        self._check_aligned(a, b)
        own = b.scale
        b.scale = a.scale  # SEAL wants them equal to the last bit
        try:
            return self._new(operation, a, b)
        finally:
            b.scale = own

    def _check_aligned(self, a: Ciphertext, b: Ciphertext) -> None:
        self._same_level(a, b)
        if not _close(a.scale, b.scale):
            raise AssertionError(f"scales differ: 2^{math.log2(a.scale):.12f} and 2^{math.log2(b.scale):.12f}")

    def _same_level(self, a: Ciphertext, b: Ciphertext) -> None:
        if self.level(a) != self.level(b):
            raise AssertionError(f"levels differ: {self.level(a)} and {self.level(b)}; drop one to the other first")

    def _needs_level(self, ct: Ciphertext, what: str) -> None:
        if self.level(ct) < 1:
            raise PlanError(f"{what} needs 1 level, 0 remain; refresh before it or choose parameters with more levels")


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= SCALE_TOLERANCE * max(a, b)
