"""A run in the clear, with the approximations or with the true functions; it counts what leaves a domain."""

from __future__ import annotations

import torch

from secureattn.backends.plaintext import PlaintextBackend
from secureattn.events import Recorder
from secureattn.ledger import Ledger
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import fold
from secureattn.plan import Plan
from secureattn.protocol import exact_realisations
from secureattn.runs.result import Array, Progress, Run


def run(plan: Plan, inputs: Array, progress: Progress, trace: bool, *, exact: bool = False) -> Run:
    """Class scores ``[N,C]``."""
    model = plan.model
    realisations = exact_realisations(model) if exact else plan.realisations
    folded = fold(model.config if exact else plan.config, model.weights, realisations)
    backend = PlaintextBackend(exact=exact, recorder=Recorder(trace=trace))
    escapes: dict[str, int] = {}
    domains = {site: function.domain for site, function in folded.functions().items()}

    def count_escapes(site: str, value: torch.Tensor) -> None:
        if site in domains:
            low, high = domains[site]
            slack = 1e-9 * (high - low)
            escapes[site] = escapes.get(site, 0) + int((~((value >= low - slack) & (value <= high + slack))).sum())

    backend.observers.append(count_escapes)
    with torch.no_grad(), backend.recorder.phase("online"):
        logits = backend.reveal(Encoder(folded, backend)(backend.input(inputs)))
    ledger = Ledger.of(backend.recorder, name=plan.title, engine="plaintext", party="plaintext")
    return Run(logits[:, 0], ledger, {site: n for site, n in escapes.items() if n})
