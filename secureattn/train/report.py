"""The range report: where every site's values lie, where they should, and what a polynomial needs there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from secureattn.approx import FUNCTIONS, Interval, realise
from secureattn.errors import SecureAttnError
from secureattn.nn.config import ModelConfig
from secureattn.nn.ranges import Ranges
from secureattn.train.forward import Array, forward, tensors, true_functions
from secureattn.train.ranges import domain_of, extremes
from secureattn.train.targets import targets_of

ERRORS = (1e-2, 1e-3)
"""The errors a degree is looked for, as the function measures them (relative for 1/x and 1/√x)."""


@dataclass(frozen=True)
class SiteRange:
    """One site: ``observed`` extremes and ``central`` 99.8 % of its values, ``target`` and the share ``outside`` it
    (the last three None where nobody looked), calibrated ``domain``, ``ratio`` of its ends for functions of positive
    values, and for each of ERRORS the least degree 2^k − 1 of a Chebyshev polynomial that reaches it on the domain
    (None: none does, or none exists).
    """

    site: str
    function: str
    observed: Interval
    central: Interval | None
    target: Interval | None
    outside: float | None
    domain: Interval
    ratio: float | None
    degrees: tuple[int | None, ...]


def report(
    config: ModelConfig,
    parameters: Mapping[str, Array],
    inputs: Array,
    targets: Mapping[str, Interval] | None = None,
    *,
    margin: float = 0.1,
) -> list[SiteRange]:
    """Rows for all sites of every way to compute the model's attention, on inputs ``[N,S,F]`` with the true functions.

    ``targets`` as in a recipe: by the last part of a site's path; defaults elsewhere.
    """
    found: dict[str, SiteRange] = {}
    for form in config.forms():
        wanted = targets_of(form, targets or {}, parameters, inputs)
        with torch.no_grad():
            seen = forward(form, tensors(parameters), true_functions(form), inputs, torch.float64).arguments
        for site, function in form.sites().items():
            if site not in found:
                domain = domain_of(form, site, extremes(seen[site]), margin)
                found[site] = _row(site, function, seen[site].flatten(), wanted[site], domain)
    return list(found.values())


def report_of(config: ModelConfig, ranges: Ranges) -> list[SiteRange]:
    """Rows for the same sites from calibrated ranges alone."""
    found = {site: function for form in config.forms() for site, function in form.sites().items()}
    rows = []
    for site, function in found.items():
        observed, domain = ranges.observed[site], ranges.domains[site]
        rows.append(SiteRange(site, function, observed, None, None, None, domain, *_needs(function, domain)))
    return rows


def _row(site: str, function: str, values: torch.Tensor, target: Interval, domain: Interval) -> SiteRange:
    ordered = values.sort().values
    low, high = (float(ordered[round(q * (len(ordered) - 1))]) for q in (0.001, 0.999))
    ratio, degrees = _needs(function, domain)
    return SiteRange(
        site=site,
        function=function,
        observed=extremes(values),
        central=(low, high),
        target=target,
        outside=float(((values < target[0]) | (values > target[1])).double().mean()),
        domain=domain,
        ratio=ratio,
        degrees=degrees,
    )


def _needs(function: str, domain: Interval) -> tuple[float | None, tuple[int | None, ...]]:
    positive = FUNCTIONS[function].RANGE == "positive" and domain[0] > 0
    ratio = domain[1] / domain[0] if positive else None
    return ratio, tuple(_degree(function, domain, error) for error in ERRORS)


def _degree(function: str, domain: Interval, error: float) -> int | None:
    try:
        made = realise(function, {"kind": "chebyshev", "error": error}, domain)
    except SecureAttnError:
        return None
    return made.polynomial.degree if made.polynomial else None
