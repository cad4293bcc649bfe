"""Functions of one variable in one round: a Fourier series of a shared value under a dealt mask."""

from __future__ import annotations

import math

import numpy as np
import torch

from secureattn.backends.crypten import encoding
from secureattn.backends.crypten.material import Kind, Request, series_argument
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.runtime import Runtime
from secureattn.errors import InputError
from secureattn.series import FourierSeries

_MOST_DEALT = 1 << 24  # elements of a series asked for at once: what the dealer holds of it
_ROUGH_UNITS = 3
_SPARE_BITS = 6


def harmonics_of(
    runtime: Runtime,
    share: torch.Tensor,
    series: FourierSeries,
    *,
    bits: int,
    dropped: int,
    factor_places: int,
    dealt_places: int,
) -> torch.Tensor:
    """The sum of the harmonics at angle ``2πx/2^bits``, with ``factor_places + dealt_places`` binary places, from x's
    bits above the lowest ``dropped``.

    Formula: each party drops the low bits of its share modulo 2^bits; what is left adds up, modulo 2^(bits-dropped), to
    ⌊x/2^dropped⌋ or up to P-1 units below, for a multiple of 2^bits stays one of 2^(bits-dropped). A period forgives
    the wrap that makes local truncation of a number fail. Then open X = x + δ modulo the period, and turn the dealt
    cosines and sines of δ back by it (``turned_back``).
    Hiding: party i sends (x_i + δ_i) modulo the period and nothing else of x. Its δ_i is drawn from its own key and
    serves once; what is dealt tells others nothing of it, for any P-1 shares of a dealt value are uniform whatever δ
    is. So to all other parties together what i sends is uniform whatever x is, and so is a sum it is part of.
    Cost: one round opening |x| elements of 4 bytes up to 32 bits, else of 8; 16·K·|x| dealer bytes and 2·K·|x|
    ring multiply-accumulates for K harmonics.
    Source: SecFormer (Luo et al., ACL Findings 2024) and Zheng et al., ACSAC 2023, for sines of a masked angle.
    """
    flat, kept = share.reshape(-1), bits - dropped
    argument, low = series_argument(kept, dealt_places), (1 << kept) - 1
    parts = torch.split(flat, max(1, _MOST_DEALT // (2 * series.harmonics)))
    requests = [Request(Kind.SERIES, (part.numel(),), (2, series.harmonics), argument) for part in parts]
    masks, dealt = zip(*map(runtime.deal, requests), strict=True)
    masked = ((flat >> dropped) + torch.cat(masks)) & low  # bits above the period vanish with it
    opened = runtime.exchange(masked.to(torch.int32) if kept <= 32 else masked).to(torch.int64) & low
    made = [
        runtime.turned_back(x, values, series, kept, factor_places)
        for x, values in zip(torch.split(opened, [part.numel() for part in parts]), dealt, strict=True)
    ]
    return torch.cat(made).reshape(share.shape)


def places_of(f: FourierSeries, places: int, parameters: MpcParameters) -> tuple[int, int, int, int]:
    """Places of the public factors and of the dealt values of a series whose argument has so many ``places``, the size
    of its values, and what is ``fine`` (as of ``MpcTensor``).

    Rounding them errs by √((K·4^-factor + Σc²·4^-dealt)/12), typically and zero on average; least, for a sum of
    places, where both terms are equal. Three units of ``fractional_bits`` are allowed where then the result has as
    many places as a product, which a linear layer takes without truncation; else there are places enough for half
    a unit, as far as the ring has room. The smaller the values, the smaller a unit.
    """
    full = parameters.fractional_bits
    values = np.abs(f(np.linspace(*f.domain, 257)))
    size = encoding.bits(float(values.max()) + 2.0**-full)  # rounded up, values still lie below 2^size
    small = max(0, -(encoding.bits(max(float(values.min()), 2.0**-full)) if f.relative else size))
    spread = max(math.fsum(c * c for c in (*f.cosines, *f.sines)), 4.0**-full)

    def split(total: int) -> tuple[int, int, float]:
        factor = round((total + math.log2(f.harmonics / spread) / 2) / 2)
        dealt = total - factor
        return factor, dealt, math.sqrt((f.harmonics * 4.0**-factor + spread * 4.0**-dealt) / 12)

    total, unit = 2 * full + small, 2.0 ** -(full + small)
    if parameters.truncation == "exact":
        room = encoding.MAX_BITS - max(size, 1)
        if f.linear:
            total = min(max(total, places + full + _SPARE_BITS), room)
        elif split(total)[2] > _ROUGH_UNITS * unit:
            total = next((t for t in range(total, room) if split(t)[2] <= unit / 2), room)
    factor, dealt, lost = split(total)
    if lost > 2.0 ** -(full // 2) or min(factor, dealt) < 1:
        raise InputError(
            f"a series of {f.harmonics} harmonics whose coefficients add up to {f.weight:.3g} loses {lost:.2g} to "
            f"rounding at {full} fractional bits of a 64-bit ring; fit it with a smaller weight"
        )
    return factor, dealt, size, small if f.relative else 0
