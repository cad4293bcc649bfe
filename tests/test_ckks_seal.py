"""The SEAL engine against numpy: operations, scales, keys, the masked refresh, bad input."""

import gc
import importlib
import sys
import types

import numpy as np
import pytest

pytest.importorskip("tenseal")

from secureattn.backends.ckks import residues as ring
from secureattn.backends.ckks import wire
from secureattn.backends.ckks.evaluator import SealEvaluator
from secureattn.backends.ckks.keys import EvaluationKeys, KeyOwner
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.backends.ckks.seal import sealapi
from secureattn.errors import EngineError, InputError, PlanError

PARAMETERS = CkksParameters(1 << 13, (48, 38, 38, 38, 52), 38)
SMALL = CkksParameters(1 << 12, (30, 24, 30), 24)
N = PARAMETERS.slots
STEPS = (1, 5, -3)
SCALE = 2.0**38


@pytest.fixture(scope="module")
def owner():
    return KeyOwner.generate(PARAMETERS, STEPS)


@pytest.fixture(scope="module")
def server(owner):
    return SealEvaluator(PARAMETERS, owner.evaluation_keys)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(1).uniform(-2, 2, N)


@pytest.fixture(scope="module")
def y():
    return np.random.default_rng(2).uniform(-2, 2, N)


@pytest.fixture(scope="module")
def cx(owner, server, x):
    return server.load(owner.encrypt(x))


@pytest.fixture(scope="module")
def cy(owner, server, y):
    return server.load(owner.encrypt(y))


@pytest.fixture(scope="module")
def holds(owner, server):
    def check(ct, expected, *, tolerance=1e-6):
        error = np.abs(owner.decrypt(server.save(ct)) - expected).max()
        assert error < tolerance, f"max error {error:.3g}"

    return check


def test_holds_fails_on_wrong_data(holds, cx, x):
    with pytest.raises(AssertionError, match="max error"):
        holds(cx, x + 1e-5)


# ---- encryption -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [None, 0, 1, 3])
def test_encrypt_decrypt_with_level_and_scale(owner, server, x, level):
    blob = owner.encrypt(x, level)
    ct = server.load(blob)
    expected_level = 3 if level is None else level
    assert server.level(ct) == expected_level
    assert ct.scale == PARAMETERS.scales[expected_level]
    assert np.abs(owner.decrypt(blob) - x).max() < 1e-6
    assert server.load(owner.encrypt(x, level, 2.0**30)).scale == 2.0**30


def test_encrypt_pads_short_input_and_is_seeded_to_half_size(owner, server):
    blob = owner.encrypt(np.array([1.5, -2.0]))
    assert np.abs(owner.decrypt(blob) - np.r_[1.5, -2.0, np.zeros(N - 2)]).max() < 1e-6
    assert len(blob) < 0.55 * len(server.save(server.load(blob)))
    assert owner.encrypt(np.zeros(1)) != owner.encrypt(np.zeros(1))


def test_encrypt_refuses_what_does_not_fit(owner):
    for bad, match in [
        (np.array([1.0, np.nan]), "NaN"),
        (np.array([np.inf]), "infinity"),
        (np.zeros(N + 1), "slots are"),
        (np.zeros((2, 2)), "shape"),
        (np.array([1e45]), "do not fit"),
    ]:
        with pytest.raises(InputError, match=match):
            owner.encrypt(bad)
    with pytest.raises(InputError, match="level 4"):
        owner.encrypt(np.zeros(1), 4)


# ---- evaluator --------------------------------------------------------------------------------------------------


def test_sums(server, holds, cx, cy, x, y):
    holds(server.add(cx, cy), x + y)
    holds(server.sub(cx, cy), x - y)
    holds(server.negate(cx), -x)
    holds(server.add_many([cx, cy, cx]), 2 * x + y)
    holds(server.add_many([cx]), x)
    holds(server.add_constant(cx, -0.7), x - 0.7)
    holds(server.add_vector(cx, y), x + y)
    holds(server.add_vector(cx, y[:3]), x + np.r_[y[:3], np.zeros(N - 3)])
    holds(cx, x)  # no operation changed its argument
    holds(cy, y)


def test_products(server, holds, cx, cy, x, y):
    product = server.multiply(cx, cy)
    assert product.size() == 3
    assert product.scale == cx.scale * cy.scale
    holds(product, x * y)
    holds(server.relinearize(product), x * y)
    holds(server.rescale(server.relinearize(product)), x * y)
    holds(server.relinearize(server.rescale(product)), x * y, tolerance=1e-4)  # its rounding error meets s²
    holds(server.square(cx), x * x)
    holds(server.multiply_constant(cx, -0.3, SCALE), -0.3 * x)
    holds(server.rescale(server.multiply_vector(cx, y, SCALE)), x * y)
    holds(server.add_constant(product, 1.0), x * y + 1)
    holds(cx, x)


def test_results_that_are_zero_are_encryptions_of_zero(server, holds, cx):
    for zero in (
        server.multiply_constant(cx, 0.0, SCALE),
        server.multiply_constant(cx, 1e-30, SCALE),
        server.multiply_vector(cx, np.zeros(N), SCALE),
        server.sub(cx, cx),
    ):
        assert not zero.is_transparent()
        holds(zero, 0)
    assert server.multiply_constant(cx, 0.0, SCALE).scale == server.multiply_constant(cx, 1.0, SCALE).scale
    holds(server.rescale(server.multiply_constant(cx, 0.0, SCALE)), 0)


@pytest.mark.parametrize("steps", [0, 1, 5, -3, N - 3, 1 - N, N])
def test_rotations(server, holds, cx, x, steps):
    holds(server.rotate(cx, steps), np.roll(x, -steps))


def test_rotation_without_a_key(server, cx):
    with pytest.raises(PlanError, match="rotation by 2 has no key"):
        server.rotate(cx, 2)


def test_scales_are_exact_over_the_whole_chain(owner, server, holds):
    values = np.random.default_rng(3).uniform(-1, 1, N)
    ct = server.load(owner.encrypt(values))
    for level in range(PARAMETERS.levels, 0, -1):
        assert server.level(ct) == level
        assert ct.scale == PARAMETERS.scales[level]
        ct = server.rescale(server.relinearize(server.square(ct)))
        values = values * values
        holds(ct, values)
    assert server.level(ct) == 0
    assert ct.scale == PARAMETERS.scales[0]
    holds(server.add(ct, server.load(owner.encrypt(values, 0))), 2 * values)


def test_drop_to_keeps_value_and_scale(server, holds, cx, x):
    for level in (3, 2, 0):
        low = server.drop_to(cx, level)
        assert server.level(low) == level
        assert low.scale == cx.scale
        holds(low, x)


def test_levels_that_are_missing(server, cx):
    bottom = server.drop_to(cx, 0)
    for run in (server.rescale, server.square, lambda c: masked(server, c), lambda c: server.multiply(c, c)):
        with pytest.raises(PlanError, match="needs 1 level, 0 remain"):
            run(bottom)
    with pytest.raises(PlanError, match="drop_to"):
        server.drop_to(bottom, 1)


def test_mismatches_are_refused_and_near_scales_aligned(owner, server, holds, cx, x):
    with pytest.raises(AssertionError, match="levels differ"):
        server.add(cx, server.drop_to(cx, 1))
    with pytest.raises(AssertionError, match="scales differ"):
        server.add(cx, server.load(owner.encrypt(x, scale=SCALE * 1.001)))
    near = SCALE * (1 + 2.0**-45)
    other = server.load(owner.encrypt(x, scale=near))
    holds(server.add(cx, other), 2 * x)
    assert other.scale == near
    assert cx.scale == SCALE
    with pytest.raises(ValueError, match="nothing"):
        server.add_many([])


def test_residues_round_trip(server, holds, cx, x):
    residues = server.residues(cx)
    assert residues.shape == (2, 4, 2 * N)
    assert all((residues[:, i] < q).all() for i, q in enumerate(PARAMETERS.primes[:4]))
    holds(server.from_residues(residues, cx.scale), x)
    doubled = np.stack([2 * residues[:, i] % np.uint64(q) for i, q in enumerate(PARAMETERS.primes[:4])], axis=1)
    holds(server.from_residues(doubled, cx.scale), 2 * x)


# ---- refresh ----------------------------------------------------------------------------------------------------


def masked(server, ct):
    mask = server.draw_mask(ct.scale)
    return server.mask(ct, mask), mask


def masked_coefficients(owner, blob):
    """What the owner learns from a masked ciphertext: centred coefficients, as float64."""
    plain, ct = sealapi.Plaintext(), owner._ring.load(blob)
    owner._decryptor.decrypt(ct, plain)
    element = ring.lift(owner._ring.coefficients(owner._ring.plaintext_residues(plain)), owner.parameters.primes[:2])
    return element.low.astype(np.float64) + float(element.base) * element.high


def test_refresh_restores_the_top_level(owner, server, holds, x):
    values = 32 * np.sin(x)
    assert PARAMETERS.refresh_hiding_bits(32) >= 40
    for level in (3, 1):
        ct = server.load(owner.encrypt(values, level))
        blob, mask = masked(server, ct)
        fresh = server.unmask(owner.refresh([blob], [mask.level])[0], mask)
        assert server.level(fresh) == PARAMETERS.levels
        assert fresh.scale == ct.scale
        holds(fresh, values)
        holds(ct, values)
        holds(server.relinearize(server.square(fresh)), values * values, tolerance=1e-5)


def test_refresh_at_16384_and_8_levels():
    parameters = CkksParameters(1 << 14, (55, *[40] * 8, 55), 40)
    owner = KeyOwner.generate(parameters, ())
    server = SealEvaluator(parameters, owner.evaluation_keys)
    values = np.random.default_rng(4).uniform(-30, 30, parameters.slots)
    cts = [server.load(owner.encrypt(v, 2)) for v in (values, -values)]
    blobs, masks = zip(*[masked(server, ct) for ct in cts], strict=True)
    for sign, answer, mask in zip((1, -1), owner.refresh(list(blobs), [8, 8]), masks, strict=True):
        fresh = server.unmask(answer, mask)
        assert server.level(fresh) == 8
        assert np.abs(owner.decrypt(server.save(fresh)) - sign * values).max() < 1e-6
    assert parameters.refresh_hiding_bits(2.0**5) >= 40


def test_the_owner_sees_the_mask_and_not_the_value(owner, server):
    """One value, 30 everywhere: its only coefficient that is not noise is the constant one."""
    ct = server.load(owner.encrypt(np.full(N, 30.0)))
    views = [masked_coefficients(owner, masked(server, ct)[0]) / 2.0**PARAMETERS.mask_bits for _ in range(8)]
    for view in views:
        assert -0.501 < view.min() < -0.49
        assert 0.49 < view.max() < 0.501
        assert abs(view.mean()) < 0.02
        assert abs(view.std() - 12**-0.5) < 0.01
        distance = np.abs(np.sort(view) + 0.5 - (np.arange(view.size) + 0.5) / view.size).max()
        assert distance < 0.033  # Kolmogorov-Smirnov: 3.0/sqrt(8192), p = 3e-8
    constant = [view[0] for view in views]
    assert np.ptp(constant) > 0.1  # 30 is 2^-43 of the width
    assert max(abs(np.corrcoef(views)[np.triu_indices(8, 1)])) < 0.06


def test_masking_and_rerandomising_renew_c1(server, holds, cx, x):
    before = server.residues(server.drop_to(cx, 1))[1]
    assert (server.residues(server.load(masked(server, cx)[0]))[1] != before).mean() > 0.999
    fresh = server.rerandomise(cx)
    assert (server.residues(fresh)[1] != server.residues(cx)[1]).mean() > 0.999
    holds(fresh, x)


def test_refresh_refuses_strangers(owner, server, cx):
    other = KeyOwner.generate(PARAMETERS, ())
    blob, mask = masked(server, cx)
    with pytest.raises(InputError, match="another key"):
        other.refresh([blob], [3])
    with pytest.raises(InputError, match="level 1"):
        owner.refresh([owner.encrypt(np.ones(4))], [3])
    with pytest.raises(InputError, match="another level or scale"):
        server.unmask(owner.encrypt(np.ones(4), 2), mask)
    with pytest.raises(InputError, match="another level or scale"):
        server.unmask(owner.encrypt(np.ones(4), scale=2.0**30), mask)
    with pytest.raises(ValueError, match="size 2"):
        masked(server, server.square(cx))


def test_a_mask_does_not_print_itself(server, cx):
    assert "element" not in repr(masked(server, cx)[1])


# ---- keys and bad input -----------------------------------------------------------------------------------------


def reachable(start):
    seen, queue = {}, [start]
    while queue:
        thing = queue.pop()
        if id(thing) in seen or isinstance(thing, (types.ModuleType, type, types.FunctionType)):
            continue
        seen[id(thing)] = thing
        queue += gc.get_referents(thing)
        queue += list(vars(thing).values()) if hasattr(thing, "__dict__") else []
    return list(seen.values())


def test_the_server_holds_no_secret(owner, server):
    secret = (sealapi.SecretKey, sealapi.Decryptor, sealapi.KeyGenerator, KeyOwner)
    assert not [thing for thing in reachable(server) if isinstance(thing, secret)]
    assert [thing for thing in reachable(owner) if isinstance(thing, secret[0])]  # the walk does find one


def test_keys_are_the_planned_ones_and_their_sizes_known(owner):
    keys = owner.evaluation_keys
    assert keys.rotation_steps == (1, 5, N - 3)
    assert keys.galois.size() == 3
    assert keys.sizes == {
        "public": PARAMETERS.public_key_bytes(),
        "relin": PARAMETERS.key_bytes(),
        "galois": 3 * PARAMETERS.key_bytes(),
    }
    assert KeyOwner.generate(SMALL, [0]).evaluation_keys.sizes["galois"] == 0


def test_keys_survive_the_wire(owner, x):
    keys = owner.evaluation_keys
    parts = {name: keys.part(name) for name in wire.key_sizes(PARAMETERS, STEPS)}
    assert {name: len(part) for name, part in parts.items()} == wire.key_sizes(PARAMETERS, STEPS)
    server = SealEvaluator(PARAMETERS, EvaluationKeys.of_parts(PARAMETERS, STEPS, parts.__getitem__))
    again = KeyOwner.of_secret(PARAMETERS, owner.secret())
    assert again.evaluation_keys is None
    ct = server.rotate(server.relinearize(server.square(server.load(owner.encrypt(x)))), 5)
    assert np.abs(again.decrypt(server.save(ct)) - np.roll(x * x, -5)).max() < 1e-6
    fresh = server.rerandomise(server.load(owner.encrypt(x)))
    assert np.abs(again.decrypt(server.save(fresh)) - x).max() < 1e-6


def test_keys_of_another_size_or_with_foreign_residues_are_refused(owner):
    sizes = wire.key_sizes(PARAMETERS, STEPS)
    parts = {name: owner.evaluation_keys.part(name) for name in sizes}
    for name in sizes:
        for bad in (b"", parts[name][:-1], parts[name] + b"\0", b"\xff" * len(parts[name])):
            with pytest.raises(InputError, match=r"send it again, or make new ones$"):
                EvaluationKeys.of_parts(PARAMETERS, STEPS, {**parts, name: bad}.__getitem__)
    for bad in (b"", owner.secret()[:-1], b"\xff" * len(owner.secret())):
        with pytest.raises(InputError, match="secret key"):
            KeyOwner.of_secret(PARAMETERS, bad)


def test_every_reader_refuses_bad_ciphertexts_in_one_sentence(owner, server, x):
    blob = owner.encrypt(x)
    foreign = KeyOwner.generate(SMALL, ()).encrypt(np.ones(3), scale=2.0**20)
    too_large = blob[:3000] + b"\xff" * 200 + blob[3200:]
    for bad in (b"", b"\x00", blob[:100], blob[:-1], blob + b"x", b"P" * 5000, too_large, foreign):
        for read in (server.load, owner.decrypt, lambda b: owner.refresh([b], [1])):
            with pytest.raises(InputError) as caught:
                read(bad)
            assert "\n" not in str(caught.value)
            assert len(str(caught.value)) < 250


def test_a_ciphertext_that_hides_nothing_is_refused(server, cx):
    residues = server.residues(cx).copy()
    residues[1] = 0
    with pytest.raises(InputError, match="hides nothing"):
        server.load(server.save(server.from_residues(residues, cx.scale)))


def test_what_the_wire_cannot_carry_is_not_saved(server, cx):
    coefficients = server._ring.from_residues(server.residues(cx), SCALE, is_ntt=False)
    with pytest.raises(ValueError, match="NTT form"):
        server.save(coefficients)
    product = server.square(cx)
    with pytest.raises(ValueError, match="got 4; relinearise"):
        server.save(server.multiply(server.drop_to(product, 2), server.drop_to(cx, 2)))


def test_wrong_key_and_overflow_are_errors_not_numbers(owner, server, x):
    other = KeyOwner.generate(PARAMETERS, ())
    for level in (0, 3):
        with pytest.raises(EngineError, match="another key"):
            other.decrypt(owner.encrypt(x, level))
    for huge in (np.full(N, 700.0), np.random.default_rng(5).uniform(-9e5, 9e5, N)):  # q_0/scale is 1024
        ct = server.load(owner.encrypt(huge, 1))
        assert np.abs(owner.decrypt(server.save(ct)) - huge).max() < 1e-6
        with pytest.raises(EngineError, match="outgrew"):
            owner.decrypt(server.save(server.drop_to(ct, 0)))
    edge = np.full(N, 250.0)
    assert np.abs(owner.decrypt(owner.encrypt(edge, 0)) - edge).max() < 1e-6
    with pytest.raises(EngineError, match="other parameters"):
        SealEvaluator(SMALL, owner.evaluation_keys)


@pytest.mark.parametrize("missing", ["tenseal", "zstandard"])
def test_a_missing_engine_says_how_to_get_it(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "secureattn.backends.ckks.seal")
    with pytest.raises(EngineError, match=r"pip install tenseal zstandard cryptography"):
        importlib.import_module("secureattn.backends.ckks.seal")
