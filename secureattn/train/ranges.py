"""Calibration: which domains approximations must cover, and how large values get where a refresh may happen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from secureattn.approx import FUNCTIONS, Interval, Realisation, exact, realise
from secureattn.approx.realisation import on_arrays
from secureattn.errors import ProtocolError, RangeError, SecureAttnError
from secureattn.nn.batch import Batch
from secureattn.nn.config import ModelConfig
from secureattn.nn.embedding import all_squares
from secureattn.nn.ranges import Ranges, widened
from secureattn.train.forward import Array, Pass, Tensors, forward, tensors, true_functions
from secureattn.train.targets import floor_of

CALIBRATED = (15, 31, 63, 127, 255)
"""Degrees of what serves every site when refresh bounds are measured; folding depends on the domain alone."""
_NEAR = 0.05
_UNBEARABLE = 1e9
_TOKENS = 256  # of a piece of text


def calibrate(
    config: ModelConfig,
    weights: Mapping[str, Array],
    inputs: Array | Batch,
    *,
    margin: float = 0.1,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Ranges:
    """Run the exact model on data ``[N,S,F]``, or on a batch of tokens without its padding, record every site, widen by
    a margin; then bound every refresh point.

    So for every way to compute the model's attention, as a protocol may choose any. Bounds hold for the folded and
    the unfolded form of the program, whichever is larger, but not for a way whose functions reach more than any engine
    holds. The inputs' own interval is widened by the same margin. What a norm of the embedding is given is known for
    every token at every position, and needs no data.
    """
    seen, values, pieces = _Seen(margin), tensors(weights), _pieces(inputs)
    if config.input == "tokens" and config.embed_norm:
        seen.observed["embed/norm"] = all_squares(config, values)
    ways = list(config.forms())
    steps = itertools.count(1)
    for form in ways:
        for folded in (False, True):
            served = _calibrated(form, seen.domains) if folded else true_functions(form)
            for piece in pieces:
                seen.note(_run(form, values, served, piece), form, folded=folded)
                progress(next(steps), 2 * len(ways) * len(pieces))
            if not folded:
                seen.settle(form)
                if not seen.bearable(form):
                    break
    _check_finite(config, seen.observed, seen.bounds)
    interval = None if isinstance(inputs, Batch) else widened_input(inputs, margin)
    return Ranges(seen.observed, seen.domains, seen.bounds, len(inputs), margin, interval)


class _Seen:
    """What calibration has seen so far."""

    def __init__(self, margin: float) -> None:
        self.margin = margin
        self.observed: dict[str, Interval] = {}
        self.domains: dict[str, Interval] = {}
        self.bounds: dict[str, float] = {}
        self._points: dict[str, float] = {}

    def note(self, run: Pass, form: ModelConfig, *, folded: bool) -> None:
        """Take in one run: of an exact one every site's argument; the size of every point."""
        if not folded:
            for site, value in run.arguments.items():
                found = extremes(value)
                self.observed[site] = _hull(self.observed.get(site, found), found)
        kept = self.bounds if folded else self._points
        for point in run.points.keys() - form.sites().keys():
            largest = max(float(run.points[point].abs().max()), 1e-6) * (1 + self.margin)
            kept[point] = max(kept.get(point, 0.0), largest)

    def settle(self, form: ModelConfig) -> None:
        """All exact runs of a form are in: set its domains, and its points' bounds if it can be served at all."""
        self.domains |= {site: domain_of(form, site, self.observed[site], self.margin) for site in form.sites()}
        if self.bearable(form):
            for point, largest in self._points.items():
                self.bounds[point] = max(self.bounds.get(point, 0.0), largest)
        self._points = {}

    def bearable(self, form: ModelConfig) -> bool:
        """Whether values of all functions on their domains stay below what engines hold."""
        ends = {site: on_arrays(FUNCTIONS[f].TRUE)(np.array(self.domains[site])) for site, f in form.sites().items()}
        return all(float(np.abs(values).max()) < _UNBEARABLE for values in ends.values())


def _pieces(inputs: Array | Batch) -> list[Batch]:
    if not isinstance(inputs, Batch):
        return [Batch(inputs)]
    return [
        piece.part(rows) for piece in inputs.by_length() for rows in piece.shape.parts(max(_TOKENS, piece.shape.tokens))
    ]


def domain_of(config: ModelConfig, site: str, observed: Interval, margin: float) -> Interval:
    """The domain that what serves a site must cover, from where its values lay."""
    low, high = widened(config.sites()[site], observed, margin, floor_of(config, site))
    below, above = config.spread().get(site, (1.0, 1.0))
    low, high = below * low, above * high
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
    """Polynomials near enough that what they compute stays where the true functions' values are."""
    made: dict[str, Realisation] = {}
    for site, function in config.sites().items():
        made[site] = exact(function)
        for degree in CALIBRATED if "chebyshev" in FUNCTIONS[function].REALISATIONS else ():
            made[site] = realise(function, {"kind": "chebyshev", "degree": degree}, domains[site])
            if (made[site].error or 0.0) <= _NEAR:
                break
    return made


def _run(config: ModelConfig, values: Tensors, served: Mapping[str, Realisation], inputs: Batch) -> Pass:
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
