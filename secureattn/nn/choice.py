"""How a client chooses the next token from its scores, in the clear."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from secureattn.errors import InputError

Array = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]


@dataclass
class Choice:
    """The token with the highest score, or, with ``top_k`` above 1, one of the k highest: drawn with the probabilities
    that softmax of their scores divided by ``temperature`` gives them. The same ``seed``, the same draws.
    """

    top_k: int = 1
    temperature: float = 1.0
    seed: int = 0
    _rng: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.top_k < 1 or not self.temperature > 0:
            raise InputError(
                f"a choice needs top_k of at least 1 and a positive temperature, not {self.top_k} and "
                f"{self.temperature}"
            )
        self._rng = np.random.default_rng(self.seed)

    def __call__(self, scores: Array) -> Tokens:
        """Scores ``[B,V]`` → tokens ``[B]``."""
        if self.top_k == 1:
            greedy: Tokens = scores.argmax(-1).astype(np.int64)
            return greedy
        best = np.argsort(-scores, axis=-1, kind="stable")[:, : self.top_k]
        logits = np.take_along_axis(scores, best, -1) / self.temperature
        noise = self._rng.gumbel(size=logits.shape)  # its maximum falls on each with softmax's probability
        found: Tokens = np.take_along_axis(best, (logits + noise).argmax(-1)[:, None], -1)[:, 0].astype(np.int64)
        return found
