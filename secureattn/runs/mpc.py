"""A run on secret shares: model owner, client and dealer as real processes of this machine."""

from __future__ import annotations

from collections.abc import Sequence

from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.launch import PartyResult, run_processes
from secureattn.backends.crypten.runtime import CLIENT, MODEL_OWNER
from secureattn.backends.memory import give_back
from secureattn.ledger import Ledger, Party
from secureattn.nn.batch import Batch, Shape
from secureattn.nn.encoder import Encoder
from secureattn.nn.model import Model
from secureattn.plan import Plan, party_name, run_symbolic_party
from secureattn.plan.mpc import entered
from secureattn.protocol import Protocol
from secureattn.runs.result import Array, Progress, Run, in_order

Argument = tuple[Model, Protocol, Shape, "Batch | None"]
DEALER = "dealer"


def run(plan: Plan, inputs: Batch, progress: Progress, trace: bool, *, device: str = "cpu") -> Run:
    """Outputs ``[N,C]``, opened to the client alone; only its owner reads the model, only the client the input."""
    parties = plan.protocol.mpc.parties
    bare = Model(plan.model.folder.resolve(), plan.model.config, plan.model.ranges)
    arguments: list[Argument] = [
        (bare, plan.protocol, plan.shape, inputs if rank == CLIENT else None) for rank in range(parties)
    ]
    results = run_processes(
        "secureattn.runs.mpc:party",
        arguments,
        plan.protocol.mpc,
        progress=lambda text: progress(text, 0, 0),
        trace=trace,
        device=device,
    )
    return Run(results[CLIENT].value, ledger_of(plan, results))


def ledger_of(plan: Plan, results: Sequence[PartyResult]) -> Ledger:
    """The parties' ledger, the dealer's process beside them."""
    parties = plan.protocol.mpc.parties
    named = tuple(
        Party(party_name(r.rank) if r.rank < parties else DEALER, tuple(r.events), tuple(r.spans), r.origin_s)
        for r in results
    )
    return Ledger(plan.title, "crypten", named[:parties], measured=True, beside=named[parties:])


def party(backend: MpcBackend, argument: Argument) -> Array | None:
    """What one party does: share, ask the dealer ahead for all it will need, compute, open to the client."""
    model, protocol, shape, inputs = argument
    rank, recorder = backend.runtime.rank, backend.recorder
    served = protocol.realisations(model)
    plan = Plan(model, protocol, shape.samples, served, tokens=shape.tokens, lengths=shape.lengths)
    with recorder.phase("setup"):
        folded = plan.folded(weights=rank == MODEL_OWNER)
        model.forget_weights()
        network = Encoder(folded, backend)
        asked = run_symbolic_party(plan, rank).asked
        give_back()
    outputs: list[Array | None] = []
    for rows, wanted in zip(plan.parts, asked, strict=True):
        part = shape.of(rows)
        with recorder.phase("offline"):
            backend.runtime.prepare(wanted)
        with recorder.phase("encrypt"):
            values = None if inputs is None else model.entering(plan.config, inputs.part(rows))
            x = entered(backend, plan.config, part, values)
        with recorder.phase("online"):
            output = network(x, part.lengths)
        with recorder.phase("decrypt"):
            outputs.append(backend.reveal(output, to=CLIENT))
    return in_order(plan, outputs) if rank == CLIENT else None
