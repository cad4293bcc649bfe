"""Quadratic weights: squares of the scores in place of exponentials. Nothing but products and a reciprocal per row."""

from __future__ import annotations

from collections.abc import Callable

from secureattn.approx.attention.base import Attention, Call, RowWeights
from secureattn.tensor import Public, Tensor

SHIFT = 5.0
"""What 2Quad adds to the scores."""


def quad(
    s: Tensor, *, reciprocal: Callable[[Tensor], Tensor], shift: float = SHIFT, mask: Public | None = None
) -> RowWeights:
    """``(s_j + 5)² / Σ_k (s_k + 5)²`` over the last axis: another function than softmax, for models trained with it.

    Domain: all scores; normaliser in the domain of ``reciprocal``.
    Error: that of ``reciprocal``; not an approximation of softmax.
    Cost: one square per score, one reciprocal per row.
    Source: MPCFormer (2Quad), ICLR 2023.
    """
    squares = (s + shift).square()
    if mask is not None:
        squares = squares * mask
    return RowWeights(squares, reciprocal(squares.sum(-1)))


def taylor(s: Tensor, *, reciprocal: Callable[[Tensor], Tensor], scale: float = 1.0) -> RowWeights:
    """``(1 + s_j + s_j²/2) / Σ_k (1 + s_k + s_k²/2)``, as ``((s_j + 1)² + 1) / Σ``: twice both, one square and no more.

    ``scale``: what the scores were multiplied by; both ones follow it.
    Domain: all scores; the normaliser, at least n, in the domain of ``reciprocal``.
    Error: that of ``reciprocal``, relative; a row sums to 1.
    Cost: one square per score, one reciprocal per row.
    Source: de Brébisson & Vincent, arXiv 1511.05042 (Taylor softmax).
    """
    tops = (s + scale).square() + scale**2
    return RowWeights(tops, reciprocal(tops.sum(-1)))


def spherical(s: Tensor, *, epsilon: float, reciprocal: Callable[[Tensor], Tensor]) -> RowWeights:
    """``(s_j² + ε) / Σ_k (s_k² + ε)``.

    Domain: all scores; the normaliser, at least n·ε, in the domain of ``reciprocal``. s and −s get the same weight.
    Error: that of ``reciprocal``, relative; a row sums to 1.
    Cost: one square per score, one reciprocal per row.
    Source: de Brébisson & Vincent, arXiv 1511.05042 (spherical softmax).
    """
    tops = s.square() + epsilon
    return RowWeights(tops, reciprocal(tops.sum(-1)))


def square_scaled(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """``s_j²/n``, no normaliser; ``1/√n`` comes with the queries.

    Domain: all scores.
    Error: none.
    Cost: one square per score.
    Source: PriViT, arXiv 2310.04604 (squared attention).
    """
    return call.mix(call.scores(q, k).square(), v)


def _quad(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    return call.mix(quad(call.scores(q, k), reciprocal=call["normaliser"], shift=SHIFT * call.scale), v)


def _taylor(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    return call.mix(taylor(call.scores(q, k), reciprocal=call["normaliser"], scale=call.scale), v)


def _spherical(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    return call.mix(spherical(call.scores(q, k), epsilon=call.epsilon, reciprocal=call["normaliser"]), v)


VARIANTS = (
    Attention(
        "quad",
        "(s + 5)² / Σ (s + 5)²",
        _quad,
        source="MPCFormer (2Quad), ICLR 2023",
        sites={"normaliser": "reciprocal"},
        homogeneous=lambda power: 2,
    ),
    Attention(
        "square_scaled",
        "s²/n",
        square_scaled,
        source="PriViT, arXiv 2310.04604 (squared attention)",
        prescale=lambda keys: keys**-0.5,
    ),
    Attention(
        "taylor",
        "(1 + s + s²/2) / Σ (1 + s + s²/2)",
        _taylor,
        source="de Brébisson & Vincent, arXiv 1511.05042 (Taylor softmax)",
        sites={"normaliser": "reciprocal"},
        homogeneous=lambda power: 2,
        floors={"normaliser": lambda epsilon, most, least: least},
    ),
    Attention(
        "spherical",
        "(s² + ε) / Σ (s² + ε)",
        _spherical,
        source="de Brébisson & Vincent, arXiv 1511.05042 (spherical softmax)",
        sites={"normaliser": "reciprocal"},
        homogeneous=lambda power: 2,
        floors={"normaliser": lambda epsilon, most, least: least * epsilon},
    ),
)
