"""Rectified weights: ``relu`` of the scores in place of exponentials."""

from __future__ import annotations

from collections.abc import Callable

from secureattn.approx.attention.base import Attention, Call, RowWeights
from secureattn.tensor import Tensor


def two_relu(
    s: Tensor, *, epsilon: float, relu: Callable[[Tensor], Tensor], reciprocal: Callable[[Tensor], Tensor]
) -> RowWeights:
    """``(relu(s_j) + ε/n) / (Σ_k relu(s_k) + ε)``: a row without a positive score gets equal weights.

    Domain: scores in the domain of ``relu``; the normaliser, at least ε, in that of ``reciprocal``.
    Error: the two realisations' together; a row sums to 1.
    Cost: one relu per score (a comparison, or a polynomial), one reciprocal per row.
    Source: Mohassel & Zhang, SecureML, 2017; 2ReLU in MPCFormer, ICLR 2023; ε/n keeps the rows' sums.
    """
    tops = relu(s) + epsilon / s.shape[-1]
    return RowWeights(tops, reciprocal(tops.sum(-1)))


def relu_scaled(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """``relu(s_j)/n``, no normaliser. 1/n comes with the queries: ``relu`` of a share is the share of ``relu``.

    Domain: ``s/n`` in the domain of ``relu``.
    Error: that of ``relu``.
    Cost: one relu per score.
    Source: Wortsman et al., arXiv 2309.08586.
    """
    return call.mix(call["relu"](call.scores(q, k)), v)


def _relu(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    s = call.scores(q, k)
    return call.mix(two_relu(s, epsilon=call.epsilon, relu=call["relu"], reciprocal=call["normaliser"]), v)


VARIANTS = (
    Attention(
        "relu",
        "(relu(s) + ε/n) / (Σ relu(s) + ε)",
        _relu,
        source="Mohassel & Zhang, SecureML, 2017; 2ReLU in MPCFormer, ICLR 2023",
        sites={"relu": "relu", "normaliser": "reciprocal"},
        on_scores="relu",
        floors={"normaliser": lambda epsilon, most, least: epsilon},
    ),
    Attention(
        "relu_scaled",
        "relu(s)/n",
        relu_scaled,
        source="Wortsman et al., arXiv 2309.08586",
        sites={"relu": "relu"},
        on_scores="relu",
        prescale=lambda keys: 1 / keys,
    ),
)
