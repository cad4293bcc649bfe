"""Embeddings: a row of a table for every token, without showing anybody which.

Two ways, by who may know what. Where the table is public the client looks its tokens up itself and shares or encrypts
the rows (``looked_up``). Where it belongs to the model's owner the client shares one-hot vectors, and the rows are a
matrix product like any linear layer's (``one_hot``, ``embed``): it costs S·V products a token's row, and shows nothing
but S and V.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from secureattn.errors import InputError
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


def _checked(tokens: npt.ArrayLike, vocabulary: int) -> npt.NDArray[np.int64]:
    numbers = np.asarray(tokens)
    if not np.issubdtype(numbers.dtype, np.integer):
        raise InputError(f"tokens are whole numbers, not {numbers.dtype}")
    wrong = numbers[(numbers < 0) | (numbers >= vocabulary)]
    if wrong.size:
        raise InputError(f"token {wrong[0]} is outside a vocabulary of {vocabulary}")
    return numbers.astype(np.int64)
