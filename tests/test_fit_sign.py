"""The composite sign: minimax with a gap, the least cost, and the published polynomials."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from secureattn.errors import InputError
from secureattn.fit import ODD_PRODUCTS, composite_sign, remez
from secureattn.polynomial import Polynomial


def cost(degrees: tuple[int, ...]) -> tuple[int, int]:
    return sum(d.bit_length() for d in degrees), sum(ODD_PRODUCTS[d // 2] for d in degrees)


@pytest.mark.parametrize("degree", range(1, 32, 2))
def test_products_are_those_of_the_evaluation(degree: int) -> None:
    coefficients = np.zeros(degree + 1)
    coefficients[1::2] = 1.0 / np.arange(1, degree + 1, 2)
    polynomial = Polynomial(tuple(coefficients), (-1.0, 1.0))
    assert polynomial.products == ODD_PRODUCTS[degree // 2]
    assert polynomial.depth == degree.bit_length()


# ---- minimax with a gap ---------------------------------------------------------------------------------------


def test_minimax_of_degree_one_and_three_with_a_gap() -> None:
    """p(x) = c·x levels at the ends: c = 2/(1+g); degree 3 touches its peak inside, at √(−a/3b)."""
    coefficients, error = remez(np.sign, (-1.0, 1.0), 1, parity="odd", gap=0.25)
    np.testing.assert_allclose(coefficients, [0, 1.6], atol=1e-12)
    assert error == pytest.approx(0.6, rel=1e-9)
    coefficients, error = remez(np.sign, (-1.0, 1.0), 3, parity="odd", gap=0.25)
    a, b = coefficients[1] - 3 * coefficients[3], 4 * coefficients[3]
    peak = math.sqrt(-a / (3 * b))
    values = [a * x + b * x**3 for x in (0.25, peak, 1.0)]
    np.testing.assert_allclose(values, [1 - error, 1 + error, 1 - error], rtol=1e-6)


@pytest.mark.parametrize("gap", [2.0**-12, 2.0**-6, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("degree", [3, 7, 15, 31])
def test_minimax_with_a_gap_is_level(degree: int, gap: float) -> None:
    coefficients, error = remez(np.sign, (-1.0, 1.0), degree, parity="odd", gap=gap)
    x = np.geomspace(gap, 1.0, 200_001)
    errors = np.polynomial.chebyshev.chebval(x, coefficients) - 1.0
    assert np.abs(errors).max() == pytest.approx(error, rel=1e-5, abs=1e-15)
    if error > 1e-12:
        runs = np.split(np.abs(errors), np.flatnonzero(np.diff(np.signbit(errors))) + 1)
        heights = [run.max() for run in runs]
        assert len(heights) == (degree + 1) // 2 + 1
        np.testing.assert_allclose(heights, error, rtol=1e-4)


def test_a_gap_also_serves_even_functions_and_other_domains() -> None:
    coefficients, error = remez(lambda x: 1 / x**2, (-2.0, 2.0), 4, parity="even", gap=1.0)
    # In u = x² the best a + b·u + c·u² for 1/u on [1, 4]: equal heights at four points.
    x = np.linspace(1.0, 2.0, 100_001)
    errors = np.polynomial.chebyshev.chebval(x / 2, coefficients) - 1 / x**2
    runs = np.split(np.abs(errors), np.flatnonzero(np.diff(np.signbit(errors))) + 1)
    np.testing.assert_allclose([run.max() for run in runs], [error] * 4, rtol=1e-5)


def test_a_gap_needs_a_parity_and_room() -> None:
    with pytest.raises(InputError, match=r"gap=0\.5\) needs a parity"):
        remez(np.exp, (-1.0, 1.0), 3, gap=0.5)
    with pytest.raises(InputError, match="needs a gap from 0 to below 1, got 1"):
        remez(np.sign, (-1.0, 1.0), 3, parity="odd", gap=1.0)


# ---- the composition ------------------------------------------------------------------------------------------


def test_composition_of_the_published_polynomials() -> None:
    """Coefficients published for gap 1/2 and degrees 7, 9 (after eprint 2020/834), Chebyshev basis of [−1, 1]."""
    found = composite_sign(1e-11, 0.5, degrees=(7, 9))
    first, second = (coefficients[1::2] for coefficients, _ in found.polynomials)
    np.testing.assert_allclose(
        first, [1.230715957236511, -0.328672378079633, 0.121808003592360, -0.037834448510340], rtol=1e-8
    )
    np.testing.assert_allclose(
        second,
        [1.212183873699944, -0.271054028639235, 0.070572640722558, -0.012840242010512, 0.001137756235760],
        rtol=1e-8,
    )


@pytest.mark.parametrize(
    ("bits", "degrees", "error"),
    [
        (4, (27,), 9.649e-2),
        (5, (7, 13), 4.482e-2),
        (6, (15, 15), 2.438e-2),
        (8, (7, 15, 15), 5.718e-3),
    ],
)
def test_degrees_of_a_precision(bits: int, degrees: tuple[int, ...], error: float) -> None:
    found = composite_sign(2.0 ** (1 - bits), 2.0**-bits)
    assert found.degrees == degrees
    assert found.depth == cost(degrees)[0]
    assert found.error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(
    ("error", "gap", "degrees"), [(1e-6, 2.0**-12, (15, 15, 15, 29)), (2.0**-11, 2.0**-12, (15, 15, 15, 15))]
)
def test_a_narrow_gap_and_a_small_error(error: float, gap: float, degrees: tuple[int, ...]) -> None:
    found = composite_sign(error, gap, degrees=degrees)
    assert found.error <= error
    x = np.r_[np.geomspace(gap, 1.0, 100_000), gap * (1 + np.geomspace(1e-9, 1, 100_000))]
    measured = max(np.abs(found(x) - 1).max(), np.abs(found(-x) + 1).max())
    assert measured == pytest.approx(found.error, rel=1e-3)
    np.testing.assert_array_equal(found(-x), -found(x))


@pytest.mark.slow
def test_the_search_finds_these_degrees_too() -> None:
    assert composite_sign(1e-6, 2.0**-12).degrees == (15, 15, 15, 29)
    assert composite_sign(2.0**-11, 2.0**-12).degrees == (15, 15, 15, 15)
    assert composite_sign(2.0**-15, 2.0**-16).degrees == (15, 15, 15, 15, 27)


@pytest.mark.parametrize(("error", "gap"), [(0.1, 0.2), (1e-2, 0.1), (1e-4, 0.3), (1e-9, 0.5), (0.2, 0.02)])
def test_no_tuple_is_cheaper(error: float, gap: float) -> None:
    """Against trying all of up to three polynomials."""
    found = composite_sign(error, gap, max_degree=15)
    assert found.error <= error
    cheapest = cost(found.degrees)
    for n in (1, 2, 3):
        for degrees in itertools.product(range(3, 16, 2), repeat=n):
            if cost(degrees) < cheapest:
                with pytest.raises(InputError, match="reach error"):
                    composite_sign(error, gap, degrees=degrees)


def test_every_polynomial_lands_in_the_domain_of_the_next() -> None:
    found = composite_sign(1e-5, 2.0**-8)
    x = np.geomspace(2.0**-8, 1.0, 50_001)
    for coefficients, domain in found.polynomials[:-1]:
        assert domain == (-1.0, 1.0)
        assert not coefficients[::2].any()
        x = np.polynomial.chebyshev.chebval(x, coefficients)
        assert x.max() == pytest.approx(1.0, rel=1e-6)
        assert x.min() > 0
    inside = np.linspace(-(2.0**-8), 2.0**-8, 1001)
    assert np.abs(found(inside)).max() <= 1 + found.error * 1.001


def test_what_cannot_be_composed_is_refused() -> None:
    with pytest.raises(InputError, match=r"degrees 7, 7 reach error .* from gap 0\.001, not 0\.01"):
        composite_sign(0.01, 0.001, degrees=(7, 7))
    with pytest.raises(InputError, match=r"odd degrees of at least 3, got \[7, 8\]"):
        composite_sign(0.01, 0.1, degrees=(7, 8))
    with pytest.raises(InputError, match="max_degree from 3 to 31, got 33"):
        composite_sign(0.01, 0.1, max_degree=33)
    for error, gap in ((0.0, 0.1), (1.0, 0.1), (0.1, 0.0), (0.1, 1.0), (math.nan, 0.1)):
        with pytest.raises(InputError, match="needs 1e-12 ≤ error < 1 and 0 < gap < 1"):
            composite_sign(error, gap)
