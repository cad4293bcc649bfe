"""NaLaFormer: linear attention whose sharpness grows with the norm of the query, by a power with a secret exponent."""

from __future__ import annotations

import math
from collections.abc import Callable

from secureattn.approx.attention.base import Attention, Call
from secureattn.tensor import Capability, Tensor

Function = Callable[[Tensor], Tensor]

LEAST = 2.0**-10
"""Added to the base of the power, so that its logarithm is one on [2^-10, 1 + 2^-10]."""
EPSILON = 0.05
"""Share of ε added to the mean weight of a row before dividing by it. The authors add 1e-6, and rows whose weights all
but vanish then ask for a reciprocal of any size: a model trained with more does without them."""


def by_sign(x: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` at the places that are not ``negative`` (0 or 1), and x at those that are; 0 elsewhere.

    Domain: all.
    Error: none.
    Cost: one product per element; on shares it is not truncated.
    Source: definition.
    """
    part = x * negative
    return x - part, part


def sharpened(
    q: Tensor, *, rsqrt: Function, tanh: Function, log: Function, exp: Function, eps: float = LEAST
) -> tuple[Tensor, Tensor]:
    """``(relu(±q)/‖q‖)^e`` with ``e = 3·(1/2 + tanh‖q‖)``, ``[B,H,S,Dh]`` each; q comes divided by √Dh.

    One power ``exp(e·log(|q|/‖q‖ + eps))``, split by sign afterwards: as only one of both parts is not 0, that is the
    same as a power of each, at half the logarithms and exponentials, and the other part is exactly 0.
    Domain: q ≠ 0; the argument of ``log`` lies in [eps, 1 + eps], that of ``exp`` in [4.5·log(eps), 4.5·eps].
    Error: from eps, (1 + eps)^4.5 − 1 = 4.4e-3 at most, at a long query along one axis; and the realisations'.
    Cost: per element a comparison (needs COMPARE), a logarithm, an exponential and four products; an rsqrt and a tanh
    per token.
    Source: Meng et al., NaLaFormer, arXiv 2506.21137, as its authors' code has it.
    """
    negative = q.less(0.0)
    squares = q.inner(q)
    inverse = rsqrt(squares)
    norm = squares * math.sqrt(q.shape[-1]) * inverse
    share = q * (negative * -2.0 + 1.0) * inverse
    power = exp(log(share + eps) * (tanh(norm) * 3.0 + 1.5))
    return by_sign(power, negative)


def _nalaformer(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    queries = sharpened(q, rsqrt=call["query.rsqrt"], tanh=call["tanh"], log=call["log"], exp=call["exp"])
    positive, negative = by_sign(k.square() * k, k.less(0.0))
    values, total = queries[0].linear_attention(positive, v)
    opposite, rest = queries[1].linear_attention(-negative, v)
    return (values + opposite) * call["normaliser"](total + rest + EPSILON * call.epsilon * k.shape[-2])


VARIANTS = (
    Attention(
        "nalaformer",
        "φ(±q)·relu(±k)³ / Σ φ(±q)·relu(±k)³, φ(q) = (relu(q)/‖q‖)^(3(½ + tanh‖q‖))",
        _nalaformer,
        source="Meng et al., NaLaFormer, arXiv 2506.21137, without its rotation, convolution and gate",
        sites={
            "query.rsqrt": "rsqrt",
            "tanh": "tanh",
            "log": "log",
            "exp": "exp",
            "normaliser": "reciprocal",
        },
        needs=frozenset({Capability.COMPARE}),
        floors={
            "log": lambda epsilon, most, least: LEAST,
            "normaliser": lambda epsilon, most, least: EPSILON * epsilon * least,
        },
        remark="a power with a secret exponent, by log and exp",
    ),
)
