"""Ring elements as numpy arrays: SEAL's public file format, exact modular arithmetic, two-prime CRT, masks.

Residues are uint64, ``[size][primes][N]`` for a ciphertext, ``[primes][N]`` for one ring element. Needs no engine.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from secureattn.errors import EngineError, InputError

Residues = npt.NDArray[np.uint64]

MAX_MODULUS = 1 << 60
_ONE_STEP = 1 << 56  # below it a float64 quotient is near enough, see mulmod
_HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, version major and minor, compression, reserved, bytes
_MAGIC, _STORED, _ZSTD = 0xA15E, 0, 2
_CIPHERTEXT = struct.Struct("<4QBQQQdQ")  # parms_id, is_ntt, size, N, primes, scale, correction factor
_PLAINTEXT = struct.Struct("<4QQd")  # parms_id, coefficients, scale
_ARRAY = struct.Struct("<HBBBBHQQ")  # a header of its own, words
SEED_BYTES = 65  # one for the kind of generator, 64 of state
SEED_FILE_BYTES = _HEADER.size + SEED_BYTES


# ---- arithmetic -------------------------------------------------------------------------------------------------


def mulmod(a: Residues, b: Residues | int, modulus: int) -> Residues:
    """``a·b mod modulus`` elementwise and exact, for a, b < modulus ≤ 2^60.

    With q̂ the float64 quotient, a·b - q̂·m is computed modulo 2^64. q̂ errs by at most m·2^-51 + 1, so below 2^56
    the true difference fits a signed word; larger moduli take b in two halves, whose quotients stay below 2^30.
    """
    if not 1 < modulus <= MAX_MODULUS:
        raise ValueError(f"modulus {modulus} is outside 2..2^60")
    left = np.atleast_1d(a)
    right = np.atleast_1d(np.asarray(b, dtype=np.uint64))
    if modulus < _ONE_STEP:
        return _reduced_product(left, right, modulus)
    half = np.uint64(30)
    high = _reduced_product(left, right >> half, modulus)
    shifted = _reduced_product(high, np.full(1, 1 << 30, dtype=np.uint64), modulus)
    low = _reduced_product(left, right & np.uint64((1 << 30) - 1), modulus)
    return (shifted + low) % np.uint64(modulus)


def _reduced_product(a: Residues, b: Residues, modulus: int) -> Residues:
    quotient = (a.astype(np.float64) * b.astype(np.float64) / modulus).astype(np.uint64)
    difference = (a * b - quotient * np.uint64(modulus)).view(np.int64)
    return np.remainder(difference, np.int64(modulus)).view(np.uint64)


def addmod(a: Residues, b: Residues, primes: Sequence[int]) -> Residues:
    """``a + b`` modulo every prime: ``[…][primes][N]``, all below their primes."""
    total = a + b
    moduli = np.array(primes[: a.shape[-2]], dtype=np.uint64)[:, None]
    reduced: Residues = np.minimum(total, total - moduli)  # below the prime the difference wraps to something huge
    return reduced


def negmod(a: Residues, modulus: int) -> Residues:
    """``-a mod modulus``, for a < modulus."""
    return np.where(a == 0, a, np.uint64(modulus) - a)


@dataclass(frozen=True)
class WideIntegers:
    """Signed integers too wide for a word, ``low + base·high`` with 0 ≤ low < base ≤ 2^62 and signed high: ``[N]``."""

    low: Residues
    high: npt.NDArray[np.int64]
    base: int

    def __neg__(self) -> WideIntegers:
        carry = self.low == 0  # -(low + base·high) = (base - low) + base·(-high - 1), to keep 0 ≤ low < base
        low = np.where(carry, self.low, np.uint64(self.base) - self.low)
        return WideIntegers(low, np.where(carry, -self.high, -self.high - 1), self.base)

    def reduce(self, modulus: int) -> Residues:
        """Residues modulo one modulus ≤ 2^60, exact: ``[N]``."""
        high = np.remainder(self.high, np.int64(modulus)).view(np.uint64)
        low = self.low % np.uint64(modulus)
        return (low + mulmod(high, self.base % modulus, modulus)) % np.uint64(modulus)

    def residues(self, primes: Sequence[int]) -> Residues:
        """Residues modulo every prime: ``[primes][N]``."""
        return np.stack([self.reduce(prime) for prime in primes])

    def magnitude(self) -> float:
        """Largest absolute value, to float64 precision."""
        return float(np.abs(self.low.astype(np.float64) + float(self.base) * self.high).max())


def lift(residues: Residues, primes: tuple[int, int]) -> WideIntegers:
    """The centred integers x, -Q/2 ≤ x < Q/2 with Q = q₀·q₁, that have these residues ``[2][N]``.

    x = x₀ + q₀·t with t = (x₁ - x₀)·q₀⁻¹ mod q₁ (Garner), less Q where x ≥ Q/2.
    """
    q0, q1 = primes
    x0 = residues[0]
    difference = (residues[1] + negmod(x0 % np.uint64(q1), q1)) % np.uint64(q1)
    t = mulmod(difference, pow(q0, -1, q1), q1)
    half = (q0 * q1 + 1) // 2
    t_half, x_half = np.uint64(half // q0), np.uint64(half % q0)
    upper = (t > t_half) | ((t == t_half) & (x0 >= x_half))
    return WideIntegers(x0, t.view(np.int64) - np.where(upper, np.int64(q1), np.int64(0)), q0)


def uniform_mask(count: int, bits: int) -> WideIntegers:
    """``count`` integers uniform on [-2^(bits-1), 2^(bits-1)), 2 ≤ bits ≤ 120, from the system's CSPRNG."""
    if not 2 <= bits <= 120:
        raise ValueError(f"mask of {bits} bits is outside 2..120")
    low_bits = bits // 2
    high_bits = bits - low_bits
    words = np.frombuffer(os.urandom(16 * count), dtype=np.uint64).reshape(2, count)
    low = words[0] >> np.uint64(64 - low_bits)
    high = (words[1] >> np.uint64(64 - high_bits)).view(np.int64) - np.int64(1 << (high_bits - 1))
    return WideIntegers(low, high, 1 << low_bits)


# ---- files ------------------------------------------------------------------------------------------------------


@contextmanager
def scratch_file() -> Iterator[Path]:
    """A path for SEAL to write to and to read from, of this user alone (mode 0600): memory that is in no folder, as
    Linux has it; elsewhere a file, in memory where the system has a tmpfs, always removed.
    """
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        handle = os.memfd_create("secureattn")
        try:
            os.fchmod(handle, 0o600)
            yield Path(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)
        return
    memory = Path("/dev/shm")
    folder = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    handle, name = tempfile.mkstemp(prefix="secureattn-", dir=folder)
    os.close(handle)
    path = Path(name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class StoredCiphertext:
    """What a SEAL ciphertext file holds: residues ``[size][primes][N]``, or ``[1][primes][N]`` and a seed.

    ``seed`` is the kind and the state of the generator that the second polynomial comes from, or empty.
    """

    residues: Residues
    scale: float
    is_ntt: bool
    version: tuple[int, int]
    seed: bytes = b""


def _check_header(blob: bytes, what: str) -> None:
    """Refuse what is not one whole SEAL object: InputError."""
    if len(blob) < _HEADER.size:
        raise InputError(f"{what} has {len(blob)} bytes, too few for a header; it is truncated, send it again")
    magic, header_size, *_, total = _HEADER.unpack_from(blob)
    if magic != _MAGIC or header_size != _HEADER.size:
        raise InputError(f"{what} is not a SEAL file; send one made by this library with the same parameters")
    if total != len(blob):
        raise InputError(f"{what} has {len(blob)} bytes, its header says {total}; it is truncated, send it again")


def decompressed(blob: bytes, zstd: Callable[[bytes], bytes]) -> bytes:
    """The uncompressed form of a file that SEAL has just written."""
    _check_header(blob, "SEAL's file")
    if blob[5] == _STORED:
        return blob
    if blob[5] != _ZSTD:
        raise EngineError(f"this SEAL compresses files by method {blob[5]}, {_ZSTD} (zstd) is needed; update TenSEAL")
    return _with_header(zstd(blob[_HEADER.size :]), (blob[3], blob[4]))


def pack_ciphertext(
    residues: Residues,
    *,
    parms_id: Sequence[int],
    scale: float,
    is_ntt: bool,
    version: tuple[int, int],
    seed: bytes = b"",
) -> bytes:
    """An uncompressed SEAL ciphertext file, fields as in ``StoredCiphertext``."""
    polynomials, primes, degree = residues.shape
    body = _CIPHERTEXT.pack(*parms_id, is_ntt, 2 if seed else polynomials, degree, primes, scale, 1)
    data = struct.pack("<Q", residues.size) + np.ascontiguousarray(residues, dtype="<u8").tobytes()
    generator = _with_header(seed, version) if seed else b""
    return _with_header(body + _with_header(data, version) + generator, version)


def pack_plaintext(residues: Residues, parms_id: Sequence[int], scale: float, version: tuple[int, int]) -> bytes:
    """An uncompressed SEAL plaintext file of residues ``[primes][N]``, which is what a secret key's is too."""
    data = struct.pack("<Q", residues.size) + np.ascontiguousarray(residues, dtype="<u8").tobytes()
    return _with_header(_PLAINTEXT.pack(*parms_id, residues.size, scale) + _with_header(data, version), version)


def _with_header(body: bytes, version: tuple[int, int]) -> bytes:
    return header(_HEADER.size + len(body), version) + body


def header(size: int, version: tuple[int, int]) -> bytes:
    """What an uncompressed SEAL file of so many bytes begins with."""
    return _HEADER.pack(_MAGIC, _HEADER.size, *version, _STORED, 0, size)


def read_ciphertext(blob: bytes) -> StoredCiphertext:
    """What an uncompressed SEAL ciphertext file holds, seeded or not; InputError where it contradicts itself."""
    _check_header(blob, "ciphertext")
    if blob[5] != _STORED:
        raise InputError("ciphertext file is compressed; decompress it first")
    start = _HEADER.size + _CIPHERTEXT.size + _ARRAY.size
    if len(blob) < start:
        raise InputError("ciphertext ends inside its description; it is truncated, send it again")
    *_, is_ntt, size, degree, primes, scale, _correction = _CIPHERTEXT.unpack_from(blob, _HEADER.size)
    *_, words = _ARRAY.unpack_from(blob, start - _ARRAY.size)
    rest = len(blob) - start - 8 * words
    full = rest == 0 and words == size * degree * primes
    seeded = rest == _HEADER.size + SEED_BYTES and words == degree * primes and size == 2
    if not (full or seeded):
        raise InputError("ciphertext holds other data than its size says; send it again")
    residues = np.frombuffer(blob, dtype="<u8", count=words, offset=start)
    seed = blob[len(blob) - SEED_BYTES :] if seeded else b""
    return StoredCiphertext(residues.reshape(-1, primes, degree), scale, bool(is_ntt), (blob[3], blob[4]), seed)


def unpack_ciphertext(blob: bytes) -> Residues:
    """Residues ``[size][primes][N]`` of an uncompressed SEAL ciphertext file; InputError on a seeded one."""
    stored = read_ciphertext(blob)
    if stored.seed:
        raise InputError("ciphertext has a seed in place of its second polynomial; load it with SEAL first")
    return stored.residues


def unpack_plaintext(blob: bytes, degree: int) -> Residues:
    """Residues ``[primes][N]`` of an uncompressed SEAL plaintext file."""
    return np.frombuffer(blob, dtype="<u8", offset=_HEADER.size + _PLAINTEXT.size + _ARRAY.size).reshape(-1, degree)
