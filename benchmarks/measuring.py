"""What the benchmarks share: a part's samples with when they were taken, files, words on the way, the verdict."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Setting:
    """What every part is told: where it may keep files, whether small versions will do."""

    folder: Path
    quick: bool

    @property
    def turns(self) -> int:
        """Samples of a run, in turn with those of its peers."""
        return 1 if self.quick else 3


Parts = Mapping[str, Callable[[Setting], dict[str, Any]]]


def run_all(name: str, about: str | None, parts: Parts, report: Any, *, slow: Parts | None = None) -> int:
    """A benchmark's command line: measure what ``out/name`` lacks, then write tables and JSON as its report says by
    ``document`` and ``text``; 1 if a check fails. Parts that are ``slow`` are measured only by name. A full run takes
    those that it is not asked for, and has not kept, as they were last published.
    """
    everything = {**parts, **(slow or {})}
    options = _options(about, everything)
    asked = {part: everything[part] for part in options.only or parts}
    gathered(name, asked, quick=options.quick, fresh=options.fresh)
    folder = _folder(name, quick=options.quick)
    there = {} if options.quick else published(name)
    there |= {part: json.loads(kept.read_text()) for part in everything if (kept := folder / f"{part}.json").exists()}
    there = {part: there[part] for part in everything if part in there}
    document = report.document(there, quick=options.quick)
    if not options.quick and there.keys() >= parts.keys():
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(report.text(document))
        write(RESULTS / f"{name}.json", document)
    if options.json:
        write(options.json, document)
    print(report.text(document))
    return verdict(document)


def gathered(name: str, parts: Parts, *, quick: bool, fresh: bool = False) -> dict[str, Any]:
    """What parts of a benchmark measured, now unless ``out/name`` has it already."""
    folder = _folder(name, quick=quick)
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for part, of in parts.items():
        kept = folder / f"{part}.json"
        if fresh or not kept.exists():
            write(kept, measured(part, lambda of=of: of(Setting(folder, quick))))  # type: ignore[misc]
        found[part] = json.loads(kept.read_text())
    return found


def _folder(name: str, *, quick: bool) -> Path:
    return Path("out") / name / ("quick" if quick else "full")


def published(name: str) -> dict[str, Any]:
    """The parts in ``benchmarks/results``, each with the machine it was measured on; none before there is a file."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return {}
    document = json.loads(path.read_text())
    return {part: {"machine": document["machine"], **found} for part, found in document["parts"].items()}


def _options(about: str | None, parts: Mapping[str, Any]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small versions of all parts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here too")
    parser.add_argument("--only", nargs="+", choices=parts, metavar="PART", help=f"of {', '.join(parts)}")
    parser.add_argument("--fresh", action="store_true", help="measure again what is kept")
    return parser.parse_args()


def measured(name: str, part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A part's raw samples, with when, for how long, of which revision and on which machine they were taken, and the
    load before.
    """
    from secureattn.ledger.machine import machine

    tell(f"{name} …")
    load = os.getloadavg()[0]
    began, start = datetime.datetime.now(datetime.timezone.utc), time.perf_counter()
    found = part()
    seconds = time.perf_counter() - start
    tell(f"{name}: {seconds:.0f} s")
    about = {"commit": commit(), "machine": machine(), "began": began.isoformat(timespec="seconds")}
    return {**about, "part_s": seconds, "load_before": load, **found}


def commit() -> str | None:
    """The revision that is measured, where git knows."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def measured_on(document: Mapping[str, Any]) -> str:
    """The machine, for the notes under a table; where parts differ in it or in their revision, which are of what."""
    from secureattn.ledger.machine import in_words

    found: dict[str, dict[str, list[str]]] = {}
    for name, part in document["parts"].items():
        revisions = found.setdefault(in_words(part.get("machine", document["machine"])), {})
        revisions.setdefault(part.get("commit") or "an unknown revision", []).append(name)
    if len(found) == 1 and len(*found.values()) == 1:
        return next(iter(found))
    said = {where: "; ".join(f"{', '.join(of)} at {at}" for at, of in here.items()) for where, here in found.items()}
    return " and on ".join(f"{where} ({which})" for where, which in said.items())


def loads(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """How busy the machine was before each part, for the notes under a table."""
    found = [part["load_before"] for part in parts.values()]
    return f"its load was {min(found):.1f} to {max(found):.1f} before each part"


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
