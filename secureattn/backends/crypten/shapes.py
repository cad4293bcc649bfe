"""Shapes of elementwise operations without torch's own rules for meta tensors.

Those are written in Python, a tenth of a millisecond each, and the first of them imports torch's compiler, a second or
two. A plan makes thousands of such operations on shapes alone, on ring elements as it runs and on real numbers as it
folds weights. What is not listed here goes torch's way and takes its time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

_ARITHMETIC = ("add", "sub", "mul", "neg", "__rsub__", "__and__", "__or__", "__xor__", "__lshift__", "__rshift__")
_COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne", "__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__")
_IN_PLACE = (
    *("add_", "sub_", "mul_", "addcmul_", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"),
    *("__iadd__", "__isub__", "__imul__"),
)


class ShapesOnly(TorchFunctionMode):
    """While it is entered, elementwise operations on meta tensors give their shape and type at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = _RULES.get(func)
        if rule is None or not _are_meta(args[0]):
            return func(*args, **(kwargs or {}))
        return rule(*args, **(kwargs or {}))


def _are_meta(first: Any) -> bool:
    first = first[0] if isinstance(first, list | tuple) else first
    return isinstance(first, torch.Tensor) and first.is_meta


def _arithmetic(a: torch.Tensor, b: Any = None) -> torch.Tensor:
    kind = a.dtype if b is None else torch.result_type(a, b)
    return torch.empty(_broadcast(a, b), dtype=kind, device="meta")


def _comparison(a: torch.Tensor, b: Any) -> torch.Tensor:
    return torch.empty(_broadcast(a, b), dtype=torch.bool, device="meta")


def _broadcast(a: torch.Tensor, b: Any) -> torch.Size:
    if not isinstance(b, torch.Tensor) or a.shape == b.shape:
        return a.shape
    return torch.Size(np.broadcast_shapes(a.shape, b.shape))


def _in_place(a: torch.Tensor, *_: Any) -> torch.Tensor:
    return a


def _quotient(a: torch.Tensor, b: Any) -> torch.Tensor:
    kind = torch.result_type(a, b)
    kind = kind if kind.is_floating_point else torch.get_default_dtype()
    return torch.empty(_broadcast(a, b), dtype=kind, device="meta")


def _mean(a: torch.Tensor, dim: int, keepdim: bool = False) -> torch.Tensor:
    shape = list(a.shape)
    shape[dim] = 1
    if not keepdim:
        del shape[dim]
    return torch.empty(shape, dtype=a.dtype, device="meta")


def _sum(a: torch.Tensor, dim: int | None = None, keepdim: bool = False) -> torch.Tensor:
    kind = a.dtype if a.dtype.is_floating_point else torch.int64
    if dim is None:
        return torch.empty((), dtype=kind, device="meta")
    return torch.empty(_mean(a, dim, keepdim).shape, dtype=kind, device="meta")


def _diagonal_matrix(a: torch.Tensor) -> torch.Tensor:
    return torch.empty((len(a), len(a)), dtype=a.dtype, device="meta")


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of matrices, or of matrices and a vector."""
    if a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(f"shapes {list(a.shape)} and {list(b.shape)} have no matrix product")
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return torch.empty((*batch, a.shape[-2], *b.shape[-1:] * (b.ndim > 1)), dtype=a.dtype, device="meta")


def _same(a: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(a)


def _joined(parts: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return torch.empty(shape, dtype=parts[0].dtype, device="meta")


_RULES: dict[Any, Callable[..., torch.Tensor]] = {
    **{getattr(torch.Tensor, name): _arithmetic for name in _ARITHMETIC},
    **{getattr(torch.Tensor, name): _comparison for name in _COMPARISONS},
    **{getattr(torch.Tensor, name): _in_place for name in _IN_PLACE},
    torch.add: _arithmetic,
    torch.Tensor.div: _quotient,
    torch.Tensor.mean: _mean,
    torch.Tensor.sum: _sum,
    torch.sqrt: _same,
    torch.matmul: _product,
    torch.Tensor.matmul: _product,
    torch.diag: _diagonal_matrix,
    torch.cat: _joined,
}
