"""Arguments of the commands that look back at runs; light to import, as every command line is read through it."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from secureattn.commands import model_arguments
from secureattn.commands.arguments import positive

REPORT = "one page of HTML: accuracy, cost by region and operation, networks, machine, with nothing to load"
DIFF = "what differs between two JSON files of profile, or two of compare: seconds, counts, where"
TRACE = "one time line of those that the parties of one run wrote"


def limit(text: str) -> tuple[str, float]:
    """``NAME=RATIO``, a finite ratio of at least 0."""
    name, found, ratio = text.rpartition("=")
    try:
        value = float(ratio)
    except ValueError:
        value = math.nan
    if not found or not name or not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=RATIO, such as bytes_sent=1.05")
    return name, value


def add(report: argparse.ArgumentParser, diff: argparse.ArgumentParser, trace: argparse.ArgumentParser) -> None:
    """The arguments of ``report``, ``diff`` and ``trace``."""
    model_arguments.samples(report)
    report.add_argument(
        "--from",
        dest="files",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="a JSON file of profile or compare to report on, in place of a run; may be given once for each",
    )
    report.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="where the page goes (.html)")
    report.add_argument("--top", type=positive, default=20, metavar="N", help="operations to list (default 20)")
    model_arguments.networks(report)
    report.set_defaults(refuse=report.error)
    for name in ("A", "B"):
        diff.add_argument(name.lower(), type=Path, metavar=name, help="a JSON file of profile or compare")
    diff.add_argument("--top", type=positive, default=15, metavar="N", help="rows of each table (default 15)")
    diff.add_argument("--plot", type=Path, metavar="FILE", help="draw profiles A and B side by side (.png or .svg)")
    diff.add_argument(
        "--fail-above",
        type=limit,
        action="append",
        default=[],
        metavar="NAME=RATIO",
        help="exit with 1 where B/A of a total, count or phase is above, such as bytes_sent=1.05; may be repeated",
    )
    trace.add_argument("parts", type=Path, nargs="+", metavar="PART", help="a file of secureattn party --trace")
    trace.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="where the time line goes")
