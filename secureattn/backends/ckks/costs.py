"""What SEAL's primitives cost: seconds as a function of ring degree and primes left."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

_PER_RESIDUE = ("additions", "pt_products", "ct_products")
_PER_KEY_SWITCH = ("rotations", "relinearisations")


@dataclass(frozen=True, eq=False)
class Costs:
    """Seconds of primitives, from a rate each.

    Sums and products grow with N·k for k primes left, whatever needs number-theoretic transforms with N·k·log2 N, key
    switching (rotations, relinearisations) with N·k·(k+1)·log2 N. ``rates`` are the seconds of one such step.
    """

    rates: Mapping[str, float]
    source: str
    _known: dict[tuple[str, int, int], float] = field(default_factory=dict, repr=False)

    def primitive_s(self, name: str, ring_degree: int, primes: int) -> float:
        """Seconds of one primitive on a ciphertext with ``primes`` data primes left."""
        key = (name, ring_degree, primes)
        if key not in self._known:
            self._known[key] = self.rates[name] * _steps(name, ring_degree, primes)
        return self._known[key]

    def matrix_s(self, ring_degree: int, primes: int, inputs: int, outputs: int, products: int) -> float:
        """Seconds of a weight matrix times ciphertexts by BLAS, which multiplies ``products`` times for every
        coefficient of a polynomial.
        """
        residues = 2 * ring_degree * primes
        split, joined, multiplied = (
            self.rates[name] for name in ("matrix_inputs", "matrix_outputs", "matrix_products")
        )
        return residues * (inputs * split + outputs * joined) + 2 * ring_degree * products * multiplied

    def sharing_s(self, slowest_s: float, processes: int, residues_sent: int) -> float:
        """Seconds of work shared between processes, the slowest of which takes ``slowest_s`` alone."""
        start, sent, together = (self.rates[name] for name in ("processes", "residues_sent", "together"))
        return together * slowest_s + (processes - 1) * start + sent * residues_sent

    def key_generation_s(self, ring_degree: int, primes: int) -> float:
        """Seconds to make one key-switching key of ``primes`` primes, the special one included."""
        return self.rates["keys"] * ring_degree * primes * (primes - 1) * math.log2(ring_degree)


@functools.lru_cache
def _steps(name: str, ring_degree: int, primes: int) -> float:
    residues = ring_degree * primes
    if name in _PER_RESIDUE:
        return residues
    transforms = residues * math.log2(ring_degree)
    return transforms * (primes + 1) if name in _PER_KEY_SWITCH else transforms


TYPICAL = Costs(
    {
        "additions": 5.0e-9,
        "pt_products": 9e-9,
        "ct_products": 20e-9,
        "encodes": 2.2e-9,
        "rescales": 2.4e-9,
        "encryptions": 12e-9,
        "decryptions": 14e-9,
        "refreshes": 30e-9,
        "rotations": 1.5e-9,
        "relinearisations": 1.5e-9,
        "keys": 5e-9,
        "matrix_inputs": 2.5e-9,
        "matrix_outputs": 14e-9,
        "matrix_products": 4.5e-11,
        "processes": 8e-3,
        "residues_sent": 1.5e-9,
        "together": 1.1,
    },
    "one thread of a 2-core AVX-512 x86-64 machine, SEAL 4.3 through TenSEAL 0.3.18",
)
"""Rates of one machine; others differ, and ``secureattn plan --calibrate`` measures them."""
