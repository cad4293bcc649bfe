"""The report's page: what a profile and a comparison hold, as headings, figures and tables of one HTML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secureattn import __version__
from secureattn.commands.charts import charts
from secureattn.commands.documents import Document
from secureattn.commands.page_tables import accuracy, measure, percent, phases_alone, quality, sections
from secureattn.errors import EngineError
from secureattn.ledger import units

_TEMPLATE = "page.html.j2"
Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Card:
    """A figure at the top."""

    label: str
    value: str
    note: str = ""


def require() -> None:
    """EngineError, with the command that helps, if the template engine is missing."""
    try:
        import jinja2  # noqa: F401
    except ImportError as missing:
        raise EngineError("a report needs jinja2, which is missing; pip install 'secureattn[report]'") from missing


def rendered(profile: Document | None, compare: Document | None, *, top: int) -> str:
    """The page of a profile, a comparison, or both of one run; every value is escaped."""
    require()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(_TEMPLATE).render(_context(profile, compare, top))


def _context(profile: Document | None, compare: Document | None, top: int) -> dict[str, Any]:
    given = [document for document in (profile, compare) if document is not None]
    first = given[0]
    return {
        "title": first.title,
        "lead": _lead(first),
        "cards": _cards(profile, compare),
        "warnings": _warnings(given),
        "accuracy": accuracy(compare) if compare else None,
        "trust": first.data["trust"],
        "parameters": _facts(first.data.get("parameters", {})),
        "charts": charts(profile.ledger) if profile else [],
        "sections": sections(profile, top) if profile else phases_alone(first),
        "machine": _facts(next((one.machine for one in given if one.machine), {})),
        "version": __version__,
        "sources": " and ".join(document.source for document in given),
    }


def _lead(document: Document) -> str:
    data = document.data
    tokens = f" of {data['tokens']} tokens" if data.get("tokens") else ""
    how = f", {document.ledger.how}" if document.kind == "profile" else ""
    return f"{data['samples']} samples{tokens}, engine {data['engine']}{how}"


def _cards(profile: Document | None, compare: Document | None) -> list[Card]:
    found = []
    if compare is not None:
        exact = quality(compare, "exact")
        note = f"exact {exact}" if exact != units.UNKNOWN else ""
        found.append(Card(f"{measure(compare)}, encrypted", quality(compare, "encrypted"), note))
        agreement = compare.data["agreement"].get("encrypted")
        found.append(Card("agrees with exact", percent(agreement), "share of samples"))
    document = profile or compare
    assert document is not None
    bits = document.data.get("parameters", {}).get("security_bits")
    if bits is not None:
        found.append(Card("security", f"{bits} bits"))
    total, online = document.totals["seconds"], document.phases.get("online")
    found.append(Card("whole run", units.seconds(total), f"online {units.seconds(online)}"))
    if profile is not None and profile.ledger.total("bytes_sent") is not None:
        ledger = profile.ledger
        dealt = ledger.total("dealer_bytes")
        note = f"and {units.data(dealt)} dealt" if dealt else ""
        found.append(Card("sent", units.data(ledger.total("bytes_sent")), note))
        found.append(Card("rounds", units.number(ledger.total("rounds"))))
    return found


def _warnings(given: Sequence[Document]) -> list[str]:
    found = [str(text) for document in given for text in document.data.get("warnings", [])]
    if any(document.data.get("changes_model") is True for document in given):
        found.append("this protocol computes another function than the model's own")
    for document in given:
        left = [f"{count:g} at {site}" for site, count in document.data.get("escapes", {}).items() if count]
        if left:
            found.append(f"values outside their function's domain: {', '.join(left)}")
    return list(dict.fromkeys(found))


# ---- facts ---------------------------------------------------------------------------------------------------


def _facts(found: Mapping[str, Any]) -> Facts:
    """Names and values as people read them; what is unknown is left out, but for security bits."""
    return [
        (name.replace("_", " "), _value(name, value))
        for name, value in found.items()
        if value is not None or name == "security_bits"
    ]


def _value(name: str, value: Any) -> str:
    if value is None:
        return units.UNKNOWN
    if isinstance(value, list):
        return " + ".join(map(str, value))
    if name.endswith("_bytes") and isinstance(value, int) and not isinstance(value, bool):
        return units.data(value)
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}"
    return str(value)
