"""Scaling back: ``z / 2^bits`` of a shared ring element, exactly with a dealer or by each party alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from secureattn.backends.crypten.material import Kind, Request
from secureattn.backends.crypten.runtime import Runtime, split

_OFFSET = 1 << 62


def truncate(runtime: Runtime, shares: Sequence[torch.Tensor], bits: Sequence[int]) -> list[torch.Tensor]:
    """``z / 2^bits`` of several shared tensors at once, each with its own bits.

    Domain: |z| < 2^62 (exact). Error: exact, less than 1 unit in the last place and zero on average, always;
    local, the same but for a gross error with probability |z|/2^63. Cost: exact, one round opening |z| elements,
    16·|z| dealer bytes; local, none.
    """
    runtime.count("truncations", sum(share.numel() for share in shares))
    if runtime.parameters.truncation == "local":
        return [_local(runtime, z, k) for z, k in zip(shares, bits, strict=True)]
    return _exact(runtime, shares, bits)


def _local(runtime: Runtime, z: torch.Tensor, bits: int) -> torch.Tensor:
    # Mohassel and Zhang, SecureML, S&P 2017, theorem 1: each of two parties shifts its own share
    return z >> bits if runtime.rank == 0 else -(-z >> bits)


def _exact(runtime: Runtime, shares: Sequence[torch.Tensor], bits: Sequence[int]) -> list[torch.Tensor]:
    """Open z + r with dealt r, r >> bits and top bit t of r.

    Let y = z + 2^62, so 0 ≤ y < 2^63, and c = y + r mod 2^64 = y + r - w·2^64. Then
    ⌊(y+r)/2^f⌋ = ⌊c/2^f⌋ + w·2^(64-f) = ⌊y/2^f⌋ + ⌊r/2^f⌋ + e, where e ∈ {0,1} carries out of the low f bits, so
    ⌊c/2^f⌋ + w·2^(64-f) - ⌊r/2^f⌋ - 2^(62-f) = ⌊z/2^f⌋ + e; and e = 1 with probability (z mod 2^f)/2^f.
    The wrap w is known: if w = 1, r ≥ 2^64 - y > 2^63 so t = 1, and c = y - (2^64 - r) < 2^63, top bit 0; if w = 0
    and t = 1, c ≥ r ≥ 2^63, top bit 1. Hence w = t·(1 - top bit of c), linear in the shared t. c is uniform: it
    hides y perfectly. After Dalskov, Escudero and Keller, PoPETs 2020 (4), and Escudero et al., CRYPTO 2020.
    """
    by_bits: dict[int, list[int]] = {}
    for i, k in enumerate(bits):
        by_bits.setdefault(k, []).append(i)
    parts = [torch.cat([shares[i].reshape(-1) for i in indices]) for indices in by_bits.values()]
    dealt = [
        runtime.deal(Request(Kind.TRUNCATE, tuple(z.shape), argument=k)) for z, k in zip(parts, by_bits, strict=True)
    ]
    masked = [z + r for z, (r, _, _) in zip(parts, dealt, strict=True)]
    if runtime.rank == 0:
        masked = [z + _OFFSET for z in masked]
    found: list[torch.Tensor] = list(shares)
    for (k, indices), (_, high, top), c in zip(by_bits.items(), dealt, runtime.open(masked), strict=True):
        kept = 64 - k
        scaled = ((top * (c >= 0)) << kept) - high
        scaled = runtime.public(scaled, ((c >> k) & ((1 << kept) - 1)) - (_OFFSET >> k))
        for i, part in zip(indices, split(scaled, [shares[i] for i in indices]), strict=True):
            found[i] = part
    return found
