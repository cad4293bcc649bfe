"""CKKS parameters: ring, primes, canonical scales, security and the sizes that follow. Needs no engine."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

from secureattn.errors import PlanError, ProtocolError

MAX_MODULUS_BITS = {1 << 12: 106, 1 << 13: 214, 1 << 14: 430, 1 << 15: 868, 1 << 16: 1747}
"""Largest log2(QP) at 128-bit classical security, ternary secret, by ring degree.

Source: Bossuat et al., Security Guidelines for Implementing Homomorphic Encryption, 2024 (eprint 2024/463).
"""

MAX_PRIME_BITS = 60  # SEAL's limit
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)  # make Miller-Rabin exact below 3.3e24


def is_prime(n: int) -> bool:
    """Whether ``n`` < 2^64 is prime: deterministic Miller-Rabin (Sorenson and Webster, 2015)."""
    if n < 2 or any(n % p == 0 and n != p for p in _WITNESSES):
        return False
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for witness in _WITNESSES:
        x = pow(witness, odd, n)
        if witness == n or x in (1, n - 1):
            continue
        if not any((x := x * x % n) == n - 1 for _ in range(twos - 1)):
            return False
    return True


def _prime_below(limit: int, step: int, taken: set[int]) -> int:
    """Largest prime ≡ 1 mod ``step`` under ``limit`` that is not taken."""
    candidate = (limit - 2) // step * step + 1
    while candidate in taken or not is_prime(candidate):
        candidate -= step
    return candidate


def _prime_near(target: float, step: int, taken: set[int]) -> int:
    """Prime ≡ 1 mod ``step`` nearest to ``target`` that is not taken."""
    centre = round((target - 1) / step) * step + 1
    distance = 0
    while True:
        for candidate in (centre + distance, centre - distance):
            if candidate not in taken and is_prime(candidate):
                return candidate
        distance += step


@lru_cache(maxsize=64)
def _chain(ring_degree: int, prime_bits: tuple[int, ...], scale_bits: int) -> tuple[int, ...]:
    """Primes ``(q_0, …, q_L, special)``.

    Each middle prime is the one nearest to scale_l²/2^scale_bits, so that the scale after its rescale returns to
    2^scale_bits: a deviation would otherwise double at every level.
    """
    step, taken = 2 * ring_degree, set[int]()
    special = _prime_below(1 << prime_bits[-1], step, taken)
    taken.add(special)
    first = _prime_below(1 << prime_bits[0], step, taken)
    taken.add(first)
    middle: list[int] = []
    aim = scale = 2.0**scale_bits
    for _ in prime_bits[1:-1]:
        prime = _prime_near(scale * scale / aim, step, taken)
        taken.add(prime)
        middle.append(prime)
        scale = scale * scale / prime
    return (first, *reversed(middle), special)


@dataclass(frozen=True)
class CkksParameters:
    """A ring and a chain of primes, at least 128 bits secure, and everything that follows from them.

    ``prime_bits`` = (first, *middle, special): the first prime stays to the end and holds the result, a rescale
    drops one middle prime (each ``scale_bits`` wide), the special prime serves key switching only. A ciphertext at
    level l has primes q_0 … q_l.
    **Error**: ProtocolError with every violation at once; PlanError when the chain falls below 128 bits.
    **Source**: Cheon, Kim, Kim, Song 2017 (eprint 2016/421); RNS form eprint 2018/931.
    """

    ring_degree: int
    prime_bits: tuple[int, ...]
    scale_bits: int

    def __post_init__(self) -> None:
        violations = self._violations()
        if violations:
            raise ProtocolError("CKKS parameters", violations)
        allowed = MAX_MODULUS_BITS[self.ring_degree]
        if self.modulus_bits > allowed:
            fitting = [n for n, bits in MAX_MODULUS_BITS.items() if bits >= self.modulus_bits]
            ring = f"ring_degree = {fitting[0]}, or " if fitting else ""
            raise PlanError(
                f"CKKS parameters use {self.modulus_bits} modulus bits, but ring degree {self.ring_degree} allows "
                f"{allowed} at 128-bit security; use {ring}fewer or smaller primes"
            )

    def _violations(self) -> list[str]:
        found = []
        if self.ring_degree not in MAX_MODULUS_BITS:
            rings = ", ".join(map(str, MAX_MODULUS_BITS))
            found.append(f"ring_degree is {self.ring_degree}, must be a power of two among {rings}")
        if len(self.prime_bits) < 2:
            return [*found, f"prime_bits is {self.prime_bits}, must be (first, *middle, special)"]
        first, *middle, special = self.prime_bits
        least = self.ring_degree.bit_length() + 8  # below that, primes ≡ 1 mod 2N are too rare
        found += [
            f"prime_bits has {bits}, must lie in {least}..{MAX_PRIME_BITS}"
            for bits in sorted(set(self.prime_bits))
            if not least <= bits <= MAX_PRIME_BITS
        ]
        if special < max(self.prime_bits):
            found.append(f"special prime has {special} bits, fewer than another prime of {max(self.prime_bits)}")
        if middle and max(middle) >= special:
            found.append(f"middle primes have up to {max(middle)} bits, must be smaller than the special prime")
        if any(bits != self.scale_bits for bits in middle):
            found.append(f"middle primes have {middle} bits, must all have scale_bits = {self.scale_bits}")
        if not 1 <= self.scale_bits < first:
            found.append(f"scale_bits is {self.scale_bits}, must lie in 1..{first - 1}, below the first prime")
        return found

    # ---- derived --------------------------------------------------------------------------------------------

    @property
    def levels(self) -> int:
        """Rescales available to a fresh ciphertext."""
        return len(self.prime_bits) - 2

    @property
    def slots(self) -> int:
        """Real numbers per ciphertext, N/2."""
        return self.ring_degree // 2

    @property
    def modulus_bits(self) -> int:
        """log2(QP), the special prime included; nominal, the primes' product is within 0.001 bit of it."""
        return sum(self.prime_bits)

    @property
    def security_bits(self) -> int:
        """Guaranteed security in bits: what falls below 128 cannot be constructed."""
        return 128

    @cached_property
    def primes(self) -> tuple[int, ...]:
        """``(q_0, …, q_L, special)``, each ≡ 1 mod 2N and distinct; the special prime is the largest."""
        return _chain(self.ring_degree, self.prime_bits, self.scale_bits)

    @cached_property
    def scales(self) -> tuple[float, ...]:
        """Canonical scale by level, 0..levels: 2^scale_bits on top, scale[l-1] = scale[l]²/q_l below.

        A product of two canonical ciphertexts is canonical again after its rescale, to the last bit.
        """
        scales = [2.0**self.scale_bits]
        for level in range(self.levels, 0, -1):
            scales.append(scales[-1] * scales[-1] / self.primes[level])
        return tuple(reversed(scales))

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of ring, primes and scale, for file headers: equal exactly when files are compatible."""
        text = f"ckks/1 {self.ring_degree} {self.primes} {self.scale_bits}"
        return hashlib.sha256(text.encode()).hexdigest()

    # ---- refresh --------------------------------------------------------------------------------------------

    @property
    def mask_bits(self) -> int:
        """Width w of the refresh mask, uniform on [-2^(w-1), 2^(w-1)): w = ⌊log2(Q/2)⌋ with Q = q_0·q_1."""
        if self.levels < 1:
            raise PlanError("refresh needs 2 primes left, these parameters have 1; use a chain with a middle prime")
        return (self.primes[0] * self.primes[1] // 2).bit_length() - 1

    def refresh_hiding_bits(self, bound: float, *, coefficients: int = 1) -> float:
        """How well the refresh mask hides a value: the key owner's advantage is at most 2^-bits.

        bits = w - log2(Δ·bound) - log2(coefficients), with w = ``mask_bits`` > log2(Q) - 2 and Δ the largest
        canonical scale. The statistical distance of r + m from r is |m|/2^w per coefficient, and slots within
        ±bound give |m| ≤ Δ·bound. By the union bound a whole ciphertext counts N ``coefficients``, k refreshes k·N.
        **Source**: smudging, Asharov et al. 2012 (eprint 2011/613, lemma 1).
        """
        if not bound > 0 or coefficients < 1:
            raise ValueError(f"bound {bound} and coefficients {coefficients} must be positive")
        return self.mask_bits - math.log2(max(self.scales) * bound) - math.log2(coefficients)

    # ---- sizes ----------------------------------------------------------------------------------------------

    def ciphertext_bytes(self, level: int, size: int = 2) -> int:
        """Bytes in memory of a ciphertext of ``size`` polynomials; on the wire see ``wire.stored_bytes``."""
        return 8 * self.ring_degree * (level + 1) * size

    def public_key_bytes(self) -> int:
        """Bytes of the public key: 16·N·k for k primes, the special one included."""
        return 16 * self.ring_degree * len(self.primes)

    def key_bytes(self) -> int:
        """Bytes of one Galois or relinearisation key: 16·N·k·(k-1) for k primes, the special one included."""
        k = len(self.primes)
        return 16 * self.ring_degree * k * (k - 1)


RINGS = (1 << 13, 1 << 14, 1 << 15)
"""Ring degrees worth trying, smallest first."""


def most_levels(ring_degree: int, scale_bits: int = 40, *, integer_bits: int = 7) -> int:
    """Levels that 128 bits allow on a ring: 3, 8 and 19 on 2^13, 2^14 and 2^15 at scale 2^40."""
    return (MAX_MODULUS_BITS[ring_degree] - 2 * (scale_bits + integer_bits)) // scale_bits


def chain(ring_degree: int, levels: int, scale_bits: int = 40, *, integer_bits: int = 7) -> CkksParameters:
    """Parameters with so many levels on a ring; PlanError where 128 bits do not allow them.

    ``integer_bits`` is the least room of the first prime above the scale: results at level 0 can be decrypted while
    |x| < 2^(integer_bits−2). Room beyond it makes the special prime 6 bits wider than the first: the noise of a
    rotation or relinearisation goes with q_0/special, 1.5e-6 at equal widths against 1.7e-8 (measured, N=2^14).
    At scale 2^40 and the most levels: 47+3×40+47, 52+8×40+58 and 51+19×40+57.
    """
    least = scale_bits + integer_bits
    outer = min(MAX_MODULUS_BITS[ring_degree] - levels * scale_bits, 2 * MAX_PRIME_BITS - 6)
    special = max(least, min(MAX_PRIME_BITS, outer // 2 + 3, outer - least))
    first = max(least, min(outer - special, special))
    return CkksParameters(ring_degree, (first, *[scale_bits] * levels, special), scale_bits)


def candidates(scale_bits: int = 40, *, integer_bits: int = 7) -> tuple[CkksParameters, ...]:
    """Parameters worth trying, smallest ring first: as many levels as 128 bits allow on each of RINGS."""
    most = ((ring, most_levels(ring, scale_bits, integer_bits=integer_bits)) for ring in RINGS)
    return tuple(chain(ring, levels, scale_bits, integer_bits=integer_bits) for ring, levels in most if levels >= 1)
