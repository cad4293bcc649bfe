"""Products on shares, not scaled back: elementwise, inner, of matrices, and with a matrix that stays the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from secureattn.backends.crypten.material import Kind, Request, elements
from secureattn.backends.crypten.runtime import Runtime

Shares = tuple[torch.Tensor, torch.Tensor]


def products(runtime: Runtime, pairs: Sequence[Shares]) -> list[torch.Tensor]:
    """``x·y`` of every pair, broadcasting; a square where both are the same tensor.

    Formula: with e = x-a, d = y-b opened, x·y = a·b + a·d + e·b + e·d. Cost: one round in all, opening |x|+|y|
    elements a pair (|x| for a square), 8·|x·y| dealer bytes. Source: Beaver, CRYPTO 1991.
    """
    material, masked = [], []
    for x, y in pairs:
        same = x is y
        shapes = (tuple(x.shape),) if same else (tuple(x.shape), tuple(y.shape))
        *masks, c = runtime.deal(Request(Kind.SQUARE if same else Kind.PRODUCT, *shapes))
        runtime.count("products", c.numel())
        material.append((masks, c))
        masked += [share - mask for share, mask in zip((x, y), masks, strict=not same)]
    opened = iter(runtime.open(masked))
    results = []
    for masks, c in material:
        e = next(opened)
        if len(masks) == 1:
            results.append(runtime.public(c + 2 * masks[0] * e, e * e))
        else:
            d = next(opened)
            results.append(c + masks[0] * d + e * runtime.public(masks[1], d))
    return results


def inner(runtime: Runtime, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``Σ x·y`` over the last axis, kept as 1.

    Cost: one round opening |x|+|y| elements (|x| where both are the same tensor), 8 dealer bytes a sum.
    """
    if x is y:
        a, c = runtime.deal(Request(Kind.INNER_SQUARE, tuple(x.shape)))
        runtime.count("products", x.numel())
        (e,) = runtime.open([x - a])
        return runtime.public(c + 2 * (a * e).sum(-1, keepdim=True), (e * e).sum(-1, keepdim=True))
    a, b, c = runtime.deal(Request(Kind.INNER, tuple(x.shape), tuple(y.shape)))
    runtime.count("products", elements(np.broadcast_shapes(x.shape, y.shape)))
    e, d = runtime.open([x - a, y - b])
    return c + (a * d + e * runtime.public(b, d)).sum(-1, keepdim=True)


def matmul(runtime: Runtime, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """``x·y`` of matrices ``[..,m,k]``, ``[..,k,n]``.

    Cost: one round opening |x|+|y| elements, 8·|x·y| dealer bytes, 2·m·k·n MACs a matrix.
    """
    a, b, c = runtime.deal(Request(Kind.MATMUL, tuple(x.shape), tuple(y.shape)))
    e, d = runtime.open([x - a, y - b])
    return c + runtime.multiply(a, d) + runtime.multiply(e, runtime.public(b, d))


def fix(runtime: Runtime, weight: torch.Tensor) -> int:
    """Tell the others W - b of the first party's W ``[n,k]`` (contents matter there alone), b a mask that stays.

    Gives the number under which ``runtime.matrices`` has Wᵀ at the first party and (W - b)ᵀ at the others.
    Cost: one round, 8·|W| bytes from the first party to every other.
    """
    number = len(runtime.matrices)
    (b,) = runtime.deal(Request(Kind.FIX, tuple(weight.shape), argument=number))
    told = runtime.from_first(weight - b)
    runtime.matrices[number] = (weight if runtime.rank == 0 else told).t().contiguous()
    return number


def matmul_fixed(runtime: Runtime, x: torch.Tensor, number: int) -> torch.Tensor:
    """``x·Wᵀ`` of ``[m,k]`` with the fixed ``[n,k]`` of that number.

    Formula: every party i but the first draws a mask a_i and sends x_i - a_i to the first, which knows W. With a their
    sum, x·Wᵀ = (x_0 + Σ(x_i - a_i))·Wᵀ + Σ a_i·(W - b)ᵀ + a·bᵀ: the first term is the first party's alone, the second
    each other's own and, like the dealt third, worked out offline.
    Hiding: to the first party x_i - a_i is uniform, as a_i comes from party i's own key and serves once, and a·bᵀ is
    dealt in uniform shares; to the others W - b is, as b comes from the first party's key. W never needs shares.
    Cost: one round in which all but the first send m·k elements of 8 bytes; m·n·k MACs online at the first party, as
    many offline at each other; 8·m·n dealer bytes.
    Source: Mohassel and Zhang, SecureML, S&P 2017, IV-A (masks of matrices used again), one-sided: W has an owner.
    """
    matrix = runtime.matrices[number]
    a, c = runtime.deal(Request(Kind.MATMUL_FIXED, tuple(x.shape), tuple(matrix.t().shape), argument=number))
    known = runtime.to_first((x - a).reshape(-1))
    return c if known is None else c + runtime.multiply(known.reshape(x.shape), matrix)
