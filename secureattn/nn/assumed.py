"""Ranges of a config alone: where pretrained models of its kind were seen to have the arguments of their functions.

A plan needs them as a run does: they decide how many harmonics a series has, whether a softmax needs the way for far
scores, and how many bits values take. They are assumptions, and every report of them says so (``ASSUMED``).

Where each comes from:

- *scores*: pretrained softmax models reach 10 to 16 above a row's mean in five of six layers of MiniLM on 255 sentences
  (models/minilm), so ``REACH`` is 16, margin not included; what the ways to compute softmax are given follows from it
  by their formulas, for rows of 1 to all keys (of ``_FEW`` where a far score needs others to be far from);
- *activations*: GELU's argument reaches 7 to 25 by layer in MiniLM, so 20;
- *norms after sums*: mean squares in MiniLM, outliers included;
- *norms before parts*: the embedding's own size at first, then a stream that grows. Decoders have a few features of
  some tokens that are far larger than all others: 2622 of width 4096 in LLaMA-2-7B, which is a mean square of 1700
  (Sun et al., Massive Activations in Large Language Models, arXiv 2402.17762, table 1), so 3000; encoders have 100;
- *models of other attentions* are taken to be trained with a range penalty, as those shipped (models/bytes-*,
  models/digits-vit): activations within 6, mean squares from 0.02 to 5, normalisers up to 18 times their least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from secureattn.approx import FUNCTIONS, Interval
from secureattn.approx.realisation import on_arrays
from secureattn.nn.config import ACTIVATIONS, ModelConfig
from secureattn.nn.ranges import Ranges

ASSUMED = "ranges assumed, not calibrated"
REACH = 16.0
MARGIN = 0.1
_FEW = 8  # keys of a row in which a score can reach far above the mean
_SQUARING = 8.0  # scores are divided by it where softmax is normalised and squared
_ACTIVATION, _TRAINED_ACTIVATION = 20.0, 6.0
_EMBEDDED: Interval = (1e-3, 0.05)  # mean square of an embedding, before the norm after it
_SUMS: Mapping[str, Interval] = {"attention": (0.1, 1.2), "ffn": (0.08, 120.0)}
_FIRST: Interval = (0.005, 1.0)  # mean square of the stream that a first block's norm reads
_STREAM: Mapping[bool, Interval] = {True: (0.05, 3000.0), False: (0.05, 100.0)}  # later, of decoders or not
_TRAINED_STREAM: Interval = (0.02, 5.0)
_TRAINED_RATIO = 18.0


def assumed(config: ModelConfig) -> Ranges:
    """Domains of every site, for every way to compute the model's attention, and bounds of every refresh point."""
    domains: dict[str, Interval] = {}
    for form in config.forms():
        spread = form.spread()
        for site, function in form.sites().items():
            low, high = _domain(form, site, function)
            below, above = spread.get(site, (1.0, 1.0))
            domains.setdefault(site, (below * low, above * high))
    return Ranges(domains, domains, _bounds(config, domains), 0, MARGIN, assumed=True)


def _domain(config: ModelConfig, site: str, function: str) -> Interval:
    """The domain of a site, margin included."""
    last, wide = site.rsplit("/", 1)[-1], 1 + MARGIN
    if last == "norm" and function == "rsqrt":
        low, high = _mean_square(config, site)
        return low / wide, high * wide
    if site == "head/unit":  # a sum of squares of a pooled vector
        return config.width / 128, config.width / 5
    if last in ACTIVATIONS:
        reach = wide * (_ACTIVATION if _pretrained(config) else _TRAINED_ACTIVATION)
        return -reach, reach
    found = _of_softmax(config.tokens).get(last) if _pretrained(config) else None
    return found or _other(config, site, function)


def _pretrained(config: ModelConfig) -> bool:
    return config.variant.name == "softmax" or config.variant.same_as == "softmax"


def _mean_square(config: ModelConfig, site: str) -> Interval:
    if not _pretrained(config):
        return _TRAINED_STREAM
    if site == "embed/norm":
        return _EMBEDDED
    if config.norm_after:
        return _SUMS[site.split("/")[-2]]
    return _FIRST if site == "layer.0/attention/norm" else _STREAM[config.causal]


def _of_softmax(tokens: int) -> dict[str, Interval]:
    """Sites of the ways to compute softmax of scores that reach ``REACH`` above their row's mean, and as far below."""
    reach, wide = REACH * (1 + MARGIN), 1 + MARGIN
    far = reach / _SQUARING
    return {
        "exp": (-reach, reach),
        "normaliser": (0.98, math.exp(reach) / _FEW),
        "max.exp": (-2 * reach, MARGIN * reach),
        "max.normaliser": (0.98, wide * tokens),
        "square.exp": (-far - math.log(max(tokens, 2)), max(far - math.log(_FEW), 0.5)),
        "square.first": (0.9 / tokens, max(math.exp(2 * far) / _FEW**2, wide)),
        **{f"square.{root}": (0.9 / tokens, wide) for root in ("middle", "rsqrt")},
    }


def _other(config: ModelConfig, site: str, function: str) -> Interval:
    """A site that nothing is known of but its function and the least value its variant states."""
    kind = FUNCTIONS[function].RANGE
    if kind != "positive":
        typical: Interval = getattr(FUNCTIONS[function], "TYPICAL", (-8.0, 8.0))
        return typical
    layer = int(site.split("/")[0].removeprefix("layer.")) if site.startswith("layer.") else 0
    floor = config.variant_of(layer).floors.get(site.rsplit("/", 1)[-1])
    least = 1 if config.variable or config.causal else config.tokens
    low = max(floor(config.attention_epsilon, config.tokens, least) if floor else 0.0, 1 / 16)
    return low, _TRAINED_RATIO * low


def _bounds(config: ModelConfig, domains: Mapping[str, Interval]) -> dict[str, float]:
    """Of refresh points: a function's argument and value; of the stream the root of its sum of squares; of queries,
    keys, values and their mixes what scores of the assumed reach leave them; of weights not yet divided 1 and a margin,
    as of every way to compute softmax of far scores.
    """
    found: dict[str, float] = {}
    for site, (low, high) in domains.items():
        function = next(f for form in config.forms() for s, f in form.sites().items() if s == site)
        values = on_arrays(FUNCTIONS[function].TRUE)(np.linspace(low, high, 257))
        squares = config.width if site.endswith("/norm") and function == "rsqrt" else 1
        found[f"{site}.in"] = squares * max(abs(low), abs(high))
        found[f"{site}.out"] = float(np.abs(values).max())
        if config.norm_after and squares > 1:  # a polynomial's argument is scaled to width 2, and its value by the root
            found[f"{site}.out"] *= max(1.0, math.sqrt(config.width * (high - low) / 2))
    stream = max((high for site, (_, high) in domains.items() if site.endswith("/norm")), default=1.0)
    inside = {"qkv": REACH, "scores": 2 * REACH, "numerator": 1 + MARGIN, "context": REACH}
    for i in range(config.layers):
        found |= {f"layer.{i}/attention/{point}": bound for point, bound in inside.items()}
        found |= {f"layer.{i}/{part}/input": math.sqrt(config.width * stream) for part in ("attention", "ffn")}
    return {**found, "head/input": math.sqrt(config.width * stream)}
