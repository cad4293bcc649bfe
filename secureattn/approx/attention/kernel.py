"""Attention by a kernel: a Gaussian, whole or through landmarks, and positive features times a positional term."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from secureattn.approx.attention.base import Attention, Call
from secureattn.tensor import Capability, Tensor

NEWTON_STEPS = 20


def gaussian_exponent(q: Tensor, k: Tensor, *, scale: float = 1.0) -> Tensor:
    """``−‖√Dh·q − k‖²/(2√Dh)`` times ``scale``, ``[B,H,S,T]``: q comes divided by √Dh and multiplied by ``scale``.

    ``q·kᵀ − (√Dh/2)·‖q‖² − ‖k‖²/(2√Dh)``: the public factors fall on one value per token, the scores need none.
    Domain: all; the value over ``scale`` is at most 0.
    Error: none.
    Cost: scores, two inner products and two public factors per token; one level more than the scores.
    Source: Lu et al., SOFT, arXiv 2110.11945, with the square expanded.
    """
    root = math.sqrt(q.shape[-1])
    per_query = q.inner(q) * (-root / (2 * scale))
    per_key = (k.inner(k) * (-scale / (2 * root))).per_key()
    return q.scores(k).refresh("scores") + per_query + per_key


def newton_inverse(p: Tensor, *, steps: int = NEWTON_STEPS) -> Tensor:
    """``V ≈ p⁻¹ [B,H,m,m]`` by ``V ← 2V − V·p·V`` from ``V = p/m²``; needs MATRIX.

    It converges: every V is a polynomial of p, so an eigenvalue λ of p meets v of V with ``1 − λv`` squared by each
    step, from 1 − λ²/m², and entries of at most 1 keep |λ| ≤ m.
    Domain: symmetric, positive definite, entries in (0, 1], as a Gaussian kernel's.
    Error: relative in each eigenvalue λ, (1 − (λ/m)²)^(2^steps): below 1e-15 at 20 steps for λ ≥ 0.0058·m; a smaller
    λ is inverted to less than 1/λ, which regularises. Each step doubles rounding errors along it.
    Cost: two products of m×m matrices a step.
    Source: Lu et al., SOFT, arXiv 2110.11945, whose first V is p times 2/‖p‖₁²: that needs a maximum.
    """
    v = p * (1.0 / p.shape[-1] ** 2)
    for _ in range(steps):
        v = v + v - v.mix(p).mix(v)
    return v


def landmark_size(tokens: int) -> int:
    """How many tokens one landmark stands for: the least divisor of ``tokens`` that is at least its root.

    Domain: tokens ≥ 1; a prime number of tokens has one landmark.
    Error: none.
    Cost: none.
    Source: ours; SOFT chooses a ratio per stage.
    """
    return next(size for size in range(1, tokens + 1) if tokens % size == 0 and size * size >= tokens)


def toeplitz(offsets: torch.Tensor) -> torch.Tensor:
    """``e^b [H,S,S]`` with ``b_(j−i)`` in row i, column j, from ``offsets [H,2S−1]`` that begin at j − i = 1 − S.

    Domain: all.
    Error: none.
    Cost: clear only, 2S − 1 exponentials per head.
    Source: Luo et al., NeurIPS 2021, arXiv 2106.12566.
    """
    position = torch.arange((offsets.shape[-1] + 1) // 2)
    return offsets.exp()[:, position - position[:, None] + len(position) - 1]


def _gaussian(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    return call.mix(call["exp"](gaussian_exponent(q, k, scale=call.scale)), v)


def _gaussian_low_rank(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    def kernel(queries: Tensor, keys: Tensor) -> Tensor:
        return call["exp"](gaussian_exponent(queries, keys))

    landmarks = k.pool(landmark_size(k.shape[-2]))
    scaled = landmarks * (1.0 / math.sqrt(k.shape[-1]))
    inverse = newton_inverse(kernel(scaled, landmarks))
    return kernel(q, landmarks).mix(inverse.mix(kernel(scaled, k).mix(v)))


def _kernelized_rpe(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    query = call["feature"](q * call["query.rsqrt"](q.inner(q)))
    key = call["feature"](k * call["key.rsqrt"](k.inner(k)))
    values, total = query.linear_attention(key, v, call.weights["kernel"])
    return values * call["normaliser"](total)


def _rpe_parameters(heads: int, tokens: int) -> Mapping[str, tuple[int, ...]]:
    return {"offsets": (heads, 2 * tokens - 1)}


def _rpe_weights(parameters: Mapping[str, torch.Tensor], tokens: int) -> Mapping[str, torch.Tensor]:
    return {"kernel": toeplitz(parameters["offsets"])}


VARIANTS = (
    Attention(
        "gaussian",
        "e^(−‖q−k‖²/(2√d))",
        _gaussian,
        source="Lu et al., SOFT, arXiv 2110.11945",
        sites={"exp": "exp"},
        on_scores="exp",
    ),
    Attention(
        "gaussian_low_rank",
        "κ(q,k̃)·κ(k̃,k̃)⁻¹·κ(k̃,k), k̃ means of neighbouring keys, κ(x,y) = e^(−‖x−y‖²/(2√d))",
        _gaussian_low_rank,
        source="Lu et al., SOFT, arXiv 2110.11945; equal to it where q = k",
        sites={"exp": "exp"},
        needs=frozenset({Capability.MATRIX}),
    ),
    Attention(
        "kernelized_rpe",
        "φ(q)·e^b(j−i)φ(k) / Σ φ(q)·e^b(j−i)φ(k), φ = elu + 1 of q/‖q‖ and k/‖k‖",
        _kernelized_rpe,
        source="Luo et al., NeurIPS 2021, arXiv 2106.12566; theirs draws random features for φ",
        sites={"query.rsqrt": "rsqrt", "key.rsqrt": "rsqrt", "feature": "elu1", "normaliser": "reciprocal"},
        parameters=_rpe_parameters,
        weights=_rpe_weights,
    ),
)
