"""Softmax in other ways, kernel attention, NaLaFormer, linear attention in the clear: against formulas in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Array, assert_close, eight_bits

from secureattn.approx import Realisation, exp, reciprocal, rsqrt
from secureattn.approx.attention import VARIANTS, Attention, Call, realisations
from secureattn.approx.attention.exact_softmax import ROUGH, normalise_square, ode
from secureattn.approx.attention.kernel import landmark_size, newton_inverse, toeplitz
from secureattn.approx.attention.nalaformer import EPSILON, LEAST, sharpened
from secureattn.approx.realisation import exact
from secureattn.backends import plaintext
from secureattn.backends.plaintext import PlaintextBackend, PlaintextTensor
from secureattn.events import Recorder
from secureattn.tensor import Capability, Tensor

EXACT = PlaintextBackend(exact=True)
BACKEND = PlaintextBackend()
TRUE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "reciprocal": torch.reciprocal,
    "rsqrt": torch.rsqrt,
    "tanh": torch.tanh,
    "log": torch.log,
    "clip": lambda x: x.clamp(-4.0, 12.0),
    "elu1": lambda x: torch.nn.functional.elu(x) + 1,
}
NAMES = (
    "softmax_max_shift",
    "softmax_ode",
    "softmax_normalise_square",
    "gaussian",
    "gaussian_low_rank",
    "nalaformer",
    "kernelized_rpe",
)
SHAPES = [(2, 2, 16, 8), (1, 3, 6, 4), (2, 1, 7, 5), (1, 1, 1, 3)]  # [B,H,S,Dh]


def functions(variant: Attention) -> dict[str, Realisation]:
    return {site: exact(function, TRUE[function]) for site, function in variant.sites.items()}


def inputs(shape: tuple[int, ...], seed: int = 0) -> tuple[Array, Array, Array]:
    """q (not yet divided by √Dh), k, v."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=shape)


def offsets(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(5).normal(scale=0.5, size=(shape[1], 2 * shape[2] - 1))


def run(name: str, q: Any, k: Any, v: Any, learnt: Any = None, scale: float = 1.0) -> torch.Tensor:
    """A variant in exact mode, its queries divided and scaled as folding does."""
    variant = VARIANTS[name]
    q, k, v = (torch.as_tensor(x) for x in (q, k, v))
    tokens = k.shape[-2]
    weights: Mapping[str, torch.Tensor] = {}
    if learnt is not None:
        weights = variant.weights({"offsets": torch.as_tensor(learnt)}, tokens)
    call = Call(functions=functions(variant), scale=scale, weights=weights)
    factor = scale * variant.prescale(tokens) / q.shape[-1] ** 0.5
    context = variant.run(EXACT.input(q * factor), EXACT.input(k), EXACT.input(v), call)
    assert isinstance(context, PlaintextTensor)
    return context.data


class Watched:
    """A function that keeps what it was asked."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        self.f, self.seen = f, list[Array]()

    def __call__(self, x: Tensor) -> Tensor:
        self.seen.append(EXACT.reveal(x))
        return self.f(x)


def watched(name: str, q: Array, k: Array, v: Array) -> dict[str, Watched]:
    variant = VARIANTS[name]
    found = {site: Watched(f) for site, f in functions(variant).items()}
    factor = variant.prescale(k.shape[-2]) / q.shape[-1] ** 0.5
    variant.run(*(EXACT.input(x) for x in (q * factor, k, v)), Call(functions=found))
    return found


# ---- the published formulas, again ------------------------------------------------------------------------------


def by_head(f: Callable[..., Array], q: Array, k: Array, v: Array, *rest: Array) -> Array:
    """A formula for one head ``[S,Dh]``, over all; what is learnt has a leading axis of heads."""
    out = np.zeros_like(v)
    for b, h in np.ndindex(*q.shape[:2]):
        out[b, h] = f(q[b, h], k[b, h], v[b, h], *(x[h] for x in rest))
    return out


def true_softmax(q: Array, k: Array, v: Array) -> Array:
    s = q @ k.T / math.sqrt(q.shape[1])
    w = np.exp(s - s.max(1, keepdims=True))
    return w / w.sum(1, keepdims=True) @ v


def shaft(q: Array, k: Array, v: Array) -> Array:
    x = np.clip(q @ k.T / math.sqrt(q.shape[1]), -4, 12) / 16
    return euler(x, 16) @ v


def euler(x: Array, steps: int) -> Array:
    g = np.full(x.shape, 1 / x.shape[-1])
    for _ in range(steps):
        g = g + (x - np.sum(g * x, -1, keepdims=True)) * g
    return g


def cho(q: Array, k: Array, v: Array) -> Array:
    s = q @ k.T / math.sqrt(q.shape[1])
    y = np.exp((s - s.max()) / 8)  # below 0, as the paper has it
    for _ in range(3):
        y = (y / np.linalg.norm(y, axis=1, keepdims=True)) ** 2
    return y @ v


def kappa(x: Array, y: Array) -> Array:
    distance = ((x[:, None] - y[None]) ** 2).sum(-1)
    return np.exp(-distance / (2 * math.sqrt(x.shape[1])))


def soft(q: Array, k: Array, v: Array) -> Array:
    return kappa(q, k) @ v


def nystrom(q: Array, k: Array, v: Array) -> Array:
    m = k.shape[0] // landmark_size(k.shape[0])
    landmarks = np.stack([part.mean(0) for part in np.split(k, m)])
    p = kappa(landmarks, landmarks)
    inverse = p / m**2
    for _ in range(20):
        inverse = 2 * inverse - inverse @ p @ inverse
    return kappa(q, landmarks) @ inverse @ kappa(landmarks, k) @ v


def nala(q: Array, k: Array, v: Array, least: float = LEAST) -> Array:
    norm = np.linalg.norm(q, axis=1, keepdims=True)
    power = 3 * (0.5 + np.tanh(norm))
    parts = [np.where(sign * q > 0, (np.maximum(sign * q, 0) / norm + least) ** power, 0) for sign in (1, -1)]
    queries = np.concatenate(parts, 1)
    keys = np.concatenate([np.maximum(k**3, 0), np.maximum(-(k**3), 0)], 1)
    return queries @ (keys.T @ v / len(k)) / (queries @ keys.mean(0)[:, None] + EPSILON)


def luo(q: Array, k: Array, v: Array, b: Array) -> Array:
    def phi(x: Array) -> Array:
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return np.where(x > 0, x + 1, np.exp(x))

    n, out = len(k), np.zeros_like(v)
    for i in range(n):
        w = [math.exp(b[j - i + n - 1]) * float(phi(q)[i] @ phi(k)[j]) for j in range(n)]
        out[i] = sum(w[j] * v[j] for j in range(n)) / sum(w)
    return out


FORMULAS: dict[str, Callable[..., Array]] = dict(
    zip(NAMES, (true_softmax, shaft, cho, soft, nystrom, nala, luo), strict=True)
)


def learnt(name: str, shape: tuple[int, ...]) -> tuple[Array, ...]:
    return (offsets(shape),) if VARIANTS[name].parameters(shape[1], shape[2]) else ()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_published_formula(name: str, shape: tuple[int, ...]) -> None:
    q, k, v = inputs(shape)
    more = learnt(name, shape)
    wanted = by_head(FORMULAS[name], q, k, v, *more)
    assert_close(
        run(name, q, k, v, *more), wanted, 1e-12, "rounding; of NaLaFormer where all weights of a row are small"
    )


@pytest.mark.parametrize("name", ["softmax_max_shift", "softmax_normalise_square", "gaussian"])
def test_a_slope_folded_into_the_queries_comes_out_again(name: str) -> None:
    """``Call.scale``: the function of the scores then takes its argument times the scale."""
    variant, (q, k, v) = VARIANTS[name], inputs((2, 2, 6, 4))
    site = variant.on_scores
    assert site is not None
    plain = functions(variant)
    scaled = Watched(lambda x: plain[site](x * (1 / 0.3)))
    call = Call(functions={**plain, site: scaled}, scale=0.3)
    factor = 0.3 * variant.prescale(6) / 2
    context = variant.run(*(EXACT.input(x) for x in (q * factor, k, v)), call)
    assert_close(EXACT.reveal(context), run(name, q, k, v), 1e-13, "rounding")
    assert_close(scaled.seen[0], 0.3 * watched(name, q, k, v)[site].seen[0], 1e-13, "rounding")


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_queries_keys_values_and_what_is_learnt(name: str) -> None:
    """gradcheck's own tolerances: central differences of step 1e-6 in float64."""
    shape = (1, 2, 4, 3)
    arrays = [torch.tensor(x, requires_grad=True) for x in (*inputs(shape, seed=3), *learnt(name, shape))]
    assert torch.autograd.gradcheck(lambda *x: run(name, *x), arrays, eps=1e-6, atol=1e-6, rtol=1e-5)
    for gradient in torch.autograd.grad(run(name, *arrays).square().sum(), arrays):
        assert torch.all(gradient != 0)


@pytest.mark.parametrize(
    ("name", "sites", "needs", "same_as"),
    [
        ("softmax_max_shift", {"max.exp": "exp", "max.normaliser": "reciprocal"}, {Capability.COMPARE}, "softmax"),
        ("softmax_ode", {"ode.clip": "clip"}, set(), "softmax"),
        (
            "softmax_normalise_square",
            {"square.exp": "exp", "square.first": "rsqrt", "square.middle": "rsqrt", "square.rsqrt": "rsqrt"},
            set(),
            "softmax",
        ),
        ("gaussian", {"exp": "exp"}, set(), None),
        ("gaussian_low_rank", {"exp": "exp"}, {Capability.MATRIX}, None),
        (
            "nalaformer",
            {"query.rsqrt": "rsqrt", "tanh": "tanh", "log": "log", "exp": "exp", "normaliser": "reciprocal"},
            {Capability.COMPARE},
            None,
        ),
        (
            "kernelized_rpe",
            {"query.rsqrt": "rsqrt", "key.rsqrt": "rsqrt", "feature": "elu1", "normaliser": "reciprocal"},
            set(),
            None,
        ),
    ],
)
def test_what_each_asks_for(name: str, sites: dict[str, str], needs: set[Capability], same_as: str | None) -> None:
    variant = VARIANTS[name]
    assert dict(variant.sites) == sites
    assert variant.needs == needs
    assert variant.same_as == same_as
    assert variant.floors.keys() <= sites.keys()
    if same_as:
        assert realisations(same_as)[name.removeprefix(f"{same_as}_")] is variant


# ---- softmax ------------------------------------------------------------------------------------------------------


def test_arguments_of_the_max_shift() -> None:
    sites = watched("softmax_max_shift", *inputs((2, 2, 16, 8)))
    (z,), (total,) = sites["max.exp"].seen, sites["max.normaliser"].seen
    assert_close(z.max(-1), np.zeros((2, 2, 16)), 0.0, "the largest score itself")
    assert VARIANTS["softmax_max_shift"].floors["max.normaliser"](0.5, 16, 1) == 0.98
    assert total.min() >= 1.0


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (np.linspace(-1, 1, 16), 1.4466e-3),
        (4 * np.eye(16)[3], 2.5353e-2),
        (8 * np.eye(16)[3], 3.0464e-3),
        (np.linspace(-4, 12, 16), 2.6653e-2),
    ],
    ids=["flat", "peaked", "more peaked", "wide"],
)
def test_error_of_the_ode(row: Array, error: float) -> None:
    g = EXACT.reveal(ode(EXACT.input(row[None, None, None]), clip=exact("clip", TRUE["clip"])))[0, 0, 0]
    softmax = np.exp(row) / np.exp(row).sum()
    assert np.max(np.abs(g - softmax)) == pytest.approx(error, rel=1e-4)
    assert np.all(g > 0)
    assert g.sum() == pytest.approx(1, abs=1e-14)
    assert_close(g, euler(row / 16, 16), 1e-14, "the paper's iteration")


def test_the_ode_converges_to_softmax() -> None:
    """With a step size of 1/steps the error falls as 1/steps; and what is clipped is clipped before anything else."""
    row = np.linspace(-4, 12, 7)[None, None, None]
    wanted = torch.softmax(torch.tensor(row), -1).numpy()
    clip = exact("clip", TRUE["clip"])
    errors = [np.max(np.abs(EXACT.reveal(ode(EXACT.input(row), clip=clip, steps=n)) - wanted)) for n in (512, 1024)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    beyond = np.where(row == 12, 40.0, np.where(row == -4, -40.0, row))
    g = [EXACT.reveal(ode(EXACT.input(x), clip=clip)) for x in (row, beyond)]
    assert_close(g[1], g[0], 0.0, "the same after clipping")


@pytest.mark.parametrize("squarings", [1, 2, 3, 5])
@pytest.mark.parametrize("keys", [2, 13, 16])
def test_normalise_square_is_softmax(squarings: int, keys: int) -> None:
    s = np.random.default_rng(1).normal(scale=6.0, size=(2, 2, 5, keys))
    made = EXACT.reveal(
        normalise_square(
            EXACT.input(s / 2**squarings),
            exp=exact("exp", torch.exp),
            rsqrt=exact("rsqrt", torch.rsqrt),
            squarings=squarings,
        )
    )
    assert_close(made, torch.softmax(torch.tensor(s), -1).numpy(), 1e-12, "rounding, doubled by each squaring")


@pytest.mark.parametrize("tokens", [6, 16, 128])
def test_arguments_of_normalise_square(tokens: int) -> None:
    """Σp² of every step lies in [1/n, 1] for scores up to 4·ln n above their mean."""
    q, k, v = inputs((1, 2, tokens, 8))
    s = np.einsum("bhsd,bhtd->bhst", q, k) / math.sqrt(8)
    largest = (s - s.mean(-1, keepdims=True)).max()
    q = q * (4 * math.log(tokens) / largest)
    sites = watched("softmax_normalise_square", q, k, v)
    ((argument,), *found) = (sites[f"square.{name}"].seen for name in ("exp", "first", "middle", "rsqrt"))
    sums = [total for (total,) in found]
    for site in ("square.first", "square.middle", "square.rsqrt"):  # room for the error of exp, which squares
        floor = VARIANTS["softmax_normalise_square"].floors[site](0.5, tokens, 1)
        assert floor == pytest.approx(0.9 / tokens, rel=1e-12)
    assert min(total.min() for total in sums) >= (1 - 1e-12) / tokens
    assert max(total.max() for total in sums) <= 1 + 1e-12
    s = np.einsum("bhsd,bhtd->bhst", q, k) / math.sqrt(8)
    shifted = s - s.sum(-1, keepdims=True) * eight_bits(1 / tokens)
    assert argument.max() == pytest.approx(shifted.max() / 8 - math.log(tokens), rel=1e-12)
    assert shifted.max() == pytest.approx(4 * math.log(tokens), abs=1e-3)


def test_normalise_square_with_approximations() -> None:
    """The stated bound; and an error of rsqrt at any step but the last changes nothing."""
    s = torch.as_tensor(np.random.default_rng(2).normal(scale=3.0, size=(2, 2, 16, 16)))
    z = (s - s.mean(-1, keepdim=True)) / 8 - math.log(16)
    e = exp.chebyshev((float(z.min()), float(z.max())), degree=7)
    r = rsqrt.REALISATIONS["chebyshev"]((1 / 16, 1.0), degree=15)
    assert e.error is not None
    assert r.error is not None
    w = BACKEND.reveal(normalise_square(BACKEND.input(s / 8), exp=e, rsqrt=r))
    relative = np.max(np.abs(w / torch.softmax(s, -1).numpy() - 1))
    per_exp = e.error / math.exp(float(z.min()))
    bound = ((1 + per_exp) / (1 - per_exp)) ** 8 * (1 + r.error) ** 2 - 1
    assert r.error < relative < bound
    calls = 0

    def wrong(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return exact("rsqrt", torch.rsqrt)(x) * (1.01 if calls < 3 else 1.0)

    made = EXACT.reveal(normalise_square(EXACT.input(s / 8), exp=exact("exp", torch.exp), rsqrt=wrong))
    assert_close(made, torch.softmax(s, -1).numpy(), 1e-13, "the next step divides it out")


@pytest.mark.parametrize("error", [-ROUGH, ROUGH])
def test_a_rough_root_moves_the_next_steps_argument_by_its_fourth_power_and_none_after(error: float) -> None:
    """The domains that a variant asks for hold for roots that err by what it bears, at both ends."""
    s = np.random.default_rng(3).normal(scale=4.0, size=(1, 2, 16, 16))
    root, variant = exact("rsqrt", torch.rsqrt), VARIANTS["softmax_normalise_square"]

    def seen(first: float, middle: float) -> tuple[list[Array], Array]:
        roots = [Watched(lambda x, off=off: root(x) * (1 + off)) for off in (first, middle, 0.0)]
        names = ("first", "middle", "rsqrt")
        made = normalise_square(EXACT.input(s / 8), exp=exact("exp", torch.exp), **dict(zip(names, roots, strict=True)))
        return [one for (one,) in (r.seen for r in roots)], EXACT.reveal(made)

    (first, middle, last), weights = seen(0.0, 0.0)
    (_, off_middle, same_last), _ = seen(error, 0.0)
    assert_close(off_middle / middle, np.full_like(middle, (1 + error) ** 4), 1e-12, "rounding")
    assert_close(same_last, last, 1e-12, "taken out")
    (same_first, _, off_last), off_weights = seen(error, error)
    assert_close(same_first, first, 0.0, "nothing before it errs")
    assert_close(off_last / last, np.full_like(last, (1 + error) ** 4), 1e-12, "not by both")
    assert_close(off_weights, weights, 1e-13, "taken out")
    assert variant.bears == {"square.first": ROUGH, "square.middle": ROUGH}
    assert variant.spread.keys() == {"square.middle", "square.rsqrt"}
    for below, above in variant.spread.values():
        assert below <= (1 + error) ** 4 <= above
        assert (1 + error) ** 4 in (below, above)


# ---- kernels ------------------------------------------------------------------------------------------------------


def test_arguments_of_the_gaussian_are_negative_half_distances() -> None:
    q, k, v = inputs((2, 2, 7, 4))
    (argument,) = watched("gaussian", q, k, v)["exp"].seen
    distance = ((q[:, :, :, None] - k[:, :, None]) ** 2).sum(-1)
    assert_close(argument, -distance / 4, 1e-13, "rounding")
    (argument,) = watched("gaussian", k, k, v)["exp"].seen
    assert np.max(argument) <= 1e-14


@pytest.mark.parametrize(("tokens", "size"), [(1, 1), (2, 2), (4, 2), (6, 3), (7, 7), (16, 4), (64, 8), (128, 16)])
def test_landmark_size(tokens: int, size: int) -> None:
    assert landmark_size(tokens) == size


def test_newton_inverts_what_its_docstring_says() -> None:
    """On a matrix of known eigenvalues: 1 − λv = (1 − (λ/m)²)^(2^20), and less than 1/λ below."""
    m = 8
    rotation = np.linalg.qr(np.random.default_rng(4).normal(size=(m, m)))[0]
    values = m * np.array([1.0, 0.5, 0.1, 0.03, 0.0058, 2e-3, 1e-3, 1e-4])
    p = rotation * values @ rotation.T
    made = EXACT.reveal(newton_inverse(EXACT.input(p[None, None])))[0, 0]
    left = 1 - values * np.diag(rotation.T @ made @ rotation)
    assert_close(left, (1 - (values / m) ** 2) ** 2.0**20, 1e-9, "rounding, doubled by each step along small λ")
    assert np.all(left[:5] < 1e-9)
    assert (1 - 0.0058**2) ** 2.0**20 < 1e-15
    assert left[6] == pytest.approx(math.exp(-1.048576), rel=1e-5)


@pytest.mark.parametrize("shape", [(2, 2, 16, 8), (1, 2, 6, 4)], ids=str)
def test_low_rank_is_the_nystrom_formula_and_full_rank_at_its_landmarks(shape: tuple[int, ...]) -> None:
    """The pseudo-inverse of the formula by numpy's; and keys that are their landmarks give the Gaussian itself."""
    q, k, v = inputs(shape)
    k = 2 * k
    size = landmark_size(shape[2])

    def formula(q: Array, k: Array, v: Array) -> Array:
        landmarks = k.reshape(-1, size, k.shape[1]).mean(1)
        return kappa(q, landmarks) @ np.linalg.pinv(kappa(landmarks, landmarks)) @ kappa(landmarks, k) @ v

    assert_close(run("gaussian_low_rank", q, k, v), by_head(formula, q, k, v), 1e-11, "rounding of ill-conditioned P")
    repeated = np.repeat(k[:, :, ::size], size, axis=2)
    whole = run("gaussian", q, repeated, v).numpy()
    assert_close(run("gaussian_low_rank", q, repeated, v), whole, 1e-11, "rank m exactly")


def test_toeplitz() -> None:
    b = offsets((1, 2, 5, 3))
    t = toeplitz(torch.as_tensor(b)).numpy()
    assert t.shape == (2, 5, 5)
    for i, j in np.ndindex(5, 5):
        assert_close(t[:, i, j], np.exp(b[:, j - i + 4]), 1e-14, "two libraries round their exponentials")
    assert VARIANTS["kernelized_rpe"].parameters(2, 5) == {"offsets": (2, 9)}


# ---- NaLaFormer ---------------------------------------------------------------------------------------------------


def test_the_power_of_nalaformer() -> None:
    """Every part where the sign is, 0 elsewhere; the error of the added constant is the stated one, and attained."""
    rng = np.random.default_rng(6)
    q = rng.normal(size=(1, 1, 500, 4)) * np.geomspace(1e-3, 30, 500)[:, None]
    q[0, 0, -1] = [30.0, 0.0, 0.0, 0.0]
    true = {name: exact(name, TRUE[name]) for name in ("rsqrt", "tanh", "log", "exp")}
    parts = [EXACT.reveal(x) for x in sharpened(EXACT.input(q / 2), **true)]
    norm = np.linalg.norm(q, axis=-1, keepdims=True)
    power = 3 * (0.5 + np.tanh(norm))
    for sign, part in zip((1, -1), parts, strict=True):
        published = (np.maximum(sign * q, 0) / norm) ** power
        assert np.max(np.abs(part - published)) <= 4.4021e-3
        assert np.all(part[sign * q < 0] == 0)
    assert parts[0][0, 0, -1, 0] - 1 == pytest.approx(4.4020e-3, rel=1e-4)


def test_nalaformer_is_near_the_formula_without_the_constant() -> None:
    q, k, v = inputs((2, 2, 16, 8))
    distance = np.max(np.abs(run("nalaformer", q, k, v).numpy() - by_head(lambda *x: nala(*x, least=0.0), q, k, v)))
    assert distance == pytest.approx(2.9565e-3, rel=1e-3)


def test_arguments_of_nalaformer() -> None:
    q, k, v = inputs((2, 2, 16, 8))
    sites = watched("nalaformer", q * np.geomspace(0.01, 30, 16)[:, None], k, v)
    (log,), (power,) = sites["log"].seen, sites["exp"].seen
    assert LEAST < log.min() < log.max() <= 1 + LEAST
    assert 4.5 * math.log(LEAST) <= power.min() < power.max() <= 4.5 * LEAST


# ---- linear attention in the clear ----------------------------------------------------------------------------------


def linear_attention(
    q: Array, k: Array, v: Array, kernel: Array | None = None, *, observed: bool = False
) -> tuple[list[Array], set[str], list[str]]:
    """Values and totals, the operations that were run, the points that were observed."""
    recorder, seen = Recorder(), list[str]()
    backend = PlaintextBackend(recorder=recorder)
    if observed:
        backend.observers.append(lambda site, value: seen.append(site))
    weight = None if kernel is None else backend.weight(kernel)
    made = backend.input(q).linear_attention(backend.input(k), backend.input(v), weight)
    return [backend.reveal(x) for x in made], {op for _, op, _ in recorder.events}, seen


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 16, 33])
def test_the_forms_of_linear_attention_agree(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs((2, 3, tokens, 3))
    kernel = toeplitz(torch.as_tensor(offsets((2, 3, tokens, 3)))).numpy()
    for t in (None, kernel):
        w = np.einsum("bhsd,bhtd->bhst", q, k) * (1.0 if t is None else t)
        wanted = np.einsum("bhst,bhtd->bhsd", w, v), w.sum(-1, keepdims=True)
        for limit in (0, 10**9):
            monkeypatch.setattr(plaintext, "_CONVOLVE_FROM", limit)
            made, operations, _ = linear_attention(q, k, v, t)
            for got, want in zip(made, wanted, strict=True):
                assert_close(got, want, 1e-12, "rounding of sums of up to 33 terms")
            if t is None:
                assert ("scores" in operations) == (tokens <= 3)
                assert ("state" in operations) == (tokens > 3)
            else:
                assert ("convolve" in operations) == (limit == 0)


def test_a_convolution_is_used_where_it_is_cheaper() -> None:
    for tokens, used in ((128, False), (256, True)):  # 16·1·log2(2·128) = 128
        q, k, v = inputs((1, 1, tokens, 1))
        kernel = toeplitz(torch.as_tensor(offsets((1, 1, tokens, 1)))).numpy()
        assert ("convolve" in linear_attention(q, k, v, kernel)[1]) == used


@pytest.mark.parametrize("with_kernel", [False, True])
def test_an_observer_sees_the_points_of_the_interface(with_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of refresh points are measured in the clear, whatever form is cheapest there."""
    monkeypatch.setattr(plaintext, "_CONVOLVE_FROM", 0)
    q, k, v = inputs((1, 2, 8, 3))
    kernel = toeplitz(torch.as_tensor(offsets((1, 2, 8, 3)))).numpy() if with_kernel else None
    made, _, seen = linear_attention(q, k, v, kernel, observed=True)
    assert seen == ["/scores", "/numerator"]
    for got, want in zip(made, linear_attention(q, k, v, kernel)[0], strict=True):
        assert_close(got, want, 1e-12, "rounding")


@pytest.mark.parametrize("limit", [0, 10**9], ids=["convolution", "scores"])
def test_gradients_through_both_forms_of_the_positional_term(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plaintext, "_CONVOLVE_FROM", limit)
    shape = (1, 2, 5, 3)
    arrays = [torch.tensor(x, requires_grad=True) for x in (*inputs(shape, seed=8), offsets(shape))]
    assert torch.autograd.gradcheck(lambda *x: run("kernelized_rpe", *x), arrays, eps=1e-6, atol=1e-6, rtol=1e-5)


def test_gradients_through_the_state() -> None:
    arrays = [torch.tensor(x, requires_grad=True) for x in inputs((1, 2, 5, 3), seed=8)]

    def value(*x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (BACKEND.input(t) for t in x)
        return tuple(part.data for part in q.linear_attention(k, v))

    assert torch.autograd.gradcheck(value, arrays, eps=1e-6, atol=1e-6, rtol=1e-5)


# ---- approximations in place of the true functions ------------------------------------------------------------------


def test_every_softmax_with_approximations() -> None:
    """What a protocol would serve, in the clear, near the true softmax: each within the errors of its functions."""
    q, k, v = inputs((1, 2, 16, 8))
    wanted = by_head(true_softmax, q, k, v)
    sites = watched("softmax_max_shift", q, k, v)
    low = float(sites["max.exp"].seen[0].min())
    total = sites["max.normaliser"].seen[0]
    made = {
        "max.exp": exp.chebyshev((low, 0.0), degree=15),
        "max.normaliser": reciprocal.REALISATIONS["chebyshev"]((float(total.min()), float(total.max())), degree=15),
    }
    variant = VARIANTS["softmax_max_shift"]
    x = [BACKEND.input(a) for a in (q / math.sqrt(8), k, v)]
    context = BACKEND.reveal(variant.run(*x, Call(functions=made)))
    errors = [f.error for f in made.values()]
    assert all(e is not None and e < 1e-3 for e in errors)
    assert 0 < np.max(np.abs(context - wanted)) < np.abs(v).max() * (errors[1] + 16 * errors[0])  # type: ignore[operator]
