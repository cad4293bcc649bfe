"""Embeddings: a row of a table for every token, without showing anybody which.

Two ways, by who may know what. Where the table is public the client looks its tokens up itself and shares or encrypts
the rows (``looked_up``). Where it belongs to the model's owner the client shares one-hot vectors, and the rows are a
matrix product like any linear layer's (``one_hot``, ``embed``): it costs S·V products a token's row, and shows nothing
but S and V.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from secureattn.errors import InputError
from secureattn.nn.config import ModelConfig
from secureattn.nn.fold import embedding
from secureattn.tensor import Tensor, Weight

Array = npt.NDArray[np.float64]


def one_hot(tokens: npt.ArrayLike, vocabulary: int) -> Array:
    """``[B,S]`` token numbers → ``[B,S,V]``, 1 at each token's number and 0 elsewhere. InputError for no such token."""
    numbers = _checked(tokens, vocabulary)
    found = np.zeros((*numbers.shape, vocabulary))
    np.put_along_axis(found, numbers[..., None], 1.0, -1)
    return found


def embed(x: Tensor, table: Weight) -> Tensor:
    """One-hot ``[B,S,V]`` → ``[B,S,D]``; ``table`` is ``backend.matrix`` of the table's transpose, ``[D,V]``.

    Cost: that of ``linear``: on shares one round, in which the client sends 8·B·S·V bytes.
    """
    return x.linear(table)


def looked_up(tokens: npt.ArrayLike, table: Array) -> Array:
    """``[B,S]`` token numbers → ``[B,S,D]`` by a public table ``[V,D]``, in the clear at the client."""
    rows: Array = np.asarray(table, dtype=np.float64)[_checked(tokens, len(table))]
    return rows


def at_client(config: ModelConfig, weights: Mapping[str, torch.Tensor], tokens: npt.ArrayLike, past: int = 0) -> Array:
    """The rows a network starts from, ``[B,S]`` token numbers → ``[B,S,D]``, in the clear by whoever has the tokens and
    a public table: looked up, with positions, and normed where a norm follows, but for its gain and bias, which are in
    the weights (see ``fold``). ``past``: tokens that stand before these.
    """
    embed = embedding(config, weights)
    x = torch.as_tensor(looked_up(tokens, embed.weight.T.numpy()))
    x = x + (embed.bias[past : past + x.shape[1]] if embed.bias.ndim == 2 else embed.bias)
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    if config.embed_norm:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + config.norm_epsilon)
    return x.numpy()


def all_squares(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> tuple[float, float]:
    """The least and the largest ``mean(x²) + ε`` over features, less their mean under LayerNorm, of any token anywhere:
    what the inverse root of a norm after the embedding is given.
    """
    embed = embedding(config, weights)
    rows, places = embed.weight.T, embed.bias.reshape(-1, config.width)
    if config.norm == "layernorm":
        rows, places = (x - x.mean(-1, keepdim=True) for x in (rows, places))
    squares = rows.square().sum(-1, keepdim=True) + places.square().sum(-1) + 2 * (rows @ places.T)
    squares = squares / config.width + config.norm_epsilon
    return float(squares.min()), float(squares.max())


def _checked(tokens: npt.ArrayLike, vocabulary: int) -> npt.NDArray[np.int64]:
    numbers = np.asarray(tokens)
    if not np.issubdtype(numbers.dtype, np.integer):
        raise InputError(f"tokens are whole numbers, not {numbers.dtype}")
    wrong = numbers[(numbers < 0) | (numbers >= vocabulary)]
    if wrong.size:
        raise InputError(f"token {wrong[0]} is outside a vocabulary of {vocabulary}")
    return numbers.astype(np.int64)
