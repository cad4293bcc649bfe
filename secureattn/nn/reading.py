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
    ``lengths [B]``: tokens of each input, ``[1]`` where all have S, None where the model has no others; ``turns``:
    cosines and sines of rotary positions, ``[S,Dh]`` each, of which the first ``turning`` features turn, None for
    others.
    """

    tokens: int
    past: int
    mask: Array | None
    lengths: Array | None
    turns: tuple[Array, Array] | None
    turning: int = 0

    @classmethod
    def of(
        cls, config: ModelConfig, shape: Sequence[int], lengths: Sequence[int] | None = None, past: int = 0
    ) -> Reading:
        """For inputs ``[B,S]``; InputError for lengths that are none, and for more tokens than the model takes."""
        count, tokens = shape
        if past + tokens > config.tokens:
            raise InputError(f"{past + tokens} tokens are more than the {config.tokens} of {config.name}")
        turns = rotary(config, past, tokens) if config.positions == "rotary" else None
        turning = config.rotary_width
        causal = np.tril(np.ones((tokens, past + tokens)), past)
        if not config.variable:
            if lengths is not None:
                raise InputError(f"model {config.name} has {config.tokens} tokens in every input; it takes no lengths")
            return cls(tokens, past, causal if config.causal else None, None, turns, turning)
        known = np.full(count, tokens) if lengths is None else np.asarray(lengths)
        if known.shape != (count,) or known.dtype.kind not in "iu" or not ((known >= 1) & (known <= tokens)).all():
            raise InputError(f"{count} inputs of up to {tokens} tokens need as many lengths from 1 to {tokens}")
        known = known[:1] if lengths is None else known  # lengths given are for each, equal or not: cost shows none
        there = (np.arange(past + tokens) < past + known[:, None]).astype(np.float64)
        mask = there[:, None, None, :]
        mask = mask * causal if config.causal else mask
        return cls(tokens, past, mask, known.astype(np.float64), turns, turning)

    def mean(self, x: Tensor) -> Tensor:
        """Over the tokens of each input, ``[B,S,D]`` → ``[B,1,D]``."""
        if self.lengths is None:
            return x.mean(1)
        ends = (np.arange(self.tokens) < self.lengths[:, None])[..., None]
        if len(ends) == 1 and ends.all():
            return x.mean(1)
        return (x * ends.astype(np.float64)).sum(1) * (1.0 / self.lengths[:, None, None])

    def turned(self, x: Tensor) -> Tensor:
        """Queries or keys ``[B,H,S,Dh]`` turned by their rotary positions, if they have any."""
        if self.turns is None:
            return x
        cosines, sines = self.turns
        half, width = self.turning // 2, x.shape[-1]
        first, second = x.take(-1, slice(0, half)), x.take(-1, slice(half, 2 * half))
        still = [x.take(-1, slice(2 * half, width))] if width > 2 * half else []
        return x * cosines + (-second).join([first, *still], -1) * sines


def rotary(config: ModelConfig, past: int, tokens: int) -> tuple[Array, Array]:
    """Cosines and sines ``[S,Dh]`` of ``t·base^(-2i/R)`` for tokens t from ``past`` on, i < R/2 twice over, R the
    features that turn; those behind them have angle 0.

    Source: Su et al., RoFormer, arXiv 2104.09864; halves in place of pairs, as LLaMA's checkpoints have them.
    """
    half = config.rotary_width // 2
    speeds = config.rotary_base ** (-np.arange(half) / half)
    still = np.zeros(config.head_width - 2 * half)
    angles = np.arange(past, past + tokens)[:, None] * np.concatenate([speeds, speeds, still])
    return np.cos(angles), np.sin(angles)
