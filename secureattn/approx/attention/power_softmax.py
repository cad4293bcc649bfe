"""Power-Softmax: attention weights ``s^p / (ε + Σ s^p)``, p even. No exp, no max, no comparison."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from secureattn.approx.attention.base import Attention, Call, RowWeights
from secureattn.tensor import Capability, Public, Tensor


def power_softmax(
    s: Tensor, *, p: int, epsilon: float, reciprocal: Callable[[Tensor], Tensor], mask: Public | None = None
) -> RowWeights:
    """``s_j^p / (ε + Σ_k s_k^p)`` over the last axis of scores ``[B,H,S,S]``.

    The mask multiplies ``s^p`` (0 hides a key), so a fully masked row gives weights 0, never a division by 0.
    Domain: all scores; the normaliser must lie in the domain of ``reciprocal``, whose lower end may be ε.
    Error: that of ``reciprocal``, relative. s and −s get the same weight: a model must be trained with it.
    Cost: ``even_power`` of each score (log2 p squarings; 3 products for p = 6), one reciprocal per row.
    Source: Zimerman et al., arXiv 2410.09457, eq. 3.
    """
    powers = even_power(s, p)
    if mask is not None:
        powers = powers * mask
    return RowWeights(powers, reciprocal(powers.sum(-1) + epsilon))


def power_softmax_stable(
    s: Tensor,
    *,
    p: int,
    epsilon: float,
    inverse_largest: Callable[[Tensor], Tensor],
    reciprocal: Callable[[Tensor], Tensor],
    delta: float = 1e-6,
) -> RowWeights:
    """The training form: scores divided by ``c = √(max s² + δ)`` of their row first, which bounds every power by 1.

    Equal to ``power_softmax`` with ``ε·c^p``. Domain: all scores; ``c²`` in the domain of ``inverse_largest``, the
    normaliser, from about ``1 + ε`` to ``n + ε``, in that of ``reciprocal``.
    Error: that of the two reciprocals.
    Cost: a max per row (needs COMPARE) and two reciprocals per row.
    Source: Zimerman et al., arXiv 2410.09457, stable variant (theirs divides by max|s| + δ; this needs no root).
    """
    squares = s.square()
    powers = even_power(squares * inverse_largest(squares.max(-1) + delta), p // 2)
    return RowWeights(powers, reciprocal(powers.sum(-1) + epsilon))


def power_softmax_length_agnostic(
    s: Tensor, *, p: int, epsilon: float, reciprocal: Callable[[Tensor], Tensor], mask: Public | None = None
) -> RowWeights:
    """``s^p/n / (ε + mean s^p)``: the normaliser's range does not grow with the number n of keys.

    With a mask, n counts the keys left in each row. Domain: all scores; the mean must lie in ``reciprocal``'s domain.
    Error: that of ``reciprocal``, relative.
    Cost: as ``power_softmax``, and two products of a value per row with a public number.
    Source: Zimerman et al., arXiv 2410.09457, length-agnostic variant.
    """
    powers = even_power(s, p)
    keys: Public = s.shape[-1]
    if mask is not None:
        powers = powers * mask
        keys = np.maximum(np.broadcast_to(mask, (*np.shape(mask)[:-1], s.shape[-1])).sum(-1, keepdims=True), 1.0)
    per_key = 1.0 / keys
    return RowWeights(powers, reciprocal(powers.sum(-1) * per_key + epsilon) * per_key)


def even_power(s: Tensor, p: int) -> Tensor:
    """``s^p`` for p ≥ 1 by repeated squaring.

    Domain: all reals.
    Error: none.
    Cost: depth ⌈log2 p⌉, ⌊log2 p⌋ + popcount(p) − 1 products.
    Source: definition.
    """
    if p < 1:
        raise ValueError(f"the power must be at least 1, not {p}")
    power: Tensor | None = None
    while True:  # the bits of p from the lowest: then no product but the last adds a level to the squarings
        if p % 2:
            power = s if power is None else power * s
        p //= 2
        if power is not None and not p:
            return power
        s = s.square()


def _plain(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    s = call.scores(q, k)
    weights = power_softmax(s, p=call.power, epsilon=call.epsilon, reciprocal=call["normaliser"], mask=call.mask)
    return call.mix(weights, v)


def _stable(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    weights = power_softmax_stable(
        call.scores(q, k),
        p=call.power,
        epsilon=call.epsilon,
        inverse_largest=call["largest"],
        reciprocal=call["normaliser"],
    )
    return call.mix(weights, v)


def _length_agnostic(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    s = call.scores(q, k)
    weights = power_softmax_length_agnostic(
        s, p=call.power, epsilon=call.epsilon, reciprocal=call["normaliser"], mask=call.mask
    )
    return call.mix(weights, v)


VARIANTS = (
    Attention(
        "power_softmax",
        "s^p / (ε + Σ s^p)",
        _plain,
        source="Zimerman et al., arXiv 2410.09457, eq. 3",
        sites={"normaliser": "reciprocal"},
        homogeneous=lambda power: power,
        floors={"normaliser": lambda epsilon, most, least: epsilon},
        masks=True,
    ),
    Attention(
        "power_softmax_length_agnostic",
        "s^p/n / (ε + mean s^p)",
        _length_agnostic,
        source="Zimerman et al., arXiv 2410.09457, length-agnostic variant",
        sites={"normaliser": "reciprocal"},
        homogeneous=lambda power: power,
        floors={"normaliser": lambda epsilon, most, least: epsilon},
        masks=True,
    ),
    Attention(
        "power_softmax_stable",
        "(s/c)^p / (ε + Σ (s/c)^p), c² = max s² + δ",
        _stable,
        source="Zimerman et al., arXiv 2410.09457, stable variant for training",
        sites={"largest": "reciprocal", "normaliser": "reciprocal"},
        needs=frozenset({Capability.COMPARE}),
        floors={"normaliser": lambda epsilon, most, least: epsilon},
    ),
)
