"""Softmax as models define it, shifted by its mean."""

from __future__ import annotations

from collections.abc import Callable

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
    least n. The mask multiplies the exponentials (0 hides a key); a row with every key hidden leaves the domain.
    Domain: shifted scores in the domain of ``exp``, normaliser in that of ``reciprocal``.
    Error: the two realisations' together.
    Cost: one exp per score, one reciprocal per row (sites ``exp`` and ``normaliser``).
    Source: shift invariance of softmax; Jensen's inequality.
    """
    weights = exp(s - s.mean(-1))
    if mask is not None:
        weights = weights * mask
    return RowWeights(weights, reciprocal(weights.sum(-1)))


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
        floors={"normaliser": lambda epsilon, keys: 0.98 * keys},  # n but for the error of exp
    ),
)
