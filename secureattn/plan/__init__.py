"""Plans: a model under a protocol, run on the symbolic engine. Chooses parameters and refresh points, predicts cost,
and refuses what cannot run before any key is made.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from secureattn.backends.ckks import calibration, processes
from secureattn.backends.ckks.costs import TYPICAL, Costs
from secureattn.errors import CapabilityError, PlanError
from secureattn.ledger import units
from secureattn.nn.batch import Shape
from secureattn.nn.model import Model
from secureattn.plan.base import CkksPlan, MpcPlan, Plan, party_name
from secureattn.plan.choice import HIDING_BITS, Progress
from secureattn.plan.ckks import plan_ckks, program_depth
from secureattn.plan.generation import behind, symbolic
from secureattn.plan.memory import installed
from secureattn.plan.mpc import plan_mpc, run_symbolic_party
from secureattn.protocol import Protocol, fitted

_SHARE = 0.75  # of the machine's memory, for a CKKS run

__all__ = [
    "HIDING_BITS",
    "CkksPlan",
    "MpcPlan",
    "Plan",
    "make_plan",
    "party_name",
    "program_cost",
    "run_symbolic_party",
]


def make_plan(
    model: Model,
    protocol: Protocol,
    *,
    samples: int,
    workers: int | None = None,
    progress: Progress | None = None,
    costs: Costs | None = None,
    shape: Shape | None = None,
    new: int | None = None,
    memory_bytes: float | None = None,
) -> Plan:
    """Plan a run over ``samples`` queries on ``workers`` processes (CKKS; every core unless given), whose primitives
    take what ``costs`` says (those measured on this machine, or typical ones, unless given). ``shape``: how many tokens
    the queries have, the model's most unless given; ``new``: tokens to make behind them, on secret shares;
    ``memory_bytes``: what a CKKS run should stay below, three quarters of the machine's memory unless given. Raises a
    PlanError or ProtocolError that says what would help.
    """
    workers = processes.cores() if workers is None else workers
    if workers < 1:
        raise PlanError(f"a plan needs at least 1 worker, not {workers}")
    if samples < 1:
        raise PlanError(f"a plan needs at least 1 sample, not {samples}")
    warnings = [*model.notes, *_raised(protocol, protocol := fitted(protocol, model))]
    realisations = protocol.realisations(model)
    if protocol.engine == "crypten" and protocol.mpc.warning:
        warnings.append(protocol.mpc.warning)
    if costs is None:
        costs = calibration.current() if protocol.engine == "ckks" else TYPICAL
    memory_bytes = _SHARE * installed() if memory_bytes is None else memory_bytes
    told = tuple(warnings)
    draft = Plan(model, protocol, samples, realisations, workers, costs, warnings=told, memory_bytes=memory_bytes)
    prompt = shape or draft.shape
    draft = draft.at(prompt) if new is None else behind(draft, prompt, new)
    _check_capabilities(draft)
    if protocol.engine == "ckks":
        return _warned(replace(draft, ckks=plan_ckks(draft, progress or (lambda _: None))))
    if protocol.engine == "crypten":
        run = None if new is None else functools.partial(symbolic, draft, shape=prompt, new=new)
        return replace(draft, mpc=plan_mpc(draft, run))
    return draft


def _raised(declared: Protocol, planned: Protocol) -> list[str]:
    """What a plan must say that takes more bits for values than a protocol declares."""
    bits = planned.mpc.integer_bits
    if declared.fits_range or bits == declared.mpc.integer_bits:
        return []
    return [f"planned with mpc.integer_bits = {bits}, for assumed values, in the place of {declared.mpc.integer_bits}"]


def program_cost(draft: Plan) -> int:
    """What a program costs before parameters are chosen: levels in one go under CKKS, rounds on shares."""
    if draft.protocol.engine == "ckks":
        return program_depth(draft)
    events = run_symbolic_party(draft, 0).recorder.events.values()
    return sum(event.counts.get("rounds", 0) for event in events if event.phase == "online")


def _warned(plan: Plan) -> Plan:
    """Of a run that memory may not hold."""
    assert plan.ckks is not None
    needed = plan.ckks.memory.total
    if needed <= plan.memory_bytes:
        return plan
    told = f"this run takes {units.data(needed)} at its peak, {units.data(round(plan.memory_bytes))} were to be used"
    return replace(plan, warnings=(*plan.warnings, f"{told}; use fewer workers or fewer tokens, or a larger machine"))


def _check_capabilities(draft: Plan) -> None:
    if draft.protocol.engine != "ckks":
        return
    config = draft.config
    wrong = [
        f"attention {variant.name} needs {capability.value}, which the ckks engine lacks; choose another variant, or "
        "run the model on secret shares"
        for variant in {v.name: v for v in map(config.variant_of, range(config.layers))}.values()
        for capability in sorted(variant.needs, key=lambda c: c.value)
    ]
    wrong += [
        f"{site}: {r.label} needs comparison, which the ckks engine lacks; use a polynomial such as "
        f'{r.function} = {{ kind = "chebyshev", degree = 15 }}'
        for site, r in draft.realisations.items()
        if r.needs
    ]
    if wrong:
        raise CapabilityError("; ".join(wrong))
