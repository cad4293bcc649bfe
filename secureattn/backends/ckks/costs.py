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
    "fresh_bytes",
    "processes",
    "exchanges",
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

    def sharing_s(self, slowest_s: float, processes: int, residues_sent: int, exchanges: int = 1) -> float:
        """Seconds of work shared between processes, the slowest of which takes ``slowest_s`` alone and puts
        ``residues_sent`` where the others see them: all are slower ``together``, and wait for each other.
        """
        waited = self.rates["exchanges"] * exchanges * (processes - 1)
        return self.rates["together"] * slowest_s + waited + self.rates["residues_sent"] * residues_sent

    def team_s(self, processes: int) -> float:
        """Seconds of starting and ending the processes that share a run."""
        return self.rates["processes"] * (processes - 1)

    def fresh_s(self, size: int) -> float:
        """Seconds that bytes of memory take when they are used for the first time."""
        return self.rates["fresh_bytes"] * size

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
        "additions": _rings((0.0127, 0.0, 0.00653), (-0.032, 0.0709, 0.0), (0.0602, 0.0858, 0.00461)),
        "pt_products": _rings((0.0007, 0.0722, 0.0), (-0.0157, 0.157, 0.0), (0.0147, 0.301, 0.0018)),
        "encodes": _rings((0.243, 0.127, 0.0), (0.406, 0.327, 0.0), (1.14, 0.595, 0.00466)),
        "ct_products": _rings((-0.0504, 0.148, 0.00254), (-0.0145, 0.316, 0.0), (0.169, 0.557, 0.00356)),
        "squares": _rings((0.114, 0.0223, 0.0152), (0.0615, 0.174, 0.0112), (-0.264, 0.591, 0.00279)),
        "relinearisations": _rings((0.578, 0.0, 0.183), (0.431, 0.768, 0.239), (-0.0123, 2.01, 0.524)),
        "rescales": _rings((0.163, 0.0, 0.0453), (0.0416, 0.332, 0.0168), (-0.394, 0.972, 0.0173)),
        "rotations": _rings((0.0717, 0.483, 0.0776), (0.359, 0.842, 0.232), (0.824, 1.81, 0.526)),
        "encryptions": _rings((0.625, 0.626, 0.00655), (1.12, 1.27, 0.0013), (2.21, 2.48, 0.0256)),
        "decryptions": _rings((1.09, 0.303, 0.0926), (1.16, 1.03, 0.107), (2.71, 1.85, 0.193)),
        "refreshes": _rings((7.57, 2.03, 0.0), (16.3, 2.65, 0.0965), (27.0, 6.89, 0.112)),
    },
    {
        "matrix_inputs": 5.3e-09,
        "matrix_outputs": 1.1e-08,
        "matrix_products": 2.6e-11,
        "keys": 6e-09,
        "fresh_bytes": 5.6e-10,
        "processes": 0.04,
        "exchanges": 0.0002,
        "residues_sent": 1.7e-09,
        "together": 1.04,
    },
)
"""Of one thread of a 2-core AVX-512 x86-64 machine, SEAL 4.3 through TenSEAL 0.3.18; others differ."""
