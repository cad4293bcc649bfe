"""Stacked bars as numbers for the report's page: where each segment lies, its colour, and the same in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from secureattn.ledger import Ledger, busy, units
from secureattn.ledger.plot import PHASE_COLOURS, Bar, ink, part_colours, parts, role_bar, role_colours
from secureattn.ledger.roles import WAITING

WIDTH, THICK, APART = 900, 26, 58
_ROOM = 58
"""Width that a figure within a segment takes, all in the drawing's units."""

_LAYERS_APART = 3


@dataclass(frozen=True)
class Segment:
    """A part of a bar."""

    name: str
    figure: str
    colour: str
    x: float
    width: float

    @property
    def middle(self) -> float:
        """Where its figure stands."""
        return round(self.x + self.width / 2, 2)

    @property
    def room(self) -> bool:
        """Whether its figure fits."""
        return self.width >= _ROOM

    @property
    def waits(self) -> bool:
        """Whether it is no work: drawn in the page's own grey, light or dark."""
        return self.name == WAITING

    @property
    def ink(self) -> str:
        """A colour that can be read on it."""
        return ink(self.colour)


@dataclass(frozen=True)
class Stack:
    """A bar: its label's baseline, its total and segments."""

    label: str
    y: int
    total: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Entry:
    """A line of the legend."""

    name: str
    colour: str

    @property
    def waits(self) -> bool:
        """As a segment's."""
        return self.name == WAITING


@dataclass(frozen=True)
class Chart:
    """Bars over one axis."""

    title: str
    bars: tuple[Stack, ...]
    legend: tuple[Entry, ...]
    width: int = WIDTH
    thick: int = THICK

    @property
    def height(self) -> int:
        """Of all bars."""
        return APART * len(self.bars) - (APART - THICK - 24)

    @property
    def description(self) -> str:
        """Every figure in words."""
        said = (
            f"{bar.label}: {', '.join(f'{one.name} {one.figure}' for one in bar.segments)}, {bar.total} in all"
            for bar in self.bars
        )
        return "; ".join(said)


def charts(ledger: Ledger) -> list[Chart]:
    """The whole run by phase, the online phase by part of the network, and every role, where there are several."""
    layers = {row.region.split("/")[0] for row in ledger.rows if row.region.startswith("layer.")}
    by_part = parts(ledger, layers_apart=len(layers) <= _LAYERS_APART)
    names = [
        *(name for name in by_part if name not in ("head", "other")),
        *(n for n in ("head", "other") if n in by_part),
    ]
    found = [
        chart("Whole run, by phase", {"all phases": ledger.phases}, PHASE_COLOURS),
        chart("Online phase, by part of the network", {"online": by_part}, part_colours(names)),
    ]
    roles = {one.name: role_bar(one) for one in busy(ledger)}
    if len(roles) > 1:
        found.append(chart("Every role, at work by phase and waiting", roles, role_colours(list(roles.values()))))
    return [one for one in found if any(bar.segments for bar in one.bars)]


def chart(title: str, bars: Mapping[str, Bar], colours: Mapping[str, str]) -> Chart:
    """Bars over the axis that the longest fills; ``colours`` give the order of segments."""
    longest = max((sum(bar.values()) for bar in bars.values()), default=0.0)
    stacks = tuple(
        Stack(label, 16 + APART * number, units.seconds(sum(bar.values())), _segments(bar, colours, longest))
        for number, (label, bar) in enumerate(bars.items())
    )
    shown = {one.name for stack in stacks for one in stack.segments}
    return Chart(title, stacks, tuple(Entry(name, colour) for name, colour in colours.items() if name in shown))


def _segments(bar: Bar, colours: Mapping[str, str], longest: float) -> tuple[Segment, ...]:
    found: list[Segment] = []
    at = 0.0
    for name, colour in colours.items():
        wide = WIDTH * bar.get(name, 0.0) / longest if longest > 0 else 0.0
        if wide > 0:
            found.append(Segment(name, units.seconds(bar[name]), colour, round(at, 2), round(wide, 2)))
            at += wide
    return tuple(found)
