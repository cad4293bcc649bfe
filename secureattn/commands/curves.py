"""A plot of realisations: their values over the true function, and their errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from secureattn.approx import FUNCTIONS, Realisation
from secureattn.approx.realisation import on_arrays, values
from secureattn.errors import InputError
from secureattn.ledger.figure import COLOURS, checked, save, styled

_POINTS = 2001
_BEYOND = 0.15  # of the domain's width shown on either side, where the domain ends


def write_curves(realisations: Sequence[Realisation], interval: tuple[float, float], path: Path) -> None:
    """Draw one function's realisations: values above, absolute error on a logarithmic axis below; PNG or SVG."""
    path = checked(path)
    shown = [made for made in realisations if made.function != "max"]
    if not shown:
        raise InputError("there is nothing to plot: max is a function of a row, not of one variable")
    low, high = interval
    margin = _BEYOND * (high - low)
    start = low - margin if FUNCTIONS[shown[0].function].RANGE != "positive" else max(low - margin, low / 2)
    x = np.linspace(start, high + margin, _POINTS)
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.5, 6.0), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True)
        with np.errstate(all="ignore"):
            true = on_arrays(FUNCTIONS[shown[0].function].TRUE)(x)
            above.plot(x, true, color="black", linewidth=2.5, alpha=0.35, label=shown[0].function)
            for made, colour in zip(shown, COLOURS * len(shown), strict=False):
                y = values(made, x)
                above.plot(x, y, color=colour, linewidth=1.1, label=made.label)
                below.semilogy(x, np.maximum(np.abs(y - true), 1e-16), color=colour, linewidth=1.1)
        inside = true[(x >= low) & (x <= high)]
        pad = 0.25 * float(np.ptp(inside)) or 1.0
        above.set_ylim(float(inside.min()) - pad, float(inside.max()) + pad)
        for axes in (above, below):
            axes.axvspan(low, high, color="#EEEEEE", zorder=0)
            axes.spines[["top", "right"]].set_visible(False)
        above.set_title(f"{shown[0].function} on [{low:g}, {high:g}]")
        above.legend(frameon=False, fontsize=8)
        below.set_xlabel("x")
        below.set_ylabel("absolute error")
        save(figure, path)
