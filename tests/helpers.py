"""What the tests share: one way to compare numbers, and a tensor that counts what is done to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.events import Recorder
from secureattn.tensor import Tensor

Array = npt.NDArray[np.float64]
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def assert_close(actual: Any, expected: Any, max_error: float, reason: str) -> None:
    """Fail unless shapes agree and every ``|actual − expected| ≤ max_error``; NaN is never close to anything.

    The message names the worst element, its index and both values; ``reason`` says why the tolerance is what it is.
    """
    got, wanted = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert got.shape == wanted.shape, f"shape {got.shape} is not the expected {wanted.shape}"
    if not got.size:
        raise AssertionError("nothing to compare: both are empty")
    with np.errstate(invalid="ignore"):
        error = np.abs(got - wanted)
    error = np.where(np.isnan(error), np.inf, error)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(error)), error.shape))
    assert error[index] <= max_error, (
        f"error {error[index]:.3e} at {index} exceeds {max_error:.3e} ({reason}): "
        f"got {got[index]!r}, expected {wanted[index]!r}"
    )


@dataclass
class Tally:
    """What was counted: products of two secret values, comparisons."""

    products: int = 0
    comparisons: int = 0


@dataclass
class CountingBackend:
    """Just enough of an engine for a tensor to name it."""

    name: str = "counting"
    capabilities: frozenset[Any] = frozenset()
    recorder: Recorder = field(default_factory=Recorder)

    def observe(self, site: str, x: Tensor) -> None:
        """Nothing to see."""


class Counting(Tensor):
    """An array that knows its depth and counts products the way a levelled scheme does: a product of two values or
    with a number that is not whole takes a level, and ``combine`` takes one for all it adds up.
    """

    def __init__(self, data: Any, depth: int = 0, tally: Tally | None = None) -> None:
        self.backend = CountingBackend()  # type: ignore[assignment]
        self.data = np.asarray(data, dtype=np.float64)
        self.shape = self.data.shape
        self.depth = depth
        self.tally = tally if tally is not None else Tally()

    def _new(self, data: Any, depth: int) -> Counting:
        return Counting(data, depth, self.tally)

    def __add__(self, other: Any) -> Counting:
        if isinstance(other, Counting):
            return self._new(self.data + other.data, max(self.depth, other.depth))
        return self._new(self.data + other, self.depth)

    def __mul__(self, other: Any) -> Counting:
        if isinstance(other, Counting):
            self.tally.products += 1
            return self._new(self.data * other.data, max(self.depth, other.depth) + 1)
        whole = np.all(np.equal(np.mod(other, 1), 0))
        return self._new(self.data * other, self.depth + (0 if whole else 1))

    def __neg__(self) -> Counting:
        return self._new(-self.data, self.depth)

    def combine(self, terms: Any = (), products: Any = (), constant: float = 0.0) -> Counting:
        self.tally.products += len(products)
        data = sum(c * x.data for c, x in terms) + sum(a.data * b.data for a, b in products) + constant
        deepest = max([x.depth for _, x in terms] + [x.depth for pair in products for x in pair])
        return self._new(data, deepest + 1)

    def less(self, other: Any) -> Counting:
        self.tally.comparisons += 1
        return self._new((self.data < other).astype(np.float64), self.depth)

    def per_key(self) -> Counting:
        return self._new(self.data.swapaxes(-1, -2), self.depth)

    def sum(self, axis: int) -> Counting:
        return self._new(self.data.sum(axis, keepdims=True), self.depth)

    def _not_counted(self, *_: Any) -> Counting:
        raise NotImplementedError("no test counts this")

    linear = inner = scores = mix = split_heads = merge_heads = take = _not_counted  # type: ignore[assignment]


def eight_bits(x: Any) -> Any:
    """Numbers rounded to 8 significant bits."""
    unit = 2.0 ** (np.floor(np.log2(x)) - 7)
    return np.rint(x / unit) * unit
