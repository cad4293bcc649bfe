"""Networks: folding keeps the function, whatever serves it; what is read from files is checked, all at once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Array, assert_close
from safetensors.numpy import save_file

from secureattn.approx import Realisation, exact, realise
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.errors import InputError, ProtocolError
from secureattn.fit import chebyshev_to_monomial
from secureattn.nn import parameters
from secureattn.nn.config import ACTIVATIONS, ATTENTIONS, NORMS, STATISTICS_FREE, ModelConfig
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import fold
from secureattn.nn.model import load_model
from secureattn.nn.ranges import Ranges, widened
from secureattn.polynomial import Polynomial

Weights = dict[str, torch.Tensor]
Scalar = Callable[[torch.Tensor], torch.Tensor]
ROUNDING = "float64 rounding of a network whose values stay below 100"


Case = tuple[str, str, str, int]
"""Attention, norm, activation, layers."""


def config_of(
    attention: str = "power_softmax", norm: str = "layernorm", activation: str = "gelu", layers: int = 1, **more: Any
) -> ModelConfig:
    """A small model where no two sizes are equal, so that a mistaken axis shows."""
    sizes = {"tokens": 5, "features": 3, "width": 8, "heads": 2, "hidden": 12, "classes": 4}
    options = {"power": 4, "attention_epsilon": 0.7, "norm_epsilon": 1e-3}
    kinds = {"attention": attention, "norm": norm, "activation": activation, "layers": layers}
    return ModelConfig("test", **{**kinds, **sizes, **options, **more})


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """Every parameter random; gains, statistics and norms' α far from 1 and 0."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in parameters.shapes(config).items():
        if name.endswith("variance"):
            value = rng.uniform(0.3, 3.0, shape)
        elif name.endswith(("gain", "alpha")):
            value = rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)
        elif name.endswith("weight"):
            value = rng.normal(scale=shape[-1] ** -0.5, size=shape)
        else:
            value = rng.normal(scale=0.5, size=shape)
        made[name] = torch.tensor(value)
    return made


def inputs_of(config: ModelConfig, samples: int = 3) -> Array:
    return np.random.default_rng(99).normal(size=(samples, config.tokens, config.features))


# ---- the reference --------------------------------------------------------------------------------------------

EXACT: dict[str, Scalar] = {
    "rsqrt": lambda x: 1 / torch.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "gelu": lambda x: x * torch.special.ndtr(x),
    "gelu_tanh": lambda x: x / (1 + torch.exp(-math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "relu": lambda x: x.clamp(min=0),
    "exp": torch.exp,
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "softplus": lambda x: torch.log1p(torch.exp(x)),
    "tanh": lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1),
    "erf": lambda x: 2 * torch.special.ndtr(x * math.sqrt(2)) - 1,
    "elu1": lambda x: torch.where(x < 0, torch.exp(x), x + 1),
    "stablemax": lambda x: torch.where(x < 0, 1 / (1 - x), x + 1),
    "clip": lambda x: x.clamp(-4.0, 12.0),
    "log": torch.log,
}


@dataclass(frozen=True)
class Heads:
    """What a row of the table below works on: projections ``[B,H,S,Dh]`` as they are, and the functions of the layer.

    ``at(site, x)`` is what serves a site of the variant; ``own`` is what the variant learns beside its projections.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    at: Callable[[str, torch.Tensor], torch.Tensor]
    config: ModelConfig
    own: Mapping[str, torch.Tensor]

    @property
    def s(self) -> torch.Tensor:
        return self.q @ self.k.transpose(-1, -2) / math.sqrt(self.q.shape[-1])

    @property
    def n(self) -> int:
        return self.k.shape[-2]

    @property
    def epsilon(self) -> float:
        return self.config.attention_epsilon

    def divided(
        self, top: torch.Tensor, more: float = 0.0, times: float = 1.0, site: str = "normaliser"
    ) -> torch.Tensor:
        """Values weighted by ``top``, over its row sum times a factor plus a constant."""
        return top * self.at(site, top.sum(-1, keepdim=True) * times + more) @ self.v

    @property
    def short(self) -> torch.Tensor:
        """Queries over √Dh."""
        return self.q / math.sqrt(self.q.shape[-1])

    def unit(self, site: str, x: torch.Tensor, epsilon: float = 0.0) -> torch.Tensor:
        """``x/√(‖x‖² + ε)``."""
        return x * self.at(site, (x**2).sum(-1, keepdim=True) + epsilon)

    def features(self) -> torch.Tensor:
        """``φ(q)·φ(k)ᵀ``."""
        return self.at("query_feature", self.short) @ self.at("key_feature", self.k).transpose(-1, -2)

    def gaussian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``e^(−‖x−y‖²/(2√Dh))`` for every pair."""
        return self.at("exp", -(torch.cdist(x, y) ** 2) / (2 * math.sqrt(x.shape[-1])))


def softplus_scores(h: Heads) -> torch.Tensor:
    q, k = h.unit("query_norm", h.short, 1e-3 * h.epsilon), h.unit("key_norm", h.k, 1e-3 * h.epsilon)
    return h.at("softplus", math.log(h.q.shape[-1]) * math.log(h.n) * (q @ k.transpose(-1, -2)))


def reweighted(h: Heads) -> torch.Tensor:
    a = softplus_scores(h)
    return h.divided(h.at("relu", a - a.mean(-1, keepdim=True)) ** h.config.power, h.epsilon)


def inline(h: Heads) -> torch.Tensor:
    return h.s / h.n @ h.v + (1 - h.s.mean(-1, keepdim=True)) * h.v.mean(-2, keepdim=True)


def mala(h: Heads) -> torch.Tensor:
    w, mean = h.features(), h.v.mean(-2, keepdim=True)
    per_weight = 1 / (h.n * math.sqrt(h.q.shape[-1]))
    return (h.at("normaliser", w.sum(-1, keepdim=True)) + per_weight) * (w @ (h.v - mean)) + mean


def euler(h: Heads) -> torch.Tensor:
    x, g = h.at("ode.clip", h.s) / 16, torch.full_like(h.s, 1 / h.n)
    for _ in range(16):
        g = g + (x - (g * x).sum(-1, keepdim=True)) * g
    return g @ h.v


def squared(h: Heads) -> torch.Tensor:
    p = h.at("square.exp", (h.s - h.s.mean(-1, keepdim=True)) / 8 - math.log(h.n))
    for site in ("square.first", "square.middle", "square.rsqrt"):
        p = (p * h.at(site, (p**2).sum(-1, keepdim=True))) ** 2
    return p @ h.v


def landmarks(h: Heads) -> torch.Tensor:
    """For a prime number of tokens: one landmark, which is the mean of all keys."""
    mean = h.k.mean(-2, keepdim=True)
    return h.gaussian(h.q, mean) / h.gaussian(mean, mean) @ (h.gaussian(mean, h.k) @ h.v)


def relative_positions(h: Heads) -> torch.Tensor:
    q, k = h.at("feature", h.unit("query.rsqrt", h.short)), h.at("feature", h.unit("key.rsqrt", h.k))
    offset = torch.tensor([[j - i + h.n - 1 for j in range(h.n)] for i in range(h.n)])
    return h.divided(q @ k.transpose(-1, -2) * torch.exp(h.own["offsets"][:, offset]))


def by_norm(h: Heads) -> torch.Tensor:
    unit = h.unit("query.rsqrt", h.short)
    sharpness = 3 * (0.5 + h.at("tanh", (h.q * unit).sum(-1, keepdim=True)))
    q = h.at("exp", sharpness * h.at("log", unit.abs() + 2.0**-10))
    weights = torch.zeros_like(h.s)
    for sign in (1, -1):
        weights = weights + (q * (sign * h.q > 0)) @ ((sign * h.k).clamp(min=0) ** 3).transpose(-1, -2)
    return h.divided(weights, 0.05 * h.epsilon * h.n)


def stable_squares(h: Heads) -> torch.Tensor:
    """``(s/c)²``, c the largest score of the row."""
    return h.s**2 * h.at("largest", (h.s**2).amax(-1, keepdim=True) + 1e-6)


ROWS: dict[str, Callable[[Heads], torch.Tensor]] = {
    "softmax": lambda h: h.divided(h.at("exp", h.s - h.s.mean(-1, keepdim=True))),
    "power_softmax": lambda h: h.divided(h.s**h.config.power, h.epsilon),
    "power_softmax_length_agnostic": lambda h: h.divided(h.s**h.config.power, h.epsilon, 1 / h.n) / h.n,
    "power_softmax_stable": lambda h: h.divided(stable_squares(h) ** (h.config.power // 2), h.epsilon),
    "quad": lambda h: h.divided((h.s + 5) ** 2),
    "square_scaled": lambda h: h.s**2 / h.n @ h.v,
    "taylor": lambda h: h.divided(2 + 2 * h.s + h.s**2),
    "spherical": lambda h: h.divided(h.s**2 + h.epsilon),
    "relu": lambda h: h.divided(h.at("relu", h.s) + h.epsilon / h.n),
    "relu_scaled": lambda h: h.at("relu", h.s / h.n) @ h.v,
    "sigmoid": lambda h: h.at("sigmoid", h.s - math.log(h.n)) @ h.v,
    "stablemax": lambda h: h.divided(h.at("stablemax", h.s)),
    "softplus_l1": lambda h: h.divided(softplus_scores(h)),
    "softplus_l1_reweighted": reweighted,
    "scaled": lambda h: h.s / h.n @ h.v,
    "linear": lambda h: h.s / h.n @ h.v,
    "linear_elu": lambda h: h.divided(h.features()),
    "inline": inline,
    "mala": mala,
    "softmax_max_shift": lambda h: h.divided(h.at("max.exp", h.s - h.s.amax(-1, keepdim=True)), site="max.normaliser"),
    "softmax_ode": euler,
    "softmax_normalise_square": squared,
    "gaussian": lambda h: h.gaussian(h.q, h.k) @ h.v,
    "gaussian_low_rank": landmarks,
    "kernelized_rpe": relative_positions,
    "nalaformer": by_norm,
}
"""A variant's context, as a textbook writes it, but for what a site is given: that is the variant's own."""


class Reference:
    """The same encoder as a textbook writes it: nothing folded, nothing fused, one line a formula.

    ``functions`` maps a site to what serves it; ``seen`` keeps the range of every site's argument. The stream is
    defined up to its mean over features, which no norm sees; a LayerNorm model's head reads it with that mean removed.
    """

    def __init__(self, config: ModelConfig, w: Weights, functions: Mapping[str, Scalar] | None = None) -> None:
        self.config, self.w = config, w
        self.functions = functions or {site: EXACT[function] for site, function in config.sites().items()}
        self.seen: dict[str, tuple[float, float]] = {}

    def __call__(self, inputs: Array) -> Array:
        c, w = self.config, self.w
        x = torch.tensor(inputs) @ w["embed.weight"].T + w["embed.bias"] + w["position"]
        for i in range(c.layers):
            x = x + self.attention(f"layer.{i}", self.norm(f"layer.{i}", "attention", x))
            x = x + self.ffn(f"layer.{i}", self.norm(f"layer.{i}", "ffn", x))
        if c.norm == "layernorm":
            x = x - x.mean(-1, keepdim=True)
        pooled = x.mean(1, keepdim=True)
        return (pooled @ w["head.weight"].T + w["head.bias"]).numpy()

    def at(self, site: str, x: torch.Tensor) -> torch.Tensor:
        low, high = self.seen.get(site, (math.inf, -math.inf))
        self.seen[site] = min(low, float(x.min())), max(high, float(x.max()))
        return self.functions[site](x)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, layer: str, part: str, x: torch.Tensor) -> torch.Tensor:
        own = {
            name: self.w.get(f"{layer}.{part}.norm.{name}") for name in ("gain", "bias", "mean", "variance", "alpha")
        }
        return self.normalised(f"{layer}/{part}/norm", own, x) * own["gain"] + own["bias"]

    def normalised(self, site: str, own: Mapping[str, torch.Tensor | None], x: torch.Tensor) -> torch.Tensor:
        epsilon = self.config.norm_epsilon
        if self.config.norm == "batchnorm":
            return (x - own["mean"]) / torch.sqrt(own["variance"] + epsilon)
        if self.config.norm in STATISTICS_FREE:
            return self.at(site, own["alpha"] * x)
        if self.config.norm == "layernorm":
            x = x - x.mean(-1, keepdim=True)
        return x * self.at(site, (x**2).mean(-1, keepdim=True) + epsilon)

    def attention(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        c, at = self.config, f"{layer}.attention"
        b, n, d = x.shape
        projections = [self.linear(f"{at}.{name}", x) for name in ("query", "key", "value")]
        q, k, v = (p.reshape(b, n, c.heads, d // c.heads).transpose(1, 2) for p in projections)
        own = {name: self.w[f"{at}.{name}"] for name in c.own_parameters(int(layer.rsplit(".", 1)[1]))}
        heads = Heads(q, k, v, lambda site, t: self.at(f"{layer}/attention/{site}", t), c, own)
        return self.linear(f"{at}.output", ROWS[c.attention](heads).transpose(1, 2).reshape(b, n, d))

    def ffn(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        hidden = self.at(f"{layer}/ffn/{self.config.activation}", self.linear(f"{layer}.ffn.in", x))
        return self.linear(f"{layer}.ffn.out", hidden)


def folded_run(
    config: ModelConfig, w: Weights, inputs: Array, served: Mapping[str, Realisation] | None = None
) -> Array:
    """The library's program, in float64."""
    served = served or {site: exact(function) for site, function in config.sites().items()}
    backend = PlaintextBackend(exact=True)
    return backend.reveal(Encoder(fold(config, w, served), backend)(backend.input(inputs)))


# ---- folding --------------------------------------------------------------------------------------------------


CASES: list[Case] = [
    *((attention, "layernorm", "gelu", 1) for attention in ATTENTIONS),
    *(("power_softmax", norm, activation, 1) for norm in NORMS for activation in ACTIVATIONS),
    ("softmax", "rmsnorm", "silu", 3),
    ("taylor", "dyt", "relu", 2),
    ("quad", "batchnorm", "gelu", 3),
    ("sigmoid", "derf", "silu", 2),
    ("power_softmax", "layernorm", "gelu", 3),
]


def test_every_variant_has_a_reference() -> None:
    assert not set(ATTENTIONS) - ROWS.keys(), "ROWS, at the top, needs an entry for each variant"


@pytest.mark.parametrize(("attention", "norm", "activation", "layers"), CASES)
def test_folding_keeps_the_function(attention: str, norm: str, activation: str, layers: int) -> None:
    config = config_of(attention, norm, activation, layers)
    for seed in range(3):
        w, x = random_weights(config, seed), inputs_of(config)
        wanted = Reference(config, w)(x)
        assert 0.1 < np.abs(wanted).max() < 100
        assert_close(folded_run(config, w, x), wanted, 1e-12 * np.abs(wanted).max(), ROUNDING)


def test_torchs_layernorm_and_softmax_agree_with_the_reference() -> None:
    """The yardstick itself, where torch has the same function."""
    config = config_of("softmax")
    w, x = random_weights(config), torch.tensor(inputs_of(config)) @ torch.randn(3, 8, dtype=torch.float64)
    reference = Reference(config, w)
    gain, bias = w["layer.0.ffn.norm.gain"], w["layer.0.ffn.norm.bias"]
    wanted = torch.nn.functional.layer_norm(x, (8,), gain, bias, config.norm_epsilon)
    assert_close(reference.norm("layer.0", "ffn", x), wanted, 1e-12, "rounding")
    multihead = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    at = "layer.0.attention"
    state = {
        "in_proj_weight": torch.cat([w[f"{at}.{n}.weight"] for n in ("query", "key", "value")]),
        "in_proj_bias": torch.cat([w[f"{at}.{n}.bias"] for n in ("query", "key", "value")]),
        "out_proj.weight": w[f"{at}.output.weight"],
        "out_proj.bias": w[f"{at}.output.bias"],
    }
    multihead.load_state_dict(state)
    with torch.no_grad():
        assert_close(reference.attention("layer.0", x), multihead(x, x, x)[0], 1e-12, "rounding")


SHIFTED = ("softmax", "softmax_max_shift", "softmax_normalise_square", "inline")
"""Variants whose weights stay the same when a whole row of scores is shifted, as a key's bias does."""


@pytest.mark.parametrize(
    ("attention", "norm"),
    [*((a, "layernorm") for a in ATTENTIONS), *((a, n) for a in ("power_softmax", "softmax") for n in NORMS)],
)
def test_every_parameter_matters(attention: str, norm: str) -> None:
    """The comparison above would notice one parameter folded wrongly, be it by one part in a million."""
    config = config_of(attention, norm)
    w, x = random_weights(config), inputs_of(config)
    right = folded_run(config, w, x)
    for name in w:
        wrong = {**w, name: w[name] * (1 + 1e-6 * torch.linspace(0.5, 1.0, w[name].numel()).reshape(w[name].shape))}
        error = np.abs(Reference(config, wrong)(x) - right).max()
        if attention in SHIFTED and name == "layer.0.attention.key.bias":
            assert error < 1e-12, "a key's bias shifts whole rows"
        else:
            assert error > 1e-9, name


@pytest.mark.parametrize("change", [{"attention_epsilon": 0.7001}, {"norm_epsilon": 1.001e-3}, {"power": 6}])
def test_every_constant_matters(change: dict[str, Any]) -> None:
    config = config_of()
    w, x = random_weights(config), inputs_of(config)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_close(folded_run(replace(config, **change), w, x), Reference(config, w)(x), 1e-9, "deliberately wrong")


def narrow(attention: str, *kinds: Any) -> tuple[ModelConfig, Weights, Array]:
    """A model whose normalisers stay within a decade or so, as training with a range penalty makes them."""
    config = config_of(attention, *kinds, attention_epsilon=20.0 if attention == "power_softmax" else 4.0)
    w = random_weights(config)
    for i in range(config.layers):
        w[f"layer.{i}.attention.query.weight"] *= 0.3
        w[f"layer.{i}.attention.query.bias"] *= 0.3
    return config, w, inputs_of(config)


def served_by(config: ModelConfig, w: Weights, x: Array, **options: dict[str, Any]) -> dict[str, Realisation]:
    """A realisation a site, made for the range seen there."""
    reference = Reference(config, w)
    reference(x)
    made = {}
    for site, function in config.sites().items():
        domain = widened(function, reference.seen[site], 0.05)
        usual = {"kind": "compare"} if function == "clip" else {"kind": "chebyshev", "degree": 15}
        made[site] = realise(function, options.get(function, usual), domain)
    return made


def unfolded(realisation: Realisation) -> Scalar:
    """The polynomial as it was fitted, evaluated by numpy."""
    p = realisation.polynomial
    assert p is not None
    return lambda x: torch.tensor(np.polynomial.Chebyshev(p.coefficients, domain=p.domain)(x.numpy()))


# A polynomial of degree 15 for NaLaFormer's logarithm, from 2⁻¹⁰ on, errs too much for the exponential that follows.
POLYNOMIAL_CASES = [case for case in CASES if case[0] != "nalaformer"]


@pytest.mark.parametrize(("attention", "norm", "activation", "layers"), POLYNOMIAL_CASES)
def test_folding_keeps_polynomials(attention: str, norm: str, activation: str, layers: int) -> None:
    """The affine maps of Chebyshev domains move into weights; the polynomial stays the same one."""
    config, w, x = narrow(attention, norm, activation, layers)
    served = served_by(config, w, x)
    functions = {site: unfolded(r) if r.polynomial else EXACT[r.function] for site, r in served.items()}
    wanted = Reference(config, w, functions)(x)
    assert np.abs(wanted).max() < 100
    assert_close(folded_run(config, w, x, served), wanted, 1e-9, ROUNDING)
    assert np.abs(wanted - Reference(config, w)(x)).max() > 1e-8, "the polynomials do differ from the true functions"


def test_folding_keeps_realisations_that_are_no_polynomial() -> None:
    """Goldschmidt, Newton and quad take their arguments unscaled."""
    config, w, x = narrow("power_softmax")
    options = {
        "reciprocal": {"kind": "goldschmidt", "error": 1e-12},
        "rsqrt": {"kind": "newton", "steps": 6, "degree": 7},
    }
    served = served_by(config, w, x, **options, gelu={"kind": "quad"})
    functions = {site: EXACT[function] for site, function in config.sites().items()}
    functions["layer.0/ffn/gelu"] = lambda t: t**2 / 8 + t / 4 + 0.5
    assert_close(folded_run(config, w, x, served), Reference(config, w, functions)(x), 1e-9, "1e-12 of Goldschmidt")


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_folding_fits_a_norms_series_to_the_sum_of_squares(norm: str) -> None:
    """1/D and ε are in the series, with as small an error; nothing is left to multiply by."""
    config, w, x = narrow("power_softmax", norm)
    served = served_by(config, w, x, rsqrt={"kind": "fourier", "error": 1e-6})
    exactly = {site: r if r.function == "rsqrt" else exact(r.function) for site, r in served.items()}
    layer, epsilon = fold(config, w, exactly).layers[0], config.norm_epsilon
    for part in ("attention/norm", "ffn/norm"):
        before, after = served[f"layer.0/{part}"], layer.functions[part]
        assert after.series is not None
        assert np.array(after.domain) / config.width + epsilon == pytest.approx(before.domain)
        total = np.linspace(*after.domain, 2001)
        off = after.series(total) * np.sqrt(total / config.width + epsilon) - 1
        assert np.abs(off).max() == pytest.approx(after.error, rel=1e-2)
        assert np.abs(off).max() <= 1e-6
    wanted = Reference(config, w)(x)
    assert_close(folded_run(config, w, x, exactly), wanted, 1e-5 * np.abs(wanted).max(), "a few times 1e-6")


@pytest.mark.parametrize("attention", ["power_softmax", "quad", "taylor", "sigmoid"])
def test_folding_keeps_monomial_polynomials(attention: str) -> None:
    """They have no affine map to fold, but a homogeneous normaliser scales them all the same."""
    config, w, x = narrow(attention)
    served, functions = served_by(config, w, x), {}
    for site, realisation in served.items():
        draft = realise(realisation.function, {"kind": "chebyshev", "degree": 5}, realisation.domain).polynomial
        assert draft is not None
        coefficients = tuple(float(c) for c in chebyshev_to_monomial(draft.coefficients, draft.domain))
        p = Polynomial(coefficients, draft.domain, "monomial")
        served[site] = realisation.with_polynomial(p)
        functions[site] = lambda t, c=coefficients: sum(a * t**k for k, a in enumerate(c))
    wanted = Reference(config, w, functions)(x)
    assert np.abs(wanted).max() < 100
    assert_close(folded_run(config, w, x, served), wanted, 1e-9, ROUNDING)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_folding_takes_away_affine_maps(attention: str) -> None:
    """What folding is for: no slope is left at an activation, a function of the scores, a homogeneous normaliser."""
    config, w, x = narrow(attention)
    served = served_by(config, w, x)
    layer = fold(config, w, served).layers[0]
    variant = config.variant
    sites = ["ffn/gelu"]
    if variant.on_scores or variant.homogeneous:
        sites.append(f"attention/{variant.on_scores or 'normaliser'}")
    for site in sites:
        before, after = served[f"layer.0/{site}"].polynomial, layer.functions[site].polynomial
        assert before is not None
        assert after is not None
        assert after.slope == pytest.approx(1.0, abs=1e-12)
        assert after.depth == before.depth - 1


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_has_a_site_where_it_computes_something(norm: str) -> None:
    config, w, x = narrow("power_softmax", norm)
    functions = fold(config, w, served_by(config, w, x)).layers[0].functions
    assert {site for site in functions if site.endswith("norm")} == (
        set() if norm == "batchnorm" else {"attention/norm", "ffn/norm"}
    )


@pytest.mark.parametrize(("attention", "norm"), [*((a, "layernorm") for a in ATTENTIONS), ("mala", "dyt")])
def test_gradients_reach_every_parameter(attention: str, norm: str) -> None:
    config = config_of(attention, norm)
    w = {name: value.requires_grad_() for name, value in random_weights(config).items()}
    backend = PlaintextBackend(exact=True)
    served = {site: exact(function) for site, function in config.sites().items()}
    logits = Encoder(fold(config, w, served), backend)(backend.input(inputs_of(config))).data  # type: ignore[attr-defined]
    logits.square().sum().backward()
    for name, value in w.items():
        assert value.grad is not None, name
        assert torch.any(value.grad != 0), name


@pytest.mark.parametrize(("attention", "norm"), [*((a, "rmsnorm") for a in ATTENTIONS), *(("quad", n) for n in NORMS)])
def test_sites_are_observed_under_their_names(attention: str, norm: str) -> None:
    config = config_of(attention, norm, layers=2)
    backend = PlaintextBackend(exact=True)
    seen: dict[str, torch.Tensor] = {}
    backend.observers.append(seen.__setitem__)
    served = {site: exact(function) for site, function in config.sites().items()}
    Encoder(fold(config, random_weights(config), served), backend)(backend.input(inputs_of(config)))
    assert set(config.sites()) <= set(seen)
    assert seen["layer.1/ffn/gelu"].shape == (3, config.tokens, config.hidden)


def test_output_shape_and_independence_of_samples() -> None:
    config = config_of(layers=2)
    w, x = random_weights(config), inputs_of(config)
    together = folded_run(config, w, x)
    assert together.shape == (3, 1, config.classes)
    for i in range(3):
        assert_close(together[i : i + 1], folded_run(config, w, x[i : i + 1]), 1e-12, "samples do not mix")


# ---- config ---------------------------------------------------------------------------------------------------


def write(path: Path, raw: Any) -> Path:
    path.write_text(json.dumps(raw))
    return path


def raw_config(**changes: Any) -> dict[str, Any]:
    return {**json.loads(config_of().to_json()), **changes}


def violations_of(call: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.violations


@pytest.mark.parametrize(("attention", "norm", "activation"), [case[:3] for case in CASES])
def test_config_round_trip(tmp_path: Path, attention: str, norm: str, activation: str) -> None:
    config = config_of(attention, norm, activation, 2, heads=4)
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    assert ModelConfig.load(path) == config


def test_config_lists_unknown_and_missing_keys_at_once(tmp_path: Path) -> None:
    raw = raw_config(colour="blue", depth=3)
    del raw["width"], raw["name"]
    found = violations_of(lambda: ModelConfig.load(write(tmp_path / "c.json", raw)))
    assert sorted(found) == ["missing key 'name'", "missing key 'width'", "unknown key 'colour'", "unknown key 'depth'"]


def test_config_lists_every_wrong_value_at_once(tmp_path: Path) -> None:
    changes = {
        "tokens": 0,
        "heads": 1.5,
        "attention": "cosine",
        "norm": "none",
        "activation": "mish",
        "norm_epsilon": -1.0,
        "classes": "ten",
    }
    found = violations_of(lambda: ModelConfig.load(write(tmp_path / "c.json", raw_config(**changes))))
    assert len(found) == len(changes)
    for name, value in changes.items():
        assert any(name in violation and repr(value) in violation for violation in found), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 9}, "width 9 does not divide into 2 heads"),
        ({"power": 3}, "power must be even, not 3"),
        ({"attention_epsilon": float("nan")}, "attention_epsilon must be a positive number, not nan"),
        (
            {"positions": "rotary", "rotary_share": 0.75},
            "rotary positions need an even number of features, from 2 to a head's 4, not 3",
        ),
        (
            {"norm": "batchnorm", "parallel": True},
            "attention and FFN in parallel go with a layernorm or rmsnorm before them, the same for both",
        ),
    ],
)
def test_config_refuses(changes: dict[str, Any], said: str) -> None:
    assert violations_of(lambda: config_of(**changes)) == (said,)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"format": 2}', '"text"'])
def test_config_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    assert len(violations_of(lambda: ModelConfig.load(path))) == 1
    assert len(violations_of(lambda: ModelConfig.load(tmp_path / "absent.json"))) == 1


# ---- parameters -----------------------------------------------------------------------------------------------


def arrays_of(config: ModelConfig) -> dict[str, Array]:
    return {name: value.numpy() for name, value in random_weights(config).items()}


@pytest.mark.parametrize("norm", NORMS)
def test_parameters_round_trip(tmp_path: Path, norm: str) -> None:
    """Files hold float32; what comes back is that, exactly, as float64."""
    config = config_of(norm=norm, layers=2)
    arrays = arrays_of(config)
    parameters.save(tmp_path / "w.safetensors", arrays)
    loaded = parameters.load(tmp_path / "w.safetensors", config)
    assert loaded.keys() == arrays.keys() == parameters.shapes(config).keys()
    for name, value in arrays.items():
        assert loaded[name].dtype == np.float64
        assert_close(loaded[name], value.astype(np.float32), 0.0, "exact")
    parameters.save(tmp_path / "again.safetensors", loaded)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()


def test_parameters_list_everything_wrong_at_once(tmp_path: Path) -> None:
    config = config_of()
    arrays = arrays_of(config)
    del arrays["head.bias"], arrays["layer.0.ffn.in.weight"]
    arrays["extra"] = np.zeros(2)
    arrays["position"] = arrays["position"].T
    arrays["embed.bias"][3] = np.nan
    arrays["layer.0.ffn.norm.gain"][0] = np.inf
    parameters.save(tmp_path / "w.safetensors", arrays)
    assert violations_of(lambda: parameters.load(tmp_path / "w.safetensors", config)) == (
        "missing head.bias",
        "missing layer.0.ffn.in.weight",
        "unknown extra",
        "embed.bias holds values that are not finite",
        "layer.0.ffn.norm.gain holds values that are not finite",
        "position has shape [8, 5], the config needs [5, 8]",
    )


@pytest.mark.parametrize("metadata", [None, {"secureattn.format": "2"}, {"format": "1"}])
def test_parameters_of_another_format_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    config = config_of()
    save_file(arrays_of(config), tmp_path / "w.safetensors", metadata=metadata)
    with pytest.raises(InputError, match="this release reads 1"):
        parameters.load(tmp_path / "w.safetensors", config)


def test_parameters_that_are_no_file_or_cut_short_are_refused(tmp_path: Path) -> None:
    config = config_of()
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        parameters.load(path, config)
    parameters.save(path, arrays_of(config))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot be read"):
        parameters.load(path, config)


def test_initial_parameters_fit_and_repeat() -> None:
    config = config_of(norm="batchnorm")
    made = parameters.initial(config, 3)
    assert {name: value.shape for name, value in made.items()} == parameters.shapes(config)
    for name, value in parameters.initial(config, 3).items():
        assert_close(value, made[name], 0.0, "the same seed")
    assert np.all(made["layer.0.ffn.norm.variance"] == 1)
    assert np.any(parameters.initial(config, 4)["head.weight"] != made["head.weight"])


# ---- ranges ---------------------------------------------------------------------------------------------------


def raw_ranges(config: ModelConfig) -> dict[str, Any]:
    sites = {site: {"observed": [0.5, 2.0], "domain": [0.25, 2.5]} for site in config.sites()}
    return {"format": 1, "samples": 10, "margin": 0.1, "sites": sites, "bounds": {"head/input": 3.0}}


def test_ranges_round_trip(tmp_path: Path) -> None:
    config = config_of("softmax", layers=2)
    ranges = Ranges.load(write(tmp_path / "r.json", raw_ranges(config)), config)
    (tmp_path / "again.json").write_text(ranges.to_json())
    assert Ranges.load(tmp_path / "again.json", config) == ranges
    assert ranges.domains["layer.1/attention/exp"] == (0.25, 2.5)
    assert (ranges.samples, ranges.margin, ranges.bounds) == (10, 0.1, {"head/input": 3.0})


def test_ranges_list_everything_wrong_at_once(tmp_path: Path) -> None:
    config = config_of()
    raw = raw_ranges(config)
    del raw["sites"]["layer.0/ffn/gelu"]
    raw["sites"]["layer.0/ffn/norm"]["domain"] = [2.0, 1.0]
    raw["sites"]["layer.0/attention/norm"]["domain"] = [float("nan"), 1.0]
    raw["bounds"] = {"head/input": -1.0, "layer.0/ffn/input": float("inf")}
    found = violations_of(lambda: Ranges.load(write(tmp_path / "r.json", raw), config))
    assert len(found) == 5
    assert "no range for layer.0/ffn/gelu; calibrate the model again" in found
    assert "layer.0/ffn/norm: [2.0, 1.0] is not an interval" in found
    assert "layer.0/attention/norm: [nan, 1.0] is not an interval" in found
    assert "head/input: bound -1.0 is not a positive number" in found


@pytest.mark.parametrize("change", [{"format": 2}, {"samples": "many"}, {"sites": {"a": [1]}}])
def test_ranges_that_cannot_be_read(tmp_path: Path, change: dict[str, Any]) -> None:
    config = config_of()
    raw = {**raw_ranges(config), **change}
    assert len(violations_of(lambda: Ranges.load(write(tmp_path / "r.json", raw), config))) == 1
    assert len(violations_of(lambda: Ranges.load(tmp_path / "absent.json", config))) == 1


def test_widened() -> None:
    assert widened("reciprocal", (2.2, 10.0), 0.1) == pytest.approx((2.0, 11.0))
    assert widened("reciprocal", (1.05, 10.0), 0.1, floor=1.0) == pytest.approx((1.0, 11.0))
    assert widened("rsqrt", (0.11, 1.0), 0.1) == pytest.approx((0.1, 1.1))
    assert widened("gelu", (-3.0, 2.0), 0.5) == pytest.approx((-4.5, 4.5))
    assert widened("exp", (-6.0, 2.0), 0.25) == pytest.approx((-8.0, 4.0))


# ---- a model folder -------------------------------------------------------------------------------------------


def test_a_model_folder(tmp_path: Path) -> None:
    config = config_of()
    (tmp_path / "config.json").write_text(config.to_json())
    write(tmp_path / "ranges.json", raw_ranges(config))
    model = load_model(tmp_path)
    assert model.config == config
    with pytest.raises(InputError, match="cannot be read"):
        _ = model.weights
    parameters.save(tmp_path / "model.safetensors", arrays_of(config))
    assert model.weights["head.weight"].shape == (4, 8)
    assert {n: tuple(v.shape) for n, v in model.weight_shapes.items()} == parameters.shapes(config)
    assert all(v.is_meta for v in model.weight_shapes.values())
    with pytest.raises(InputError, match="no readable samples"):
        model.samples()
    save_file({"inputs": inputs_of(config), "labels": np.array([0, 1, 2])}, tmp_path / "samples.safetensors")
    x, labels = model.samples(2)
    assert_close(x, inputs_of(config)[:2], 0.0, "exact")
    assert labels.tolist() == [0, 1]
    for count in (0, 4):
        with pytest.raises(InputError, match=f"{count} samples were asked for, model test ships 3"):
            model.samples(count)
    assert model.check(x[0]).shape == (1, 5, 3)
    assert_close(model.check(x), x, 0.0, "exact")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.zeros((2, 5, 4)), r"shape \[2, 5, 4\], model test needs \[N, 5, 3\]"),
        (np.zeros((3, 5)), "needs"),
        (np.zeros((0, 5, 3)), "needs"),
        (np.full((1, 5, 3), np.nan), "not finite"),
        (np.full((1, 5, 3), -np.inf), "not finite"),
        (np.full((1, 5, 3), "a"), "numbers are needed"),
    ],
)
def test_wrong_input_is_refused(tmp_path: Path, data: Any, said: str) -> None:
    config = config_of()
    (tmp_path / "config.json").write_text(config.to_json())
    write(tmp_path / "ranges.json", raw_ranges(config))
    with pytest.raises(InputError, match=said):
        load_model(tmp_path).check(data)
