"""Folding: everything linear that can move into a neighbouring weight does, before anything is encrypted.

Exact in real arithmetic, and differentiable, so training runs the very program that is later encrypted:

- LayerNorm's mean: the stream is read through norms, which take its mean off, and by the head, which in these models
  reads ``x − mean(x)`` by definition; so every layer that writes to it writes centred values (``C = I − 11ᵀ/D`` from
  the left) and nothing computes a mean;
- gains and biases of norms (all of a BatchNorm) go into the linear layer that follows, ``1/√Dh`` into the queries;
- the affine map of a polynomial's domain goes into what computes its argument: the FFN's first layer for GELU, the
  scores (through the queries) for the normaliser, ``1/D`` of the norm into the polynomial itself;
- the mean over tokens at the end becomes a sum, ``1/S`` goes into the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from secureattn.approx import Realisation
from secureattn.nn.config import ModelConfig
from secureattn.tensor import Tensor

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Linear:
    """``weight [Dout,Din]`` and ``bias [Dout]`` or ``[S,Dout]``."""

    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class FoldedLayer:
    """One block: its four linear layers, and its functions on folded arguments (None where a norm vanished)."""

    qkv: Linear
    output: Linear
    ffn_in: Linear
    ffn_out: Linear
    attention_norm: Realisation | None
    ffn_norm: Realisation | None
    exp: Realisation | None
    normaliser: Realisation
    gelu: Realisation
    attention_epsilon: float


@dataclass(frozen=True)
class Folded:
    """A whole model, folded."""

    config: ModelConfig
    embed: Linear
    layers: tuple[FoldedLayer, ...]
    head: Linear

    def functions(self) -> dict[str, Realisation]:
        """Site → the function that serves it, on the folded argument (the sites of ``ModelConfig.sites``)."""
        parts = {
            "attention/norm": "attention_norm",
            "attention/exp": "exp",
            "attention/normaliser": "normaliser",
            "ffn/norm": "ffn_norm",
            "ffn/gelu": "gelu",
        }
        served = {f"layer.{i}/{s}": getattr(x, p) for i, x in enumerate(self.layers) for s, p in parts.items()}
        return {site: function for site, function in served.items() if function is not None}


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
    normaliser, epsilon, score_factor = _fold_normaliser(config, realisations[f"{at}/attention/normaliser"])
    gelu, gelu_slope, gelu_shift = _fold_affine(realisations[f"{at}/ffn/gelu"])
    query = linear["attention.query"]
    scale = score_factor / config.head_width**0.5
    query = Linear(query.weight * scale, query.bias * scale)
    read = (query, linear["attention.key"], linear["attention.value"])
    qkv = Linear(torch.cat([x.weight for x in read]), torch.cat([x.bias for x in read]))
    ffn_in = _after_norm(config, weights, f"{at}.ffn.norm", linear["ffn.in"])
    return FoldedLayer(
        qkv=_after_norm(config, weights, f"{at}.attention.norm", qkv),
        output=linear["attention.output"],
        ffn_in=Linear(ffn_in.weight * gelu_slope, ffn_in.bias * gelu_slope + gelu_shift),
        ffn_out=linear["ffn.out"],
        attention_norm=_fold_norm(config, realisations.get(f"{at}/attention/norm")),
        ffn_norm=_fold_norm(config, realisations.get(f"{at}/ffn/norm")),
        exp=realisations.get(f"{at}/attention/exp"),
        normaliser=normaliser,
        gelu=gelu,
        attention_epsilon=epsilon,
    )


def _centred(linear: Linear) -> Linear:
    return Linear(linear.weight - linear.weight.mean(0, keepdim=True), linear.bias - linear.bias.mean(-1, keepdim=True))


def _after_norm(config: ModelConfig, weights: Weights, norm: str, linear: Linear) -> Linear:
    """The layer that reads ``gain·x + bias`` as one that reads x; BatchNorm's statistics are part of both."""
    gain, bias = weights[f"{norm}.gain"], weights[f"{norm}.bias"]
    if config.norm == "batchnorm":
        gain = gain / torch.sqrt(weights[f"{norm}.variance"] + config.norm_epsilon)
        bias = bias - weights[f"{norm}.mean"] * gain
    return Linear(linear.weight * gain, linear.bias + linear.weight @ bias)


def _fold_norm(config: ModelConfig, rsqrt: Realisation | None) -> Realisation | None:
    """``Σx² ↦ 1/√(Σx²/D + ε)`` from a realisation of ``1/√x``; one polynomial takes 1/D and ε into its affine map."""
    if rsqrt is None:
        return None
    width, epsilon = config.width, config.norm_epsilon
    if rsqrt.polynomial is not None and rsqrt.polynomial.basis == "chebyshev":
        low, high = rsqrt.polynomial.domain
        domain = ((low - epsilon) * width, (high - epsilon) * width)
        return rsqrt.with_polynomial(replace(rsqrt.polynomial, domain=domain))

    def apply(total: Tensor) -> Tensor:
        return rsqrt(total * (1.0 / width) + epsilon)

    domain = ((rsqrt.domain[0] - epsilon) * width, (rsqrt.domain[1] - epsilon) * width)
    return replace(rsqrt, apply=apply, domain=domain)


def _fold_normaliser(config: ModelConfig, reciprocal: Realisation) -> tuple[Realisation, float, float]:
    """The reciprocal of a normaliser scaled to a domain of width 2, the ε that goes with it, the scores' factor."""
    p = reciprocal.polynomial
    epsilon = config.attention_epsilon
    if p is None or config.attention != "power_softmax":
        return reciprocal, epsilon, 1.0
    factor = 2.0 / (p.domain[1] - p.domain[0])
    # 1/x as a function of g·x is g·p(g·x/g)/g: scores^p carry the g that the division takes out again.
    scaled = p.rescaled(factor).scaled(1.0 / factor)
    return reciprocal.with_polynomial(scaled), epsilon * factor, factor ** (1.0 / config.power)


def _fold_affine(realisation: Realisation) -> tuple[Realisation, float, float]:
    """A Chebyshev polynomial on [−1,1] and the slope and shift that take its domain there."""
    p = realisation.polynomial
    if p is None or p.basis != "chebyshev":
        return realisation, 1.0, 0.0
    return realisation.with_polynomial(p.on_unit()), p.slope, p.shift
