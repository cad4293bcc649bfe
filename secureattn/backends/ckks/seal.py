"""Microsoft SEAL through TenSEAL's bindings: the key owner, the evaluator without a key, the masked refresh.

The only file that imports tenseal. Ciphertexts are ``tenseal.sealapi.Ciphertext`` objects at the evaluator and
SEAL files (``bytes``, with parameters, level and scale inside) between the two sides.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks import residues as ring
from secureattn.backends.ckks import wire
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.errors import EngineError, InputError, PlanError

try:
    import tenseal.sealapi as seal
except ImportError as error:
    raise EngineError(
        "the CKKS engine needs TenSEAL, which is not installed here; pip install 'secureattn[ckks]'"
    ) from error

Slots = npt.NDArray[np.float64]
Ciphertext = Any
"""A ``tenseal.sealapi.Ciphertext``; tenseal has no stubs."""

_LOAD_ERRORS = (RuntimeError, ValueError, IndexError, OverflowError, MemoryError)  # what SEAL throws at bad files

SCALE_TOLERANCE = 2.0**-40
"""Scales closer than this (relative) count as equal: far below the noise of any ciphertext."""


class _Ring:
    """What both sides know: SEAL's objects for some parameters, files, and the encoding. Holds no key."""

    def __init__(self, parameters: CkksParameters) -> None:
        description = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        description.set_poly_modulus_degree(parameters.ring_degree)
        description.set_coeff_modulus([seal.Modulus(prime) for prime in parameters.primes])
        self.parameters = parameters
        self.context = seal.SEALContext(description, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise EngineError(f"SEAL refuses {parameters}: {self.context.parameters_error_message()}")
        self.encoder = seal.CKKSEncoder(self.context)
        self.evaluator = seal.Evaluator(self.context)
        header = seal.Serialization.SEALHeader()
        self.version = (header.version_major, header.version_minor)
        data, ids = self.context.first_context_data(), []
        while data is not None:
            ids.append(data.parms_id())
            data = data.next_context_data()
        self.parms_ids = tuple(reversed(ids))  # by level

    def load(self, blob: bytes) -> Ciphertext:
        stored = wire.widen(self.parameters, blob)
        ct = seal.Ciphertext()
        with ring.scratch_file() as path:
            path.write_bytes(stored)
            try:
                ct.load(self.context, str(path))
            except _LOAD_ERRORS as error:
                raise InputError(
                    "ciphertext is damaged or was made with other parameters; "
                    f"send one made with ring degree {self.parameters.ring_degree} and these primes"
                ) from error
        if not (ct.is_ntt_form() and ct.size() >= 2 and math.isfinite(ct.scale) and ct.scale > 0):
            raise InputError("ciphertext is not a CKKS value with a scale; send one that this library encrypted")
        return ct

    def save(self, serialisable: Any) -> bytes:
        return wire.narrow(self.parameters, self.file(serialisable))

    def file(self, serialisable: Any) -> bytes:
        """SEAL's own file of an object."""
        with ring.scratch_file() as path:
            serialisable.save(str(path))
            return path.read_bytes()

    def load_key(self, key: Any, path: Path) -> Any:
        if not path.is_file():
            raise InputError(f"{path.name} is missing; generate keys, or name the folder that holds them")
        try:
            key.load(self.context, str(path))
        except _LOAD_ERRORS as error:
            raise InputError(
                f"{path.name} is damaged or was made with other parameters; generate keys for these"
            ) from error
        return key

    def encode(self, value: Slots | float, level: int, scale: float) -> Any:
        if not np.isfinite(value).all():
            raise InputError("values to encode contain NaN or infinity; check the input")
        if isinstance(value, np.ndarray) and (value.ndim != 1 or value.size > self.parameters.slots):
            raise InputError(f"values to encode have shape {value.shape}, slots are [{self.parameters.slots}]")
        plain = seal.Plaintext()
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
        parms_id = self.parms_ids[residues.shape[1] - 1]
        blob = ring.pack_ciphertext(residues, parms_id=parms_id, scale=scale, is_ntt=is_ntt, version=self.version)
        ct = seal.Ciphertext()
        with ring.scratch_file() as path:
            path.write_bytes(blob)
            ct.load(self.context, str(path))
        return ct

    def residues(self, ct: Ciphertext) -> ring.Residues:
        if ring.zstd_decompressor() is not None:
            return ring.unpack_ciphertext(self.file(ct))
        return _words(ct, 0).reshape(ct.size(), ct.coeff_modulus_size(), self.parameters.ring_degree)


def _words(holder: Any, start: int) -> ring.Residues:
    """The words of a Ciphertext or Plaintext from ``start`` on, one binding call each (0.2 µs)."""
    array = holder.dyn_array()
    count = array.size() - start
    return np.fromiter(map(array.at, range(start, start + count)), dtype=np.uint64, count=count)


@dataclass(frozen=True)
class EvaluationKeys:
    """What the key owner hands to the evaluator: public, relinearisation and planned Galois keys, no secret."""

    parameters: CkksParameters
    rotation_steps: tuple[int, ...]
    public: Any
    relin: Any
    galois: Any

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes in memory of ``public``, ``relin`` and all ``galois`` keys; their files are compressed."""
        one = self.parameters.key_bytes()
        return {
            "public": self.parameters.public_key_bytes(),
            "relin": one,
            "galois": one * sum(step != 0 for step in self.rotation_steps),
        }

    def save(self, folder: Path) -> None:
        """Write ``public.key``, ``relin.key`` and ``galois.key`` (the last only where rotations are planned)."""
        self.public.save(str(folder / "public.key"))
        self.relin.save(str(folder / "relin.key"))
        if any(self.rotation_steps):
            self.galois.save(str(folder / "galois.key"))

    @classmethod
    def load(cls, parameters: CkksParameters, rotation_steps: Iterable[int], folder: Path) -> EvaluationKeys:
        """Read what ``save`` wrote; InputError where a file is missing, damaged or lacks a planned rotation."""
        about, steps = _Ring(parameters), _normalised(rotation_steps, parameters)
        public = about.load_key(seal.PublicKey(), folder / "public.key")
        relin = about.load_key(seal.RelinKeys(), folder / "relin.key")
        galois = seal.GaloisKeys()
        if any(steps):
            about.load_key(galois, folder / "galois.key")
        missing = [step for step in steps if step and not galois.has_key(galois_element(step, parameters))]
        if missing:
            raise InputError(f"galois.key lacks rotations by {missing}; generate keys for this plan")
        return cls(parameters, steps, public, relin, galois)


def galois_element(step: int, parameters: CkksParameters) -> int:
    """Galois element 3^step mod 2N of a rotation to the left."""
    return pow(3, step % parameters.slots, 2 * parameters.ring_degree)


def _normalised(steps: Iterable[int], parameters: CkksParameters) -> tuple[int, ...]:
    return tuple(sorted({step % parameters.slots for step in steps}))


class KeyOwner:
    """The client: the only holder of the secret key. Encrypts, decrypts, and refreshes masked ciphertexts."""

    def __init__(self, parameters: CkksParameters, secret_key: Any, evaluation_keys: EvaluationKeys | None) -> None:
        self.parameters = parameters
        self.evaluation_keys = evaluation_keys
        self._ring = _Ring(parameters)
        self._secret_key = secret_key
        self._decryptor = seal.Decryptor(self._ring.context, secret_key)
        self._encryptor = seal.Encryptor(self._ring.context, secret_key)

    @classmethod
    def generate(cls, parameters: CkksParameters, rotation_steps: Iterable[int]) -> KeyOwner:
        """Fresh keys, with Galois keys for the planned steps only (step s rotates left by s, negative right)."""
        steps = _normalised(rotation_steps, parameters)
        generator = seal.KeyGenerator(_Ring(parameters).context)
        public, relin, galois = seal.PublicKey(), seal.RelinKeys(), seal.GaloisKeys()
        generator.create_public_key(public)
        generator.create_relin_keys(relin)
        if any(steps):
            generator.create_galois_keys([galois_element(step, parameters) for step in steps if step], galois)
        keys = EvaluationKeys(parameters, steps, public, relin, galois)
        return cls(parameters, generator.secret_key(), keys)

    def save_secret(self, path: Path) -> None:
        """Write the secret key to a new file of mode 0600; InputError if the file exists."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            raise InputError(f"{path.name} exists and is never overwritten; choose another name") from None
        self._secret_key.save(str(path))

    @classmethod
    def load_secret(cls, parameters: CkksParameters, path: Path) -> KeyOwner:
        """An owner that encrypts, decrypts and refreshes with a saved secret key; it has no evaluation keys."""
        return cls(parameters, _Ring(parameters).load_key(seal.SecretKey(), path), None)

    def encrypt(self, slots: Slots, level: int | None = None, scale: float | None = None) -> bytes:
        """A fresh symmetric encryption of up to N/2 reals, zero-padded, in SEAL's seeded form (half the size).

        ``level`` is the highest and ``scale`` that level's canonical scale unless given. InputError on NaN, too many
        values or values too large.
        """
        at = self.parameters.levels if level is None else level
        if not 0 <= at <= self.parameters.levels:
            raise InputError(f"level {at} is outside 0..{self.parameters.levels}; choose one inside")
        plain = self._ring.encode(np.asarray(slots, dtype=np.float64), at, scale or self.parameters.scales[at])
        return self._ring.save(self._encryptor.encrypt_symmetric(plain))

    def decrypt(self, blob: bytes) -> Slots:
        """The real slots ``[N/2]``. Do not publish them: CKKS decryptions leak the key (Li, Micciancio 2021).

        EngineError where a coefficient exceeds a quarter of the modulus left: under a wrong key they are uniform,
        and a value that outgrew the modulus has wrapped to a wrong one.
        """
        ct, plain = self._ring.load(blob), seal.Plaintext()
        self._decryptor.decrypt(ct, plain)
        values = np.asarray(self._ring.encoder.decode_complex(plain))
        modulus = math.prod(self.parameters.primes[: ct.coeff_modulus_size()])
        if not self._largest_coefficient(values) * ct.scale < modulus / 4:
            raise EngineError(
                "ciphertext decrypts to numbers as large as its modulus: it was made under another key, or a value "
                "outgrew the primes left; use the key it was encrypted for, or a smaller range"
            )
        return np.ascontiguousarray(values.real)

    def _largest_coefficient(self, slots: npt.NDArray[np.complex128]) -> float:
        """Largest coefficient of the real polynomial that takes these values at the powers 3^j of a 2N-th root."""
        ring_degree = self.parameters.ring_degree
        exponents = [1]
        for _ in range(slots.size - 1):
            exponents.append(exponents[-1] * 3 % (2 * ring_degree))
        at = np.array(exponents)
        spectrum = np.zeros(2 * ring_degree, dtype=np.complex128)
        spectrum[at], spectrum[-at] = slots, slots.conj()
        return float(np.abs(np.fft.fft(spectrum)[:ring_degree]).max() / ring_degree)

    def refresh(self, blobs: Sequence[bytes]) -> list[bytes]:
        """The owner's half of the masked refresh: each ciphertext again on the highest level, at the same scale.

        The lift and the new encryption are exact on the masked ring element, so the mask stays removable; only fresh
        encryption noise is added. InputError unless masked under this key at level 1.
        """
        return [self._refresh(blob) for blob in blobs]

    def _refresh(self, blob: bytes) -> bytes:
        ct, plain = self._ring.load(blob), seal.Plaintext()
        if ct.coeff_modulus_size() != 2:
            raise InputError(f"refresh needs a masked ciphertext at level 1, got level {ct.coeff_modulus_size() - 1}")
        self._decryptor.decrypt(ct, plain)
        q0, q1 = self.parameters.primes[:2]
        element = ring.lift(self._coefficients(plain, ct.scale), (q0, q1))
        # the mask keeps within ±Q/4; under another key half of the coefficients lie outside
        if element.magnitude() > 0.3 * q0 * q1:
            raise InputError("ciphertext to refresh was masked under another key; use this owner's public key")
        return self._ring.save(self._encryptor.encrypt_symmetric(self._ring_plaintext(element, ct.scale)))

    def _coefficients(self, plain: Any, scale: float) -> ring.Residues:
        """Coefficient residues ``[primes][N]`` of a plaintext; SEAL transforms ciphertexts only, so (0, p) serves."""
        values = _words(plain, 0).reshape(1, -1, self.parameters.ring_degree)
        carrier = self._ring.from_residues(np.concatenate([np.zeros_like(values), values]), scale)
        self._ring.evaluator.transform_from_ntt_inplace(carrier)
        return _words(carrier, values.size).reshape(values.shape[1:])

    def _ring_plaintext(self, element: ring.WideIntegers, scale: float) -> Any:
        """A ring element (plus encryption noise) as a plaintext on the highest level.

        SEAL encodes doubles only, too narrow here; decrypting (m, 0) added to an encryption of zero goes round it.
        """
        carrier, plain = seal.Ciphertext(), seal.Plaintext()
        self._encryptor.encrypt_zero_symmetric(carrier)
        carrier.scale = scale
        evaluator = self._ring.evaluator
        evaluator.transform_from_ntt_inplace(carrier)
        evaluator.add_inplace(carrier, self._ring.ring_ciphertext(element, self.parameters.levels, scale))
        evaluator.transform_to_ntt_inplace(carrier)
        self._decryptor.decrypt(carrier, plain)
        return plain


@dataclass(frozen=True)
class Mask:
    """The evaluator's secret for one refresh in flight: never sent, used once."""

    element: ring.WideIntegers = field(repr=False)
    scale: float


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
        self._ring = _Ring(parameters)
        self._evaluator = self._ring.evaluator
        self._encryptor = seal.Encryptor(self._ring.context, evaluation_keys.public)

    # ---- files and arrays -----------------------------------------------------------------------------------

    def load(self, blob: bytes) -> Ciphertext:
        """A ciphertext from its file; InputError when truncated, foreign or of other parameters."""
        return self._ring.load(blob)

    def save(self, ct: Ciphertext) -> bytes:
        """The ciphertext in wire form (see ``wire``), scale and level inside."""
        return self._ring.save(ct)

    def residues(self, ct: Ciphertext) -> ring.Residues:
        """Residues ``[size][level+1][N]`` in NTT form."""
        return self._ring.residues(ct)

    def from_residues(self, residues: ring.Residues, scale: float) -> Ciphertext:
        """The ciphertext with residues ``[size][level+1][N]`` in NTT form, each below its prime."""
        return self._ring.from_residues(residues, scale)

    def level(self, ct: Ciphertext) -> int:
        """Rescales left."""
        return int(ct.coeff_modulus_size()) - 1

    # ---- sums -----------------------------------------------------------------------------------------------

    def add(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """a + b, on the same level and scale."""
        return self._aligned(self._evaluator.add, a, b)

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

    def multiply_constant(self, ct: Ciphertext, value: float, scale: float) -> Ciphertext:
        """ct·value in every slot, value encoded at ``scale``; a fresh encryption of zero where it rounds to 0."""
        return self._multiply_plain(ct, value, scale)

    def multiply_vector(self, ct: Ciphertext, slots: Slots, scale: float) -> Ciphertext:
        """ct·slots, slots ``[≤ N/2]`` encoded at ``scale``; a fresh encryption of zero where they round to 0."""
        return self._multiply_plain(ct, slots, scale)

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
        return self._new(self._evaluator.mod_switch_to, ct, self._ring.parms_ids[level])

    # ---- refresh --------------------------------------------------------------------------------------------

    def rerandomise(self, ct: Ciphertext) -> Ciphertext:
        """ct plus a fresh public-key encryption of zero: the same value with a fresh c1. Apply to every result.

        It hides how c1 was computed (under RLWE), not the noise in the value's lowest bits, which still depends on
        the computation; only a mask (``mask``) floods that.
        """
        return self.add(ct, self._zero(self.level(ct), ct.scale))

    def mask(self, ct: Ciphertext) -> tuple[bytes, Mask]:
        """The evaluator's first half of the masked refresh: what to send to the owner, and what to keep.

        Takes a size-2 ciphertext at level ≥ 1 to level 1, Q = q₀·q₁, rerandomises it and adds r, uniform on
        [-2^(w-1), 2^(w-1)), w = ``parameters.mask_bits``, to every coefficient.
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
        masked = self.rerandomise(self.drop_to(ct, 1))
        mask = Mask(ring.uniform_mask(self.parameters.ring_degree, self.parameters.mask_bits), masked.scale)
        self._add_element(masked, mask.element)
        return self.save(masked), mask

    def unmask(self, blob: bytes, mask: Mask) -> Ciphertext:
        """The evaluator's second half: the refreshed value on the highest level, at the scale it had before."""
        ct = self.load(blob)
        if self.level(ct) != self.parameters.levels or ct.size() != 2 or not _close(ct.scale, mask.scale):
            raise InputError("the key owner's answer to a refresh has another level or scale; answer each mask once")
        self._add_element(ct, -mask.element)
        return ct

    def _add_element(self, ct: Ciphertext, element: ring.WideIntegers) -> None:
        self._evaluator.transform_from_ntt_inplace(ct)
        self._evaluator.add_inplace(ct, self._ring.ring_ciphertext(element, self.level(ct), ct.scale))
        self._evaluator.transform_to_ntt_inplace(ct)

    # ---- inner ----------------------------------------------------------------------------------------------

    def _new(
        self, operation: Callable[..., None], ct: Ciphertext, *rest: Any, scale: float | None = None
    ) -> Ciphertext:
        """Run an operation into a new ciphertext; where SEAL refuses a result without c1 (x - x), encrypt zero."""
        out = seal.Ciphertext()
        try:
            operation(ct, *rest, out)
        except RuntimeError as error:
            if "transparent" not in str(error):
                raise
            return self._zero(self.level(ct), ct.scale if scale is None else scale)
        return out

    def _zero(self, level: int, scale: float) -> Ciphertext:
        zero = seal.Ciphertext()
        self._encryptor.encrypt_zero(self._ring.parms_ids[level], zero)
        zero.scale = scale
        return zero

    def _copy(self, ct: Ciphertext) -> Ciphertext:
        return self._new(self._evaluator.mod_switch_to, ct, ct.parms_id())

    def _multiply_plain(self, ct: Ciphertext, value: Slots | float, scale: float) -> Ciphertext:
        plain = self._ring.encode(value, self.level(ct), scale)
        if plain.is_zero():
            return self._zero(self.level(ct), ct.scale * scale)
        return self._new(self._evaluator.multiply_plain, ct, plain, scale=ct.scale * scale)

    def _aligned(self, operation: Callable[..., None], a: Ciphertext, b: Ciphertext) -> Ciphertext:
        self._same_level(a, b)
        if not _close(a.scale, b.scale):
            raise AssertionError(f"scales differ: 2^{math.log2(a.scale):.12f} and 2^{math.log2(b.scale):.12f}")
        own = b.scale
        b.scale = a.scale  # SEAL wants them equal to the last bit
        try:
            return self._new(operation, a, b)
        finally:
            b.scale = own

    def _same_level(self, a: Ciphertext, b: Ciphertext) -> None:
        if self.level(a) != self.level(b):
            raise AssertionError(f"levels differ: {self.level(a)} and {self.level(b)}; drop one to the other first")

    def _needs_level(self, ct: Ciphertext, what: str) -> None:
        if self.level(ct) < 1:
            raise PlanError(f"{what} needs 1 level, 0 remain; refresh before it or choose parameters with more levels")


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= SCALE_TOLERANCE * max(a, b)
