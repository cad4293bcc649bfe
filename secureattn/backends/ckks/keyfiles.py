"""Keys on the wire: every residue in as many bits as its prime needs, so a size is a formula.

Nothing is compressed and nothing but residues is read: no file unpacks to more than it is, and none says what SEAL's
own files are believed in (sizes, counts, moduli). SEAL reads a file written here around the residues, and refuses those
that are not below their prime.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from secureattn.backends.ckks import residues as ring
from secureattn.backends.ckks import wire
from secureattn.backends.ckks.seal import LOAD_ERRORS, Ring, sealapi
from secureattn.errors import InputError

_COUNT = struct.Struct("<Q")
_PARMS = struct.Struct("<4Q")


# ---- SEAL's objects → bytes -------------------------------------------------------------------------------------


def packed_secret(about: Ring, key: Any) -> bytes:
    """The secret key."""
    return _packed(about, about.plaintext_residues(key.data())[None])


def packed_public(about: Ring, key: Any) -> bytes:
    """A public key."""
    return _packed(about, about.residues(key.data()))


def packed_switching(about: Ring, keys: Sequence[Any]) -> bytes:
    """A relinearisation or Galois key."""
    return b"".join(packed_public(about, key) for key in keys)


def _packed(about: Ring, residues: ring.Residues) -> bytes:
    return b"".join(wire.packed(residues, wire.key_widths(about.parameters)))


# ---- bytes → SEAL's objects -------------------------------------------------------------------------------------


def secret_key(about: Ring, blob: bytes) -> Any:
    """The secret key of ``packed_secret``; InputError where it is not one."""
    _check(blob, "secret key", wire.secret_key_bytes(about.parameters))
    (residues,) = _unpacked(about, blob, 1)
    parms_id = about.context.key_parms_id()
    return _in_memory(
        about, sealapi.SecretKey(), "secret key", ring.pack_plaintext(residues, parms_id, 1.0, about.version)
    )


def public_key(about: Ring, blob: bytes) -> Any:
    """The public key of ``packed_public``; InputError where it is not one."""
    _check(blob, "public key", wire.public_key_bytes(about.parameters))
    return _in_memory(about, sealapi.PublicKey(), "public key", _public_file(about, blob))


def relinearisation_key(about: Ring, blob: bytes) -> Any:
    """The relinearisation key of ``packed_switching``; InputError where it is not one."""
    return _switching(about, sealapi.RelinKeys(), "relinearisation key", 1, {0: lambda: blob})


def galois_keys(about: Ring, elements: Mapping[int, Callable[[], bytes]]) -> Any:
    """Galois keys by element, each read when it is its turn; InputError where one is none."""
    places = {(element - 1) // 2: read for element, read in elements.items()}
    return _switching(about, sealapi.GaloisKeys(), "Galois key", about.parameters.ring_degree, places)


def _switching(about: Ring, empty: Any, what: str, count: int, places: Mapping[int, Callable[[], bytes]]) -> Any:
    """Keys at their places among ``count``, as SEAL keeps them; by way of a file, as they are no secret and memory may
    not hold them twice.
    """
    size, one = wire.switching_key_bytes(about.parameters), wire.public_key_bytes(about.parameters)
    with tempfile.TemporaryDirectory(prefix="secureattn-") as folder:
        path = Path(folder) / "keys"
        with path.open("wb") as file:
            file.write(ring.header(0, about.version))
            file.write(_PARMS.pack(*about.context.key_parms_id()) + _COUNT.pack(count))
            for place in range(count):
                if place not in places:
                    file.write(_COUNT.pack(0))
                    continue
                blob = places[place]()
                _check(blob, what, size)
                file.write(_COUNT.pack(size // one))
                for at in range(0, size, one):
                    file.write(_public_file(about, blob[at : at + one]))
            written = file.tell()
            file.seek(0)
            file.write(ring.header(written, about.version))
        return _loaded(about, empty, what, path)


def _in_memory(about: Ring, empty: Any, what: str, blob: bytes) -> Any:
    """Fill an empty SEAL key from its file, which is kept off disks where the system can."""
    with ring.scratch_file() as path:
        path.write_bytes(blob)
        return _loaded(about, empty, what, path)


def _loaded(about: Ring, empty: Any, what: str, path: Path) -> Any:
    try:
        empty.load(about.context, str(path))
    except LOAD_ERRORS as error:
        raise InputError(f"{what} is damaged: SEAL refuses its residues; send it again, or make new ones") from error
    return empty


def _public_file(about: Ring, blob: bytes) -> bytes:
    return ring.pack_ciphertext(
        _unpacked(about, blob, 2),
        parms_id=about.context.key_parms_id(),
        scale=1.0,
        is_ntt=True,
        version=about.version,
    )


def _unpacked(about: Ring, blob: bytes, polynomials: int) -> ring.Residues:
    return wire.unpacked(blob, polynomials, wire.key_widths(about.parameters), about.parameters.ring_degree)


def _check(blob: bytes, what: str, needed: int) -> None:
    if len(blob) != needed:
        raise InputError(
            f"{what} has {len(blob)} bytes, these parameters need {needed}; send it again, or make new ones"
        )
