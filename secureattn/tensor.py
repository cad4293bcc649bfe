"""The Tensor interface: what an engine must provide, and what follows from it.

Shapes are logical: tokens ``[B,S,D]``, heads ``[B,H,S,Dh]``, scores ``[B,H,S,S]``, reduced axes kept as 1; an
engine lays them out as it likes. Formulas and networks are written over this interface alone and never ask
which engine they run on.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from secureattn.errors import CapabilityError

if TYPE_CHECKING:
    from secureattn.events import Recorder
    from secureattn.polynomial import Polynomial
    from secureattn.series import FourierSeries

Public = float | int | npt.NDArray[np.float64]
"""A value everybody may know: a number, or an array that broadcasts to the tensor's logical shape."""

Weight = Any
"""A parameter made by ``Backend.weight``: public to the evaluator under CKKS, shared under MPC."""


class Capability(Enum):
    """What only some engines can do. Declared, never probed."""

    COMPARE = "comparison"
    LOOKUP = "look-up at a secret index"
    MATRIX = "products of matrices of scores"
    JOIN = "joining what was computed apart"
    EXACT = "true functions instead of approximations"


class Backend(Protocol):
    """An engine ready to run: makes weights and tensors, and records what they cost."""

    name: str
    capabilities: frozenset[Capability]
    recorder: Recorder

    def weight(self, array: Any) -> Weight:
        """Prepare a parameter: an addend such as ``[D]`` or ``[S,D]``, or a matrix ``[Dout,Din]`` for ``linear``."""

    def matrix(self, array: Any) -> Weight:
        """The same for a matrix that ``linear`` will use; what that needs once is done now."""

    def region(self, name: str) -> AbstractContextManager[None]:
        """Name the part of the network that runs inside, for the ledger."""

    def observe(self, site: str, x: Tensor) -> None:
        """See the value at a named site: calibration, range penalties and escapes hook in here."""


class Tensor(ABC):
    """A value of the running program, in the clear or not."""

    __array_ufunc__ = None  # so that ``array * tensor`` asks the tensor instead of making an array of objects

    backend: Backend
    shape: tuple[int, ...]

    # ---- required -------------------------------------------------------------------------------------------

    @abstractmethod
    def __add__(self, other: Self | Weight | Public) -> Self: ...

    @abstractmethod
    def __mul__(self, other: Self | Weight | Public) -> Self: ...

    @abstractmethod
    def __neg__(self) -> Self: ...

    @abstractmethod
    def linear(self, weight: Weight, bias: Weight | None = None) -> Self:
        """``x·Wᵀ + b`` over the last axis: ``[B,S,Din]`` → ``[B,S,Dout]``; the bias is ``[Dout]`` or ``[S,Dout]``."""

    @abstractmethod
    def inner(self, other: Self) -> Self:
        """Sum of products over the last axis, fused: ``[…,D]``, ``[…,D]`` → ``[…,1]``."""

    @abstractmethod
    def scores(self, k: Self) -> Self:
        """``q·kᵀ`` per head: ``[B,H,S,Dh]``, ``[B,H,S,Dh]`` → ``[B,H,S,S]``."""

    @abstractmethod
    def mix(self, v: Self) -> Self:
        """``a·v`` per head: ``[B,H,S,S]``, ``[B,H,S,Dh]`` → ``[B,H,S,Dh]``."""

    @abstractmethod
    def per_key(self) -> Self:
        """A value per token as a value per key: ``[B,H,S,1]`` → ``[B,H,1,S]``, to be joined with scores."""

    @abstractmethod
    def sum(self, axis: int) -> Self:
        """Sum over one axis, kept as 1."""

    @abstractmethod
    def split_heads(self, heads: int) -> Self:
        """``[B,S,H·Dh]`` → ``[B,H,S,Dh]``."""

    @abstractmethod
    def merge_heads(self) -> Self:
        """``[B,H,S,Dh]`` → ``[B,S,H·Dh]``."""

    @abstractmethod
    def take(self, axis: int, index: int | slice) -> Self:
        """Part of an axis by public index, the axis kept."""

    def join(self, others: Sequence[Self], axis: int) -> Self:
        """This and others one after another along an axis: along tokens what was computed before, or features."""
        raise self._lacks(Capability.JOIN, "join")

    def lasting(self) -> Self:
        """The same, as keys or values ``[B,H,T,Dh]`` that scores and mixtures of later passes will meet again."""
        return self

    def extended(self, rows: Self) -> Self:
        """What is lasting with further rows behind it, ``[B,H,T+S,Dh]``; the shorter one is not used again."""
        return self.join([rows], -2)

    def group_heads(self, groups: int) -> Self:
        """``[B,H,S,Dh]`` → ``[B,H/g,g·S,Dh]``: heads that share keys and values as more rows of one."""
        raise self._lacks(Capability.JOIN, "group_heads")

    def ungroup_heads(self, groups: int) -> Self:
        """Back: ``[B,H/g,g·S,Dh]`` → ``[B,H,S,Dh]``."""
        raise self._lacks(Capability.JOIN, "ungroup_heads")

    # ---- derived --------------------------------------------------------------------------------------------

    def __radd__(self, other: Public) -> Self:
        return self + other

    def __rmul__(self, other: Public) -> Self:
        return self * other

    def __sub__(self, other: Self | Public) -> Self:
        return self + (-other)

    def __rsub__(self, other: Public) -> Self:
        return -self + other

    def square(self) -> Self:
        """``x·x``, elementwise."""
        return self * self

    def mean(self, axis: int) -> Self:
        """Mean over one axis, kept as 1."""
        return self.sum(axis) * (1.0 / self.shape[axis])

    def combine(
        self,
        terms: Sequence[tuple[float, Self]] = (),
        products: Sequence[tuple[Self, Self]] = (),
        constant: float = 0.0,
    ) -> Self:
        """``Σ c_i·x_i + Σ a_j·b_j + constant``; an engine that can relinearises, rescales or truncates once for all."""
        parts = [x * c for c, x in terms] + [a.square() if a is b else a * b for a, b in products]
        total = functools.reduce(lambda x, y: x + y, parts)
        return total + constant if constant else total

    def polynomial(self, p: Polynomial) -> Self:
        """A polynomial of every element, at optimal depth (see ``secureattn.polynomial.evaluate``)."""
        from secureattn.polynomial import evaluate

        value: Self = evaluate(p, self)
        return value

    def series(self, f: FourierSeries) -> Self:
        """A Fourier series of every element: by its polynomial twin, where an engine has no better way."""
        return self.polynomial(f.twin)

    def linear_attention(self, k: Self, v: Self, kernel: Weight | None = None) -> tuple[Self, Self]:
        """``(w·v, Σ_j w_ij)`` for ``w = (q·kᵀ)·kernel`` without a function between: ``[B,H,S,Dh]`` and ``[B,H,S,1]``.

        ``kernel [H,S,S]`` multiplies elementwise and is Toeplitz. Matrix products associate, and an engine may take
        ``q·(kᵀ·v)`` or a convolution where that is cheaper.
        """
        weights = self.scores(k).refresh("scores")
        if kernel is not None:
            weights = weights * kernel
        return weights.refresh("numerator").mix(v), weights.sum(-1)

    def refresh(self, site: str) -> Self:
        """A place where a levelled engine may restore depth if its plan says so; others pass."""
        return self

    def observe(self, site: str) -> Self:
        """Let the backend see the value under ``region/site``; returns the tensor itself."""
        self.backend.observe(site, self)
        return self

    # ---- capabilities ---------------------------------------------------------------------------------------

    def less(self, other: Self | Public) -> Self:
        """1 where ``x < other``, else 0. Needs COMPARE."""
        raise self._lacks(Capability.COMPARE, "less")

    def less_each(self, others: Sequence[Self | Public]) -> list[Self]:
        """``less`` for each of several; an engine may compare all at once. Needs COMPARE."""
        return [self.less(other) for other in others]

    def pool(self, size: int) -> Self:
        """Mean of every ``size`` tokens in a row: ``[B,H,S,Dh]`` → ``[B,H,S/size,Dh]``. Needs MATRIX."""
        raise self._lacks(Capability.MATRIX, "pool")

    def max(self, axis: int) -> Self:
        """Largest value along one axis, kept as 1. Needs COMPARE."""
        raise self._lacks(Capability.COMPARE, "max")

    def exact(self, function: str, true: Callable[[Any], Any]) -> Self:
        """The true function ``true`` of torch tensors. Needs EXACT: only the plaintext engine's exact mode."""
        raise self._lacks(Capability.EXACT, function)

    def _lacks(self, capability: Capability, op: str) -> CapabilityError:
        remedy = {
            Capability.COMPARE: 'choose a polynomial realisation in the protocol, such as kind = "chebyshev"',
            Capability.LOOKUP: "look the value up at the client",
            Capability.MATRIX: "choose another attention variant, or run the model on secret shares",
            Capability.JOIN: "run the model on secret shares",
            Capability.EXACT: "use the plaintext engine's exact mode",
        }
        where = self.backend.recorder.path or "the top level"
        return CapabilityError(
            f"{op} needs {capability.value}, which the {self.backend.name} engine lacks, at {where}; "
            f"{remedy[capability]}"
        )


def grouped(x: Any, groups: int) -> Any:
    """``Tensor.group_heads`` of an array or a torch tensor."""
    b, h, s, d = x.shape
    return x.reshape(b, h // groups, groups * s, d)


def ungrouped(x: Any, groups: int) -> Any:
    """``Tensor.ungroup_heads`` of an array or a torch tensor."""
    b, h, s, d = x.shape
    return x.reshape(b, h * groups, s // groups, d)
