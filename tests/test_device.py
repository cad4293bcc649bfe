"""The secret-sharing engine on an accelerator: the same ring, the same factors, the same results."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from secureattn.backends.crypten import ring
from secureattn.backends.crypten.bit_tables import BitTables
from secureattn.backends.crypten.harmonics import angles, turned_back
from secureattn.errors import EngineError, InputError
from secureattn.series import FourierSeries

SEED = 20240607
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
needs_crypten = pytest.mark.skipif(importlib.util.find_spec("crypten") is None, reason="CrypTen is not installed")
WAVES = FourierSeries(16.0, (0.5, -0.25, 0.125), (1.0, 0.0, -0.75), (-7.0, 7.0))


def uniform(*shape: int) -> torch.Tensor:
    words = np.random.default_rng([SEED, *shape]).integers(-(2**63), 2**63, shape, dtype=np.int64)
    return torch.from_numpy(words)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (17, 3072, 9)])
def test_limbs_multiply_in_the_ring(shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    x, y = uniform(2, m, k), uniform(2, k, n)
    assert torch.equal(ring.by_limbs(x, y), torch.matmul(x, y))


def test_limbs_hold_the_largest_sums() -> None:
    x = torch.full((1, ring._MOST_TERMS), -1, dtype=torch.int64)
    assert torch.equal(ring.by_limbs(x, x.t()), torch.matmul(x, x.t()))
    with pytest.raises(InputError, match="sums up to 524288 terms, not 524289"):
        ring.by_limbs(torch.zeros(1, ring._MOST_TERMS + 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="a device is cpu or cuda, not 'tpu'"):
        ring.device_of("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match=r"^--device cuda needs a CUDA device"):
            ring.device_of("cuda")


@needs_cuda
def test_public_factors_are_the_same_to_the_last_bit() -> None:
    """Or a party on a GPU and one on a CPU would not fit together."""
    x, dealt = uniform(1 << 16), uniform(2, 3, 1 << 16)
    for bits in (5, 21, 32, 53):
        for here, there in zip(angles(x, bits), angles(x.cuda(), bits), strict=True):
            assert torch.equal(here, there.cpu())
        found = turned_back(x.cuda(), dealt.cuda(), WAVES, bits, 20)
        assert torch.equal(turned_back(x, dealt, WAVES, bits, 20), found.cpu())


@needs_cuda
def test_comparisons_and_products_are_the_same() -> None:
    x, y = uniform(2, 64, 768), uniform(2, 768, 96)
    assert torch.equal(torch.matmul(x, y), ring.matmul(x.cuda(), y.cuda()).cpu())
    tables, r, c = BitTables(28), uniform(1000), uniform(1000) & ((1 << 28) - 1)
    words, monomials = tables.deal(r, uniform(1000))
    for first in (True, False):
        digits = tables.looked_up(c, words)
        assert torch.equal(digits, tables.looked_up(c.cuda(), words.cuda()).cpu())
        groups = tables.grouped(digits, words, first=first)
        assert torch.equal(groups, tables.grouped(digits.cuda(), words.cuda(), first=first).cpu())
        found = tables.below(groups.cuda(), monomials.cuda(), first=first)
        assert torch.equal(tables.below(groups, monomials, first=first), found.cpu())


@needs_cuda
@needs_crypten
def test_parties_on_a_gpu_classify_as_in_the_clear() -> None:
    from secureattn import load_model, load_protocol, make_plan, runs

    model = load_model("digits-vit")
    x, _ = model.samples(64)
    for protocol in ("accurate-mpc", "puma"):
        plan = make_plan(model, load_protocol(protocol), samples=len(x))
        found: Any = runs.execute(plan, x, device="cuda").outputs
        assert np.abs(found - runs.clear_run(plan, x).outputs).max() < 4e-3
