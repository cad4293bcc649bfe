"""What SEAL's primitives cost: seconds as a function of ring degree and primes left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Coefficients = tuple[float, float, float]

PRIMITIVES = (
    "additions",
    "pt_products",
    "encodes",
    "ct_products",
    "squares",
    "relinearisations",
    "rescales",
    "rotations",
    "encryptions",
    "decryptions",
    "refreshes",
)
"""What costs depend on the primes left, each as the engine calls it: ``pt_products`` with a constant and its encoding,
``encodes`` of a vector, ``refreshes`` of one ciphertext at both sides, for the level it comes back on.
"""

RATES = (
    "matrix_inputs",
    "matrix_outputs",
    "matrix_products",
    "keys",
    "processes",
    "residues_sent",
    "together",
)
"""The other costs, see ``Costs``; all seconds but ``together``, a factor."""


@dataclass(frozen=True, eq=False)
class Costs:
    """Seconds of primitives on one machine.

    A primitive on a ciphertext with k primes left takes ``a + b·k + c·k²`` seconds, (a, b, c) its coefficients on the
    ring: k residues each are added, multiplied or transformed, k·(k+1) transformed by key switching; other rings are
    taken to cost like the nearest, times N·log2 N. ``measured`` is the day, empty for typical costs.
    """

    primitives: Mapping[str, Mapping[int, Coefficients]]
    rates: Mapping[str, float]
    measured: str = ""
    _known: dict[tuple[str, int, int], float] = field(default_factory=dict, repr=False)

    @property
    def source(self) -> str:
        """Where the figures come from, in words that follow "predicted with"."""
        if self.measured:
            return f"costs measured on this machine on {self.measured}"
        return "typical costs; secureattn plan --calibrate measures this machine"

    def primitive_s(self, name: str, ring_degree: int, primes: int) -> float:
        """Seconds of one primitive on a ciphertext with ``primes`` data primes left."""
        key = (name, ring_degree, primes)
        if key not in self._known:
            rings = self.primitives[name]
            nearest = min(rings, key=lambda ring: abs(math.log2(ring / ring_degree)))
            a, b, c = rings[nearest]
            self._known[key] = (a + b * primes + c * primes**2) * _transform(ring_degree) / _transform(nearest)
        return self._known[key]

    def matrix_s(self, ring_degree: int, primes: int, inputs: int, outputs: int, products: int) -> float:
        """Seconds of a weight matrix times ciphertexts by BLAS, which multiplies ``products`` times for every coefficient
        of a polynomial: the rates are those of splitting and joining one residue, and of one product.
        """
        residues = 2 * ring_degree * primes
        split, joined, multiplied = (
            self.rates[name] for name in ("matrix_inputs", "matrix_outputs", "matrix_products")
        )
        return residues * (inputs * split + outputs * joined) + 2 * ring_degree * products * multiplied

    def sharing_s(self, slowest_s: float, processes: int, residues_sent: int) -> float:
        """Seconds of work shared between processes, the slowest of which takes ``slowest_s`` alone: all are slower
        ``together``, each is started, and what others made is sent.
        """
        start, sent, together = (self.rates[name] for name in ("processes", "residues_sent", "together"))
        return together * slowest_s + (processes - 1) * start + sent * residues_sent

    def key_generation_s(self, ring_degree: int, primes: int) -> float:
        """Seconds to make one key-switching key of ``primes`` primes, the special one included."""
        return self.rates["keys"] * key_transforms(ring_degree, primes)


def key_transforms(ring_degree: int, primes: int) -> float:
    """What making a key-switching key grows with: N·k·(k−1)·log2 N."""
    return _transform(ring_degree) * primes * (primes - 1)


def _transform(ring_degree: int) -> float:
    return ring_degree * math.log2(ring_degree)


def _old(rate: float, squared: bool = False, log: bool = True) -> dict[int, Coefficients]:
    return {n: (0.0, rate * n * (math.log2(n) if log else 1), rate * n * math.log2(n) if squared else 0.0) for n in (8192, 16384, 32768)}


TYPICAL = Costs(
    {
        "additions": _old(5e-9, log=False),
        "pt_products": _old(9e-9, log=False),
        "ct_products": _old(20e-9, log=False),
        "squares": _old(15e-9, log=False),
        "encodes": _old(2.2e-9),
        "rescales": _old(2.4e-9),
        "encryptions": _old(12e-9),
        "decryptions": _old(14e-9),
        "refreshes": _old(30e-9),
        "rotations": _old(1.5e-9, True),
        "relinearisations": _old(1.5e-9, True),
    },
    {
        "keys": 5e-9,
        "matrix_inputs": 2.5e-9,
        "matrix_outputs": 14e-9,
        "matrix_products": 4.5e-11,
        "processes": 8e-3,
        "residues_sent": 1.5e-9,
        "together": 1.1,
    },
)
