"""An image as TenSEAL's ``CKKSVector`` for ``tenseal_program.program``: a token's features in one ciphertext.

TenSEAL repeats a vector until the slots are full, and ``mm`` reads on into the repetitions. Two operations of 0.3.18
change the first one alone: the sum with a plain vector, and an operation of a vector of size 1 with a longer one. They
decrypt as they should, and the next ``mm`` is wrong by about as much as was added. Biases are therefore added
encrypted; and a value that features are multiplied with is encrypted once for each of them where the key owner
refreshes it, which spares a level and rotations besides. ``copy()`` copies all keys too, and any operation lowers its
higher operand in place: neither is relied on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tenseal as ts
from tenseal_program import REFRESH, SCORES, TIMES_COLUMN, Array, Kind

Cells = npt.NDArray[np.object_]


@dataclass(frozen=True)
class Vectors:
    """Ciphertexts, which numpy adds and multiplies one by one like any objects: of ``width`` features a token
    ``[S,D]``, or where that is None of one value a token ``[S]`` or pair of tokens ``[S,S]``, in one or more copies.
    """

    cells: Cells
    width: int | None = None

    @property
    def shape(self) -> list[int]:
        return [*self.cells.shape, *([] if self.width is None else [self.width])]

    @property
    def first(self) -> Any:
        """One ciphertext."""
        return self.cells.flat[0]

    def __getitem__(self, item: tuple[slice, ...]) -> Vectors:
        """Some tokens, with all of their features."""
        return replace(self, cells=self.cells[item[: self.cells.ndim]])

    def __add__(self, other: Vectors | Array | float) -> Vectors:
        cells = _encrypted(self._context(), other) if isinstance(other, np.ndarray) else _cells(other)
        return replace(self, cells=self.cells + cells)

    def __mul__(self, other: Vectors | float) -> Vectors:
        return self._each(lambda x: x.square()) if other is self else replace(self, cells=self.cells * _cells(other))

    def mm(self, other: Vectors | Array) -> Vectors:
        """Features ``[S,D]`` times a plain matrix ``[D,E]``, or values ``[S,S]`` times features ``[S,D]``."""
        if isinstance(other, Vectors):
            return replace(other, cells=self.cells @ other.cells)
        return replace(self._each(lambda x: x.mm(other)), width=other.shape[1])

    def sum(self, axis: int) -> Vectors:
        """Over features, or over the second of a pair of tokens: both are axis 2 of a batch."""
        if self.width is None:
            return replace(self, cells=self.cells.sum(axis - 1))
        return replace(self._each(lambda x: x.sum()), width=None)

    def polyval(self, coefficients: Sequence[float]) -> Vectors:
        return self._each(lambda x: x.polyval(coefficients))

    def refreshed(self, copies: Mapping[int, int]) -> Vectors:
        """All levels again, from the key owner; a value in so many ``copies``, by the number of axes of values."""
        context = self._context()

        def anew(x: Any) -> Any:
            values = x.decrypt()
            return ts.ckks_vector(context, values if self.width else values[:1] * copies[self.cells.ndim])

        return self._each(anew)

    def _each(self, function: Callable[[Any], Any]) -> Vectors:
        return replace(self, cells=np.frompyfunc(function, 1, 1)(self.cells))

    def _context(self) -> Any:
        return self.first.context()


def _cells(x: Vectors | float) -> Any:
    return x.cells if isinstance(x, Vectors) else x


def _encrypted(context: Any, rows: Array) -> Cells:
    """Rows ``[S,D]``, a ciphertext each; those that are equal have the same."""
    made = {row.tobytes(): ts.ckks_vector(context, row) for row in rows}
    cells = np.empty(len(rows), dtype=object)
    cells[:] = [made[row.tobytes()] for row in rows]
    return cells


def _scores(q: Vectors, k: Vectors) -> Vectors:
    return Vectors(np.frompyfunc(lambda x, y: x.dot(y), 2, 1).outer(q.cells, k.cells))


def _times_column(x: Vectors, column: Vectors) -> Vectors:
    values = column.cells if x.width else column.cells[:, None]
    return replace(x, cells=x.cells * values)


# ---- what a run asks of a type of tensor ----------------------------------------------------------------------------

ROTATES = True


def encrypt(context: Any, inputs: Array) -> Vectors:
    """One image ``[1,S,F]``."""
    (rows,) = inputs
    return Vectors(_encrypted(context, rows), rows.shape[1])


def decrypt(x: Vectors) -> Array:
    """``[1,S,D]``."""
    return np.array([[cell.decrypt() for cell in x.cells]])


def serialised_bytes(x: Vectors) -> int:
    """Of all ciphertexts, as the first one has them."""
    return len(x.first.serialize()) * x.cells.size


def ways(width: int, head_width: int) -> Mapping[Kind, Callable[..., Any]]:
    """What kinds of the program are done in another way than a batch's; a token's value is to join all of its
    features, that of a pair those of a head.
    """
    copies = {1: width, 2: head_width}
    return {SCORES: _scores, TIMES_COLUMN: _times_column, REFRESH: lambda x: x.refreshed(copies)}
