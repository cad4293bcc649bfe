"""Ranges seen and kept: a recorder of what every site holds, the penalty that narrows it, calibration."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from secureattn.approx import Interval, Realisation, exact, realise
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.nn.config import ModelConfig
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import fold
from secureattn.nn.ranges import Ranges, widened

Array = npt.NDArray[np.float64]
CALIBRATED = {"kind": "chebyshev", "degree": 15}
"""What serves every site when refresh bounds are measured; folding depends on the domain alone, not on the degree."""


class Values:
    """An observer that keeps the last value of every site, with its gradient."""

    def __init__(self) -> None:
        self.last: dict[str, torch.Tensor] = {}

    def __call__(self, site: str, value: torch.Tensor) -> None:
        self.last[site] = value


def range_penalty(values: Mapping[str, torch.Tensor], targets: Mapping[str, Interval]) -> torch.Tensor:
    """``Σ_sites mean(((x−high)₊² + (low−x)₊²)/width²) + max(…)``: zero inside the targets, and the worst value counts.

    The mean alone would let a few outliers live on; a polynomial does not forgive even one.
    """
    total = torch.zeros(())
    for site, (low, high) in targets.items():
        excess = torch.relu(values[site] - high) + torch.relu(low - values[site])
        excess = (excess / (high - low)).square()
        total = total + excess.mean() + 0.1 * excess.max()
    return total


def calibrate(config: ModelConfig, weights: Mapping[str, Array], inputs: Array, *, margin: float = 0.1) -> Ranges:
    """Run the exact model on data ``[N,S,F]``, record every site, widen by a margin; then bound every refresh point.

    Bounds hold for the folded and the unfolded form of the program, whichever is larger.
    """
    tensors = {name: torch.as_tensor(value) for name, value in weights.items()}
    sites = config.sites()
    seen = _extremes(config, tensors, {site: exact(function) for site, function in sites.items()}, inputs)
    observed = {site: seen[site] for site in sites}
    floors = {site: _floor(config, site) for site in sites}
    domains = {site: widened(sites[site], observed[site], margin, floors[site]) for site in sites}
    served = {site: realise(function, CALIBRATED, domains[site]) for site, function in sites.items()}
    folded = _extremes(config, tensors, served, inputs)
    points = sorted((seen.keys() | folded.keys()) - sites.keys())
    bounds = {point: (1 + margin) * max(_magnitude(seen, point), _magnitude(folded, point)) for point in points}
    return Ranges(observed, domains, bounds, len(inputs), margin)


def _floor(config: ModelConfig, site: str) -> float:
    """The lower end no value can pass: ε for Power-Softmax's normaliser and for variances."""
    if site.endswith("normaliser"):
        return config.attention_epsilon if config.attention.startswith("power") else 0.0
    return config.norm_epsilon if site.endswith("norm") else 0.0


def _magnitude(extremes: Mapping[str, Interval], point: str) -> float:
    low, high = extremes.get(point, (0.0, 0.0))
    return max(abs(low), abs(high), 1e-6)


def _extremes(
    config: ModelConfig, tensors: Mapping[str, torch.Tensor], served: Mapping[str, Realisation], inputs: Array
) -> dict[str, Interval]:
    """Smallest and largest value of every observed site. Norm sites hold ``Σx²`` and are returned as ``Σx²/D + ε``."""
    backend = PlaintextBackend(exact=True)
    values = Values()
    backend.observers.append(values)
    Encoder(fold(config, tensors, served), backend)(backend.input(inputs))
    return {site: (float(v.min()), float(v.max())) for site, v in site_units(config, values.last).items()}


def site_units(config: ModelConfig, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Observed values in the units of their function's argument: a norm site's ``Σx²`` as ``Σx²/D + ε``."""
    norms = {site for site, function in config.sites().items() if function == "rsqrt"}
    return {
        site: value / config.width + config.norm_epsilon if site in norms else value for site, value in values.items()
    }
