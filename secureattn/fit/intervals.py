"""An interval and a function on it: checks, its map to [−1, 1], values, and a search for the highest of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from secureattn.errors import InputError

Array = npt.NDArray[np.float64]
Function = Callable[[Array], npt.ArrayLike]
Domain = tuple[float, float]
Parity = Literal["even", "odd"]


def check(domain: Domain, degree: int) -> None:
    a, b = domain
    if not (math.isfinite(a) and math.isfinite(b) and a < b):
        raise InputError(f"a domain needs two finite ends in ascending order, got {show(domain)}")
    if degree < 0 or degree != int(degree):
        raise InputError(f"a polynomial needs a whole degree of at least 0, got {degree}")


def check_parity(name: str, f: Function, domain: Domain, parity: Parity, gap: float = 0.0) -> None:
    """Refuse a parity that the domain does not have, or the function where ``|x| ≥ gap``."""
    if parity not in ("even", "odd"):
        raise InputError(f'{name} needs parity "even", "odd" or None, got {parity!r}')
    a, b = domain
    if a != -b:
        raise InputError(f"{name}(parity={parity!r}) needs a domain [−a, a], got {show(domain)}")
    if not 0 <= gap < b:
        raise InputError(f"{name} needs a gap from 0 to below {b:g}, got {gap:g}")
    x = gap + (b - gap) * np.sin(np.pi * np.arange(1, 102) / 202)
    values, mirrored = values_of(f, x), values_of(f, -x)
    off = np.max(np.abs(values - mirrored if parity == "even" else values + mirrored))
    if off > 1e-9 * np.max(np.abs(values)):
        raise InputError(f"{name}(parity={parity!r}) needs such a function, got one that is off by {off:.2g}")


def show(domain: Domain) -> str:
    return f"[{domain[0]:.6g}, {domain[1]:.6g}]"


def to_domain(t: Array, domain: Domain) -> Array:
    a, b = domain
    return np.clip((a + b) / 2 + (b - a) / 2 * t, a, b)


def to_unit(x: Array, domain: Domain) -> Array:
    a, b = domain
    t: Array = (2.0 * x - (a + b)) / (b - a)
    return t


def values_of(f: Function, x: Array) -> Array:
    with np.errstate(all="ignore"):
        y = np.asarray(f(x), dtype=np.float64)
    if y.shape != x.shape:
        raise InputError(f"the function must return one value for each of {x.shape} points, got shape {y.shape}")
    if not np.isfinite(y).all():
        raise InputError(f"the function is not finite at {x[~np.isfinite(y)][0]:.6g}; choose a domain where it is")
    return y


def weights_of(values: Array, x: Array, relative: bool) -> Array:
    if not relative:
        return np.ones_like(values)
    if values.min() <= 0 <= values.max():
        near = x[np.argmin(np.abs(values))]
        raise InputError(f"a relative error needs a function without zeros, got one with a zero near {near:.6g}")
    return 1.0 / np.abs(values)


def extrema_grid(n: int) -> Array:
    """``−cos(πj/n)``, exactly symmetric."""
    return np.sin(np.pi * np.arange(-n, n + 1, 2) / (2 * n))


def climb(height: Callable[[Array], Array], grid: Array, peaks: npt.NDArray[np.intp]) -> tuple[Array, Array]:
    """The highest point near each peak of a grid, by eight ever finer grids of nine points.

    Near is up to the second neighbour, as the first may be the same point again.
    """
    lower, upper = grid[np.maximum(peaks - 2, 0)], grid[np.minimum(peaks + 2, len(grid) - 1)]
    low, high = lower, upper
    rows = np.arange(len(peaks))
    for _ in range(8):
        t = np.linspace(low, high, 9, axis=1)
        heights = height(t.ravel()).reshape(t.shape)
        best = np.argmax(heights, axis=1)
        centre, step = t[rows, best], (high - low) / 8
        low, high = np.maximum(lower, centre - step), np.minimum(upper, centre + step)
    return centre, heights[rows, best]
