"""Planning a run on secret shares: every party's program on shapes alone."""

from __future__ import annotations

from secureattn.backends.symbolic import SymbolicMpc
from secureattn.ledger import Ledger, Party
from secureattn.nn.encoder import Encoder
from secureattn.plan.base import MpcPlan, Plan, party_name


def plan_mpc(draft: Plan) -> MpcPlan:
    """Every party's modelled run."""
    recorders = tuple(run_symbolic_party(draft, rank).recorder for rank in range(draft.protocol.mpc.parties))
    parties = tuple(Party.of(party_name(rank), recorder) for rank, recorder in enumerate(recorders))
    return MpcPlan(recorders, Ledger(draft.title, draft.protocol.engine, parties, measured=False))


def run_symbolic_party(plan: Plan, rank: int) -> SymbolicMpc:
    """One party's program on shapes alone; its runtime's ``requests`` say what the dealer will be asked for."""
    config = plan.model.config
    backend = SymbolicMpc(plan.protocol.mpc, rank)
    recorder = backend.recorder
    with recorder.phase("setup"):
        network = Encoder(plan.folded(weights=False), backend)
    with recorder.phase("encrypt"):
        x = backend.shape_input((plan.samples, config.tokens, config.features))
    with recorder.phase("online"):
        logits = network(x)
    with recorder.phase("decrypt"):
        backend.reveal(logits)
    return backend
