"""Sign: −1 below 0, 1 above."""

from __future__ import annotations

import torch

from secureattn import fit
from secureattn.approx.realisation import COMPARE, EVERYWHERE, Builder, Interval, Realisation
from secureattn.polynomial import Polynomial
from secureattn.tensor import Tensor

TRUE = torch.sign
RANGE = "symmetric"


def composite(domain: Interval, *, gap: float = 2.0**-6, error: float = 1e-3) -> Realisation:
    """Odd minimax polynomials, each applied to the value of the one before.

    Domain: ``[−m, m]``; within ``±gap·m`` nothing is promised but an odd value between −1 − error and 1 + error.
    Outside the domain it leaves the sign fast.
    Error: the largest on ``gap·m ≤ |x| ≤ m``, measured when made; up to 1 within the gap.
    Cost: the least depth for this gap and error, then the fewest products: depth 6 for 2^-4 and 2^-4, 9 for 2^-6 and
    1e-3, 12 for 2^-8 and 1e-3; +1 unless the slope 1/m is folded.
    Source: Lee, Lee, No and Kim, eprint 2020/834.
    """
    m = max(abs(domain[0]), abs(domain[1]))
    (first, *rest), found = composition(m, gap=gap, error=error)
    draft = Realisation(
        "sign",
        "composite",
        (-m, m),
        lambda x: x,
        error=found,
        then=lambda x: in_turn(rest, x),
        source="composite minimax, eprint 2020/834",
    )
    return draft.with_polynomial(first)


def composition(m: float, *, gap: float, error: float, factor: float = 1.0) -> tuple[list[Polynomial], float]:
    """Polynomials whose composition is ``factor·sign(x)``, and its error before the factor.

    Domain: ``gap·m ≤ |x| ≤ m``.
    Error: ``error`` or less.
    Cost: clear only.
    Source: Lee, Lee, No and Kim, eprint 2020/834.
    """
    found = fit.composite_sign(error, gap)
    polynomials = [Polynomial(tuple(coefficients.tolist()), domain) for coefficients, domain in found.polynomials]
    polynomials[-1] = polynomials[-1].scaled(factor)
    polynomials[0] = polynomials[0].rescaled(m)
    return polynomials, found.error


def in_turn(polynomials: list[Polynomial], x: Tensor) -> Tensor:
    """Each polynomial of the value of the one before.

    Domain: that of the first.
    Error: none of its own.
    Cost: that of all.
    Source: composition.
    """
    for p in polynomials:
        x = x.polynomial(p)
    return x


def compare(domain: Interval = EVERYWHERE) -> Realisation:
    """``1 − 2·[x < 0]``.

    Domain: all reals.
    Error: none, but at 0 itself, where it is 1 instead of 0.
    Cost: 1 comparison, no product (needs COMPARE).
    Source: definition.
    """

    def apply(x: Tensor) -> Tensor:
        return 1.0 - x.less(0.0) * 2

    return Realisation("sign", "compare", EVERYWHERE, apply, error=0.0, needs=COMPARE, source="definition")


REALISATIONS: dict[str, Builder] = {"composite": composite, "compare": compare}
