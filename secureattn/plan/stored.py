"""Plans under CKKS as documents: what the key owner needs of one (``Terms``), and what the evaluator goes by.

Public, all of it. What a refresh shows of the model is checked again when a document is read: it may come from anybody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from secureattn.backends.ckks.calibration import as_json as costs_json
from secureattn.backends.ckks.calibration import costs_of
from secureattn.errors import InputError, PlanError
from secureattn.events import Event, Recorder
from secureattn.nn.model import Model
from secureattn.plan.base import CkksPlan, Plan
from secureattn.plan.choice import HIDING_BITS, Chooser
from secureattn.plan.memory import Memory
from secureattn.plan.terms import DAMAGED, Terms, whole, wholes
from secureattn.protocol import Protocol, fitted

FORMAT = 1
_OF_TERMS = ("parameters", "rotations", "input_levels", "tokens", "capacity", "dense", "flooding")
_PLAIN = ("workers", "blocks", "batches", "depth", "output_level", "hiding_bits", "hiding_bits_run")
_MAPS = ("points", "predicted", "sizes", "seconds")


@dataclass(frozen=True)
class Identity:
    """What a plan is for, by name and hash, and by which release: all of it must be the same at both sides."""

    release: str
    model: str
    model_hash: str
    protocol: str
    protocol_hash: str

    @classmethod
    def of(cls, model: Model, protocol: Protocol, release: str) -> Identity:
        """Of a model with its weights."""
        return cls(release, model.config.name, model.digest, protocol.name, protocol.digest)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Identity:
        """From JSON; InputError where it is damaged."""
        try:
            values = {field.name: document[field.name] for field in fields(cls)}
        except DAMAGED as error:
            raise InputError(f"the terms of a plan are damaged ({error!r}); ask for them again") from error
        if not all(isinstance(value, str) and len(value) <= 200 for value in values.values()):
            raise InputError("the terms of a plan name no model or protocol; ask for them again")
        return cls(**values)

    def differs(self, other: Identity) -> str:
        """In what another differs, for an error; empty where in nothing."""
        if self.release != other.release:
            return f"release {other.release} of secureattn, not {self.release}"
        for what in ("model", "protocol"):
            ours, theirs = (f"{getattr(x, what)} ({getattr(x, f'{what}_hash')[:12]})" for x in (self, other))
            if ours != theirs:
                return f"{what} {theirs}, not {ours}"
        return ""


def hash_of(document: Any) -> str:
    """Hex digest of a JSON document, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, allow_nan=False).encode()).hexdigest()


# ---- the evaluator's part ---------------------------------------------------------------------------------------


def document(plan: Plan) -> dict[str, Any]:
    """What an evaluator needs to run as planned, as JSON: everything but the model and the protocol themselves."""
    layout = plan.ckks
    if layout is None:
        raise PlanError(f"{plan.title} runs on {plan.protocol.engine}; plans are kept in files under CKKS")
    return {
        "samples": plan.samples,
        "tokens": plan.tokens,
        "lengths": plan.lengths,
        "memory_bytes": plan.memory_bytes,
        "costs": costs_json(plan.costs),
        "warnings": plan.warnings,
        "schedule": sorted(layout.schedule),
        "ceilings": [[list(path), level] for path, level in layout.ceilings.items()],
        "worth": sorted(map(list, layout.worth)),
        "memory": asdict(layout.memory),
        "events": [asdict(event) for event in layout.recorder.events.values()],
        **{name: getattr(layout, name) for name in _PLAIN},
        **{name: dict(getattr(layout, name)) for name in _MAPS},
    }


def plan_of(document: Mapping[str, Any], terms: Terms, model: Model, protocol: Protocol) -> Plan:
    """The plan again; InputError where the document is damaged."""
    protocol = fitted(protocol, model)
    try:
        recorder = Recorder(modelled=True)
        for raw in document["events"]:
            event = Event(**raw)
            recorder.events[event.region, event.op, event.phase] = event
        layout = CkksPlan(
            **{name: getattr(terms, name) for name in _OF_TERMS},
            schedule=frozenset(document["schedule"]),
            ceilings={wholes(path): whole(level) for path, level in document["ceilings"]},
            worth=frozenset(wholes(path) for path in document["worth"]),
            recorder=recorder,
            memory=Memory(**document["memory"]),
            **{name: document[name] for name in (*_PLAIN, *_MAPS)},
        )
        lengths = document["lengths"]
        plan = Plan(
            model,
            protocol,
            whole(document["samples"]),
            protocol.realisations(model),
            layout.workers,
            costs_of(document["costs"]),
            ckks=layout,
            warnings=tuple(document["warnings"]),
            tokens=document["tokens"],
            lengths=None if lengths is None else wholes(lengths),
            memory_bytes=document["memory_bytes"],
        )
    except DAMAGED as error:
        raise InputError(f"the plan is damaged ({error!r}); plan again") from error
    if Terms.of(plan) != terms:
        raise InputError("the plan contradicts the terms beside it; plan again")
    _check_masks(plan, layout)
    return plan


def _check_masks(plan: Plan, layout: CkksPlan) -> None:
    """PlanError where a refresh would hide too little, InputError where there is no such point."""
    chooser = Chooser(plan, plan.folded(), layout.layout)
    for point in sorted(layout.schedule):
        if point not in plan.model.ranges.bounds:
            raise InputError(f"the plan refreshes at {point}, where model {plan.config.name} has nothing; plan again")
        bits = chooser.hiding_bits(layout.parameters, point)
        if bits < HIDING_BITS:
            raise PlanError(f"masks at {point} would hide {bits:.1f} bits, {HIDING_BITS} are needed; plan again")
