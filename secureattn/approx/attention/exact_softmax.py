"""Softmax computed in ways other than one exp and one reciprocal after a mean shift."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from secureattn.approx.attention.base import Attention, Call, RowWeights
from secureattn.approx.attention.softmax import shifted
from secureattn.tensor import Capability, Public, Tensor

Function = Callable[[Tensor], Tensor]

ODE_STEPS = 16
SQUARINGS = 3
"""Serves scores up to ``2^(k−1)·ln n`` above their row's mean without widening the domain of ``square.first``:
11 for 16 keys, 19 for 128."""
ROUGH = 0.1
"""What every inverse root but the last may err by, relative: the next normalisation takes it out."""
_SPREAD = ((1 - ROUGH) ** 4, (1 + ROUGH) ** 4)


def max_shift(s: Tensor, *, exp: Function, reciprocal: Function, mask: Public | None = None) -> RowWeights:
    """``e^(s_j − max s) / Σ_k e^(s_k − max s)`` over the last axis of scores ``[B,H,S,S]``.

    With a mask the scores are shifted by the mean of the visible ones first: then no hidden one, a 0, is the largest.
    Domain: all scores; the argument of ``exp`` is at most 0, the normaliser lies in [1, n].
    Error: the two realisations' together; an exp that is 0 far below 0, as PUMA's, loses nothing.
    Cost: a max per row (needs COMPARE, 4·⌈log2 n⌉ rounds on shares), one exp per score, one reciprocal per row.
    Source: what PUMA (arXiv 2307.12533) and CrypTen (NeurIPS 2021) do.
    """
    if mask is None:
        weights = exp(s - s.max(-1))
        return RowWeights(weights, reciprocal(weights.sum(-1)))
    row = shifted(s, mask)
    weights = exp((row.scores - row.scores.max(-1)) * row.shown) * row.shown
    return RowWeights(weights, reciprocal(row.nonzero(weights.sum(-1))))


def ode(s: Tensor, *, clip: Function, steps: int = ODE_STEPS) -> Tensor:
    """Weights ``[B,H,S,S]`` by Euler's steps ``g ← g + (x − ⟨g,x⟩)·g``, ``x = clip(s)/steps``, from ``g = 1/n``.

    Softmax(t·s) solves ``g' = (s − ⟨g,s⟩)·g`` in t, so a step size 1/steps ends at softmax(s). Rows keep their sum 1.
    The first step has no products: ``(1 + x − mean x)/n``.
    Domain: scores in [−4, 12]; ``clip`` changes those outside, so their place matters and not only their differences.
    With 16 steps x spans 1 at most, which keeps every weight from below 0.
    Error: largest of a weight at 16 steps, measured with 16 keys: 1.4e-3 for scores evenly over [−1, 1], 2.5e-2 for one
    key 4 above the others and 3.0e-3 for one 8 above them, 2.7e-2 for scores evenly over [−4, 12].
    Cost: ``clip``, and in each step but the first an inner product per row and one product per score: 4·(steps − 1)
    rounds on shares and 2·(steps − 1) levels, 3 and 2 before them; no max, exp or division. A place to refresh
    before each step.
    Source: Kei and Chow, SHAFT, NDSS 2025.
    """
    x = clip(s) * (1.0 / steps)
    growth = x + 1.0
    keys = s.shape[-1]
    g = growth * (1.0 / keys) - x.sum(-1) * (1.0 / keys**2)
    for i in range(1, steps):
        g = g.refresh(f"step.{i}")
        g = g * (growth - g.inner(x))
    return g


def normalise_square(
    s: Tensor,
    *,
    exp: Function,
    rsqrt: Function,
    first: Function | None = None,
    middle: Function | None = None,
    squarings: int = SQUARINGS,
    scale: float = 1.0,
    mask: Public | None = None,
) -> Tensor:
    """Weights ``[B,H,S,S]`` from scores that arrive divided by 2^k: k times ``p ← (p/‖p‖)²`` from ``e^(s − mean s)/n``.

    Each step doubles the exponent and normalises, so p ends at the softmax of the scores times 2^k, in the range of a
    2^k-th of them. The 1/n is a constant under the exponential; with it every Σp² is at least 1/n, by Jensen at first
    and as Σp = 1 later. ``scale``: what else the scores were multiplied by, as ``Call.scale``. A ``mask`` hides keys as
    in ``softmax``; n is then the number of visible ones, and a row that hides all has weights 0.
    ``first`` and ``middle`` are the inverse roots at the first step and at those before the last, ``rsqrt`` that at the
    last, and wherever the others are not given.
    Domain: shifted scores − ln n in the domain of ``exp``; Σp² in that of its step's root, [1/n, 1], and at the first
    step the same if no score is over 2^(k−1)·ln n above its row's mean (before the division by 2^k), up to
    e^(2·largest shifted score)/n otherwise. Where one step's root is (1+r)/‖p‖, p is (1+r)²·(p/‖p‖)² and the next
    step's Σp² exactly (1+r)⁴ times what it would be; that root's own error stands for all before it, so nothing adds
    up. For roots that err by 10 % at most the domain is [0.9⁴/n, 1.1⁴].
    Error: relative, ((1+e)/(1−e))^(2^k)·(1+r)² − 1 at most: that of exp, e, counts 2^(k+1) times, that of the root, r,
    only at the last step, as every other is a factor of a whole row and taken out by the next.
    Cost: one exp per score; in each step an inner product and an rsqrt per row, two products per score.
    Source: Cho, Hanrot, Kim, Park and Stehlé, CCS 2024, arXiv 2410.11184; theirs starts from a shift by the range's
    upper end and has no 1/n, so its first normaliser needs a domain of its own.
    """
    row = shifted(s, mask)
    p = exp(row.scores - scale * np.log(row.visible))
    p = p if row.shown is None else p * row.shown
    roots = [first or rsqrt, *[middle or rsqrt] * (squarings - 2), *[rsqrt] * (squarings > 1)]
    for inverse in roots:
        p = (p * inverse(row.nonzero(p.inner(p)))).square()
    return p


def _max_shift(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    weights = max_shift(call.scores(q, k), exp=call["max.exp"], reciprocal=call["max.normaliser"], mask=call.mask)
    return call.mix(weights, v)


def _ode(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    return call.mix(ode(call.scores(q, k), clip=call["ode.clip"]), v)


def _normalise_square(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    s = call.scores(q, k)
    weights = normalise_square(
        s,
        exp=call["square.exp"],
        first=call["square.first"],
        middle=call["square.middle"],
        rsqrt=call["square.rsqrt"],
        scale=call.scale,
        mask=call.mask,
    )
    return call.mix(weights, v)


VARIANTS = (
    Attention(
        "softmax_max_shift",
        "e^(s − max s) / Σ e^(s − max s)",
        _max_shift,
        source="PUMA, arXiv 2307.12533; CrypTen, NeurIPS 2021",
        sites={"max.exp": "exp", "max.normaliser": "reciprocal"},
        needs=frozenset({Capability.COMPARE}),
        on_scores="max.exp",
        floors={"max.normaliser": lambda epsilon, most, least: 0.98},  # an approximated exp may miss 1 by its error
        masks=True,
        same_as="softmax",
    ),
    Attention(
        "softmax_ode",
        "16 × g ← g + (x − ⟨g,x⟩)·g, x = clip(s)/16",
        _ode,
        source="Kei and Chow, SHAFT, NDSS 2025",
        sites={"ode.clip": "clip"},
        same_as="softmax",
    ),
    Attention(
        "softmax_normalise_square",
        f"{SQUARINGS} × p ← (p/‖p‖)², p = e^((s − mean s)/{2**SQUARINGS})/n",
        _normalise_square,
        source="Cho, Hanrot, Kim, Park and Stehlé, CCS 2024, arXiv 2410.11184",
        sites={"square.exp": "exp", "square.first": "rsqrt", "square.middle": "rsqrt", "square.rsqrt": "rsqrt"},
        on_scores="square.exp",
        prescale=lambda keys: 2.0**-SQUARINGS,
        floors={  # 1/n but for the error of exp, which squares
            f"square.{step}": lambda epsilon, most, least: 0.9 / most for step in ("first", "middle", "rsqrt")
        },
        bears={"square.first": ROUGH, "square.middle": ROUGH},
        spread={"square.middle": _SPREAD, "square.rsqrt": _SPREAD},
        masks=True,
        same_as="softmax",
    ),
)
