"""The files of encrypted inference: safetensors of bytes, whose metadata say what they hold and for what it was made.

Keys, queries, refreshes, answers and results all look alike from outside, and go over HTTP as they are. What a file
says of itself is checked before anything in it is used. A hash tells what was damaged on its way; it says nothing of
who made a file. No file takes more memory than it has bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from secureattn.errors import InputError

FORMAT = "1"
SECRET, PUBLIC, EVALUATION = "secret key", "public key", "evaluation keys"
QUERY, REFRESH, ANSWER, RESULT = "query", "refresh", "answer", "result"
SECRET_FILE, PUBLIC_FILE, EVALUATION_FILE, OFFER_FILE = "secret.key", "public.key", "evaluation.key", "plan.json"
KINDS = (SECRET, PUBLIC, EVALUATION, QUERY, REFRESH, ANSWER, RESULT)
_MADE_AGAIN = {QUERY: "encrypt it again", RESULT: "evaluate again"}
_FORMAT, _NOTE, _HASHED = "secureattn.format", "note", "sha256"
_UNKNOWN = "0" * 64
_CHUNK = 1 << 20
_HEADER_BYTES = 1 << 22
_HASH = re.compile(r"[0-9a-f]{32,64}")

Part = tuple[str, int, Callable[[], bytes]]
"""Name, bytes, and how to get them when it is their turn."""


@dataclass(frozen=True)
class Label:
    """What a file says of itself: its kind, one of KINDS, and the CKKS parameters, model, protocol, plan and keys that
    it goes with, names and hex digests.
    """

    kind: str
    parameters: str
    model: str
    protocol: str
    plan: str
    keys: str

    def check(self, made: Label, what: str) -> None:
        """InputError that says in what a file made under another label differs from what is needed."""
        again = _MADE_AGAIN.get(made.kind, "make it again for this plan")
        if made.kind != self.kind:
            raise InputError(f"{what} holds a {made.kind}, a {self.kind} is needed")
        for field in ("parameters", "model", "protocol", "plan", "keys"):
            ours, theirs = getattr(self, field), getattr(made, field)
            if ours != theirs:
                named = {"parameters": "CKKS parameters"}.get(field, field)
                raise InputError(f"{what} was made for {named} {_short(theirs)}, not {_short(ours)}; {again}")


def _short(text: str) -> str:
    """A name with the beginning of its hash."""
    return " ".join(word[:12] if _HASH.fullmatch(word) else word[:60] for word in text.split())


class Parcel:
    """A file that is open: its label, the rest of what it says (``note``), and its parts by name."""

    def __init__(self, path: Path, handle: Any, name: str) -> None:
        self.path = path
        self.name = name
        self._handle = handle
        metadata = handle.metadata() or {}
        wanted = [field.name for field in fields(Label)]
        if metadata.get(_FORMAT) != FORMAT:
            raise InputError(
                f"{name} is of format {metadata.get(_FORMAT, 'unknown')!r}, this release reads {FORMAT}; use the "
                "same release on both sides"
            )
        if not all(key in metadata for key in (*wanted, _NOTE)) or metadata["kind"] not in KINDS:
            raise InputError(f"{name} does not say what it holds; make it again")
        self.label = Label(**{key: metadata[key] for key in wanted})
        try:
            self.note = json.loads(metadata[_NOTE])
        except (ValueError, RecursionError):
            self.note = None
        if not isinstance(self.note, dict):
            raise InputError(f"{name} says nothing readable of its {self.label.kind}; make it again")
        self.names: tuple[str, ...] = tuple(handle.keys())
        said = _said(self.label, metadata[_NOTE], {part: self.size(part) for part in self.names})
        if metadata.get(_HASHED) != _hash_of(path, said):
            raise InputError(f"{name} was damaged on its way; make or send it again")

    def size(self, name: str) -> int:
        """Bytes of a part, without reading it."""
        part = self._handle.get_slice(name)
        shape = part.get_shape()
        if part.get_dtype() != "U8" or len(shape) != 1:
            raise InputError(f"part {name!r} of {self.name} does not hold bytes; make it again")
        return int(shape[0])

    def part(self, name: str) -> bytes:
        """The bytes of a part; InputError where there is none."""
        try:
            array = self._handle.get_tensor(name)
        except (SafetensorError, TypeError, AttributeError) as error:
            raise InputError(f"{self.name} has no readable part {name!r}; make it again") from error
        if array.dtype != "uint8" or array.ndim != 1:
            raise InputError(f"part {name!r} of {self.name} does not hold bytes; make it again")
        return bytes(array.data)


@contextmanager
def opened(path: Path, needed: Label | None = None, name: str = "") -> Iterator[Parcel]:
    """A file that ``write`` wrote; InputError unless it is whole and, where one is given, has the label needed.
    ``name``: what errors call it, the file's unless given.
    """
    name = name or path.name
    try:
        with path.open("rb") as file:
            head = file.read(8)
        if len(head) < 8 or int.from_bytes(head, "little") > _HEADER_BYTES:
            raise InputError(f"{name} is truncated, or not a file of this library; make or send it again")
        handle = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        if isinstance(error, OSError) and not path.is_file():
            raise InputError(f"{path} cannot be read: {error.strerror or 'no such file'}") from error
        raise InputError(f"{name} is truncated, or not a file of this library; make or send it again") from error
    with handle as inside:
        parcel = Parcel(path, inside, name)
        if needed is not None:
            needed.check(parcel.label, name)
        yield parcel


def write(path: Path, label: Label, parts: Iterable[Part], note: Mapping[str, Any], *, secret: bool = False) -> int:
    """Write a file, whole or not at all, one part in memory at a time; its bytes. A ``secret`` one is for its owner's
    eyes alone (mode 0600) and takes no other's place: InputError where one is there.
    """
    parts, noted, end = list(parts), json.dumps(dict(note)), 0
    metadata = {_FORMAT: FORMAT, **asdict(label), _NOTE: noted, _HASHED: _UNKNOWN}
    header: dict[str, Any] = {"__metadata__": metadata}
    for name, size, _ in parts:
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        handle = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if secret else 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            digest = hashlib.sha256(_said(label, noted, {name: size for name, size, _ in parts}))
            for name, size, read in parts:
                blob = read()
                if file.write(blob) != size:
                    raise ValueError(f"part {name} is not of the size announced")
                digest.update(blob)
            file.seek(8 + text.rindex(_UNKNOWN.encode()))
            file.write(digest.hexdigest().encode())
        if secret:
            os.link(draft, path)
        else:
            draft.replace(path)
    except FileExistsError:
        raise InputError(f"{path} exists and is never overwritten; choose another folder") from None
    finally:
        draft.unlink(missing_ok=True)
    return 8 + len(text) + end


def _said(label: Label, note: str, sizes: Mapping[str, int]) -> bytes:
    """All that a file says but its parts, as bytes, whatever their order in it."""
    return json.dumps([FORMAT, asdict(label), note, sorted(sizes.items())]).encode()


def _hash_of(path: Path, said: bytes) -> str:
    """Of a file's parts, in their order, and of what it says."""
    digest = hashlib.sha256(said)
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def blobs(named: Mapping[str, bytes]) -> list[Part]:
    """Parts that are in memory already."""
    return [(name, len(blob), lambda blob=blob: blob) for name, blob in named.items()]  # type: ignore[misc]
