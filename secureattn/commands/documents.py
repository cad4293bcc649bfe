"""JSON files of ``profile`` and ``compare``, read back: what they are is checked, so that what follows need not."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from secureattn.errors import InputError
from secureattn.events import PHASES
from secureattn.ledger import Ledger, from_json

SCHEMA = 1
_KEYS = {
    "profile": ("phases", "total", "events", "networks", "machine"),
    "compare": ("accuracy", "agreement", "max_abs_error", "seconds"),
}
_TEXTS = ("model", "protocol", "engine", "trust")


@dataclass(frozen=True)
class Document:
    """A file's content, ``kind`` "profile" or "compare", and where it came from, for messages."""

    source: str
    kind: str
    data: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Model and protocol."""
        return f"{self.data['model']} · {self.data['protocol']}"

    @cached_property
    def ledger(self) -> Ledger:
        """Of a profile."""
        return from_json(dict(self.data), name=self.title, engine=self.data["engine"])

    @property
    def phases(self) -> dict[str, float | None]:
        """Seconds by phase, None for what did not occur."""
        found = self.data["phases" if self.kind == "profile" else "seconds"]
        return {phase: found.get(phase) for phase in PHASES}

    @property
    def totals(self) -> dict[str, float | int | None]:
        """Seconds of the whole run and, of a profile, every count."""
        if self.kind == "profile":
            return dict(self.data["total"])
        return {"seconds": self.data["seconds"].get("total")}

    @property
    def machine(self) -> Mapping[str, Any]:
        """What is known of where it ran; comparisons of earlier versions say nothing."""
        found: Mapping[str, Any] = self.data.get("machine", {})
        return found


def read(path: Path) -> Document:
    """The document in a file; InputError in one line for a file that is none, is cut short, holds NaN or is of another
    kind or schema.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refused)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no complete JSON: {' '.join(str(error).split())}") from error
    return checked(found, str(path))


def checked(found: Any, source: str) -> Document:
    """The document that a JSON value is."""
    if not isinstance(found, dict) or "schema" not in found:
        raise InputError(f"{source} is no JSON of secureattn; write one with secureattn profile or compare --json")
    if found["schema"] != SCHEMA or isinstance(found["schema"], bool):
        raise InputError(f"{source} has schema {found['schema']!r}, this version reads {SCHEMA}; write it again")
    document = Document(source, _kind(found, source), found)
    try:
        _check_texts(found)
        _check(document)
    except (InputError, OverflowError) as wrong:
        raise InputError(f"{source} is damaged: {wrong}") from wrong
    return document


def _kind(found: Mapping[str, Any], source: str) -> str:
    """As the file says; files before they did are told by their keys."""
    there = [kind for kind, keys in _KEYS.items() if all(key in found for key in keys)]
    said = found.get("kind", there[0] if there else None)
    if said not in _KEYS:
        raise InputError(f"{source} is neither a profile nor a comparison; write one with --json of those commands")
    if said not in there:
        missing = ", ".join(key for key in _KEYS[said] if key not in found)
        raise InputError(f"{source} is damaged: {missing} is missing from a {said}")
    return str(said)


def _check(document: Document) -> None:
    data = document.data
    for key in _TEXTS:
        if not isinstance(data.get(key), str):
            raise InputError(f"{key} must be text")
    if not isinstance(data.get("samples"), int):
        raise InputError("samples must be a whole number")
    if not all(isinstance(text, str) for text in _list(data, "warnings")):
        raise InputError("warnings must be texts")
    for key in ("parameters", "machine"):
        _object(data, key)
    if document.kind == "compare":
        for key in ("accuracy", "agreement", "max_abs_error", "seconds", "perplexity", "escapes"):
            _numbers(data, key)
        for one in _object(data, "cosine").values():
            _numbers({"cosine": one}, "cosine")
        return
    _numbers(data, "phases")
    _numbers(data, "total")
    if "seconds" not in data["total"]:
        raise InputError("total.seconds is missing")
    for name, network in _object(data, "networks").items():
        _numbers(
            {name: {k: v for k, v in network.items() if k != "by_phase"} if isinstance(network, dict) else 0}, name
        )
        _numbers(network, "by_phase")
    assert document.ledger is not None


def _check_texts(found: Any) -> None:
    """No text, wherever it is, may hold what a terminal takes for orders, or half a character."""
    left = [found]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, list):
            left += one
        elif isinstance(one, str) and any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in one):
            raise InputError(f"{one[:40]!r} holds control characters")


def _object(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = data.get(key, {})
    if not isinstance(found, dict):
        raise InputError(f"{key} must be an object")
    return found


def _list(data: Mapping[str, Any], key: str) -> list[Any]:
    found = data.get(key, [])
    if not isinstance(found, list):
        raise InputError(f"{key} must be a list")
    return found


def _numbers(data: Mapping[str, Any], key: str) -> None:
    """An object of numbers and nulls."""
    for name, value in _object(data, key).items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and math.isfinite(value)):
            raise InputError(f"{key}.{name} must be a number or null")


def _refused(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no number")
