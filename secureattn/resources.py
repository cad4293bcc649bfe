"""Finds models and protocols by name: shipped with the package, or beside it in a checkout; a path works as well."""

from __future__ import annotations

from pathlib import Path

from secureattn.errors import InputError

_PACKAGE = Path(__file__).parent


def _folder(kind: str) -> Path:
    inside = _PACKAGE / kind
    return inside if inside.is_dir() else _PACKAGE.parent / kind


def names(kind: str) -> list[str]:
    """Names of what is shipped: ``kind`` is "models" or "protocols"."""
    folder = _folder(kind)
    if kind == "models":
        return sorted(path.parent.name for path in folder.glob("*/config.json"))
    return sorted(path.stem for path in folder.glob("*.toml"))


def find(kind: str, name: str) -> Path:
    """The folder of a model or the file of a protocol, by name or path."""
    path = Path(name)
    if path.exists() and (path.suffix or "/" in name or path.is_absolute()):
        return path
    shipped = _folder(kind) / (name if kind == "models" else f"{name}.toml")
    if name in names(kind):
        return shipped
    if name and path.exists():
        return path
    raise InputError(f"no {kind[:-1]} is called {name!r} and no such path exists; there are {', '.join(names(kind))}")
