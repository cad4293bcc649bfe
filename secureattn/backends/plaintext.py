"""The plaintext engine: torch, with gradients. It runs the approximations; exact mode runs the true functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from secureattn.errors import InputError
from secureattn.events import Recorder
from secureattn.series import FourierSeries
from secureattn.tensor import Capability, Public, Tensor, grouped, ungrouped

Observer = Callable[[str, torch.Tensor], None]
_CONVOLVE_FROM = 16
"""Tokens per feature and binary digit of their number from which a convolution beats the scores, measured."""


class PlaintextBackend:
    """Runs in the clear. ``observers`` see every named site with its full path; gradients flow through all."""

    name = "plaintext"

    def __init__(
        self, *, exact: bool = False, dtype: torch.dtype = torch.float64, recorder: Recorder | None = None
    ) -> None:
        able = {Capability.COMPARE, Capability.LOOKUP, Capability.MATRIX, Capability.JOIN}
        self.capabilities = frozenset(able | {Capability.EXACT} if exact else able)
        self.dtype = dtype
        self.recorder = recorder or Recorder()
        self.observers: list[Observer] = []

    def weight(self, array: Any) -> torch.Tensor:
        """A parameter; a torch tensor keeps its gradient."""
        return torch.as_tensor(array).to(self.dtype)

    def matrix(self, array: Any) -> torch.Tensor:
        """The same."""
        return self.weight(array)

    def input(self, array: npt.ArrayLike | torch.Tensor) -> PlaintextTensor:
        """Data ``[B,S,F]``; values that are not finite are refused."""
        data = array if isinstance(array, torch.Tensor) else torch.as_tensor(np.asarray(array, dtype=np.float64))
        data = data.to(self.dtype)
        if not torch.isfinite(data).all():
            raise InputError("the input holds values that are not finite (NaN or infinity)")
        return PlaintextTensor(self, data)

    def tokens(self, numbers: npt.NDArray[np.integer[Any]], vocabulary: int) -> OneHot:
        """Numbers of tokens ``[B,S]`` as one-hot rows ``[B,S,V]``."""
        return OneHot(self, torch.as_tensor(np.asarray(numbers)), vocabulary)

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

    def linear_attention(self, k: Self, v: Self, kernel: torch.Tensor | None = None) -> tuple[Self, Self]:
        """The cheapest of three forms: by the scores, by ``kᵀ·v``, by a convolution over tokens.

        The scores exist in the first alone, which therefore runs whenever someone observes.
        """
        tokens, width = k.shape[-2:]
        if kernel is None and tokens > width and not self.backend.observers:
            state = k._do("state", lambda: k.data.transpose(-1, -2) @ v.data)
            return self.mix(state), self.inner(k.sum(-2))
        longest = _CONVOLVE_FROM * width * math.log2(2 * tokens)
        if kernel is not None and tokens > longest and not self.backend.observers:
            values = torch.cat([v.data, torch.ones_like(v.data[..., :1])], -1)
            with self.backend.recorder.op("convolve"):
                mixed = _convolved(self.data, k.data, values, kernel)
            return self._new(mixed[..., :-1]), self._new(mixed[..., -1:])
        return super().linear_attention(k, v, kernel)

    def per_key(self) -> Self:
        return self._new(self.data.transpose(-1, -2))

    def pool(self, size: int) -> Self:
        b, h, s, d = self.shape
        if s % size:
            raise InputError(f"pool({size}) needs a multiple of {size} tokens, got {list(self.shape)}")
        return self._do("pool", lambda: self.data.reshape(b, h, s // size, size, d).mean(3))

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

    def join(self, others: Sequence[Self], axis: int) -> Self:
        return self._new(torch.cat([self.data, *(other.data for other in others)], axis))

    def group_heads(self, groups: int) -> Self:
        return self._new(grouped(self.data, groups))

    def ungroup_heads(self, groups: int) -> Self:
        return self._new(ungrouped(self.data, groups))

    def series(self, f: FourierSeries) -> Self:
        return self._do("series", lambda: _Series.apply(self.data, f))  # type: ignore[no-untyped-call]

    def refresh(self, site: str) -> Self:
        return self.observe(site)

    def less(self, other: Self | Public) -> Self:
        return self._do("less", lambda: (self.data < self._value(other)).to(self.data.dtype))

    def max(self, axis: int) -> Self:
        return self._do("max", lambda: self.data.amax(axis, keepdim=True))

    def exact(self, function: str, true: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        if Capability.EXACT not in self.backend.capabilities:
            raise self._lacks(Capability.EXACT, function)
        return self._do(function, lambda: true(self.data))

    def _value(self, other: Any) -> Any:
        if isinstance(other, PlaintextTensor):
            return other.data
        if isinstance(other, np.ndarray):
            return torch.tensor(other, dtype=self.data.dtype)
        return other

    def _do(self, op: str, compute: Callable[[], torch.Tensor]) -> Self:
        with self.backend.recorder.op(op):
            return self._new(compute())

    def _new(self, data: torch.Tensor) -> Self:
        return type(self)(self.backend, data)


class OneHot(PlaintextTensor):
    """One-hot rows of which only the places of the ones are kept; all that can be done is a linear layer, a look-up."""

    def __init__(self, backend: PlaintextBackend, numbers: torch.Tensor, vocabulary: int) -> None:
        super().__init__(backend, numbers)
        self.vocabulary = vocabulary

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Logical shape."""
        return (*self.data.shape, self.vocabulary)

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PlaintextTensor:  # type: ignore[override]
        rows = PlaintextTensor(self.backend, self.data)._do("linear", lambda: weight.T[self.data])
        return rows if bias is None else rows._do("add", lambda: rows.data + bias)


def _convolved(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """``Σ_j t_(j−i)·(q_i·k_j)·v_j`` as ``q_i·Σ_j t_(j−i)·k_j v_jᵀ``: a convolution of all k_j v_jᵀ, ``[B,H,S,Dh·Dv]``,
    with the first column and row of the Toeplitz ``kernel [H,S,S]``.
    """
    tokens = k.shape[-2]
    length = 1 << (2 * tokens - 2).bit_length()
    between = kernel.new_zeros(*kernel.shape[:-2], length - 2 * tokens + 1)
    circulant = torch.cat([kernel[..., :, 0], between, kernel[..., 0, 1:].flip(-1)], -1)
    outer = (k.unsqueeze(-1) * v.unsqueeze(-2)).flatten(-2)
    spectrum = torch.fft.rfft(outer, n=length, dim=-2) * torch.fft.rfft(circulant).unsqueeze(-1)
    states = torch.fft.irfft(spectrum, n=length, dim=-2)[..., :tokens, :].unflatten(-1, (k.shape[-1], v.shape[-1]))
    mixed: torch.Tensor = (q.unsqueeze(-2) @ states).squeeze(-2)
    return mixed


class _Series(torch.autograd.Function):
    """A Fourier series that keeps only its argument for the gradient, not an array for every harmonic."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, f: FourierSeries) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.series = f
        angle = x * (2 * math.pi / f.period)
        value: torch.Tensor = f.at(x, torch.cos(angle), torch.sin(angle))
        return value

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * _Series.apply(x, ctx.series.derivative()), None  # type: ignore[no-untyped-call]
