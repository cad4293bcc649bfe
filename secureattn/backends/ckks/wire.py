"""Ciphertexts on the wire: SEAL's own fields, with every residue in as many bytes as its prime needs.

Residues are uniform, so nothing compresses further, and a size is a formula: plans predict it exactly. Needs no engine.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from secureattn.backends.ckks import residues as ring
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.errors import InputError

_MAGIC = b"SAc1"
_NESTED = 24  # SEAL's header and word count in front of the residues
_FIELDS = struct.Struct("<4sBB16s")  # magic, version major and minor, first bytes of the parameters' fingerprint
_SEED_BYTES = 81  # SEAL's description of the generator a seeded second polynomial comes from


def stored_bytes(parameters: CkksParameters, level: int, size: int = 2) -> int:
    """Bytes of a ciphertext of ``size`` polynomials at a level: ``N·Σ ⌈log2 q_i / 8⌉·size`` and 119 of header."""
    return _FIELDS.size + ring.CIPHERTEXT.size + _NESTED + size * parameters.ring_degree * sum(widths(parameters, level))


def fresh_bytes(parameters: CkksParameters) -> int:
    """Bytes of a fresh symmetric encryption on the highest level: one polynomial and the seed of the other."""
    return stored_bytes(parameters, parameters.levels, size=1) + _SEED_BYTES


def widths(parameters: CkksParameters, level: int) -> list[int]:
    """Bytes per residue for each prime left at a level."""
    return [(q.bit_length() + 7) // 8 for q in parameters.primes[: level + 1]]


def narrow(parameters: CkksParameters, blob: bytes) -> bytes:
    """A SEAL ciphertext file → wire form."""
    body, major_minor = ring.content(blob), blob[3:5]
    fixed, rest = body[: ring.CIPHERTEXT.size], body[ring.CIPHERTEXT.size :]
    degree, primes = ring.CIPHERTEXT.unpack(fixed)[6:8]
    words = struct.unpack_from("<Q", rest, _NESTED - 8)[0]
    residues = np.frombuffer(rest, dtype="<u8", count=words, offset=_NESTED).reshape(-1, primes, degree)
    packed = b"".join(_shrunk(polynomial, widths(parameters, primes - 1)) for polynomial in residues)
    head = _FIELDS.pack(_MAGIC, *major_minor, bytes.fromhex(parameters.fingerprint)[:16])
    return head + fixed + rest[:_NESTED] + packed + rest[_NESTED + 8 * words :]


def widen(parameters: CkksParameters, blob: bytes) -> bytes:
    """Wire form → an uncompressed SEAL ciphertext file; InputError when truncated, foreign or of other parameters."""
    start = _FIELDS.size + ring.CIPHERTEXT.size + _NESTED
    if len(blob) < start or blob[:4] != _MAGIC:
        raise InputError("ciphertext is truncated or not one of this library's; send it again")
    _, major, minor, fingerprint = _FIELDS.unpack_from(blob)
    if fingerprint != bytes.fromhex(parameters.fingerprint)[:16]:
        raise InputError("ciphertext was made with other parameters; encrypt it with this plan's")
    fixed = blob[_FIELDS.size : _FIELDS.size + ring.CIPHERTEXT.size]
    *_, size, degree, primes, _scale, _factor = ring.CIPHERTEXT.unpack(fixed)
    words = struct.unpack_from("<Q", blob, start - 8)[0]
    if degree != parameters.ring_degree or not 1 <= primes <= parameters.levels + 1 or size > 3 or words % degree:
        raise InputError("ciphertext describes a ring this plan does not use; send it again")
    columns = widths(parameters, primes - 1)
    polynomials = words // (degree * primes)
    end = start + polynomials * degree * sum(columns)
    if words != polynomials * degree * primes or len(blob) not in (end, end + _SEED_BYTES):
        raise InputError(f"ciphertext has {len(blob)} bytes, its description needs {end}; it is truncated, send it again")
    residues = _grown(blob[start:end], polynomials, columns, degree)
    body = fixed + blob[start - _NESTED : start] + residues + blob[end:]
    return ring.with_header(body, (major, minor))


def _shrunk(polynomial: ring.Residues, columns: Sequence[int]) -> bytes:
    parts = zip(polynomial, columns, strict=True)
    return b"".join(np.ascontiguousarray(row).view(np.uint8).reshape(-1, 8)[:, :w].tobytes() for row, w in parts)


def _grown(packed: bytes, polynomials: int, columns: Sequence[int], degree: int) -> bytes:
    raw = np.frombuffer(packed, dtype=np.uint8)
    words = np.zeros((polynomials * len(columns), degree, 8), dtype=np.uint8)
    at = 0
    for row, width in zip(words, list(columns) * polynomials, strict=True):
        row[:, :width] = raw[at : at + degree * width].reshape(degree, width)
        at += degree * width
    return words.tobytes()
