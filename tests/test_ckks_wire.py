"""The wire form of ciphertexts: round trips, exact sizes, and no blob that ends in anything but one InputError."""

import contextlib
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secureattn.backends.ckks import wire
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.backends.ckks.residues import SEED_BYTES, StoredCiphertext
from secureattn.errors import EngineError, InputError

SMALL = CkksParameters(1 << 12, (30, 24, 30), 24)
DEEP = CkksParameters(1 << 13, (48, 38, 38, 38, 52), 38)
OTHER = CkksParameters(1 << 13, (48, 38, 38, 52), 38)
MAGIC, VERSION, SEAL_VERSION, LEVEL, POLYNOMIALS, SCALE, HEADER = 0, 3, 4, 22, 23, 24, 32  # offsets
PARAMETERS = pytest.mark.parametrize("parameters", [SMALL, DEEP], ids=["small", "deep"])


def changed(blob, at, new):
    """The blob with other bytes at an offset."""
    return blob[:at] + bytes(new) + blob[at + len(new) :]


def random_ciphertext(parameters, level, size, *, seeded=False, seed=0):
    """Uniform residues, each set with its extremes 0 and q - 1."""
    rng = np.random.default_rng(seed)
    residues = np.empty((size, level + 1, parameters.ring_degree), dtype=np.uint64)
    for i, q in enumerate(parameters.primes[: level + 1]):
        residues[:, i] = rng.integers(0, q, (size, parameters.ring_degree), dtype=np.uint64)
        residues[:, i, :2] = 0, q - 1
    return StoredCiphertext(residues, parameters.scales[level], True, (4, 1), rng.bytes(SEED_BYTES) if seeded else b"")


def refuses(read, blob):
    """The message of the one-sentence InputError that reading the blob must end in."""
    with pytest.raises(InputError) as caught:
        read(blob)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    return str(caught.value)


# ---- without an engine ------------------------------------------------------------------------------------------


@st.composite
def ciphertexts(draw):
    parameters = draw(st.sampled_from([SMALL, DEEP]))
    size = draw(st.integers(1, 3))
    stored = random_ciphertext(
        parameters, draw(st.integers(0, parameters.levels)), size, seeded=size == 1, seed=draw(st.integers(0, 2**32))
    )
    return parameters, stored


@settings(max_examples=40, deadline=None)
@given(ciphertexts())
def test_widen_undoes_narrow_and_sizes_are_the_formula(case):
    parameters, stored = case
    blob = wire.narrow(parameters, stored)
    again = wire.widen(parameters, blob)
    assert np.array_equal(again.residues, stored.residues)
    assert (again.scale, again.is_ntt, again.version, again.seed) == (stored.scale, True, (4, 1), stored.seed)
    assert wire.narrow(parameters, again) == blob
    size, primes, _ = stored.residues.shape
    assert len(blob) == wire.stored_bytes(parameters, primes - 1, size) + len(stored.seed)


def test_sizes_by_hand():
    assert wire.stored_bytes(SMALL, 0) == 32 + 2 * 4096 * 4
    assert wire.stored_bytes(SMALL, 1) == 32 + 2 * 4096 * (4 + 3)
    assert wire.stored_bytes(DEEP, 3, size=3) == 32 + 3 * 8192 * (6 + 5 + 5 + 5)
    assert wire.fresh_bytes(DEEP, DEEP.levels) == 32 + 8192 * (6 + 5 + 5 + 5) + 65


def test_narrow_refuses_what_widen_would():
    whole = random_ciphertext(SMALL, 1, 4)
    for size, seed in ((0, b""), (1, b""), (4, b""), (2, bytes(SEED_BYTES))):
        with pytest.raises(ValueError, match=f"got {size}"):
            wire.narrow(SMALL, StoredCiphertext(whole.residues[:size], 2.0**24, True, (4, 1), seed))
    with pytest.raises(ValueError, match="NTT form"):
        wire.narrow(SMALL, StoredCiphertext(whole.residues[:2], 2.0**24, False, (4, 1)))


@PARAMETERS
@pytest.mark.parametrize(("size", "seeded"), [(1, True), (2, False), (3, False)])
def test_a_blob_of_another_length_is_refused(parameters, size, seeded):
    blob = wire.narrow(parameters, random_ciphertext(parameters, parameters.levels, size, seeded=seeded))
    for length in (0, 1, 3, HEADER - 1, HEADER, HEADER + 1, len(blob) // 2, len(blob) - SEED_BYTES, len(blob) - 1):
        assert "truncated" in refuses(lambda b: wire.widen(parameters, b), blob[:length])
    for more in (b"x", bytes(SEED_BYTES), blob):
        assert "its header says" in refuses(lambda b: wire.widen(parameters, b), blob + more)


def test_foreign_blobs_are_refused_and_say_why():
    blob = wire.narrow(DEEP, random_ciphertext(DEEP, 2, 2))
    for at, new, reason in [
        (MAGIC, b"PK", "not one of this library's"),
        (VERSION, b"\x02", "wire format 2, this release reads 1"),
        (6, b"\x00\x00", "other parameters"),
        (LEVEL, b"\x04", r"level 4 and 2 polynomials, this plan has levels 0..3"),
        (LEVEL, b"\xff", "level 255"),
        (LEVEL, b"\x03", "its header says"),
        (POLYNOMIALS, b"\x00", "0 polynomials"),
        (POLYNOMIALS, b"\x01", "its header says"),
        (POLYNOMIALS, b"\x03", "its header says"),
        (POLYNOMIALS, b"\xff", "255 polynomials"),
    ]:
        assert reason in refuses(lambda b: wire.widen(DEEP, b), changed(blob, at, new))
    for scale in (0.0, -1.0, 0.5, np.nan, np.inf, -np.inf, 5e-324, 2.0**125, 1e308):
        message = refuses(lambda b: wire.widen(DEEP, b), changed(blob, SCALE, np.float64(scale).tobytes()))
        assert "level 2 has 1 to 2^124" in message
    assert "other parameters" in refuses(lambda b: wire.widen(OTHER, b), blob)


def test_a_small_blob_cannot_ask_for_much_memory():
    head = wire.narrow(DEEP, random_ciphertext(DEEP, 0, 2))[:HEADER]
    bad = changed(changed(head, LEVEL, b"\x03"), POLYNOMIALS, b"\x03")
    wire.stored_bytes(DEEP, 3)  # primes are computed once
    tracemalloc.start()
    try:
        refuses(lambda b: wire.widen(DEEP, b), bad)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_plans_need_no_engine_for_sizes():
    code = "import sys, secureattn.backends.ckks.wire; print({'tenseal', 'zstandard', 'torch'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"set()\n"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused(noise, with_magic):
    refuses(lambda b: wire.widen(SMALL, b), b"SAc\x01" + noise if with_magic else noise)


# ---- with SEAL --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[SMALL, DEEP], ids=["small", "deep"])
def sides(request):
    pytest.importorskip("tenseal")
    from secureattn.backends.ckks.evaluator import SealEvaluator
    from secureattn.backends.ckks.keys import KeyOwner

    owner = KeyOwner.generate(request.param, ())
    return owner, SealEvaluator(request.param, owner.evaluation_keys)


@pytest.fixture(scope="module")
def blobs(sides):
    """One real blob of each kind: seeded, two polynomials, three."""
    owner, server = sides
    seeded = owner.encrypt(np.linspace(-1, 1, 8))
    ct = server.load(seeded)
    return {"seeded": seeded, "full": server.save(ct), "product": server.save(server.square(ct))}


def test_formulas_equal_real_sizes(sides):
    owner, server = sides
    parameters = owner.parameters
    assert len(owner.encrypt(np.ones(3))) == wire.fresh_bytes(parameters, parameters.levels)
    for level in range(parameters.levels + 1):
        seeded = owner.encrypt(np.ones(3), level)
        ct = server.load(seeded)
        assert len(seeded) == wire.stored_bytes(parameters, level, 1) + SEED_BYTES
        assert len(server.save(ct)) == wire.stored_bytes(parameters, level)
        if level:
            assert len(server.save(server.square(ct))) == wire.stored_bytes(parameters, level, 3)
    fresh = server.load(owner.encrypt(np.ones(3)))
    masked = server.mask(fresh, server.draw_mask(fresh.scale))
    assert len(masked) == wire.stored_bytes(parameters, 1)
    assert len(owner.refresh([masked], [parameters.levels])[0]) == wire.fresh_bytes(parameters, parameters.levels)


def test_real_ciphertexts_survive(sides, blobs):
    owner, server = sides
    values = np.linspace(-1, 1, 8)
    for kind, expected in (("seeded", values), ("full", values), ("product", values**2)):
        assert np.abs(owner.decrypt(blobs[kind])[:8] - expected).max() < 0.01
    for kind in ("full", "product"):
        assert server.save(server.load(blobs[kind])) == blobs[kind]
    assert server.save(server.load(blobs["seeded"])) == blobs["full"]


@pytest.mark.parametrize("kind", ["seeded", "full", "product"])
def test_residues_at_or_above_their_prime_are_refused(sides, blobs, kind):
    owner, server = sides
    parameters = owner.parameters
    at = HEADER
    for q in parameters.primes[: parameters.levels + 1]:
        width = (q.bit_length() + 7) // 8
        server.load(changed(blobs[kind], at, (q - 1).to_bytes(width, "little")))
        for bad in (q, (1 << 8 * width) - 1):
            message = refuses(server.load, changed(blobs[kind], at, bad.to_bytes(width, "little")))
            assert "SEAL refuses its residues" in message
        at += parameters.ring_degree * width


def test_seeds_and_versions_that_seal_does_not_know_are_refused(sides, blobs):
    _, server = sides
    seeded, full = blobs["seeded"], blobs["full"]
    for generator in (0, 3, 255):
        assert "or seed" in refuses(server.load, changed(seeded, len(seeded) - SEED_BYTES, [generator]))
    for major, minor in ((0, 0), (3, 4), (5, 0), (255, 255)):
        for blob in (seeded, full):
            message = refuses(server.load, changed(blob, SEAL_VERSION, (major, minor)))
            assert f"made with SEAL {major}.{minor}, this side has" in message


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_blobs_load_or_are_refused(sides, blobs, data):
    """Byte flips anywhere, the header and the end more often, then perhaps a cut."""
    owner, server = sides
    blob = bytearray(blobs[data.draw(st.sampled_from(sorted(blobs)))])
    last = len(blob) - 1
    places = st.one_of(st.integers(0, HEADER), st.integers(last - SEED_BYTES - 8, last), st.integers(0, last))
    for at, flip in data.draw(st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=4)):
        blob[at] ^= flip
    damaged = bytes(blob[: data.draw(st.one_of(st.just(len(blob)), st.integers(0, len(blob))))])
    for read in (owner.decrypt, lambda b: owner.refresh([b], [1])):
        with contextlib.suppress(InputError, EngineError):  # and never a warning
            read(damaged)
    try:
        ct = server.load(damaged)
    except InputError:
        refuses(server.load, damaged)
        return
    assert ct.size() in (2, 3)
    assert 0 <= server.level(ct) <= owner.parameters.levels
    assert np.array_equal(server.residues(server.load(server.save(ct))), server.residues(ct))
