"""What a decrypted ciphertext of a tensor should hold, by its layout's formula: to be compared with a clear run."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks.batch import BatchTensor
from secureattn.backends.ckks.dense import DenseTensor
from secureattn.backends.ckks.dense_layout import power_of_two

Array = npt.NDArray[np.float64]
Index = tuple[Any, ...]


def expected_slots(x: BatchTensor | DenseTensor, part: int, value: Array) -> Array:
    """Slots ``[N/2]`` of one of a tensor's parts, counted flat, for the clear value ``[B,…]`` of its logical shape.

    NaN where nothing of it lies: missing queries, padded tokens, keys, heads and features.
    """
    index, real = _batch(x, part) if isinstance(x, BatchTensor) else _dense(x, part)
    whole = np.broadcast_to(value, x.shape)
    by_head = whole if whole.ndim == 4 else whole[:, None]
    return np.where(real, by_head[index], np.nan)


def _batch(x: BatchTensor, part: int) -> tuple[Index, npt.NDArray[np.bool_]]:
    """Slot = token·B + query; the tokens of a value with one token are all the same."""
    backend, rows = x.backend, x.shape[-2]
    head, column = np.unravel_index(part, x.parts.shape)
    t, q = np.divmod(np.arange(backend.tokens * backend.batch), backend.batch)
    key = (t + column) % backend.tokens if x.diagonals and x.shape[-1] > 1 else np.full_like(t, column)
    real = (q < x.shape[0]) & ((t < rows) | (rows == 1)) & (key < x.shape[-1])
    return (np.where(q < x.shape[0], q, 0), head, np.minimum(t, rows - 1), np.minimum(key, x.shape[-1] - 1)), real


def _dense(x: DenseTensor, part: int) -> tuple[Index, npt.NDArray[np.bool_]]:
    """Slot = (((d·R + c)·H + h)·T + t)·B + q; feature h·D + d, or the key c mod n tokens on."""
    layout, rows, scores = x.backend.layout, x.shape[-2], x.diagonals and x.shape[-1] > 1
    heads, width = (x.shape[1], 1) if scores else layout.split(x.block)
    sizes = (power_of_two(width), power_of_two(heads), layout.tokens, layout.batch)
    grid = (sizes[0], layout.slots // int(np.prod(sizes)), *sizes[1:])
    d, c, h, t, q = np.unravel_index(np.arange(layout.slots), grid)
    if scores:
        column = (t + part * x.offsets + c % x.offsets) % layout.tokens
    else:
        column = part * x.block[-1] + (d if len(x.shape) == 4 else h * width + d)
    real = (q < x.shape[0]) & ((t < rows) | (rows == 1)) & (h < heads) & (d < width) & (column < x.shape[-1])
    head = np.minimum(h, heads - 1) if len(x.shape) == 4 else 0
    return (
        np.where(q < x.shape[0], q, 0),
        head,
        np.minimum(t, rows - 1),
        np.minimum(column, x.shape[-1] - 1),
    ), real
