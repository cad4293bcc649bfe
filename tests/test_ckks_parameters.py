"""CKKS parameters and residue arithmetic, which need no engine."""

import math
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secureattn.backends.ckks import residues as ring
from secureattn.backends.ckks.parameters import MAX_MODULUS_BITS, CkksParameters, candidates, is_prime
from secureattn.errors import InputError, PlanError, ProtocolError

N13 = CkksParameters(1 << 13, (50, 38, 38, 38, 50), 38)
N14 = CkksParameters(1 << 14, (55, *[40] * 8, 55), 40)
N15 = CkksParameters(1 << 15, (54, *[40] * 19, 54), 40)
CHAINS = pytest.mark.parametrize(
    "parameters", [N13, N14, N15, *candidates()], ids=lambda p: f"{p.prime_bits[0]}+{p.levels}x{p.scale_bits}"
)


# ---- chains -----------------------------------------------------------------------------------------------------


@CHAINS
def test_primes_are_distinct_ntt_primes_with_the_special_one_largest(parameters):
    primes = parameters.primes
    assert len(set(primes)) == len(primes) == len(parameters.prime_bits)
    assert all(is_prime(p) and p % (2 * parameters.ring_degree) == 1 for p in primes)
    assert all(abs(math.log2(p) - bits) < 1e-3 for p, bits in zip(primes, parameters.prime_bits, strict=True))
    assert max(primes) == primes[-1] < 1 << 60
    assert abs(math.log2(math.prod(primes)) - parameters.modulus_bits) < 1e-3


@CHAINS
def test_scales_follow_the_primes_exactly_and_stay_near_the_nominal_one(parameters):
    scales = parameters.scales
    assert len(scales) == parameters.levels + 1
    assert scales[-1] == 2.0**parameters.scale_bits
    for level in range(1, parameters.levels + 1):
        assert scales[level - 1] == scales[level] * scales[level] / parameters.primes[level]
    assert all(0.5 < scale / 2.0**parameters.scale_bits < 2 for scale in scales)
    assert all(abs(scale / 2.0**parameters.scale_bits - 1) < 1e-4 for scale in scales)


def test_is_prime_against_a_sieve_and_known_composites():
    sieve = [all(n % d for d in range(2, math.isqrt(n) + 1)) for n in range(2, 2000)]
    assert [is_prime(n) for n in range(2, 2000)] == sieve
    assert not is_prime(3215031751)  # strong pseudoprime to 2, 3, 5, 7
    assert not is_prime(341550071728321)  # to the first seven primes
    assert is_prime((1 << 61) - 1)
    assert not is_prime(0)
    assert not is_prime(1)


def test_parameters_are_deterministic_and_their_fingerprint_tells_them_apart():
    again = CkksParameters(1 << 14, (55, *[40] * 8, 55), 40)
    assert again == N14
    assert again.primes == N14.primes
    assert again.fingerprint == N14.fingerprint
    assert len({p.fingerprint for p in (N13, N14, N15)}) == 3


def test_candidates_fill_the_budget():
    found = {p.ring_degree: p for p in candidates()}
    assert {n: (p.prime_bits[0], p.levels, p.prime_bits[-1]) for n, p in found.items()} == {
        1 << 13: (47, 3, 47),
        1 << 14: (52, 8, 58),
        1 << 15: (51, 19, 57),
    }
    assert all(p.refresh_hiding_bits(2.0**5) >= 40 for p in candidates())
    assert all(p.security_bits >= 128 and p.modulus_bits <= MAX_MODULUS_BITS[p.ring_degree] for p in candidates(50))


def test_all_violations_are_listed_at_once():
    with pytest.raises(ProtocolError) as caught:
        CkksParameters(5000, (61, 40, 30, 38), 40)
    text = str(caught.value)
    assert len(caught.value.violations) == 5
    for part in ("power of two", "prime_bits has 61", "special prime has 38", "middle primes", "scale_bits = 40"):
        assert part in text
    with pytest.raises(ProtocolError, match="must be"):
        CkksParameters(1 << 13, (50,), 40)
    with pytest.raises(ProtocolError, match="below the first prime"):
        CkksParameters(1 << 13, (40, 50), 40)


def test_less_than_128_bits_is_refused_with_both_numbers_and_a_remedy():
    with pytest.raises(PlanError, match=r"use 230 modulus bits.* 8192 allows 214 at 128.* ring_degree = 16384"):
        CkksParameters(1 << 13, (55, 40, 40, 40, 55), 40)
    with pytest.raises(PlanError, match="use fewer or smaller primes"):
        CkksParameters(1 << 16, (60, *[50] * 40, 60), 50)
    CkksParameters(1 << 13, (47, 40, 40, 40, 47), 40)  # 214 exactly is allowed


def test_sizes():
    assert N14.slots == 8192
    assert N14.levels == 8
    assert N14.ciphertext_bytes(8) == 2359296
    assert N14.ciphertext_bytes(0, size=3) == 3 * 8 * 16384
    assert N15.key_bytes() == 210 << 20
    assert N14.public_key_bytes() == 16 * 16384 * 10


def test_refresh_hiding_bits():
    q = N14.primes[0] * N14.primes[1]
    assert q / 4 <= 1 << N14.mask_bits <= q / 2  # r within ±Q/4
    exact = N14.mask_bits - math.log2(max(N14.scales)) - 5
    assert N14.refresh_hiding_bits(2.0**5) == pytest.approx(exact)
    assert exact >= 48
    assert N14.refresh_hiding_bits(2.0**5, coefficients=1 << 14) == pytest.approx(exact - 14)
    assert all(p.refresh_hiding_bits(2.0**5) >= 40 for p in (N13, N14, N15))
    with pytest.raises(PlanError, match="2 primes"):
        CkksParameters(1 << 12, (50, 55), 40).refresh_hiding_bits(1.0)
    with pytest.raises(ValueError, match="positive"):
        N14.refresh_hiding_bits(0.0)


# ---- arithmetic -------------------------------------------------------------------------------------------------

MODULI = st.one_of(
    st.integers(2, 1 << 60), st.integers((1 << 56) - 9, (1 << 56) + 9), st.integers((1 << 57) - 999, 1 << 57)
)


@st.composite
def products(draw):
    modulus = draw(MODULI)
    residue = st.one_of(st.integers(0, modulus - 1), st.integers(max(0, modulus - 3), modulus - 1))
    pairs = draw(st.lists(st.tuples(residue, residue), min_size=1, max_size=20))
    return modulus, [a for a, _ in pairs], [b for _, b in pairs]


@settings(max_examples=300, deadline=None)
@given(products())
def test_mulmod_equals_python_integers(case):
    modulus, a, b = case
    left, right = np.array(a, dtype=np.uint64), np.array(b, dtype=np.uint64)
    expected = [x * y % modulus for x, y in zip(a, b, strict=True)]
    assert ring.mulmod(left, right, modulus).tolist() == expected
    assert ring.mulmod(left, b[0], modulus).tolist() == [x * b[0] % modulus for x in a]
    assert ring.negmod(left, modulus).tolist() == [-x % modulus for x in a]


@pytest.mark.parametrize("bits", [40, 55, 57, 60])
def test_mulmod_at_random_and_at_the_ends(bits):
    modulus = (1 << bits) - 1
    rng = np.random.default_rng(bits)
    a, b = (rng.integers(0, modulus, 5000, dtype=np.uint64) for _ in range(2))
    a[:3] = b[:3] = modulus - 1
    assert ring.mulmod(a, b, modulus).tolist() == [int(x) * int(y) % modulus for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("modulus", [0, 1, (1 << 60) + 1])
def test_mulmod_refuses_moduli_it_would_get_wrong(modulus):
    with pytest.raises(ValueError, match="outside"):
        ring.mulmod(np.ones(1, dtype=np.uint64), 1, modulus)


def whole(element):
    return [int(low) + element.base * int(high) for low, high in zip(element.low, element.high, strict=True)]


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([N13, N14, N15]), st.lists(st.integers(-(1 << 120), 1 << 120), min_size=1, max_size=9))
def test_lift_and_reduce_equal_python_integers(parameters, numbers):
    q0, q1 = parameters.primes[:2]
    q = q0 * q1
    centred = [(x + q // 2) % q - q // 2 for x in [*numbers, 0, -1, 1, q // 2, -(q // 2), q // 2 + 1, q - 1]]
    residues = np.array([[x % q0 for x in centred], [x % q1 for x in centred]], dtype=np.uint64)
    element = ring.lift(residues, (q0, q1))
    assert whole(element) == centred
    assert element.magnitude() == pytest.approx(max(map(abs, centred)))
    for prime in parameters.primes:
        assert element.reduce(prime).tolist() == [x % prime for x in centred]
    assert whole(-element) == [-x for x in centred]
    assert (-element).residues(parameters.primes).tolist() == [[-x % p for x in centred] for p in parameters.primes]


@pytest.mark.parametrize("bits", [2, 3, 64, 86, 93, 118])
def test_mask_is_uniform_over_its_width(bits):
    numbers = whole(ring.uniform_mask(20000, bits))
    assert -(1 << (bits - 1)) <= min(numbers)
    assert max(numbers) < 1 << (bits - 1)
    unit = np.array([x / 2.0**bits for x in numbers]) + 0.5
    counts = np.bincount((unit * 4).astype(int), minlength=4)
    assert abs(counts - 5000).max() < 400  # 6.5 standard deviations
    if bits > 20:
        assert len(set(numbers)) > 19000
        low_bits = np.array([x & 1 for x in numbers])
        assert abs(low_bits.mean() - 0.5) < 0.025


def test_mask_refuses_widths_it_cannot_hold():
    with pytest.raises(ValueError, match="outside"):
        ring.uniform_mask(1, 121)


# ---- files ------------------------------------------------------------------------------------------------------


def test_scratch_file_is_private_and_removed_even_on_error():
    seen = []

    def fail():
        with ring.scratch_file() as path:
            seen.append(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not seen[0].exists()


def test_scratch_file_works_without_memory_that_has_no_name_and_without_a_tmpfs(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ring.scratch_file() as path:
        assert path.parent == Path(tmp_path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has memory that is a file without a name")
def test_scratch_file_is_in_no_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with ring.scratch_file() as first, ring.scratch_file() as second:
        first.write_bytes(b"one")
        second.write_bytes(b"two")
        assert (first.read_bytes(), second.read_bytes()) == (b"one", b"two")
        assert first.stat().st_nlink == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32))
def test_ciphertext_files_round_trip(size, primes, seed):
    residues = np.random.default_rng(seed).integers(0, 1 << 60, (size, primes, 8), dtype=np.uint64)
    blob = ring.pack_ciphertext(residues, parms_id=(1, 2, 3, 4), scale=2.0**40, is_ntt=True, version=(4, 1))
    assert np.array_equal(ring.unpack_ciphertext(blob), residues)
    for cut in (0, 10, 16, 60, len(blob) - 1):
        with pytest.raises(InputError):
            ring.unpack_ciphertext(blob[:cut])
    with pytest.raises(InputError, match="not a SEAL file"):
        ring.unpack_ciphertext(b"x" * len(blob))


def test_a_file_that_contradicts_itself_is_refused():
    residues = np.ones((2, 1, 8), dtype=np.uint64)
    blob = bytearray(ring.pack_ciphertext(residues, parms_id=(1, 2, 3, 4), scale=1.0, is_ntt=True, version=(4, 1)))
    blob[16 + 33] = 3  # the size field
    with pytest.raises(InputError, match="other data"):
        ring.unpack_ciphertext(bytes(blob))
    blob[5] = 77  # the compression field
    with pytest.raises(InputError, match="compressed"):
        ring.unpack_ciphertext(bytes(blob))
