"""Approximations: every stated error re-measured on the plaintext engine, every cost counted, every identity held."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Array, Counting, assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from secureattn import fit
from secureattn.approx import FUNCTIONS, Interval, Realisation, exact, exp, gelu, realise, reciprocal, rsqrt, violations
from secureattn.approx.layernorm import layernorm, rmsnorm
from secureattn.approx.realisation import EVERYWHERE, on_arrays
from secureattn.backends.plaintext import PlaintextBackend, PlaintextTensor
from secureattn.errors import CapabilityError, InputError, PlanError, RangeError
from secureattn.tensor import Tensor

BACKEND = PlaintextBackend()
EXACT = PlaintextBackend(exact=True)
TRUE: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: x / 2 * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2))),
    "exp": np.exp,
    "reciprocal": lambda x: 1 / x,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}


def run(realisation: Callable[[Any], Any], x: Array) -> Array:
    """The value on the plaintext engine."""
    return BACKEND.reveal(realisation(BACKEND.input(x)))


def measured(realisation: Realisation, domain: Interval, true: Callable[[Array], Array] | None = None) -> float:
    """Largest error on an interval of what the plaintext engine computes."""
    f = true or TRUE[realisation.function]
    return fit.max_error(f, lambda x: run(realisation, x), domain, relative=realisation.relative, samples=4096)


# ---- errors ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One realisation, where it is measured, and the error it must have there: not less, not more."""

    function: str
    options: dict[str, Any]
    domain: Interval
    error: float

    def __str__(self) -> str:
        options = ",".join(str(value) for value in self.options.values())
        return f"{self.function}({options}) on [{self.domain[0]:.4g},{self.domain[1]:.4g}]"


def cheb(function: str, domain: Interval, degree: int, error: float, **more: Any) -> Case:
    return Case(function, {"kind": "chebyshev", "degree": degree, **more}, domain, error)


CASES = [
    Case("gelu", {"kind": "puma"}, (-10.0, 10.0), 1.9913e-2),  # the paper states < 1.4e-2
    cheb("gelu", (-8.0, 8.0), 31, 9.2423e-5),
    cheb("gelu", (-16.0, 16.0), 63, 6.2598e-5),
    Case("exp", {"kind": "limit", "squarings": 5}, (-31.9, 0.0), 8.5475e-3),
    Case("exp", {"kind": "limit", "squarings": 8}, (-255.9, 0.0), 1.0587e-3),
    cheb("exp", (-8.0, 0.0), 7, 5.4829e-4),
    cheb("exp", (-8.0, 0.0), 7, 1.8649e-5, squarings=1),
    cheb("exp", (-8.0, 0.0), 7, 3.2732e-7, squarings=2),
    cheb("exp", (-8.0, 0.0), 7, 3.9087e-9, squarings=3),
    cheb("reciprocal", (1 / 16, 1.0), 15, 5.6422e-4),
    cheb("reciprocal", (1 / 64, 1.0), 31, 6.4329e-4),
    cheb("reciprocal", (1 / 256, 1.0), 63, 6.6396e-4),
    cheb("reciprocal", (3.0, 48.0), 15, 5.6422e-4),  # only the ratio of the ends counts
    cheb("rsqrt", (1 / 16, 1.0), 15, 1.4903e-4),
    cheb("rsqrt", (1 / 64, 1.0), 31, 1.6960e-4),
    cheb("rsqrt", (1 / 256, 1.0), 63, 1.7497e-4),
    Case("reciprocal", {"kind": "goldschmidt"}, (2.0**-4, 1.0), 3.1835e-7),
    Case("reciprocal", {"kind": "goldschmidt"}, (2.0**-6, 1.0), 4.1382e-7),
    Case("reciprocal", {"kind": "goldschmidt"}, (2.0**-8, 1.0), 4.4084e-7),
    Case("reciprocal", {"kind": "goldschmidt"}, (2.0**-10, 1.0), 4.4780e-7),
    Case("reciprocal", {"kind": "goldschmidt", "error": 0.1}, (0.5, 32.0), 6.9232e-2),
    Case("reciprocal", {"kind": "crypten"}, (0.1, 100.0), 3.6938e-8),
    Case("rsqrt", {"kind": "newton", "steps": 0}, (0.25, 1.0), 8.8584e-3),
    Case("rsqrt", {"kind": "newton", "steps": 1}, (0.25, 1.0), 1.1736e-4),
    Case("rsqrt", {"kind": "newton", "steps": 2}, (0.25, 1.0), 2.0659e-8),
    Case("rsqrt", {"kind": "crypten"}, (0.086, 159.0), 9.7779e-3),
    Case("rsqrt", {"kind": "crypten"}, (0.2, 100.0), 3.0443e-3),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_the_stated_one(case: Case) -> None:
    """Figures to four digits; 1e-3 of them is rounding of the figure, and what a finer grid still finds."""
    made = realise(case.function, case.options, case.domain)
    assert made.covers(case.domain)
    assert measured(made, case.domain) == pytest.approx(case.error, rel=1e-3, abs=1e-13)
    assert made.error is not None
    assert made.error == pytest.approx(case.error, rel=1e-3)


@pytest.mark.parametrize(
    ("piece", "error"),
    [((-10.0, -4.0 - 1e-9), 1.2667e-4), ((-4.0, -1.95 - 1e-9), 7.5332e-4), ((-1.95, 2.0), 8.5263e-3)],
    ids=["zero", "cubic", "sextic"],
)
def test_error_of_each_piece_of_puma(piece: Interval, error: float) -> None:
    assert measured(gelu.puma(), piece) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("function", TRUE)
def test_true_forms(function: str) -> None:
    """``TRUE`` of each family against a formula written here; 4 ulp between two ways to round."""
    x = np.linspace(0.05, 5, 101) if function in ("reciprocal", "rsqrt") else np.linspace(-6, 5, 101)
    wanted = TRUE[function](x)
    assert_close(on_arrays(FUNCTIONS[function].TRUE)(x), wanted, 1e-15 * np.abs(wanted).max(), "4 ulp")
    assert_close(EXACT.reveal(exact(function)(EXACT.input(x))), wanted, 1e-14 * np.abs(wanted).max(), "torch's own")
    assert (exact(function).domain, exact(function).error) == (EVERYWHERE, 0.0)


@pytest.mark.parametrize(("bound", "error", "degree"), [(8.0, 1e-4, 30), (8.0, 5e-2, 14), (3.0, 1e-5, 14)])
def test_an_error_finds_its_degree(bound: float, error: float, degree: int) -> None:
    made = gelu.REALISATIONS["chebyshev"]((-bound, bound), error=error)
    assert made.polynomial is not None
    assert made.polynomial.degree == degree
    assert made.label == f"gelu(chebyshev, degree {degree})"
    assert made.error is not None
    assert made.error <= error
    finer = exp.chebyshev((-8.0, 0.0), error=error, squarings=2)
    assert finer.error is not None
    assert finer.error <= error


def test_gelu_takes_a_symmetric_domain() -> None:
    made = realise("gelu", {"kind": "chebyshev", "degree": 15}, (-1.0, 3.0))
    assert made.domain == (-3.0, 3.0)
    assert made.with_polynomial(made.polynomial.on_unit()).domain == (-1.0, 1.0)  # type: ignore[union-attr]


# ---- published coefficients -----------------------------------------------------------------------------------

# Typed off the papers a second time, highest power first.
PUMA_CUBIC = (-0.011034134030615728, -0.11807612951181953, -0.42226581151983866, -0.5054031199708174)
PUMA_SEXTIC = (0.0018067462606141187, 0.0, -0.037688200365904236, 0.0, 0.3603292692789629, 0.5, 0.008526321541038084)


def published_puma(x: Array) -> Array:
    pieces = [x < -4, (x >= -4) & (x < -1.95), (x >= -1.95) & (x <= 3)]
    return np.select(pieces, [0 * x, np.polyval(PUMA_CUBIC, x), np.polyval(PUMA_SEXTIC, x)], x)


def check_puma() -> None:
    # At 3 itself, and there alone, ours is already x: a comparison fewer. 1e-13: rounding of terms up to 20.
    x = np.r_[np.linspace(-10, 10, 4001), -4.0, -1.95, np.nextafter([-4.0, -1.95, 3.0], -10)]
    x = x[x != 3.0]
    assert_close(run(gelu.puma(), x), published_puma(x), 1e-13, "rounding")
    assert measured(gelu.puma(), (-10.0, 10.0)) == pytest.approx(1.9908e-2, rel=1e-3)
    assert measured(gelu.puma(), (-4.0, -1.95 - 1e-9)) == pytest.approx(7.5332e-4, rel=1e-3)


def check_quad() -> None:
    x = np.linspace(-10, 10, 401)
    assert_close(run(gelu.quad(), x), 0.125 * x**2 + 0.25 * x + 0.5, 1e-14, "rounding of values up to 15")


CHECKS = {"PUMA_LOW": check_puma, "PUMA_MID": check_puma, "QUAD": check_quad}
MUTANTS = [(name, k) for name in CHECKS for k, c in enumerate(getattr(gelu, name)) if c]


@pytest.mark.parametrize("name", CHECKS)
def test_published_coefficients(name: str) -> None:
    CHECKS[name]()


@pytest.mark.parametrize(("name", "k"), MUTANTS)
def test_a_wrong_coefficient_is_caught(name: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last digit but a few of each published coefficient matters to the check above."""
    right = getattr(gelu, name)
    wrong = tuple(c * (1 + 1e-9 * (j == k)) for j, c in enumerate(right))
    monkeypatch.setattr(gelu, name, wrong)
    with pytest.raises(AssertionError):
        CHECKS[name]()


@pytest.mark.parametrize("name", ["PUMA_LOW", "PUMA_MID"])
def test_swapped_coefficients_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(gelu, name)
    monkeypatch.setattr(gelu, name, (right[1], right[0], *right[2:]))
    with pytest.raises(AssertionError):
        CHECKS[name]()


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.options["kind"] == "chebyshev" and "squarings" not in c.options], ids=str
)
def test_a_wrong_chebyshev_coefficient_is_caught(case: Case) -> None:
    """Errors equioscillate nearly, so a shift of any coefficient by 2 % of the error shows in the measured maximum."""
    made = realise(case.function, case.options, case.domain)
    p = made.polynomial
    assert p is not None
    for k in (0, 1, p.degree // 2 & ~1, p.degree - 1 & ~1):
        bump = max(0.02 * case.error, abs(p.coefficients[k]) * 0.02)
        wrong = tuple(c + bump * (j == k) for j, c in enumerate(p.coefficients))
        mutant = made.with_polynomial(type(p)(wrong, p.domain))
        assert measured(mutant, case.domain) != pytest.approx(case.error, rel=1e-3)


def test_crypten_iterations_follow_their_formulas() -> None:
    """Written here again, from CrypTen's source, with their constants."""
    x = np.geomspace(0.1, 100, 1001)
    y = 3 * (1 + (1 - 2 * x) / 256) ** 256 + 0.003
    for _ in range(10):
        y = 2 * y - x * y * y
    assert_close(run(reciprocal.crypten((0.1, 100.0)), x) / y, np.ones(1001), 1e-12, "rounding of ten steps")
    y = 2.2 * (1 - (x / 2 + 0.2) / 256) ** 256 + 0.2 - x / 1024
    for _ in range(3):
        y = y * (3 - x * y * y) / 2
    assert_close(run(rsqrt.crypten((0.1, 100.0)), x) / y, np.ones(1001), 1e-12, "rounding of three steps")


# ---- Goldschmidt ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "steps", "unrelaxed"), [(4, 5, 7), (6, 6, 9), (8, 7, 11), (10, 8, 13)])
def test_goldschmidt_steps(bits: int, steps: int, unrelaxed: int) -> None:
    factors = reciprocal.relaxation(2.0**-bits, 1e-3)
    assert len(factors) == steps
    e, plain = 2.0**-bits, 0
    while 1 - e > 1e-3:
        e, plain = e * (2 - e), plain + 1
    assert plain == unrelaxed


def test_relaxation_is_the_best_quadratic_step() -> None:
    """``k`` makes both ends of [e, 1] and the rest of the next interval meet: any other factor leaves more behind."""
    e = 1 / 16
    for k in reciprocal.relaxation(e, 1e-3):
        b = np.linspace(e, 1, 1001)
        after = k * b * (2 - k * b)
        assert after.max() <= 1 + 1e-15
        assert after[0] == pytest.approx(after[-1], rel=1e-12)
        for worse in (0.99 * k, 1.01 * k):
            assert (worse * b * (2 - worse * b)).min() < after.min() - 1e-6 * (1 - after.min())
        e = after.min()
    assert 1 - e == pytest.approx(3.1835e-7, rel=1e-3)


@pytest.mark.parametrize("k", range(5))
def test_a_wrong_relaxation_factor_is_caught(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = reciprocal.relaxation(1 / 16, 1e-3)
    monkeypatch.setattr(
        reciprocal, "relaxation", lambda e, error: tuple(f * (1 + 2e-3 * (j == k)) for j, f in enumerate(right))
    )
    assert measured(reciprocal.goldschmidt((1 / 16, 1.0)), (1 / 16, 1.0)) > 1.001 * 3.1835e-7


@pytest.mark.parametrize(("e", "error"), [(0.5, 0.0), (0.5, -1.0), (0.5, 1e-17), (0.0, 1e-3), (2.0, 1e-3)])
def test_relaxation_that_would_never_end_is_refused(e: float, error: float) -> None:
    with pytest.raises(PlanError, match="relaxation needs"):
        reciprocal.relaxation(e, error)


def test_goldschmidt_with_nothing_to_do() -> None:
    made = reciprocal.goldschmidt((0.9999, 1.0), error=1e-3)
    assert_close(run(made, np.array([0.9999, 1.0])), [1.0, 1.0], 0.0, "no step at all")
    assert made.error == pytest.approx(1e-4, rel=1e-9)


# ---- costs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "depth", "products", "comparisons"),
    [
        (gelu.REALISATIONS["chebyshev"]((-8.0, 8.0), degree=15), 5, 6, 0),
        (gelu.REALISATIONS["chebyshev"]((-8.0, 8.0), degree=31), 6, 9, 0),
        (gelu.REALISATIONS["chebyshev"]((-8.0, 8.0), degree=63), 7, 14, 0),
        (gelu.puma(), None, 7, 3),
        (gelu.quad(), 2, 1, 0),
        (exp.chebyshev((-8.0, 0.0), degree=7, squarings=3), 7, 8, 0),
        (exp.limit((-8.0, 0.0), squarings=5), 6, 5, 0),
        (reciprocal.REALISATIONS["chebyshev"]((0.1, 1.0), degree=15), 5, 8, 0),
        (reciprocal.REALISATIONS["chebyshev"]((0.1, 1.0), degree=31), 6, 13, 0),
        (rsqrt.REALISATIONS["chebyshev"]((0.004, 1.0), degree=63), 7, 18, 0),
        (reciprocal.goldschmidt((3 / 16, 3.0)), 5 + 1, 2 * (5 - 1), 0),
        (reciprocal.crypten((0.1, 10.0)), None, 8 + 20, 0),
        (rsqrt.newton((0.2, 1.0), steps=2, degree=3), 3 + 6, 2 + 6, 0),
        (rsqrt.crypten((0.1, 10.0)), None, 8 + 9, 0),
    ],
    ids=lambda made: made.label if isinstance(made, Realisation) else "",
)
def test_costs_are_the_stated_ones(made: Realisation, depth: int | None, products: int, comparisons: int) -> None:
    x = Counting(np.array([0.3, 0.5]))
    y = made(x)
    assert isinstance(y, Counting)
    assert (y.tally.products, y.tally.comparisons) == (products, comparisons)
    assert depth is None or y.depth == depth
    assert bool(made.needs) == (comparisons > 0)
    assert_close(y.data, run(made, x.data), 1e-14, "the same operations on another tensor")


# ---- gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES[::2], ids=str)
def test_gradients_match_numerical_derivatives(case: Case) -> None:
    """gradcheck's own tolerances: central differences of step 1e-6 in float64."""
    made = realise(case.function, case.options, case.domain)
    low, high = case.domain
    # Away from the ends, and from puma's breakpoints, where it has no derivative.
    share = torch.tensor([0.021, 0.137, 0.313, 0.452, 0.613, 0.777, 0.981], dtype=torch.float64)
    x = (low * (high / low) ** share if low > 0 else low + (high - low) * share).requires_grad_()

    def value(t: torch.Tensor) -> torch.Tensor:
        return made(BACKEND.input(t)).data  # type: ignore[attr-defined, no-any-return]

    assert torch.autograd.gradcheck(value, x, eps=1e-6, atol=1e-6, rtol=1e-5)
    assert torch.any(torch.autograd.grad(value(x).sum(), x)[0] != 0)


# ---- norms ----------------------------------------------------------------------------------------------------


def true_rsqrt(x: Tensor) -> Tensor:
    return x.exact("rsqrt", torch.rsqrt)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(2, 33), st.sampled_from([1e-5, 1e-1]))
def test_layernorm_equals_torchs(seed: int, width: int, epsilon: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 3, width)) * 10.0 ** rng.uniform(-2, 2) + rng.normal(scale=5.0)
    gain, bias = rng.normal(size=width), rng.normal(size=width)
    t = torch.nn.functional.layer_norm
    wanted = t(torch.tensor(x), (width,), torch.tensor(gain), torch.tensor(bias), epsilon).numpy()
    y = layernorm(EXACT.input(x), epsilon=epsilon, rsqrt=true_rsqrt, gain=gain, bias=bias)
    # Taking the mean away leaves rounding of the mean (up to 10⁻¹⁵·|x|), divided by √(var+ε) ≥ 3e-3.
    assert_close(EXACT.reveal(y), wanted, 1e-10, "rounding of x − mean, divided by the deviation")
    plain = layernorm(EXACT.input(x), epsilon=epsilon, rsqrt=true_rsqrt)
    assert_close(EXACT.reveal(plain), t(torch.tensor(x), (width,), eps=epsilon).numpy(), 1e-10, "as above")


def test_rmsnorm() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 8)) + 1.0
    y = rmsnorm(EXACT.input(x), inverse_rms=lambda total: true_rsqrt(total * (1 / 8) + 1e-3))
    assert_close(EXACT.reveal(y), x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3), 1e-14, "rounding")
    assert np.max(np.abs(EXACT.reveal(y).mean(-1))) > 0.1, "no mean is taken away"


# ---- series of a stretched argument ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "domain", "options", "slope", "shift"),
    [
        ("rsqrt", (0.05, 2.0), {"error": 1e-5}, 1 / 48, 1e-5),  # a norm's Σx²/D + ε
        ("reciprocal", (1.0, 9.0), {"error": 1e-4}, 4.0, -0.5),
        ("exp", (-8.0, 0.5), {"error": 1e-5}, 0.5, -0.25),
        ("gelu", (-6.0, 6.0), {"harmonics": 16}, 1.5, 0.7),
    ],
)
def test_a_refit_is_the_function_of_the_stretched_argument(
    function: str, domain: Interval, options: dict[str, Any], slope: float, shift: float
) -> None:
    made = realise(function, {"kind": "fourier", **options}, domain)
    assert made.refit is not None
    found = made.refit(slope, shift)
    assert found.series is not None
    assert found.error is not None
    assert np.array(found.domain) * slope + shift == pytest.approx(made.domain, rel=1e-12)
    assert measured(found, found.domain, lambda x: TRUE[function](slope * x + shift)) == pytest.approx(
        found.error, rel=1e-3
    )
    assert found.error <= options.get("error", made.error)
    assert found.series.harmonics == options.get("harmonics", found.series.harmonics)
    assert (found.function, found.kind, found.relative) == (function, "fourier", made.relative)
    assert found.refit is not None
    back = found.refit(1 / slope, -shift / slope)
    assert back.domain == pytest.approx(made.domain, rel=1e-12)
    assert measured(back, back.domain) == pytest.approx(back.error, rel=1e-3)


def test_polynomials_have_no_refit() -> None:
    for options in ({"kind": "remez", "degree": 7}, {"kind": "newton"}, {"kind": "octaves"}):
        assert realise("rsqrt", options, (1e-3 if options["kind"] == "octaves" else 0.2, 1.0)).refit is None


# ---- realise and its refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "kind"), [(f, kind) for f, module in FUNCTIONS.items() for kind in module.REALISATIONS]
)
def test_every_kind_can_be_realised(function: str, kind: str) -> None:
    """With no option but a degree where one must be chosen; and each says what it is and where it is from."""
    known = inspect.signature(FUNCTIONS[function].REALISATIONS[kind]).parameters
    options: dict[str, Any] = {"kind": kind}
    if "error" in known and "float | None" in str(known["error"].annotation):
        options |= {"degree": 15} if "degree" in known else {"error": 1e-2}
    assert violations(function, options) == []
    interval = (2.0, 8.0) if kind == "secformer" else (0.5, 2.0)  # its reciprocal starts at 1.4
    made = realise(function, options, interval)
    assert (made.function, made.kind) == (function, kind)
    assert made.source, f"{made.label} names no source"
    assert made.changes_model == (kind in getattr(FUNCTIONS[function], "CHANGES_MODEL", ()))
    assert made.label.startswith(f"{function}({kind}")


@pytest.mark.parametrize("function", ["rsqrt", "reciprocal"])
def test_another_kind_serves_ranges_that_are_too_wide_for_the_first(function: str) -> None:
    """It is asked for the same error; where neither reaches it, the refusal is that of the second."""
    options = {"kind": "chebyshev", "error": 2e-3, "beyond": "goldschmidt"}
    near, far = (realise(function, options, (1 / κ, 1.0)) for κ in (16, 1e5))
    assert (near.kind, far.kind) == ("chebyshev", "goldschmidt")
    assert near.error is not None
    assert far.error is not None
    assert max(near.error, far.error) <= 2e-3
    with pytest.raises(RangeError, match=r"reaches .* at degree 127"):
        realise(function, {"kind": "chebyshev", "error": 2e-3}, (1e-5, 1.0))
    with pytest.raises(RangeError, match=rf"{function}\(goldschmidt\) needs a positive domain"):
        realise(function, options, (0.0, 1.0))


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        ("cosh", {"kind": "chebyshev"}, "unknown function 'cosh', known are clip, elu1, .*gelu, .*tanh"),
        ("gelu", {"kind": "maclaurin"}, "gelu: kind 'maclaurin' is none of exact, .*chebyshev, .*puma, quad"),
        ("gelu", {}, "gelu: kind None is none of exact"),
        ("gelu", {"kind": ["puma"]}, r"gelu: kind \['puma'\] is none of exact"),
        ("gelu", {"kind": "puma", "degree": 3}, r"gelu\(puma\): unknown option 'degree', it takes none"),
        (
            "gelu",
            {"kind": "chebyshev", "degree": 3, "degre": 3},
            r"gelu\(chebyshev\): unknown option 'degre', it takes degree, error",
        ),
        ("gelu", {"kind": "chebyshev", "degree": 3, "domain": (0, 1)}, "unknown option 'domain'"),
        ("gelu", {"kind": "exact", "degree": 3}, "gelu: exact takes no option 'degree'"),
        ("gelu", {"kind": "chebyshev"}, r"gelu\(chebyshev\) needs either a degree or an error, not both or neither"),
        ("exp", {"kind": "chebyshev", "squarings": 2}, r"exp\(chebyshev\) needs either a degree or an error"),
        (
            "exp",
            {"kind": "chebyshev", "degree": 7, "error": 0.1},
            r"exp\(chebyshev\) needs either a degree or an error",
        ),
        ("gelu", {"kind": "chebyshev", "degree": "15"}, "degree must be a whole number of at least 0, not '15'"),
        ("gelu", {"kind": "chebyshev", "degree": 15.0}, "degree must be a whole number of at least 0, not 15.0"),
        ("gelu", {"kind": "chebyshev", "degree": True}, "degree must be a whole number of at least 0, not True"),
        ("gelu", {"kind": "chebyshev", "error": 0}, "error must be a positive number, not 0"),
        ("gelu", {"kind": "chebyshev", "error": math.nan}, "error must be a positive number, not nan"),
        ("exp", {"kind": "limit", "squarings": -1}, "squarings must be a whole number of at least 0, not -1"),
        ("reciprocal", {"kind": "goldschmidt", "error": -1e-3}, "error must be a positive number, not -0.001"),
        ("rsqrt", {"kind": "newton", "steps": 1.5}, "steps must be a whole number of at least 0, not 1.5"),
        ("rsqrt", {"kind": "chebyshev", "degree": 7, "beyond": "goldschmidt"}, "beyond, .* goes with an error"),
        *(
            ("rsqrt", {"kind": "chebyshev", "error": 1e-3, "beyond": beyond}, "beyond must be one of fourier, goldsch")
            for beyond in ("chebyshev", "newton", "maclaurin", ["goldschmidt"], 3)
        ),
    ],
)
def test_a_wrong_description_is_refused(function: str, options: dict[str, Any], said: str) -> None:
    assert len(violations(function, options)) == 1
    with pytest.raises(InputError, match=said):
        realise(function, options, (0.5, 2.0))


def test_every_violation_is_listed() -> None:
    assert len(violations("exp", {"kind": "chebyshev", "squarings": -1, "degre": 7, "steps": 2})) == 4


@pytest.mark.parametrize(
    ("function", "options", "interval", "said"),
    [
        ("exp", {"kind": "limit", "squarings": 5}, (-32.0, 0.0), "holds above -32, the calibrated range starts at -32"),
        (
            "exp",
            {"kind": "limit"},
            (-300.0, 0.0),
            "holds above -256, the calibrated range starts at -300; add squarings",
        ),
        ("reciprocal", {"kind": "chebyshev", "degree": 15}, (0.0, 1.0), "needs a positive domain"),
        ("reciprocal", {"kind": "goldschmidt"}, (-1.0, 1.0), "needs a positive domain"),
        ("rsqrt", {"kind": "newton"}, (0.0, 1.0), "needs a positive domain"),
        ("rsqrt", {"kind": "chebyshev", "degree": 15}, (-0.1, 1.0), "needs a positive domain"),
        ("reciprocal", {"kind": "crypten"}, (1.0, 254.0), "holds up to 250, the calibrated range reaches 254"),
        ("reciprocal", {"kind": "crypten"}, (1e-5, 1.0), "does not converge on .1e-05, 1. in 10 steps"),
        ("reciprocal", {"kind": "crypten", "steps": 2}, (0.1, 100.0), "does not converge on .0.1, 100. in 2 steps"),
        ("rsqrt", {"kind": "crypten"}, (0.01, 1.0), "does not converge on .0.01, 1. in 3 steps"),
        ("rsqrt", {"kind": "crypten"}, (1.0, 300.0), "does not converge on .1, 300. in 3 steps"),
        (
            "rsqrt",
            {"kind": "newton", "degree": 3},
            (1e-3, 1.0),
            "first guess of degree 3; raise",
        ),
        ("gelu", {"kind": "crypten"}, (-15.0, 1.0), "holds on .-14, 14."),
        ("gelu", {"kind": "chebyshev", "degree": 0}, (-1.0, 1.0), "needs a degree of at least 1, not 0"),
        ("reciprocal", {"kind": "goldschmidt", "error": 1e-16}, (0.1, 1.0), "error of at least 1e-14"),
    ],
)
def test_a_range_that_cannot_be_served_is_refused(
    function: str, options: dict[str, Any], interval: Interval, said: str
) -> None:
    with pytest.raises(RangeError, match=said):
        realise(function, options, interval)


def test_a_range_that_leaves_the_domain_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = {"narrow": lambda domain: exp.limit((-1.0, 0.0))}
    monkeypatch.setattr(exp, "REALISATIONS", narrow)
    with pytest.raises(RangeError, match=r"exp\(limit\) holds on \[-1, 0\], the calibrated range is \[-2, 0\]; widen"):
        realise("exp", {"kind": "narrow"}, (-2.0, 0.0))
    assert realise("exp", {"kind": "narrow"}, (-1.0, -0.5)).covers((-1.0, -0.5))


def test_an_error_out_of_reach_is_refused() -> None:
    with pytest.raises(RangeError, match=r"reaches 1\.\de-14 at degree 127, 1\.0e-20 was asked for"):
        realise("gelu", {"kind": "chebyshev", "error": 1e-20}, (-8.0, 8.0))
    with pytest.raises(RangeError, match="add squarings"):
        realise("exp", {"kind": "chebyshev", "error": 1e-6, "squarings": 1}, (-4000.0, 0.0))


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
def test_exact_needs_exact_mode(function: str) -> None:
    with pytest.raises(CapabilityError, match=f"{function} needs true functions .* the plaintext engine lacks"):
        exact(function)(BACKEND.input(np.ones(2)))


def test_a_realisation_is_a_function_over_tensors() -> None:
    made = gelu.REALISATIONS["chebyshev"]((-2.0, 2.0), degree=7)
    y = made(BACKEND.input(np.zeros((2, 3))))
    assert isinstance(y, PlaintextTensor)
    assert y.shape == (2, 3)
