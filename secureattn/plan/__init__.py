"""Plans: a model under a protocol, run on the symbolic engine. Chooses parameters and refresh points, predicts cost,
and refuses what cannot run before any key is made.
"""

from __future__ import annotations

from dataclasses import replace

from secureattn.backends.ckks import calibration, processes
from secureattn.backends.ckks.costs import TYPICAL, Costs
from secureattn.errors import CapabilityError, PlanError
from secureattn.nn.batch import Shape
from secureattn.nn.model import Model
from secureattn.plan.base import CkksPlan, MpcPlan, Plan, party_name
from secureattn.plan.choice import HIDING_BITS, Progress
from secureattn.plan.ckks import plan_ckks, program_depth
from secureattn.plan.mpc import plan_mpc, run_symbolic_party
from secureattn.protocol import Protocol, fitted

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
) -> Plan:
    """Plan a run over ``samples`` queries on ``workers`` processes (CKKS; every core unless given), whose primitives
    take what ``costs`` says (those measured on this machine, or typical ones, unless given). ``shape``: how many tokens
    the queries have, the model's most unless given. Raises a PlanError or
    ProtocolError that says what would help.
    """
    workers = processes.cores() if workers is None else workers
    if workers < 1:
        raise PlanError(f"a plan needs at least 1 worker, not {workers}")
    if samples < 1:
        raise PlanError(f"a plan needs at least 1 sample, not {samples}")
    protocol = fitted(protocol, model)
    realisations = protocol.realisations(model)
    warnings = tuple(w for w in (protocol.mpc.warning if protocol.engine == "crypten" else None,) if w)
    if costs is None:
        costs = calibration.current() if protocol.engine == "ckks" else TYPICAL
    draft = Plan(model, protocol, samples, realisations, workers=workers, costs=costs, warnings=warnings)
    draft = draft if shape is None else draft.at(shape)
    _check_capabilities(draft)
    if protocol.engine == "ckks":
        return replace(draft, ckks=plan_ckks(draft, progress or (lambda _: None)))
    if protocol.engine == "crypten":
        return replace(draft, mpc=plan_mpc(draft))
    return draft


def program_cost(draft: Plan) -> int:
    """What a program costs before parameters are chosen: levels in one go under CKKS, rounds on shares."""
    if draft.protocol.engine == "ckks":
        return program_depth(draft)
    events = run_symbolic_party(draft, 0).recorder.events.values()
    return sum(event.counts.get("rounds", 0) for event in events if event.phase == "online")


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
