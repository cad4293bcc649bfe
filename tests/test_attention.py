"""Attention variants: each against its published formula in numpy, in the clear, exactly and with approximations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Array, Counting, assert_close
from programs import in_threads

from secureattn.approx import elu1, exact, exp, realise, reciprocal, stablemax
from secureattn.approx.attention import VARIANTS, Attention, Call, RowWeights, realisations
from secureattn.approx.attention.power_softmax import (
    even_power,
    power_softmax,
    power_softmax_length_agnostic,
    power_softmax_stable,
)
from secureattn.approx.attention.quadratic import quad
from secureattn.approx.attention.softmax import softmax
from secureattn.approx.realisation import values
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.backends.symbolic import SymbolicMpc
from secureattn.nn.ranges import widened
from secureattn.tensor import Tensor

BACKEND = PlaintextBackend()
EXACT = PlaintextBackend(exact=True)

# ---- published formulas ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heads:
    """Projections ``[B,H,n,d]`` in numpy, and a variant's constants. ``q`` is as published, not divided by √d."""

    q: Array
    k: Array
    epsilon: float
    power: int

    @property
    def s(self) -> Array:
        return np.einsum("bhid,bhjd->bhij", self.q, self.k) / math.sqrt(self.d)

    @property
    def n(self) -> int:
        return self.k.shape[2]

    @property
    def d(self) -> int:
        return self.k.shape[3]


def l1(a: Array, more: float = 0.0) -> Array:
    return a / (np.abs(a).sum(-1, keepdims=True) + more)


def phi(x: Array) -> Array:
    return np.where(x < 0, np.exp(np.minimum(x, 0)), x + 1)


def lssa(h: Heads) -> Array:
    """Norms with the floor the library adds; ``test_cosines_are_those_of_the_paper`` is about it."""
    q, k = (x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-3 * h.epsilon) for x in (h.q / math.sqrt(h.d), h.k))
    return l1(np.log(1 + np.exp(math.log(h.d) * math.log(h.n) * q @ np.swapaxes(k, -1, -2))))


def lssar(h: Heads) -> Array:
    """The published form, but for the ε it is divided by, which is ours: ``Σ relu(a − mean a)^p + ε``."""
    offset = 0.0 if h.n <= 3 else 1.0
    sharp = np.maximum(lssa(h) * h.n - offset, 0) ** h.power
    unscaled = lssa_scale(h) ** h.power
    return sharp / (sharp.sum(-1, keepdims=True) + h.epsilon / unscaled)


def lssa_scale(h: Heads) -> Array:
    """The mean of a row before its first normalisation."""
    q, k = (x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-3 * h.epsilon) for x in (h.q / math.sqrt(h.d), h.k))
    a = np.log(1 + np.exp(math.log(h.d) * math.log(h.n) * q @ np.swapaxes(k, -1, -2)))
    return a.mean(-1, keepdims=True)


def feature_scores(h: Heads) -> Array:
    return phi(h.q / math.sqrt(h.d)) @ np.swapaxes(phi(h.k), -1, -2)


def magnitude_aware(h: Heads) -> Array:
    """``β·w − γ`` with ``β = 1 + 1/Σw``, ``γ = Σw/n``; w scaled by d^−½/n as the authors do."""
    w = feature_scores(h) / math.sqrt(h.d) / h.n
    z = w.sum(-1, keepdims=True)
    return (1 + 1 / z) * w - z / h.n


def injective(h: Heads) -> Array:
    s = np.einsum("bhid,bhjd->bhij", h.q, h.k) / math.sqrt(h.d)
    mean = (h.q / math.sqrt(h.d) * h.k.mean(2, keepdims=True)).sum(-1, keepdims=True)
    return s / h.n + (1 - mean) / h.n


PUBLISHED: dict[str, Callable[[Heads], Array]] = {
    "softmax": lambda h: l1(np.exp(h.s)),
    "power_softmax": lambda h: l1(h.s**h.power, h.epsilon),
    "power_softmax_length_agnostic": lambda h: l1(h.s**h.power / h.n, h.epsilon),
    "quad": lambda h: l1((h.s + 5) ** 2),
    "square_scaled": lambda h: h.s**2 / h.n,
    "taylor": lambda h: l1(1 + h.s + h.s**2 / 2),
    "spherical": lambda h: l1(h.s**2 + h.epsilon),
    "relu": lambda h: (np.maximum(h.s, 0) + h.epsilon / h.n) / (np.maximum(h.s, 0).sum(-1, keepdims=True) + h.epsilon),
    "relu_scaled": lambda h: np.maximum(h.s, 0) / h.n,
    "sigmoid": lambda h: 1 / (1 + np.exp(-(h.s - math.log(h.n)))),
    "stablemax": lambda h: l1(np.where(h.s < 0, 1 / (1 - np.minimum(h.s, 0)), h.s + 1)),
    "softplus_l1": lssa,
    "softplus_l1_reweighted": lssar,
    "scaled": lambda h: h.s / h.n,
    "linear": lambda h: h.s / h.n,
    "linear_elu": lambda h: l1(feature_scores(h)),
    "inline": injective,
    "mala": magnitude_aware,
}
"""Variant → its weights ``[B,H,n,n]``."""

RECIPROCAL = {"normaliser": "reciprocal"}
COSINE = {"query_norm": "rsqrt", "key_norm": "rsqrt", "softplus": "softplus"}
FEATURES = {"query_feature": "elu1", "key_feature": "elu1"}
SITES: dict[str, dict[str, str]] = {
    "softmax": {"exp": "exp", **RECIPROCAL},
    "power_softmax": RECIPROCAL,
    "power_softmax_length_agnostic": RECIPROCAL,
    "quad": RECIPROCAL,
    "square_scaled": {},
    "taylor": RECIPROCAL,
    "spherical": RECIPROCAL,
    "relu": {"relu": "relu", **RECIPROCAL},
    "relu_scaled": {"relu": "relu"},
    "sigmoid": {"sigmoid": "sigmoid"},
    "stablemax": {"stablemax": "stablemax", **RECIPROCAL},
    "softplus_l1": {**COSINE, **RECIPROCAL},
    "softplus_l1_reweighted": {**COSINE, "relu": "relu", **RECIPROCAL},
    "scaled": {},
    "linear": {},
    "linear_elu": {**FEATURES, **RECIPROCAL},
    "inline": {},
    "mala": {**FEATURES, **RECIPROCAL},
}
DEMANDS = {
    "scaled": "nothing",
    "inline": "nothing",
    "quad": "reciprocal",
    "relu": "relu, reciprocal",
    "mala": "2 × elu1, reciprocal",
    "softplus_l1_reweighted": "2 × rsqrt, softplus, relu, reciprocal",
}
SHARED = ("power_softmax", "power_softmax_length_agnostic", "softplus_l1_reweighted")
"""Rows that sum to less than 1, to Σ/(ε + Σ)."""
FREE = ("square_scaled", "relu_scaled", "sigmoid", "scaled", "linear")
"""Rows that may sum to anything."""
SHAPES = [(2, 2, 5, 3), (1, 2, 8, 4), (2, 1, 1, 4), (1, 1, 2, 3), (1, 2, 3, 2), (1, 1, 13, 5)]


@dataclass
class Watch:
    """The functions of a variant's sites, which keep the range of every argument and may err by what they are told.

    ``errors``: what is added to each site's value.
    """

    functions: dict[str, Callable[[Tensor], Tensor]]
    errors: dict[str, torch.Tensor] = field(default_factory=dict)
    seen: dict[str, torch.Tensor] = field(default_factory=dict)
    given: dict[str, torch.Tensor] = field(default_factory=dict)

    def __getitem__(self, site: str) -> Callable[[Tensor], Tensor]:
        def apply(x: Any) -> Tensor:
            self.seen[site] = x.data
            y: Any = self.functions[site](x)
            if site in self.errors:
                y = EXACT.input(y.data + self.errors[site])
            self.given[site] = y.data
            return y  # type: ignore[no-any-return]

        return apply


def true(variant: Attention) -> dict[str, Callable[[Tensor], Tensor]]:
    return {site: exact(function) for site, function in variant.sites.items()}


def projections(shape: tuple[int, ...], seed: int = 0, spread: float = 1.0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.normal(scale=spread, size=shape), rng.normal(scale=spread, size=shape)


def run(
    variant: Attention,
    q: Any,
    k: Any,
    v: Any,
    functions: Any = None,
    backend: PlaintextBackend = EXACT,
    **constants: Any,
) -> torch.Tensor:
    """The variant as a network calls it: q divided by √d, times its prescale."""
    factor = variant.prescale(k.shape[2]) / math.sqrt(k.shape[3])
    call = Call(true(variant) if functions is None else functions, **constants)
    context: Any = variant.run(backend.input(q * factor), backend.input(k), backend.input(v), call)
    return context.data  # type: ignore[no-any-return]


def weights_of(variant: Attention, q: Any, k: Any, **more: Any) -> Array:
    """Weights ``[B,H,n,n]``: what becomes of values that are the unit vectors."""
    b, h, n, _ = k.shape
    return run(variant, q, k, np.broadcast_to(np.eye(n), (b, h, n, n)).copy(), **more).detach().numpy()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_formula(name: str, shape: tuple[int, ...]) -> None:
    q, k = projections(shape)
    v = np.random.default_rng(7).normal(size=shape)
    for epsilon, power in ((0.7, 4), (1e-2, 2)):
        wanted = PUBLISHED[name](Heads(q, k, epsilon, power))
        constants = {"epsilon": epsilon, "power": power}
        assert_close(weights_of(VARIANTS[name], q, k, **constants), wanted, 1e-12, "rounding")
        assert_close(run(VARIANTS[name], q, k, v, **constants), wanted @ v, 1e-12, "rounding")


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_sum_to_one(name: str) -> None:
    q, k = projections((2, 2, 6, 4), seed=1)
    sums = weights_of(VARIANTS[name], q, k, epsilon=0.5, power=2).sum(-1)
    if name in FREE:
        assert np.abs(sums - 1).max() > 1e-3
    elif name in SHARED:
        assert np.all((sums > 0) & (sums < 1))
    else:
        assert_close(sums, np.ones_like(sums), 1e-13, "rounding")


@pytest.mark.parametrize("power", [3, 15])
def test_cosines_are_those_of_the_paper(power: int) -> None:
    """With ε → 0 the floor of the norms and the guard of the division vanish: LSSA and LSSAR to the letter."""
    q, k = projections((1, 2, 7, 4), seed=2)
    unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k)]
    a = l1(np.log(1 + np.exp(math.log(4) * math.log(7) * unit[0] @ np.swapaxes(unit[1], -1, -2))))
    assert_close(weights_of(VARIANTS["softplus_l1"], q, k, epsilon=1e-13), a, 1e-12, "1e-16 in Σx²")
    sharp = l1(np.maximum(a * 7 - 1, 0) ** power)
    got = weights_of(VARIANTS["softplus_l1_reweighted"], q, k, epsilon=1e-30, power=power)
    assert_close(got, sharp, 1e-12, "rounding")
    assert np.mean(got == 0) > 0.2, "keys below the average are dropped"


def test_equal_keys_are_no_division_by_zero() -> None:
    """Rows without a positive score, and rows where every weight is at LSSAR's threshold."""
    q, k = np.ones((1, 1, 5, 2)), -np.ones((1, 1, 5, 2))
    assert_close(weights_of(VARIANTS["relu"], q, k, epsilon=0.3), np.full((1, 1, 5, 5), 0.2), 1e-15, "equal weights")
    assert np.abs(weights_of(VARIANTS["softplus_l1_reweighted"], q, k, epsilon=0.3)).max() < 1e-15


# ---- what a variant says of itself ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_sites_are_all_used_and_floors_hold(name: str) -> None:
    variant = VARIANTS[name]
    assert dict(variant.sites) == SITES[name]
    assert not variant.needs
    assert variant.source
    assert variant.formula
    assert set(variant.floors) <= set(variant.sites)
    ones = np.ones((2, 2, 6, 4))
    lows: dict[str, list[float]] = {site: [] for site in variant.floors}
    for q, k in (projections((2, 2, 6, 4), seed=3), projections((2, 2, 6, 4), seed=3, spread=1e-3), (ones / 2, -ones)):
        watch = Watch(true(variant))
        weights_of(variant, q, k, functions=watch, epsilon=0.5, power=2)
        assert set(watch.seen) == set(variant.sites)
        for site, low in lows.items():
            low.append(float(watch.seen[site].min()))
    for site, floor in variant.floors.items():
        least, slack = floor(0.5, 6, 6), 1 / 0.95 if name == "softmax" else 1.03
        assert least * (1 - 1e-12) <= min(lows[site]) <= slack * least, f"{site}: the floor is met by scores of 0 or −1"


@pytest.mark.parametrize("name", DEMANDS)
def test_demands(name: str) -> None:
    assert VARIANTS[name].demands == DEMANDS[name]


def test_linear_is_another_way_to_compute_scaled() -> None:
    assert realisations("scaled") == {"scaled": VARIANTS["scaled"], "linear": VARIANTS["linear"]}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if VARIANTS[name].on_scores or VARIANTS[name].homogeneous])
def test_scores_may_come_scaled(name: str) -> None:
    """What folding does: scores times g, and functions that know it."""
    variant, g, epsilon, power = VARIANTS[name], 0.37, 0.7, 4
    q, k = projections((2, 2, 5, 3), seed=4)
    functions = true(variant)
    if variant.on_scores:
        on_scores = functions[variant.on_scores]
        functions[variant.on_scores] = lambda x: on_scores(x * (1 / g))
        scaled = epsilon
    else:
        assert variant.homogeneous is not None
        scaled = epsilon * g ** variant.homogeneous(power)
    got = weights_of(variant, q * g, k, functions=functions, epsilon=scaled, power=power, scale=g)
    assert_close(got, weights_of(variant, q, k, epsilon=epsilon, power=power), 1e-13, "rounding")


@pytest.mark.parametrize("name", PUBLISHED)
def test_gradients_reach_queries_keys_and_values(name: str) -> None:
    """gradcheck's own tolerances: central differences of step 1e-6 in float64."""
    shape = (1, 2, 5, 3)
    inputs = [torch.tensor(x).requires_grad_() for x in (*projections(shape, 5), projections(shape, 6)[0])]

    def value(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return run(VARIANTS[name], q, k, v, epsilon=0.5, power=2)

    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)
    for gradient in torch.autograd.grad(value(*inputs).square().sum(), inputs):
        assert torch.any(gradient != 0)


# ---- approximations -------------------------------------------------------------------------------------------


def served(variant: Attention, watch: Watch) -> dict[str, Any]:
    """Realisations for what was seen: relu by comparison, the others by polynomials."""
    made = {}
    for site, function in variant.sites.items():
        seen = watch.seen[site]
        interval = widened(function, (float(seen.min()), float(seen.max())), 0.05)
        options = {"kind": "compare"} if function == "relu" else {"kind": "chebyshev", "degree": 15}
        made[site] = realise(function, options, interval)
    return made


@pytest.mark.parametrize("name", [name for name in PUBLISHED if SITES[name]])
def test_approximations_err_by_what_their_errors_allow(name: str) -> None:
    """To first order an output errs by Σ |∂output/∂site value| · error of the site, for each output element."""
    variant, constants = VARIANTS[name], {"epsilon": 0.5, "power": 2}
    q, k = (torch.tensor(x) for x in projections((1, 1, 5, 3), seed=8, spread=1.5))
    v = torch.tensor(projections((1, 1, 5, 3), seed=9)[0])
    watch = Watch(true(variant))
    wanted = run(variant, q, k, v, watch, **constants)
    made = served(variant, watch)
    sites = list(variant.sites)
    errors = {s: watch.given[s].abs() ** made[s].relative * made[s].error for s in sites}

    def perturbed(*added: torch.Tensor) -> torch.Tensor:
        return run(variant, q, k, v, Watch(true(variant), dict(zip(sites, added, strict=True))), **constants)

    zeros = tuple(torch.zeros_like(watch.given[s]) for s in sites)
    jacobians = torch.autograd.functional.jacobian(perturbed, zeros)
    bound = sum((jacobian.abs() * errors[s]).flatten(4).sum(-1) for s, jacobian in zip(sites, jacobians, strict=True))
    error = (run(variant, q, k, v, made, BACKEND, **constants) - wanted).abs()
    assert torch.all(error <= 1.05 * bound + 1e-14), "5 % for what is not first order"
    assert name == "relu_scaled" or (error / bound).max() > 1e-3, "the bound is not idle"


@pytest.mark.parametrize("function", [elu1, stablemax], ids=["elu1", "stablemax"])
@pytest.mark.parametrize("domain", [(-3.0, 3.0), (-12.0, 5.0), (-0.5, 0.5), (0.5, 2.0)])
def test_kernels_of_two_pieces(function: Any, domain: tuple[float, float]) -> None:
    name = function.__name__.rsplit(".", 1)[-1]
    x = np.linspace(*domain, 1001)
    wanted = phi(x) if function is elu1 else np.where(x < 0, 1 / (1 - np.minimum(x, 0)), x + 1)
    assert_close(EXACT.reveal(exact(name)(EXACT.input(x))), wanted, 1e-15, "rounding")  # type: ignore[arg-type]
    for options in ({"kind": "piecewise", "error": 1e-6}, {"kind": "chebyshev", "degree": 31}):
        made = realise(name, options, domain)
        assert made.error is not None
        assert_close(values(made, x), wanted, 1.01 * made.error + 1e-15, "its own measure, on other points")
        assert options["kind"] != "piecewise" or made.error <= 1.01e-6
    made = realise(name, {"kind": "piecewise"}, domain)
    y: Any = made(Counting(np.array(domain)))
    assert y.tally.comparisons == 1
    assert made.needs


# ---- rows of weights ------------------------------------------------------------------------------------------


def one_over(x: Tensor) -> Tensor:
    """The true reciprocal."""
    return x.exact("reciprocal", torch.reciprocal)


def stable(s: Tensor, *, p: int, epsilon: float, delta: float = 1e-6) -> RowWeights:
    """The stable form with true reciprocals."""
    return power_softmax_stable(s, p=p, epsilon=epsilon, inverse_largest=one_over, reciprocal=one_over, delta=delta)


def scores(keys: int = 5, seed: int = 0) -> torch.Tensor:
    """Random ``[2,2,5,keys]``, none near 0."""
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(2, 2, 5, keys, dtype=torch.float64, generator=generator)
    return s + 0.2 * torch.sign(s)


def weights(rows: RowWeights) -> Array:
    return EXACT.reveal(rows.weights())  # type: ignore[arg-type]


POWERS = (2, 4, 6, 8)
MASK = np.tril(np.ones((5, 5)))
ROUNDING = "rounding of weights that are at most 1"


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("epsilon", [1e-3, 1.0])
def test_power_softmax(p: int, epsilon: float) -> None:
    s = scores()
    rows = power_softmax(EXACT.input(s), p=p, epsilon=epsilon, reciprocal=one_over)
    powers = s.numpy() ** p
    total = powers.sum(-1, keepdims=True)
    assert_close(weights(rows), powers / (epsilon + total), 1e-14, ROUNDING)
    assert_close(weights(rows).sum(-1, keepdims=True), total / (epsilon + total), 1e-14, "rows sum to Σ/(ε+Σ)")
    v = scores(5, seed=3)
    mixed = EXACT.reveal(Call({}).mix(rows, EXACT.input(v)))  # type: ignore[arg-type]
    assert_close(mixed, weights(rows) @ v.numpy(), 1e-13, "dividing after mixing is the same")


@pytest.mark.parametrize("form", [power_softmax, power_softmax_length_agnostic], ids=["plain", "length-agnostic"])
@pytest.mark.parametrize("p", POWERS)
def test_a_mask_removes_keys(form: Callable[..., RowWeights], p: int) -> None:
    s = scores()
    masked = weights(form(EXACT.input(s), p=p, epsilon=0.1, reciprocal=one_over, mask=MASK))
    for row in range(5):
        alone = weights(form(EXACT.input(s[:, :, row : row + 1, : row + 1]), p=p, epsilon=0.1, reciprocal=one_over))
        assert_close(masked[:, :, row : row + 1, : row + 1], alone, 1e-14, ROUNDING)
        assert_close(masked[:, :, row, row + 1 :], np.zeros((2, 2, 4 - row)), 0.0, "0 exactly") if row < 4 else None


@pytest.mark.parametrize("form", [power_softmax, power_softmax_length_agnostic], ids=["plain", "length-agnostic"])
def test_a_fully_masked_row_has_no_weights(form: Callable[..., RowWeights]) -> None:
    mask = np.ones((5, 5))
    mask[2] = 0.0
    w = weights(form(EXACT.input(scores()), p=4, epsilon=1e-3, reciprocal=one_over, mask=mask))
    assert_close(w[:, :, 2], np.zeros((2, 2, 5)), 0.0, "0 exactly, never NaN")
    assert np.all(w[:, :, [0, 1, 3, 4]] > 0)


def test_a_mask_may_be_one_row_for_all() -> None:
    s = scores()
    row = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    full = np.broadcast_to(row, (5, 5)).copy()
    for form in (power_softmax, power_softmax_length_agnostic):
        one = weights(form(EXACT.input(s), p=4, epsilon=0.1, reciprocal=one_over, mask=row))
        assert_close(one, weights(form(EXACT.input(s), p=4, epsilon=0.1, reciprocal=one_over, mask=full)), 0.0, "same")


@pytest.mark.parametrize("p", POWERS)
def test_length_agnostic_form(p: int) -> None:
    """Equal to the plain form with nε; repeated keys change neither the result nor the normaliser."""
    s, v = scores(), scores(5, seed=4)
    form = power_softmax_length_agnostic
    w = weights(form(EXACT.input(s), p=p, epsilon=0.2, reciprocal=one_over))
    powers = s.numpy() ** p
    assert_close(w, powers / 5 / (0.2 + powers.mean(-1, keepdims=True)), 1e-14, ROUNDING)
    assert_close(w, weights(power_softmax(EXACT.input(s), p=p, epsilon=1.0, reciprocal=one_over)), 1e-14, "ε·n = 1")
    seen: list[Array] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(EXACT.reveal(x))  # type: ignore[arg-type]
        return one_over(x)

    results = []
    for times in (1, 3, 40):
        rows = form(EXACT.input(s.repeat(1, 1, 1, times)), p=p, epsilon=0.2, reciprocal=watched)
        mixed = Call({}).mix(rows, EXACT.input(v.repeat(1, 1, times, 1)))
        results.append(EXACT.reveal(mixed))  # type: ignore[arg-type]
    for normaliser, result in zip(seen[1:], results[1:], strict=True):
        assert_close(normaliser / seen[0], np.ones_like(seen[0]), 1e-13, "rounding of longer sums")
        assert_close(result, results[0], 1e-12, "rounding of longer sums")
    plain = [
        weights(power_softmax(EXACT.input(s.repeat(1, 1, 1, t)), p=p, epsilon=1.0, reciprocal=one_over)) for t in (1, 3)
    ]
    assert np.max(np.abs(3 * plain[1][..., :5] - plain[0])) > 1e-2, "the plain form does depend on n"


@pytest.mark.parametrize("p", POWERS)
@pytest.mark.parametrize("delta", [1e-6, 0.5])
def test_stable_form_is_the_plain_one_with_another_epsilon(p: int, delta: float) -> None:
    s, epsilon = scores(), 0.3
    rows = stable(EXACT.input(s), p=p, epsilon=epsilon, delta=delta)
    c = np.sqrt((s.numpy() ** 2).max(-1, keepdims=True) + delta)
    powers = s.numpy() ** p
    assert_close(weights(rows), powers / (epsilon * c**p + powers.sum(-1, keepdims=True)), 1e-14, ROUNDING)
    numerator = EXACT.reveal(rows.numerator)  # type: ignore[arg-type]
    assert_close(numerator.max(), (1 + delta / (c**2 - delta).max()) ** (-p / 2), 1e-12, "bounded by 1, nearly met")


def test_stable_form_survives_scores_that_overflow_the_plain_one() -> None:
    s = scores() * 1e60
    assert np.isfinite(weights(stable(EXACT.input(s), p=8, epsilon=0.1))).all()


@pytest.mark.parametrize("keys", [1, 5, 8])
@pytest.mark.parametrize("offset", [0.0, -700.0, 1e4])
def test_softmax_is_shifted_by_its_mean(keys: int, offset: float) -> None:
    """Scores of 1e4 do not overflow; the normaliser is at least n by Jensen, but for the 8 bits 1/n is taken to."""
    s = scores(keys) + offset
    watch = Watch(TRUE_SOFTMAX)
    rows = softmax(EXACT.input(s), exp=watch["exp"], reciprocal=watch["normaliser"])
    assert_close(weights(rows), torch.softmax(s, -1).numpy(), 1e-11, "1e4 leaves 12 digits of the scores")
    off = s.mean(-1, keepdim=True).abs() / 256 if keys == 5 else 0.0
    assert torch.all(watch.seen["normaliser"] >= keys * torch.exp(torch.as_tensor(-off)) * (1 - 1e-11))
    assert torch.all((watch.seen["exp"] - (s - s.mean(-1, keepdim=True))).abs() <= off + 1e-11)


@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_softmax_equals_torchs(spread: float) -> None:
    s = scores() * spread
    w = weights(softmax(EXACT.input(s), exp=exact("exp"), reciprocal=one_over))
    assert_close(w, torch.softmax(s, -1).numpy(), 1e-13, "e^x amplifies the rounding of x up to 40")


def test_softmax_with_approximations() -> None:
    """Both errors together: e^δ − 1 of the exponential relative to what it is at its smallest, and the reciprocal's."""
    s = scores()
    shifted = s - s.mean(-1, keepdim=True)
    e = exp.chebyshev((float(shifted.min()), float(shifted.max())), degree=15, squarings=1)
    total = torch.exp(shifted).sum(-1)
    r = reciprocal.REALISATIONS["chebyshev"]((float(total.min()), float(total.max())), degree=15)
    assert e.error is not None
    assert r.error is not None
    w = BACKEND.reveal(softmax(BACKEND.input(s), exp=e, reciprocal=r).weights())  # type: ignore[arg-type]
    assert_close(
        w, torch.softmax(s, -1).numpy(), r.error + 2 * e.error, "relative error of 1/Σ, and of exp against Σ ≥ 5"
    )
    assert np.max(np.abs(w - torch.softmax(s, -1).numpy())) > 0


# ---- softmax under a mask -------------------------------------------------------------------------------------

SAMPLES_OF_3_AND_5 = (np.arange(5) < np.array([[3], [5]])).reshape(2, 1, 1, 5) * 1.0
MASKS: dict[str, Array] = {
    "causal": MASK,
    "one row for all": np.array([1.0, 0.0, 1.0, 1.0, 0.0]),
    "padded samples": SAMPLES_OF_3_AND_5,
    "padded and causal": SAMPLES_OF_3_AND_5 * MASK,
    "a hidden row": MASK * np.array([[1.0], [1.0], [0.0], [1.0], [1.0]]),
    "nothing hidden": np.ones((5, 5)),
}
TRUE_SOFTMAX: dict[str, Callable[[Tensor], Tensor]] = {"exp": exact("exp"), "normaliser": one_over}


def masked(s: Any, mask: Array, watch: Any = TRUE_SOFTMAX, backend: PlaintextBackend = EXACT) -> Array:
    rows = softmax(backend.input(s), exp=watch["exp"], reciprocal=watch["normaliser"], mask=mask)
    return backend.reveal(rows.weights())  # type: ignore[arg-type]


def over_visible(s: torch.Tensor, mask: Array) -> Array:
    """torch's softmax with −∞ for what is hidden; rows that see nothing have weights 0."""
    return torch.softmax(s.masked_fill(torch.tensor(mask) == 0, -math.inf), -1).nan_to_num(0.0).numpy()


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_softmax_is_that_of_the_visible_keys(mask: Array, spread: float) -> None:
    s = scores() * spread
    w = masked(s, mask)
    assert_close(w, over_visible(s, mask), 1e-13, "e^x amplifies the rounding of x up to 40")
    assert np.all(w[np.broadcast_to(mask, w.shape) == 0] == 0.0)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_hidden_scores_change_nothing(mask: Array) -> None:
    """Not to the last bit, neither weights nor what exp and the reciprocal are given; nor do they have a gradient."""
    s, hidden = scores(), torch.tensor(1 - mask)
    other = s + hidden * 1e6 * torch.sign(scores(seed=1))
    watches = [Watch(TRUE_SOFTMAX), Watch(TRUE_SOFTMAX)]
    results = [masked(x, mask, watch) for x, watch in zip((s, other), watches, strict=True)]
    assert_close(results[1], results[0], 0.0, "the same numbers")
    for site in TRUE_SOFTMAX:
        assert_close(watches[1].seen[site], watches[0].seen[site], 0.0, "the same numbers")
    s.requires_grad_()
    rows = softmax(EXACT.input(s), exp=exact("exp"), reciprocal=one_over, mask=mask)
    (gradient,) = torch.autograd.grad(rows.weights().data.square().sum(), s)  # type: ignore[attr-defined]
    assert torch.all(gradient.isfinite())
    assert torch.all(gradient[(hidden == 1).expand_as(gradient)] == 0)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masked_normalisers_do_not_depend_on_how_many_keys_are_visible(mask: Array) -> None:
    """From 1 to twice the mean of e^(s − mean) over the visible, but for the 8 bits of 1/n; 1 where none is."""
    s, watch = scores(), Watch(TRUE_SOFTMAX)
    masked(s, mask, watch)
    shown = np.broadcast_to(mask, s.shape)
    count = shown.sum(-1, keepdims=True)
    mean = (s.numpy() * shown).sum(-1, keepdims=True) / np.maximum(count, 1)
    most = (np.exp(s.numpy() - mean) * shown).sum(-1, keepdims=True) / np.maximum(count, 1)
    off, seen = np.exp(np.abs(mean) / 256), watch.seen["normaliser"].numpy()
    assert np.all(seen[count == 0] == 1.0)
    assert np.all((seen >= 1 / off)[count > 0])
    assert np.all((seen <= 2 * most * off * (1 + 1e-12))[count > 0])
    assert np.all(watch.seen["exp"].numpy()[shown == 0] == 0.0)  # which every domain of exp holds


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("parties", [2, 3])
def test_softmax_under_a_mask_on_shares(mask: Array, parties: int) -> None:
    s, watch = torch.tensor(np.rint(scores().numpy() * 2**16) / 2**16), Watch(TRUE_SOFTMAX)
    masked(s, mask, watch)
    made = {}
    for site, function in (("exp", "exp"), ("normaliser", "reciprocal")):
        low, high = float(watch.seen[site].min()), float(watch.seen[site].max())
        made[site] = realise(function, {"kind": "fourier", "error": 1e-5}, (low - 0.01, high + 0.01))
    run = in_threads(
        lambda b, x: softmax(x, exp=made["exp"], reciprocal=made["normaliser"], mask=mask).weights(),
        s.numpy(),
        parameters=MpcParameters(parties=parties),
    )
    shown = np.broadcast_to(mask, run.value.shape)
    assert np.all(run.value[shown == 0] == 0.0)
    error = 1e-5 * (2 + 2 + 1) + 6 * 3 * 2.0**-16
    assert_close(run.value, over_visible(s, mask), error, "errors of both, sums from 1/2; six times three units")
    assert run.recorders[0].total("rounds", phase="online") == rounds_of(made), "a mask takes none"


@pytest.mark.parametrize(("spread", "octaves"), [(1.0, 2), (1.9, 5), (2.2, 6)])
def test_rows_on_shares_sum_to_one_however_far_normalisers_reach(spread: float, octaves: int) -> None:
    """Over more than five octaves the reciprocal compares."""
    rng = np.random.default_rng(0)
    s = rng.normal(size=(1, 1, 200, 64)) * rng.uniform(0.1, spread, size=(1, 1, 200, 1))
    s = np.rint(s * 2**16) / 2**16
    watch = Watch(TRUE_SOFTMAX)
    softmax(EXACT.input(s), exp=watch["exp"], reciprocal=watch["normaliser"])
    (low, high), highest = (float(x) for x in watch.seen["exp"].aminmax()), float(watch.seen["normaliser"].max())
    assert 2.0 ** (octaves - 1) < highest / (0.95 * 64) < 2.0**octaves
    e = realise("exp", {"kind": "fourier", "error": 1e-4}, (low - 0.1, high + 0.1))
    r = realise("reciprocal", {"kind": "octaves", "error": 1e-4}, (0.95 * 64, 1.02 * highest))
    run = in_threads(lambda b, x: softmax(x, exp=e, reciprocal=r).weights(), s)
    error = 1e-4 + 1e-4 + 6 * 3 * 2.0**-16
    assert_close(run.value.sum(-1), np.ones((1, 1, 200)), error, "of either, as sums are at least n; six times 3 units")
    assert_close(run.value, torch.softmax(torch.tensor(s), -1).numpy(), error, "as no weight is more than 1")


def rounds_of(made: Any) -> int:
    """Rounds of a softmax without a mask."""
    plan = SymbolicMpc(MpcParameters())
    with plan.recorder.phase("online"):
        softmax(plan.shape_input((2, 2, 5, 5)), exp=made["exp"], reciprocal=made["normaliser"]).weights()
    return plan.recorder.total("rounds", phase="online")


@pytest.mark.parametrize("shift", [5.0, 0.5])
def test_quad(shift: float) -> None:
    s = scores()
    squares = (s.numpy() + shift) ** 2
    w = weights(quad(EXACT.input(s), reciprocal=one_over, shift=shift))
    assert_close(w, squares / squares.sum(-1, keepdims=True), 1e-14, ROUNDING)
    squares = squares * MASK
    w = weights(quad(EXACT.input(s), reciprocal=one_over, shift=shift, mask=MASK))
    assert_close(w, squares / squares.sum(-1, keepdims=True), 1e-14, ROUNDING)
    assert_close(weights(quad(EXACT.input(s), reciprocal=one_over)).sum(-1), np.ones((2, 2, 5)), 1e-14, "rows sum to 1")


def test_gradients_flow_through_the_stable_form() -> None:
    s = scores().requires_grad_()

    def value(t: torch.Tensor) -> torch.Tensor:
        rows = stable(EXACT.input(t), p=4, epsilon=0.5)
        return rows.weights().data  # type: ignore[attr-defined, no-any-return]

    assert torch.autograd.gradcheck(value, s, eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("p", range(1, 33))
def test_even_power(p: int) -> None:
    x = np.linspace(-1.5, 1.5, 7)
    y = even_power(Counting(x), p)  # type: ignore[arg-type]
    assert_close(y.data / np.maximum(np.abs(x**p), 1e-300), np.sign(x**p), 1e-14, "relative rounding of few products")
    assert (y.depth, y.tally.products) == (math.ceil(math.log2(p)), p.bit_length() - 1 + bin(p).count("1") - 1)


def test_power_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        even_power(BACKEND.input(np.ones(2)), 0)
