"""Square root ``√x`` on a positive interval."""

from __future__ import annotations

import torch

from secureattn.approx.generic import Smooth, check_positive
from secureattn.approx.realisation import Builder, Interval, Realisation, converging, measured
from secureattn.approx.rsqrt import crypten_steps, goldschmidt_steps, relaxation
from secureattn.tensor import Tensor

TRUE = torch.sqrt
RANGE = "positive"
_SMOOTH = Smooth("sqrt", TRUE, relative=True, positive=True)


def rsqrt(domain: Interval, *, error: float = 1e-3) -> Realisation:
    """Goldschmidt's relaxed iteration for 1/√x, started from x: its other output is √x.

    Domain: ``[low, high]``, low > 0.
    Error: relative, that of ``rsqrt(goldschmidt)``, measured when made.
    Cost: depth ``2·steps``, ``3·steps − 2`` products; 4, 5, 6, 6 steps for κ = 2⁴, 2⁶, 2⁸, 2¹⁰ and an error of 1e-3.
    Source: Goldschmidt 1964; relaxation as in THOR (eprint 2024/1881).
    """
    check_positive("sqrt(rsqrt)", domain)
    factors = relaxation(domain[0] / domain[1], error)
    made = Realisation(
        "sqrt",
        "rsqrt",
        domain,
        lambda x: goldschmidt_steps(x, domain[1], factors, root=True),
        relative=True,
        source="Goldschmidt with relaxation, eprint 2024/1881",
    )
    return measured(made, TRUE)


def crypten(domain: Interval, *, steps: int = 3) -> Realisation:
    """``x·y`` with CrypTen's Newton iteration for ``y = 1/√x``.

    Domain: as ``rsqrt(crypten)``: good to 1 % on [0.086, 159], refused where it errs by more than 10 %.
    Error: relative, measured when made.
    Cost: one exp (8 squarings), then 3 products a step, and 1.
    Source: CrypTen 0.4.1 (``sqrt_nr_iters = 3``).
    """
    check_positive("sqrt(crypten)", domain)

    def apply(x: Tensor) -> Tensor:
        return x * crypten_steps(x, steps)

    made = Realisation("sqrt", "crypten", domain, apply, relative=True, source="CrypTen 0.4.1, Newton-Raphson")
    return converging(made, TRUE, f'in {steps} steps; use kind = "chebyshev" or "rsqrt"')


REALISATIONS: dict[str, Builder] = {**_SMOOTH.builders(), "rsqrt": rsqrt, "crypten": crypten}
