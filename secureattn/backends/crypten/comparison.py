"""The sign of a shared number, in three rounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from secureattn.backends.crypten.bit_tables import MOST_BITS, BitTables
from secureattn.backends.crypten.material import Kind, Request
from secureattn.backends.crypten.runtime import Runtime, joined, split
from secureattn.errors import InputError


def negative(runtime: Runtime, shares: Sequence[torch.Tensor], bits: int) -> list[torch.Tensor]:
    """For several shared tensors at once: 1 where the value, as a signed number, is below zero, else 0 (an integer).

    Domain: -2^bits ≤ x < 2^bits; the fewer bits, the less is sent and dealt.
    Formula: let y = x + 2^n for n bits, so 0 ≤ y < 2^(n+1), and x < 0 just if y has no bit n. With r uniform below
    2^(n+2), c = y + r mod 2^(n+2) is opened: uniform, whatever x is. As in exact truncation the wrap is t·(1 - top bit
    of c), t the top bit of r, and ⌊y/2^n⌋ = ⌊c/2^n⌋ + 4·wrap - ⌊r/2^n⌋ - [c mod 2^n < r mod 2^n], of which all but
    the last is linear in dealt values. That one comes from ``bit_tables`` in two further rounds.
    Cost: three rounds, 4 + ⌈n/16⌉ + 1 bytes an element up to 30 bits, 4 more above; 6, 11, 20 or 34 dealt words an
    element for up to 16, 32, 48 or 60 bits.
    Source: masked opening as in Escudero et al., CRYPTO 2020; tables and products as ``bit_tables`` says.
    """
    if not 1 <= bits <= MOST_BITS:
        raise InputError(f"a comparison takes numbers of 1 to {MOST_BITS} bits, not of {bits}; lower integer_bits")
    flat, tables, low = joined(shares), BitTables(bits), (1 << (bits + 2)) - 1
    runtime.count("comparisons", flat.numel())
    r, _, words, monomials = runtime.deal(Request(Kind.LESS, tuple(flat.shape), argument=bits))
    first = runtime.rank == 0
    masked = (flat + r + (1 << bits if first else 0)) & low
    c = runtime.exchange(masked.to(torch.int32) if bits + 2 <= 32 else masked).to(torch.int64) & low
    digits = runtime.exchange(tables.looked_up(c, words), xor=True)
    groups = runtime.exchange(tables.grouped(digits, words, first=first), xor=True)
    top, highest = monomials[-2], monomials[-1]
    share = tables.below(groups, monomials, first=first) + top - 4 * highest * (c >> (bits + 1) == 0)
    return split(runtime.public(share, 1 - (c >> bits)), shares)
