"""Ciphertexts on the wire: a header of 32 bytes, then every residue in as many bytes as its prime needs.

Residues are uniform, so nothing compresses further, and a size is a formula: plans predict it exactly. What follows
from the parameters is not sent, so a blob cannot contradict them. Needs no engine.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np

from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.backends.ckks.residues import SEED_BYTES, Residues, StoredCiphertext
from secureattn.errors import InputError

_MAGIC, _VERSION = b"SAc", 1
_HEADER = struct.Struct("<3sBBB16sBBd")
"""Magic, version, SEAL's major and minor version, start of the fingerprint, level, polynomials that follow, scale.

One polynomial is followed by the seed of the second; two or three stand alone. All are in NTT form.
"""


def stored_bytes(parameters: CkksParameters, level: int, size: int = 2) -> int:
    """Bytes of a ciphertext of ``size`` polynomials at a level: ``32 + size·N·Σ ⌈log2 q_i / 8⌉``."""
    return _HEADER.size + size * parameters.ring_degree * sum(_widths(parameters, level))


def fresh_bytes(parameters: CkksParameters) -> int:
    """Bytes of a fresh symmetric encryption on the highest level: one polynomial and the seed of the other."""
    return stored_bytes(parameters, parameters.levels, size=1) + SEED_BYTES


def _widths(parameters: CkksParameters, level: int) -> list[int]:
    """Bytes per residue for each prime left at a level."""
    return [(q.bit_length() + 7) // 8 for q in parameters.primes[: level + 1]]


def narrow(parameters: CkksParameters, stored: StoredCiphertext) -> bytes:
    """A ciphertext in wire form. ValueError unless in NTT form with 2 or 3 polynomials, or 1 and a seed."""
    polynomials, primes, _ = stored.residues.shape
    if not stored.is_ntt:
        raise ValueError("the wire takes ciphertexts in NTT form; transform it first")
    if polynomials not in ((1,) if stored.seed else (2, 3)):
        raise ValueError(f"the wire takes 2 or 3 polynomials, got {polynomials}; relinearise first")
    fingerprint = bytes.fromhex(parameters.fingerprint)[:16]
    head = _HEADER.pack(_MAGIC, _VERSION, *stored.version, fingerprint, primes - 1, polynomials, stored.scale)
    return b"".join([head, *_shrunk(stored.residues, _widths(parameters, primes - 1)), stored.seed])


def widen(parameters: CkksParameters, blob: bytes) -> StoredCiphertext:
    """The ciphertext in a blob of exactly the length its header says; InputError on anything else.

    Allocates at most 8 bytes for each byte of the blob. Whether residues are below their primes is left to SEAL.
    """
    if len(blob) < _HEADER.size or blob[: len(_MAGIC)] != _MAGIC:
        raise InputError("ciphertext is truncated or not one of this library's; send it again")
    _, version, major, minor, fingerprint, level, polynomials, scale = _HEADER.unpack_from(blob)
    if version != _VERSION:
        raise InputError(f"ciphertext is in wire format {version}, this release reads {_VERSION}; use the same release")
    if fingerprint != bytes.fromhex(parameters.fingerprint)[:16]:
        raise InputError("ciphertext was made with other parameters; encrypt it with this plan's")
    if level > parameters.levels or polynomials not in (1, 2, 3):
        raise InputError(
            f"ciphertext says level {level} and {polynomials} polynomials, this plan has levels 0..{parameters.levels} "
            "and 1 to 3 polynomials; send it again"
        )
    modulus_bits = math.prod(parameters.primes[: level + 1]).bit_length()
    if not (scale >= 1 and math.log2(scale) < modulus_bits):
        raise InputError(f"ciphertext says scale {scale:.3g}, level {level} has 1 to 2^{modulus_bits}; send it again")
    end = stored_bytes(parameters, level, polynomials)
    needed = end + SEED_BYTES if polynomials == 1 else end
    if len(blob) != needed:
        raise InputError(f"ciphertext has {len(blob)} bytes, its header says {needed}; it is truncated, send it again")
    residues = _grown(blob[_HEADER.size : end], polynomials, _widths(parameters, level), parameters.ring_degree)
    return StoredCiphertext(residues, scale, True, (major, minor), blob[end:])


def _shrunk(residues: Residues, widths: Sequence[int]) -> list[bytes]:
    """The low bytes of every residue, a string per polynomial and prime."""
    octets = np.ascontiguousarray(residues, dtype="<u8").view(np.uint8).reshape(*residues.shape, 8)
    return [row[:, :width].tobytes() for polynomial in octets for row, width in zip(polynomial, widths, strict=True)]


def _grown(packed: bytes, polynomials: int, widths: Sequence[int], degree: int) -> Residues:
    """Residues ``[polynomials][primes][N]`` from what ``_shrunk`` gives, joined."""
    raw = np.frombuffer(packed, dtype=np.uint8)
    octets = np.zeros((polynomials, len(widths), degree, 8), dtype=np.uint8)
    at = 0
    for polynomial in octets:
        for row, width in zip(polynomial, widths, strict=True):
            row[:, :width] = raw[at : at + degree * width].reshape(degree, width)
            at += degree * width
    return octets.view("<u8")[..., 0]
