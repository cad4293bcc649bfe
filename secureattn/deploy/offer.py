"""What both sides of an encrypted service must agree on, as a JSON document; and the evaluator's plan beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from secureattn import __version__
from secureattn.deploy.parcel import Label
from secureattn.errors import InputError
from secureattn.nn.model import Model
from secureattn.plan import Plan, stored
from secureattn.plan.stored import Identity, hash_of
from secureattn.plan.terms import Terms
from secureattn.protocol import Protocol

FORMAT = 1
_MOST_BYTES = 1 << 28  # of a document: a plan of a large model has a name for every unit of work


@dataclass(frozen=True)
class Offer:
    """Who offers what, ``identity``, on which ``terms``; ``trust``: who is trusted with what, in words."""

    identity: Identity
    terms: Terms
    trust: str

    @classmethod
    def of(cls, plan: Plan) -> Offer:
        """Of a plan under CKKS, whose model has weights."""
        return cls(Identity.of(plan.model, plan.protocol, __version__), Terms.of(plan), plan.protocol.trust)

    @property
    def title(self) -> str:
        """Model and protocol, for tables."""
        return f"{self.identity.model} · {self.identity.protocol}"

    def document(self) -> dict[str, Any]:
        """As JSON."""
        terms = self.terms.document()
        return {"format": FORMAT, "identity": asdict(self.identity), "terms": terms, "trust": self.trust}

    @classmethod
    def read(cls, document: Any, where: str) -> Offer:
        """From JSON, which may come from anybody."""
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            raise InputError(f"{where} is no plan of format {FORMAT}, the only one this release reads; plan again")
        parts = [document.get(name) for name in ("identity", "terms", "trust")]
        if not (isinstance(parts[0], Mapping) and isinstance(parts[1], Mapping) and isinstance(parts[2], str)):
            raise InputError(f"{where} lacks the terms of a plan; plan again")
        return cls(Identity.read(parts[0]), Terms.read(parts[1]), parts[2])

    @cached_property
    def hash(self) -> str:
        """Hex digest: equal exactly when keys, queries and results go together."""
        return hash_of(self.document())

    def label(self, kind: str, keys: str) -> Label:
        """What a file made for this says of itself."""
        identity = self.identity
        return Label(
            kind=kind,
            parameters=self.terms.parameters.fingerprint,
            model=f"{identity.model} {identity.model_hash}",
            protocol=f"{identity.protocol} {identity.protocol_hash}",
            plan=self.hash,
            keys=keys,
        )


def write_plan(plan: Plan, path: Path) -> Offer:
    """A plan as a file for both sides."""
    offer = Offer.of(plan)
    _write(path, {**offer.document(), "evaluator": stored.document(plan)})
    return offer


def write_offer(offer: Offer, path: Path) -> None:
    """The client's part alone."""
    _write(path, offer.document())


def read_offer(path: Path) -> Offer:
    """What ``write_plan`` or ``write_offer`` wrote."""
    return Offer.read(_document(path), str(path))


def read_plan(path: Path, model: Model, protocol: Protocol) -> tuple[Plan, Offer]:
    """The plan again, for the same model and protocol; InputError that says which differs."""
    document = _document(path)
    offer = Offer.read(document, str(path))
    differs = Identity.of(model, protocol, __version__).differs(offer.identity)
    if differs:
        raise InputError(f"{path} is a plan of {differs}; plan again")
    if not isinstance(document.get("evaluator"), Mapping):
        raise InputError(f"{path} is the client's part of a plan; the evaluator needs the whole one")
    return stored.plan_of(document["evaluator"], offer.terms, model, protocol), offer


def _document(path: Path) -> Any:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path} is too large for a plan; plan again")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a plan: {error}") from error


def _write(path: Path, document: Any) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(path)
