"""Functions of one variable in one round: a Fourier series of a shared value under a dealt mask."""

from __future__ import annotations

import torch

from secureattn.backends.crypten.material import Kind, Request, series_argument
from secureattn.backends.crypten.runtime import Runtime
from secureattn.series import FourierSeries

_MOST_DEALT = 1 << 24  # elements of a series asked for at once: what the dealer holds of it


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
