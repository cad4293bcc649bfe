"""The wire form of ciphertexts: round trips, exact sizes, and no blob that ends in anything but one InputError."""

import contextlib
import subprocess
import sys
import tracemalloc
from dataclasses import replace

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
MAGIC, VERSION, SEAL_VERSION, LEVEL, FORM, SCALE, HEADER = 0, 3, 4, 22, 23, 24, 32  # offsets
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
    assert wire.stored_bytes(SMALL, 0) == 32 + 2 * 4096 * 30 // 8
    assert wire.stored_bytes(SMALL, 1) == 32 + 2 * 4096 * (30 + 24) // 8
    assert wire.stored_bytes(DEEP, 3, size=3) == 32 + 3 * 8192 * (48 + 38 + 38 + 39) // 8
    assert wire.fresh_bytes(DEEP, DEEP.levels) == 32 + 8192 * (48 + 38 + 38 + 39) // 8 + 65
    assert (wire.dropped_bits(SMALL), wire.dropped_bits(DEEP)) == (19 - 12, 19 - 13)
    assert wire.result_bytes(SMALL) == 32 + 2 * 4096 * (30 - 7) // 8
    assert wire.result_bytes(DEEP) == 32 + 2 * 8192 * (48 - 6) // 8


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 2**32))
def test_bits_are_packed_without_a_gap(width, words, seed):
    """64 numbers that lie a 64th of the row apart are one integer, the first in its lowest bits."""
    row = np.random.default_rng(seed).integers(0, 1 << width, 64 * words, dtype=np.uint64)
    row[:2] = (1 << width) - 1, 0
    packed = wire.packed(row[None, None], [width])
    assert len(packed[0]) == 8 * words * width
    assert np.array_equal(wire.unpacked(packed[0], 1, [width], 64 * words)[0, 0], row)
    by_word = np.frombuffer(packed[0], dtype="<u8").reshape(width, words)
    for lane in range(words):
        whole = sum(int(word) << 64 * i for i, word in enumerate(by_word[:, lane]))
        assert whole == sum(int(value) << width * i for i, value in enumerate(row[lane::words]))


@PARAMETERS
def test_a_result_is_rounded_to_the_nearest(parameters):
    """The ends of the range and their neighbours too, where what rounds up to the prime is 0."""
    q, step = parameters.primes[0], 1 << wire.dropped_bits(parameters)
    coefficients = random_ciphertext(parameters, 0, 2, seed=7).residues
    ends = np.r_[0 : step + 2, q - step - 2 : q].astype(np.uint64)
    coefficients[:, 0, : len(ends)] = ends
    stored = StoredCiphertext(coefficients, parameters.scales[0], False, (4, 1))
    blob = wire.narrow_result(parameters, stored)
    again = wire.widen(parameters, blob)
    assert len(blob) == wire.result_bytes(parameters)
    assert (again.scale, again.is_ntt, again.seed, again.residues.shape) == (
        stored.scale,
        False,
        b"",
        (2, 1, stored.residues.shape[2]),
    )
    assert (again.residues < q).all()
    error = (again.residues.astype(np.int64) - coefficients.astype(np.int64) + q // 2) % q - q // 2
    assert np.abs(error).max() == step // 2
    assert 0.95 < error[:, 0, len(ends) :].std() / (step / np.sqrt(12)) < 1.05


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_all_bits_of_a_result_are_read_as_coefficients_below_the_prime(seed):
    head = wire.narrow_result(DEEP, StoredCiphertext(np.zeros((2, 1, 8192), dtype=np.uint64), 2.0**38, False, (4, 1)))
    noise = np.random.default_rng(seed).bytes(len(head) - HEADER)
    for body in (noise, b"\xff" * len(noise)):
        assert (wire.widen(DEEP, head[:HEADER] + body).residues < DEEP.primes[0]).all()


def test_narrow_refuses_what_widen_would():
    whole = random_ciphertext(SMALL, 1, 4)
    for size, seed in ((0, b""), (1, b""), (4, b""), (2, bytes(SEED_BYTES))):
        with pytest.raises(ValueError, match=f"got {size}"):
            wire.narrow(SMALL, StoredCiphertext(whole.residues[:size], 2.0**24, True, (4, 1), seed))
    with pytest.raises(ValueError, match="NTT form"):
        wire.narrow(SMALL, StoredCiphertext(whole.residues[:2], 2.0**24, False, (4, 1)))
    for residues, is_ntt in (
        (whole.residues[:2, :1], True),
        (whole.residues[:2], False),
        (whole.residues[:3, :1], False),
    ):
        with pytest.raises(ValueError, match="two polynomials of coefficients at level 0"):
            wire.narrow_result(SMALL, StoredCiphertext(residues, 2.0**24, is_ntt, (4, 1)))


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
        (VERSION, b"\x01", "wire format 1, this release reads 2; use the same release"),
        (6, b"\x00\x00", "other parameters"),
        (LEVEL, b"\x04", r"level 4 and form 2, this plan has levels 0..3"),
        (LEVEL, b"\xff", "level 255"),
        (LEVEL, b"\x03", "its header says"),
        (FORM, b"\x00", "form 0"),
        (FORM, b"\x01", "its header says"),
        (FORM, b"\x03", "its header says"),
        (FORM, b"\x04", "level 2 and form 4, this plan has levels 0..3 and forms 1 to 3 on each, and 4 on level 0"),
        (FORM, b"\x05", "form 5"),
        (FORM, b"\xff", "form 255"),
    ]:
        assert reason in refuses(lambda b: wire.widen(DEEP, b), changed(blob, at, new))
    for scale in (0.0, -1.0, 0.5, np.nan, np.inf, -np.inf, 5e-324, 2.0**125, 1e308):
        message = refuses(lambda b: wire.widen(DEEP, b), changed(blob, SCALE, np.float64(scale).tobytes()))
        assert "level 2 has 1 to 2^124" in message
    assert "other parameters" in refuses(lambda b: wire.widen(OTHER, b), blob)


def test_a_small_blob_cannot_ask_for_much_memory():
    head = wire.narrow(DEEP, random_ciphertext(DEEP, 0, 2))[:HEADER]
    bad = changed(changed(head, LEVEL, b"\x03"), FORM, b"\x03")
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
    refuses(lambda b: wire.widen(SMALL, b), b"SAc\x02" + noise if with_magic else noise)


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
    """One real blob of each kind: seeded, two polynomials, three, a rounded result."""
    owner, server = sides
    seeded = owner.encrypt(np.linspace(-1, 1, 8))
    ct = server.load(seeded)
    return {
        "seeded": seeded,
        "full": server.save(ct),
        "product": server.save(server.square(ct)),
        "result": server.save_result(ct),
    }


def test_formulas_equal_real_sizes(sides):
    owner, server = sides
    parameters = owner.parameters
    assert len(owner.encrypt(np.ones(3))) == wire.fresh_bytes(parameters, parameters.levels)
    for level in range(parameters.levels + 1):
        seeded = owner.encrypt(np.ones(3), level)
        ct = server.load(seeded)
        assert len(seeded) == wire.stored_bytes(parameters, level, 1) + SEED_BYTES
        assert len(server.save(ct)) == wire.stored_bytes(parameters, level)
        assert len(server.save_result(ct)) == wire.result_bytes(parameters)
        if level:
            assert len(server.save(server.square(ct))) == wire.stored_bytes(parameters, level, 3)
    fresh = server.load(owner.encrypt(np.ones(3)))
    masked = server.mask(fresh, server.draw_mask(fresh.scale))
    assert len(masked) == wire.stored_bytes(parameters, 1)
    assert len(owner.refresh([masked], [parameters.levels])[0]) == wire.fresh_bytes(parameters, parameters.levels)


def test_real_ciphertexts_survive(sides, blobs):
    owner, server = sides
    values = np.linspace(-1, 1, 8)
    for kind, expected in (("seeded", values), ("full", values), ("product", values**2), ("result", values)):
        rounding = 2.0**20 / owner.parameters.scales[0] if kind == "result" else 0.0  # 12 standard deviations
        assert np.abs(owner.decrypt(blobs[kind])[:8] - expected).max() < 0.01 + rounding
    for kind in ("full", "product"):
        assert server.save(server.load(blobs[kind])) == blobs[kind]
    assert server.save(server.load(blobs["seeded"])) == blobs["full"]


@pytest.mark.parametrize("kind", ["seeded", "full", "product"])
def test_residues_at_or_above_their_prime_are_refused(sides, blobs, kind):
    _, server = sides
    parameters = server.parameters
    size = {"seeded": 1, "full": 2, "product": 3}[kind]
    stored = wire.widen(parameters, blobs[kind])
    for prime, q in enumerate(parameters.primes[: parameters.levels + 1]):
        top = (1 << q.bit_length()) - 1
        for value, refused in ((q - 1, False), (q, True), (top, True)):
            residues = stored.residues.copy()
            residues[size - 1, prime, 100] = value
            blob = wire.narrow(parameters, replace(stored, residues=residues))
            if refused:
                assert "SEAL refuses its residues" in refuses(server.load, blob)
            else:
                server.load(blob)


def test_rounding_a_result_adds_what_its_docstring_says(sides):
    """Against the same ciphertext unrounded: standard deviation and Laplace's tail over all slots.

    The four roundings share one secret, so that the deviation scatters by 1.6 % from key to key, the tail by 10 %; the
    bounds lie six of those away. A normal distribution would have a fifth of the tail.
    """
    owner, server = sides
    p = owner.parameters
    slots = np.random.default_rng(1).uniform(-1, 1, p.slots)
    ct = server.drop_to(server.load(owner.encrypt(slots)), 0)
    added = np.concatenate(
        [
            owner.decrypt(server.save_result(one)) - owner.decrypt(server.save(one))
            for one in map(server.rerandomise, [ct] * 4)
        ]
    )
    predicted = 2 ** wire.dropped_bits(p) * p.ring_degree / 6 / ct.scale
    assert 0.9 < added.std() / predicted < 1.1
    assert 6 * predicted == pytest.approx(2.0**wire.ROUNDING_BITS / ct.scale)
    assert 0.4 < (np.abs(added) > 3 * predicted).mean() / np.exp(-3 * np.sqrt(2)) < 1.6
    assert np.abs(added).max() < 20 * predicted


@pytest.mark.parametrize("tokens", [1, 4, 64])
def test_results_that_are_the_same_at_every_token_share_a_ciphertext(sides, tokens):
    """As many as there are tokens, and fewer; errors are no larger than apart."""
    owner, server = sides
    p = owner.parameters
    values = np.random.default_rng(2).uniform(-1, 1, (min(tokens, 5), p.slots // tokens))
    cts = [server.load(owner.encrypt(np.tile(row, tokens), 0)) for row in values]
    total = server.add_many([server.shift(ct, k) for k, ct in enumerate(cts)])
    together = owner.decrypt_interleaved(server.save_result(total), len(values), tokens)
    apart = np.stack([owner.decrypt(server.save_result(ct))[: p.slots // tokens] for ct in cts])
    assert together.shape == values.shape
    assert np.abs(together - values).std() < 1.1 * np.abs(apart - values).std()
    assert np.abs(together - values).max() < 2.0**20 / p.scales[0]


def test_a_backend_sends_as_many_results_in_a_ciphertext_as_there_are_tokens(sides):
    """Ten classes and four tokens: 4, 4 and 2, at one level whatever levels they came from."""
    from secureattn.backends.ckks.backend import CkksBackend
    from secureattn.backends.ckks.cipher import Cipher
    from secureattn.backends.ckks.machine import Machine
    from secureattn.events import Recorder

    owner, server = sides
    p = owner.parameters
    backend = CkksBackend(Machine(p, server, Recorder()), tokens=4)
    values = np.random.default_rng(3).uniform(-1, 1, (10, p.slots // 4))
    levels = [1 if column == 5 else p.levels for column in range(10)]
    ciphers = [
        Cipher(level, p.scales[-1], 2, server.load(owner.encrypt(np.tile(row, 4), level, p.scales[-1])))
        for row, level in zip(values, levels, strict=True)
    ]
    with backend.recorder.phase("online"):
        results = backend.results(backend.tensor(ciphers, (len(values[0]), 1, 10)))
        assert len(backend.results(backend.tensor(ciphers[:3], (4, 4, 3)))) == 3  # what tokens differ in lies apart
    assert [cipher.level for cipher in results] == [p.levels, 1, p.levels]
    assert backend.recorder.total("pt_products") == 3 + 3 + 1
    blobs = [server.save_result(cipher.data) for cipher in results]
    assert {len(blob) for blob in blobs} == {wire.result_bytes(p)}
    scores = np.concatenate([owner.decrypt_interleaved(b, n, 4) for b, n in zip(blobs, (4, 4, 2), strict=True)])
    assert np.abs(scores - values).max() < 2.0**20 / p.scales[0]


@pytest.mark.parametrize("places", [1, 7, (1 << 12) - 1])
def test_shifting_coefficients_is_exact(sides, places):
    owner, server = sides
    p = owner.parameters
    ct = server.load(owner.encrypt(np.linspace(-1, 1, 8)))
    residues = np.array(server.residues(ct))
    expected = np.array(server.residues(server.shift(ct, places)))
    primes = np.array(p.primes[: p.levels + 1], dtype=np.uint64)[:, None]
    for polynomial, shifted in zip(residues, expected, strict=True):
        coefficients = server._ring.coefficients(polynomial)
        past = coefficients[:, -places:]
        negated = np.where(past == 0, past, primes - past)
        assert np.array_equal(server._ring.coefficients(shifted), np.hstack([negated, coefficients[:, :-places]]))


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
