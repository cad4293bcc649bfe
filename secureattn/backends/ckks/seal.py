"""Microsoft SEAL through TenSEAL's bindings: a ring's objects, its files and the encoding. Holds no key.

The only file that imports tenseal. Ciphertexts are ``tenseal.sealapi.Ciphertext`` objects on either side and wire
form (``bytes``, see ``wire``) between them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks import residues as ring
from secureattn.backends.ckks import wire
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

_LOAD_ERRORS = (RuntimeError, ValueError, IndexError, OverflowError, MemoryError)  # what SEAL throws at bad files


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
        except _LOAD_ERRORS as error:
            raise InputError(
                "ciphertext is damaged: SEAL refuses its residues or seed; send it again from where it was encrypted"
            ) from error
        if ct.is_transparent():
            raise InputError("ciphertext hides nothing: all but its first polynomial are 0; send an encrypted one")
        return ct

    def save(self, serialisable: Any) -> bytes:
        """A ciphertext, or what symmetric encryption gives (seeded, half the size), in wire form."""
        return wire.narrow(self.parameters, ring.read_ciphertext(self._file(serialisable)))

    def load_key(self, key: Any, path: Path) -> Any:
        """Fill an empty SEAL key from its file; InputError where that is missing or does not fit."""
        if not path.is_file():
            raise InputError(f"{path.name} is missing; generate keys, or name the folder that holds them")
        try:
            key.load(self.context, str(path))
        except _LOAD_ERRORS as error:
            raise InputError(
                f"{path.name} is damaged or was made with other parameters; generate keys for these"
            ) from error
        return key

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

    def ring_ciphertext(self, element: ring.WideIntegers, level: int, scale: float) -> Ciphertext:
        """The trivial (m, 0), in coefficient form: adding it adds m."""
        residues = element.residues(self.parameters.primes[: level + 1])
        return self.from_residues(np.stack([residues, np.zeros_like(residues)]), scale, is_ntt=False)

    def from_residues(self, residues: ring.Residues, scale: float, *, is_ntt: bool = True) -> Ciphertext:
        """The ciphertext with residues ``[size][level+1][N]``, each below its prime."""
        return self._from_stored(ring.StoredCiphertext(residues, scale, is_ntt, self.version))

    def residues(self, ct: Ciphertext) -> ring.Residues:
        """Residues ``[size][level+1][N]``, in the form that the ciphertext is in."""
        return ring.unpack_ciphertext(self._file(ct))

    def plaintext_residues(self, plain: Any) -> ring.Residues:
        """Residues ``[level+1][N]`` of a plaintext, in NTT form."""
        return ring.unpack_plaintext(self._file(plain), self.parameters.ring_degree)

    def _from_stored(self, stored: ring.StoredCiphertext) -> Ciphertext:
        parms_id = self.parms_ids[stored.residues.shape[1] - 1]
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
            ct.load(self.context, str(path))
        return ct
