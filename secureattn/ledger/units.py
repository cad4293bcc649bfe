"""Figures as people read them: seconds, bytes and counts with units; ``--`` for what is unknown, 0 for none."""

from __future__ import annotations

import math

UNKNOWN = "--"


def seconds(value: float | None) -> str:
    """Three digits in µs, ms or s."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if abs(value) < 0.5e-9:
        return "0"
    for unit, size in (("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)):
        if abs(value) < 999.5 * size or unit == "s":
            return f"{_three_digits(value / size)} {unit}"
    raise AssertionError


def data(value: int | None) -> str:
    """Three digits in B, KiB, MiB, GiB or TiB."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    scaled = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(scaled) < 999.5:
            return f"{value} B" if unit == "B" else f"{_three_digits(scaled)} {unit}"
        scaled /= 1024
    return f"{_three_digits(scaled)} TiB"


def rate(bits_per_second: float) -> str:
    """Three digits in bit/s, kbit/s, Mbit/s or Gbit/s."""
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits_per_second >= size:
            return f"{bits_per_second / size:.3g} {unit}"
    return f"{bits_per_second:.3g} bit/s"


def number(value: int | None) -> str:
    """Thousands apart."""
    return UNKNOWN if value is None else f"{value:,}"


def share(part: float | None, whole: float) -> str:
    """Per cent with one decimal."""
    return UNKNOWN if part is None or whole <= 0 else f"{100 * part / whole:.1f} %"


def _three_digits(value: float) -> str:
    size = abs(value)
    if size >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"
