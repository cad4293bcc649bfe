"""Arithmetic of Z_2^64 on whatever device the shares are on."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from secureattn.errors import EngineError, InputError

DEVICES = ("cpu", "cuda")
_LIMB_BITS, _LIMBS = 16, 4
_MOST_TERMS = 1 << 19  # of a sum of four products of limbs that float64 holds exactly
_ON_ACCELERATOR = 1 << 24


def device_of(name: str) -> torch.device:
    """The device of that name, if it is here."""
    if name not in DEVICES:
        raise InputError(f"a device is {' or '.join(DEVICES)}, not {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise EngineError("--device cuda needs a CUDA device and a torch built for it; run with --device cpu")
    return torch.device(name)


def matmul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``x·y`` of int64 matrices ``[..,m,k]``, ``[..,k,n]``, modulo 2^64; torch knows how on a CPU only."""
    return torch.matmul(x, y) if x.device.type in ("cpu", "meta") else by_limbs(x, y)


def by_limbs(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The same in float64: four matrix products, the s-th of s + 1 pairs of 16-bit limbs i and j with i + j = s.

    Domain: k up to 2^19, for which the sums are exact. Source: as CrypTen's CUDALongTensor (Knott et al., NeurIPS 2021;
    Tan et al., CryptGPU, S&P 2021).
    """
    if x.shape[-1] > _MOST_TERMS:
        raise InputError(f"a matrix product on {x.device.type} sums up to {_MOST_TERMS} terms, not {x.shape[-1]}")
    first, second = _limbs(x), _limbs(y)
    total: torch.Tensor | None = None
    for s in range(_LIMBS):
        left = torch.cat(first[: s + 1], -1)
        right = torch.cat(second[s::-1], -2)
        part = torch.matmul(left, right).to(torch.int64) << (_LIMB_BITS * s)
        total = part if total is None else total + part
    assert total is not None
    return total


def _limbs(x: torch.Tensor) -> list[torch.Tensor]:
    mask = (1 << _LIMB_BITS) - 1
    return [((x >> (_LIMB_BITS * i)) & mask).to(torch.float64) for i in range(_LIMBS)]


def blocks(like: torch.Tensor, in_cache: int) -> Iterator[slice]:
    """Parts of a flat tensor to work on in turn: what a CPU's cache holds, or what keeps an accelerator busy."""
    length, step = len(like), in_cache if like.device.type == "cpu" else _ON_ACCELERATOR
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
