"""Plans: a model under a protocol, run on the symbolic engine. Chooses parameters and refresh points, predicts cost,
and refuses what cannot run before any key is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from secureattn.approx import Realisation
from secureattn.errors import CapabilityError, PlanError
from secureattn.nn.model import Model
from secureattn.plan.base import CkksPlan, MpcPlan, Plan, party_name
from secureattn.plan.ckks import HIDING_BITS, Progress, plan_ckks
from secureattn.plan.mpc import plan_mpc, run_symbolic_party
from secureattn.protocol import Protocol

__all__ = [
    "HIDING_BITS",
    "CkksPlan",
    "MpcPlan",
    "Plan",
    "make_plan",
    "party_name",
    "run_symbolic_party",
]


def make_plan(model: Model, protocol: Protocol, *, samples: int, progress: Progress | None = None) -> Plan:
    """Plan a run over ``samples`` queries; raises a PlanError or ProtocolError that says what would help."""
    if samples < 1:
        raise PlanError(f"a plan needs at least 1 sample, not {samples}")
    realisations = protocol.realisations(model)
    _check_capabilities(protocol, realisations)
    warnings = tuple(w for w in (protocol.mpc.warning if protocol.engine == "crypten" else None,) if w)
    draft = Plan(model, protocol, samples, realisations, warnings=warnings)
    if protocol.engine == "ckks":
        return replace(draft, ckks=plan_ckks(draft, progress or (lambda _: None)))
    if protocol.engine == "crypten":
        return replace(draft, mpc=plan_mpc(draft))
    return draft


def _check_capabilities(protocol: Protocol, realisations: Mapping[str, Realisation]) -> None:
    if protocol.engine != "ckks":
        return
    wrong = [
        f"{site}: {r.label} needs comparison, which the ckks engine lacks; use a polynomial such as "
        f'{r.function} = {{ kind = "chebyshev", degree = 15 }}'
        for site, r in realisations.items()
        if r.needs_comparison
    ]
    if wrong:
        raise CapabilityError("; ".join(wrong))
