"""Products with an operand that many of them meet and that only grows: keys and values of earlier tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secureattn.backends.crypten.material import Kind, Request
from secureattn.backends.crypten.runtime import Runtime


@dataclass(frozen=True)
class Lasting:
    """What a party keeps of an operand ``[..,T,D]``: its ``number`` at the dealer and, of the rows that products have
    met, its share of their ``mask`` and what was ``opened``, the rows less it; None before the first product.
    """

    number: int
    mask: torch.Tensor | None = None
    opened: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        """Rows opened."""
        return 0 if self.opened is None else self.opened.shape[-2]

    def with_rows(self, mask: torch.Tensor, opened: torch.Tensor) -> Lasting:
        """The same with further rows."""
        if self.mask is None or self.opened is None:
            return Lasting(self.number, mask, opened)
        return Lasting(self.number, torch.cat([self.mask, mask], -2), torch.cat([self.opened, opened], -2))


def matmul_lasting(
    runtime: Runtime, x: torch.Tensor, y: torch.Tensor, lasting: Lasting, *, transposed: bool
) -> tuple[torch.Tensor, Lasting]:
    """``x·y`` for x ``[..,m,T]``, or ``x·yᵀ`` for x ``[..,m,D]``, with a lasting y ``[..,T,D]``; and what is kept of y.

    Formula: as ``products.matmul``, x·y = a·b + a·d + e·(b + d) with e = x − a and d = y − b opened, but of y only the
    rows that no product met before; b, its shares and the opened d stay. a is new each time, a·b is dealt each time.
    Hiding: opened in a whole run are x_i − a_i for every product and y − b for every row, once. All a_i and b are
    independent and uniform, as each party draws a part of them from its own key, so what is opened is uniform whatever
    the x_i and y are: nothing of y is sent twice, so no two openings have a mask in common. The dealt a_i·b come in
    shares of which any P−1 are drawn afresh, so they tell P−1 parties nothing of the masks. A row that was opened must
    never change, and no other value may get its mask: rows are only added, and the record goes with the longer tensor.
    Cost: one round opening |x| and the new rows' elements; 8·|x·y| dealer bytes; 2·m·T·D MACs a matrix.
    Source: Beaver, CRYPTO 1991; Mohassel and Zhang, SecureML, S&P 2017, IV-A (masks of matrices used again).
    """
    shape, met = tuple(y.shape), lasting.rows
    rows = y.narrow(-2, met, shape[-2] - met)
    fresh: list[torch.Tensor] = []
    if rows.shape[-2]:
        fresh = list(runtime.deal(Request(Kind.GROW, tuple(rows.shape), argument=lasting.number)))
    by = (*shape[:-2], shape[-1], shape[-2]) if transposed else shape
    a, c = runtime.deal(Request(Kind.MATMUL_GROWN, tuple(x.shape), by, argument=grown_argument(lasting, transposed)))
    e, *told = runtime.open([x - a, *(rows - b for b in fresh)])
    if fresh:
        lasting = lasting.with_rows(fresh[0], told[0])
    assert lasting.mask is not None
    assert lasting.opened is not None
    b, d = (kept.transpose(-1, -2) if transposed else kept for kept in (lasting.mask, lasting.opened))
    return c + runtime.multiply(a, d) + runtime.multiply(e, runtime.public(b, d)), lasting


def grown_argument(lasting: Lasting, transposed: bool) -> int:
    """The argument of MATMUL_GROWN."""
    return 2 * lasting.number + transposed
