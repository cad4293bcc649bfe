"""What the benchmarks share: a part's samples with when they were taken, files, words on the way, the verdict."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def measured(name: str, part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A part's raw samples, with when and for how long they were taken, and of which revision."""
    tell(f"{name} …")
    began, start = datetime.datetime.now(datetime.timezone.utc), time.perf_counter()
    found = part()
    seconds = time.perf_counter() - start
    tell(f"{name}: {seconds:.0f} s")
    return {"commit": commit(), "began": began.isoformat(timespec="seconds"), "part_s": seconds, **found}


def commit() -> str | None:
    """The revision that is measured, where git knows."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def tell(text: str) -> None:
    """Say what is going on."""
    print(text, file=sys.stderr, flush=True)


def write(path: Path, data: Any) -> None:
    """Write JSON; NaN is refused."""
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")


def verdict(document: Mapping[str, Any]) -> int:
    """Print every check; 0 if all are met."""
    for check in document["checks"]:
        print(f"{'ok  ' if check['ok'] else 'FAIL'} {check['name']}: {check['value']} (bar {check['bar']})")
    return 0 if all(check["ok"] for check in document["checks"]) else 1
