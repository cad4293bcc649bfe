"""A run in the clear, with the approximations or with the true functions; it counts what leaves a domain."""

from __future__ import annotations

import torch

from secureattn.backends.plaintext import PlaintextBackend
from secureattn.ledger import Ledger
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import Folded, fold
from secureattn.plan import Plan
from secureattn.protocol import exact_realisations
from secureattn.runs.result import Array, Progress, Run


def run(plan: Plan, inputs: Array, progress: Progress, trace: bool, *, exact: bool = False) -> Run:
    """Class scores ``[N,C]``."""
    model = plan.model
    realisations = exact_realisations(model) if exact else plan.realisations
    folded = fold(model.config, model.weights, realisations)
    backend = PlaintextBackend(exact=exact)
    backend.recorder.trace = trace
    escapes: dict[str, int] = {}
    domains = _domains(folded)

    def count_escapes(site: str, value: torch.Tensor) -> None:
        if site in domains:
            low, high = domains[site]
            slack = 1e-9 * (high - low)
            escapes[site] = int(((value < low - slack) | (value > high + slack)).sum())

    backend.observers.append(count_escapes)
    with torch.no_grad(), backend.recorder.phase("online"):
        logits = backend.reveal(Encoder(folded, backend)(backend.input(inputs)))
    ledger = Ledger.of(backend.recorder, name=plan.title, engine="plaintext", party="plaintext")
    return Run(logits[:, 0], ledger, {site: n for site, n in escapes.items() if n})


def _domains(folded: Folded) -> dict[str, tuple[float, float]]:
    """The domain of every site's function in the units its folded argument has."""
    found = {}
    for i, layer in enumerate(folded.layers):
        for site, function in {
            "attention/norm": layer.attention_norm,
            "attention/exp": layer.exp,
            "attention/normaliser": layer.normaliser,
            "ffn/norm": layer.ffn_norm,
            "ffn/gelu": layer.gelu,
        }.items():
            if function is not None:
                found[f"layer.{i}/{site}"] = function.domain
    return found
