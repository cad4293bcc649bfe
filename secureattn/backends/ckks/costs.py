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
    "held_bytes",
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
        """Seconds of a weight matrix times ciphertexts by BLAS, which multiplies ``products`` times for every
        coefficient of a polynomial: the rates are those of splitting and joining one residue, and of one product.
        """
        residues = 2 * ring_degree * primes
        split, joined, multiplied = (
            self.rates[name] for name in ("matrix_inputs", "matrix_outputs", "matrix_products")
        )
        return residues * (inputs * split + outputs * joined) + 2 * ring_degree * products * multiplied

    def sharing_s(self, slowest_s: float, processes: int, residues_sent: int, held_bytes: int = 1 << 30) -> float:
        """Seconds of work shared between processes, the slowest of which takes ``slowest_s`` alone: all are slower
        ``together``, each is started, the longer the more memory its parent holds, and what others made is sent.
        """
        start = self.rates["processes"] + self.rates["held_bytes"] * held_bytes
        sent = self.rates["residues_sent"] * residues_sent
        return self.rates["together"] * slowest_s + (processes - 1) * start + sent

    def key_generation_s(self, ring_degree: int, primes: int) -> float:
        """Seconds to make one key-switching key of ``primes`` primes, the special one included."""
        return self.rates["keys"] * key_transforms(ring_degree, primes)


def key_transforms(ring_degree: int, primes: int) -> float:
    """What making a key-switching key grows with: N·k·(k−1)·log2 N."""
    return _transform(ring_degree) * primes * (primes - 1)


def _transform(ring_degree: int) -> float:
    return ring_degree * math.log2(ring_degree)


def _rings(*milliseconds: Coefficients) -> dict[int, Coefficients]:
    """Coefficients on N = 2^13, 2^14, 2^15."""
    return {1 << (13 + i): (a / 1e3, b / 1e3, c / 1e3) for i, (a, b, c) in enumerate(milliseconds)}


TYPICAL = Costs(
    {
        "additions": _rings((0.00716, 0.00957, 0.00212), (-0.0121, 0.0437, 0.00144), (-0.0365, 0.119, 0.00202)),
        "pt_products": _rings((0.00636, 0.0503, 0.0), (0.00547, 0.0941, 0.00169), (0.0146, 0.194, 0.0215)),
        "encodes": _rings((0.235, 0.131, 0.0), (0.436, 0.26, 0.0), (1.0, 1.17, 0.0)),
        "ct_products": _rings((0.0628, 0.0843, 0.0), (-0.0724, 0.263, 0.0), (-0.981, 1.23, 0.0)),
        "squares": _rings((0.0162, 0.0797, 0.0), (0.0547, 0.132, 0.00514), (0.0, 0.372, 0.0409)),
        "relinearisations": _rings((-0.454, 0.876, 0.0), (0.0, 0.663, 0.411), (-7.34, 8.96, 0.366)),
        "rescales": _rings((0.0273, 0.157, 0.0), (-0.0294, 0.344, 0.00728), (0.0, 0.872, 0.0805)),
        "rotations": _rings((0.2, 0.0, 0.348), (0.0951, 0.78, 0.382), (0.15, 6.04, 0.556)),
        "encryptions": _rings((0.759, 0.0, 0.378), (0.504, 2.03, 0.0), (4.99, 4.3, 0.0)),
        "decryptions": _rings((0.451, 0.955, 0.0), (0.205, 1.87, 0.137), (0.893, 8.52, 0.0)),
        "refreshes": _rings((12.2, 0.0, 0.476), (13.9, 6.31, 0.0), (76.8, 9.26, 0.0)),
    },
    {
        "matrix_inputs": 1.05e-08,
        "matrix_outputs": 2.51e-08,
        "matrix_products": 2.26e-11,
        "keys": 1.92e-08,
        "processes": 0.00567,
        "held_bytes": 4.09e-11,
        "residues_sent": 1.4e-08,
        "together": 2.07,
    },
)
"""Of one thread of a 2-core AVX-512 x86-64 machine, SEAL 4.3 through TenSEAL 0.3.18; others differ."""
