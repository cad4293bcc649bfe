"""Inputs of one run, and what is public of them: how many there are, and how many tokens each has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from secureattn.errors import InputError
from secureattn.nn.config import ModelConfig

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """``samples`` N inputs of up to ``tokens`` S; ``lengths``: tokens of each, None where all have S."""

    samples: int
    tokens: int
    lengths: tuple[int, ...] | None = None

    def of(self, rows: Sequence[int]) -> Shape:
        """The shape of some of the inputs alone."""
        if self.lengths is None:
            return Shape(len(rows), self.tokens)
        return shape_of([self.lengths[row] for row in rows])

    def there(self, value: torch.Tensor) -> torch.Tensor:
        """Which elements of ``[N,S,D]``, ``[N,H,S,T]`` or ``[N,1,D]`` belong to tokens that are there; broadcasts."""
        if self.lengths is None or value.shape[-2] != self.tokens:
            return torch.ones((), dtype=torch.bool)
        inside = torch.arange(self.tokens) < torch.tensor(self.lengths)[:, None]
        return inside.reshape(len(inside), *(1,) * (value.ndim - 3), self.tokens, 1)

    def parts(self, most_tokens: int) -> list[tuple[int, ...]]:
        """The inputs' numbers, shorter first, in parts of at most so many tokens with padding (or of one input)."""
        lengths = self.lengths or (self.tokens,) * self.samples
        found: list[list[int]] = []
        for row in sorted(range(self.samples), key=lambda row: lengths[row]):
            if not found or (len(found[-1]) + 1) * lengths[row] > most_tokens:
                found.append([])
            found[-1].append(row)
        return [tuple(part) for part in found]


@dataclass(frozen=True)
class Batch:
    """``values``: numbers ``[N,S,F]``, or whole numbers ``[N,S]`` of tokens, anything behind an input's last one;
    ``lengths`` as in ``Shape``.
    """

    values: npt.NDArray[Any]
    lengths: tuple[int, ...] | None = None

    @classmethod
    def of_tokens(cls, rows: Sequence[Sequence[int]]) -> Batch:
        """Token numbers of any length, behind which shorter rows have zeros."""
        shape = shape_of([len(row) for row in rows])
        values = np.zeros((shape.samples, shape.tokens), dtype=np.int64)
        for padded, row in zip(values, rows, strict=True):
            padded[: len(row)] = row
        return cls(values, shape.lengths)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> Shape:
        """What is public."""
        return Shape(len(self.values), self.values.shape[1], self.lengths)

    def filled(self, rows: Array) -> Array:
        """What each token of ``[N,S,D]`` enters with, behind each input's last one that one again."""
        if self.lengths is None:
            return rows
        last = np.array(self.lengths)[:, None] - 1
        return np.asarray(rows[np.arange(len(rows))[:, None], np.minimum(np.arange(rows.shape[1]), last)])

    def by_length(self) -> list[Batch]:
        """The inputs of each length, without padding."""
        lengths = self.lengths or (self.shape.tokens,) * len(self)
        return [self.part([row for row, n in enumerate(lengths) if n == length]) for length in sorted(set(lengths))]

    def part(self, rows: Sequence[int]) -> Batch:
        """Some of the inputs, as long as the longest of them."""
        shape = self.shape.of(rows)
        return Batch(self.values[list(rows), : shape.tokens], shape.lengths)


def shape_of(lengths: Sequence[int]) -> Shape:
    """Of inputs with so many tokens."""
    longest = max(lengths)
    equal = all(length == longest for length in lengths)
    return Shape(len(lengths), longest, None if equal else tuple(lengths))


def numbers(config: ModelConfig, inputs: npt.ArrayLike) -> Array:
    """Inputs of a model of features as float64 ``[N,S,F]``; InputError for anything else, before it costs anything."""
    wanted = (config.tokens, config.features)
    dtype = np.asarray(inputs).dtype
    if not (np.issubdtype(dtype, np.integer) or np.issubdtype(dtype, np.floating)):
        raise InputError(f"the input holds {dtype}, real numbers are needed")
    array = np.asarray(inputs, dtype=np.float64)
    if array.shape == wanted:
        array = array[None]
    if array.ndim != 3 or array.shape[1:] != wanted or not len(array):
        raise InputError(
            f"the input has shape {list(array.shape)}, model {config.name} needs [N, {wanted[0]}, {wanted[1]}]"
        )
    if not np.isfinite(array).all():
        raise InputError("the input holds values that are not finite (NaN or infinity)")
    return array
