"""Domain extension: the cubics, the base behind them, what they gain; and the smallest degree by Remez."""

from __future__ import annotations

import math

import numpy as np
import pytest

from secureattn.errors import InputError
from secureattn.fit import Array, Function, chebyshev, degree_for, evaluate_chebyshev, extend, max_error, remez

erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(x / 2)


def test_cubics_are_those_of_the_paper() -> None:
    found = extend(np.tanh, 50.0, degree=15, base=10.0)
    assert found.base_domain == (-10.0, 10.0)
    ratio = 5.0 ** (1 / len(found.cubics))
    expected = [4 / (27 * ratio ** (2 * i) * 100) for i in reversed(range(len(found.cubics)))]
    np.testing.assert_allclose(found.cubics, expected, rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_cubics_map_the_domain_into_the_base(steps: int) -> None:
    reach = 100.0
    found = extend(np.tanh, reach, degree=7, base=reach / 2.2**steps)
    y = np.linspace(-reach, reach, 100_001)
    inner = np.abs(y) <= 1.5 * found.base_domain[1]
    for c in found.cubics:
        y = y - c * y**3
    assert np.abs(y).max() <= found.base_domain[1] * (1 + 1e-9)
    assert (np.diff(y[inner]) > -1e-12).all()


@pytest.mark.parametrize(
    ("f", "reach", "degree", "aim", "steps", "error"),
    [
        # Measured in float64.
        (sigmoid, 128.0, 15, 1e-2, 3, 3.70e-3),
        (sigmoid, 128.0, 31, 1e-3, 3, 1.79e-4),
        (sigmoid, 128.0, 63, 1e-3, 2, 7.60e-5),
        (sigmoid, 1024.0, 15, 1e-3, 7, 6.86e-4),
        (sigmoid, 1024.0, 31, 1e-3, 5, 6.53e-4),
        (sigmoid, 1024.0, 63, 1e-2, 4, 6.11e-4),
        (np.tanh, 50.0, 15, 1e-2, 3, 5.02e-3),
        (np.tanh, 50.0, 31, 1e-3, 3, 1.28e-4),
        (np.tanh, 50.0, 63, 1e-4, 2, 4.41e-5),
    ],
)
def test_wide_sigmoid_and_tanh(f: Function, reach: float, degree: int, aim: float, steps: int, error: float) -> None:
    found = extend(f, reach, degree=degree, error=aim)
    assert len(found.cubics) == steps
    assert found.depth == 2 * steps + degree.bit_length()
    assert found.error == pytest.approx(error, rel=0.05)
    # Independent: dense around 0, even outside.
    x = np.r_[np.linspace(-reach, reach, 200_001), np.linspace(-20, 20, 100_001)]
    y = x
    for c in found.cubics:
        y = y - c * y**3
    values = np.polynomial.chebyshev.chebval(y / found.base_domain[1], found.base)
    off = np.abs(values - f(x)).max()
    assert off == pytest.approx(found.error, rel=0.01)
    np.testing.assert_allclose(found(x), values, atol=1e-10)


@pytest.mark.parametrize(
    ("f", "reach", "degree", "single"),
    [(sigmoid, 128.0, 255, 1.190e-3), (sigmoid, 1024.0, 2047, 1.189e-3), (np.tanh, 50.0, 255, 4.049e-4)],
)
def test_one_polynomial_needs_a_degree_that_grows_with_the_reach(
    f: Function, reach: float, degree: int, single: float
) -> None:
    domain = (-reach, reach)
    coefficients = chebyshev(f, domain, degree)
    measured = max_error(f, lambda x: evaluate_chebyshev(coefficients, x, domain), domain)
    assert measured == pytest.approx(single, rel=1e-2)
    assert extend(f, reach, degree=31, error=1e-3).error < measured


def test_the_base_undoes_what_the_cubics_distort() -> None:
    """Fitted to f itself, a base of the same degree errs far more behind the same cubics."""
    found = extend(np.tanh, 50.0, degree=31, error=1e-3)
    naive = chebyshev(np.tanh, found.base_domain, 31)
    x = np.linspace(-10, 10, 20_001)
    y = x
    for c in found.cubics:
        y = y - c * y**3
    assert np.abs(evaluate_chebyshev(naive, y, found.base_domain) - np.tanh(x)).max() > 20 * found.error


def test_more_steps_only_where_they_gain() -> None:
    few, best = extend(np.tanh, 50.0, degree=15, error=1e-2), extend(np.tanh, 50.0, degree=15)
    assert best.error < 1e-4 < few.error
    assert len(best.cubics) > len(few.cubics)
    assert extend(np.tanh, 3.0, degree=15, error=1e-3).cubics == ()
    assert extend(np.tanh, 3.0, degree=15, error=1e-3).depth == 5


def test_parity_is_kept() -> None:
    found = extend(erf, 60.0, degree=31, error=1e-3, parity="odd")
    assert not found.base[::2].any()
    x = np.linspace(0, 60, 1001)
    np.testing.assert_allclose(found(-x), -found(x), atol=1e-14)
    with pytest.raises(InputError, match="needs such a function"):
        extend(sigmoid, 60.0, degree=31, parity="odd")


def test_what_extension_cannot_do_is_refused() -> None:
    with pytest.raises(InputError, match=r"degree 7 does not reach error 1e-06 on \[-50, 50\].* cubics; allow"):
        extend(np.tanh, 50.0, degree=7, error=1e-6)
    with pytest.raises(InputError, match="does not reach"):
        extend(np.cos, 50.0, degree=15, error=1e-2)  # not constant outside
    with pytest.raises(InputError, match=r"cannot fold \[−50, 50\] to a base of 45"):
        extend(np.tanh, 50.0, degree=7, base=45.0)
    with pytest.raises(InputError, match="base from 0 to reach 50, got 60"):
        extend(np.tanh, 50.0, degree=7, base=60.0)
    with pytest.raises(InputError, match="positive error"):
        extend(np.tanh, 50.0, degree=7, error=0.0)
    with pytest.raises(InputError, match="two finite ends"):
        extend(np.tanh, -1.0, degree=7)


# ---- the smallest degree, by Remez ----------------------------------------------------------------------------


def test_degree_for_by_remez_may_be_lower() -> None:
    """Between the minimax and the interpolant of GELU on ±8 at degree 31: 4.83e-5 and 9.24e-5."""

    def gelu(x: Array) -> Array:
        return x / 2 * (1 + erf(x / math.sqrt(2)))

    assert degree_for(gelu, (-8.0, 8.0), 7e-5) == 63
    assert degree_for(gelu, (-8.0, 8.0), 7e-5, method="remez") == 31
    assert degree_for(gelu, (-8.0, 8.0), 4e-5, method="remez") == 63
    with pytest.raises(InputError, match='method "chebyshev" or "remez", got \'taylor\''):
        degree_for(gelu, (-8.0, 8.0), 1e-3, method="taylor")  # type: ignore[arg-type]


def test_degree_for_passes_over_degrees_where_remez_does_not_converge() -> None:
    def rough(x: Array) -> Array:
        return 1e-3 * np.sin(1e9 * x * x)

    with pytest.raises(InputError, match="did not converge"):
        remez(rough, (-1.0, 1.0), 31)
    with pytest.raises(InputError, match=r"no degree among 31 reaches error 0\.1"):
        degree_for(rough, (-1.0, 1.0), 0.1, degrees=(31,), method="remez")
    assert degree_for(rough, (-1.0, 1.0), 0.1, degrees=(31,)) == 31
    with pytest.raises(InputError, match="not finite"):
        degree_for(np.log, (-1.0, 1.0), 0.1, method="remez")
