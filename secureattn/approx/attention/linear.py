"""Linear attention: no function between scores and values, so that ``q·(kᵀ·v)`` is the same product.

Every variant but ``scaled`` leaves the order of the products to the engine.
"""

from __future__ import annotations

import math

from secureattn.approx.attention.base import Attention, Call
from secureattn.tensor import Tensor


def scaled(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """``s_j/n``; 1/n comes with the queries.

    Domain: all scores.
    Error: none.
    Cost: scores and their mix with the values, nothing else.
    Source: MPCViT, arXiv 2211.13955 (scaling attention).
    """
    return call.mix(call.scores(q, k), v)


def linear(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """``q·(kᵀ·v)/n``: the function of ``scaled``; 1/n comes with the queries.

    Domain: all queries, keys and values.
    Error: none.
    Cost: two products of matrices, in the order the engine prefers.
    Source: Cao, arXiv 2105.14995 (Galerkin type, without its norms).
    """
    return q.linear_attention(k, v)[0]


def linear_elu(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """``φ(q)·(φ(k)ᵀ·v) / φ(q)·Σφ(k)``, φ = elu + 1; q is the query divided by √Dh, a factor that training absorbs.

    Domain: queries and keys in that of ``elu1``; the normaliser, positive, in that of ``reciprocal``.
    Error: the realisations' together; weights sum to 1.
    Cost: 2·Dh functions per token, one reciprocal per query, two products of matrices.
    Source: Katharopoulos et al., arXiv 2006.16236, eq. 7.
    """
    numerator, total = call["query_feature"](q).linear_attention(call["key_feature"](k), v)
    return numerator * call["normaliser"](total)


def inline(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """InLine: ``s_j/n + (1 − mean s)/n``: weights that sum to 1 by a shift instead of a division.

    They take the mean off the values and add it again, which is how it is computed; 1/n comes with the queries.
    Domain: all queries, keys and values.
    Error: none.
    Cost: two products of matrices, one mean of the values over the tokens.
    Source: Han et al., arXiv 2412.06590 (Bridging the Divide, NeurIPS 2024).
    """
    mean = v.mean(-2)
    return q.linear_attention(k, v - mean)[0] + mean


def mala(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    """MALA: ``(1 + 1/z)·c·φ(q)·φ(k)ᵀ·v − z·mean(v)``, ``c = 1/(n·√Dh)``, ``z = c·φ(q)·Σφ(k)``, φ = elu + 1.

    Weights sum to 1, so they act on ``v − mean(v)`` by ``1/Σφ(q)φ(k) + c`` and ``mean(v)`` is added: no product with z.
    q is the query divided by √Dh, a factor that training absorbs.
    Domain: queries and keys in that of ``elu1``; the normaliser, positive, in that of ``reciprocal``.
    Error: the realisations' together.
    Cost: as ``linear_elu``, and one mean of the values over the tokens.
    Source: Fan et al., arXiv 2507.00698, eq. 6 and 7, scaled as in the authors' code and without its rotary embedding.
    """
    mean = v.mean(-2)
    numerator, total = call["query_feature"](q).linear_attention(call["key_feature"](k), v - mean)
    per_weight = 1 / (k.shape[-2] * math.sqrt(q.shape[-1]))
    return numerator * (call["normaliser"](total) + per_weight) + mean


_FEATURES = {"query_feature": "elu1", "key_feature": "elu1", "normaliser": "reciprocal"}

VARIANTS = (
    Attention(
        "scaled",
        "s/n",
        scaled,
        source="MPCViT, arXiv 2211.13955 (scaling attention)",
        prescale=lambda keys: 1 / keys,
    ),
    Attention(
        "linear",
        "q·(kᵀ·v)/n",
        linear,
        source="Cao, arXiv 2105.14995 (Galerkin type, without its norms)",
        prescale=lambda keys: 1 / keys,
        same_as="scaled",
    ),
    Attention(
        "linear_elu",
        "φ(q)·(φ(k)ᵀ·v) / φ(q)·Σφ(k), φ = elu + 1",
        linear_elu,
        source="Katharopoulos et al., arXiv 2006.16236, eq. 7",
        sites=_FEATURES,
    ),
    Attention(
        "inline",
        "s/n + (1 − mean s)/n",
        inline,
        source="Han et al., arXiv 2412.06590",
        prescale=lambda keys: 1 / keys,
    ),
    Attention(
        "mala",
        "(1 + 1/z)·w − z/n, w = φ(q)·φ(k)ᵀ/(n·√Dh), z = Σ w, φ = elu + 1",
        mala,
        source="Fan et al., arXiv 2507.00698",
        sites=_FEATURES,
    ),
)
