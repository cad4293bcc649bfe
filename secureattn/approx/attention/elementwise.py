"""Weights by another smooth function of the scores than the exponential: sigmoid, softplus, stablemax."""

from __future__ import annotations

import math
from collections.abc import Callable

from secureattn.approx.attention.base import Attention, Call, RowWeights
from secureattn.approx.attention.power_softmax import even_power
from secureattn.tensor import Tensor

NORM_EPSILON = 1e-3
"""Share of ε added to ``Σx²`` before its inverse root is taken."""


def sigmoid(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """``σ(s_j − log n)``, no normaliser: equal scores of 0 give a row that sums to n/(n+1).

    Domain: ``s − log n`` in the domain of ``sigmoid``.
    Error: that of ``sigmoid``.
    Cost: one sigmoid per score, nothing per row.
    Source: Ramapuram et al., arXiv 2409.04431.
    """
    s = call.scores(q, k)
    return call.mix(call["sigmoid"](s - math.log(s.shape[-1]) * call.scale), v)


def stablemax(s: Tensor, *, kernel: Callable[[Tensor], Tensor], reciprocal: Callable[[Tensor], Tensor]) -> RowWeights:
    """``f(s_j) / Σ_k f(s_k)``, ``f(x) = x + 1`` for x ≥ 0 and ``1/(1 − x)`` below.

    Domain: scores in the domain of ``kernel``; the normaliser, positive, in that of ``reciprocal``.
    Error: the two realisations' together; a row sums to 1.
    Cost: one kernel per score, one reciprocal per row.
    Source: Prieto et al., arXiv 2501.04697.
    """
    tops = kernel(s)
    return RowWeights(tops, reciprocal(tops.sum(-1)))


def softplus_l1(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """LSSA: ``a_j / Σ_k a_k``, ``a = softplus(log Dh·log n·cos(q, k))``.

    Norms are ``√(Σx² + ε/1000)``, so that they have a floor: a cosine falls short by ε/1000 of a half to either Σx².
    A factor of q cancels, so 1/√Dh does, and nothing can be folded into the queries.
    Domain: Σx² in that of ``rsqrt``; ``|log Dh·log n|`` in that of ``softplus``; the normaliser, positive, in that of
    ``reciprocal``.
    Error: the realisations' together; a row sums to 1.
    Cost: two rsqrt and 3·Dh products per token, one softplus per score, one reciprocal per row.
    Source: Gao & Spratling, arXiv 2501.13428 (there n is the row's number in a causal mask).
    """
    tops = _softplus(q, k, call)
    return call.mix(RowWeights(tops, call["normaliser"](tops.sum(-1))), v)


def softplus_l1_reweighted(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """LSSAR: with the weights A of LSSA, ``relu(A_j·n − O)^p / Σ``, O = 1, and 0 for n ≤ 3.

    ``A·n = a/mean a``, and the mean's p-th power is a factor of the row, so this is ``relu(a − O·mean a)^p / (ε + Σ)``
    and the first normalisation is never computed. ε keeps equal weights, all at the threshold, out of a division by 0.
    Domain: as ``softplus_l1``; ``a − O·mean a`` in that of ``relu``; the normaliser, at least ε, in ``reciprocal``'s.
    Error: the realisations' together; a row sums to Σ/(ε + Σ).
    Cost: as ``softplus_l1``, and one relu and the p-th power of each score.
    Source: Gao & Spratling, arXiv 2501.13428 (p = 3 and 15 there; O is 0 in rows that see three keys or fewer).
    """
    a = _softplus(q, k, call)
    excess = a - a.mean(-1) if a.shape[-1] > 3 else a
    powers = even_power(call["relu"](excess), call.power)
    return call.mix(RowWeights(powers, call["normaliser"](powers.sum(-1) + call.epsilon)), v)


def _softplus(q: Tensor, k: Tensor, call: Call) -> Tensor:
    factor = math.log(q.shape[-1]) * math.log(k.shape[-2])
    # The factor joins q while its norm is being computed: no level more.
    queries = q * factor * call["query_norm"](q.inner(q) + NORM_EPSILON * call.epsilon)
    keys = k * call["key_norm"](k.inner(k) + NORM_EPSILON * call.epsilon)
    return call["softplus"](call.scores(queries, keys))


def _stablemax(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    return call.mix(stablemax(call.scores(q, k), kernel=call["stablemax"], reciprocal=call["normaliser"]), v)


_COSINE = {"query_norm": "rsqrt", "key_norm": "rsqrt", "softplus": "softplus"}
_NORM_FLOORS = {site: lambda epsilon, most, least: NORM_EPSILON * epsilon for site in ("query_norm", "key_norm")}

VARIANTS = (
    Attention(
        "sigmoid",
        "σ(s − log n)",
        sigmoid,
        source="Ramapuram et al., arXiv 2409.04431",
        sites={"sigmoid": "sigmoid"},
        on_scores="sigmoid",
    ),
    Attention(
        "stablemax",
        "f(s) / Σ f(s), f(x) = x + 1 for x ≥ 0, 1/(1 − x) below",
        _stablemax,
        source="Prieto et al., arXiv 2501.04697",
        sites={"stablemax": "stablemax", "normaliser": "reciprocal"},
        on_scores="stablemax",
    ),
    Attention(
        "softplus_l1",
        "a / Σ a, a = softplus(log Dh · log n · cos(q, k))",
        softplus_l1,
        source="Gao & Spratling, arXiv 2501.13428 (LSSA)",
        sites={**_COSINE, "normaliser": "reciprocal"},
        floors=_NORM_FLOORS,
    ),
    Attention(
        "softplus_l1_reweighted",
        "relu(A·n − 1)^p / Σ, A = a / Σ a, a = softplus(log Dh · log n · cos(q, k))",
        softplus_l1_reweighted,
        source="Gao & Spratling, arXiv 2501.13428 (LSSAR)",
        sites={**_COSINE, "relu": "relu", "normaliser": "reciprocal"},
        floors={**_NORM_FLOORS, "normaliser": lambda epsilon, most, least: epsilon},
    ),
)
