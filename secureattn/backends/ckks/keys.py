"""The key owner's side: key sets and their files, and the only holder of the secret key."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks import keyfiles, wire
from secureattn.backends.ckks import residues as ring
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.backends.ckks.seal import Ring, Slots, sealapi
from secureattn.backends.ckks.wire import GALOIS, PUBLIC, RELIN
from secureattn.errors import EngineError, InputError


@dataclass(frozen=True)
class EvaluationKeys:
    """What the key owner hands to the evaluator: public, relinearisation and planned Galois keys, no secret."""

    parameters: CkksParameters
    rotation_steps: tuple[int, ...]
    public: Any
    relin: Any
    galois: Any

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes in memory of ``public``, ``relin`` and all ``galois`` keys; on the wire see ``wire.key_sizes``."""
        one = self.parameters.key_bytes()
        return {
            "public": self.parameters.public_key_bytes(),
            "relin": one,
            "galois": one * sum(step != 0 for step in self.rotation_steps),
        }

    def part(self, name: str) -> bytes:
        """The key of this name (``wire.key_sizes``) in wire form."""
        if name == PUBLIC:
            return keyfiles.packed_public(self._ring, self.public)
        if name == RELIN:
            return keyfiles.packed_switching(self._ring, self.relin.key(2))
        element = galois_element(int(name.removeprefix(GALOIS)), self.parameters)
        return keyfiles.packed_switching(self._ring, self.galois.key(element))

    @classmethod
    def of_parts(
        cls, parameters: CkksParameters, rotation_steps: Iterable[int], part: Callable[[str], bytes]
    ) -> EvaluationKeys:
        """Keys from their parts; InputError where one is damaged or of other parameters."""
        about, steps = Ring(parameters), wire.normalised(rotation_steps, parameters)
        readers = {
            galois_element(step, parameters): functools.partial(part, f"{GALOIS}{step}") for step in steps if step
        }
        public = keyfiles.public_key(about, part(PUBLIC))
        relin = keyfiles.relinearisation_key(about, part(RELIN))
        galois = keyfiles.galois_keys(about, readers) if readers else sealapi.GaloisKeys()
        return cls(parameters, steps, public, relin, galois)

    @functools.cached_property
    def _ring(self) -> Ring:
        return Ring(self.parameters)


def galois_element(step: int, parameters: CkksParameters) -> int:
    """Galois element 3^step mod 2N of a rotation to the left."""
    return pow(3, step % parameters.slots, 2 * parameters.ring_degree)


class KeyOwner:
    """The client: the only holder of the secret key. Encrypts, decrypts, and refreshes masked ciphertexts."""

    def __init__(self, about: Ring, secret_key: Any, evaluation_keys: EvaluationKeys | None) -> None:
        self.parameters = about.parameters
        self.evaluation_keys = evaluation_keys
        self._ring = about
        self._secret_key = secret_key
        self._decryptor = sealapi.Decryptor(about.context, secret_key)
        self._encryptor = sealapi.Encryptor(about.context, secret_key)

    @classmethod
    def generate(cls, parameters: CkksParameters, rotation_steps: Iterable[int]) -> KeyOwner:
        """Fresh keys, with Galois keys for the planned steps only (step s rotates left by s, negative right)."""
        about, steps = Ring(parameters), wire.normalised(rotation_steps, parameters)
        generator = sealapi.KeyGenerator(about.context)
        public, relin, galois = sealapi.PublicKey(), sealapi.RelinKeys(), sealapi.GaloisKeys()
        generator.create_public_key(public)
        generator.create_relin_keys(relin)
        if any(steps):
            generator.create_galois_keys([galois_element(step, parameters) for step in steps if step], galois)
        keys = EvaluationKeys(parameters, steps, public, relin, galois)
        return cls(about, generator.secret_key(), keys)

    def secret(self) -> bytes:
        """The secret key in wire form, for a file that nobody else may read."""
        return keyfiles.packed_secret(self._ring, self._secret_key)

    @classmethod
    def of_secret(cls, parameters: CkksParameters, blob: bytes) -> KeyOwner:
        """An owner that encrypts, decrypts and refreshes with a saved secret key; it has no evaluation keys."""
        about = Ring(parameters)
        return cls(about, keyfiles.secret_key(about, blob), None)

    def encrypt(self, slots: Slots, level: int | None = None, scale: float | None = None) -> bytes:
        """A fresh symmetric encryption of up to N/2 reals, zero-padded, in SEAL's seeded form (half the size).

        ``level`` is the highest and ``scale`` that level's canonical scale unless given. InputError on NaN, too many
        values or values too large.
        """
        at = self.parameters.levels if level is None else level
        if not 0 <= at <= self.parameters.levels:
            raise InputError(f"level {at} is outside 0..{self.parameters.levels}; choose one inside")
        used = scale or self.parameters.scales[at]
        plain = self._ring.encode(np.asarray(slots, dtype=np.float64), at, used)
        return self._ring.save_fresh(self._encryptor.encrypt_symmetric(plain), at, used)

    def decrypt(self, blob: bytes) -> Slots:
        """The real slots ``[N/2]``. Do not publish them as they are: CKKS decryptions leak the key (``flooding``).

        EngineError where a coefficient exceeds a quarter of the modulus left: under a wrong key they are uniform,
        and a value that outgrew the modulus has wrapped to a wrong one.
        """
        return np.ascontiguousarray(self._complex_slots(blob).real)

    def decrypt_interleaved(self, blob: bytes, count: int, tokens: int) -> Slots:
        """The values ``[count][N/2/tokens]`` of as many results that share a ciphertext, ``Σ_k X^k·result_k``.

        Each is the same at all T tokens. X^-k brings it into place, and the mean over tokens takes off the others,
        whose powers of X are no multiples of T: rotations by tokens are X → X^g, g = 1 mod 2N/T, and an X^i that T does
        not divide takes values that sum to 0. See ``decrypt`` on what not to do with them, and on errors.
        """
        values = self._complex_slots(blob)
        turns = np.exp(-1j * np.pi / self.parameters.ring_degree * np.outer(np.arange(count), self._exponents))
        return np.ascontiguousarray((values * turns).reshape(count, tokens, -1).mean(axis=1).real)

    def _complex_slots(self, blob: bytes) -> npt.NDArray[np.complex128]:
        ct, plain = self._ring.load(blob), sealapi.Plaintext()
        self._decryptor.decrypt(ct, plain)
        values = np.asarray(self._ring.encoder.decode_complex(plain))
        modulus = math.prod(self.parameters.primes[: ct.coeff_modulus_size()])
        if not self._largest_coefficient(values) * ct.scale < modulus / 4:
            raise EngineError(
                "ciphertext decrypts to numbers as large as its modulus: it was made under another key, or a value "
                "outgrew the primes left; use the key it was encrypted for, or a smaller range"
            )
        return values

    @functools.cached_property
    def _exponents(self) -> npt.NDArray[np.int64]:
        """3^j mod 2N: slot j is the value at this power of a 2N-th root of unity."""
        exponents = [1]
        for _ in range(self.parameters.slots - 1):
            exponents.append(exponents[-1] * 3 % (2 * self.parameters.ring_degree))
        return np.array(exponents)

    def _largest_coefficient(self, slots: npt.NDArray[np.complex128]) -> float:
        """Largest coefficient of the real polynomial that takes these values at the powers 3^j of a 2N-th root."""
        ring_degree = self.parameters.ring_degree
        at, spectrum = self._exponents, np.zeros(2 * ring_degree, dtype=np.complex128)
        spectrum[at], spectrum[-at] = slots, slots.conj()
        return float(np.abs(np.fft.fft(spectrum)[:ring_degree]).max() / ring_degree)

    def refresh(self, blobs: Sequence[bytes], levels: Sequence[int]) -> list[bytes]:
        """The owner's half of the masked refresh: each ciphertext again, fresh on the level asked for, at its scale.

        The lift and the new encryption are exact on the masked ring element, so the mask stays removable; only fresh
        encryption noise is added. InputError unless masked under this key at level 1.
        """
        return [self._refresh(blob, level) for blob, level in zip(blobs, levels, strict=True)]

    def _refresh(self, blob: bytes, level: int) -> bytes:
        if not 1 <= level <= self.parameters.levels:
            raise InputError(f"a refresh to level {level} was asked for, levels are 1..{self.parameters.levels}")
        ct, plain = self._ring.load(blob), sealapi.Plaintext()
        if ct.coeff_modulus_size() != 2:
            raise InputError(f"refresh needs a masked ciphertext at level 1, got level {ct.coeff_modulus_size() - 1}")
        self._decryptor.decrypt(ct, plain)
        primes = self.parameters.primes
        element = ring.lift(self._ring.coefficients(self._ring.plaintext_residues(plain)), (primes[0], primes[1]))
        # the mask keeps within ±Q/4; under another key half of the coefficients lie outside
        if element.magnitude() > 0.3 * primes[0] * primes[1]:
            raise InputError("ciphertext to refresh was masked under another key; use this owner's public key")
        zero = self._encryptor.encrypt_zero_symmetric(self._ring.parms_ids[level])
        stored = self._ring.seeded(zero, level, ct.scale)
        masked = self._ring.ntt(element.residues(primes[: level + 1]))
        residues = ring.addmod(stored.residues, masked[None], primes)
        return wire.narrow(self.parameters, replace(stored, residues=residues))
