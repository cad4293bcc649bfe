"""What is made of the figures of a deployment: one row for each that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from checking import Check, Part, at_least, at_most


@dataclass(frozen=True)
class Bar:
    """What a figure is, and the least or the most that it may be; ``quick``: where small versions do."""

    words: str
    most: float | None = None
    least: float | None = None
    quick: float | None = None

    def check(self, name: str, value: float, *, quick: bool) -> Check:
        """The row of a value."""
        bar = self.most if self.least is None else self.least
        bar = self.quick if quick and self.quick is not None else bar
        assert bar is not None
        row = at_most if self.least is None else at_least
        return row(f"{name}: {self.words}", value, bar)


_AMISS = Bar("not refused in one line, or read as if good", most=0)
_NAMES = {
    "readers": "spoilt files over every reader",
    "uploads": "spoilt uploads over HTTP",
    "clients": "clients at once, each a process",
    "killed": "a server killed in the middle, its state kept and lost",
    "requests": "requests that the server's description allows and forbids",
    "capture": "three parties captured between network namespaces",
}
_BARS: Mapping[tuple[str, str], Bar] = {
    ("readers", "fed"): Bar("so many", least=10_000, quick=300),
    ("readers", "amiss"): _AMISS,
    ("readers", "grown_bytes"): Bar("bytes that memory grew by", most=256 << 20),
    ("uploads", "fed"): Bar("so many", least=10_000, quick=300),
    ("uploads", "amiss"): _AMISS,
    ("uploads", "grown_bytes"): Bar("bytes that the server's memory grew by", most=128 << 20),
    ("uploads", "longest_s"): Bar("seconds of the slowest answer", most=10.0),
    ("clients", "clients"): Bar("so many", least=3),
    ("clients", "largest_error"): Bar("largest error of a score; a wrong answer is off by 0.1 and more", most=2e-3),
    ("requests", "requests"): Bar("so many, none answered by 5xx", least=150),
    ("capture", "captured_bytes"): Bar("bytes searched", least=4e6),
    ("capture", "sought"): Bar("encodings of inputs, weights and scores sought, none of them there", least=1),
}


def checks(part: Part, *, quick: bool) -> list[Check]:
    """One row a figure, met or not; none for a test that the machine does not allow."""
    return list(_checks(part["tests"], quick))


def _checks(tests: Mapping[str, Part], quick: bool) -> Iterator[Check]:
    for name, of in tests.items():
        cases = [case for case in of["cases"] if case["outcome"] != "skipped"]
        if cases:
            failed = sum(case["outcome"] == "failed" for case in cases)
            yield Bar(f"cases of its test that fail, of {len(cases)}", most=0).check(_NAMES[name], failed, quick=quick)
        for case in cases:
            for figure, value in case["figures"].items():
                yield _BARS[name, figure].check(_NAMES[name], value, quick=quick)


def text(part: Part, *, quick: bool) -> str:
    """A table of the same rows."""
    rows = ["| what is asked for | measured | bar | |", "|---|---:|---:|---|"]
    for check in checks(part, quick=quick):
        met = "met" if check["ok"] else "**not met**"
        rows.append(f"| {check['name']} | {_number(check['value'])} | {_number(check['bar'])} | {met} |")
    return "\n".join(rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.2g}"
