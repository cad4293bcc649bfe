"""The encoder block in float64, from numpy and the definitions alone: what engines and peers are held against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
QUAD_SHIFT = 5.0
QUAD_GELU = (0.5, 0.25, 0.125)
"""MPCFormer (arXiv 2211.01452): attention (s+5)²/Σ; 0.125x² + 0.25x + 0.5 for GELU, ascending."""

_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array) -> Array:
    """x·Φ(x)."""
    found: Array = x * (1 + _erf(x / math.sqrt(2))) / 2
    return found


def gelu_tanh(x: Array) -> Array:
    """Its usual stand-in: x/2·(1 + tanh(√(2/π)·(x + 0.044715x³)))."""
    found: Array = x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return found


def gelu_quad(x: Array) -> Array:
    """MPCFormer's quadratic, which is another function."""
    return np.asarray(np.polynomial.polynomial.polyval(x, QUAD_GELU), dtype=np.float64)


def softmax(scores: Array) -> Array:
    """Over the last axis."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    found: Array = powers / powers.sum(-1, keepdims=True)
    return found


def quad(scores: Array) -> Array:
    """MPCFormer's 2Quad."""
    squares = (scores + QUAD_SHIFT) ** 2
    found: Array = squares / squares.sum(-1, keepdims=True)
    return found


FUNCTIONS = {"true": (softmax, gelu), "tanh": (softmax, gelu_tanh), "mpcformer": (quad, gelu_quad)}
"""Attention's weights and the activation, by what an engine claims to compute."""


def block(weights: Mapping[str, Array], x: Array, config: Any, functions: str) -> Array:
    """``x [S,D]`` through layer 0, less its mean over the features, which no later layer reads."""
    attend, activate = FUNCTIONS[functions]

    def linear(h: Array, name: str) -> Array:
        found: Array = h @ weights[f"layer.0.{name}.weight"].T + weights[f"layer.0.{name}.bias"]
        return found

    def norm(h: Array, name: str) -> Array:
        centred = h - h.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_epsilon)
        found: Array = scaled * weights[f"layer.0.{name}.gain"] + weights[f"layer.0.{name}.bias"]
        return found

    def heads(h: Array) -> Array:
        return h.reshape(config.tokens, config.heads, config.head_width).swapaxes(0, 1)

    h = norm(x, "attention.norm")
    q, k, v = (heads(linear(h, f"attention.{part}")) for part in ("query", "key", "value"))
    context = attend(q @ k.swapaxes(1, 2) / math.sqrt(config.head_width)) @ v
    x = x + linear(context.swapaxes(0, 1).reshape(config.tokens, config.width), "attention.output")
    return centred(x + linear(activate(linear(norm(x, "ffn.norm"), "ffn.in")), "ffn.out"))


def centred(x: Array) -> Array:
    """Less the mean over the features."""
    found: Array = x - x.mean(-1, keepdims=True)
    return found
