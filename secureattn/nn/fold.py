"""Folding: everything linear that can move into a neighbouring weight does, before anything is encrypted.

Exact in real arithmetic, and differentiable, so training runs the very program that is later encrypted:

- LayerNorm's mean: the stream is read through norms, which take its mean off, and by the head, which in these models
  reads ``x − mean(x)`` by definition; so every layer that writes to it writes centred values (``C = I − 11ᵀ/D`` from
  the left) and nothing computes a mean;
- gains and biases of norms (all of a BatchNorm) go into the linear layer that follows, ``1/√Dh`` into the queries;
- the affine map of a polynomial's domain goes into what computes its argument: the FFN's first layer for its
  activation, a norm's α, the queries for a function of the scores, the scores (through the queries) for the
  normaliser of homogeneous weights, ``1/D`` of the norm into the polynomial itself;
- the mean over tokens at the end becomes a sum, ``1/S`` goes into the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from secureattn.approx import Realisation
from secureattn.nn.config import STATISTICS_FREE, ModelConfig
from secureattn.tensor import Tensor

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Linear:
    """``weight [Dout,Din]`` and ``bias [Dout]`` or ``[S,Dout]``."""

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class FoldedLayer:
    """One block: its four linear layers, its functions on folded arguments by site (none where a norm vanished), what
    else is multiplied with secrets (``extras``: a norm's α, what the attention variant learnt), and its constants.
    """

    qkv: Linear
    output: Linear
    ffn_in: Linear
    ffn_out: Linear
    functions: Mapping[str, Realisation]
    extras: Mapping[str, torch.Tensor]
    attention_epsilon: float
    score_scale: float


@dataclass(frozen=True)
class Folded:
    """A whole model, folded."""

    config: ModelConfig
    embed: Linear
    layers: tuple[FoldedLayer, ...]
    head: Linear

    def functions(self) -> dict[str, Realisation]:
        """Site → the function that serves it, on the folded argument (the sites of ``ModelConfig.sites``)."""
        return {f"layer.{i}/{site}": f for i, layer in enumerate(self.layers) for site, f in layer.functions.items()}


def fold(config: ModelConfig, weights: Weights, realisations: Mapping[str, Realisation]) -> Folded:
    """Fold a model's weights for the realisations that will serve its sites (see ``ModelConfig.sites``)."""
    embed = Linear(weights["embed.weight"], weights["position"] + weights["embed.bias"])
    layers = tuple(_fold_layer(config, weights, realisations, i) for i in range(config.layers))
    head = Linear(weights["head.weight"] / config.tokens, weights["head.bias"] / config.tokens)
    if config.norm == "layernorm":
        embed = _centred(embed)
        layers = tuple(replace(x, output=_centred(x.output), ffn_out=_centred(x.ffn_out)) for x in layers)
    return Folded(config, embed, layers, head)


def _fold_layer(config: ModelConfig, weights: Weights, realisations: Mapping[str, Realisation], i: int) -> FoldedLayer:
    at = f"layer.{i}"
    linear = {
        part: Linear(weights[f"{at}.{part}.weight"], weights[f"{at}.{part}.bias"])
        for part in ("attention.query", "attention.key", "attention.value", "attention.output", "ffn.in", "ffn.out")
    }
    functions = {site: realisations[f"{at}/{site}"] for site in config.layer_sites()}
    extras = _extras(config, weights, at)
    for norm in ("attention/norm", "ffn/norm"):
        if config.norm in STATISTICS_FREE:
            functions[norm], slope = _fold_slope(functions[norm])
            extras[norm] = extras[norm] * slope
        elif norm in functions:
            functions[norm] = _fold_norm(config, functions[norm])
    activation = f"ffn/{config.activation}"
    functions[activation], slope, shift = _fold_affine(functions[activation])
    attention, epsilon, factor, scale = _fold_scores(config, functions)
    query = linear["attention.query"]
    factor *= config.variant.prescale(config.tokens) / config.head_width**0.5
    query = Linear(query.weight * factor, query.bias * factor)
    read = (query, linear["attention.key"], linear["attention.value"])
    qkv = Linear(torch.cat([x.weight for x in read]), torch.cat([x.bias for x in read]))
    ffn_in = _after_norm(config, weights, f"{at}.ffn.norm", linear["ffn.in"])
    return FoldedLayer(
        qkv=_after_norm(config, weights, f"{at}.attention.norm", qkv),
        output=linear["attention.output"],
        ffn_in=Linear(ffn_in.weight * slope, ffn_in.bias * slope + shift),
        ffn_out=linear["ffn.out"],
        functions={**functions, **attention},
        extras=extras,
        attention_epsilon=epsilon,
        score_scale=scale,
    )


def _extras(config: ModelConfig, weights: Weights, at: str) -> dict[str, torch.Tensor]:
    learnt = {name: weights[f"{at}.attention.{name}"] for name in config.own_parameters()}
    extras = {f"attention/{name}": value for name, value in config.variant.weights(learnt, config.tokens).items()}
    if config.norm in STATISTICS_FREE:
        extras |= {f"{part}/norm": weights[f"{at}.{part}.norm.alpha"] for part in ("attention", "ffn")}
    return extras


def _centred(linear: Linear) -> Linear:
    return Linear(linear.weight - linear.weight.mean(0, keepdim=True), linear.bias - linear.bias.mean(-1, keepdim=True))


def _after_norm(config: ModelConfig, weights: Weights, norm: str, linear: Linear) -> Linear:
    """The layer that reads ``gain·x + bias`` as one that reads x; BatchNorm's statistics are part of both."""
    gain, bias = weights[f"{norm}.gain"], weights[f"{norm}.bias"]
    if config.norm == "batchnorm":
        gain = gain / torch.sqrt(weights[f"{norm}.variance"] + config.norm_epsilon)
        bias = bias - weights[f"{norm}.mean"] * gain
    return Linear(linear.weight * gain, linear.bias + linear.weight @ bias)


def _fold_norm(config: ModelConfig, rsqrt: Realisation) -> Realisation:
    """``Σx² ↦ 1/√(Σx²/D + ε)`` from a realisation of ``1/√x``; one polynomial takes 1/D and ε into its affine map,
    a series is fitted with them: on shares 1/D is no power of two, and a factor takes a truncation.
    """
    width, epsilon = config.width, config.norm_epsilon
    if rsqrt.refit is not None:
        return rsqrt.refit(1.0 / width, epsilon)
    if _is_chebyshev(rsqrt):
        assert rsqrt.polynomial is not None
        low, high = rsqrt.polynomial.domain
        domain = ((low - epsilon) * width, (high - epsilon) * width)
        return rsqrt.with_polynomial(replace(rsqrt.polynomial, domain=domain))

    def apply(total: Tensor) -> Tensor:
        return rsqrt(total * (1.0 / width) + epsilon)

    domain = ((rsqrt.domain[0] - epsilon) * width, (rsqrt.domain[1] - epsilon) * width)
    return replace(rsqrt, apply=apply, domain=domain)


def _fold_scores(
    config: ModelConfig, functions: Mapping[str, Realisation]
) -> tuple[dict[str, Realisation], float, float, float]:
    """The attention's functions on folded scores, the ε that goes with them, the queries' factor, the scores' scale."""
    variant, epsilon = config.variant, config.attention_epsilon
    if variant.on_scores is not None:
        site = f"attention/{variant.on_scores}"
        folded, slope = _fold_slope(functions[site])
        return {site: folded}, epsilon, slope, slope
    site = "attention/normaliser"
    if variant.homogeneous is None or functions[site].polynomial is None or functions[site].then is not None:
        return {}, epsilon, 1.0, 1.0
    p = functions[site].polynomial
    assert p is not None
    factor = 2.0 / (p.domain[1] - p.domain[0])
    # 1/x as a function of g·x is g·p(g·x/g)/g: numerators carry the g that the division takes out again.
    scaled = functions[site].with_polynomial(p.rescaled(factor).scaled(1.0 / factor))
    root = factor ** (1.0 / variant.homogeneous(config.power))
    return {site: scaled}, epsilon * factor, root, root


def _fold_slope(realisation: Realisation) -> tuple[Realisation, float]:
    """A Chebyshev polynomial on a domain of width 2 and the slope that takes its domain there."""
    p = realisation.polynomial
    if p is None or not _is_chebyshev(realisation):
        return realisation, 1.0
    return realisation.with_polynomial(p.rescaled(p.slope)), p.slope


def _fold_affine(realisation: Realisation) -> tuple[Realisation, float, float]:
    """A Chebyshev polynomial on [−1,1] and the slope and shift that take its domain there."""
    p = realisation.polynomial
    if p is None or not _is_chebyshev(realisation):
        return realisation, 1.0, 0.0
    return realisation.with_polynomial(p.on_unit()), p.slope, p.shift


def _is_chebyshev(realisation: Realisation) -> bool:
    return realisation.polynomial is not None and realisation.polynomial.basis == "chebyshev"
