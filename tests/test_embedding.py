"""Embeddings: looked up in the clear, or as a product with one-hot vectors on any engine."""

from __future__ import annotations

import numpy as np
import pytest

from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.backends.symbolic import SymbolicMpc
from secureattn.errors import InputError
from secureattn.nn.embedding import embed, looked_up, one_hot

TABLE = np.random.default_rng(20240607).normal(size=(11, 4))
TOKENS = np.array([[0, 10, 3], [3, 3, 7]])


def test_both_ways_give_the_rows_of_the_table() -> None:
    backend = PlaintextBackend()
    product = backend.reveal(embed(backend.input(one_hot(TOKENS, 11)), backend.matrix(TABLE.T)))
    assert np.array_equal(product, TABLE[TOKENS])
    assert np.array_equal(looked_up(TOKENS, TABLE), TABLE[TOKENS])


def test_one_hot_product_takes_one_round_that_the_client_alone_sends_in() -> None:
    sent = []
    for rank in (0, 1):
        backend = SymbolicMpc(MpcParameters(), rank)
        with backend.recorder.phase("setup"):
            table = backend.matrix(TABLE.T)
        assert embed(backend.shape_input((2, 3, 11)), table).shape == (2, 3, 4)
        assert backend.recorder.total("rounds", phase="online") == 1
        sent.append(backend.recorder.total("bytes_sent", phase="online"))
    assert sent == [0, 8 * 2 * 3 * 11]


@pytest.mark.parametrize(
    ("tokens", "said"), [([[11]], "token 11 is outside"), ([[-1]], "token -1 is outside"), ([[0.5]], "whole numbers")]
)
def test_no_such_token_is_refused(tokens: list[list[float]], said: str) -> None:
    for way in (lambda: one_hot(tokens, 11), lambda: looked_up(tokens, TABLE)):
        with pytest.raises(InputError, match=said):
            way()
