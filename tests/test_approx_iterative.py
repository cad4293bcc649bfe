"""Iterations for exp, 1/x, 1/√x, √x and ln x: figures re-measured, steps written here again, costs counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Array, Counting, assert_close

from secureattn import fit
from secureattn.approx import Interval, Realisation, exp, log, realise, reciprocal, rsqrt, sqrt
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.errors import PlanError, RangeError

BACKEND = PlaintextBackend()
TRUE: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "reciprocal": lambda x: 1 / x,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sqrt": np.sqrt,
    "log": np.log,
}


def run(made: Realisation, x: Array) -> Array:
    """The value on the plaintext engine."""
    return BACKEND.reveal(made(BACKEND.input(x)))


def error_of(made: Realisation, low: float, high: float) -> float:
    """Largest error on an interval of what the plaintext engine computes: in log x where it is positive."""
    true = TRUE[made.function]
    if low <= 0:
        return fit.max_error(true, lambda x: run(made, x), (low, high), relative=made.relative)
    return fit.max_error(
        lambda u: true(np.exp(u)),
        lambda u: run(made, np.exp(u)),
        (math.log(low), math.log(high)),
        relative=made.relative,
        samples=2**13,
    )


def within(low: float, high: float) -> Array:
    """Positive numbers, both ends of the interval among them."""
    return np.geomspace(low, high, 2001)


# ---- errors and costs -----------------------------------------------------------------------------------------

K4, K6, K8, K10 = ((2.0**-bits, 1.0) for bits in (4, 6, 8, 10))
# function, kind, options, interval, error, (depth, products)
CASES: list[tuple[str, str, dict[str, Any], Interval, float, tuple[int, int]]] = [
    ("exp", "limit", {"squarings": 5}, (-31.0, 0.0), 8.5475e-3, (6, 5)),
    ("exp", "crypten", {}, (-255.0, 0.0), 1.0587e-3, (9, 8)),
    ("reciprocal", "goldschmidt", {}, K4, 3.1835e-7, (5 + 1, 2 * 4)),
    ("reciprocal", "goldschmidt", {}, K6, 4.1382e-7, (6 + 1, 2 * 5)),
    ("reciprocal", "goldschmidt", {}, K8, 4.4084e-7, (7 + 1, 2 * 6)),
    ("reciprocal", "goldschmidt", {}, K10, 4.4780e-7, (8 + 1, 2 * 7)),
    ("reciprocal", "goldschmidt", {}, (3.0, 48.0), 3.1835e-7, (6, 8)),  # only the ratio of the ends counts
    ("reciprocal", "goldschmidt", {"error": 0.1}, (0.5, 1.0), 3.4602e-3, (2 + 1, 2 * 1)),
    ("reciprocal", "goldschmidt_plain", {}, (3 / 16, 3.0), 2.5842e-4, (7 + 1, 2 * 6)),
    ("reciprocal", "goldschmidt_plain", {}, (3 / 64, 3.0), 3.1493e-4, (9 + 1, 2 * 8)),
    ("reciprocal", "goldschmidt_plain", {}, (3 / 256, 3.0), 3.3025e-4, (11 + 1, 2 * 10)),
    ("reciprocal", "goldschmidt_plain", {}, (3 / 1024, 3.0), 3.3415e-4, (13 + 1, 2 * 12)),
    ("reciprocal", "newton", {}, K4, 4.2228e-3, (3 + 3, 2 + 4)),
    ("reciprocal", "newton", {"steps": 3}, K4, 1.7832e-5, (3 + 4, 2 + 6)),
    ("reciprocal", "newton", {"steps": 3, "degree": 7}, K6, 2.2974e-5, (4 + 4, 5 + 6)),
    ("reciprocal", "newton", {"steps": 0, "degree": 7}, K4, 3.3584e-2, (4, 5)),
    ("reciprocal", "secformer", {}, (5.0, 5000.0), 2.7573e-4, (14, 24)),
    ("reciprocal", "secformer", {"steps": 14}, (5.0, 5000.0), 7.6029e-8, (15, 26)),
    ("rsqrt", "goldschmidt", {}, K4, 1.8757e-5, (2 * 4, 3 * 3)),
    ("rsqrt", "goldschmidt", {}, K6, 2.7326e-6, (2 * 5, 3 * 4)),
    ("rsqrt", "goldschmidt", {}, K8, 2.0151e-7, (2 * 6, 3 * 5)),
    ("rsqrt", "goldschmidt", {}, K10, 1.4237e-4, (2 * 6, 3 * 5)),
    ("rsqrt", "goldschmidt", {}, (0.3, 4.8), 1.8757e-5, (8, 9)),
    ("rsqrt", "secformer", {}, (2.0, 2000.0), 8.7902e-4, (22, 30)),
    ("rsqrt", "secformer", {}, (1.0, 2000.0), 1.7101e-2, (22, 30)),
    ("sqrt", "rsqrt", {}, K4, 1.8757e-5, (2 * 4, 3 * 4 - 2)),
    ("sqrt", "rsqrt", {}, K10, 1.4237e-4, (2 * 6, 3 * 6 - 2)),
    ("sqrt", "crypten", {}, (0.1, 100.0), 4.9102e-3, (24, 18)),
    ("sqrt", "chebyshev", {"degree": 15}, K4, 1.7957e-5, (5, 8)),
    ("sqrt", "remez", {"degree": 15}, K4, 4.4544e-6, (5, 8)),
    ("log", "crypten", {}, (1e-4, 250.0), 1.6804e-1, (38, 8 + 2 * (8 + 1 + 5))),
    ("log", "crypten", {}, (0.01, 100.0), 4.1534e-2, (38, 36)),
    ("log", "crypten", {}, (0.1, 10.0), 1.0921e-2, (38, 36)),
    ("log", "chebyshev", {"degree": 15}, K4, 1.2761e-4, (5, 8)),
    ("log", "remez", {"degree": 31}, K4, 7.5249e-9, (6, 13)),
]


@pytest.mark.parametrize(("function", "kind", "options", "interval", "error", "cost"), CASES)
def test_error_and_cost(
    function: str, kind: str, options: dict[str, Any], interval: Interval, error: float, cost: tuple[int, int]
) -> None:
    """Figures to four digits; the finer grid here finds at most 2e-3 of them more."""
    made = realise(function, {"kind": kind, **options}, interval)
    assert made.error == pytest.approx(error, rel=1e-3)
    assert error_of(made, *interval) == pytest.approx(error, rel=2e-3)
    counted = made(Counting(np.array([0.7 * interval[0] + 0.3 * interval[1]])))
    assert isinstance(counted, Counting)
    assert (counted.depth, counted.tally.products) == cost
    assert (made.depth, made.products) == cost
    assert not made.needs


@pytest.mark.parametrize(("function", "kind"), [("sqrt", "fourier"), ("log", "fourier")])
def test_a_series_reaches_its_error(function: str, kind: str) -> None:
    made = realise(function, {"kind": kind, "error": 1e-3}, (1 / 16, 1.0))
    assert made.error is not None
    assert made.error <= 1e-3
    x = within(1 / 16, 1.0)
    assert_close(run(made, x), TRUE[function](x), 1.001 * made.error, "as measured when made")


# ---- the published steps, written again -----------------------------------------------------------------------


def published_goldschmidt(x: Array, high: float, factors: tuple[float, ...]) -> Array:
    a, b = np.full_like(x, 1 / high), x / high
    for k in factors:
        a, b = a * k * (2 - k * b), b * k * (2 - k * b)
    return a


def published_goldschmidt_root(x: Array, high: float, factors: tuple[float, ...]) -> Array:
    y, b = np.full_like(x, high**-0.5), x / high
    for k in factors:
        y, b = y * math.sqrt(k) * (3 - k * b) / 2, b * k * (3 - k * b) ** 2 / 4
    return y


def reciprocal_factors(e: float, error: float = 1e-3) -> tuple[float, ...]:
    factors = []
    while 1 - e > error:
        factors.append(2 / (1 + e))
        e = factors[-1] * e * (2 - factors[-1] * e)
    return tuple(factors)


def root_factors(e: float, error: float = 1e-3) -> tuple[float, ...]:
    """The root of the published quadratic that keeps b at 1 or below: the smaller one."""
    factors = []
    while 1 - e > error:
        factors.append(float(min(np.roots([1 - e**3, 6 * e**2 - 6, 9 - 9 * e]).real)))
        e = factors[-1] * e * (3 - factors[-1] * e) ** 2 / 4
    return tuple(factors)


@pytest.mark.parametrize("kappa", [1.5, 16, 64, 256, 1024])
@pytest.mark.parametrize("high", [1.0, 37.0])
def test_goldschmidt_is_the_published_iteration(kappa: float, high: float) -> None:
    domain = (high / kappa, high)
    x = within(*domain)
    ones = np.ones_like(x)
    factors = reciprocal_factors(1 / kappa)
    wanted = published_goldschmidt(x, high, factors)
    assert_close(run(reciprocal.goldschmidt(domain), x) / wanted, ones, 1e-12, "rounding of 8 steps")
    steps, e = 0, 1 / kappa
    while 1 - e > 1e-3:
        steps, e = steps + 1, e * (2 - e)
    plain = published_goldschmidt(x, high, (1.0,) * steps)
    assert_close(run(reciprocal.goldschmidt_plain(domain), x) / plain, ones, 1e-12, "rounding of 13 steps")
    factors = root_factors(1 / kappa)
    assert_close(rsqrt.relaxation(1 / kappa, 1e-3), factors, 1e-9, "np.roots loses half the digits near e = 1")
    wanted = published_goldschmidt_root(x, high, factors)
    assert_close(run(rsqrt.goldschmidt(domain), x) / wanted, ones, 1e-12, "rounding of 6 steps")
    assert_close(run(sqrt.rsqrt(domain), x) / (x * wanted), ones, 1e-12, "x times the other output")


@pytest.mark.parametrize(
    ("bits", "relaxed", "plain", "root"), [(4, 5, 7, 4), (6, 6, 9, 5), (8, 7, 11, 6), (10, 8, 13, 6)]
)
def test_steps_to_a_thousandth(bits: int, relaxed: int, plain: int, root: int) -> None:
    """Relaxed 5/6/7/8, plain 7/9/11/13, and 4/5/6/6 for the root."""
    e = 2.0**-bits
    assert len(reciprocal.relaxation(e, 1e-3)) == relaxed
    assert reciprocal.goldschmidt_plain((e, 1.0)).products == 2 * (plain - 1)
    assert len(rsqrt.relaxation(e, 1e-3)) == root


def test_relaxation_of_the_root_makes_the_ends_meet() -> None:
    """``k`` solves the published quadratic, and another one leaves more behind."""
    e = 1 / 64
    for k in rsqrt.relaxation(e, 1e-3):
        assert abs((1 - e**3) * k**2 + (6 * e**2 - 6) * k + (9 - 9 * e)) <= 1e-14
        b = np.linspace(e, 1, 2001)

        def least(k: float, b: Array = b) -> float:
            after = k * b * (3 - k * b) ** 2 / 4
            assert after.max() <= 1 + 1e-14
            return float(after.min())

        assert least(k) > max(least(0.99 * k), least(1.01 * k))
        e = least(k)


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize("wrong", [0.99, 1.01])
def test_a_wrong_relaxation_factor_is_caught(k: int, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, domain, error in ((reciprocal, K4, 3.1835e-7), (rsqrt, K6, 2.7326e-6)):
        right = module.relaxation(domain[0], 1e-3)
        mutant = tuple(f * (wrong if j == k else 1) for j, f in enumerate(right))
        monkeypatch.setattr(module, "relaxation", lambda e, error, mutant=mutant: mutant)
        assert module.goldschmidt(domain).error != pytest.approx(error, rel=1e-2)


def test_newton_is_the_published_iteration() -> None:
    domain, degree = (1 / 20, 1.5), 5
    x = within(*domain)
    coefficients, _ = fit.remez(lambda x: 1 / x, domain, degree, relative=True)
    y = fit.evaluate_chebyshev(coefficients, x, domain)
    for steps in range(4):
        made = realise("reciprocal", {"kind": "newton", "steps": steps, "degree": degree}, domain) if steps else None
        if made is not None:
            assert_close(run(made, x) * x, y * x, 1e-12, "the same numbers in another order")
        y = y * (2 - x * y)


def published_crypten_exp(x: Array) -> Array:
    return (1 + x / 256) ** 256


def published_crypten_log(
    x: Array, first: tuple[float, ...] = (1 / 120, 20.0, -2.0, -1.0, 3.0), order: int = 8
) -> Array:
    y = first[0] * x - first[1] * published_crypten_exp(first[2] * x + first[3]) + first[4]
    for _ in range(2):
        h = 1 - x * published_crypten_exp(-y)
        y = y - sum(h**k / k for k in range(1, order + 1))
    return y


def test_crypten_iterations_are_the_published_ones() -> None:
    x = within(1e-3, 200.0)
    made = realise("log", {"kind": "crypten"}, (1e-3, 200.0))
    assert_close(run(made, x), published_crypten_log(x), 1e-12, "rounding of 256th powers")
    y = 2.2 * published_crypten_exp(-(x / 2 + 0.2)) + 0.2 - x / 1024
    for _ in range(3):
        y = y * (3 - x * y * y) / 2
    x, y = x[(x > 0.1) & (x < 100)], y[(x > 0.1) & (x < 100)]
    made = realise("sqrt", {"kind": "crypten"}, (0.1, 100.0))
    assert_close(run(made, x) / (x * y), np.ones_like(x), 1e-12, "rounding of three steps")
    z = np.linspace(-200, 1, 501)
    assert_close(run(exp.crypten((-200.0, 1.0)), z), published_crypten_exp(z), 1e-12, "rounding of a 256th power")


@pytest.mark.parametrize("j", range(5))
def test_a_wrong_first_guess_of_log_would_show(j: int) -> None:
    first = [1 / 120, 20.0, -2.0, -1.0, 3.0]
    first[j] *= 1.01
    x = within(1e-3, 200.0)
    assert np.max(np.abs(published_crypten_log(x, tuple(first)) - published_crypten_log(x))) > 1e-6
    assert np.max(np.abs(published_crypten_log(x, order=7) - published_crypten_log(x))) > 1e-6


def test_secformer_is_the_published_iteration() -> None:
    x = within(2.0, 5000.0)
    p, q = np.full_like(x, 1 / 5000), x / 5000
    for _ in range(13):
        p, q = p * (2 - q), q * (2 - q)
    made = realise("reciprocal", {"kind": "secformer"}, (2.0, 5000.0))
    assert_close(run(made, x) / p, np.ones_like(x), 1e-12, "rounding of 13 steps")
    p, q = np.ones_like(x), x / 2000
    for _ in range(11):
        m = (3 - q) / 2
        p, q = p * m, q * m**2
    made = realise("rsqrt", {"kind": "secformer"}, (2.0, 5000.0))
    assert_close(run(made, x) * np.sqrt(2000) / p, np.ones_like(x), 1e-12, "rounding of 11 steps")


@pytest.mark.parametrize(
    ("module", "low", "figure"), [(reciprocal, 5.0, 2.7573e-4), (rsqrt, 2.0, 8.7902e-4)], ids=["reciprocal", "rsqrt"]
)
@pytest.mark.parametrize("wrong", [0.99, 1.01])
def test_a_wrong_deflation_is_caught(
    module: Any, low: float, figure: float, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECFORMER_DEFLATION", module.SECFORMER_DEFLATION * wrong)
    assert module.secformer((low, 1900.0)).error != pytest.approx(figure, rel=1e-2)


def test_without_its_deflation_secformer_diverges(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (reciprocal, rsqrt):
        monkeypatch.setattr(module, "SECFORMER_DEFLATION", 1.0)
        with pytest.raises(PlanError, match="does not converge"):
            module.secformer((0.5, 5.0))


# ---- gradients, refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "options", "interval"),
    [
        ("reciprocal", {"kind": "goldschmidt"}, K4),
        ("reciprocal", {"kind": "goldschmidt_plain"}, K4),
        ("reciprocal", {"kind": "newton"}, K4),
        ("reciprocal", {"kind": "normalised"}, K6),
        ("reciprocal", {"kind": "octaves", "error": 1e-2}, K8),
        ("reciprocal", {"kind": "secformer"}, (50.0, 500.0)),
        ("rsqrt", {"kind": "goldschmidt"}, K4),
        ("rsqrt", {"kind": "spu"}, K6),
        ("rsqrt", {"kind": "octaves", "error": 1e-2}, K8),
        ("rsqrt", {"kind": "secformer"}, (50.0, 500.0)),
        ("sqrt", {"kind": "rsqrt"}, K4),
        ("sqrt", {"kind": "crypten"}, (1.0, 20.0)),
        ("log", {"kind": "crypten"}, (0.5, 20.0)),
        ("exp", {"kind": "crypten"}, (-5.0, 0.5)),
        ("exp", {"kind": "puma"}, (-20.0, 0.5)),
    ],
)
def test_gradients_match_numerical_derivatives(function: str, options: dict[str, Any], interval: Interval) -> None:
    """gradcheck's own tolerances, at points away from the thresholds of comparisons."""
    made = realise(function, options, interval)
    share = torch.tensor([0.021, 0.137, 0.313, 0.452, 0.613, 0.777, 0.981], dtype=torch.float64)
    x = (interval[0] + (interval[1] - interval[0]) * share).requires_grad_()

    def value(t: torch.Tensor) -> torch.Tensor:
        return made(BACKEND.input(t)).data  # type: ignore[attr-defined, no-any-return]

    assert torch.autograd.gradcheck(value, x, eps=1e-6, atol=1e-6, rtol=1e-5)
    assert torch.any(torch.autograd.grad(value(x).sum(), x)[0] != 0)


@pytest.mark.parametrize(
    ("function", "options", "interval", "message"),
    [
        ("reciprocal", {"kind": "goldschmidt_plain"}, (0.0, 1.0), "positive domain"),
        ("reciprocal", {"kind": "goldschmidt_plain", "error": 1e-15}, (0.5, 1.0), "at least 1e-14"),
        ("reciprocal", {"kind": "newton"}, K6, "raise either"),
        ("reciprocal", {"kind": "newton"}, (-1.0, 1.0), "positive domain"),
        ("reciprocal", {"kind": "normalised"}, (0.0, 1.0), "positive domain"),
        ("reciprocal", {"kind": "secformer"}, (1.0, 5000.0), "add steps"),
        ("reciprocal", {"kind": "secformer"}, (100.0, 11000.0), "does not converge"),
        ("rsqrt", {"kind": "goldschmidt"}, (0.0, 1.0), "positive domain"),
        ("rsqrt", {"kind": "goldschmidt", "error": 1e-15}, (0.5, 1.0), "relaxation needs"),
        ("rsqrt", {"kind": "secformer"}, (0.1, 2000.0), "add steps"),
        ("rsqrt", {"kind": "spu"}, (-1.0, 1.0), "positive domain"),
        ("sqrt", {"kind": "rsqrt"}, (0.0, 1.0), "positive domain"),
        ("sqrt", {"kind": "chebyshev", "degree": 7}, (0.0, 1.0), "positive domain"),
        ("sqrt", {"kind": "crypten"}, (0.001, 1.0), "does not converge"),
        ("log", {"kind": "crypten"}, (0.0, 1.0), "positive domain"),
        ("log", {"kind": "crypten"}, (1.0, 251.0), "holds up to 250"),
        ("log", {"kind": "crypten"}, (1e-6, 1.0), "errs by 4"),
    ],
)
def test_refusals(function: str, options: dict[str, Any], interval: Interval, message: str) -> None:
    with pytest.raises(RangeError, match=message):
        realise(function, options, interval)


def test_nothing_to_do() -> None:
    """A domain so narrow that no step is needed, and one step."""
    x = np.array([0.9999, 1.0])
    assert_close(run(rsqrt.goldschmidt((0.9999, 1.0)), x), [1.0, 1.0], 0.0, "no step at all")
    assert_close(run(sqrt.rsqrt((0.9999, 1.0)), x), x, 0.0, "no step at all")
    assert_close(run(reciprocal.goldschmidt_plain((0.9999, 1.0)), x), [1.0, 1.0], 0.0, "no step at all")
    for made in (rsqrt.goldschmidt((0.98, 1.0)), sqrt.rsqrt((0.98, 1.0)), reciprocal.goldschmidt((0.98, 1.0))):
        assert (made.depth, made.products) == ((2, 1) if made.function == "sqrt" else (1, 0))
        assert made.error is not None
        assert made.error < 2e-4


def test_true_forms() -> None:
    x = torch.tensor([0.25, 1.0, 9.0], dtype=torch.float64)
    assert_close(sqrt.TRUE(x), [0.5, 1.0, 3.0], 0.0, "exact")
    assert_close(log.TRUE(x), np.log([0.25, 1.0, 9.0]), 1e-15, "1 ulp")
