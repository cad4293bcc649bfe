"""The secret-sharing engine without CrypTen: what a plan counts, the dealer's arithmetic, encoding, parameters."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secureattn.backends.crypten import encoding
from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.csprng import Csprng, key_to_words, new_key, words_to_key
from secureattn.backends.crypten.material import Kind, Request, combine, draw, series_argument
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.planning import UNIT_S, NullRuntime
from secureattn.errors import CapabilityError, EngineError, InputError, ProtocolError
from secureattn.events import Recorder
from secureattn.series import FourierSeries
from secureattn.tensor import Capability


def planner(parameters: MpcParameters | None = None, rank: int = 0) -> MpcBackend:
    return MpcBackend(NullRuntime(parameters, rank), Recorder(modelled=True))


def totals(backend: MpcBackend, *names: str, phase: str | None = None) -> tuple[int, ...]:
    return tuple(backend.recorder.total(name, phase=phase) for name in names)


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


@pytest.mark.parametrize(("truncation", "rounds", "opened"), [("exact", 2, 3), ("local", 1, 2)])
def test_cost_of_a_product(truncation: str, rounds: int, opened: int) -> None:
    b = planner(MpcParameters(truncation=truncation))  # type: ignore[arg-type]
    x, y = b.input(np.zeros((4, 5))), b.input(np.zeros((4, 5)))
    assert (x * y).shape == (4, 5)
    assert totals(b, "rounds", "bytes_sent", "products") == (rounds, 8 * 20 * opened, 20)
    assert totals(b, "dealer_bytes") == (8 * 20 * (3 if truncation == "exact" else 1),)


def test_cost_of_broadcasting_follows_the_operands() -> None:
    b = planner()
    b.input(np.zeros((4, 5))) * b.input(np.zeros((4, 1)))
    assert totals(b, "openings") == (20 + 4 + 20,)


def test_cost_of_linear_and_its_set_up() -> None:
    b = planner()
    w, bias = b.weight(np.zeros((7, 5))), b.weight(np.zeros(7))
    for _ in range(3):
        assert b.input(np.zeros((2, 4, 5))).linear(w, bias).shape == (2, 4, 7)
    assert totals(b, "rounds", "bytes_sent", phase="setup") == (1, 8 * 35)
    assert totals(b, "rounds", "bytes_sent", phase="online") == (3 * 2, 3 * 8 * (40 + 56))
    assert totals(b, "macs", phase="online") == totals(b, "macs", phase="offline") == (3 * 8 * 5 * 7,)
    assert totals(b, "dealer_bytes") == (3 * 24 * 56,)


def test_cost_of_fused_sums() -> None:
    b = planner()
    x, y = b.input(np.zeros((4, 5))), b.input(np.zeros((4, 5)))
    assert x.inner(y).shape == (4, 1)
    assert totals(b, "openings", "dealer_bytes", "truncations") == (20 + 20 + 4, 24 * 4, 4)
    b = planner()
    x = b.input(np.zeros((4, 5)))
    x.inner(x)
    assert totals(b, "rounds", "openings") == (2, 20 + 4)


def test_cost_of_attention() -> None:
    b = planner()
    q, k, v = (b.input(np.zeros((2, 6, 8))).split_heads(2) for _ in range(3))
    s = q.scores(k)
    assert s.shape == (2, 2, 6, 6)
    assert totals(b, "rounds", "openings", "macs") == (2, 96 + 96 + 144, 2 * 144 * 4)
    assert s.mix(v).merge_heads().shape == (2, 6, 8)
    assert totals(b, "rounds", "openings") == (4, 336 + 144 + 96 + 96)


def test_cost_of_a_value_per_key_and_of_pooling() -> None:
    b = planner()
    k = b.input(np.zeros((2, 6, 8))).split_heads(2)
    assert k.sum(-1).per_key().shape == (2, 2, 1, 6)
    assert totals(b, "rounds", "bytes_sent", "dealer_bytes") == (0, 0, 0)
    assert k.pool(3).shape == (2, 2, 2, 4)
    assert totals(b, "rounds", "bytes_sent", "dealer_bytes") == (1, 8 * 32, 16 * 32)  # of what is left, not of k
    with pytest.raises(InputError, match=r"^pool\(4\) needs a multiple of 4 tokens, got \[2, 2, 6, 4\]$"):
        k.pool(4)


def test_cost_of_a_product_with_a_weight() -> None:
    """As with any shared tensor, the weight broadcast: nothing is opened ahead, as it would be for ``linear``."""
    b = planner()
    s = b.input(np.zeros((3, 2, 5, 5)))
    assert (s * b.weight(np.zeros((2, 5, 5)))).shape == (3, 2, 5, 5)
    assert totals(b, "rounds", "openings", "dealer_bytes") == (2, 150 + 50 + 150, 24 * 150)
    assert totals(b, "rounds", phase="setup") == (0,)


@pytest.mark.parametrize(("parties", "rounds"), [(2, 8), (3, 15), (4, 15), (5, 22)])
def test_cost_of_a_comparison(parties: int, rounds: int) -> None:
    b = planner(MpcParameters(parties=parties))
    bit = b.input(np.zeros(10)).less(0.5)
    assert totals(b, "rounds", "comparisons") == (rounds, 10)
    if parties == 2:
        assert totals(b, "bytes_sent", "dealer_bytes") == (216 * 10, 112 * 10)
    before = totals(b, "truncations")
    bit * b.input(np.zeros(10))
    assert totals(b, "truncations") == before  # a bit has no binary places


@pytest.mark.parametrize(
    ("parties", "rank", "dealt"), [(2, 0, (16 * 3 + 16) * 12), (2, 1, 0), (3, 0, (16 * 3 + 16) * 12)]
)
def test_cost_of_a_series(parties: int, rank: int, dealt: int) -> None:
    b = planner(MpcParameters(parties=parties), rank)
    f = FourierSeries(32.0, (1.0, 0.5, 0.25), (), (-8.0, 8.0), linear=0.5)
    assert b.input(np.zeros((3, 4))).series(f).shape == (3, 4)
    assert totals(b, "rounds", "openings", phase="setup") == (1, 5)  # the coefficients, once
    assert totals(b, "rounds", "openings", "truncations", phase="online") == (2, 24, 12)
    assert totals(b, "bytes_sent", phase="online") == ({2: 12 * 12, 3: 2 * 12 * 12 * 2 // 3}[parties],)
    assert totals(b, "dealer_bytes", "dealer_requests") == (dealt, 2)
    assert totals(b, "keystream_bytes") == ((8 + 8 + rank * (16 * 3 + 16)) * 12,)
    assert b.runtime.requests[0] == Request(Kind.SERIES, (12,), (2, 3), series_argument(bits=21, places=19))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 9])
def test_cost_of_a_maximum(length: int) -> None:
    b = planner()
    assert b.input(np.zeros((3, length))).max(-1).shape == (3, 1)
    assert totals(b, "rounds", "comparisons", "bytes_sent", "dealer_bytes") == (
        9 * math.ceil(math.log2(length)),
        3 * (length - 1),
        3 * (length - 1) * 232,
        3 * (length - 1) * 120,
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
    assert b.capabilities == {Capability.COMPARE, Capability.MATRIX}
    with b.region("layer.0"), pytest.raises(CapabilityError, match=r"crypten engine lacks, at layer\.0"):
        b.input(np.zeros(2)).exact("gelu", torch.nn.functional.gelu)


def test_a_plan_that_was_prepared_differently_is_refused() -> None:
    b = planner()
    with b.recorder.op("ahead"):
        b.runtime.prepare([Request(Kind.SQUARE, (3,))])
    with pytest.raises(EngineError, match="prepare the same run"):
        b.input(np.zeros(4)).square()


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
    Request(Kind.SERIES, (64,), (2, 9), series_argument(bits=21, places=30)),
]


@pytest.mark.parametrize("parties", [2, 3])
def test_dealt_shares_hold_the_relations(parties: int) -> None:
    """Shares of all parties, put together, are what Kind says; unsigned words in Python's integers check it."""
    from secureattn.backends.crypten.dealer import Dealer

    keys = [new_key() for _ in range(parties)]
    dealer, streams = Dealer(keys), [Csprng(key) for key in keys]
    fixed: dict[int, torch.Tensor] = {}
    for request in REQUESTS:
        correction = dealer.correction(request)
        assert 8 * correction.numel() == request.correction_bytes
        before = [stream.bytes_drawn for stream in streams]
        drawn = [draw(request, stream, derived=rank > 0) for rank, stream in enumerate(streams)]
        for rank, stream in enumerate(streams):
            assert stream.bytes_drawn - before[rank] == request.keystream_bytes(rank)
        masks = [combine(request, shares) for shares in zip(*(masks for masks, _ in drawn), strict=True)]
        parts = torch.split(correction, [math.prod(shape) for shape in request.derived]) if request.derived else []
        derived = []
        for index, (part, shape) in enumerate(zip(parts, request.derived, strict=True)):
            shares = [part.reshape(shape), *(values[index] for _, values in drawn[1:])]
            derived.append(sum(shares) if request.kind is not Kind.AND else combine(request, shares))
        check_relation(request, masks, derived, fixed)


def check_relation(
    request: Request, masks: list[torch.Tensor], derived: list[torch.Tensor], fixed: dict[int, torch.Tensor]
) -> None:
    kind = request.kind
    if kind is Kind.FIX:
        fixed[request.argument] = masks[0]
        assert derived == []
    elif kind is Kind.TRUNCATE:
        words = masks[0].numpy().view(np.uint64)
        assert derived[0].tolist() == (words >> np.uint64(request.argument)).tolist()
        assert derived[1].tolist() == (words >> np.uint64(63)).tolist()
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


def test_unfit_numbers_are_refused() -> None:
    b = planner()
    for bad, words in ((np.nan, "NaN"), (np.inf, "infinity"), (2.0**46, "room below 7.04e\\+13")):
        with pytest.raises(InputError, match=words):
            b.weight(np.array([1.0, bad]))
    b.input(np.array([np.nan]), owner=1)  # not ours: contents are ignored
    with pytest.raises(InputError, match="owner must be a party from 0 to 1, not 2"):
        b.input(np.zeros(2), owner=2)


# ---- parameters -------------------------------------------------------------------------------------------------


def test_all_violations_are_listed_at_once() -> None:
    with pytest.raises(ProtocolError) as caught:
        MpcParameters(parties=1, dealer="he", truncation="none", fractional_bits=40)  # type: ignore[arg-type]
    assert len(caught.value.violations) == 4


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
