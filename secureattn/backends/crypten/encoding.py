"""Numbers as ring elements: fixed point, and how many binary places a public constant needs."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.errors import InputError

Real = npt.NDArray[np.float64]
Ring = npt.NDArray[np.int64]

MAX_BITS = 62
MAX_PLACES = 46


def as_real(values: Any, what: str) -> Real:
    """Values as float64, refused where not finite."""
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise InputError(f"{what} holds NaN or infinity; only finite numbers can be shared or computed with")
    return array


def encode(values: Real, places: int, what: str) -> Ring:
    """``round(x·2^places)``. **Domain** |x| < 2^(62-places), refused beyond. **Error** 2^-(places+1)."""
    limit = 2.0 ** (MAX_BITS - places)
    largest = float(max(values.max(initial=0.0), -values.min(initial=0.0)))
    if largest >= limit:
        raise InputError(
            f"{what} reaches {largest:.3g}, but {places} fractional bits leave room below {limit:.3g}; scale it down"
        )
    scaled: Real = np.asarray(np.ldexp(values, places))
    np.rint(scaled, out=scaled)
    return scaled.astype(np.int64)


def wrapped(value: float, places: int) -> Ring:
    """``round(x·2^places)`` as an element of the ring, whatever its size: for an addend that others cancel."""
    whole = round(Fraction(value) * (1 << places))
    return np.array((whole + (1 << 63)) % (1 << 64) - (1 << 63), dtype=np.int64)


def decode(values: Ring, places: int) -> Real:
    """The numbers that ``encode`` made, as float64 (exact below 2^53)."""
    return np.ldexp(values.astype(np.float64), -places)


def places_needed(values: Real, fractional_bits: int) -> int:
    """Binary places for a public factor: as few as hold it exactly, else ``fractional_bits`` significant ones.

    Formula: none for integers, k for multiples of 2^-k, else fractional_bits + leading zeros of the largest
    magnitude, at most 46: so 1/768 keeps 16 significant bits and a product needs no more room than one with 1.
    """
    largest = float(np.abs(values).max(initial=0.0))
    leading = max(0, -math.frexp(largest)[1]) if largest else 0
    places = min(fractional_bits + leading, MAX_PLACES)
    scaled = np.asarray(np.ldexp(values, places))
    whole = np.rint(scaled)
    if largest == 0.0:
        return 0
    if not np.array_equal(scaled, whole) or largest * 2.0**places >= 2.0**MAX_BITS:
        return places if not np.array_equal(values, np.rint(values)) else 0
    bits = int(np.bitwise_or.reduce(np.abs(whole).astype(np.int64), axis=None))
    return max(0, places - ((bits & -bits).bit_length() - 1))


def bits(size: float) -> int:
    """The least k, negative for small ones, with ``size ≤ 2^k``."""
    mantissa, exponent = math.frexp(size)
    return exponent - 1 if mantissa == 0.5 else exponent


def size(values: Real) -> int:
    """The least k with all magnitudes at most 2^k; 0 where all are 0."""
    largest = float(np.abs(values).max(initial=0.0))
    return bits(largest) if largest else 0
