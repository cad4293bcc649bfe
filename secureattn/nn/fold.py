"""Folding: everything linear that can move into a neighbouring weight does, before anything is encrypted.

Exact in real arithmetic, and differentiable, so training runs the very program that is later encrypted:

- LayerNorm's mean: the stream is read through norms, which take its mean off, and by the head, which without a final
  norm reads ``x − mean(x)`` by definition; so every layer that writes to it writes centred values (``C = I − 11ᵀ/D``
  from the left) and nothing computes a mean;
- gains and biases of norms (all of a BatchNorm) go into the linear layers that follow, ``1/√Dh`` into the queries.
  Where norms come after the sums, the sum needs the normed value itself: ``C·(gain·x + bias)`` is D more outputs of
  the linear layer that reads x anyway, so it takes no step of its own;
- the affine map of a polynomial's domain goes into what computes its argument: the FFN's first layer for its
  activation, a norm's α, the queries for a function of the scores, the scores (through the queries) for the
  normaliser of homogeneous weights, ``1/D`` of the norm into the polynomial itself. A norm after a sum does not see
  its length: what makes the sum is scaled so that the polynomial's domain has width 2;
- the mean over tokens at the end, where all inputs have the same number, becomes a sum, ``1/S`` goes into the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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

    ``qkv``: queries, keys, values; ``ffn_in``: the activation's argument, and its partner where gated; with norms after
    the sums both have D more outputs, what goes into the sum.
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
    """A whole model, folded. ``embed``: None where rows come in looked up; ``pooler``: None without one; ``head``: None
    where the stream itself is the vector; ``outer``: functions outside the layers, by site.
    """

    config: ModelConfig
    embed: Linear | None
    layers: tuple[FoldedLayer, ...]
    head: Linear | None
    pooler: Linear | None = None
    outer: Mapping[str, Realisation] = field(default_factory=dict)

    @property
    def linears(self) -> list[Linear]:
        """Every linear layer, in the order of the program."""
        found = [self.embed] if self.embed is not None else []
        for layer in self.layers:
            found += [layer.qkv, layer.output, layer.ffn_in, layer.ffn_out]
        return [*found, *(linear for linear in (self.pooler, self.head) if linear is not None)]

    def functions(self) -> dict[str, Realisation]:
        """Site → the function that serves it, on the folded argument (the sites of ``ModelConfig.sites``)."""
        inner = {f"layer.{i}/{site}": f for i, layer in enumerate(self.layers) for site, f in layer.functions.items()}
        return {**inner, **self.outer}


def fold(config: ModelConfig, weights: Weights, realisations: Mapping[str, Realisation]) -> Folded:
    """Fold a model's weights for the realisations that will serve its sites (see ``ModelConfig.sites``)."""
    embed = None if config.input == "embedded" else embedding(config, weights)
    layers = tuple(_fold_layer(config, weights, realisations, i) for i in range(config.layers))
    if config.norm == "layernorm":
        embed = embed and _centred(embed)
        layers = tuple(replace(x, output=_centred(x.output), ffn_out=_centred(x.ffn_out)) for x in layers)
    outer = {site: realisations[site] for site in config.sites() if not site.startswith("layer.")}
    for site in ("embed/norm", "head/norm"):
        if site in outer:
            outer[site] = _fold_norm(config, outer[site])
    pooler = None
    if config.pooler:
        outer["head/tanh"], slope, shift = _fold_affine(outer["head/tanh"])
        read = _after(config, weights, Linear(weights["pooler.weight"], weights["pooler.bias"]))
        pooler = Linear(read.weight * slope, read.bias * slope + shift)
    return Folded(config, embed, layers, _head(config, weights), pooler, outer)


def embedding(config: ModelConfig, weights: Weights) -> Linear:
    """What makes the stream of one-hot tokens or features; the bias holds the positions."""
    bias = weights["embed.bias"]
    bias = weights["position"][: config.tokens] + bias if config.positions == "learned" else bias
    return Linear(weights["embed.weight"], bias)


def _head(config: ModelConfig, weights: Weights) -> Linear | None:
    if config.output == "vector" and config.pooler:
        return None
    if config.output == "vector":
        one = torch.ones_like(weights["embed.bias"])
        return _after(config, weights, Linear(torch.diag(one), 0 * one)) if last_norm(config) else None
    matrix = weights["embed.weight"].T if config.tied else weights["head.weight"]
    head = Linear(matrix, weights["head.bias"])
    head = head if config.pooler else _after(config, weights, head)
    if config.pooling == "mean" and not config.variable and not config.pooler:
        head = Linear(head.weight / config.tokens, head.bias / config.tokens)
    return head


def last_norm(config: ModelConfig) -> str | None:
    """The norm whose gain and bias the output reads."""
    if config.norm_after:
        return f"layer.{config.layers - 1}.ffn.norm"
    return "final.norm" if config.final_norm else None


def norms_read(config: ModelConfig, i: int) -> tuple[str, str]:
    """The norms whose gain and bias the linear layers of block i read, in attention and in the FFN."""
    if not config.norm_after:
        return f"layer.{i}.attention.norm", f"layer.{i}.ffn.norm"
    return f"layer.{i - 1}.ffn.norm" if i else "embed.norm", f"layer.{i}.attention.norm"


def _after(config: ModelConfig, weights: Weights, linear: Linear) -> Linear:
    norm = last_norm(config)
    return _after_norm(config, weights, norm, linear) if norm else linear


def _fold_layer(config: ModelConfig, weights: Weights, realisations: Mapping[str, Realisation], i: int) -> FoldedLayer:
    at = f"layer.{i}"
    linear = {
        part: Linear(weights[f"{at}.{part}.weight"], weights[f"{at}.{part}.bias"])
        for part in ("attention.query", "attention.key", "attention.value", "attention.output", "ffn.in", "ffn.out")
    }
    functions = {site: realisations[f"{at}/{site}"] for site in config.layer_sites(i)}
    extras = _extras(config, weights, i)
    for norm in ("attention/norm", "ffn/norm"):
        if config.norm in STATISTICS_FREE:
            functions[norm], slope = _fold_slope(functions[norm])
            extras[norm] = extras[norm] * slope
        elif norm in functions:
            functions[norm] = _fold_norm(config, functions[norm])
    lengths = {}
    for norm in ("attention/norm", "ffn/norm") if config.norm_after else ():
        functions[norm], lengths[norm] = _fold_length(functions[norm])
    activation = f"ffn/{config.activation}"
    functions[activation], slope, shift = _fold_affine(functions[activation])
    attention, epsilon, factor, scale = _fold_scores(config, i, functions)
    query = linear["attention.query"]
    factor *= config.variant_of(i).prescale(config.tokens) / config.head_width**0.5
    query = Linear(query.weight * factor, query.bias * factor)
    before_attention, before_ffn = norms_read(config, i)
    ffn_in = _after_norm(config, weights, before_ffn, linear["ffn.in"])
    ffn_in = Linear(ffn_in.weight * slope, ffn_in.bias * slope + shift)
    if config.gated:
        partner = Linear(weights[f"{at}.ffn.up.weight"], weights[f"{at}.ffn.up.bias"])
        ffn_in = _stacked(ffn_in, _after_norm(config, weights, before_ffn, partner))
    qkv = _stacked(query, linear["attention.key"], linear["attention.value"])
    qkv = _after_norm(config, weights, before_attention, qkv)
    output, ffn_out = linear["attention.output"], linear["ffn.out"]
    if config.norm_after:
        own, hidden = lengths["attention/norm"], lengths["ffn/norm"]
        qkv = _stacked(qkv, _times(_kept(config, weights, before_attention), own))
        ffn_in = _stacked(ffn_in, _times(_kept(config, weights, before_ffn), hidden))
        output, ffn_out = _times(output, own), _times(ffn_out, hidden)
    return FoldedLayer(
        qkv=qkv,
        output=output,
        ffn_in=ffn_in,
        ffn_out=ffn_out,
        functions={**functions, **attention},
        extras=extras,
        attention_epsilon=epsilon,
        score_scale=scale,
    )


def in_blocks(config: ModelConfig, layer: FoldedLayer, blocks: int) -> list[tuple[Linear, Linear]]:
    """An FFN's two linear layers by parts of its hidden features, equal ones; the sum of what they make is the whole's.
    The first part also makes what goes into the sum (see ``FoldedLayer``), and has the second layer's bias.
    """
    if blocks == 1:
        return [(layer.ffn_in, layer.ffn_out)]
    found: list[tuple[Linear, Linear]] = []
    gates, beside = 1 + config.gated, slice((1 + config.gated) * config.hidden, None)
    for rows in torch.arange(config.hidden).tensor_split(blocks):
        inner = torch.cat([rows + gate * config.hidden for gate in range(gates)])
        into = Linear(layer.ffn_in.weight[inner], layer.ffn_in.bias[inner])
        out = Linear(layer.ffn_out.weight[:, rows], layer.ffn_out.bias)
        if found:
            out = Linear(out.weight, 0 * out.bias)
        elif config.norm_after:
            into = _stacked(into, Linear(layer.ffn_in.weight[beside], layer.ffn_in.bias[beside]))
        found.append((into, out))
    return found


def _kept(config: ModelConfig, weights: Weights, norm: str) -> Linear:
    """What goes into a sum beside a block's output: the normed stream, centred where the next norm would centre it."""
    linear = Linear(torch.diag(weights[f"{norm}.gain"]), weights[f"{norm}.bias"])
    return _centred(linear) if config.norm == "layernorm" else linear


def _times(linear: Linear, factor: float) -> Linear:
    return linear if factor == 1.0 else Linear(linear.weight * factor, linear.bias * factor)


def _stacked(*linear: Linear) -> Linear:
    return Linear(torch.cat([x.weight for x in linear]), torch.cat([x.bias for x in linear]))


def _extras(config: ModelConfig, weights: Weights, i: int) -> dict[str, torch.Tensor]:
    at, variant = f"layer.{i}", config.variant_of(i)
    learnt = {name: weights[f"{at}.attention.{name}"] for name in config.own_parameters(i)}
    extras = {f"attention/{name}": value for name, value in variant.weights(learnt, config.tokens).items()}
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


def _fold_length(norm: Realisation) -> tuple[Realisation, float]:
    """``Σx² ↦ 1/√(Σx²/D + ε)`` for x times a factor, under which the norm keeps its value, and that factor: the
    polynomial's domain has width 2 then, which takes a level less and is hidden well by a refresh.
    """
    if norm.refit is not None or not _is_chebyshev(norm) or norm.then is not None:
        return norm, 1.0
    assert norm.polynomial is not None
    factor = norm.polynomial.slope**0.5
    return norm.with_polynomial(norm.polynomial.rescaled(factor**2).scaled(1.0 / factor)), factor


def _fold_scores(
    config: ModelConfig, i: int, functions: Mapping[str, Realisation]
) -> tuple[dict[str, Realisation], float, float, float]:
    """The attention's functions on folded scores, the ε that goes with them, the queries' factor, the scores' scale."""
    variant, epsilon = config.variant_of(i), config.attention_epsilon
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
