"""A decoder over any engine: scores of the next token, a pass over a prompt, then token by token with a cache."""

from __future__ import annotations

from secureattn.nn.encoder import Cache, Encoder
from secureattn.nn.reading import Reading
from secureattn.tensor import Tensor


class Decoder(Encoder):
    """Tokens ``[B,S,V]`` one-hot → scores ``[B,S,V]`` of the token after each: in one pass, or with a cache."""

    def step(self, x: Tensor, cache: Cache, *, all_tokens: bool = False) -> Tensor:
        """Scores ``[B,1,V]`` of the token after these, which stand behind those in the cache; it then has them too.

        ``all_tokens``: of the token after each of them, ``[B,S,V]``.
        """
        reading = Reading.of(self.folded.config, x.shape[:2], past=cache.tokens)
        x = self._stream(x, reading, cache)
        return self._head(x if all_tokens else x.take(1, -1), reading)
