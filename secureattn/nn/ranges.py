"""Calibrated ranges: where each function's argument lies on training data, and the domain that must hold it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secureattn.approx import FUNCTIONS, Interval
from secureattn.approx.realisation import on_arrays
from secureattn.errors import ProtocolError
from secureattn.nn.config import ModelConfig

_POINTS = 257


@dataclass(frozen=True)
class Ranges:
    """Per site: the interval ``observed`` on the calibration data and the ``domains`` (observed plus a margin) that
    approximations must cover; per refresh point: a bound on ``|value|``, margin included; ``input``: the interval of
    the inputs, margin included, None in files that do not say; ``assumed``: none of it was observed (``nn.assumed``).
    """

    observed: Mapping[str, Interval]
    domains: Mapping[str, Interval]
    bounds: Mapping[str, float]
    samples: int
    margin: float
    input: Interval | None = None
    assumed: bool = False

    def to_json(self) -> str:
        """The text of ranges.json."""
        sites = {
            site: {"observed": list(self.observed[site]), "domain": list(self.domains[site])}
            for site in sorted(self.domains)
        }
        raw = {
            "format": 1,
            "samples": self.samples,
            "margin": self.margin,
            **({"input": list(self.input)} if self.input else {}),
            "sites": sites,
            "bounds": dict(sorted(self.bounds.items())),
        }
        return json.dumps(raw, indent=2) + "\n"

    def largest(self, config: ModelConfig) -> tuple[str, float]:
        """Where the largest magnitude is of an argument or a value of a program's functions on their domains, and what.

        The argument of a norm is a sum of squares, so it bounds the stream as well. No site, and 1, without functions.
        """
        found = {site: self._reach(config, site, function) for site, function in config.sites().items()}
        return max(found.items(), key=lambda item: item[1], default=("", 1.0))

    def _reach(self, config: ModelConfig, site: str, function: str) -> float:
        low, high = self.domains[site]
        values = on_arrays(FUNCTIONS[function].TRUE)(np.linspace(low, high, _POINTS))
        squares = config.width if site.endswith("/norm") and function == "rsqrt" else 1
        return max(squares * max(abs(low), abs(high)), float(np.abs(values).max()))

    @classmethod
    def load(cls, path: Path, config: ModelConfig) -> Ranges:
        """Read ranges.json; a site the model needs and the file lacks is named, as is any unusable interval."""
        try:
            raw: Mapping[str, Any] = json.loads(path.read_text())
            if raw["format"] != 1:
                raise ValueError(f"format {raw['format']} is not 1, the only version this release reads")
            if not isinstance(raw["sites"], dict) or not isinstance(raw["bounds"], dict):
                raise ValueError("sites and bounds must be tables")
            observed = {site: (float(v["observed"][0]), float(v["observed"][1])) for site, v in raw["sites"].items()}
            domains = {site: (float(v["domain"][0]), float(v["domain"][1])) for site, v in raw["sites"].items()}
            bounds = {site: float(v) for site, v in raw["bounds"].items()}
            samples, margin = int(raw["samples"]), float(raw["margin"])
            around = (float(raw["input"][0]), float(raw["input"][1])) if "input" in raw else None
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise ProtocolError(f"ranges {path}", [f"cannot be read: {error!r}"]) from error
        wrong = [f"no range for {site}; calibrate the model again" for site in config.sites() if site not in domains]
        wrong += [
            f"{site}: [{low}, {high}] is not an interval"
            for site, (low, high) in {**domains, **({"input": around} if around else {})}.items()
            if not (math.isfinite(low) and math.isfinite(high) and low < high)
        ]
        wrong += [
            f"{site}: observed {list(observed[site])} leaves its domain {list(domains[site])}"
            for site in domains
            if domains[site][0] < domains[site][1]
            and not domains[site][0] <= observed[site][0] <= observed[site][1] <= domains[site][1]
        ]
        wrong += [f"{site}: bound {b} is not a positive number" for site, b in bounds.items() if not 0 < b < math.inf]
        if wrong:
            raise ProtocolError(f"ranges {path}", wrong)
        return cls(observed, domains, bounds, samples, margin, around)


UNMEASURED = Ranges({}, {}, {}, 0, 0.0)
"""Of a model that is still to be calibrated."""


def widened(function: str, interval: Interval, margin: float, floor: float = 0.0) -> Interval:
    """An interval plus a margin: by a factor ``1+margin`` for functions of positive values (never below ``floor``),
    by that share of the larger end, symmetrically, for functions with a parity, by that share of the width otherwise.
    """
    low, high = interval
    kind = FUNCTIONS[function].RANGE
    if kind == "positive":
        return max(low / (1 + margin), floor), high * (1 + margin)
    if kind == "symmetric":
        m = max(abs(low), abs(high)) * (1 + margin)
        return -m, m
    pad = (high - low) * margin
    return low - pad, high + pad
