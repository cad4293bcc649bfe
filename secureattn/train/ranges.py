"""Calibration: which domains approximations must cover, and how large values get where a refresh may happen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from secureattn.approx import FUNCTIONS, Interval, Realisation, exact, realise
from secureattn.approx.attention import realisations
from secureattn.errors import ProtocolError, RangeError, SecureAttnError
from secureattn.nn.config import ModelConfig
from secureattn.nn.ranges import Ranges, widened
from secureattn.train.forward import Array, Pass, Tensors, forward, tensors, true_functions
from secureattn.train.targets import floor_of

CALIBRATED = {"kind": "chebyshev", "degree": 15}
"""What serves every site when refresh bounds are measured; folding depends on the domain alone, not on the degree."""


def calibrate(config: ModelConfig, weights: Mapping[str, Array], inputs: Array, *, margin: float = 0.1) -> Ranges:
    """Run the exact model on data ``[N,S,F]``, record every site, widen by a margin; then bound every refresh point.

    So for every way to compute the model's attention, as a protocol may choose any. Bounds hold for the folded and
    the unfolded form of the program, whichever is larger. The inputs' own interval is widened by the same margin.
    """
    observed: dict[str, Interval] = {}
    domains: dict[str, Interval] = {}
    bounds: dict[str, float] = {}
    values = tensors(weights)
    for form in forms(config):
        seen = _run(form, values, true_functions(form), inputs)
        here = {site: extremes(value) for site, value in seen.arguments.items()}
        observed |= {site: _hull(observed.get(site, found), found) for site, found in here.items()}
        domains |= {site: domain_of(form, site, observed[site], margin) for site in here}
        folded = _run(form, values, _calibrated(form, domains), inputs)
        for points in (seen.points, folded.points):
            for point in points.keys() - here.keys():
                largest = max(float(points[point].abs().max()), 1e-6) * (1 + margin)
                bounds[point] = max(bounds.get(point, 0.0), largest)
    _check_finite(config, observed, bounds)
    return Ranges(observed, domains, bounds, len(inputs), margin, widened_input(inputs, margin))


def forms(config: ModelConfig) -> Iterator[ModelConfig]:
    """The model with its attention's function computed in each of its ways, its own first."""
    for variant in realisations(config.attention).values():
        yield replace(config, attention=variant.name)


def domain_of(config: ModelConfig, site: str, observed: Interval, margin: float) -> Interval:
    """The domain that what serves a site must cover, from where its values lay."""
    low, high = widened(config.sites()[site], observed, margin, floor_of(config, site))
    if high - low > 1e-9 * max(abs(low), abs(high), 1e-9):
        return low, high
    pad = max(abs(low), abs(high), 1.0) / 10  # always the same value: any interval around it will do
    return low - pad, high + pad


def widened_input(inputs: Array, margin: float) -> Interval:
    """Smallest and largest input, apart by ``margin`` of their width on either side."""
    low, high = float(inputs.min()), float(inputs.max())
    pad = (high - low) * margin
    return low - pad, high + pad


def served_by(
    config: ModelConfig, ranges: Ranges, functions: Mapping[str, Mapping[str, Any]]
) -> dict[str, Realisation]:
    """What a protocol's functions make of every site's calibrated domain, to train or measure through; the true
    function where they name none. All that cannot be made are named at once.
    """
    made: dict[str, Realisation] = {}
    wrong: list[str] = []
    for site, function in config.sites().items():
        try:
            made[site] = realise(function, functions.get(function, {"kind": "exact"}), ranges.domains[site])
        except SecureAttnError as error:
            wrong.append(f"{site}: {error}")
    if wrong:
        raise ProtocolError(f"model {config.name} cannot be served", wrong)
    return made


def extremes(value: torch.Tensor) -> Interval:
    """Smallest and largest value."""
    return float(value.min()), float(value.max())


def _calibrated(config: ModelConfig, domains: Mapping[str, Interval]) -> dict[str, Realisation]:
    return {
        site: realise(function, CALIBRATED, domains[site])
        if CALIBRATED["kind"] in FUNCTIONS[function].REALISATIONS
        else exact(function)
        for site, function in config.sites().items()
    }


def _run(config: ModelConfig, values: Tensors, served: Mapping[str, Realisation], inputs: Array) -> Pass:
    with torch.no_grad():
        return forward(config, values, served, inputs, torch.float64)


def _hull(a: Interval, b: Interval) -> Interval:
    return min(a[0], b[0]), max(a[1], b[1])


def _check_finite(config: ModelConfig, observed: Mapping[str, Interval], bounds: Mapping[str, float]) -> None:
    wrong = [site for site, ends in observed.items() if not all(map(math.isfinite, ends))]
    wrong += [point for point, bound in bounds.items() if not math.isfinite(bound)]
    if wrong:
        raise RangeError(
            f"model {config.name} reaches values that are not finite at {', '.join(sorted(wrong))}; retrain with "
            "a range penalty"
        )
