"""Softmax as models define it, shifted by its mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.approx.attention.base import Attention, Call, RowWeights
from secureattn.tensor import Public, Tensor

Array = npt.NDArray[np.float64]


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
    exponentials, and the mean is that of the visible keys. Both exponentials and normaliser are halved ⌊log2⌋ of the
    visible keys times, which keeps the latter at least 1 whatever their number; a row that hides all has weights 0.
    Domain: shifted scores in the domain of ``exp``, which holds 0; normaliser in that of ``reciprocal``: with a mask
    from 1 to twice the largest mean of ``e^(s−mean)`` over visible keys.
    Error: the two realisations' together.
    Cost: one exp per score, one reciprocal per row (sites ``exp`` and ``normaliser``).
    Source: shift invariance of softmax; Jensen's inequality.
    """
    row = shifted(s, mask)
    weights = exp(row.scores)
    if row.shown is None:
        return RowWeights(weights, reciprocal(weights.sum(-1)))
    weights = weights * (row.shown * 2.0 ** -np.floor(np.log2(row.visible)))
    return RowWeights(weights, reciprocal(row.nonzero(weights.sum(-1))))


@dataclass(frozen=True)
class Shifted:
    """Scores less the mean of their row's visible keys, 0 at hidden ones. ``shown``: the mask, of the scores' length,
    None without one; ``visible``: keys that each row sees, at least 1.
    """

    scores: Tensor
    shown: Array | None
    visible: Any

    def nonzero(self, total: Tensor) -> Tensor:
        """What a row divides by: the total, and 1 where it sees no key and the total is 0."""
        if self.shown is None or self.shown.any(-1).all():
            return total
        empty: Array = 1.0 - self.shown.max(-1, keepdims=True)
        return total + empty


def shifted(s: Tensor, mask: Public | None) -> Shifted:
    """Scores ``[B,H,S,T]`` by their row's mean, its 1/n to 8 bits."""
    keys = s.shape[-1]
    if mask is None:
        return Shifted(s - s.sum(-1) * _near(1.0 / keys), None, keys)
    shown = np.asarray(mask, dtype=np.float64)
    shown = np.array(np.broadcast_to(shown, (*shown.shape[:-1], keys)))
    visible = np.maximum(shown.sum(-1, keepdims=True), 1.0)
    shift = (s * shown).sum(-1) * _near(1.0 / visible)
    return Shifted((s - shift) * shown, shown, visible)


def _near(share: Any) -> Any:
    """Numbers to 8 significant bits."""
    unit = 2.0 ** (np.floor(np.log2(share)) - 7)
    return np.rint(share / unit) * unit


def _mean_shift(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    s = call.scores(q, k)
    return call.mix(softmax(s, exp=call["exp"], reciprocal=call["normaliser"], mask=call.mask), v)


VARIANTS = (
    Attention(
        "softmax",
        "e^(s − mean s) / Σ e^(s − mean s)",
        _mean_shift,
        source="shift invariance of softmax; Jensen's inequality",
        sites={"exp": "exp", "normaliser": "reciprocal"},
        on_scores="exp",
        floors={"normaliser": lambda epsilon, most, least: 0.98 * least},  # n but for the error of exp and the 8 bits
        masks=True,
    ),
)
