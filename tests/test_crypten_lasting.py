"""Products with an operand that lasts: their values, what is opened of it and how often, and that it is uniform."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_close
from test_crypten_plan import Party, assert_uniform, grid, planner, together, totals

from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.dealer import Dealer
from secureattn.backends.crypten.material import Kind, Request
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.errors import EngineError

PASSES = (3, 1, 2)  # rows that each adds
B, H, D = 2, 3, 4


def rows(salt: int) -> list[np.ndarray]:
    return [grid(B, H, n, D, salt=salt + i) for i, n in enumerate(PASSES)]


def generated(b: MpcBackend, queries: list[np.ndarray], keys: list[np.ndarray]) -> list[Any]:
    """Scores and mixture of every pass with all rows so far, as a decoder's cache makes them."""
    found: list[Any] = []
    k = v = None
    for query, row in zip(queries, keys, strict=True):
        x, new = b.input(query), b.input(row)
        k = new.lasting() if k is None else k.extended(new)
        v = new.lasting() if v is None else v.extended(new)
        scores = x.scores(k)
        found += [scores, scores.mix(v)]
    return found


@pytest.mark.parametrize("parties", [2, 3])
def test_products_are_those_with_all_rows_so_far(parties: int) -> None:
    queries, keys = rows(0), rows(10)

    def program(b: MpcBackend) -> list[np.ndarray]:
        return [b.reveal(tensor, to=None) for tensor in generated(b, queries, keys)]  # type: ignore[misc]

    wanted = []
    for i, query in enumerate(queries):
        known = np.concatenate(keys[: i + 1], -2)
        scores = query @ np.swapaxes(known, -1, -2)
        wanted += [scores, scores @ known]
    for found in together(program, MpcParameters(parties)):
        for value, right in zip(found, wanted, strict=True):
            assert_close(value, right, 2.0**-11, "scores reach 16 and are truncated to 2^-16 before they mix")


@pytest.mark.parametrize("parties", [2, 3])
def test_every_row_is_opened_once_and_for_both_products_queries_alone_after(parties: int) -> None:
    b, known = planner(MpcParameters(parties)), 0
    k = v = None
    for n in PASSES:
        new, known = b.input(np.zeros((B, H, n, D))), known + n
        k = new.lasting() if k is None else k.extended(new)
        v = new.lasting() if v is None else v.extended(new)
        before = totals(b, "rounds", "bytes_sent", "dealer_bytes")
        x, weights = b.input(np.zeros((B, H, 1, D))), b.input(np.zeros((B, H, 1, known)))
        assert x.scores(k).shape == (B, H, 1, known)
        assert weights.mix(v).shape == (B, H, 1, D)
        spent = np.subtract(totals(b, "rounds", "bytes_sent", "dealer_bytes"), before).tolist()
        opened = B * H * (D + n * D) + B * H * (known + n * D)
        assert spent == [2, 8 * opened * (parties - 1), 8 * B * H * (known + D)]
        again = totals(b, "openings")[0]
        x.scores(k)
        assert totals(b, "openings")[0] - again == B * H * D  # the query alone


def test_what_was_opened_goes_on_with_the_longer_one_and_the_shorter_is_as_any_other() -> None:
    first, second, query = grid(1, 1, 3, D), grid(1, 1, 1, D, salt=1), grid(1, 1, 2, D, salt=2)

    def program(b: MpcBackend) -> list[Any]:
        k = b.input(first).lasting()
        b.input(query).scores(k)
        longer = k.extended(b.input(second))
        assert (k.kept, longer.kept is None) == (None, False)
        return [b.reveal(b.input(query).scores(keys), to=None) for keys in (k, longer, k)]

    for found in together(program):
        for value, known in zip(found, (first, np.concatenate([first, second], -2), first), strict=True):
            assert_close(value, query @ np.swapaxes(known, -1, -2), 2.0**-14, "exact but for decoding")


def test_an_opened_row_is_uniform_and_shares_its_mask_with_no_other() -> None:
    """Rows and queries that are all the same: what is opened of one, and every difference of two, is uniform."""
    many = (1, 1, 1 << 12, 2)

    def program(b: MpcBackend) -> list[torch.Tensor]:
        assert isinstance(b.runtime, Party)
        query, same = np.ones((1, 1, 1 << 12, 2)), np.ones(many)
        k = b.input(same).lasting()
        b.input(query[..., :1, :]).scores(k)
        k = k.extended(b.input(same))
        b.input(query[..., :1, :]).scores(k)
        return [flat[2:] for flat in b.runtime.opened]  # without the query's two

    first, second = together(program)[0]
    assert first.numel() == second.numel() == 2 << 12
    for value in (first, second, first - second, first[1:] - first[:-1]):
        for shift in (0, 28, 55):
            assert_uniform(value >> shift & 255, 256)


def test_it_is_truncated_once_before_it_is_opened() -> None:
    """A product is kept at 16 places: later rows must meet the very values that were opened."""

    def program(b: MpcBackend) -> Any:
        x = b.input(grid(1, 1, 3, D))
        k = x.square().lasting()
        assert k.places == 16
        k = k.extended(x.square())
        assert (k.places, k.shape) == (16, (1, 1, 6, D))
        return b.reveal(x.scores(k), to=None)

    x = grid(1, 1, 3, D)
    both = np.concatenate([x**2, x**2], -2)
    for value in together(program):
        assert_close(value, x @ np.swapaxes(both, -1, -2), 2.0**-13, "of a square one unit in the last place is lost")


def test_the_dealer_refuses_rows_that_it_does_not_have() -> None:
    dealer = Dealer([bytes(32), bytes([1]) * 32])
    dealer.correction(Request(Kind.GROW, (2, 3, 4), argument=5))
    dealer.correction(Request(Kind.MATMUL_GROWN, (2, 1, 3), (2, 3, 4), 2 * 5))
    for number, by in ((5, (2, 4, 4)), (6, (2, 3, 4))):
        with pytest.raises(EngineError, match="are kept, and a product with"):
            dealer.correction(Request(Kind.MATMUL_GROWN, (2, 1, by[-2]), by, 2 * number))
