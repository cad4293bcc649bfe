"""Which tokens a batch of inputs has, what that hides, and where they stand. All of it is public."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secureattn.errors import InputError
from secureattn.nn.config import ModelConfig
from secureattn.tensor import Tensor

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """One pass over ``tokens`` S that stand behind ``past`` others, T = past + S.

    ``mask``: ones where a token may look, ``[B,1,1,T]``, ``[1,1,S,T]`` or ``[B,1,S,T]``, None where at all;
    ``lengths [B]``: tokens of each input, None where the model has the same number in all; ``turns``: cosines and sines
    of rotary positions, ``[S,Dh]`` each, None for others.
    """

    tokens: int
    past: int
    mask: Array | None
    lengths: Array | None
    turns: tuple[Array, Array] | None

    @classmethod
    def of(
        cls, config: ModelConfig, shape: Sequence[int], lengths: Sequence[int] | None = None, past: int = 0
    ) -> Reading:
        """For inputs ``[B,S]``; InputError for lengths that are none, and for more tokens than the model takes."""
        count, tokens = shape
        if past + tokens > config.tokens:
            raise InputError(f"{past + tokens} tokens are more than the {config.tokens} of {config.name}")
        turns = rotary(config, past, tokens) if config.positions == "rotary" else None
        causal = np.tril(np.ones((tokens, past + tokens)), past)
        if not config.variable:
            if lengths is not None:
                raise InputError(f"model {config.name} has {config.tokens} tokens in every input; it takes no lengths")
            return cls(tokens, past, causal if config.causal else None, None, turns)
        known = np.full(count, tokens) if lengths is None else np.asarray(lengths)
        if known.shape != (count,) or known.dtype.kind not in "iu" or not ((known >= 1) & (known <= tokens)).all():
            raise InputError(f"{count} inputs of up to {tokens} tokens need as many lengths from 1 to {tokens}")
        there = (np.arange(past + tokens) < past + known[:, None]).astype(np.float64)
        there = there[:1] if (known == known[0]).all() else there
        mask = there[:, None, None, :]
        return cls(tokens, past, mask * causal if config.causal else mask, known.astype(np.float64), turns)

    def mean(self, x: Tensor) -> Tensor:
        """Over the tokens of each input, ``[B,S,D]`` → ``[B,1,D]``."""
        if self.lengths is None:
            return x.mean(1)
        ends = (np.arange(self.tokens) < self.lengths[:, None])[..., None]
        return (x if ends.all() else x * ends.astype(np.float64)).sum(1) * (1.0 / self.lengths[:, None, None])

    def turned(self, x: Tensor) -> Tensor:
        """Queries or keys ``[B,H,S,Dh]`` turned by their rotary positions, if they have any."""
        if self.turns is None:
            return x
        cosines, sines = self.turns
        half = x.shape[-1] // 2
        first, second = x.take(-1, slice(0, half)), x.take(-1, slice(half, 2 * half))
        return x * cosines + (-second).join([first], -1) * sines


def rotary(config: ModelConfig, past: int, tokens: int) -> tuple[Array, Array]:
    """Cosines and sines ``[S,Dh]`` of ``t·base^(-2i/Dh)`` for tokens t from ``past`` on, i < Dh/2 twice over.

    Source: Su et al., RoFormer, arXiv 2104.09864; halves in place of pairs, as LLaMA's checkpoints have them.
    """
    half = config.head_width // 2
    speeds = config.rotary_base ** (-np.arange(half) / half)
    angles = np.arange(past, past + tokens)[:, None] * np.concatenate([speeds, speeds])
    return np.cos(angles), np.sin(angles)
