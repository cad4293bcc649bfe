"""Polynomial fits: the figures the rest relies on, and the properties that make a minimax a minimax."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import chebyshev as reference
from numpy.polynomial import polynomial as monomial

from secureattn.errors import InputError
from secureattn.fit import (
    Array,
    Domain,
    Function,
    chebyshev,
    chebyshev_to_monomial,
    degree_for,
    evaluate_chebyshev,
    max_error,
    remez,
)

erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array) -> Array:
    return x / 2 * (1 + erf(x / math.sqrt(2)))


def inverse(x: Array) -> Array:
    return 1 / x


def inverse_root(x: Array) -> Array:
    return 1 / np.sqrt(x)


def measured(f: Function, coefficients: Array, domain: Domain, *, relative: bool = False) -> float:
    return max_error(f, lambda x: evaluate_chebyshev(coefficients, x, domain), domain, relative=relative)


# Coefficients of moderate size, and a domain that is not a sliver.
coefficients_of = st.lists(st.floats(-10, 10), min_size=1, max_size=40)
domains = st.tuples(st.floats(-20, 20), st.floats(0.1, 40)).map(lambda d: (d[0], d[0] + d[1]))
points = st.lists(st.floats(0, 1), min_size=1, max_size=20)


# ---- Chebyshev interpolation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kappa", "degree", "inverse_error", "root_error"),
    [
        (16, 15, 5.642e-4, 1.490e-4),
        (64, 31, 6.433e-4, 1.696e-4),
        (256, 63, 6.640e-4, 1.750e-4),
        (1024, 127, 6.692e-4, 1.763e-4),
    ],
)
def test_relative_errors_of_inverse_and_inverse_root(
    kappa: int, degree: int, inverse_error: float, root_error: float
) -> None:
    """Measured in float64 on [1/κ, 1]: 6e-4 and 1.7e-4, whenever the degree doubles as κ grows fourfold."""
    domain = (1 / kappa, 1.0)
    for f, error in ((inverse, inverse_error), (inverse_root, root_error)):
        assert measured(f, chebyshev(f, domain, degree), domain, relative=True) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(("bound", "degree", "error"), [(8.0, 31, 9.242e-5), (16.0, 63, 6.260e-5)])
def test_errors_of_gelu(bound: float, degree: int, error: float) -> None:
    """Measured in float64: 9.24e-5 and 6.26e-5; the minimax has 4.83e-5 and 2.47e-5."""
    domain = (-bound, bound)
    assert measured(gelu, chebyshev(gelu, domain, degree), domain) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("degree", [0, 1, 2, 7, 31, 63, 200])
def test_interpolant_meets_the_function_at_the_nodes(degree: int) -> None:
    domain = (-3.0, 5.0)
    nodes = 1 + 4 * np.cos(np.pi * (2 * np.arange(degree + 1) + 1) / (2 * degree + 2))
    coefficients = chebyshev(np.sin, domain, degree)
    assert coefficients.shape == (degree + 1,)
    np.testing.assert_allclose(evaluate_chebyshev(coefficients, nodes, domain), np.sin(nodes), atol=2e-14)


@given(coefficients_of, domains)
def test_interpolating_a_polynomial_gives_it_back(coefficients: list[float], domain: Domain) -> None:
    c = np.array(coefficients)
    again = chebyshev(lambda x: evaluate_chebyshev(c, x, domain), domain, len(c) - 1)
    np.testing.assert_allclose(again, c, atol=1e-9)


# ---- Remez ----------------------------------------------------------------------------------------------------

SMOOTH: list[tuple[str, Function, Domain, int, bool, float]] = [
    # name, function, domain, degree, relative, error as measured in float64
    ("exp", np.exp, (-8.0, 0.0), 7, False, 3.762e-4),
    ("exp", np.exp, (-8.0, 0.0), 7, True, 8.511e-3),
    ("exp", np.exp, (-28.0, 1.0), 15, False, 1.558e-4),
    ("gelu", gelu, (-8.0, 8.0), 30, False, 4.830e-5),
    ("gelu", gelu, (-8.0, 8.0), 31, False, 4.830e-5),
    ("gelu", gelu, (-16.0, 16.0), 63, False, 2.473e-5),
    ("erf", erf, (-4.0, 4.0), 15, False, 1.169e-3),
    ("erf", erf, (-4.0, 4.0), 31, False, 3.019e-8),
    ("cos", np.cos, (-3.0, 3.0), 6, False, 9.876e-4),
    ("cos", np.cos, (-3.0, 3.0), 7, False, 9.876e-4),
    ("tan", np.tan, (-1.5, 1.5), 63, False, 2.788e-8),
    ("1/x", inverse, (1 / 64, 1.0), 31, False, 1.303e-2),
    ("1/x", inverse, (1 / 64, 1.0), 31, True, 6.433e-4),
    ("1/x", inverse, (1 / 256, 1.0), 63, True, 6.640e-4),
    ("1/sqrt", inverse_root, (1 / 64, 1.0), 31, False, 4.340e-4),
    ("1/sqrt", inverse_root, (1 / 64, 1.0), 31, True, 9.847e-5),
    ("1/sqrt", inverse_root, (1 / 64, 1.0), 63, True, 2.278e-8),
    ("|x|", np.abs, (-1.0, 1.0), 31, False, 9.332e-3),
]


@pytest.mark.parametrize(
    ("f", "domain", "degree", "relative", "error"),
    [pytest.param(*row, id=f"{name}-{row[2]}{'-relative' * row[3]}") for name, *row in SMOOTH],
)
def test_minimax_is_level_and_no_worse_than_interpolation(
    f: Function, domain: Domain, degree: int, relative: bool, error: float
) -> None:
    coefficients, reported = remez(f, domain, degree, relative=relative)
    assert coefficients.shape == (degree + 1,)
    assert reported == pytest.approx(error, rel=1e-3)
    assert measured(f, coefficients, domain, relative=relative) == pytest.approx(reported, rel=1e-4)
    # Chebyshev's interpolant of 1/x has the least relative error already: equal, but for rounding.
    assert reported <= measured(f, chebyshev(f, domain, degree), domain, relative=relative) * (1 + 1e-6)
    heights = alternation(f, coefficients, domain, relative=relative)
    assert len(heights) >= degree + 2
    assert min(heights) == pytest.approx(reported, rel=2e-3)


def alternation(f: Function, coefficients: Array, domain: Domain, *, relative: bool) -> list[float]:
    """Heights of the error's extrema that alternate in sign, save those of rounding."""
    a, b = domain
    x = np.clip((a + b) / 2 - (b - a) / 2 * np.cos(np.linspace(0, np.pi, 200_001)), a, b)
    true = np.asarray(f(x))
    errors = (evaluate_chebyshev(coefficients, x, domain) - true) / (np.abs(true) if relative else 1.0)
    runs = np.split(errors, np.flatnonzero(np.diff(np.signbit(errors))) + 1)
    heights = [float(np.max(np.abs(run))) for run in runs]
    return [height for height in heights if height > 0.5 * max(heights)]


@pytest.mark.parametrize(
    ("f", "domain"), [(np.exp, (-1.0, 1.0)), (np.exp, (-28.0, 1.0)), (erf, (-4.0, 4.0)), (gelu, (-4.0, 4.0))]
)
def test_minimax_stops_at_rounding(f: Function, domain: Domain) -> None:
    """At degree 63 these are exact in float64 and nothing is left to level."""
    assert remez(f, domain, 63)[1] < 2e-14


def test_minimax_of_known_polynomials() -> None:
    """The best degree n − 1 for x^n on [−1, 1] is x^n − T_n/2^(n−1), error 2^(1−n); |x| has x² + 1/8."""
    coefficients, error = remez(lambda x: x**6, (-1.0, 1.0), 5)
    expected = chebyshev(lambda x: x**6, (-1.0, 1.0), 6)[:6]
    np.testing.assert_allclose(coefficients, expected, atol=1e-6)
    assert error == pytest.approx(2**-5, rel=1e-6)
    coefficients, error = remez(np.abs, (-1.0, 1.0), 2, parity="even")
    np.testing.assert_allclose(chebyshev_to_monomial(coefficients), [0.125, 0, 1], atol=1e-6)
    assert error == pytest.approx(0.125, rel=1e-6)


@pytest.mark.parametrize("degree", [1, 2, 7, 15, 30, 31])
def test_parity_leaves_out_the_other_powers_and_costs_nothing(degree: int) -> None:
    for f, parity, zero in ((erf, "odd", 0), (np.cos, "even", 1)):
        coefficients, error = remez(f, (-3.0, 3.0), degree, parity=parity)  # type: ignore[arg-type]
        assert coefficients.shape == (degree + 1,)
        assert not coefficients[zero::2].any()
        assert error == pytest.approx(remez(f, (-3.0, 3.0), degree)[1], rel=1e-4, abs=2e-15)
        assert measured(f, coefficients, (-3.0, 3.0)) == pytest.approx(error, rel=1e-4, abs=2e-15)


def test_odd_function_may_vanish_at_zero_under_relative_error() -> None:
    """Measured: erf on ±3, degree 15, 1.117e-4 relative, the largest of it at 0."""
    coefficients, error = remez(erf, (-3.0, 3.0), 15, relative=True, parity="odd")
    assert error == pytest.approx(1.117e-4, rel=1e-3)
    x = np.geomspace(1e-6, 3, 10_000)
    off = np.abs(evaluate_chebyshev(coefficients, x, (-3.0, 3.0)) / erf(x) - 1)
    assert off.max() <= error * (1 + 1e-5)


@pytest.mark.parametrize("degree", [0, 3, 8])
def test_constants_and_polynomials_are_fitted_exactly(degree: int) -> None:
    assert remez(np.zeros_like, (-1.0, 1.0), degree)[1] == 0
    assert remez(lambda x: 0 * x + 2, (-1.0, 1.0), degree)[1] < 1e-14
    assert remez(lambda x: x**degree - x / 2 * (degree > 0), (-2.0, 1.0), degree)[1] < 1e-12


def test_a_function_that_is_not_smooth_enough_is_an_error() -> None:
    with pytest.raises(InputError, match=r"remez\(degree=31\) on \[-1, 1\] did not converge.*use chebyshev"):
        remez(lambda x: np.sin(1e9 * x * x), (-1.0, 1.0), 31)


# ---- measuring and choosing -----------------------------------------------------------------------------------


def test_max_error_finds_what_lies_between_samples_and_at_the_ends() -> None:
    assert max_error(np.zeros_like, lambda x: np.exp(-(((x - 0.1234567) / 1e-2) ** 2)), (-1.0, 1.0)) == pytest.approx(
        1.0, rel=1e-9
    )
    assert max_error(np.zeros_like, np.exp, (-3.0, 2.0)) == math.exp(2.0)
    assert max_error(np.zeros_like, np.exp, (-3.0, 2.0), samples=2) == math.exp(2.0)
    assert max_error(inverse, np.zeros_like, (0.5, 3.0), relative=True) == 1.0


@given(st.floats(-1, 1))
def test_max_error_finds_a_peak_anywhere(peak: float) -> None:
    found = max_error(np.zeros_like, lambda x: 1 / (1 + (x - peak) ** 2), (-1.0, 1.0), samples=64)
    assert found == pytest.approx(1.0, abs=1e-9)


def test_max_error_is_that_of_a_step_next_to_it() -> None:
    """One-sided limits count: a piecewise function is measured right up to its knots."""
    found = max_error(np.zeros_like, lambda x: np.where(x < 0.3, x, 0.0), (-0.2, 1.0))
    assert found == pytest.approx(0.3, rel=1e-6)


def test_degree_for_picks_the_first_edge_that_reaches_the_error() -> None:
    assert degree_for(gelu, (-8.0, 8.0), 1e-3) == 31
    assert degree_for(gelu, (-8.0, 8.0), 5e-2) == 15
    assert degree_for(inverse, (1 / 64, 1.0), 1e-3, relative=True) == 31
    assert degree_for(inverse, (1 / 64, 1.0), 5e-2, degrees=(40, 20, 30)) == 40
    with pytest.raises(InputError, match=r"reaches relative error 1e-05 on \[0.00390625, 1\].* at degree 63; allow"):
        degree_for(inverse, (1 / 256, 1.0), 1e-5, relative=True, degrees=(63, 31))


# ---- evaluation and bases -------------------------------------------------------------------------------------


@given(coefficients_of, domains, points)
def test_evaluation_agrees_with_numpy(coefficients: list[float], domain: Domain, where: list[float]) -> None:
    a, b = domain
    t = 2 * np.array(where) - 1
    found = evaluate_chebyshev(coefficients, (a + b) / 2 + (b - a) / 2 * t, domain)
    np.testing.assert_allclose(found, reference.chebval(t, coefficients), atol=1e-8)


def test_evaluation_keeps_the_shape() -> None:
    assert evaluate_chebyshev([1.0], np.zeros((2, 3))).shape == (2, 3)
    assert evaluate_chebyshev([1.0, 2.0, 3.0], 0.5) == pytest.approx(1 + 2 * 0.5 + 3 * (2 * 0.25 - 1))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=16))
def test_monomials_there_and_back(coefficients: list[float]) -> None:
    powers = chebyshev_to_monomial(coefficients)
    assert powers.shape == (len(coefficients),)
    back: npt.NDArray[np.float64] = reference.poly2cheb(powers)
    padded = np.pad(back, (0, len(coefficients) - len(back)))
    np.testing.assert_allclose(padded, coefficients, atol=1e-9)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=10), domains, points)
def test_monomials_have_the_same_values(coefficients: list[float], domain: Domain, where: list[float]) -> None:
    x = domain[0] + (domain[1] - domain[0]) * np.array(where)
    powers = chebyshev_to_monomial(coefficients, domain)
    found = monomial.polyval(x, powers)
    scale = monomial.polyval(np.abs(x), np.abs(powers))  # what cancels; its rounding is all that may differ
    assert (np.abs(found - evaluate_chebyshev(coefficients, x, domain)) <= 1e-12 * scale + 1e-9).all()


# ---- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", [(1.0, 1.0), (2.0, 1.0), (0.0, math.inf), (math.nan, 1.0)])
def test_bad_domains_are_refused(domain: Domain) -> None:
    for call in (
        lambda: chebyshev(np.exp, domain, 3),
        lambda: remez(np.exp, domain, 3),
        lambda: max_error(np.exp, np.exp, domain),
        lambda: degree_for(np.exp, domain, 0.1),
        lambda: evaluate_chebyshev([1.0], 0.0, domain),
        lambda: chebyshev_to_monomial([1.0], domain),
    ):
        with pytest.raises(InputError, match="two finite ends in ascending order"):
            call()


def test_bad_degrees_errors_and_coefficients_are_refused() -> None:
    with pytest.raises(InputError, match="degree of at least 0, got -1"):
        chebyshev(np.exp, (0.0, 1.0), -1)
    with pytest.raises(InputError, match="degree of at least 0, got -1"):
        remez(np.exp, (0.0, 1.0), -1)
    with pytest.raises(InputError, match="positive error"):
        degree_for(np.exp, (0.0, 1.0), 0.0)
    with pytest.raises(InputError, match="degrees to choose from"):
        degree_for(np.exp, (0.0, 1.0), 0.1, degrees=())
    with pytest.raises(InputError, match="at least 2 samples"):
        max_error(np.exp, np.exp, (0.0, 1.0), samples=1)
    for coefficients in ([], [[1.0]], [math.nan]):
        with pytest.raises(InputError, match="finite numbers in one row"):
            evaluate_chebyshev(coefficients, 0.0)


def test_functions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="not finite at 0; choose a domain"):
        chebyshev(inverse, (-1.0, 1.0), 2)
    with pytest.raises(InputError, match="not finite at"):
        remez(np.log, (-1.0, 1.0), 4)
    with pytest.raises(InputError, match="one value for each"):
        chebyshev(lambda x: 1.0, (-1.0, 1.0), 2)
    with pytest.raises(InputError, match=r"without zeros, got one with a zero near -0\.5"):
        remez(lambda x: x + 0.5, (-1.0, 1.0), 2, relative=True)
    with pytest.raises(InputError, match="without zeros"):
        max_error(np.sin, np.sin, (-1.0, 2.0), relative=True)


def test_a_parity_needs_its_function_and_domain() -> None:
    with pytest.raises(InputError, match="needs such a function"):
        remez(gelu, (-1.0, 1.0), 4, parity="even")
    with pytest.raises(InputError, match=r"needs a domain \[−a, a\], got \[-1, 2\]"):
        remez(np.cos, (-1.0, 2.0), 4, parity="even")
    with pytest.raises(InputError, match="at least 1"):
        remez(np.sin, (-1.0, 1.0), 0, parity="odd")
    with pytest.raises(InputError, match='"even", "odd" or None'):
        remez(np.sin, (-1.0, 1.0), 3, parity="none")  # type: ignore[arg-type]
