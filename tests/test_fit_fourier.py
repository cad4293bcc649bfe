"""Fourier extensions: the figures that one-round functions rely on, and what the search promises."""

from __future__ import annotations

import math

import numpy as np
import pytest

from secureattn.errors import InputError
from secureattn.fit import Array, Domain, FourierFit, Function, Parity, fourier_extension

erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array) -> Array:
    return x / 2 * (1 + erf(x / math.sqrt(2)))


def gelu_even(x: Array) -> Array:
    return x / 2 * erf(x / math.sqrt(2))


def silu_even(x: Array) -> Array:
    return x / 2 * np.tanh(x / 2)


def by_hand(fit: FourierFit, x: Array) -> Array:
    value = fit.constant + fit.linear * x
    for k, (a, b) in enumerate(zip(fit.cosines, fit.sines, strict=True), start=1):
        value = value + a * np.cos(2 * np.pi * k * x / fit.period) + b * np.sin(2 * np.pi * k * x / fit.period)
    return value


TABLE = [
    # function, domain, parity, period, harmonics, error, weight: least squares alone, measured in float64
    (gelu_even, (-8.0, 8.0), "even", 32, 20, 5.8e-7, 10),
    (gelu_even, (-14.0, 14.0), "even", 32, 16, 4.5e-4, 8),
    (gelu_even, (-14.0, 14.0), "even", 32, 20, 2.1e-5, 8),
    (gelu_even, (-14.0, 14.0), "even", 32, 24, 1.3e-6, 8),
    (silu_even, (-14.0, 14.0), "even", 32, 16, 8.5e-5, 8),
    (silu_even, (-14.0, 14.0), "even", 32, 24, 1.3e-6, 8),
    (np.exp, (-15.0, 1.0), None, 32, 8, 8.5e-5, 192),
    (np.exp, (-15.0, 1.0), None, 32, 16, 1.4e-6, 45),
    (np.exp, (-28.0, 1.0), None, 32, 32, 1.6e-4, 7),
    (np.exp, (-56.0, 1.0), None, 64, 32, 1.6e-4, 21),
    (np.exp, (-56.0, 1.0), None, 64, 64, 3.3e-7, 16),
]


@pytest.mark.parametrize(("f", "domain", "parity", "period", "harmonics", "error", "weight"), TABLE)
def test_no_worse_than_least_squares_at_the_same_size(
    f: Function, domain: Domain, parity: Parity, period: float, harmonics: int, error: float, weight: float
) -> None:
    fit = fourier_extension(f, domain, harmonics=harmonics, period=period, parity=parity, largest_weight=weight)
    assert fit.period == period
    assert fit.harmonics == harmonics
    assert fit.error <= 0.85 * error
    assert fit.weight <= weight
    assert fit.weight == pytest.approx(np.abs(fit.cosines).sum() + np.abs(fit.sines).sum())
    x = np.linspace(*domain, 20_001)
    assert np.abs(by_hand(fit, x) - f(x)).max() == pytest.approx(fit.error, rel=1e-3)
    np.testing.assert_allclose(fit(x), by_hand(fit, x), atol=1e-12)


@pytest.mark.parametrize(
    ("f", "domain", "error", "options"),
    [
        (gelu, (-8.0, 8.0), 1e-5, {"linear": 0.5, "parity": "even"}),
        (gelu, (-3.0, 8.0), 1e-5, {}),
        (np.tanh, (-8.0, 8.0), 1e-4, {"parity": "odd"}),
        (np.exp, (-28.0, 1.0), 1e-3, {}),
        (np.exp, (-4.0, 4.0), 1e-4, {"relative": True, "largest_weight": 1e4}),
    ],
)
def test_the_fewest_harmonics_that_reach_an_error(
    f: Function, domain: Domain, error: float, options: dict[str, object]
) -> None:
    fit = fourier_extension(f, domain, error=error, **options)  # type: ignore[arg-type]
    x = np.linspace(*domain, 50_001)
    off = np.abs(by_hand(fit, x) - f(x)) / (f(x) if options.get("relative") else 1.0)
    assert off.max() <= fit.error * (1 + 1e-6) <= error * (1 + 1e-6)
    assert fit.weight <= options.get("largest_weight", 64.0)  # type: ignore[operator]
    width = domain[1] - domain[0]
    assert width < fit.period <= 8 * width
    assert math.log2(fit.period).is_integer()
    fewer = fourier_extension(f, domain, harmonics=fit.harmonics - 1, **options)  # type: ignore[arg-type]
    assert fewer.error > error


def test_a_series_gives_itself_back() -> None:
    def series(x: Array) -> Array:
        return 0.5 - x + 2 * np.cos(np.pi * x / 4) - 0.25 * np.sin(3 * np.pi * x / 4)

    fit = fourier_extension(series, (-3.0, 2.0), harmonics=3, period=8.0, linear=-1.0)
    assert fit.error < 1e-11
    assert fit.constant == pytest.approx(0.5, abs=1e-6)
    np.testing.assert_allclose(fit.cosines, [2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(fit.sines, [0, 0, -0.25], atol=1e-6)


def test_parities_leave_out_terms() -> None:
    even = fourier_extension(np.cosh, (-2.0, 2.0), harmonics=5, parity="even")
    assert not even.sines.any()
    odd = fourier_extension(np.tanh, (-2.0, 2.0), harmonics=5, parity="odd")
    assert not odd.cosines.any()
    assert odd.constant == 0
    assert odd(np.array(0.7)) == -odd(np.array(-0.7))


def test_levelling_beats_plain_least_squares() -> None:
    """The largest errors of a levelled series come near each other: at both signs and many places."""
    fit = fourier_extension(gelu_even, (-14.0, 14.0), harmonics=16, period=32, parity="even", largest_weight=8)
    x = np.linspace(0.0, 14.0, 20_001)
    errors = fit(x) - gelu_even(x)
    runs = np.split(np.abs(errors), np.flatnonzero(np.diff(np.signbit(errors))) + 1)
    assert sum(run.max() > 0.6 * fit.error for run in runs) >= 12
    assert fit.error < 3.3e-4  # least squares alone: 4.0e-4


def test_what_cannot_be_reached_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"no series of 128 harmonics reaches error 1e-05 on \[-200, 200\].*period 512"
    ):
        fourier_extension(np.tanh, (-200.0, 200.0), error=1e-5, parity="odd")
    with pytest.raises(InputError, match=r"coefficients summing to 0\.001 or less"):
        fourier_extension(np.exp, (-1.0, 1.0), harmonics=3, largest_weight=1e-3)


def test_bad_questions_are_refused() -> None:
    with pytest.raises(InputError, match="positive error or harmonics, got None and None"):
        fourier_extension(np.exp, (-1.0, 1.0))
    with pytest.raises(InputError, match=r"positive error or harmonics, got 0\.1 and 3"):
        fourier_extension(np.exp, (-1.0, 1.0), error=0.1, harmonics=3)
    with pytest.raises(InputError, match="1 to 128 harmonics, got 0"):
        fourier_extension(np.exp, (-1.0, 1.0), harmonics=0)
    for period in (2.0, 3.0):
        with pytest.raises(InputError, match=r"period 2\^p above the width 2"):
            fourier_extension(np.exp, (-1.0, 1.0), harmonics=3, period=period)
    with pytest.raises(InputError, match="needs such a function"):
        fourier_extension(gelu, (-1.0, 1.0), harmonics=3, parity="even")
    with pytest.raises(InputError, match=r"needs a domain \[−a, a\]"):
        fourier_extension(np.cos, (-1.0, 2.0), harmonics=3, parity="even")
    with pytest.raises(InputError, match="positive largest_weight"):
        fourier_extension(np.cos, (-1.0, 2.0), harmonics=3, largest_weight=0.0)
    with pytest.raises(InputError, match="without zeros"):
        fourier_extension(np.sin, (-1.0, 2.0), harmonics=3, relative=True)
