"""Who may use a server: clients by name, each with a token, of which only a hash is kept."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path

from secureattn.errors import InputError

ANYONE = "anyone"
"""What a client is called where there are no tokens."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN_BYTES = 32


class Tokens:
    """Names by hash of token; none: whoever calls is ANYONE."""

    def __init__(self, names: dict[str, str] | None = None) -> None:
        self._names = names

    @classmethod
    def load(cls, path: Path) -> Tokens:
        """From a file with a name and a hash a line; InputError where it is no such file."""
        names = {}
        for number, line in enumerate(_lines(path), 1):
            name, _, digest = line.partition(" ")
            if not _NAME.fullmatch(name) or not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise InputError(f"line {number} of {path} is no name and hash; secureattn token NAME writes them")
            names[digest] = name
        if not names:
            raise InputError(f"{path} names no client; add one: secureattn token NAME --tokens-file {path}")
        return cls(names)

    def client(self, authorization: str | None) -> str | None:
        """Who sends this header; None for a stranger. Hashes of random tokens are compared, whose timing tells nothing
        of a token.
        """
        if self._names is None:
            return ANYONE
        scheme, _, token = (authorization or "").partition(" ")
        return self._names.get(_hash(token.strip())) if scheme.lower() == "bearer" else None

    @property
    def required(self) -> bool:
        """Whether callers need one."""
        return self._names is not None


def add(path: Path, name: str) -> str:
    """A new token for a client, whose hash joins the file (mode 0600, made if missing); it is shown this once."""
    if not _NAME.fullmatch(name) or name == ANYONE:
        raise InputError(f"{name!r} is no name of a client: letters, digits, dots, dashes, underscores, 64 at most")
    lines = _lines(path) if path.exists() else []
    if any(line.partition(" ")[0] == name for line in lines):
        raise InputError(f"{name} has a token in {path}; take its line out to make another")
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    handle = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "a", encoding="utf-8") as file:
        file.write(f"{name} {_hash(token)}\n")
    return token


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _lines(path: Path) -> list[str]:
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"tokens {path} cannot be read: {error}") from error
    return [line for line in found if line and not line.startswith("#")]
