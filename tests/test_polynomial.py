"""Polynomials: values against numpy, depth and products against an independent count, and the ways to rewrite one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers import Array, Counting, assert_close
from hypothesis import example, given, settings
from hypothesis import strategies as st

from secureattn.backends.plaintext import PlaintextBackend
from secureattn.polynomial import Basis, Polynomial, evaluate

EPS = float(np.finfo(np.float64).eps)
BASES: tuple[Basis, ...] = ("chebyshev", "monomial")
BACKEND = PlaintextBackend()

# 0 or above 1e-30, so that nothing underflows when a scaled domain divides it by 100^40.
one = st.floats(-10, 10).map(lambda c: c if abs(c) > 1e-30 else 0.0)
coefficients_of = st.lists(one, min_size=1, max_size=41).map(tuple)
domains = st.tuples(st.floats(-1e3, 1e3), st.floats(1e-2, 1e3)).map(lambda d: (d[0], d[0] + d[1]))
bases = st.sampled_from(BASES)


def dense(degree: int, seed: int = 0) -> tuple[float, ...]:
    """Coefficients of size about 1, none near 0 and none whole."""
    rng = np.random.default_rng([seed, degree])
    return tuple(rng.choice([-1.0, 1.0], degree + 1) * rng.uniform(0.3, 0.9, degree + 1))


def points(domain: tuple[float, float], n: int = 41) -> Array:
    """Both ends, and what lies between."""
    return np.clip(np.linspace(*domain, n), *domain)


def by_numpy(p: Polynomial, x: Array) -> Array:
    """The value by numpy's own classes, which know domains themselves."""
    if p.basis == "chebyshev":
        return np.polynomial.Chebyshev(p.coefficients, domain=p.domain)(x)
    return np.polynomial.Polynomial(p.coefficients)(x)


def tolerance(p: Polynomial) -> float:
    """What rounding and left-out noise may cost.

    Rounding of t in the affine map, at most (1+|shift|)·ε, grows by the derivative, at most degree² in the Chebyshev
    basis; so does the rounding of T_k by doubling. There, coefficients below 1e-13 of the largest are left out.
    """
    d = len(p.coefficients)
    reach = 1.0 if p.basis == "chebyshev" else max(map(abs, p.domain))
    sizes = [abs(c) * reach**k for k, c in enumerate(p.coefficients)]
    if p.basis == "monomial":
        return 4 * d * EPS * sum(sizes)
    return 4 * d**2 * (1 + abs(p.shift)) * EPS * sum(sizes) + 1e-13 * d * max(sizes)


def in_the_clear(p: Polynomial, x: Array) -> Array:
    return BACKEND.reveal(evaluate(p, BACKEND.input(x)))


# ---- values ---------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None, derandomize=True)
@given(coefficients_of, domains, bases, st.lists(st.floats(0, 1), min_size=1, max_size=8))
@example((0.0,) * 41, (-1.0, 1.0), "chebyshev", [0.5])
@example((0.0,) * 40 + (1.0,), (0.0, 1.0), "chebyshev", [0.5])
@example((1.0,) + (0.0,) * 6 + (1e-14,), (-100.0, 100.0), "monomial", [0.75])
def test_value_equals_numpys(
    coefficients: tuple[float, ...], domain: tuple[float, float], basis: Basis, shares: list[float]
) -> None:
    p = Polynomial(coefficients, domain, basis)
    x = np.clip(domain[0] + np.r_[0.0, 1.0, shares] * (domain[1] - domain[0]), *domain)
    assert_close(in_the_clear(p, x), by_numpy(p, x), tolerance(p), "rounding alone")
    assert_close(p(x), by_numpy(p, x), tolerance(p), "rounding alone")


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("degree", range(1, 41))
def test_every_coefficient_counts(degree: int, basis: Basis) -> None:
    """The tolerance above is tight: no coefficient can be off by 1e-8 of itself without being noticed."""
    p = Polynomial(dense(degree), (-1.0, 1.0), basis)
    x = points(p.domain)
    for k in range(degree + 1):
        wrong = replace(p, coefficients=tuple(c * (1 + 1e-8 * (j == k)) for j, c in enumerate(p.coefficients)))
        with pytest.raises(AssertionError):
            assert_close(in_the_clear(wrong, x), by_numpy(p, x), tolerance(p), "a wrong coefficient")


def test_shapes_are_kept_and_one_element_will_do() -> None:
    p = Polynomial(dense(15), (-2.0, 3.0))
    x = np.linspace(-2, 3, 24).reshape(2, 3, 4)
    assert_close(in_the_clear(p, x), by_numpy(p, x), tolerance(p), "rounding alone")
    assert_close(in_the_clear(p, x[:1, :1, :1]), by_numpy(p, x[:1, :1, :1]), tolerance(p), "rounding alone")


@pytest.mark.parametrize("basis", BASES)
def test_constant_keeps_the_shape(basis: Basis) -> None:
    p = Polynomial((0.75,), (-1.0, 4.0), basis)
    assert_close(in_the_clear(p, np.zeros((2, 3))), np.full((2, 3), 0.75), 0.0, "exact")
    assert (p.depth, p.products, p.degree) == (0, 0, 0)


def test_high_powers_of_a_wide_monomial_domain_are_no_noise() -> None:
    """A coefficient of 1e-18 is the whole value at x = 1000."""
    p = Polynomial((0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0), (-1.0, 1.0), "monomial").rescaled(1000.0)
    assert p.coefficients[6] == pytest.approx(1e-18)
    assert_close(in_the_clear(p, np.array([1000.0, -1000.0, 500.0])), [2.0, 0.0, 0.5**3 + 0.5**6], 1e-14, "rounding")


def test_low_powers_of_a_wide_monomial_domain_are_no_noise() -> None:
    """Next to x⁷ on ±100 a 1 is small, but it is all there is at 0."""
    p = Polynomial((1.0, 0.5) + (0.0,) * 5 + (1.0,), (-100.0, 100.0), "monomial")
    assert_close(in_the_clear(p, np.array([0.0, -2.0])), [1.0, -128.0], 1e-12, "rounding")


def test_fit_noise_costs_no_depth() -> None:
    """Coefficients of 1e-17 are what interpolation leaves of an odd part that is 0."""
    p = Polynomial((*dense(7), 1e-17), (-1.0, 1.0))
    assert (p.depth, p.products) == (3, Polynomial(dense(7), (-1.0, 1.0)).products)
    assert p.degree == 8


# ---- cost -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(
    ("domain", "map_levels"),
    [((-1.0, 1.0), 0), ((0.0, 2.0), 0), ((0.0, 1.0), 0), ((-8.0, 8.0), 1), ((0.1, 5.3), 1)],
    ids=["unit", "slope 1", "slope 2, whole", "slope 1/8", "any"],
)
def test_depth_is_optimal_at_every_degree(basis: Basis, domain: tuple[float, float], map_levels: int) -> None:
    for degree in range(1, 128):
        wanted = math.ceil(math.log2(degree + 1)) + (map_levels if basis == "chebyshev" else 0)
        assert Polynomial(dense(degree), domain, basis).depth == wanted, f"degree {degree}"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.integers(1, 127), st.integers(0, 2**32), st.floats(0, 1), bases, st.sampled_from([(-1.0, 1.0), (-3.0, 4.0)]))
def test_depth_and_products_equal_an_independent_count(
    degree: int, seed: int, sparsity: float, basis: Basis, domain: tuple[float, float]
) -> None:
    keep = np.random.default_rng(seed).random(degree + 1) >= sparsity
    keep[degree] = True
    p = Polynomial(tuple(np.array(dense(degree, seed)) * keep), domain, basis)
    x = points(domain)
    y = evaluate(p, Counting(x))
    assert (y.depth, y.tally.products) == (p.depth, p.products)
    assert_close(y.data, by_numpy(p, x), tolerance(p), "rounding alone")
    full = Polynomial(dense(degree), domain, basis)
    assert p.depth == full.depth
    assert p.products <= full.products, "zeros among the coefficients never cost a product"


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(
    ("degree", "products", "even_products"),
    [(3, 2, 1), (7, 5, 3), (15, 8, 6), (31, 13, 9), (63, 18, 14), (127, 27, 19)],
)
def test_products(degree: int, products: int, even_products: int, basis: Basis) -> None:
    """Even but for the linear term: one product (P_2) more than half the degree takes, at the same depth."""
    full = Polynomial(dense(degree), (-1.0, 1.0), basis)
    even = tuple(0.0 if k % 2 and k > 1 else c for k, c in enumerate(full.coefficients))
    sparse = Polynomial(even, (-1.0, 1.0), basis)
    assert (full.products, sparse.products) == (products, even_products)
    half = Polynomial(dense(degree // 2), (-1.0, 1.0), basis).products
    assert sparse.products == (half + 1 if degree > 3 else 1)
    assert sparse.depth == full.depth
    assert_close(
        in_the_clear(sparse, points((-1, 1))), by_numpy(sparse, points((-1, 1))), tolerance(sparse), "rounding"
    )


@pytest.mark.parametrize("basis", BASES)
def test_products_stay_far_below_one_a_power(basis: Basis) -> None:
    """All powers one by one take degree − 1; baby and giant steps about √(2·degree) + 2·log2(degree)."""
    for degree in range(1, 128):
        products = Polynomial(dense(degree), (-1.0, 1.0), basis).products
        assert products <= max(degree - 1, 0)
        assert products <= math.sqrt(2 * degree) + 2 * math.log2(degree), f"degree {degree}"


# ---- the same polynomial, written differently -----------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True)
@given(coefficients_of, domains, bases, st.floats(0.01, 100))
def test_rescaled_is_the_polynomial_of_a_scaled_argument(
    coefficients: tuple[float, ...], domain: tuple[float, float], basis: Basis, factor: float
) -> None:
    p = replace(Polynomial(coefficients, domain, basis), error=0.5, relative=True, source="a test")
    scaled = p.rescaled(factor)
    x = points(domain, 9)
    assert_close(scaled(factor * x), p(x), 2 * tolerance(p), "rounding of the scaled argument")
    assert_close(in_the_clear(scaled, np.clip(factor * x, *scaled.domain)), p(x), 3 * tolerance(p), "rounding")
    assert scaled.domain == (domain[0] * factor, domain[1] * factor)
    assert (scaled.error, scaled.relative, scaled.source, scaled.basis) == (0.5, True, "a test", basis)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(coefficients_of, domains)
def test_on_unit_takes_the_mapped_argument(coefficients: tuple[float, ...], domain: tuple[float, float]) -> None:
    p = Polynomial(coefficients, domain)
    unit = p.on_unit()
    x = points(domain, 9)
    t = p.slope * x + p.shift
    assert np.all(np.abs(t) <= 1 + 4 * EPS * (1 + abs(p.shift)))
    assert_close(unit(t), p(x), tolerance(p), "rounding of the map")
    assert (unit.domain, unit.slope, unit.shift) == ((-1.0, 1.0), 1.0, 0.0)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize(("relative", "error"), [(False, 0.5), (True, 0.25)])
def test_scaled_scales_value_and_absolute_error(basis: Basis, relative: bool, error: float) -> None:
    p = Polynomial(dense(9), (-2.0, 5.0), basis, error=0.25, relative=relative)
    doubled = p.scaled(-2.0)
    x = points(p.domain)
    assert_close(doubled(x), -2.0 * p(x), 0.0, "a power of two is exact")
    assert_close(in_the_clear(doubled, x), -2.0 * in_the_clear(p, x), 0.0, "a power of two is exact")
    assert doubled.error == error
    assert p.scaled(2.0).scaled(0.5) == p


def test_affine_map() -> None:
    p = Polynomial((0.0, 1.0), (-2.0, 6.0))
    assert (p.slope, p.shift) == (0.25, -0.5)
    assert_close(in_the_clear(p, np.array([-2.0, 2.0, 6.0])), [-1.0, 0.0, 1.0], 0.0, "exact in binary")
    monomial = Polynomial((0.0, 1.0), (-2.0, 6.0), "monomial")
    assert (monomial.slope, monomial.shift) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("coefficients", "domain"),
    [
        ((), (-1.0, 1.0)),
        ((1.0, math.nan), (-1.0, 1.0)),
        ((math.inf,), (-1.0, 1.0)),
        ((1.0,), (1.0, 1.0)),
        ((1.0,), (1.0, -1.0)),
        ((1.0,), (-math.inf, 1.0)),
        ((1.0,), (math.nan, 1.0)),
    ],
)
def test_what_is_no_polynomial_is_refused(coefficients: tuple[float, ...], domain: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"not an interval|all finite"):
        Polynomial(coefficients, domain)


def test_impossible_rewritings_are_refused() -> None:
    with pytest.raises(ValueError, match="factor must be positive, not 0"):
        Polynomial((1.0,), (-1.0, 1.0)).rescaled(0)
    with pytest.raises(ValueError, match="only a Chebyshev polynomial"):
        Polynomial((1.0,), (-1.0, 1.0), "monomial").on_unit()
