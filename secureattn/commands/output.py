"""Where words go: results to stdout, progress to stderr and only on a terminal, files whole or not at all."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from secureattn.errors import InputError
from secureattn.runs.result import Progress

_WIDE = 200  # columns of a table where there is no terminal to fit


def stdout(*, record: bool = False) -> Console:
    """For results; wide enough for every table off a terminal. ``record`` keeps the text, to be saved."""
    console = Console(highlight=False, record=record)
    return console if console.is_terminal else Console(highlight=False, record=record, width=_WIDE)


def warn(text: str) -> None:
    """Say it on stderr, where there is something to say."""
    if text:
        print(f"secureattn: warning: {text}", file=sys.stderr)


@contextmanager
def progress() -> Iterator[Progress]:
    """Tells what is going on, on stderr; says nothing off a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text, done, of: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda text, done, of: bar.update(task, description=text, completed=done, total=of or None)


def writable(*paths: Path | None) -> None:
    """Refuse a path that cannot be written, before any work is done for it."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file")
        if not path.resolve().parent.is_dir():
            raise InputError(f"{path} cannot be written: the folder {path.parent} does not exist")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when all went well."""
    with tempfile.TemporaryDirectory(prefix=".secureattn-", dir=path.resolve().parent) as folder:
        draft = Path(folder) / path.name
        yield draft
        draft.replace(path)


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file; NaN is refused."""
    with whole(path) as draft:
        draft.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n")
