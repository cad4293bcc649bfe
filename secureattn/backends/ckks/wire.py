"""Ciphertexts on the wire: a header of 32 bytes, then every residue in as many bits as its prime needs; sizes of keys.

Residues are uniform, so nothing compresses further, and a size is a formula: plans predict it exactly. What follows
from the parameters is not sent, so a blob cannot contradict them. Results, which nobody computes with any more, come
without the low bits that their noise has drowned. Needs no engine.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence

import numpy as np

from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.backends.ckks.residues import SEED_BYTES, Residues, StoredCiphertext
from secureattn.errors import InputError

_MAGIC, _VERSION = b"SAc", 2
_HEADER = struct.Struct("<3sBBB16sBBd")
"""Magic, version, SEAL's major and minor version, start of the fingerprint, level, form, scale.

Forms 1 to 3 are so many polynomials in NTT form; a single one is followed by the seed of the second. Form 4 is a
rounded result: two polynomials by their coefficients.
"""
_RESULT = 4
_LANES = 64

ROUNDING_BITS = 19
"""Rounding a result adds an error of standard deviation 2^19/(6Δ), 8e-8 at Δ = 2^40; that of a computation goes with
1/Δ as well.
"""


def stored_bytes(parameters: CkksParameters, level: int, size: int = 2) -> int:
    """Bytes of a ciphertext of ``size`` polynomials at a level: ``32 + size·N/8·Σ ⌈log2 q_i⌉``."""
    return _HEADER.size + packed_bytes(parameters, _widths(parameters, level), size)


def fresh_bytes(parameters: CkksParameters, level: int) -> int:
    """Bytes of a fresh symmetric encryption at a level: one polynomial and the seed of the other."""
    return stored_bytes(parameters, level, size=1) + SEED_BYTES


def result_bytes(parameters: CkksParameters) -> int:
    """Bytes of a rounded result: ``32 + 2·N/8·(⌈log2 q_0⌉ − t)``, t = ``dropped_bits``."""
    return _HEADER.size + packed_bytes(parameters, _result_widths(parameters), 2)


def dropped_bits(parameters: CkksParameters) -> int:
    """Low bits t that every coefficient of a result goes without.

    Rounding to a multiple of 2^t errs uniformly, with variance 2^2t/12. With a ternary secret s (variance 2/3 a
    coefficient) a coefficient of e0 + e1·s has 2^2t/12·(1 + 2N/3), and the real part of a slot, which sums N of them
    and is divided by Δ, has N/2 times that: a standard deviation of 2^t·N/(6Δ), which is 2^ROUNDING_BITS/(6Δ) with
    t = ROUNDING_BITS - log2 N. As the product of two complex normal values, e1 and s at a root of unity, it is Laplace
    distributed: beyond k standard deviations with probability e^(-√2·k), 1e-8 for 13. The last rescale has left as
    much noise as t = 0 would.
    """
    return max(0, ROUNDING_BITS + 1 - parameters.ring_degree.bit_length())


def _widths(parameters: CkksParameters, level: int) -> list[int]:
    """Bits per residue for each prime left at a level."""
    return [q.bit_length() for q in parameters.primes[: level + 1]]


def _result_widths(parameters: CkksParameters) -> list[int]:
    return [_widths(parameters, 0)[0] - dropped_bits(parameters)]


def packed_bytes(parameters: CkksParameters, widths: Sequence[int], size: int) -> int:
    return size * parameters.ring_degree // 8 * sum(widths)


# ---- keys -------------------------------------------------------------------------------------------------------

PUBLIC, RELIN, GALOIS = "public", "relin", "galois/"
"""Names of keys; of Galois keys followed by the step they rotate by."""


def normalised(steps: Iterable[int], parameters: CkksParameters) -> tuple[int, ...]:
    """Rotations as steps to the left, in order."""
    return tuple(sorted({step % parameters.slots for step in steps}))


def key_widths(parameters: CkksParameters) -> list[int]:
    """Bits per residue of a key, for each prime, the special one included."""
    return [prime.bit_length() for prime in parameters.primes]


def secret_key_bytes(parameters: CkksParameters) -> int:
    """Bytes of the secret key, ``N/8·Σ ⌈log2 q⌉`` over all primes."""
    return packed_bytes(parameters, key_widths(parameters), 1)


def public_key_bytes(parameters: CkksParameters) -> int:
    """Bytes of the public key: two polynomials."""
    return 2 * secret_key_bytes(parameters)


def switching_key_bytes(parameters: CkksParameters) -> int:
    """Bytes of a relinearisation or Galois key: as many public ones as a ciphertext has primes."""
    return (parameters.levels + 1) * public_key_bytes(parameters)


def key_sizes(parameters: CkksParameters, rotation_steps: Iterable[int]) -> dict[str, int]:
    """Bytes of every key an evaluator needs, by name: one public, one to relinearise, one a rotation."""
    switching = switching_key_bytes(parameters)
    rotations = [f"{GALOIS}{step}" for step in normalised(rotation_steps, parameters) if step]
    return {PUBLIC: public_key_bytes(parameters), RELIN: switching, **dict.fromkeys(rotations, switching)}


# ---- ciphertexts ------------------------------------------------------------------------------------------------


def narrow(parameters: CkksParameters, stored: StoredCiphertext) -> bytes:
    """A ciphertext in wire form. ValueError unless in NTT form with 2 or 3 polynomials, or 1 and a seed."""
    polynomials, primes, _ = stored.residues.shape
    if not stored.is_ntt:
        raise ValueError("the wire takes ciphertexts in NTT form; transform it first")
    if polynomials not in ((1,) if stored.seed else (2, 3)):
        raise ValueError(f"the wire takes 2 or 3 polynomials, got {polynomials}; relinearise first")
    head = _head(parameters, stored, polynomials)
    return b"".join([head, *packed(stored.residues, _widths(parameters, primes - 1)), stored.seed])


def narrow_result(parameters: CkksParameters, stored: StoredCiphertext) -> bytes:
    """A result in wire form, rounded. ValueError unless it is two polynomials of coefficients at level 0."""
    if stored.is_ntt or stored.residues.shape[:2] != (2, 1):
        raise ValueError("a result is sent as two polynomials of coefficients at level 0; relinearise and transform it")
    dropped, (width,) = dropped_bits(parameters), _result_widths(parameters)
    half = np.uint64(1 << dropped >> 1)
    # What rounds up to 2^⌈log2 q⌉ is as near to q, that is to 0, which the mask makes of it.
    rounded = (stored.residues + half >> np.uint64(dropped)) & np.uint64((1 << width) - 1)
    return b"".join([_head(parameters, stored, _RESULT), *packed(rounded, [width])])


def _head(parameters: CkksParameters, stored: StoredCiphertext, form: int) -> bytes:
    fingerprint = bytes.fromhex(parameters.fingerprint)[:16]
    level = stored.residues.shape[1] - 1
    return _HEADER.pack(_MAGIC, _VERSION, *stored.version, fingerprint, level, form, stored.scale)


def widen(parameters: CkksParameters, blob: bytes) -> StoredCiphertext:
    """The ciphertext in a blob of exactly the length its header says; InputError on anything else.

    Allocates at most 8 bytes for each byte of the blob. Whether residues are below their primes is left to SEAL.
    """
    if len(blob) < _HEADER.size or blob[: len(_MAGIC)] != _MAGIC:
        raise InputError("ciphertext is truncated or not one of this library's; send it again")
    _, version, major, minor, fingerprint, level, form, scale = _HEADER.unpack_from(blob)
    if version != _VERSION:
        raise InputError(f"ciphertext is in wire format {version}, this release reads {_VERSION}; use the same release")
    if fingerprint != bytes.fromhex(parameters.fingerprint)[:16]:
        raise InputError("ciphertext was made with other parameters; encrypt it with this plan's")
    if level > parameters.levels or form not in (1, 2, 3, _RESULT) or (form == _RESULT and level):
        raise InputError(
            f"ciphertext says level {level} and form {form}, this plan has levels 0..{parameters.levels} and forms 1 "
            f"to 3 on each, and {_RESULT} on level 0; send it again"
        )
    modulus_bits = math.prod(parameters.primes[: level + 1]).bit_length()
    if not (scale >= 1 and math.log2(scale) < modulus_bits):
        raise InputError(f"ciphertext says scale {scale:.3g}, level {level} has 1 to 2^{modulus_bits}; send it again")
    needed = _form_bytes(parameters, level, form)
    if len(blob) != needed:
        raise InputError(f"ciphertext has {len(blob)} bytes, its header says {needed}; it is truncated, send it again")
    version_of = (major, minor)
    if form == _RESULT:
        return StoredCiphertext(_result_residues(parameters, blob), scale, False, version_of)
    end = stored_bytes(parameters, level, form)
    residues = unpacked(blob[_HEADER.size : end], form, _widths(parameters, level), parameters.ring_degree)
    return StoredCiphertext(residues, scale, True, version_of, blob[end:])


def _form_bytes(parameters: CkksParameters, level: int, form: int) -> int:
    if form == _RESULT:
        return result_bytes(parameters)
    return fresh_bytes(parameters, level) if form == 1 else stored_bytes(parameters, level, form)


def _result_residues(parameters: CkksParameters, blob: bytes) -> Residues:
    """Coefficients ``[2][1][N]`` as multiples of 2^t: whatever the bits, each is below the prime."""
    rounded = unpacked(blob[_HEADER.size :], 2, _result_widths(parameters), parameters.ring_degree)
    coefficients = rounded << np.uint64(dropped_bits(parameters))
    above = coefficients - np.uint64(parameters.primes[0])  # wraps to something huge where they are below
    reduced: Residues = np.minimum(coefficients, above)
    return reduced


# ---- bits -------------------------------------------------------------------------------------------------------


def packed(residues: Residues, widths: Sequence[int]) -> list[bytes]:
    """Residues without their leading zeros, a string per polynomial and prime.

    64 of them that lie N/64 apart share ``width`` words, so that everything moves in whole arrays: word w of all the
    words, then word w + 1.
    """
    return [_bits(row, width) for polynomial in residues for row, width in zip(polynomial, widths, strict=True)]


def _bits(row: Residues, width: int) -> bytes:
    lanes = row.reshape(_LANES, -1)
    words = np.zeros((width, lanes.shape[1]), dtype="<u8")
    for i, lane in enumerate(lanes):
        at, shift = divmod(i * width, 64)
        words[at] |= lane << np.uint64(shift)
        if shift + width > 64:
            words[at + 1] |= lane >> np.uint64(64 - shift)
    return words.tobytes()


def unpacked(packed: bytes, polynomials: int, widths: Sequence[int], degree: int) -> Residues:
    """Residues ``[polynomials][primes][N]`` from what ``packed`` gives, joined."""
    words = np.frombuffer(packed, dtype="<u8")
    residues = np.empty((polynomials, len(widths), degree), dtype=np.uint64)
    at = 0
    for polynomial in residues:
        for row, width in zip(polynomial, widths, strict=True):
            count = degree // _LANES * width
            _spread(words[at : at + count].reshape(width, -1), row.reshape(_LANES, -1))
            at += count
    return residues


def _spread(words: Residues, lanes: Residues) -> None:
    width = len(words)
    for i, lane in enumerate(lanes):
        at, shift = divmod(i * width, 64)
        np.right_shift(words[at], np.uint64(shift), out=lane)
        if shift + width > 64:
            lane |= words[at + 1] << np.uint64(64 - shift)
        lane &= np.uint64((1 << width) - 1)
