"""Softmax as models define it, shifted by its mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from secureattn.approx.attention.base import Attention, Call, RowWeights
from secureattn.tensor import Public, Tensor


def softmax(
    s: Tensor,
    *,
    exp: Callable[[Tensor], Tensor],
    reciprocal: Callable[[Tensor], Tensor],
    mask: Public | None = None,
) -> RowWeights:
    """``e^(s_j − mean s) / Σ_k e^(s_k − mean s)`` over the last axis.

    No maximum is needed: by Jensen the mean of ``e^(s−mean)`` is at least 1, so without a mask the normaliser is at
    least n. As any shift will do, the mean's 1/n is taken to 8 bits: a multiple of a power of two, by which shares are
    multiplied without a truncation; the normaliser is then at least ``n·e^(−|mean|/256)``.
    A public ``mask`` of zeros and ones, broadcast to the scores, hides the keys at zeros: it multiplies scores and
    exponentials, and the mean is that of the visible keys. Both exponentials and normaliser are halved as often as
    keeps the latter at least 1/2 whatever the number of visible keys; a row that hides all has weights 0.
    Domain: shifted scores in the domain of ``exp``, which holds 0; normaliser in that of ``reciprocal``: with a mask
    from 1/2 to the largest mean of ``e^(s−mean)`` over visible keys.
    Error: the two realisations' together.
    Cost: one exp per score, one reciprocal per row (sites ``exp`` and ``normaliser``).
    Source: shift invariance of softmax; Jensen's inequality.
    """
    keys = s.shape[-1]
    if mask is None:
        weights = exp(s - s.sum(-1) * _near(1.0 / keys))
        return RowWeights(weights, reciprocal(weights.sum(-1)))
    shown = np.asarray(mask, dtype=np.float64)
    shown = np.array(np.broadcast_to(shown, (*shown.shape[:-1], keys)))
    visible = np.maximum(shown.sum(-1, keepdims=True), 1.0)
    shift = (s * shown).sum(-1) * _near(1.0 / visible)
    weights = exp((s - shift) * shown) * shown * 2.0 ** -np.ceil(np.log2(visible))
    hidden = 1.0 - shown.max(-1, keepdims=True)  # a row of nothing but zeros divides by 1
    return RowWeights(weights, reciprocal(weights.sum(-1) + hidden))


def _near(share: Any) -> Any:
    """Numbers to 8 significant bits."""
    unit = 2.0 ** (np.floor(np.log2(share)) - 7)
    return np.rint(share / unit) * unit


def _mean_shift(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    return call.mix(softmax(call.scores(q, k), exp=call["exp"], reciprocal=call["normaliser"]), v)


VARIANTS = (
    Attention(
        "softmax",
        "e^(s − mean s) / Σ e^(s − mean s)",
        _mean_shift,
        source="shift invariance of softmax; Jensen's inequality",
        sites={"exp": "exp", "normaliser": "reciprocal"},
        on_scores="exp",
        floors={"normaliser": lambda epsilon, keys: 0.98 * keys},  # n but for the error of exp and the 8 bits
    ),
)
