"""Microsoft SEAL through TenSEAL's bindings: a ring's objects, its files and the encoding. Holds no key.

The only file that imports tenseal. Ciphertexts are ``tenseal.sealapi.Ciphertext`` objects on either side and wire
form (``bytes``, see ``wire``) between them.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks import memory, wire
from secureattn.backends.ckks import residues as ring
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.errors import INSTALL, EngineError, InputError

try:
    import zstandard
    from tenseal import sealapi
except ModuleNotFoundError as error:
    raise EngineError(
        f"the ckks engine needs the Python package {error.name!r}, which is not installed; run {INSTALL['ckks']}"
    ) from error

__all__ = ["Ciphertext", "Ring", "Slots", "sealapi"]

Slots = npt.NDArray[np.float64]
Ciphertext = Any
"""A ``tenseal.sealapi.Ciphertext``; tenseal has no stubs."""

_SEED_MARKER = np.uint64(2**64 - 1)
LOAD_ERRORS = (RuntimeError, ValueError, IndexError, OverflowError, MemoryError)
"""What SEAL throws at bad files."""


class Ring:
    """What both sides know: SEAL's objects for some parameters, files, and the encoding."""

    def __init__(self, parameters: CkksParameters) -> None:
        description = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
        description.set_poly_modulus_degree(parameters.ring_degree)
        description.set_coeff_modulus([sealapi.Modulus(prime) for prime in parameters.primes])
        self.parameters = parameters
        self.context = sealapi.SEALContext(description, True, sealapi.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise EngineError(f"SEAL refuses {parameters}: {self.context.parameters_error_message()}")
        self.encoder = sealapi.CKKSEncoder(self.context)
        self.evaluator = sealapi.Evaluator(self.context)
        header = sealapi.Serialization.SEALHeader()
        self.version = (int(header.version_major), int(header.version_minor))
        data, ids = self.context.first_context_data(), []
        while data is not None:
            ids.append(data.parms_id())
            data = data.next_context_data()
        self.parms_ids = tuple(reversed(ids))  # by level

    # ---- wire and files -------------------------------------------------------------------------------------

    def load(self, blob: bytes) -> Ciphertext:
        """A ciphertext from wire form; InputError when truncated, foreign, of other parameters or without c1."""
        stored = wire.widen(self.parameters, blob)
        if stored.version != self.version:
            theirs, ours = (".".join(map(str, version)) for version in (stored.version, self.version))
            raise InputError(f"ciphertext was made with SEAL {theirs}, this side has {ours}; use one TenSEAL on both")
        try:
            ct = self._from_stored(stored)
            if not stored.is_ntt:
                self.evaluator.transform_to_ntt_inplace(ct)
        except LOAD_ERRORS as error:
            raise InputError(
                "ciphertext is damaged: SEAL refuses its residues or seed; send it again from where it was encrypted"
            ) from error
        if ct.is_transparent():
            raise InputError("ciphertext hides nothing: all but its first polynomial are 0; send an encrypted one")
        return ct

    def save(self, ct: Ciphertext) -> bytes:
        """A ciphertext in wire form."""
        stored = ring.StoredCiphertext(self.residues(ct), ct.scale, ct.is_ntt_form(), self.version)
        return wire.narrow(self.parameters, stored)

    def save_result(self, ct: Ciphertext) -> bytes:
        """Two polynomials as a result nobody computes with any more: at level 0, rounded (``wire.dropped_bits``)."""
        low = sealapi.Ciphertext()
        self.evaluator.mod_switch_to(ct, self.parms_ids[0], low)
        self.evaluator.transform_from_ntt_inplace(low)
        stored = ring.StoredCiphertext(self.residues(low), low.scale, False, self.version)
        return wire.narrow_result(self.parameters, stored)

    def save_fresh(self, serialisable: Any, level: int, scale: float) -> bytes:
        """What symmetric encryption gives, in wire form: seeded, half the size."""
        return wire.narrow(self.parameters, self.seeded(serialisable, level, scale))

    def seeded(self, serialisable: Any, level: int, scale: float) -> ring.StoredCiphertext:
        """What symmetric encryption gives: the first polynomial and the seed of the second."""
        stored = self._seeded_in_memory(serialisable, level, scale) or ring.read_ciphertext(self._file(serialisable))
        return replace(stored, scale=scale)

    def _seeded_in_memory(self, serialisable: Any, level: int, scale: float) -> ring.StoredCiphertext | None:
        """SEAL holds a marker and the seed's file in the place of the second polynomial."""
        layout = layouts().ciphertext
        if layout is None:
            return None
        words = layout.words(serialisable)
        first, second = words.reshape(2, -1)
        seed = second[1:].view(np.uint8)[: ring.SEED_FILE_BYTES].tobytes()
        if second[0] != _SEED_MARKER or len(words) != 2 * (level + 1) * self.parameters.ring_degree:
            return None
        residues = first.reshape(1, level + 1, -1)
        return ring.StoredCiphertext(residues, scale, True, self.version, seed[-ring.SEED_BYTES :])

    def _file(self, serialisable: Any) -> bytes:
        """SEAL's own file of an object, decompressed."""
        with ring.scratch_file() as path:
            serialisable.save(str(path))
            # SEAL's streams name no content size, which only the streaming interface accepts
            return ring.decompressed(path.read_bytes(), zstandard.ZstdDecompressor().decompressobj().decompress)

    # ---- encoding and residues ------------------------------------------------------------------------------

    def encode(self, value: Slots | float, level: int, scale: float) -> Any:
        """A plaintext of up to N/2 reals, or of one real in every slot."""
        if not np.isfinite(value).all():
            raise InputError("values to encode contain NaN or infinity; check the input")
        if isinstance(value, np.ndarray) and (value.ndim != 1 or value.size > self.parameters.slots):
            raise InputError(f"values to encode have shape {value.shape}, slots are [{self.parameters.slots}]")
        plain = sealapi.Plaintext()
        numbers = value.astype(np.float64).tolist() if isinstance(value, np.ndarray) else float(value)
        try:
            self.encoder.encode(numbers, self.parms_ids[level], scale, plain)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"values up to {np.max(np.abs(value)):.3g} at scale 2^{math.log2(scale):.1f} do not fit the primes "
                f"left at level {level}; encode smaller values or at a higher level"
            ) from error
        return plain

    def ntt(self, coefficients: ring.Residues) -> ring.Residues:
        """A ring element's residues ``[level+1][N]`` in NTT form, from those of its coefficients."""
        return self._transformed(self.evaluator.transform_to_ntt_inplace, coefficients, is_ntt=False)

    def coefficients(self, residues: ring.Residues) -> ring.Residues:
        """The inverse of ``ntt``."""
        return self._transformed(self.evaluator.transform_from_ntt_inplace, residues, is_ntt=True)

    def _transformed(self, transform: Any, element: ring.Residues, *, is_ntt: bool) -> ring.Residues:
        """SEAL transforms ciphertexts only, and one whose second polynomial is 0 it may refuse: so (m, m) is one."""
        carrier = self.from_residues(np.stack([element, element]), 1.0, is_ntt=is_ntt)
        transform(carrier)
        transformed: ring.Residues = self.residues(carrier)[0]
        return transformed

    def from_residues(self, residues: ring.Residues, scale: float, *, is_ntt: bool = True) -> Ciphertext:
        """The ciphertext with residues ``[size][level+1][N]``, each below its prime (not checked)."""
        ct = self.empty(residues.shape[0], residues.shape[1] - 1, scale, is_ntt=is_ntt)
        self.residues(ct)[:] = residues
        return self.written(ct)

    def empty(self, size: int, level: int, scale: float, *, is_ntt: bool = True) -> Ciphertext:
        """A ciphertext for residues that are still to be written: into ``residues(ct)``, then ``written`` gives it."""
        if layouts().ciphertext is None:
            shape = (size, level + 1, self.parameters.ring_degree)
            return ring.StoredCiphertext(np.empty(shape, dtype=np.uint64), scale, is_ntt, self.version)
        ct = sealapi.Ciphertext(self.context, self.parms_ids[level], size)
        ct.resize(size)
        ct.scale = scale
        memory.mark_ntt(ct, is_ntt)
        return ct

    def written(self, ct: Ciphertext) -> Ciphertext:
        """The ciphertext that ``empty`` announced, now that its residues are written."""
        return self._from_stored(ct) if isinstance(ct, ring.StoredCiphertext) else ct

    def over(self, residues: ring.Residues, scale: float) -> Ciphertext:
        """The ciphertext whose residues these are, in NTT form; they must outlive it, unchanged. Where SEAL's memory is
        unknown it holds a copy.
        """
        size, primes, degree = residues.shape
        layout, ct = layouts().ciphertext, sealapi.Ciphertext()
        if layout and layout.lend(ct, _header(self.parms_ids[primes - 1], size, degree, primes, scale), residues):
            return ct
        return self.from_residues(residues, scale)

    def residues(self, ct: Ciphertext) -> ring.Residues:
        """Residues ``[size][level+1][N]``, in the form that the ciphertext is in; they share its memory if possible."""
        if isinstance(ct, ring.StoredCiphertext):
            return ct.residues
        layout = layouts().ciphertext
        if layout is None:
            return ring.unpack_ciphertext(self._file(ct))
        return layout.words(ct).reshape(ct.size(), ct.coeff_modulus_size(), -1)

    def plaintext_residues(self, plain: Any) -> ring.Residues:
        """Residues ``[level+1][N]`` of a plaintext, in NTT form; they share its memory if possible."""
        layout = layouts().plaintext
        if layout is None:
            return ring.unpack_plaintext(self._file(plain), self.parameters.ring_degree)
        return layout.words(plain).reshape(-1, self.parameters.ring_degree)

    def _from_stored(self, stored: ring.StoredCiphertext) -> Ciphertext:
        return _through_file(self.context, self.parms_ids[stored.residues.shape[1] - 1], stored)


def _through_file(context: Any, parms_id: Any, stored: ring.StoredCiphertext) -> Ciphertext:
    ct = sealapi.Ciphertext()
    with ring.scratch_file() as path:
        path.write_bytes(
            ring.pack_ciphertext(
                stored.residues,
                parms_id=parms_id,
                scale=stored.scale,
                is_ntt=stored.is_ntt,
                version=stored.version,
                seed=stored.seed,
            )
        )
        ct.load(context, str(path))
    return ct


@dataclass(frozen=True)
class Layouts:
    """Where SEAL keeps residues in memory, None where unknown."""

    ciphertext: memory.Layout | None
    plaintext: memory.Layout | None


@functools.cache
def layouts() -> Layouts:
    """Found once a process, on a ciphertext and a plaintext of a small ring."""
    description = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    degree, primes = 1024, (12289, 18433)
    description.set_poly_modulus_degree(degree)
    description.set_coeff_modulus([sealapi.Modulus(prime) for prime in primes])
    context = sealapi.SEALContext(description, False, sealapi.SEC_LEVEL_TYPE.NONE)
    parms_id, scale = context.last_parms_id(), 2.0**10
    header = sealapi.Serialization.SEALHeader()
    values = np.random.default_rng(0).integers(1, primes[0], size=(2, 1, degree), dtype=np.uint64)
    stored = ring.StoredCiphertext(values, scale, True, (int(header.version_major), int(header.version_minor)))
    ct, plain = _through_file(context, parms_id, stored), sealapi.Plaintext()
    sealapi.CKKSEncoder(context).encode(1.5, parms_id, scale, plain)
    return Layouts(
        memory.Layout.found(ct, _header(parms_id, 2, degree, 1, scale), values.reshape(-1)),
        memory.Layout.found(plain, [*parms_id, degree, _bits(scale)], np.full(degree, 1536, dtype=np.uint64)),
    )


def _header(parms_id: Sequence[int], size: int, degree: int, primes: int, scale: float) -> list[int]:
    """The words that a ciphertext in NTT form starts with; the last is for BGV."""
    return [*parms_id, 1, size, degree, primes, _bits(scale), 1]


def _bits(scale: float) -> int:
    (bits,) = struct.unpack("<Q", struct.pack("<d", scale))
    return int(bits)
