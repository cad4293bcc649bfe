"""Inverse square root ``1/√x`` on a positive interval."""

from __future__ import annotations

import math

import torch

from secureattn.approx import exp
from secureattn.approx.generic import Smooth, check_positive
from secureattn.approx.realisation import COMPARE, Builder, Interval, Realisation, converging, measured
from secureattn.approx.reciprocal import normalise, reduced, relaxed
from secureattn.polynomial import Polynomial
from secureattn.tensor import Tensor

TRUE = torch.rsqrt
RANGE = "positive"
TYPICAL_OF = {"secformer": (1.0, 64.0)}
# Ascending, monomial, on [0.25, 0.5). Ma et al., "SecretFlow-SPU", USENIX ATC 2023, rsqrt's first guess.
SPU = (4.14285016, -15.47994394, 38.4714796, -49.86605845, 26.02942339)
SECFORMER_DEFLATION = 2000.0  # η of Luo et al., "SecFormer", arXiv 2401.00793, LayerNorm
_SMOOTH = Smooth("rsqrt", TRUE, relative=True, positive=True)


def goldschmidt(domain: Interval, *, error: float = 1e-3) -> Realisation:
    """Goldschmidt's iteration with a relaxation factor per step.

    ``b = x/high, y = 1/√high, e = low/high``; repeat ``k = 3/(1 + √e + e); y, b ← y·√k(3−kb)/2, b·k(3−kb)²/4;
    e ← ke(3−ke)²/4``, so that ``b`` stays within [e, 1].
    Domain: ``[low, high]``, low > 0.
    Error: relative, ``1−√e`` after the last step, measured when made: ``1−e ≤ 1e-3`` takes 4, 5, 6, 6 steps for
    κ = 2⁴, 2⁶, 2⁸, 2¹⁰.
    Cost: depth ``2·steps``, ``3·(steps − 1)`` products.
    Source: Goldschmidt 1964; relaxation as in THOR (eprint 2024/1881), whose equation for k the closed form solves.
    """
    check_positive("rsqrt(goldschmidt)", domain)
    factors = relaxation(domain[0] / domain[1], error)
    made = Realisation(
        "rsqrt",
        "goldschmidt",
        domain,
        lambda x: goldschmidt_steps(x, domain[1], factors),
        relative=True,
        source="Goldschmidt with relaxation, eprint 2024/1881",
    )
    return measured(made, TRUE)


def relaxation(e: float, error: float) -> tuple[float, ...]:
    """Relaxation factors ``k = 3/(1 + √e + e)`` until ``1−e ≤ error``.

    ``k`` is the root below 3 of ``(1−e³)k² + (6e²−6)k + (9−9e) = 0``: both ends of [e, 1] then meet.
    Domain: 0 < e ≤ 1, error ≥ 1e-14.
    Error: none, these are exact.
    Cost: clear only.
    Source: THOR, eprint 2024/1881.
    """
    return relaxed(e, error, lambda e: 3 / (1 + math.sqrt(e) + e), lambda b: b * (3 - b) ** 2 / 4)


def goldschmidt_steps(x: Tensor, high: float, factors: tuple[float, ...], *, root: bool = False) -> Tensor:
    """``1/√x`` (``√x`` if ``root``) by the steps ``y, b ← y·√k(3−kb)/2, b·k(3−kb)²/4``, one for each factor k.

    From ``b = x/high`` and ``y = 1/√high``, or ``x/√high`` for the root. With ``g = c·kb`` a step is ``y ← y·(3c−g)``,
    ``g ← g·(3c−g)²``, if ``4c³ = k'·c'`` for the next step's: no factor takes a level of its own, and all constants of
    y gather in its first value.
    Domain: 0 < x < 3·high where every k is 1, else up to high.
    Error: that of the steps, relative.
    Cost: depth ``2·steps``; ``3·(steps − 1)`` products, one more for the root.
    Source: Goldschmidt 1964; the substitution is ours.
    """
    if not factors:
        return x * (0 if not root else 1 / math.sqrt(high)) + (0 if root else 1 / math.sqrt(high))
    scales = [1.0]
    for k in factors[:0:-1]:
        scales.insert(0, math.cbrt(k * scales[0] / 4))
    gain = math.prod(math.sqrt(k) / (2 * c) for k, c in zip(factors, scales, strict=True)) / math.sqrt(high)
    slope = factors[0] * scales[0] / high
    g = x * slope
    y = x * gain if root else None
    for i, c in enumerate(scales):
        if y is None:
            y = x.combine([(-slope * gain, x)], constant=3 * c * gain)
        else:
            y = y * (3 * c - g)
        if i + 1 < len(scales):
            g = g * (3 * c - g).square()
    assert y is not None
    return y


def newton(domain: Interval, *, steps: int = 2, degree: int = 3) -> Realisation:
    """Newton's iteration ``y ← y·(3 − x·y²)/2`` from a Chebyshev first guess.

    Domain: ``[low, high]``, low > 0; the first guess must lie in (0, √(3/x)), else a step diverges and it is refused.
    Error: relative, measured when made; each step squares it (e ← 3e²/2 + e³/2).
    Cost: the guess, then 3 products and 3 levels a step (x/2 is formed once).
    Source: Newton; guess by Chebyshev interpolation.
    """
    check_positive("rsqrt(newton)", domain)
    guess = _SMOOTH.chebyshev(domain, degree=degree)
    made = Realisation(
        "rsqrt",
        "newton",
        domain,
        lambda x: _newton(x, guess(x), steps),
        relative=True,
        source="Newton from a Chebyshev first guess",
    )
    return converging(made, TRUE, f"with a first guess of degree {degree}; raise the degree")


def _newton(x: Tensor, y: Tensor, steps: int) -> Tensor:
    half = x * 0.5
    for _ in range(steps):
        y = y * (1.5 - half * y.square())
    return y


def spu(domain: Interval) -> Realisation:
    """A quartic for u in [0.25, 0.5), after comparisons that scale x by a power of two into it.

    ``1/√x = √(s/(2·high))·p(u)``, ``u = x·s/(2·high)``.
    Domain: ``[low, high]``, low > 0, of any ratio κ.
    Error: relative, that of the quartic, the same in every octave: 8.2e-5, measured when made.
    Cost: ``c = ⌈log2⌈log2 κ⌉⌉`` comparisons, ``2c + 3`` products (needs COMPARE).
    Source: SecretFlow-SPU, USENIX ATC 2023; the octave by bisection where they take all bits.
    """
    check_positive("rsqrt(spu)", domain)
    span = 2 * domain[1]
    p = Polynomial(SPU, (0.25, 0.5), "monomial")

    def apply(x: Tensor) -> Tensor:
        u, scale = normalise(x, domain, power=0.5)
        return (u * (1 / span)).polynomial(p) * scale * (1 / math.sqrt(span))

    made = Realisation(
        "rsqrt", "spu", domain, apply, relative=True, needs=COMPARE, source="SecretFlow-SPU, USENIX ATC 2023"
    )
    return measured(made, TRUE, (domain[1] / 2, domain[1]))


def secformer(domain: Interval, *, steps: int = 11) -> Realisation:
    """Goldschmidt's iteration for ``x/η``, η = 2000: ``p, q ← p·m, q·m²``, ``m = (3−q)/2``, from 1 and ``x/η``.

    Domain: ``[low, high]`` within (0, 3η); refused where it errs by more than 10 %, which 11 steps do below 0.5.
    Error: relative, measured when made: 8.8e-4 from x = 2, 1.7e-2 from 1.
    Cost: depth ``2·steps``, ``3·(steps − 1)`` products.
    Source: SecFormer, arXiv 2401.00793, LayerNorm; the published code has no deflation, and diverges for x > 3.
    """
    check_positive("rsqrt(secformer)", domain)
    made = Realisation(
        "rsqrt",
        "secformer",
        domain,
        lambda x: goldschmidt_steps(x, SECFORMER_DEFLATION, (1.0,) * steps),
        relative=True,
        source="SecFormer, arXiv 2401.00793",
    )
    return converging(made, TRUE, f'in {steps} steps; add steps, or use kind = "goldschmidt"')


def crypten(domain: Interval, *, steps: int = 3) -> Realisation:
    """Newton from ``2.2·exp(−(x/2 + 0.2)) + 0.2 − x/1024``.

    Domain: ``[low, high]``, low > 0; good to 1 % on [0.086, 159], refused where it errs by more than 10 %.
    Error: relative, measured when made.
    Cost: one exp (8 squarings), then 3 products a step.
    Source: CrypTen 0.4.1 (``sqrt_nr_iters = 3``).
    """
    check_positive("rsqrt(crypten)", domain)
    made = Realisation(
        "rsqrt",
        "crypten",
        domain,
        lambda x: crypten_steps(x, steps),
        relative=True,
        source="CrypTen 0.4.1, Newton-Raphson",
    )
    return converging(
        made, TRUE, f'in {steps} steps; use kind = "chebyshev" or "newton", or retrain with a range penalty'
    )


def crypten_steps(x: Tensor, steps: int) -> Tensor:
    """``1/√x`` by CrypTen's first guess and Newton's steps ``y ← y·(3 − x·y²)/2``.

    Domain: as ``crypten``.
    Error: as ``crypten``.
    Cost: 8 squarings, then 3 products a step.
    Source: CrypTen 0.4.1.
    """
    y = exp.limit_power(x * -0.5 - 0.2, 8) * 2.2 + 0.2 - x * (1 / 1024)
    for _ in range(steps):
        y = y * (3.0 - x * y.square()) * 0.5
    return y


def octaves(domain: Interval, *, error: float = 1e-4, stride: int = 6) -> Realisation:
    """A Fourier series on ``stride`` octaves, after comparisons, all at once, that bring x up into them.

    As ``reciprocal(octaves)``, with ``1/√x = √s·(1/√(s·x))``.
    Domain: ``[low, high]``, low > 0, of any ratio κ.
    Error: relative, at most ``error``, that of the series; measured when made.
    Cost: as ``reciprocal(octaves)``.
    Source: range reduction as in SPU (USENIX ATC 2023), its comparisons side by side; Fourier extension.
    """
    check_positive("rsqrt(octaves)", domain)
    return reduced(_SMOOTH, domain, power=0.5, error=error, stride=stride)


REALISATIONS: dict[str, Builder] = {
    **_SMOOTH.builders(),
    "octaves": octaves,
    "goldschmidt": goldschmidt,
    "newton": newton,
    "spu": spu,
    "secformer": secformer,
    "crypten": crypten,
}
