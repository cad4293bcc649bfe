"""The secret-sharing engine without CrypTen: what a plan counts, the dealer's arithmetic, protocols between threads."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secureattn.backends.crypten import encoding, scaling
from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.bit_tables import BitTables
from secureattn.backends.crypten.comparison import negative
from secureattn.backends.crypten.csprng import Csprng, key_to_words, new_key, words_to_key
from secureattn.backends.crypten.dealer import Dealer
from secureattn.backends.crypten.harmonics import turned_back
from secureattn.backends.crypten.material import Kind, Request, combine, draw, series_argument
from secureattn.backends.crypten.parameters import MpcParameters, places_beside
from secureattn.backends.crypten.periodic import harmonics_of
from secureattn.backends.crypten.planning import UNIT_S, NullRuntime
from secureattn.backends.crypten.runtime import Asked
from secureattn.backends.crypten.truncation import truncate
from secureattn.errors import CapabilityError, EngineError, InputError, ProtocolError
from secureattn.events import Recorder
from secureattn.series import FourierSeries
from secureattn.tensor import Capability

SEED = 20240607
WAVES = FourierSeries(16.0, (0.5, -0.25, 0.125), (1.0, 0.0, -0.75), (-7.0, 7.0), constant=0.3)


def rounding(f: FourierSeries, places: int) -> float:
    """Six times the standard error of a series whose factors and dealt values have so many places together."""
    spread = sum(c * c for c in (*f.cosines, *f.sines))
    return 6 * min(
        math.sqrt((f.harmonics * 4.0**-factor + spread * 4.0 ** (factor - places)) / 12) for factor in range(1, places)
    )


def planner(parameters: MpcParameters | None = None, rank: int = 0, *, ahead: bool = False) -> MpcBackend:
    return MpcBackend(NullRuntime(parameters, rank, ahead=ahead), Recorder(modelled=True))


def totals(backend: MpcBackend, *names: str, phase: str | None = None) -> tuple[int, ...]:
    return tuple(backend.recorder.total(name, phase=phase) for name in names)


def noted(backend: MpcBackend) -> list[Asked]:
    """What a planning backend asked for."""
    assert isinstance(backend.runtime, NullRuntime)
    return backend.runtime.asked


# ---- the plan ---------------------------------------------------------------------------------------------------


def test_planning_loads_neither_crypten_nor_cryptography() -> None:
    program = (
        "import sys, numpy\n"
        "sys.modules['crypten'] = sys.modules['cryptography'] = None\n"
        "from secureattn.backends.crypten.backend import MpcBackend\n"
        "from secureattn.backends.crypten.planning import NullRuntime\n"
        "from secureattn.events import Recorder\n"
        "b = MpcBackend(NullRuntime(), Recorder(modelled=True))\n"
        "x = b.input(numpy.zeros((2, 3)))\n"
        "assert b.reveal((x * x).max(-1), to=0).shape == (2, 1)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("parties", [2, 3])
def test_cost_of_a_product(parties: int) -> None:
    b = planner(MpcParameters(parties=parties))
    x, y = b.input(np.zeros((4, 5))), b.input(np.zeros((4, 5)))
    assert (x * y).shape == (4, 5)
    assert totals(b, "rounds", "bytes_sent", "products") == (1, 8 * 40 * (parties - 1), 20)
    assert totals(b, "dealer_bytes", "truncations") == (8 * 20, 0)


@pytest.mark.parametrize(("truncation", "rounds", "dealt"), [("exact", 1, 16), ("local", 0, 0)])
def test_cost_of_a_truncation(truncation: str, rounds: int, dealt: int) -> None:
    b = planner(MpcParameters(truncation=truncation))  # type: ignore[arg-type]
    product = b.input(np.zeros((4, 5))).square()
    before = totals(b, "rounds", "bytes_sent", "dealer_bytes")
    assert scaling.settled(product).places == 16
    after = totals(b, "rounds", "bytes_sent", "dealer_bytes")
    assert np.subtract(after, before).tolist() == [rounds, 8 * 20 * rounds, dealt * 20]
    assert {e.op for e in b.recorder.events.values() if e.counts.get("truncations")} == {"truncate"}
    assert b.runtime.truncated == {32: 20}


def test_cost_of_broadcasting_follows_the_operands() -> None:
    b = planner()
    b.input(np.zeros((4, 5))) * b.input(np.zeros((4, 1)))
    assert totals(b, "openings", "dealer_bytes") == (20 + 4, 8 * 20)


@pytest.mark.parametrize(("parties", "rank"), [(2, 0), (2, 1), (3, 0), (3, 2)])
def test_cost_of_linear_and_its_set_up(parties: int, rank: int) -> None:
    """Party 0 sends W - b once, and no more; it alone multiplies online."""
    b = planner(MpcParameters(parties=parties), rank)
    w, bias = b.weight(np.zeros((7, 5))), b.weight(np.zeros(7))
    for _ in range(3):
        assert b.input(np.zeros((2, 4, 5))).linear(w, bias).shape == (2, 4, 7)
    first, macs = rank == 0, 3 * 8 * 5 * 7
    assert totals(b, "rounds", "bytes_sent", phase="setup") == (1, 8 * 35 * (parties - 1) if first else 0)
    assert totals(b, "rounds", "bytes_sent", phase="online") == (3, 0 if first else 3 * 8 * 40)
    assert totals(b, "macs", phase="online") == (macs if first else 0,)
    assert totals(b, "macs", phase="offline") == (0 if first else macs,)
    assert totals(b, "dealer_bytes", "dealer_macs", "truncations") == (3 * 8 * 56 if first else 0, macs, 0)
    drawn = 8 * 35 if first else 3 * 8 * (40 + 56)  # b; a, and the shares of a·bᵀ
    assert totals(b, "keystream_bytes") == (drawn,)


def test_a_matrix_is_fixed_at_once_and_a_weight_when_used() -> None:
    b = planner()
    w = b.weight(np.zeros((7, 5)))
    assert totals(b, "rounds") == (0,)
    matrix = b.matrix(np.zeros((7, 5)))
    assert totals(b, "rounds", phase="setup") == totals(b, "rounds") == (1,)
    b.input(np.zeros((2, 5))).linear(matrix)
    assert totals(b, "rounds", phase="setup") == (1,)
    b.input(np.zeros((2, 5))).linear(w)
    assert totals(b, "rounds", phase="setup") == (2,)
    assert b.runtime.matrices.keys() == {0, 1}
    assert Kind.FIX not in {asked.request.kind for asked in noted(b)}


def test_comparisons_with_several_truncate_their_operand_once() -> None:
    b = planner()
    x = b.input(np.zeros(10)).square()
    x.less_each([-1.0, 0.5, 2.0])
    assert totals(b, "truncations", "comparisons") == (10, 30)
    x * x.less(0.25)
    assert totals(b, "truncations") == (10,)


@pytest.mark.parametrize(
    ("parameters", "places"),
    [
        (MpcParameters(fractional_bits=12), 18),
        (MpcParameters(), 22),
        (MpcParameters(fractional_bits=20), 26),
        (MpcParameters(fractional_bits=24), 26),
        (MpcParameters(truncation="local"), 16),
    ],
)
def test_a_public_factor_has_six_bits_more_where_there_is_room(parameters: MpcParameters, places: int) -> None:
    product = planner(parameters).input(np.zeros(3)) * (2 / 3)
    assert product.places == parameters.fractional_bits + places


@pytest.mark.parametrize("rank", [0, 1])
def test_public_weights_cost_no_message(rank: int) -> None:
    b = planner(MpcParameters(weights="public"), rank)
    x = b.input(np.zeros((2, 4, 5)))
    x.linear(b.matrix(np.zeros((7, 5))), b.weight(np.zeros(7)))
    x * b.weight(np.full((4, 5), 0.3)) + b.weight(np.zeros(5))
    assert totals(b, "rounds", "bytes_sent", "dealer_requests", "keystream_bytes") == (0, 0, 0, 0)
    assert totals(b, "macs") == totals(b, "macs", phase="online") == (8 * 5 * 7,)


def test_cost_of_fused_sums() -> None:
    b = planner()
    x, y = b.input(np.zeros((4, 5))), b.input(np.zeros((4, 5)))
    assert x.inner(y).shape == (4, 1)
    assert totals(b, "rounds", "openings", "dealer_bytes", "truncations") == (1, 20 + 20, 8 * 4, 0)
    b = planner()
    x = b.input(np.zeros((4, 5)))
    x.inner(x)
    assert totals(b, "rounds", "openings") == (1, 20)


def test_cost_of_attention() -> None:
    b = planner()
    q, k, v = (b.input(np.zeros((2, 6, 8))).split_heads(2) for _ in range(3))
    s = q.scores(k)
    assert s.shape == (2, 2, 6, 6)
    assert totals(b, "rounds", "openings", "macs") == (1, 96 + 96, 2 * 144 * 4)
    assert s.mix(v).merge_heads().shape == (2, 6, 8)
    assert totals(b, "rounds", "openings", "truncations") == (2, 192 + 144 + 96, 0)


def test_cost_of_a_value_per_key_and_of_pooling() -> None:
    b = planner()
    k = b.input(np.zeros((2, 6, 8))).split_heads(2)
    assert k.sum(-1).per_key().shape == (2, 2, 1, 6)
    assert k.pool(3).shape == (2, 2, 2, 4)
    assert totals(b, "rounds", "bytes_sent", "dealer_bytes") == (0, 0, 0)
    with pytest.raises(InputError, match=r"^pool\(4\) needs a multiple of 4 tokens, got \[2, 2, 6, 4\]$"):
        k.pool(4)


def test_cost_of_a_product_with_a_weight() -> None:
    """As with any shared tensor, the weight broadcast: nothing is opened ahead, as it would be for ``linear``."""
    b = planner()
    s = b.input(np.zeros((3, 2, 5, 5)))
    assert (s * b.weight(np.zeros((2, 5, 5)))).shape == (3, 2, 5, 5)
    assert totals(b, "rounds", "openings", "dealer_bytes") == (1, 150 + 50, 8 * 150)
    assert totals(b, "rounds", phase="setup") == (0,)


@pytest.mark.parametrize(
    ("fractional", "integer", "sent", "words"),
    [(12, 3, 6, 6), (12, 4, 7, 11), (16, 12, 7, 11), (16, 13, 7, 11), (16, 14, 11, 11), (16, 20, 12, 20),
     (11, 40, 13, 34)],
)  # fmt: skip
def test_cost_of_a_comparison(fractional: int, integer: int, sent: int, words: int) -> None:
    """For differences of 16, 17, 29, 30, 31, 37 and 52 bits: those of up to 30 are opened in four bytes."""
    for parties in (2, 4):
        b = planner(MpcParameters(parties=parties, fractional_bits=fractional, integer_bits=integer))
        bit = b.input(np.zeros(10)).less(0.5)
        assert totals(b, "rounds", "comparisons") == (3, 10)
        assert totals(b, "bytes_sent", "dealer_bytes") == (10 * sent * (parties - 1), 10 * 8 * words)
        bit * b.input(np.zeros(10))
        assert totals(b, "truncations") == (0,)  # a bit has no binary places


def test_several_comparisons_take_the_rounds_of_one() -> None:
    b = planner()
    x = b.input(np.zeros((2, 5)))
    assert [bit.shape for bit in x.less_each([0.5, b.input(np.zeros(5)), b.input(np.zeros((3, 1, 1)))])] == [
        (2, 5), (2, 5), (3, 2, 5)
    ]  # fmt: skip
    assert totals(b, "rounds", "comparisons", "bytes_sent") == (3, 50, 7 * 50)
    x.square().less_each([x * x * x, 0.5])  # two products, and both differences truncated together
    assert totals(b, "rounds", "truncations") == (3 + 3 + 1 + 3, 20)


@pytest.mark.parametrize(("parties", "rank"), [(2, 0), (2, 1), (3, 0), (3, 2)])
def test_cost_of_a_series(parties: int, rank: int) -> None:
    b = planner(MpcParameters(parties=parties), rank)
    f = FourierSeries(32.0, (1.0, 0.5, 0.25), (), (-8.0, 8.0), linear=0.5)
    assert b.input(np.zeros((3, 4))).series(f).shape == (3, 4)
    told = 8 * 5 * (parties - 1) if rank == 0 else 0  # the coefficients, once
    assert totals(b, "rounds", "bytes_sent", phase="setup") == (1, told)
    assert totals(b, "rounds", "openings", "truncations", phase="online") == (1, 12, 0)
    assert totals(b, "bytes_sent", phase="online") == (4 * 12 * (parties - 1),)
    assert totals(b, "dealer_bytes", "dealer_requests") == (0 if rank else 16 * 3 * 12, 1)
    assert totals(b, "keystream_bytes") == ((8 + (16 * 3 if rank else 0)) * 12,)
    assert totals(b, "harmonics", phase="online") == totals(b, "harmonics", phase="offline") == (36,)
    # 38 places, which a slope of 22 makes of 16, half of them for what is dealt
    assert noted(b) == [Asked("", Request(Kind.SERIES, (12,), (2, 3), series_argument(bits=21, places=19)))]


@pytest.mark.parametrize(("period", "bits", "sent"), [(4.0, 32, 4), (4096.0, 32, 4), (8192.0, 45, 8)])
def test_a_series_reads_32_bits_of_a_product(period: float, bits: int, sent: int) -> None:
    """Of 34, 44 and 45; the last period has more than 32 bits at 20 places, and all are read."""
    b = planner()
    b.input(np.zeros(10)).square().series(FourierSeries(period, (1.0,), (), (0.0, period / 4)))
    assert noted(b)[-1].request.argument % 64 == bits
    assert totals(b, "bytes_sent", phase="online") == (8 * 10 + sent * 10,)


@pytest.mark.parametrize(
    ("cosines", "places", "fraction"), [((4.0, 2.0), 32, 16), ((30.0, -20.0, 5.0), 38, 16), ((0.0009,), 42, 26)]
)
def test_a_series_has_places_for_half_a_unit_or_those_of_a_product(
    cosines: tuple[float, ...], places: int, fraction: int
) -> None:
    """The second would be three units off at 32; of the third, below 2^-10, a unit is the smaller."""
    f = FourierSeries(8.0, cosines, (), (-3.0, 3.0))
    assert planner().input(np.zeros(4)).series(f).places == places
    error = rounding(f, places) / 6 * 2.0**fraction
    assert error <= 0.5 or (error <= 3 and places == 16 + fraction)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 9])
def test_cost_of_a_maximum(length: int) -> None:
    b = planner()
    assert b.input(np.zeros((3, length))).max(-1).shape == (3, 1)
    assert totals(b, "rounds", "comparisons", "bytes_sent", "dealer_bytes") == (
        4 * math.ceil(math.log2(length)),
        3 * (length - 1),
        3 * (length - 1) * 23,
        3 * (length - 1) * 96,
    )


def test_dealer_bytes_reach_the_first_party_only() -> None:
    for parameters, rank in ((MpcParameters(), 1), (MpcParameters(dealer="tfp"), 0)):
        b = planner(parameters, rank)
        b.input(np.zeros(4)).square()
        assert totals(b, "dealer_bytes") == (0,)


def test_modelled_seconds_are_the_counts_times_their_units() -> None:
    b = planner()
    b.input(np.zeros((2, 3, 4))).linear(b.weight(np.zeros((4, 4)))).max(-1)
    expected = sum(UNIT_S[name] * b.recorder.total(name) for name in UNIT_S)
    assert b.recorder.seconds() == pytest.approx(expected)
    assert b.recorder.seconds("offline") > 0


def test_reveal_in_a_plan() -> None:
    b = planner(rank=1)
    x = b.input(np.zeros((2, 3)))
    assert b.reveal(x, to=0) is None
    assert totals(b, "rounds", "bytes_sent") == (1, 48)
    assert np.array_equal(b.reveal(x, to=1), np.zeros((2, 3)))
    assert totals(b, "rounds", "bytes_sent") == (2, 48)


def test_capabilities() -> None:
    b = planner()
    assert b.capabilities == {Capability.COMPARE, Capability.MATRIX, Capability.JOIN}
    with b.region("layer.0"), pytest.raises(CapabilityError, match=r"crypten engine lacks, at layer\.0"):
        b.input(np.zeros(2)).exact("gelu", torch.nn.functional.gelu)


# ---- when products are truncated ----------------------------------------------------------------------------------


def truncated(b: MpcBackend) -> tuple[int, int]:
    """Rounds and elements of the operation."""
    events = [e for e in b.recorder.events.values() if e.op == "truncate"]
    return sum(e.counts.get("rounds", 0) for e in events), sum(e.counts.get("truncations", 0) for e in events)


def test_a_product_on_its_way_to_a_series_is_not_truncated() -> None:
    b = planner()
    x, y = b.input(np.zeros(9)), b.input(np.zeros(9))
    product = x * y
    assert product.places == 32
    product.series(WAVES)
    assert totals(b, "rounds", phase="online") == (2,)
    assert truncated(b) == (0, 0)


def test_products_wait_as_long_as_the_ring_has_room() -> None:
    b = planner()
    x = b.input(np.zeros((2, 8)))
    cube = x * x * x
    assert (cube.places, cube.size) == (48, 12)
    assert (cube + x.square()).places == 48
    assert x.square().linear(b.weight(np.zeros((3, 8)))).places == 50
    assert x.combine([(0.5, cube)], [(x.square(), x)], 0.3).places == 49
    assert truncated(b) == (0, 0)
    cube * x
    assert truncated(b) == (1, 16)


def test_local_truncation_leaves_a_product_no_more_places_than_two_factors_have() -> None:
    b = planner(MpcParameters(truncation="local"))
    x = b.input(np.zeros(8))
    assert x.square().places == 32
    assert (x * x * x).places == 32
    assert truncated(b) == (0, 8)


def test_tensors_cut_from_one_are_truncated_as_one() -> None:
    b = planner()
    qkv = b.input(np.zeros((2, 6, 24))).square()
    q, k, v = (qkv.take(-1, slice(8 * i, 8 * i + 8)).split_heads(2) for i in range(3))
    b.recorder.events.clear()
    q.combine((), [(q, k), (v, v)])
    assert truncated(b) == (1, qkv.share.numel())
    scaling.settled_all([qkv, q.merge_heads(), k, v])
    assert truncated(b) == (1, qkv.share.numel())


def test_a_small_part_is_truncated_alone() -> None:
    b = planner()
    whole = b.input(np.zeros((10, 5))).square()
    scaling.settled(whole.take(0, slice(0, 2)))
    assert truncated(b) == (1, 10)
    scaling.settled(whole.take(0, slice(0, 3)))
    assert truncated(b) == (2, 60)


def test_a_tensor_with_two_consumers_is_truncated_once() -> None:
    b = planner()
    product = b.input(np.zeros((4, 8))).square()
    product.square()
    assert truncated(b) == (1, 32)
    product.max(-1)
    product.inner(product)
    assert truncated(b) == (1, 32)


def test_operands_are_truncated_in_one_round_whatever_their_places() -> None:
    b = planner()
    x = b.input(np.zeros(8))
    x.combine((), [(x.square(), x * x * x), (x * 0.3, x)])
    assert truncated(b) == (1, 8 + 8 + 8)


def test_of_two_operands_the_one_with_most_places_is_truncated_first() -> None:
    b = planner()
    x = b.input(np.zeros(8))
    product = x.square() * (x * x * x)
    assert truncated(b) == (1, 8)
    assert product.places == 32 + 16


def test_a_value_per_row_is_truncated_before_it_is_multiplied() -> None:
    b = planner()
    x = b.input(np.zeros((4, 8)))
    product = x * x.inner(x)
    assert truncated(b) == (1, 4)
    assert product.places == 32


def test_a_factor_below_one_takes_places_from_the_other() -> None:
    b = planner()
    x = b.input(np.zeros(8))
    small = x * 2.0**-20
    assert (small.places, small.size) == (36, -8)
    product = x * x * x * small
    assert truncated(b) == (1, 8)
    assert (product.places, product.size) == (16 - 8 + 36, 4)


# ---- dealing ahead ------------------------------------------------------------------------------------------------


def test_a_plan_that_was_prepared_differently_is_refused() -> None:
    b = planner()
    b.runtime.prepare([Asked("", Request(Kind.SQUARE, (3,)))])
    with pytest.raises(EngineError, match=r"(?s)SQUARE.*\(4,\).*was asked for.*\(3,\).*prepare the same run"):
        b.input(np.zeros(4)).square()


def test_a_matrix_may_be_fixed_between_preparing_and_running() -> None:
    b = planner()
    b.runtime.prepare([Asked("", Request(Kind.SQUARE, (4,)))])
    b.matrix(np.zeros((2, 3)))
    b.input(np.zeros(4)).square()
    assert totals(b, "dealer_requests") == (2,)


def test_a_plan_ahead_asks_once_beside_its_matrices() -> None:
    for ahead, asked in ((True, 2 + 1), (False, 2 + 6)):
        b = planner(ahead=ahead)
        first, second = b.matrix(np.zeros((6, 4))), b.matrix(np.zeros((2, 6)))
        b.input(np.zeros((3, 4))).linear(first).square().linear(second).less(0.0)
        assert isinstance(b.runtime, NullRuntime)
        b.runtime.ask_once()
        assert len(noted(b)) == 6
        assert totals(b, "dealer_requests") == (asked,)


# ---- parties in threads -------------------------------------------------------------------------------------------


class Party(NullRuntime):
    """A party that computes, with all others in this process: ``told`` has what each of them sent, by rank."""

    def __init__(self, parameters: MpcParameters, rank: int, told: list[Any], meeting: threading.Barrier) -> None:
        super().__init__(parameters, rank)
        keys = [bytes([seed]) * 32 for seed in range(parameters.parties)]
        self._stream, self._dealer = Csprng(keys[rank]), Dealer(keys)
        self._told, self._meeting, self._shares = told, meeting, np.random.default_rng(SEED)
        self.opened: list[torch.Tensor] = []

    def constant(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.array(values, dtype=np.int64))

    def share(self, values: np.ndarray, *, owner: int) -> torch.Tensor:
        words = uniform(self._shares, self.parameters.parties, *values.shape)
        zero = words[self.rank] - words[self.rank - 1]
        return zero + self.constant(values) if self.rank == owner else zero

    def reveal(self, share: torch.Tensor, *, to: int | None) -> torch.Tensor | None:
        total = combine(self._tell(share), xor=False)
        return total if to in (None, self.rank) else None

    def from_first(self, values: torch.Tensor) -> torch.Tensor:
        return self._tell(super().from_first(values))[0]

    def to_first(self, flat: torch.Tensor) -> torch.Tensor | None:
        known, shares = super().to_first(flat), self._tell(flat)
        return None if known is None else combine(shares, xor=False)

    def exchange(self, flat: torch.Tensor, *, xor: bool = False) -> torch.Tensor:
        self.opened.append(combine(self._tell(super().exchange(flat)), xor=xor))
        return self.opened[-1]

    def _dealt(self, requests: Sequence[Request]) -> Iterator[tuple[torch.Tensor, ...]]:
        for request, _ in zip(requests, super()._dealt(requests), strict=True):
            masks, derived = draw(request, self._stream, self.rank)
            if self.rank == 0:
                derived = shaped(self._dealer.correction(request), request.derived)
            yield (*masks, *derived)

    def turned_back(
        self, opened: torch.Tensor, dealt: torch.Tensor, series: FourierSeries, bits: int, places: int
    ) -> torch.Tensor:
        super().turned_back(opened, dealt, series, bits, places)
        return turned_back(opened, dealt, series, bits, places)

    def _tell(self, share: torch.Tensor) -> list[torch.Tensor]:
        self._told[self.rank] = share
        self._meeting.wait()
        told = list(self._told)
        self._meeting.wait()
        return told


def together(program: Callable[[MpcBackend], Any], parameters: MpcParameters | None = None) -> list[Any]:
    """What the program gives at every party; keys and shares are the same every time."""
    parameters = parameters or MpcParameters()
    told: list[Any] = [None] * parameters.parties
    meeting, results, failures = threading.Barrier(parameters.parties, timeout=60), list(told), []

    def run(rank: int) -> None:
        try:
            results[rank] = program(MpcBackend(Party(parameters, rank, told, meeting), Recorder(modelled=True)))
        except Exception as failure:
            failures.append(failure)
            meeting.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(parameters.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in sorted(failures, key=lambda failure: isinstance(failure, threading.BrokenBarrierError)):
        raise failure
    return results


def uniform(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(-(2**63), 2**63, size=shape, dtype=np.int64))


def shaped(flat: torch.Tensor, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    parts = torch.split(flat, [math.prod(shape) for shape in shapes]) if shapes else ()
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def grid(*shape: int, salt: int = 0, places: int = 16) -> np.ndarray:
    """Random numbers that so many binary places hold exactly."""
    return np.rint(np.random.default_rng([SEED, salt]).normal(size=shape) * 2.0**places) / 2.0**places


def test_a_failure_in_one_thread_ends_all() -> None:
    def program(b: MpcBackend) -> Any:
        if b.runtime.rank == 1:
            raise ValueError("trouble")
        return b.reveal(b.input(np.zeros(3)), to=None)

    with pytest.raises(ValueError, match="trouble"):
        together(program)


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("weights", ["shared", "public"])
def test_values_with_weights(parties: int, weights: str) -> None:
    """All exact: a sum of products of numbers that the ring holds has room."""
    x, w, c, row = grid(2, 4, 6), grid(7, 6, salt=1), grid(7, salt=2), grid(6, salt=3)

    def program(b: MpcBackend) -> list[Any]:
        owned = w if b.runtime.rank == 0 or weights == "public" else np.full_like(w, 99.0)
        shared = b.input(x)
        results = [shared.linear(b.matrix(owned), b.weight(c)), shared * b.weight(row), shared + b.weight(row)]
        b.recorder.events.clear()
        return [b.reveal(result, to=None) for result in results]

    for found in together(program, MpcParameters(parties=parties, weights=weights)):  # type: ignore[arg-type]
        for value, expected in zip(found, (x @ w.T + c, x * row, x + row), strict=True):
            assert np.array_equal(value, expected)


def test_a_series_reads_a_product_as_it_is() -> None:
    """Read to 2^-32 of the period, a unit low for each party."""
    x, y = grid(300), grid(300, salt=1)
    slope = max(abs(WAVES.derivative()(np.linspace(-8, 8, 4001))))
    for parties in (2, 3):
        found = together(lambda b: b.reveal((b.input(x) * b.input(y)).series(WAVES), to=None), MpcParameters(parties))
        error = np.abs(found[0] - WAVES(x * y))
        assert error.max() <= rounding(WAVES, 32) + parties * 2.0**-28 * slope
        assert error.max() > 2.0**-18


@pytest.mark.parametrize("parties", [2, 3])
def test_harmonics_err_by_a_unit_of_what_is_dropped_for_every_other_party(parties: int) -> None:
    """Also for shares with which shifting a number's shares goes wrong: far from the number, with low bits all set."""
    f, bits, dropped, places = WAVES, 44, 30, 36
    rng = np.random.default_rng(SEED)
    x = torch.from_numpy(rng.integers(-(2**42), 2**42, size=4000))
    others = uniform(rng, parties - 1, 4000)
    others[:, 1000:2000] = 2**63 - 1
    others[:, 2000:3000] = -(2**63)
    others[:, 3000:] |= 2**dropped - 1
    shares = torch.cat([(x - others.sum(0)).unsqueeze(0), others])
    assert bool(((shares >> dropped).sum(0) - (x >> dropped)).abs().max() > 2**30)

    def program(b: MpcBackend) -> Any:
        with b.recorder.op("harmonics"):
            share = harmonics_of(
                b.runtime, shares[b.runtime.rank], f, bits=bits, dropped=dropped, factor_places=18, dealt_places=18
            )
            return b.runtime.reveal(share, to=None)

    found = together(program, MpcParameters(parties))[0].numpy() / 2.0**places + f.constant
    below = np.arange(-1, parties + 1)[:, None]
    errors = np.abs(f(((x >> dropped).numpy() - below) * f.period / 2.0 ** (bits - dropped)) - found)
    assert errors[1:-1].min(0).max() <= rounding(f, places)
    flat = np.abs(f.derivative()(x.numpy() * f.period / 2.0**bits)) < 0.2  # neighbours are told apart elsewhere
    assert set((errors.argmin(0) - 1)[~flat].tolist()) == set(range(parties))


def test_harmonics_of_all_bits_err_by_rounding_alone() -> None:
    x = np.random.default_rng(SEED).integers(-(2**20), 2**20, size=500)

    def program(b: MpcBackend) -> Any:
        share = b.runtime.share(x, owner=1)
        with b.recorder.op("harmonics"):
            made = harmonics_of(b.runtime, share, WAVES, bits=20, dropped=0, factor_places=28, dealt_places=28)
        return b.runtime.reveal(made, to=None)

    found = together(program)[0].numpy() / 2.0**56 + WAVES.constant
    assert np.abs(found - WAVES(x * 2.0**-16)).max() <= rounding(WAVES, 56)


@pytest.mark.parametrize("value", [0, -1, 1 << 30])
def test_what_a_series_opens_is_uniform(value: int) -> None:
    def program(b: MpcBackend) -> torch.Tensor:
        assert isinstance(b.runtime, Party)
        share = b.runtime.share(np.full(1 << 14, value), owner=1)
        with b.recorder.op("harmonics"):
            harmonics_of(b.runtime, share, WAVES, bits=36, dropped=4, factor_places=16, dealt_places=16)
        return b.runtime.opened[0]

    (opened, _) = together(program)
    assert_uniform(opened.long() & 255, 256)
    assert_uniform(opened.long() >> 24 & 255, 256)


def test_truncation_of_several_tensors_takes_one_round_whatever_their_bits() -> None:
    rng = np.random.default_rng(SEED)
    values = [torch.from_numpy(rng.integers(-(2**62) + 1, 2**62, size=shape)) for shape in ((3, 50), (40,), (7, 1, 9))]
    bits = [16, 46, 16]

    def program(b: MpcBackend) -> Any:
        runtime = b.runtime
        with b.recorder.op("truncate"):
            shares = [runtime.share(value.numpy(), owner=1) for value in values]
            scaled = truncate(runtime, shares, bits)
            assert totals(b, "rounds", "dealer_requests", "openings") == (1, 2, 150 + 40 + 63)
            return [runtime.reveal(share, to=None) for share in scaled]

    for parties in (2, 3):
        for value, k, scaled in zip(values, bits, together(program, MpcParameters(parties))[-1], strict=True):
            assert scaled.shape == value.shape
            assert set((scaled - (value >> k)).flatten().tolist()) == {0, 1}


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("bits", [1, 4, 15, 16, 17, 28, 30, 31, 48, 59, 60])
def test_signs_of_all_that_so_many_bits_hold(parties: int, bits: int) -> None:
    edge = 1 << bits
    edges = [v for v in (-edge, 1 - edge, -edge // 2, -1, 0, 1, edge // 2, edge - 1) if -edge <= v < edge]
    values = [np.array(edges), np.random.default_rng(bits).integers(-edge, edge, size=(5, 20))]

    def program(b: MpcBackend) -> Any:
        with b.recorder.op("less"):
            shares = negative(b.runtime, [b.runtime.share(v, owner=1) for v in values], bits)
            assert totals(b, "rounds", "dealer_requests") == (3, 1)
            return [b.runtime.reveal(share, to=None) for share in shares]

    for found in together(program, MpcParameters(parties)):
        for value, sign in zip(values, found, strict=True):
            assert np.array_equal(sign.numpy(), value < 0)


@pytest.mark.parametrize("value", [0, -1, (1 << 20) - 1, -(1 << 20)])
def test_what_a_comparison_opens_is_uniform(value: int) -> None:
    def program(b: MpcBackend) -> list[torch.Tensor]:
        assert isinstance(b.runtime, Party)
        with b.recorder.op("less"):
            negative(b.runtime, [b.runtime.share(np.full(1 << 15, value), owner=1)], 20)
        return b.runtime.opened

    masked, digits, groups = together(program)[0]
    assert_uniform(masked >> 14 & 255, 256)
    assert_uniform(masked & 255, 256)
    for group in digits:
        assert_uniform(group, 256)
    assert_uniform(groups, 8)
    assert_uniform(groups.long() << 8 | digits[1].long(), 2048)


def test_a_comparison_of_too_many_bits_is_refused() -> None:
    for bits in (0, 61):
        with pytest.raises(InputError, match=f"numbers of 1 to 60 bits, not of {bits}; lower integer_bits"):
            negative(planner().runtime, [torch.zeros(3, dtype=torch.int64)], bits)


@pytest.mark.parametrize("parties", [2, 3])
def test_prepared_material_is_completed_ahead(parties: int) -> None:
    """All but party 0 multiply before there is an input; what is dealt is counted where it is used."""
    x, first, second = grid(3, 4, 6), grid(5, 6, salt=1), np.ones((2, 5))
    macs = {"first": 12 * 6 * 5, "second": 12 * 5 * 2}

    def network(b: MpcBackend, matrices: Sequence[Any]) -> Any:
        with b.region("first"):
            y = b.input(x).linear(matrices[0])
        with b.region("second"):
            return y.square().linear(matrices[1]).max(-1)

    def program(b: MpcBackend) -> Any:
        plan = planner(b.runtime.parameters, b.runtime.rank, ahead=True)
        network(plan, [plan.matrix(first), plan.matrix(second)])
        matrices = [b.matrix(first), b.matrix(second)]
        ahead = MpcBackend(b.runtime, Recorder(modelled=True))
        ahead.runtime.prepare(noted(plan))
        online = MpcBackend(b.runtime, Recorder(modelled=True))
        value = online.reveal(network(online, matrices), to=None)
        return value, (ahead.recorder, online.recorder, plan.recorder)

    y = np.abs(x @ first.T)
    units = (2 * y + 1).sum(-1, keepdims=True) + 1  # of y in its square, and of the result
    for rank, (value, (ahead, online, plan)) in enumerate(together(program, MpcParameters(parties))):
        assert (np.abs(value - (y**2).sum(-1, keepdims=True)) <= units * 2.0**-16).all()
        assert (ahead.total("dealer_requests"), online.total("dealer_requests")) == (1, 0)
        dealt = {e.region: e.counts for e in ahead.events.values() if e.op == "deal" and e.region}
        planned = {e.region: e.counts for e in plan.events.values() if e.op == "deal" and e.region}
        assert dealt == planned
        assert {region: counts.get("macs", 0) for region, counts in dealt.items()} == {
            region: count if rank else 0 for region, count in macs.items()
        }
        assert online.total("macs") == (0 if rank else sum(macs.values()))


# ---- the dealer's arithmetic ------------------------------------------------------------------------------------

REQUESTS = [
    Request(Kind.PRODUCT, (3, 4), (3, 1)),
    Request(Kind.SQUARE, (3, 4)),
    Request(Kind.INNER, (3, 4), (1, 4)),
    Request(Kind.INNER_SQUARE, (3, 4)),
    Request(Kind.MATMUL, (2, 3, 4), (4, 5)),
    Request(Kind.FIX, (5, 4), argument=7),
    Request(Kind.MATMUL_FIXED, (3, 4), (5, 4), argument=7),
    Request(Kind.AND, (6,), (6,)),
    Request(Kind.BIT, (64,)),
    Request(Kind.TRUNCATE, (64,), argument=16),
    Request(Kind.LESS, (64,), argument=28),
    Request(Kind.SERIES, (64,), (2, 9), series_argument(bits=21, places=30)),
    Request(Kind.GROW, (2, 3, 5), argument=3),
    Request(Kind.MATMUL_GROWN, (2, 4, 3), (2, 3, 5), argument=6),
    Request(Kind.GROW, (2, 1, 5), argument=3),
    Request(Kind.MATMUL_GROWN, (2, 4, 5), (2, 5, 4), argument=7),
]


@pytest.mark.parametrize("parties", [2, 3])
def test_dealt_shares_hold_the_relations(parties: int) -> None:
    """Shares of all parties, put together, are what Kind says; unsigned words in Python's integers check it."""
    keys = [new_key() for _ in range(parties)]
    dealer, streams = Dealer(keys), [Csprng(key) for key in keys]
    fixed: dict[int, torch.Tensor] = {}
    for request in REQUESTS:
        correction = dealer.correction(request)
        assert 8 * correction.numel() == request.correction_bytes
        before = [stream.bytes_drawn for stream in streams]
        drawn = [draw(request, stream, rank) for rank, stream in enumerate(streams)]
        for rank, stream in enumerate(streams):
            assert stream.bytes_drawn - before[rank] == request.keystream_bytes(rank)
        shares = [[*zip(*(masks for masks, _ in drawn), strict=True)]]
        shares.append([*zip(shaped(correction, request.derived), *(values for _, values in drawn[1:]), strict=True)])
        plain = [combine(parts, xor=xor) for parts, xor in zip(shares[0] + shares[1], request.xor, strict=True)]
        check_relation(request, plain[: len(shares[0])], plain[len(shares[0]) :], fixed)


def check_relation(
    request: Request, masks: list[torch.Tensor], derived: list[torch.Tensor], fixed: dict[int, torch.Tensor]
) -> None:
    kind = request.kind
    if kind is Kind.FIX:
        fixed[request.argument] = masks[0]
        assert derived == []
    elif kind is Kind.GROW:
        before = [fixed[-1]] if -1 in fixed else []
        fixed[-1] = torch.cat([*before, masks[0]], -2)
        assert derived == []
    elif kind is Kind.MATMUL_GROWN:
        assert torch.equal(derived[0], masks[0] @ (fixed[-1].mT if request.argument % 2 else fixed[-1]))
    elif kind is Kind.TRUNCATE:
        words = masks[0].numpy().view(np.uint64)
        assert derived[0].tolist() == (words >> np.uint64(request.argument)).tolist()
        assert derived[1].tolist() == (words >> np.uint64(63)).tolist()
    elif kind is Kind.LESS:
        words = masks[0].numpy().view(np.uint64)
        assert derived[1][-2].tolist() == (words >> np.uint64(28) & np.uint64(3)).tolist()
        assert derived[1][-1].tolist() == (words >> np.uint64(29) & np.uint64(1)).tolist()
        for found, expected in zip(derived, BitTables(28).deal(*masks), strict=True):
            assert torch.equal(found, expected)
    elif kind is Kind.SERIES:
        turns = np.arange(1, 10)[:, None] * (masks[0].numpy() & (2**21 - 1)) % 2**21
        angles = 2 * np.pi * turns / 2**21
        dealt = derived[0].numpy() / 2.0**30
        assert np.abs(dealt - np.stack([np.cos(angles), np.sin(angles)])).max() <= 2.0**-31 * (1 + 1e-4)
    elif kind is Kind.BIT:
        assert derived[0].tolist() == masks[0].tolist()
        assert set(masks[0].tolist()) == {0, 1}
    else:
        a = masks[0]
        b = fixed[request.argument].t() if kind is Kind.MATMUL_FIXED else masks[-1]
        expected = {
            Kind.PRODUCT: lambda: a * b,
            Kind.SQUARE: lambda: a * a,
            Kind.INNER: lambda: (a * b).sum(-1, keepdim=True),
            Kind.INNER_SQUARE: lambda: (a * a).sum(-1, keepdim=True),
            Kind.MATMUL: lambda: a @ b,
            Kind.MATMUL_FIXED: lambda: a @ b,
            Kind.AND: lambda: a & b,
        }[kind]()
        assert torch.equal(derived[0], expected)


def test_a_mask_of_what_one_party_holds_is_drawn_by_that_party_alone() -> None:
    """FIX hides party 0's matrix; MATMUL_FIXED what the others send, and party 0 sends nothing."""
    for request, drawing in ((REQUESTS[5], {0}), (REQUESTS[6], {1, 2})):
        for rank in range(3):
            stream = Csprng(new_key())
            (mask,), derived = draw(request, stream, rank)
            assert bool(mask.any()) == (rank in drawing) == request.draws(rank)
            own = 8 * math.prod(request.first) if rank in drawing else 0
            assert stream.bytes_drawn == own + 8 * sum(share.numel() for share in derived)


@given(
    st.sampled_from(list(Kind)),
    st.lists(st.integers(0, 2**40), max_size=8),
    st.lists(st.integers(0, 2**40), max_size=8),
    st.integers(0, 2**40),
)
def test_headers_come_back(kind: Kind, first: list[int], second: list[int], argument: int) -> None:
    request = Request(kind, tuple(first), tuple(second), argument)
    assert Request.parse(request.header()) == request


@pytest.mark.parametrize(("word", "value"), [(0, 99), (0, -1), (2, 9), (3, -1), (5, -4)])
def test_malformed_headers_are_refused(word: int, value: int) -> None:
    header = Request(Kind.PRODUCT, (2, 3), (2, 3)).header()
    header[word] = value
    with pytest.raises(EngineError, match="malformed"):
        Request.parse(header)


def test_too_many_axes_are_refused() -> None:
    with pytest.raises(EngineError, match="at most 8 axes"):
        Request(Kind.SQUARE, (1,) * 9).header()


def test_stream_is_chacha20() -> None:
    # RFC 8439, A.1, test vector 1: key, nonce and counter zero
    expected = bytes.fromhex("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    assert Csprng(bytes(32)).ring((4,)).numpy().tobytes() == expected


def test_stream_does_not_depend_on_how_it_is_read() -> None:
    key = new_key()
    whole, parts = Csprng(key).ring((100_000,)), Csprng(key)
    assert torch.equal(whole, torch.cat([parts.ring((n,)) for n in (1, 0, 32_768, 67_231)]))
    assert parts.bytes_drawn == 800_000
    assert words_to_key(key_to_words(key)) == key
    assert not torch.equal(whole, Csprng(new_key()).ring((100_000,)))


def test_stream_bits_are_balanced() -> None:
    bits = Csprng(bytes(32)).bits((100_000,))
    assert set(bits.tolist()) == {0, 1}
    assert abs(float(bits.double().mean()) - 0.5) < 0.008  # five standard deviations


# ---- bits of a comparison -----------------------------------------------------------------------------------------


def assert_uniform(values: torch.Tensor, kinds: int) -> None:
    """Pearson's statistic within six standard deviations of its mean; the values are the same every time."""
    counted = np.bincount(values.numpy(), minlength=kinds)
    assert len(counted) == kinds
    expected = values.numel() / kinds
    statistic = float(((counted - expected) ** 2).sum() / expected)
    assert abs(statistic - (kinds - 1)) <= 6 * math.sqrt(2 * (kinds - 1)), f"{statistic:.4g} for {kinds} kinds"


def below(
    tables: BitTables, c: torch.Tensor, r: torch.Tensor, parties: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shares of all parties put together: the digits' opened bits, the groups', and [c < r] of the low bits."""
    rng = np.random.default_rng([SEED, tables.bits, parties])
    words, monomials = tables.deal(r, uniform(rng, len(r)))
    shares = [(uniform(rng, *words.shape), uniform(rng, *monomials.shape)) for _ in range(parties - 1)]
    for other_words, other_monomials in shares:
        words, monomials = words ^ other_words, monomials - other_monomials
    shares.insert(0, (words, monomials))
    digits = combine([tables.looked_up(c, own) for own, _ in shares], xor=True)
    groups = combine([tables.grouped(digits, own, first=own is words) for own, _ in shares], xor=True)
    parts = [tables.below(groups, own, first=own is monomials) for _, own in shares]
    return digits, groups, combine(parts, xor=False)


def pairs(bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Edges against edges, random numbers, their neighbours, and numbers that differ in one bit."""
    rng = np.random.default_rng([SEED, bits])
    ones = (1 << bits) - 1
    edges = [0, 1, ones, ones - 1, ones >> 1, (ones >> 1) + 1, 0x1111111111111111 & ones, 0x7FFF7FFF7FFF7FFF & ones]
    drawn = rng.integers(0, ones + 1, size=100)
    c, r = (part.reshape(-1) for part in np.meshgrid(edges, edges))
    c = np.concatenate([c, drawn, drawn, drawn, drawn])
    r = np.concatenate([r, drawn, (drawn + 1) & ones, drawn[::-1], drawn ^ (1 << rng.integers(0, bits, size=100))])
    above = rng.integers(0, 4, size=(2, len(c))) << bits  # r has two bits more, and so has what it masks
    return torch.from_numpy(c | above[0]), torch.from_numpy(r | above[1])


@pytest.mark.parametrize("parties", [2, 3])
def test_tables_tell_whether_a_public_number_is_below_a_masked_one(parties: int) -> None:
    for bits in range(1, 61):
        c, r = pairs(bits)
        *_, found = below(BitTables(bits), c, r, parties)
        low = (1 << bits) - 1
        assert torch.equal(found, ((c & low) < (r & low)).long()), f"{bits} bits"


@pytest.mark.parametrize("bits", [3, 16, 28, 60])
@pytest.mark.parametrize(("c", "r"), [(0, 0), (5, 2), (-1, -1), (0, -1)])
def test_bits_opened_of_a_digit_and_a_group_are_uniform(bits: int, c: int, r: int) -> None:
    """Whatever both numbers are, over fresh masks; more of them than are worked on at a time."""
    tables, count, low = BitTables(bits), (1 << 15) + 5, (1 << bits) - 1
    digits, groups, found = below(tables, torch.full((count,), c & low), torch.full((count,), r & low), 2)
    assert set(found.tolist()) == {int((c & low) < (r & low))}
    assert digits.shape == (tables.groups, count)
    for group in digits:
        assert_uniform(group, 256)
    assert_uniform(groups, 2 ** (2 * tables.groups - 1))
    assert_uniform((groups & 1).long() << 8 | digits[0].long(), 512)


@pytest.mark.parametrize(
    ("bits", "words"), [(1, 6), (16, 6), (17, 11), (32, 11), (33, 20), (48, 20), (49, 34), (60, 34)]
)
def test_words_dealt_for_a_comparison(bits: int, words: int) -> None:
    tables = BitTables(bits)
    assert tables.tables + tables.monomials == words
    dealt, monomials = tables.deal(torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))
    assert (dealt.shape, monomials.shape) == ((tables.tables, 3), (tables.monomials, 3))


# ---- encoding ---------------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.integers(0, 40))
def test_encoding_errs_by_half_a_unit(value: float, places: int) -> None:
    array = np.array([value])
    decoded = encoding.decode(encoding.encode(array, places, "x"), places)
    assert abs(decoded[0] - value) <= 2.0 ** -(places + 1)


@pytest.mark.parametrize(
    ("value", "places"),
    [(0.0, 0), (3.0, 0), (-8.0, 0), (0.5, 1), (0.75, 2), (-2.0**-16, 16), (2.0**-20, 20), (0.3, 17), (1 / 768, 25),
     (3.3, 16), (1e-30, 46), (2.0**50, 0), ([1.0, 0.25], 2), ([0.0, 1.0], 0), ([0.3, 100.0], 16), ([], 0)],
)  # fmt: skip
def test_places_a_public_factor_needs(value: float | list[float], places: int) -> None:
    assert encoding.places_needed(np.array(value), 16) == places


@given(st.floats(2.0**-30, 1e6))
def test_public_factors_keep_their_significant_bits(value: float) -> None:
    places = encoding.places_needed(np.array(value), 16)
    decoded = encoding.decode(encoding.encode(np.array(value), places, "x"), places)
    assert abs(decoded - value) <= value * 2.0**-16


@pytest.mark.parametrize(("size", "least"), [(1.0, 0), (1.5, 1), (2.0, 1), (0.5, -1), (0.3, -1), (768.0, 10)])
def test_size_is_the_least_power_that_is_no_smaller(size: float, least: int) -> None:
    assert encoding.bits(size) == least
    assert encoding.size(np.array([0.0, -size, size / 3])) == least


def test_unfit_numbers_are_refused() -> None:
    b = planner()
    for bad, words in ((np.nan, "NaN"), (np.inf, "infinity")):
        with pytest.raises(InputError, match=words):
            b.weight(np.array([1.0, bad]))
    with pytest.raises(InputError, match=r"an input reaches 7.04e\+13, outside the declared range below 4096"):
        b.input(np.array([1.0, 2.0**46]), owner=0)
    with pytest.raises(InputError, match=r"a weight reaches .* 18 fractional bits leave room below 1.76e\+13"):
        b.matrix(np.array([[1.0, 2.0**44]]))
    large = b.weight(np.array([1.0, 2.0**46]))  # refused when it is used
    with pytest.raises(InputError, match=r"a weight reaches .* outside the declared range"):
        b.input(np.zeros(2)) + large
    b.input(np.array([np.nan]), owner=1)  # not ours: contents are ignored
    with pytest.raises(InputError, match="owner must be a party from 0 to 1, not 2"):
        b.input(np.zeros(2), owner=2)


# ---- parameters -------------------------------------------------------------------------------------------------


def test_all_violations_are_listed_at_once() -> None:
    with pytest.raises(ProtocolError) as caught:
        MpcParameters(parties=1, dealer="he", truncation="none", fractional_bits=40, integer_bits=1, weights="mine")  # type: ignore[arg-type]
    assert len(caught.value.violations) == 6


def test_a_product_must_have_room() -> None:
    MpcParameters(fractional_bits=25, integer_bits=12)
    with pytest.raises(ProtocolError, match="twice 26 binary places, which with 12 integer bits is more than the 62"):
        MpcParameters(fractional_bits=26, integer_bits=12)


@pytest.mark.parametrize(
    ("fractional", "integer", "truncation", "weight"),
    [(16, 12, "exact", 18), (12, 12, "exact", 20), (16, 8, "exact", 22), (25, 12, "exact", 25), (16, 12, "local", 16)],
)
def test_a_weight_has_the_places_that_a_product_leaves(
    fractional: int, integer: int, truncation: str, weight: int
) -> None:
    parameters = MpcParameters(fractional_bits=fractional, integer_bits=integer, truncation=truncation)  # type: ignore[arg-type]
    assert parameters.weight_bits == weight


def test_binary_places_that_a_range_leaves() -> None:
    assert [places_beside(integer) for integer in (2, 12, 14, 15, 16, 30, 40)] == [24, 24, 24, 23, 23, 16, 11]
    for integer in range(2, 41):
        MpcParameters(fractional_bits=places_beside(integer), integer_bits=integer)


def test_room_of_the_ring() -> None:
    exact, local = MpcParameters(), MpcParameters(truncation="local")
    assert [exact.fits(places, size) for places, size in ((50, 12), (51, 12), (62, -8), (63, -8))] == [True, False] * 2
    assert [local.fits(places, size) for places, size in ((32, 12), (33, 12), (40, -8), (41, -8))] == [True, False] * 2


def test_local_truncation_is_refused_among_three() -> None:
    with pytest.raises(ProtocolError, match='"local" is sound between 2 parties only'):
        MpcParameters(parties=3, truncation="local")


def test_first_party_dealing_warns() -> None:
    assert MpcParameters().warning is None
    assert "development" in str(MpcParameters(dealer="tfp").warning)


def test_missing_crypten_says_what_to_run() -> None:
    program = (
        "import sys\n"
        "sys.modules['crypten'] = None\n"
        "from secureattn.backends.crypten.install import load_crypten\n"
        "from secureattn.errors import EngineError\n"
        "try:\n"
        "    load_crypten()\n"
        "except EngineError as error:\n"
        "    assert 'pip install --no-deps crypten==0.4.1' in str(error), error\n"
        "    assert 'pip install omegaconf pyyaml' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('not refused')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
