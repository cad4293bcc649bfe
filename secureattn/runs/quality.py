"""How near one run's outputs are to another's."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from secureattn.runs.result import Array


def agreement(a: Array, b: Array, *, vectors: bool = False) -> float:
    """Share of rows with the same largest entry, where ``b`` has any (not NaN throughout); of ``vectors``, with the
    same nearest other row, by cosine.
    """
    if vectors:
        return float(np.mean(_nearest(a) == _nearest(b)))
    there = ~np.isnan(b).all(-1) if b.ndim > 2 else np.ones(b.shape[:-1], dtype=bool)
    return float(np.mean(a.argmax(-1)[there] == b.argmax(-1)[there]))


def cosines(a: Array, b: Array) -> Array:
    """Cosine of the angle between the rows of one and of the other."""
    found: Array = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return found


def perplexity(scores: Array, tokens: npt.NDArray[np.int64], lengths: tuple[int, ...] | None = None) -> float:
    """``exp`` of the mean of −ln p over every token ``[N,S]`` but an input's first, p by softmax of the scores
    ``[N,S,V]`` at the token before; ``lengths``: tokens of each input, S unless given.
    """
    before = scores[:, :-1]
    logits = before - before.max(-1, keepdims=True)
    logits = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    surprise = -np.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]
    known = np.arange(1, tokens.shape[1]) < np.array(lengths or [tokens.shape[1]] * len(tokens))[:, None]
    return math.exp(float(surprise[known].mean()))


def _nearest(vectors: Array) -> Array:
    """The number of every row's nearest other row; 0 where there is no other."""
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    alike = unit @ unit.T
    np.fill_diagonal(alike, -np.inf)
    found: Array = alike.argmax(-1)
    return found
