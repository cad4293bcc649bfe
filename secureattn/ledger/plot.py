"""The latency breakdown as a figure: stacked bars of the online phase by part of the network, of all phases, and of
what every role was busy with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secureattn.errors import InputError
from secureattn.events import PHASES
from secureattn.ledger import units
from secureattn.ledger.figure import checked, save, styled
from secureattn.ledger.ledger import Ledger
from secureattn.ledger.machine import in_words, machine
from secureattn.ledger.roles import WAITING, Busy, busy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that the colour-blind can tell apart: parts from Okabe and Ito (2008), phases from Paul Tol's "light" scheme.
_ATTENTION, _FFN = "#0072B2", "#E69F00"
_PARTS = {"embed": "#009E73", "head": "#CC79A7", "other": "#BBBBBB"}
_MORE = ("#56B4E9", "#D55E00", "#F0E442")
PHASE_COLOURS = dict(
    zip(PHASES, ("#DDDDDD", "#EEDD88", "#99DDFF", "#AAAA00", "#77AADD", "#EE8866", "#44BB99"), strict=True)
)
_LAYERS_APART = 3
_COMPARABLE = 8.0
_BAR_IN, _LEGEND_ROW_IN = 0.62, 0.19
_WAITS = "#F4F4F4"
Bar = dict[str, float]
Panel = tuple[str, list[str], list[Bar], dict[str, str]]
"""Title, a label and a bar each, and the colours of their parts."""


def write_plot(
    ledgers: Sequence[Ledger],
    path: str | Path,
    *,
    described: dict[str, Any] | str | None = None,
    marks: Sequence[str] = (),
) -> None:
    """Draw one bar a ledger in two panels, online time by part and all phases, and one a role in a third where there
    are several; PNG or SVG by suffix.

    Bars share an axis in seconds where the longest is at most 8 times the shortest; else each fills the width and the
    axis is in per cent. More than 3 layers are summed to one attention and one ffn. ``described`` is the machine the
    runs were measured on, in words or as of ``machine()``, this one unless given. ``marks`` tell ledgers of the same
    name apart.
    """
    path = checked(path)
    if not ledgers:
        raise InputError("there is no ledger to draw; give at least one")
    with styled():
        where = described if isinstance(described, str) else in_words(described or machine())
        save(_figure(ledgers, where, marks or [""] * len(ledgers)), path)


# ---- what the bars hold -------------------------------------------------------------------------------------


def part(region: str, *, layers_apart: bool = True) -> str:
    """The part of the network a region belongs to: ``embed``, ``layer.0/attention``, ``head``; "other" outside any."""
    first, _, rest = region.partition("/")
    if not first.startswith("layer."):
        return first or "other"
    inner = rest.partition("/")[0]
    if not inner:
        return "other"
    return f"{first}/{inner}" if layers_apart else inner


def parts(ledger: Ledger, *, layers_apart: bool = True) -> Bar:
    """Online seconds of each part, in the order they ran, "other" last."""
    found: Bar = {}
    for row in ledger.rows:
        if row.phase == "online":
            name = part(row.region, layers_apart=layers_apart)
            found[name] = found.get(name, 0.0) + row.seconds_self
    other = found.pop("other", 0.0)
    return {**found, "other": other} if other > 0 else found


def _layers(ledger: Ledger) -> int:
    return len({row.region.split("/")[0] for row in ledger.rows if row.region.startswith("layer.")})


def part_colours(names: Iterable[str]) -> dict[str, str]:
    """Blue for attention, orange for ffn, lighter from layer to layer; fixed colours for the rest."""
    seen = {"attention": 0, "ffn": 0}
    colours: dict[str, str] = {}
    more = iter(_MORE * 8)
    for name in names:
        kind = name.rpartition("/")[2]
        if kind in seen:
            colours[name] = _lighter(_ATTENTION if kind == "attention" else _FFN, 0.33 * seen[kind])
            seen[kind] += 1
        else:
            colours[name] = _PARTS.get(name) or next(more, _PARTS["other"])
    return colours


def role_bar(one: Busy) -> Bar:
    """Seconds of one role at work, by phase, and waiting."""
    return {**one.phases, **({WAITING: one.waiting_s} if one.waiting_s > 0 else {})}


def role_colours(bars: Sequence[Bar]) -> dict[str, str]:
    """Colours of what occurs, waiting last."""
    return {
        name: colour for name, colour in {**PHASE_COLOURS, WAITING: _WAITS}.items() if any(name in bar for bar in bars)
    }


# ---- drawing ------------------------------------------------------------------------------------------------


def _figure(ledgers: Sequence[Ledger], where: str, marks: Sequence[str]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    apart = max(map(_layers, ledgers)) <= _LAYERS_APART
    online = [parts(ledger, layers_apart=apart) for ledger in ledgers]
    phases = [ledger.phases for ledger in ledgers]
    names = list(dict.fromkeys(name for bar in online for name in bar))
    names = [*(name for name in names if name not in ("head", "other")), *(n for n in ("head", "other") if n in names)]
    occurred = {phase: colour for phase, colour in PHASE_COLOURS.items() if any(phase in bar for bar in phases)}
    labels = [
        f"{_marked(mark, ledger.name)}\n{ledger.engine}, {ledger.how}"
        for mark, ledger in zip(marks, ledgers, strict=True)
    ]
    panels: list[Panel] = [
        ("Online phase, by part of the network", labels, online, part_colours(names)),
        ("Whole run, by phase", labels, phases, occurred),
    ]
    names_of, of_roles = _roles(ledgers, marks)
    if len(of_roles) > len(ledgers):
        panels.append(("Every role, at work by phase and waiting", names_of, of_roles, role_colours(of_roles)))
    heights = [max(_BAR_IN * len(panel[1]), _LEGEND_ROW_IN * len(panel[3])) for panel in panels]
    height = sum(heights) + len(panels) + 0.1
    figure = Figure(figsize=(9.6, height))
    FigureCanvasAgg(figure)
    y = height
    for panel, tall in zip(panels, heights, strict=True):
        y -= tall + (0.35 if y == height else 1.0)
        _panel(figure.add_axes((0.2, y / height, 0.58, tall / height)), *panel)
    figure.text(0.01, 0.0, _caption(ledgers, where), fontsize=8.5, color="#555555", va="bottom")
    return figure


def _roles(ledgers: Sequence[Ledger], marks: Sequence[str]) -> tuple[list[str], list[Bar]]:
    """A label and a bar for every role of every ledger."""
    labels, bars = [], []
    for mark, ledger in zip(marks, ledgers, strict=True):
        for one in busy(ledger):
            labels.append(f"{_marked(mark, one.name)}\n{ledger.engine}")
            bars.append(role_bar(one))
    return labels, bars


def _marked(mark: str, name: str) -> str:
    return f"{mark}: {name}" if mark else name


def _caption(ledgers: Sequence[Ledger], where: str) -> str:
    hows = {ledger.measured for ledger in ledgers}
    if hows == {True}:
        return f"Measured on {where}."
    return f"Modelled, not measured, for {where}." if hows == {False} else f"Measured or modelled as said, on {where}."


def _panel(axes: Axes, title: str, labels: Sequence[str], bars: Sequence[Bar], colours: dict[str, str]) -> None:
    totals = [sum(bar.values()) for bar in bars]
    apart = max(totals) > _COMPARABLE * min(totals)
    width = 100.0 if apart else max(totals) or 1.0
    for y, (bar, total) in enumerate(zip(bars, totals, strict=True)):
        scale = 100 / total if apart and total else 1.0
        _bar(axes, y, bar, colours, scale, width)
        axes.text(total * scale + 0.012 * width, y, units.seconds(total), va="center", ha="left", fontweight="bold")
    handles = [_patch(colour) for colour in colours.values()]
    axes.legend(handles, list(colours), loc="center left", bbox_to_anchor=(1.13, 0.5), frameon=False, handlelength=1.1)
    axes.set_title(title, pad=8)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(0, width)
    axes.set_xlabel("share of its own total, %" if apart else "seconds")
    axes.tick_params(left=False, color="#999999")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#999999")


def _bar(axes: Axes, y: int, bar: Bar, colours: dict[str, str], scale: float, width: float) -> None:
    """One stacked bar; a segment wide enough says its seconds."""
    left = 0.0
    for name, colour in colours.items():
        length = bar.get(name, 0.0) * scale
        if length <= 0:
            continue
        axes.barh(y, length, left=left, height=0.62, color=colour, edgecolor="white", linewidth=0.8)
        if length > 0.085 * width:
            axes.text(left + length / 2, y, units.seconds(bar[name]), ha="center", va="center", color=ink(colour))
        left += length


def _patch(colour: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour)


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def ink(colour: str) -> str:
    red, green, blue = _rgb(colour)
    return "#111111" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _lighter(colour: str, by: float) -> str:
    return "#" + "".join(f"{round(255 * (channel + (1 - channel) * min(by, 0.8))):02X}" for channel in _rgb(colour))
