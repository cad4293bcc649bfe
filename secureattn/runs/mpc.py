"""A run on secret shares: model owner, client and dealer as real processes of this machine."""

from __future__ import annotations

import numpy as np

from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.launch import run_parties
from secureattn.backends.crypten.runtime import CLIENT, MODEL_OWNER
from secureattn.ledger import Ledger, Party
from secureattn.nn.encoder import Encoder
from secureattn.nn.model import Model
from secureattn.plan import Plan, party_name, run_symbolic_party
from secureattn.protocol import Protocol
from secureattn.runs.result import Array, Progress, Run

Argument = tuple[Model, Protocol, int, "Array | None"]


def run(plan: Plan, inputs: Array, progress: Progress, trace: bool, *, device: str = "cpu") -> Run:
    """Class scores ``[N,C]``, opened to the client alone; only its owner reads the model, only the client the input."""
    parties = plan.protocol.mpc.parties
    bare = Model(plan.model.folder.resolve(), plan.model.config, plan.model.ranges)
    arguments: list[Argument] = [
        (bare, plan.protocol, plan.samples, inputs if rank == CLIENT else None) for rank in range(parties)
    ]
    results = run_parties(
        "secureattn.runs.mpc:party",
        arguments,
        plan.protocol.mpc,
        progress=lambda text: progress(text, 0, 0),
        trace=trace,
        device=device,
    )
    named = (Party(party_name(result.rank), tuple(result.events), tuple(result.spans)) for result in results)
    return Run(results[CLIENT].value[:, 0], Ledger(plan.title, "crypten", tuple(named), measured=True))


def party(backend: MpcBackend, argument: Argument) -> Array | None:
    """What one party does: share, ask the dealer ahead for all it will need, compute, open to the client."""
    model, protocol, samples, inputs = argument
    config, rank, recorder = model.config, backend.runtime.rank, backend.recorder
    plan = Plan(model, protocol, samples, protocol.realisations(model))
    with recorder.phase("setup"):
        network = Encoder(plan.folded(weights=rank == MODEL_OWNER), backend)
        asked = run_symbolic_party(plan, rank).planner.asked
    with recorder.phase("offline"):
        backend.runtime.prepare(asked)
    with recorder.phase("encrypt"):
        shape = (samples, config.tokens, config.features)
        x = backend.input(np.broadcast_to(0.0, shape) if inputs is None else inputs, owner=CLIENT)
    with recorder.phase("online"):
        logits = network(x)
    with recorder.phase("decrypt"):
        return backend.reveal(logits, to=CLIENT)
