"""Cosines and sines of ring elements read as angles, and a Fourier series from shares of those of a mask.

All parties must multiply their shares by the same public factors, to the last bit: a factor that is one unit off at
one party adds a whole random share. So angles come from IEEE operations alone, which every machine rounds alike; the
cosines of mathematical libraries differ.
"""

from __future__ import annotations

import functools
import math

import torch

from secureattn.backends.crypten.ring import blocks
from secureattn.series import FourierSeries, rotations

_BLOCK = 1 << 15  # values at a time: what a harmonic needs stays in the second-level cache
_LEVEL_BITS = 11

Angles = tuple[torch.Tensor, torch.Tensor]


def of_mask(mask: torch.Tensor, bits: int, harmonics: int, places: int) -> torch.Tensor:
    """``[2,K,n]``: cos and sin of ``2πk·δ/2^bits`` for a mask ``[n]``, k = 1 … K, in fixed point.

    Error: half a unit in the last of ``places``, and about k·2^-52.
    """
    values = torch.empty((2, harmonics, *mask.shape), dtype=torch.int64)
    for block in blocks(mask, _BLOCK):
        for k, pair in enumerate(rotations(*angles(mask[block], bits), harmonics)):
            for values_of, value in zip(values, pair, strict=True):
                values_of[k, block] = _rounded(value * 2.0**places)
    return values


def turned_back(
    opened: torch.Tensor, dealt: torch.Tensor, series: FourierSeries, bits: int, places: int
) -> torch.Tensor:
    """A share of the harmonics' sum at ``X − δ``, from X ``[n]`` in the clear and this party's share of ``dealt``.

    Formula: with θ = 2πX/2^bits and φ = 2πδ/2^bits, ``a·cos k(θ−φ) + b·sin k(θ−φ) = (a·cos kθ + b·sin kθ)·cos kφ +
    (a·sin kθ − b·cos kθ)·sin kφ``; the factors in brackets are public and have ``places`` binary places. Cosines alone
    need the dealt sines too. Cost: no message, 2·K·n ring multiply-accumulates.
    """
    total, scaled = torch.zeros_like(opened), series.scaled(2.0**places)
    for block in blocks(opened, _BLOCK):
        turning = rotations(*angles(opened[block], bits), series.harmonics)
        for k, ((a, b), (c, s)) in enumerate(zip(scaled.pairs, turning, strict=True)):
            if a or b:
                cosine = a * c + b * s if b else a * c
                sine = a * s - b * c if b else a * s
                total[block].addcmul_(_rounded(cosine), dealt[0, k, block])
                total[block].addcmul_(_rounded(sine), dealt[1, k, block])
    return total


def angles(x: torch.Tensor, bits: int) -> Angles:
    """``cos`` and ``sin`` of ``2πx/2^bits`` in float64, from the lowest ``bits`` bits; the same on every machine.

    Formula: one entry of a table for the lowest 11 bits, turned on by the angle of the rest. Error: a few units in
    the last place.
    """
    width = min(_LEVEL_BITS, bits)
    index = x & ((1 << width) - 1)
    c, s = (table.to(x.device)[index] for table in _table(bits, width))
    if width == bits:
        return c, s
    cosine, sine = angles(x >> width, bits - width)
    return c * cosine - s * sine, s * cosine + c * sine


@functools.lru_cache(maxsize=64)
def _table(end: int, width: int) -> Angles:
    """``cos`` and ``sin`` of ``2πi/2^end`` for i < 2^width."""
    c, s = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for bit in range(width):
        cosine, sine = _root(end - bit)
        c, s = torch.cat([c, c * cosine - s * sine]), torch.cat([s, s * cosine + c * sine])
    return c, s


@functools.lru_cache(maxsize=64)
def _root(n: int) -> tuple[float, float]:
    """``cos`` and ``sin`` of ``2π/2^n``, n ≥ 1, by half angles."""
    if n <= 2:
        return (-1.0, 0.0) if n == 1 else (0.0, 1.0)
    whole, sine = _root(n - 1)
    cosine = math.sqrt((1.0 + whole) / 2.0)
    return cosine, sine / (2.0 * cosine)


def _rounded(value: torch.Tensor) -> torch.Tensor:
    return value.round_().to(torch.int64)
