"""What a SEAL primitive costs: seconds as a function of ring degree and primes left."""

from __future__ import annotations

import math

# Fitted to runs on one thread of a 2-core AVX-512 x86-64 machine, SEAL 4.3 through TenSEAL 0.3.18, N = 2^14 with 8
# levels and N = 2^15 with 18. Per residue, that is per coefficient and prime. Other machines differ.
_PER_RESIDUE_S = {
    "additions": 5.0e-9,
    "pt_products": 9e-9,
    "ct_products": 20e-9,
}
_PER_RESIDUE_AND_BIT_S = {
    "encodes": 2.2e-9,
    "rescales": 2.4e-9,
    "encryptions": 12e-9,
    "decryptions": 14e-9,
    "refreshes": 46e-9,
}
_KEY_SWITCH_S = 1.5e-9


def primitive_s(name: str, ring_degree: int, primes: int) -> float:
    """Modelled seconds of one primitive on a ciphertext with ``primes`` data primes left.

    Sums and products grow with N·k, whatever needs number-theoretic transforms with N·k·log2 N, key switching
    (rotations, relinearisations) with N·k·(k+1)·log2 N.
    """
    residues = ring_degree * primes
    if name in _PER_RESIDUE_S:
        return _PER_RESIDUE_S[name] * residues
    if name in _PER_RESIDUE_AND_BIT_S:
        return _PER_RESIDUE_AND_BIT_S[name] * residues * math.log2(ring_degree)
    return _KEY_SWITCH_S * residues * (primes + 1) * math.log2(ring_degree)


def key_generation_s(ring_degree: int, primes: int) -> float:
    """Modelled seconds to make one key-switching key of ``primes`` primes, the special one included."""
    return 5e-9 * ring_degree * primes * (primes - 1) * math.log2(ring_degree)
