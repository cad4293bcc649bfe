"""Where every site's values should keep to, and the penalty that holds them there."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from secureattn.approx import FUNCTIONS, Interval
from secureattn.nn.batch import Batch
from secureattn.nn.config import ModelConfig
from secureattn.train.forward import Array, Tensors, forward, tensors, true_functions

DEFAULTS: Mapping[str, Interval] = {"gelu": (-3.0, 3.0), "tanh": (-3.0, 3.0), "erf": (-2.0, 2.0)}
"""Function → target of sites that a recipe does not name: beyond, GELU is 0 or x to 4e-3, tanh ±1 and erf ±1 to 5e-3,
so nothing is gained by going there."""
WIDEST: Interval = (-4.0, 4.0)
"""Target of every other function of values of both signs: a polynomial of degree 15 serves exp, sigmoid, SiLU and
softplus there to 1e-3."""
RATIO = 8.0
"""Largest over least argument of functions of positive values (1/x, 1/√x, √x): it alone decides the degree they need,
15 for 1e-3 at this ratio. Where the interval starts follows the variant's least value, or the values at the start."""
_LOOK = 256  # training samples that show where the values of a site start


def targets_of(
    config: ModelConfig, named: Mapping[str, Interval], parameters: Mapping[str, Array], inputs: Array | Batch
) -> dict[str, Interval]:
    """Site → target: what ``named`` says for the last part of its path, else the default of its function."""
    sites = config.sites()
    missing = [site for site in sites if last_part(site) not in named]
    seen: Tensors = {}
    if any(FUNCTIONS[sites[site]].RANGE == "positive" for site in missing):
        few = inputs.part(range(min(_LOOK, len(inputs)))) if isinstance(inputs, Batch) else inputs[:_LOOK]
        with torch.no_grad():
            look = forward(config, tensors(parameters), true_functions(config), few, torch.float64)
        seen = look.arguments
    return {
        site: named[last_part(site)] if site not in missing else _default(config, site, function, seen)
        for site, function in sites.items()
    }


def range_penalty(arguments: Tensors, targets: Mapping[str, Interval]) -> torch.Tensor:
    """``Σ_sites mean(((x−high)₊² + (low−x)₊²)/width²) + max(…)/10``: zero inside, and the worst value counts.

    The mean alone would let a few outliers live on; a polynomial does not forgive even one.
    """
    total = torch.zeros(())
    for site, (low, high) in targets.items():
        excess = torch.relu(arguments[site] - high) + torch.relu(low - arguments[site])
        excess = (excess / (high - low)).square()
        total = total + excess.mean() + 0.1 * excess.max()
    return total


def last_part(site: str) -> str:
    """The name of a site within its part of a layer."""
    return site.rsplit("/", 1)[-1]


def floor_of(config: ModelConfig, site: str) -> float:
    """The lower end no value can pass: ε for a variance, what the attention variant states for its sites."""
    if site.endswith("/norm"):
        return config.norm_epsilon
    layer = re.match(r"layer\.(\d+)/", site)
    floor = config.variant_of(int(layer[1])).floors.get(last_part(site)) if layer else None
    least = 1 if config.variable or config.causal else config.tokens
    return floor(config.attention_epsilon, config.tokens, least) if floor else 0.0


def _default(config: ModelConfig, site: str, function: str, seen: Tensors) -> Interval:
    if FUNCTIONS[function].RANGE != "positive":
        return DEFAULTS.get(function, WIDEST)
    typical = max(float(seen[site].abs().mean()), 1e-3)
    low = max(typical / RATIO**0.5, floor_of(config, site))
    return low, low * RATIO
