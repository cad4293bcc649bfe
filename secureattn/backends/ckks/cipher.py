"""What the engine computes with: ciphertexts with their level and scale, public vectors, and what executes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from secureattn.errors import PlanError

Slots = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Cipher:
    """A ciphertext: rescales left, exact scale, number of polynomials, and the device's own data."""

    level: int
    scale: float
    size: int
    data: Any


@dataclass(frozen=True, eq=False)
class Vector:
    """Public slots that are multiplied with more than once: encoded the first time they meet a level and scale."""

    slots: Slots
    encoded: dict[tuple[int, float], Any] = field(default_factory=dict, repr=False)


class Device(Protocol):
    """What executes: SEAL's evaluator, or nothing at all."""

    def add(self, a: Any, b: Any) -> Any: ...
    def accumulate(self, total: Any, b: Any) -> Any: ...
    def negate(self, ct: Any) -> Any: ...
    def add_constant(self, ct: Any, value: float) -> Any: ...
    def add_vector(self, ct: Any, slots: Slots) -> Any: ...
    def encode(self, value: Slots, level: int, scale: float) -> Any: ...
    def multiply_encoded(self, ct: Any, plain: Any, scale: float) -> Any: ...
    def multiply(self, a: Any, b: Any) -> Any: ...
    def square(self, ct: Any) -> Any: ...
    def multiply_matrix(self, weights: Any, cts: Sequence[Any], level: int, scale: float) -> list[Any]: ...
    def multiply_constant(self, ct: Any, value: float, scale: float) -> Any: ...
    def multiply_vector(self, ct: Any, slots: Slots, scale: float) -> Any: ...
    def relinearize(self, ct: Any) -> Any: ...
    def rescale(self, ct: Any) -> Any: ...
    def rotate(self, ct: Any, steps: int) -> Any: ...
    def drop_to(self, ct: Any, level: int) -> Any: ...
    def shift(self, ct: Any, places: int) -> Any: ...
    def rerandomise(self, ct: Any) -> Any: ...
    def memory(self, ct: Any) -> Any: ...
    def over(self, words: Any, size: int, level: int, scale: float) -> Any: ...


class NullDevice:
    """Computes nothing: every ciphertext is None. The plan's device."""

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        return lambda *operands: None


class OutOfLevels(PlanError):
    """An operation needs more levels than are left; ``at`` adds where."""

    def __init__(self, what: str, needed: int = 1, left: int = 0, region: str = "") -> None:
        self.what, self.needed, self.left, self.region = what, needed, left, region
        super().__init__(
            f"{what} needs {needed} level{'s' * (needed > 1)}, {left} remain{'s' * (left == 1)} at "
            f'{region or "the top level"}; use a lower degree, fewer layers, or refresh = "client"'
        )

    def at(self, region: str) -> OutOfLevels:
        """The same error with the region it happened in, unless it knows one already."""
        return self if self.region else OutOfLevels(self.what, self.needed, self.left, region)
