"""Planning a run on secret shares: every party's program on shapes alone."""

from __future__ import annotations

import math

import numpy as np

from secureattn.approx import FUNCTIONS
from secureattn.approx.realisation import on_arrays
from secureattn.backends.symbolic import SymbolicMpc
from secureattn.errors import PlanError
from secureattn.ledger import Ledger, Party
from secureattn.nn.encoder import Encoder
from secureattn.plan.base import MpcPlan, Plan, party_name

_SIGNED_BITS = 63
_POINTS = 257


def plan_mpc(draft: Plan) -> MpcPlan:
    """Every party's modelled run; a model whose values leave the protocol's declared range is refused."""
    largest = _largest(draft)
    backends = [run_symbolic_party(draft, rank) for rank in range(draft.protocol.mpc.parties)]
    recorders = tuple(backend.recorder for backend in backends)
    parties = tuple(Party.of(party_name(rank), recorder) for rank, recorder in enumerate(recorders))
    expected = None
    if draft.protocol.mpc.truncation == "local":
        truncated = backends[0].runtime.truncated
        expected = sum(count * largest * 2.0 ** (places - _SIGNED_BITS) for places, count in truncated.items())
    return MpcPlan(recorders, Ledger(draft.title, draft.protocol.engine, parties, measured=False), largest, expected)


def run_symbolic_party(plan: Plan, rank: int) -> SymbolicMpc:
    """One party's program on shapes alone; its planner's ``asked`` say what the dealer will be asked for."""
    config = plan.model.config
    backend = SymbolicMpc(plan.protocol.mpc, rank, ahead=True)
    recorder = backend.recorder
    with recorder.phase("setup"):
        network = Encoder(plan.folded(weights=False), backend)
    with recorder.phase("encrypt"):
        x = backend.shape_input((plan.samples, config.tokens, config.features))
    with recorder.phase("online"):
        logits = network(x)
    with recorder.phase("decrypt"):
        backend.reveal(logits)
    with recorder.phase("offline"):
        backend.planner.ask_once()
    return backend


def _largest(plan: Plan) -> float:
    """The largest magnitude of an argument or a value of the program's functions on their calibrated domains; the
    argument of a norm is a sum of squares, so it bounds the stream as well.
    """
    found = {site: _reach(plan, site, function) for site, function in plan.config.sites().items()}
    if not found:
        return 1.0
    site = max(found, key=lambda site: found[site])
    declared = plan.protocol.mpc.integer_bits
    if found[site] >= 2.0**declared:
        raise PlanError(
            f"values reach {found[site]:.3g} at {site}, and protocol {plan.protocol.name} declares less than "
            f"{2**declared} (mpc.integer_bits = {declared}); set it to {math.frexp(found[site])[1]}"
        )
    return found[site]


def _reach(plan: Plan, site: str, function: str) -> float:
    low, high = plan.model.ranges.domains[site]
    values = on_arrays(FUNCTIONS[function].TRUE)(np.linspace(low, high, _POINTS))
    squares = plan.config.width if site.endswith("/norm") and function == "rsqrt" else 1
    return max(squares * max(abs(low), abs(high)), float(np.abs(values).max()))
