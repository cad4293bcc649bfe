"""A run in the clear, with the approximations or with the true functions; it counts what leaves a domain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch

from secureattn.backends.plaintext import PlaintextBackend, PlaintextTensor
from secureattn.events import Recorder
from secureattn.ledger import Ledger
from secureattn.nn.batch import Batch, Shape
from secureattn.nn.config import ModelConfig
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import fold
from secureattn.plan import Plan
from secureattn.protocol import exact_realisations
from secureattn.runs.result import Progress, Run, in_order


def run(plan: Plan, inputs: Batch, progress: Progress, trace: bool, *, exact: bool = False) -> Run:
    """Outputs ``[N,C]``."""
    model, shape = plan.model, plan.shape
    realisations = exact_realisations(model) if exact else plan.realisations
    config = plan.config
    if exact:
        config = replace(model.config, tokens=shape.tokens) if model.config.variable else model.config
    folded = fold(config, model.weights, realisations)
    backend = PlaintextBackend(exact=exact, recorder=Recorder(trace=trace))
    network = Encoder(folded, backend)
    domains = {site: function.domain for site, function in folded.functions().items()}
    escapes: dict[str, int] = {}
    outputs = []
    for rows in plan.parts:
        part = shape.of(rows)

        def count_escapes(site: str, value: torch.Tensor, part: Shape = part) -> None:
            if site in domains:
                low, high = domains[site]
                slack = 1e-9 * (high - low)
                left = ~((value >= low - slack) & (value <= high + slack)) & part.there(value)
                escapes[site] = escapes.get(site, 0) + int(left.sum())

        backend.observers[:] = [count_escapes]
        with torch.no_grad(), backend.recorder.phase("online"):
            x = entered(backend, config, model.entering(config, inputs.part(rows)))
            outputs.append(backend.reveal(network(x, part.lengths)))
    ledger = Ledger.of(backend.recorder, name=plan.title, engine="plaintext", party="plaintext")
    return Run(in_order(plan, outputs), ledger, {site: n for site, n in escapes.items() if n})


def entered(backend: PlaintextBackend, config: ModelConfig, values: npt.NDArray[Any]) -> PlaintextTensor:
    """Inputs as a tensor: token numbers ``[N,S]`` as one-hot rows, or numbers ``[N,S,F]``."""
    return backend.tokens(values, config.features) if config.input == "tokens" else backend.input(values)
