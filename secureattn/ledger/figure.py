"""How every figure looks and how it is written; matplotlib is loaded here, when one is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secureattn.errors import EngineError, InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
"""Formats a figure is written in."""

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
"""Colours that the colour-blind can tell apart, from Okabe and Ito (2008)."""

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "svg.fonttype": "none",
    "svg.hashsalt": "secureattn",
}


def checked(path: str | Path) -> Path:
    """The path, if its suffix is a format; else an InputError."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"a plot is written as .png or .svg, {path.name} is neither; name it {path.stem}.png")
    return path


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib, loaded, in the house style; EngineError where it is missing."""
    try:
        import matplotlib
        import matplotlib.backends.backend_agg
        import matplotlib.figure
    except ImportError as missing:
        raise EngineError("a plot needs matplotlib, which is missing; pip install 'secureattn[plot]'") from missing
    with matplotlib.rc_context(_STYLE):
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a figure, the same bytes every time for the same data."""
    dated: dict[str, Any] = {"Date": None} if path.suffix.lower() == ".svg" else {}
    try:
        figure.savefig(path, dpi=200, metadata=dated, bbox_inches="tight", pad_inches=0.2, facecolor="white")
    except OSError as error:
        raise InputError(f"the plot cannot be written to {path}: {error.strerror or error}") from error
