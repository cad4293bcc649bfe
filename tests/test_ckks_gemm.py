"""Weight matrices times ciphertexts: float64 products over limbs against big integers, and against scalar products."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secureattn.backends.ckks import gemm
from secureattn.backends.ckks.cipher import Cipher, NullDevice
from secureattn.backends.ckks.costs import TYPICAL, Costs
from secureattn.backends.ckks.machine import Machine
from secureattn.backends.ckks.parameters import chain, is_prime
from secureattn.events import Recorder

SEED = 20251123
EXTREME = 1 << 61
"""Integers of a weight reach this."""

needs_tenseal = pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="TenSEAL is not installed")

Array = np.ndarray


def prime_below(n: int) -> int:
    return next(p for p in range(n, 1, -1) if is_prime(p))


# ---- against big integers ---------------------------------------------------------------------------------------


def by_big_integers(weights: Array, inputs: list[Array], primes: list[int]) -> Array:
    """``[Dout][size][primes][N]``."""
    size, _, degree = inputs[0].shape
    made = np.empty((len(weights), size, len(primes), degree), dtype=np.uint64)
    exact = weights.astype(object)
    for at, prime in enumerate(primes):
        rows = np.stack([x[:, at].reshape(-1) for x in inputs]).astype(object)
        made[:, :, at] = ((exact @ rows) % prime).astype(np.uint64).reshape(len(weights), size, degree)
    return made


def multiplied(weights: Array, inputs: list[Array], primes: list[int]) -> Array:
    """The same by ``gemm``; outputs hold anything before."""
    size, _, degree = inputs[0].shape
    made = np.full((len(weights), size, len(primes), degree), 0xDEAD, dtype=np.uint64)
    gemm.multiply(weights, inputs, list(made), primes)
    return made


@st.composite
def cases(draw: st.DrawFn, width: Any) -> tuple[Array, list[Array], list[int]]:
    """Weights, inputs with perhaps a prime more than is asked for, primes of 20 to 60 bits."""
    bits = draw(st.lists(st.integers(20, 60), min_size=1, max_size=3, unique=True))
    primes = [prime_below(draw(st.sampled_from([(1 << b) - 1, (1 << b - 1) + (1 << b - 3)]))) for b in bits]
    inputs, outputs = draw(width), draw(st.integers(1, 4))
    size, degree = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    rng = np.random.default_rng([SEED, draw(st.integers(0, 1 << 30))])
    largest = draw(st.sampled_from([1, 1 << 20, 1 << 45, EXTREME]))
    weights = rng.integers(-largest, largest, size=(outputs, inputs), endpoint=True)
    weights[rng.random(weights.shape) < 0.2] = rng.choice([-largest, 0, largest])
    moduli = np.array([*primes, primes[0]], dtype=np.uint64)[:, None]  # the last of them nobody asks for
    x = rng.integers(0, 1 << 63, size=(inputs, size, len(moduli), degree), dtype=np.uint64) % moduli
    ends = rng.random(x.shape)
    x = np.where(ends < 0.1, 0, np.where(ends > 0.8, moduli - 1, x)).astype(np.uint64)
    return weights, list(x), primes


@settings(max_examples=150)
@given(cases(st.integers(1, 24)))
def test_products_are_exact(case: tuple[Array, list[Array], list[int]]) -> None:
    assert np.array_equal(multiplied(*case), by_big_integers(*case))


@settings(max_examples=12)
@given(cases(st.integers(200, 600)))
def test_wide_products_are_exact(case: tuple[Array, list[Array], list[int]]) -> None:
    assert np.array_equal(multiplied(*case), by_big_integers(*case))


@pytest.mark.parametrize("bits", [20, 40, 47, 58, 60])
@pytest.mark.parametrize("inputs", [1, 33, 600])
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_sums_are_exact(bits: int, inputs: int, sign: int) -> None:
    """Every residue at its largest, every limb of it full, with weights as large as their centred form gets."""
    prime = prime_below((1 << bits) - 1)
    half = sign * (prime // 2)
    weights = np.array([[half] * inputs, [-half] * inputs, [half + sign] * inputs, [sign * EXTREME] * inputs])
    x = [np.array([[[prime - 1, prime - 2, (1 << bits - 1) - 1, 0, 1, prime // 2]]], dtype=np.uint64)] * inputs
    assert np.array_equal(multiplied(weights, x, [prime]), by_big_integers(weights, x, [prime]))


def test_polynomials_longer_than_a_block() -> None:
    """Columns are handled some thousand at a time."""
    prime, degree = prime_below(1 << 40), 2 * gemm._COLUMNS
    rng = np.random.default_rng(SEED)
    x = [rng.integers(0, prime, size=(2, 1, degree), dtype=np.uint64) for _ in range(3)]
    weights = rng.integers(-EXTREME, EXTREME, size=(2, 3))
    assert np.array_equal(multiplied(weights, x, [prime]), by_big_integers(weights, x, [prime]))


def test_an_output_that_is_off_by_one_is_seen() -> None:
    weights, x, primes = np.array([[3]]), [np.full((1, 1, 4), 5, dtype=np.uint64)], [prime_below(1 << 20)]
    wrong = multiplied(weights, x, primes)
    assert np.array_equal(wrong, np.full((1, 1, 1, 4), 15))
    wrong[0, 0, 0, 3] += 1
    assert not np.array_equal(wrong, by_big_integers(weights, x, primes))


# ---- limbs ------------------------------------------------------------------------------------------------------


def largest_sum(bits: int, count: int, size: int, inputs: int) -> int:
    """The most that a sum of so many limbs of residues times limbs of centred weights can be."""
    return count * inputs * ((1 << size) - 1) * (1 << (size - 1))


@pytest.mark.parametrize("bits", range(20, 61))
def test_limbs_keep_every_sum_exact_and_are_as_few_as_that_allows(bits: int) -> None:
    prime = prime_below((1 << bits) - 1)
    for inputs in (1, 2, 3, 32, 33, 64, 100, 256, 257, 600, 4096):
        count, size = gemm.limbs(prime, inputs)
        assert count * size >= bits
        assert largest_sum(bits, count, size, inputs) < 1 << 53
        if count > 1:
            wider = -(-bits // (count - 1))
            assert largest_sum(bits, count - 1, wider, inputs) > (1 << 53) * 0.999
        assert gemm.gemm_products([prime, prime], inputs) == 2 * count * count * inputs


def test_no_limbs_for_more_inputs_than_any_sum_holds() -> None:
    with pytest.raises(ValueError, match=r"^no limbs keep sums of 4503599627370496 products exact$"):
        gemm.limbs(prime_below(1 << 20), 1 << 52)


@settings(max_examples=60)
@given(st.integers(20, 60), st.integers(1, 600), st.data())
def test_weights_in_limbs(bits: int, inputs: int, data: st.DataObject) -> None:
    """Their limbs make up ``2^{sk}·W mod q`` again, and none exceeds half of what its bits hold."""
    prime = prime_below((1 << bits) - 1)
    count, size = gemm.limbs(prime, inputs)
    extremes = st.sampled_from([-EXTREME, EXTREME, prime // 2, prime // 2 + 1, -(prime // 2), 0, 1, -1])
    weights = data.draw(st.lists(st.integers(-EXTREME, EXTREME) | extremes, min_size=1, max_size=5))
    found = gemm._weight_limbs(np.array([weights]), prime, count, size).reshape(count, count, len(weights))
    assert np.abs(found).max() <= 1 << (size - 1)
    exact = found.astype(object)
    for k in range(count):
        for i, weight in enumerate(weights):
            total = sum(int(exact[limb, k, i]) << (size * limb) for limb in range(count))
            assert (total - (weight << (size * k))) % prime == 0
            assert abs(total) <= prime // 2 + 1


# ---- on ciphertexts ---------------------------------------------------------------------------------------------

PARAMETERS = chain(1 << 13, 3)
MATRIX_RATES = ("matrix_inputs", "matrix_outputs", "matrix_products")


def priced(factor: float) -> Costs:
    """Costs at which matrix products are almost free, or never worth it."""
    return replace(TYPICAL, rates={n: s * factor if n in MATRIX_RATES else s for n, s in TYPICAL.rates.items()})


ROUTES = {"scalar products": priced(1e9), "matrix products": priced(1e-9)}


class Sides:
    """Both roles, and machines that take one route or the other."""

    def __init__(self) -> None:
        from secureattn.backends.ckks.evaluator import SealEvaluator
        from secureattn.backends.ckks.keys import KeyOwner

        self.owner = KeyOwner.generate(PARAMETERS, ())
        assert self.owner.evaluation_keys is not None
        self.device = SealEvaluator(PARAMETERS, self.owner.evaluation_keys)
        self.x = np.random.default_rng(SEED).uniform(-1, 1, size=(6, PARAMETERS.slots))

    def ciphers(self, level: int = 3, scale: float | None = None) -> list[Cipher]:
        return [self.cipher(row, level, scale) for row in self.x]

    def cipher(self, row: Array, level: int, scale: float | None = None) -> Cipher:
        ct = self.device.load(self.owner.encrypt(row, level, scale))
        return Cipher(level, ct.scale, 2, ct)

    def sums(
        self, route: str, weights: Array, inputs: list[Cipher], level: int, scale: float
    ) -> tuple[list[Cipher], Recorder, int]:
        """The sums, what was counted, and how many matrix products were taken."""
        machine = Machine(PARAMETERS, self.device, Recorder(), costs=ROUTES[route])
        taken = 0
        multiply = self.device.multiply_matrix

        def spied(*operands: Any, **named: Any) -> Any:
            nonlocal taken
            taken += 1
            return multiply(*operands, **named)

        self.device.multiply_matrix = spied  # type: ignore[method-assign]
        try:
            with machine.recorder.op("linear"):
                made = machine.weighted_sums(weights, inputs, level, scale)
        finally:
            del self.device.multiply_matrix  # type: ignore[method-assign]
        return made, machine.recorder, taken

    def one(self, row: Array, inputs: list[Cipher], level: int, scale: float) -> Cipher:
        machine = Machine(PARAMETERS, self.device, Recorder())
        with machine.recorder.op("linear"):
            return machine.weighted_sum(list(zip(row.tolist(), inputs, strict=True)), level, scale)

    def decrypted(self, cipher: Cipher) -> Array:
        return self.owner.decrypt(self.device.save(cipher.data))


@pytest.fixture(scope="module")
def sides() -> Sides:
    pytest.importorskip("tenseal")
    return Sides()


def weights_of(kind: str, rng: np.random.Generator) -> Array:
    made = rng.normal(size=(5, 6))
    if kind == "zero weights":
        made[rng.random(made.shape) < 0.5] = 0.0
        made[:, 0] = 1.0
    if kind == "tiny and large":
        made *= 10.0 ** rng.integers(-11, 3, size=made.shape)
        made[:, 0] = 1.0
    if kind == "halves":  # in units of the scale: rounded away from zero on either route
        made = (rng.integers(1, 1000, size=made.shape) + 0.5) * 2.0**-40 * rng.choice([-1, 1], size=made.shape)
    if kind == "whole":
        made = rng.integers(-3, 4, size=made.shape) + 0.0
        made[:, 0] = -1.0
    return made


INPUTS: dict[str, Callable[[Sides], list[Cipher]]] = {
    "alike": lambda s: s.ciphers(),
    "unequal scales": lambda s: [s.cipher(row, 3, 2.0 ** (38 + i / 3)) for i, row in enumerate(s.x)],
    "above the level": lambda s: [s.cipher(row, 2 + i % 2) for i, row in enumerate(s.x)],
}


@needs_tenseal
@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("of", INPUTS)
@pytest.mark.parametrize("kind", ["normal", "zero weights", "tiny and large", "halves", "whole"])
def test_both_routes_give_every_bit_of_a_sum_by_rows(sides: Sides, kind: str, of: str, level: int) -> None:
    weights, inputs = weights_of(kind, np.random.default_rng([SEED, level])), INPUTS[of](sides)
    scale = inputs[0].scale * 2.0**40
    rows = [sides.one(row, inputs, level, scale) for row in weights]
    counted = []
    for route in ROUTES:
        made, recorder, taken = sides.sums(route, weights, inputs, level, scale)
        assert taken == (route == "matrix products")
        for one, other in zip(made, rows, strict=True):
            assert (one.level, one.scale, one.size) == (other.level, other.scale, other.size) == (level, scale, 2)
            assert abs(one.data.scale / scale - 1) < 1e-12
            assert np.array_equal(sides.device.residues(one.data), sides.device.residues(other.data))
        counted.append({name: recorder.total(name) for name in ("pt_products", "additions")})
    assert counted[0] == counted[1]
    integers = np.abs(weights * (scale / np.array([a.scale for a in inputs])))
    assert counted[0]["pt_products"] == np.count_nonzero(integers >= 0.5)
    if kind != "halves":
        values = sides.decrypted(rows[0])
        assert np.abs(values - weights[0] @ sides.x).max() < 1e-7 * max(1.0, np.abs(weights[0]).max())


@needs_tenseal
@pytest.mark.parametrize("route", ROUTES)
def test_what_no_matrix_product_can_do(sides: Sides, route: str) -> None:
    """A row of zeros, and inputs of size 3, go by scalar products whatever they cost."""
    weights, inputs = np.random.default_rng(SEED).normal(size=(3, 6)), sides.ciphers()
    weights[1], weights[2, :] = 0.0, 1e-20  # rounds to nothing
    scale = inputs[0].scale * 2.0**40
    made, _, taken = sides.sums(route, weights, inputs, 2, scale)
    assert taken == 0
    assert not any(cipher.data.is_transparent() for cipher in made)
    for cipher, row in zip(made, weights, strict=True):
        assert (cipher.level, cipher.scale, cipher.size) == (2, scale, 2)
        assert np.abs(sides.decrypted(cipher) - row @ sides.x).max() < 1e-7
    square = Cipher(3, inputs[0].scale ** 2, 3, sides.device.square(inputs[0].data))
    weights = np.array([[1.0, 0.5], [-2.0, 0.25]])
    made, _, taken = sides.sums(route, weights, [square, inputs[1]], 2, square.scale)
    assert taken == 0
    values = np.stack([sides.x[0] ** 2, sides.x[1]])
    for cipher, row in zip(made, weights, strict=True):
        assert cipher.size == cipher.data.size() == 3
        assert np.abs(sides.decrypted(cipher) - row @ values).max() < 1e-7


@needs_tenseal
def test_weights_too_large_for_a_word_go_by_scalar_products(sides: Sides) -> None:
    inputs = sides.ciphers()
    weights = np.array([[2.0**23, 1.0, 1.0, 1.0, 1.0, 1.0]])
    made, _, taken = sides.sums("matrix products", weights, inputs, 3, inputs[0].scale * 2.0**40)
    assert taken == 0
    assert np.abs(sides.decrypted(made[0]) / 2.0**23 - weights[0] @ sides.x / 2.0**23).max() < 1e-7
    _, _, taken = sides.sums("matrix products", weights / 4, inputs, 3, inputs[0].scale * 2.0**40)
    assert taken == 1


def test_a_plan_counts_the_same_on_either_route() -> None:
    weights = np.random.default_rng(SEED).normal(size=(4, 6))
    found = []
    for costs in ROUTES.values():
        machine = Machine(PARAMETERS, NullDevice(), Recorder(modelled=True), costs=costs)
        with machine.recorder.op("linear"):
            inputs = [machine.made(3, PARAMETERS.scales[3]) for _ in range(6)]
            made = machine.weighted_sums(weights, inputs, 2, machine.target(2) * 1.5)
            found.append((machine.recorder.spent()[0], [(c.level, c.scale, c.size) for c in made]))
    assert found[0] == found[1]
    assert found[0][0] == {"pt_products": 24, "additions": 20}
