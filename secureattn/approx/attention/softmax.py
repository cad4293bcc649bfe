"""Softmax without a maximum, and the quadratic function that some models use instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from secureattn.tensor import Public, Tensor


@dataclass(frozen=True)
class RowWeights:
    """Attention weights not yet divided: ``numerator [B,H,S,S]`` times ``factor [B,H,S,1]``.

    Kept apart so that attention may divide after mixing, where the depth of the reciprocal runs beside the product
    with the values instead of after it.
    """

    numerator: Tensor
    factor: Tensor

    def weights(self) -> Tensor:
        """``[B,H,S,S]``, each row summing to 1, or to Σ/(ε+Σ) where the kind has an ε."""
        return self.numerator * self.factor

    def mix(self, v: Tensor) -> Tensor:
        """Weighted values ``[B,H,S,Dh]``."""
        return self.numerator.mix(v) * self.factor


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


def quad(
    s: Tensor, *, reciprocal: Callable[[Tensor], Tensor], shift: float = 5.0, mask: Public | None = None
) -> RowWeights:
    """``(s_j + 5)² / Σ_k (s_k + 5)²`` over the last axis: another function, for models trained with it.

    Domain: all scores; normaliser in the domain of ``reciprocal``.
    Error: that of ``reciprocal``; not an approximation of softmax.
    Cost: one square per score, one reciprocal per row.
    Source: MPCFormer (2Quad), ICLR 2023.
    """
    squares = (s + shift).square()
    if mask is not None:
        squares = squares * mask
    return RowWeights(squares, reciprocal(squares.sum(-1)))
