"""Planning a run on secret shares: every party's program on shapes alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.runtime import MODEL_OWNER
from secureattn.backends.crypten.shapes import ShapesOnly
from secureattn.backends.crypten.tensor import MpcTensor
from secureattn.backends.symbolic import SymbolicMpc
from secureattn.errors import PlanError
from secureattn.ledger import Ledger, Party
from secureattn.nn import parameters
from secureattn.nn.batch import Shape
from secureattn.nn.config import ModelConfig
from secureattn.nn.encoder import Encoder
from secureattn.plan.base import MpcPlan, Plan, party_name
from secureattn.plan.party_memory import Held, PartyMemory, dealing, taking_part

_SIGNED_BITS = 63


def plan_mpc(draft: Plan, run: Callable[[int], SymbolicMpc] | None = None) -> MpcPlan:
    """Every party's modelled run, its pass over the inputs unless given; a model whose values leave the protocol's
    declared range is refused.
    """
    most = largest(draft)
    run = run or functools.partial(run_symbolic_party, draft)
    backends = [run(rank) for rank in range(draft.protocol.mpc.parties)]
    recorders = tuple(backend.recorder for backend in backends)
    parties = tuple(Party.of(party_name(rank), recorder) for rank, recorder in enumerate(recorders))
    expected = None
    if draft.protocol.mpc.truncation == "local":
        truncated = backends[0].runtime.truncated
        expected = sum(count * most * 2.0 ** (places - _SIGNED_BITS) for places, count in truncated.items())
    ledger = Ledger(draft.title, draft.protocol.engine, parties, measured=False)
    return MpcPlan(recorders, ledger, most, expected, memories(draft, backends))


def run_symbolic_party(plan: Plan, rank: int) -> SymbolicMpc:
    """One party's program on shapes alone; ``backend.asked`` says what the dealer will be asked for, part by part."""
    backend = SymbolicMpc(plan.protocol.mpc, rank, ahead=True)
    with ShapesOnly():
        _run(plan, backend)
    return backend


def _run(plan: Plan, backend: SymbolicMpc) -> None:
    recorder = backend.recorder
    with recorder.phase("setup"):
        network = Encoder(plan.folded(weights=False), backend)
    for rows in plan.parts:
        part = plan.shape.of(rows)
        with recorder.phase("encrypt"):
            x = entered(backend, plan.config, part)
        with recorder.phase("online"):
            output = network(x, part.lengths)
        with recorder.phase("decrypt"):
            backend.reveal(output)
        with recorder.phase("offline"):
            backend.end_part()


def memories(plan: Plan, backends: Sequence[SymbolicMpc]) -> tuple[PartyMemory, ...]:
    """The peak of every party's process and of the dealer's."""
    folded = plan.folded(weights=False)
    matrices = [linear.weight.numel() for linear in folded.linears]
    own = sum(math.prod(shape) for shape in parameters.shapes(plan.model.config).values())
    mpc = plan.protocol.mpc
    found = []
    for rank, backend in enumerate(backends):
        read = own if rank == MODEL_OWNER or mpc.weights == "public" else 0
        held = Held(matrices, [[a.request for a in part] for part in backend.asked], backend.planner.largest)
        found.append(taking_part(party_name(rank), rank, read, held))
    if mpc.dealer == "ttp":
        found.append(dealing(held, mpc.parties))
    return tuple(found)


def entered(backend: MpcBackend, config: ModelConfig, shape: Shape, values: Any = None) -> MpcTensor:
    """The client's inputs as shares: token numbers ``[N,S]`` one-hot, or numbers ``[N,S,F]``; None at all others."""
    if config.input == "tokens":
        return backend.tokens(values, (shape.samples, shape.tokens), config.features)
    numbers = (shape.samples, shape.tokens, config.features)
    return backend.input(np.broadcast_to(0.0, numbers) if values is None else values)


def largest(plan: Plan) -> float:
    """The largest magnitude of an argument or a value of the program's functions on their calibrated domains."""
    site, most = plan.model.ranges.largest(plan.config)
    declared = plan.protocol.mpc.integer_bits
    if most >= 2.0**declared:
        raise PlanError(
            f"values reach {most:.3g} at {site}, and protocol {plan.protocol.name} declares less than "
            f'{2**declared} (mpc.integer_bits = {declared}); set it to {math.frexp(most)[1]}, or to "fit"'
        )
    return most
