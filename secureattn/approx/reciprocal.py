"""Reciprocal ``1/x`` on a positive interval."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import torch

from secureattn.approx import exp
from secureattn.approx.generic import Smooth, check_positive
from secureattn.approx.realisation import COMPARE, Builder, Interval, Realisation, converging, measured
from secureattn.errors import InputError, PlanError
from secureattn.series import FourierSeries
from secureattn.tensor import Tensor

TRUE = torch.reciprocal
RANGE = "positive"
TYPICAL_OF = {"secformer": (4.0, 400.0)}
SECFORMER_DEFLATION = 5000.0  # η of Luo et al., "SecFormer", arXiv 2401.00793, softmax
_SMOOTH = Smooth("reciprocal", TRUE, relative=True, positive=True)


def goldschmidt(domain: Interval, *, error: float = 1e-3) -> Realisation:
    """Goldschmidt division with a relaxation factor per step.

    ``b = x/high, a = 1/high, e = low/high``; repeat ``k = 2/(1+e); a, b ← a·k(2−kb), b·k(2−kb); e ← ke(2−ke)``, so
    that ``b`` stays within [e, 1] and e rises to 1 as fast as any quadratic step allows.
    Domain: ``[low, high]``, low > 0.
    Error: relative, ``1−e`` after the last step, measured when made: 1e-3 takes 5, 6, 7, 8 steps for κ = 2⁴, 2⁶, 2⁸,
    2¹⁰, which then reach 3.2e-7, 4.1e-7, 4.4e-7, 4.5e-7.
    Cost: depth ``steps + 1``, ``2·(steps − 1)`` products.
    Source: Goldschmidt 1964; relaxation as in THOR (eprint 2024/1881); ours takes one level a step, not two.
    """
    check_positive("reciprocal(goldschmidt)", domain)
    return _by_goldschmidt("goldschmidt", domain, relaxation(domain[0] / domain[1], error), "eprint 2024/1881")


def goldschmidt_plain(domain: Interval, *, error: float = 1e-3) -> Realisation:
    """Goldschmidt division as it was first published: ``a, b ← a·(2−b), b·(2−b)``.

    Domain: ``[low, high]``, low > 0.
    Error: relative, ``(1 − low/high)^(2^steps)``, measured when made: 1e-3 takes 7, 9, 11, 13 steps for κ = 2⁴, 2⁶,
    2⁸, 2¹⁰.
    Cost: depth ``steps + 1``, ``2·(steps − 1)`` products.
    Source: Goldschmidt 1964.
    """
    check_positive("reciprocal(goldschmidt_plain)", domain)
    e, steps = domain[0] / domain[1], 0
    if error < 1e-14:
        raise PlanError(f"reciprocal(goldschmidt_plain) needs an error of at least 1e-14, got {error:.3g}")
    while 1 - e > error:
        e, steps = e * (2 - e), steps + 1
    return _by_goldschmidt("goldschmidt_plain", domain, (1.0,) * steps, "no relaxation")


def _by_goldschmidt(kind: str, domain: Interval, factors: tuple[float, ...], source: str) -> Realisation:
    made = Realisation(
        "reciprocal",
        kind,
        domain,
        lambda x: goldschmidt_steps(x, domain[1], factors),
        relative=True,
        source=f"Goldschmidt, {source}",
    )
    return measured(made, TRUE)


def relaxation(e: float, error: float) -> tuple[float, ...]:
    """Relaxation factors ``k = 2/(1+e)`` until ``1−e ≤ error``.

    Domain: 0 < e ≤ 1, error ≥ 1e-14; float64 gets no closer, and the steps would never end.
    Error: none, these are exact.
    Cost: clear only.
    Source: THOR, eprint 2024/1881.
    """
    return relaxed(e, error, lambda e: 2 / (1 + e), lambda b: b * (2 - b))


def relaxed(
    e: float, error: float, factor: Callable[[float], float], step: Callable[[float], float]
) -> tuple[float, ...]:
    """Factors ``k = factor(e)``, ``e ← step(k·e)``, until ``1−e ≤ error``: for any iteration that keeps b in [e, 1].

    Domain: 0 < e ≤ 1, error ≥ 1e-14; float64 gets no closer, and the steps would never end.
    Error: none.
    Cost: clear only.
    Source: THOR, eprint 2024/1881.
    """
    if not (0 < e <= 1 and error >= 1e-14):
        raise PlanError(
            f"relaxation needs 0 < e ≤ 1 and an error of at least 1e-14, got e = {e:.3g}, error = {error:.3g}"
        )
    factors = []
    while 1 - e > error:
        k = factor(e)
        factors.append(k)
        e = step(k * e)
    return tuple(factors)


def goldschmidt_steps(x: Tensor, high: float, factors: tuple[float, ...]) -> Tensor:
    """``1/x`` by the steps ``a, b ← a·k(2−kb), b·k(2−kb)`` from ``a = 1/high, b = x/high``, one for each factor k.

    With ``f = m·(1 − kb)`` a step is ``a ← a·(f+m)``, ``f ← f² + constant``, if ``m² = k'·m'`` for the next step's: no
    factor takes a level of its own, and all constants of a gather in its first value.
    Domain: 0 < x < 2·high where every k is 1, else up to high.
    Error: that of the steps.
    Cost: depth ``steps + 1`` (1 for a single step), ``2·(steps − 1)`` products.
    Source: Goldschmidt 1964; the substitution is ours.
    """
    if not factors:
        return x * 0 + 1 / high
    scales = [1.0]
    for k in factors[:0:-1]:
        scales.insert(0, math.sqrt(k * scales[0]))
    slope = factors[0] * scales[0] / high
    gain = math.prod(factors) / math.prod(scales) / high
    a = x.combine([(-slope * gain, x)], constant=2 * scales[0] * gain)
    f = x * -slope + scales[0]
    for k, m in zip(factors[1:], scales[1:], strict=True):
        f = f.square() + m * (1 - k)
        a = a * (f + m)
    return a


def newton(domain: Interval, *, steps: int = 2, degree: int = 3) -> Realisation:
    """Newton's iteration ``y ← y·(2 − x·y)`` from a minimax first guess.

    With ``n = x·y − 1`` of the guess the steps are ``y·(1 − n)·(1 + n²)·(1 + n⁴)…``: a level each.
    Domain: ``[low, high]``, low > 0; a minimax guess errs by less than 1, so that every step helps.
    Error: relative, measured when made; each step squares that of the guess.
    Cost: the guess, then ``2·steps`` products and ``steps + 1`` levels.
    Source: Newton; guess by Remez' exchange.
    """
    check_positive("reciprocal(newton)", domain)
    guess = _SMOOTH.remez(domain, degree=degree)
    made = Realisation(
        "reciprocal",
        "newton",
        domain,
        lambda x: _newton(x, guess(x), steps),
        relative=True,
        source="Newton from a minimax first guess",
    )
    return converging(made, TRUE, f"in {steps} steps from a first guess of degree {degree}; raise either")


def _newton(x: Tensor, y: Tensor, steps: int) -> Tensor:
    if not steps:
        return y
    n = x.combine([], [(x, y)], -1.0)
    y = y * (1.0 - n)
    for _ in range(steps - 1):
        n = n.square()
        y = y * (n + 1.0)
    return y


def normalised(domain: Interval, *, degree: int = 7) -> Realisation:
    """A minimax polynomial on one octave, after comparisons that scale x by a power of two into it.

    Domain: ``[low, high]``, low > 0, of any ratio κ.
    Error: relative, that of the polynomial on ``[high/2, high]``, the same in every octave: 1.7e-3, 5.1e-5, 1.5e-6 for
    degree 3, 5, 7.
    Cost: ``c = ⌈log2⌈log2 κ⌉⌉`` comparisons, ``2c`` products and those of the polynomial (needs COMPARE).
    Source: range reduction as in SPU (USENIX ATC 2023); by bisection where they take all bits.
    """
    check_positive("reciprocal(normalised)", domain)
    high = domain[1]
    p = _SMOOTH.remez((high / 2, high), degree=degree).polynomial
    assert p is not None
    of_octave = p.scaled(high)

    def apply(x: Tensor) -> Tensor:
        u, scale = normalise(x, domain)
        # From [1, 2] exactly up to 2κ, and only then down: fixed point loses least.
        return u.polynomial(of_octave) * scale * (1 / high)

    made = Realisation(
        "reciprocal", "normalised", domain, apply, relative=True, needs=COMPARE, source="range reduction by comparisons"
    )
    return measured(made, TRUE, (high / 2, high))


def normalise(x: Tensor, domain: Interval, *, power: float = 1.0) -> tuple[Tensor, Tensor | float]:
    """``x·s`` in ``[high/2, high]`` for a power of two s, and ``s^power``.

    Bisection: of n octaves left, what lies below ``high/2^⌊n/2⌋`` is brought up by as many; ⌈n/2⌉ are left.
    Domain: ``[low, high]``, low > 0.
    Error: none; all factors of x are whole numbers.
    Cost: ``c = ⌈log2⌈log2(high/low)⌉⌉`` comparisons, ``2c − 1`` products.
    Source: binary search.
    """
    low, high = domain
    octaves = math.ceil(math.log2(high / low) - 1e-12)
    scale: Tensor | float = 1.0
    while octaves > 1:
        up = octaves // 2
        octaves -= up
        small = x.less(high / 2**up)
        x = x * (small * (2**up - 1) + 1.0)
        step = small * (2 ** (up * power) - 1) + 1.0
        scale = step if isinstance(scale, float) else scale * step
    return x, scale


def octaves(domain: Interval, *, error: float = 1e-4, stride: int = 5) -> Realisation:
    """A Fourier series on ``stride`` octaves, after comparisons, all at once, that bring x up into them.

    With t the power of two at or above ``high`` and ``s = 2^(stride·j)`` for the number j of thresholds ``t/2^stride,
    t/4^stride, …`` that x is below, ``1/x = s·(1/(s·x))``. ``stride`` octaves below a power of two need no comparison.
    Domain: ``[low, high]``, low > 0, of any ratio κ.
    Error: relative, at most ``error``, that of the series; measured when made.
    Cost: on shares 6 rounds whatever κ is (comparisons 3, two products, one series), and truncations;
    ``⌈log2 (t/low)/stride⌉ − 1`` comparisons. Needs COMPARE. Where no series serves ``stride`` octaves and they are
    more than as many comparisons leave to each, it serves those.
    Source: range reduction as in SPU (USENIX ATC 2023), its comparisons side by side; Fourier extension.
    """
    check_positive("reciprocal(octaves)", domain)
    return reduced(_SMOOTH, domain, power=1.0, error=error, stride=stride)


def reduced(smooth: Smooth, domain: Interval, *, power: float, error: float, stride: int) -> Realisation:
    """A function with ``f(s·x) = s^−power·f(x)`` by ``octaves``.

    Domain: as ``octaves``.
    Error: as ``octaves``.
    Cost: as ``octaves``.
    Source: as ``octaves``.
    """
    low, high = domain
    if stride < 1:
        raise PlanError(f"{smooth.function}(octaves) needs a stride of at least 1, got {stride}")
    steps = max(1, math.ceil(math.log2(high / low) / stride - 1e-12))
    if steps == 1:
        return replace(smooth.fourier(domain, error=error), kind="octaves")
    top = 2.0 ** math.ceil(math.log2(high))
    whole = math.log2(top / low)
    steps = math.ceil(whole / stride - 1e-12)
    try:
        base = _below(smooth, top, power, stride, error)
    except InputError:
        tried, stride = stride, math.ceil(whole / steps - 1e-12)  # as many comparisons, fewer octaves for the series
        if stride == tried:
            raise
        base = _below(smooth, top, power, stride, error)
    thresholds = [top / 2.0 ** (stride * j) for j in range(1, steps)]

    def apply(x: Tensor) -> Tensor:
        below = x.less_each(thresholds)
        ups = [2.0 ** (stride * j) for j in range(steps)]
        scale = x.combine([(b - a, bit) for a, b, bit in zip(ups, ups[1:], below, strict=False)], constant=1.0)
        rises = [up**power for up in ups]
        rise = x.combine([(b - a, bit) for a, b, bit in zip(rises, rises[1:], below, strict=False)], constant=1.0)
        return (x * scale).series(base) * rise

    made = Realisation(
        smooth.function,
        "octaves",
        (low * (1 - 2.0**-12), high),
        apply,
        relative=True,
        needs=COMPARE,
        source="range reduction by comparisons side by side, Fourier extension",
    )
    return converging(made, smooth.true, f"by octaves; raise the error of {error:.2g}")


def _below(smooth: Smooth, top: float, power: float, stride: int, error: float) -> FourierSeries:
    """The function on the ``stride`` octaves below a power of two: that on those below 1, stretched, as its period is a
    power of two again.
    """
    unit, factor = _below_one(smooth, stride, error), top**-power
    return replace(
        unit,
        period=unit.period * top,
        cosines=tuple(c * factor for c in unit.cosines),
        sines=tuple(c * factor for c in unit.sines),
        constant=unit.constant * factor,
        domain=(unit.domain[0] * top, unit.domain[1] * top),
    )


@functools.cache
def _below_one(smooth: Smooth, stride: int, error: float) -> FourierSeries:
    octaves = (2.0**-stride * (1 - 2.0**-12), 1.0)  # the lower end is what a comparison of rounded values may leave
    series = smooth.fourier(octaves, error=error).series
    assert series is not None
    return series


def secformer(domain: Interval, *, steps: int = 13) -> Realisation:
    """Goldschmidt division of ``x/η``, η = 5000: ``p, q ← p·(2−q), q·(2−q)`` from ``p = 1/η, q = x/η``.

    Domain: ``[low, high]`` within (0, 2η); refused where it errs by more than 10 %, which 13 steps do below 1.4.
    Error: relative, ``(1 − x/η)^(2^steps)``, measured when made: 2.8e-4 from x = 5.
    Cost: depth ``steps + 1``, ``2·(steps − 1)`` products.
    Source: SecFormer, arXiv 2401.00793, softmax; the published code has no deflation, and diverges for x > 2.
    """
    check_positive("reciprocal(secformer)", domain)
    made = Realisation(
        "reciprocal",
        "secformer",
        domain,
        lambda x: goldschmidt_steps(x, SECFORMER_DEFLATION, (1.0,) * steps),
        relative=True,
        source="SecFormer, arXiv 2401.00793",
    )
    return converging(made, TRUE, f'in {steps} steps; add steps, or use kind = "goldschmidt"')


def crypten(domain: Interval, *, steps: int = 10) -> Realisation:
    """Newton–Raphson from ``3·exp(1−2x) + 0.003``, for positive x.

    ``y ← y + y − x·y²``. Domain: ``[low, high]`` within about [3e-4, 250]; outside, the first guess is so far off that
    10 steps do not bring it within 10 %, and the domain is refused.
    Error: relative, measured when made: 3.7e-8 on [0.1, 100] in float64.
    Cost: one exp (8 squarings), then 2 products a step.
    Source: CrypTen 0.4.1 (``reciprocal_nr_iters = 10``, ``reciprocal_all_pos``).
    """
    check_positive("reciprocal(crypten)", domain)
    if domain[1] > 250:
        raise PlanError(
            f"reciprocal(crypten) holds up to 250, the calibrated range reaches {domain[1]:.3g}; "
            'use kind = "chebyshev" or "goldschmidt"'
        )
    made = Realisation(
        "reciprocal",
        "crypten",
        domain,
        lambda x: _newton_crypten(x, steps),
        relative=True,
        source="CrypTen 0.4.1, Newton-Raphson",
    )
    return converging(
        made,
        TRUE,
        f'in {steps} steps; raise the normaliser\'s ε, or use kind = "chebyshev" or "goldschmidt"',
    )


def _newton_crypten(x: Tensor, steps: int) -> Tensor:
    y = exp.limit_power(x * -2 + 1.0, 8) * 3 + 0.003
    for _ in range(steps):
        y = y * 2 - y.square() * x
    return y


REALISATIONS: dict[str, Builder] = {
    **_SMOOTH.builders(),
    "goldschmidt": goldschmidt,
    "goldschmidt_plain": goldschmidt_plain,
    "newton": newton,
    "normalised": normalised,
    "octaves": octaves,
    "secformer": secformer,
    "crypten": crypten,
}
