"""Noise for scores that will be shared. Needs no engine, and no key: it is added to what the key owner decrypted.

A CKKS decryption is m + e, and e is a known linear function of the secret key: who made the ciphertext and learns m + e
solves for the key (Li and Micciancio 2021, eprint 2020/1533). So the owner publishes y = round(x/g) + noise instead of
x = m + e, on a grid g, and nothing else of the decryption.

**Argument.** m does not depend on the key. With |x − m| ≤ E the two roundings differ by d ≤ E/g + 1, so
KL(y of x ‖ y of m) ≤ d²/(2σ²) for a discrete Gaussian (Canonne, Kamath, Steinke 2020, arXiv 2004.00010, prop. 5), and
by the chain rule n times that for all n numbers ever published under a key, chosen adaptively or not. With
σ = 8·√n·2^(s/2)·d that is 2^-(s+7): the condition of Li, Micciancio, Schultz, Sorrell (CRYPTO 2022, eprint 2022/816)
for s bits of IND-CPA^D security. By Pinsker's inequality the statistical distance is at most 2^-(s/2+4), so whatever
the published scores add to an adversary's advantage squares to less than 2^-s. Noise per published number, and not per
coefficient of the ring, suffices because nothing else leaves the owner; n is then the scores and not N.

**What it rests on.** E is no theorem but what the protocol states: the error that ``secureattn profile --error``
measures at the head, with a margin. It must hold for every input that an adversary can choose; an average that inputs
can exceed has been broken (Guo, Nabokov, Suvanto, Johansson, USENIX Security 2024). So: inputs inside the model's
ranges, a semi-honest server, a margin of 4 bits at least. Circuit privacy, that is what the owner herself learns about
the model from e, is another matter, and not served by this.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secureattn.errors import PlanError

LEAST_PRECISION_BITS = 2
"""Bits after the point that flooding has to leave: a published score is off by 1/4 at most."""

_GRID_BITS = 10
_SIGMAS = 6
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Flooding:
    """``bits`` s of security for ``count`` n published numbers whose errors are below 2^-``error_bits``.

    PlanError where too little precision is left.
    """

    bits: int
    error_bits: int
    count: int

    def __post_init__(self) -> None:
        if self.precision_bits < LEAST_PRECISION_BITS:
            raise PlanError(
                f"flooding {self.count} scores of error 2^-{self.error_bits} by {self.bits} bits takes noise of "
                f"standard deviation {self.deviation:.2g}, which leaves {self.precision_bits:.1f} bits after the point "
                f"where {LEAST_PRECISION_BITS} are needed; use a larger scale_bits (and the smaller error measured "
                "with it), fewer samples or fewer flooding_bits"
            )

    @property
    def grid(self) -> float:
        """g, a 2^10th of the error."""
        return 2.0 ** -(self.error_bits + _GRID_BITS)

    @property
    def sigma(self) -> int:
        """σ in steps of the grid, ``8·√n·2^(s/2)·(E/g + 1)``, rounded up."""
        distance = (1 << _GRID_BITS) + 1
        return math.isqrt((64 * self.count << self.bits) * distance * distance) + 1

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on a score."""
        return self.sigma * self.grid

    @property
    def precision_bits(self) -> float:
        """Bits after the point that six standard deviations and the error leave."""
        return -math.log2(_SIGMAS * self.deviation + 2.0**-self.error_bits)

    def published(self, scores: Array) -> Array:
        """The scores with fresh noise, as they may be shared; all published under a key count to ``count``."""
        noise = np.array([discrete_gaussian(self.sigma) for _ in range(scores.size)], dtype=np.float64)
        flooded: Array = (np.rint(scores / self.grid) + noise.reshape(scores.shape)) * self.grid
        return flooded


# ---- exact sampling, from the system's CSPRNG -------------------------------------------------------------------


def discrete_gaussian(sigma: int) -> int:
    """An integer x with probability proportional to exp(−x²/2σ²), exactly.

    **Source**: Canonne, Kamath, Steinke 2020 (arXiv 2004.00010), algorithm 3: a discrete Laplace variable y of scale
    t = σ + 1, kept with probability exp(−(|y| − σ²/t)²/2σ²).
    """
    t, variance = sigma + 1, sigma * sigma
    while True:
        y = _discrete_laplace(t)
        if _bernoulli_exp((abs(y) * t - variance) ** 2, 2 * variance * t * t):
            return y


def _discrete_laplace(t: int) -> int:
    """An integer x with probability proportional to exp(−|x|/t): algorithm 2 of the same."""
    while True:
        u = secrets.randbelow(t)
        if not _bernoulli_exp(u, t):
            continue
        v = 0
        while _bernoulli_exp(1, 1):
            v += 1
        negative = secrets.randbits(1)
        if not (negative and u == v == 0):
            return (u + t * v) * (1 - 2 * negative)


def _bernoulli_exp(numerator: int, denominator: int) -> bool:
    """True with probability exp(−numerator/denominator): algorithm 1 of the same."""
    whole, rest = divmod(numerator, denominator)
    return all(_bernoulli_exp_below_one(1, 1) for _ in range(whole)) and _bernoulli_exp_below_one(rest, denominator)


def _bernoulli_exp_below_one(numerator: int, denominator: int) -> bool:
    """The number of the first failure of trials with probability γ, γ/2, γ/3, … is odd with probability e^-γ."""
    k = 1
    while secrets.randbelow(denominator * k) < numerator:
        k += 1
    return k % 2 == 1
