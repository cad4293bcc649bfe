"""One pass through the plaintext engine that shows what every site was given, in the units of its function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from secureattn.approx import Realisation, exact
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.nn.batch import Batch
from secureattn.nn.config import ModelConfig
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import Folded, fold
from secureattn.runs.plaintext import entered

Array = npt.NDArray[np.float64]
Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Pass:
    """Class scores ``[N,C]``; ``points``: every observed value by path, as the folded program holds it; ``arguments``:
    the same for the sites, as their functions' arguments.
    """

    logits: torch.Tensor
    points: Tensors
    arguments: Tensors


class Values:
    """An observer that keeps every value of every site, with its gradient: a site may be met several times a pass."""

    def __init__(self) -> None:
        self._seen: dict[str, list[torch.Tensor]] = {}

    def __call__(self, site: str, value: torch.Tensor) -> None:
        self._seen.setdefault(site, []).append(value)

    def all(self) -> dict[str, torch.Tensor]:
        """Site → its value, or all its values in one row where there were several."""
        return {
            site: values[0] if len(values) == 1 else torch.cat([v.flatten() for v in values])
            for site, values in self._seen.items()
        }


def true_functions(config: ModelConfig) -> dict[str, Realisation]:
    """The true function at every site."""
    return {site: exact(function) for site, function in config.sites().items()}


def forward(
    config: ModelConfig,
    weights: Tensors,
    served: Mapping[str, Realisation],
    inputs: Array | Batch,
    dtype: torch.dtype = torch.float32,
) -> Pass:
    """The folded program on inputs ``[N,S,F]`` or a batch of tokens; gradients reach weights through all functions."""
    backend = PlaintextBackend(exact=True, dtype=dtype)
    values = Values()
    backend.observers.append(values)
    folded = fold(config, weights, served)
    batch = inputs if isinstance(inputs, Batch) else Batch(inputs)
    scores: Any = Encoder(folded, backend)(entered(backend, config, batch.values), batch.lengths)
    points = values.all()
    return Pass(scores.data.squeeze(1), points, _arguments(config, points, served, folded))


def tensors(parameters: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    """Parameters as float64 tensors."""
    return {name: torch.as_tensor(value) for name, value in parameters.items()}


def _arguments(
    config: ModelConfig, points: Tensors, served: Mapping[str, Realisation], folded: Folded
) -> dict[str, torch.Tensor]:
    """Folding moved factors into weights; they are taken out again: ``Σx²`` becomes ``Σx²/D + ε``, what a polynomial
    reads on its folded domain is mapped back to the domain it was made for.
    """
    found: dict[str, torch.Tensor] = {}
    functions = folded.functions()
    for site, function in config.sites().items():
        value = points[site]
        made, used = served[site].polynomial, functions[site].polynomial
        if site.endswith("/norm") and function == "rsqrt":
            value = value / config.width + config.norm_epsilon
        elif made is not None and used is not None and made.domain != used.domain:
            stretch = (made.domain[1] - made.domain[0]) / (used.domain[1] - used.domain[0])
            value = (value - used.domain[0]) * stretch + made.domain[0]
        found[site] = value
    return found
