"""The plaintext engine: torch, with gradients. It runs the approximations; exact mode runs the true functions."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from secureattn.errors import CapabilityError, InputError
from secureattn.events import Recorder
from secureattn.tensor import Capability, Public, Tensor

Observer = Callable[[str, torch.Tensor], None]
_EXACT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "gelu": torch.nn.functional.gelu,
    "reciprocal": torch.reciprocal,
    "rsqrt": torch.rsqrt,
}


class PlaintextBackend:
    """Runs in the clear. ``observers`` see every named site with its full path; gradients flow through all."""

    name = "plaintext"

    def __init__(
        self, *, exact: bool = False, dtype: torch.dtype = torch.float64, recorder: Recorder | None = None
    ) -> None:
        compare = {Capability.COMPARE, Capability.LOOKUP}
        self.capabilities = frozenset(compare | {Capability.EXACT} if exact else compare)
        self.dtype = dtype
        self.recorder = recorder or Recorder()
        self.observers: list[Observer] = []

    def weight(self, array: Any) -> torch.Tensor:
        """A parameter; a torch tensor keeps its gradient."""
        return torch.as_tensor(array).to(self.dtype)

    def input(self, array: npt.ArrayLike | torch.Tensor) -> PlaintextTensor:
        """Data ``[B,S,F]``; values that are not finite are refused."""
        data = array if isinstance(array, torch.Tensor) else torch.as_tensor(np.asarray(array, dtype=np.float64))
        data = data.to(self.dtype)
        if not torch.isfinite(data).all():
            raise InputError("the input holds values that are not finite (NaN or infinity)")
        return PlaintextTensor(self, data)

    def reveal(self, x: Tensor) -> npt.NDArray[np.float64]:
        """The value as an array."""
        assert isinstance(x, PlaintextTensor)
        return x.data.detach().to(torch.float64).numpy()

    def region(self, name: str) -> AbstractContextManager[None]:
        """Name the part of the network that runs inside."""
        return self.recorder.region(name)

    def observe(self, site: str, x: Tensor) -> None:
        """Pass the value on to every observer, under ``region/site``."""
        if self.observers:
            assert isinstance(x, PlaintextTensor)
            path = f"{self.recorder.path}/{site}"
            for observer in self.observers:
                observer(path, x.data)


class PlaintextTensor(Tensor):
    """A torch tensor behind the Tensor interface."""

    backend: PlaintextBackend

    def __init__(self, backend: PlaintextBackend, data: torch.Tensor) -> None:
        self.backend = backend
        self.data = data

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Logical shape."""
        return tuple(self.data.shape)

    def __add__(self, other: Self | Public) -> Self:
        return self._do("add", lambda: self.data + self._value(other))

    def __mul__(self, other: Self | Public) -> Self:
        return self._do("multiply", lambda: self.data * self._value(other))

    def __neg__(self) -> Self:
        return self._do("negate", lambda: -self.data)

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Self:
        product = self._do("linear", lambda: self.data @ weight.T)
        return product if bias is None else product._do("add", lambda: product.data + bias)

    def inner(self, other: Self) -> Self:
        return self._do("inner", lambda: (self.data * other.data).sum(-1, keepdim=True))

    def scores(self, k: Self) -> Self:
        return self._do("scores", lambda: self.data @ k.data.transpose(-1, -2))

    def mix(self, v: Self) -> Self:
        return self._do("mix", lambda: self.data @ v.data)

    def sum(self, axis: int) -> Self:
        return self._do("sum", lambda: self.data.sum(axis, keepdim=True))

    def split_heads(self, heads: int) -> Self:
        b, s, d = self.shape
        return self._new(self.data.reshape(b, s, heads, d // heads).transpose(1, 2))

    def merge_heads(self) -> Self:
        b, h, s, d = self.shape
        return self._new(self.data.transpose(1, 2).reshape(b, s, h * d))

    def take(self, axis: int, index: int | slice) -> Self:
        part = slice(index, index + 1 or None) if isinstance(index, int) else index
        where: list[slice] = [slice(None)] * self.data.ndim
        where[axis] = part
        return self._new(self.data[tuple(where)])

    def refresh(self, site: str) -> Self:
        return self.observe(site)

    def less(self, other: Self | Public) -> Self:
        return self._do("less", lambda: (self.data < self._value(other)).to(self.data.dtype))

    def max(self, axis: int) -> Self:
        return self._do("max", lambda: self.data.amax(axis, keepdim=True))

    def exact(self, function: str) -> Self:
        if Capability.EXACT not in self.backend.capabilities:
            raise self._lacks(Capability.EXACT, function)
        if function not in _EXACT:
            raise CapabilityError(f"no true form of {function!r} is known; there are {', '.join(sorted(_EXACT))}")
        return self._do(function, lambda: _EXACT[function](self.data))

    def _value(self, other: Any) -> Any:
        if isinstance(other, PlaintextTensor):
            return other.data
        if isinstance(other, np.ndarray):
            return torch.as_tensor(other).to(self.data.dtype)
        return other

    def _do(self, op: str, compute: Callable[[], torch.Tensor]) -> Self:
        with self.backend.recorder.op(op):
            return self._new(compute())

    def _new(self, data: torch.Tensor) -> Self:
        return type(self)(self.backend, data)
