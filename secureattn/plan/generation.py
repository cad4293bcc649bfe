"""Planning a generation on secret shares: a pass over the prompt, then one over each new token, on shapes alone."""

from __future__ import annotations

from secureattn.backends.crypten.shapes import ShapesOnly
from secureattn.backends.symbolic import SymbolicMpc
from secureattn.errors import InputError, PlanError
from secureattn.nn.batch import Shape
from secureattn.nn.decoder import Decoder
from secureattn.nn.encoder import Cache
from secureattn.plan.base import Plan
from secureattn.plan.mpc import entered

PREFILL, DECODE = "prefill", "decode"


def behind(draft: Plan, shape: Shape, new: int) -> Plan:
    """The plan of ``new`` tokens behind prompts of a shape, all of one length; InputError for a model that gives no
    scores of next tokens or takes fewer, PlanError for an engine that cannot.
    """
    config = draft.model.config
    if config.output != "next":
        raise InputError(f"model {config.name} gives {config.output}, not scores of the next token")
    if draft.protocol.engine != "crypten":
        raise PlanError(f"new tokens are planned on secret shares, not on {draft.protocol.engine}; leave them out")
    if shape.tokens + new - 1 > config.tokens:
        raise InputError(
            f"{shape.tokens} tokens and {new} new ones do not fit the {config.tokens} of model {config.name}"
        )
    return draft.at(Shape(shape.samples, shape.tokens + new - 1), new=new)


def symbolic(plan: Plan, rank: int, shape: Shape, new: int) -> SymbolicMpc:
    """One party's generation on shapes alone; ``asked``, step by step, is what the dealer will be asked for."""
    backend = SymbolicMpc(plan.protocol.mpc, rank, ahead=True)
    with ShapesOnly():
        _run(plan, backend, shape, new)
    return backend


def _run(plan: Plan, backend: SymbolicMpc, shape: Shape, new: int) -> None:
    recorder = backend.recorder
    with recorder.phase("setup"):
        network, cache = Decoder(plan.folded(weights=False), backend), Cache()
    for i in range(new):
        with backend.region(DECODE if i else PREFILL):
            with recorder.phase("encrypt"):
                x = entered(backend, plan.config, Shape(shape.samples, 1 if i else shape.tokens))
            with recorder.phase("online"):
                scores = network.step(x, cache)
            with recorder.phase("decrypt"):
                backend.reveal(scores)
            with recorder.phase("offline"):
                backend.end_part()
