"""Fourier series: the value, its polynomial twin, in the clear with gradients, and on shares of parties in threads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Array, Counting, assert_close
from programs import Shared, in_threads

from secureattn.backends.crypten import harmonics, periodic
from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.material import Kind, series_argument
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.planning import NullRuntime
from secureattn.backends.crypten.tensor import MpcTensor
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.backends.symbolic import SymbolicMpc
from secureattn.errors import CapabilityError, InputError
from secureattn.events import Recorder
from secureattn.polynomial import Counted, Tally
from secureattn.series import FourierSeries

RNG = np.random.default_rng(20250701)


def extension(f: Callable[[Array], Array], low: float, high: float, period: float, count: int) -> FourierSeries:
    """A Fourier extension by least squares with a little ridge, from numpy alone."""
    x = (low + high) / 2 + (high - low) / 2 * np.cos(np.linspace(0, np.pi, 4001))
    angles = np.outer(x, np.arange(1, count + 1)) * (2 * np.pi / period)
    columns = np.hstack([np.ones((len(x), 1)), np.cos(angles), np.sin(angles)])
    ridge = 1e-8 * math.sqrt(len(x)) * np.eye(2 * count + 1)
    found = np.linalg.lstsq(np.vstack([columns, ridge]), np.append(f(x), np.zeros(2 * count + 1)), rcond=None)[0]
    cosines, sines = tuple(found[1 : count + 1].tolist()), tuple(found[count + 1 :].tolist())
    error = float(np.abs(columns @ found - f(x)).max())
    return FourierSeries(period, cosines, sines, (low, high), float(found[0]), error=error, source="least squares")


def direct(f: FourierSeries, x: Array) -> Array:
    """The definition, term by term."""
    value = f.constant + f.linear * x
    for k, a in enumerate(f.cosines, 1):
        value = value + a * np.cos(2 * np.pi * k * x / f.period)
    for k, b in enumerate(f.sines, 1):
        value = value + b * np.sin(2 * np.pi * k * x / f.period)
    return value


EXP = extension(np.exp, -15.0, 1.0, 32.0, 16)
SERIES = {
    "even": FourierSeries(32.0, tuple(RNG.normal(size=20) / 2), (), (-14.0, 14.0), constant=0.3),
    "odd": FourierSeries(8.0, (0.0,) * 5, tuple(RNG.normal(size=5)), (-3.0, 3.5), linear=0.5),
    "general": FourierSeries(
        16.0, tuple(RNG.normal(size=9)), tuple(RNG.normal(size=9)), (-7.0, 8.0), -1.25, linear=-0.7
    ),
    "exp": EXP,
    "line": FourierSeries(512.0, (0.3,), (), (-200.0, 250.0), linear=-0.7),
    "one": FourierSeries(0.5, (0.0,), (2.0,), (0.0, 0.25)),
    "none": FourierSeries(4.0, (0.0, 0.0), (), (-1.0, 1.0), 0.625, linear=2.0),
}
GOLDEN = (
    ["0x1.f346cfb4f4049p-1", "-0x1.00001d0551ef2p-1", "0x1.fffffffff6216p-1"],
    ["0x1.c5ba9965ab3a4p-3", "-0x1.bb679dc4319f5p-1", "0x1.921fb544403c2p-19"],
)  # cos and sin of 2π·{0x12345, 0x155555, 1}/2^21
names = pytest.mark.parametrize("name", SERIES)


def points(f: FourierSeries, count: int = 2000, places: int = 16) -> Array:
    """Uniform on the domain, its ends included, on the grid of a fixed point."""
    x = np.append(np.random.default_rng(count).uniform(*f.domain, count - 2), f.domain)
    return np.rint(np.ldexp(x, places)) / 2.0**places


# ---- the value --------------------------------------------------------------------------------------------------


@names
def test_value(name: str) -> None:
    f = SERIES[name]
    x = points(f, 500)
    assert_close(f(x), direct(f, x), 1e-14 * max(1.0, f.weight), "float64 rounds")
    assert f(x.reshape(10, 50)).shape == (10, 50)
    assert f.weight == pytest.approx(np.abs(f.cosines).sum() + np.abs(f.sines).sum())
    assert f.harmonics == len(f.cosines)


@names
def test_scaled_and_derivative(name: str) -> None:
    f = SERIES[name]
    x, step = points(f, 200), 1e-5
    assert_close(f.scaled(-2.5)(x), -2.5 * f(x), 5e-13 * max(1.0, f.weight), "float64 rounds")
    slope = (direct(f, x + step) - direct(f, x - step)) / (2 * step)
    assert_close(f.derivative()(x), slope, 2e-8 + 3e-8 * f.weight * (8 / f.period) ** 2, "a difference of step 1e-5")


def test_errors_scale_unless_they_are_relative() -> None:
    f = replace(SERIES["one"], error=1e-3)
    assert f.scaled(-4.0).error == 4e-3
    assert replace(f, relative=True).scaled(-4.0).error == 1e-3
    assert SERIES["one"].scaled(2.0).error is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"domain": (1.0, 1.0)}, "not an interval"),
        ({"domain": (0.0, math.inf)}, "not an interval"),
        ({"period": 6.0}, "power of two"),
        ({"period": -8.0}, "power of two"),
        ({"period": math.nan}, "power of two"),
        ({"domain": (-4.0, 4.0)}, "no wider"),
        ({"cosines": ()}, "do not go with"),
        ({"sines": (1.0,)}, "do not go with"),
        ({"sines": (1.0, math.nan)}, "finite"),
        ({"linear": math.inf}, "finite"),
    ],
)
def test_unfit_series_are_refused(changes: dict[str, Any], words: str) -> None:
    f = FourierSeries(8.0, (1.0, 2.0), (), (-3.0, 3.0))
    with pytest.raises(ValueError, match=words):
        replace(f, **changes)


# ---- the twin ---------------------------------------------------------------------------------------------------


@names
@pytest.mark.parametrize("error", [None, 1e-3])
def test_twin(name: str, error: float | None) -> None:
    f = replace(SERIES[name], error=error)
    allowed = 5e-5 if error else 1e-9
    p, x = f.twin, np.linspace(*f.domain, 30_011)
    length = len(p.coefficients)
    assert length in (4, 8, 16, 32, 64, 128, 256)
    gap = np.abs(p(x) - direct(f, x)).max()
    assert gap <= allowed
    if length > 4:  # the degree below does not do
        lower = np.polynomial.Chebyshev.interpolate(lambda t: direct(f, t), length // 2 - 1, f.domain)
        assert np.abs(lower(x) - direct(f, x)).max() > allowed
    assert p.domain == f.domain
    if error is None:
        assert p.error is None
    else:
        assert p.error == pytest.approx(error + gap, abs=0.02 * allowed)
    assert f.twin is p


def test_twin_adds_a_twentieth_of_the_error_at_most() -> None:
    f = SERIES["general"]
    x = np.linspace(*f.domain, 8192)
    gap = np.abs(np.polynomial.Chebyshev.interpolate(f, 31, f.domain)(x) - f(x)).max()
    assert len(replace(f, error=20.1 * gap).twin.coefficients) == 32
    assert len(replace(f, error=19.9 * gap).twin.coefficients) == 64


def test_twin_of_a_relative_error_is_relative() -> None:
    f = replace(EXP, error=2e-5, relative=True, domain=(-6.0, 1.0))
    x = np.linspace(*f.domain, 20_011)
    ratio = np.abs(f.twin(x) / f(x) - 1)
    assert f.twin.relative
    assert ratio.max() <= 1e-6
    assert f.twin.degree > replace(f, relative=False).twin.degree
    assert f.twin.error == pytest.approx(2e-5 + ratio.max(), rel=1e-4)


def test_twin_that_no_degree_reaches_is_refused() -> None:
    f = FourierSeries(2.0, (0.0,) * 199 + (1.0,), (), (-0.99, 0.99))
    with pytest.raises(CapabilityError, match="200 harmonics over 2 needs a polynomial within 1e-09"):
        _ = f.twin


def test_engines_without_a_better_way_evaluate_the_twin() -> None:
    f = SERIES["odd"]
    x = points(f, 64)
    tensor, counted = Counting(x), Counted(0, Tally())
    assert_close(tensor.series(f).data, f(x), 2e-9, "the gap of the twin")
    cost = counted.series(f)
    assert (cost.depth, cost.tally.products) == (f.twin.depth, f.twin.products)
    assert tensor.series(f).depth == f.twin.depth


# ---- in the clear -----------------------------------------------------------------------------------------------


@names
def test_plaintext(name: str) -> None:
    f = SERIES[name]
    x, backend = points(f, 600).reshape(3, 10, 20), PlaintextBackend()
    value = backend.reveal(backend.input(x).series(f))
    assert_close(value, direct(f, x), 1e-14 * max(1.0, f.weight), "float64 rounds")
    assert [event.op for event in backend.recorder.events.values()] == ["series"]


@pytest.mark.parametrize("name", ["even", "odd", "general"])
def test_plaintext_gradients(name: str) -> None:
    f, backend = SERIES[name], PlaintextBackend()
    x = torch.linspace(*f.domain, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: backend.input(x).series(f).data, x)
    assert torch.autograd.gradgradcheck(lambda x: backend.input(x).series(f).data, x)


def test_plaintext_keeps_its_argument_alone_for_the_gradient() -> None:
    kept: list[int] = []
    x = PlaintextBackend().input(torch.zeros(1000, dtype=torch.float64, requires_grad=True))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        x.series(SERIES["general"])
    assert sum(kept) == 1000


# ---- angles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 3, 11, 12, 21, 22, 33, 62])
def test_angles(bits: int) -> None:
    x = np.append(np.random.default_rng(bits).integers(-(2**63), 2**63 - 1, 5000), [0, 1, -1, 1 << (bits - 1)])
    angle = 2 * np.pi * np.ldexp((x & ((1 << bits) - 1)).astype(np.float64), -bits)
    for got, expected in zip(harmonics.angles(torch.from_numpy(x), bits), (np.cos(angle), np.sin(angle)), strict=True):
        assert_close(got.numpy(), expected, 2e-15, "float64 rounds a few times, and in numpy's angle")


def test_angles_are_the_same_on_every_machine() -> None:
    """To the last bit: computed with correctly rounded operations, so these digits hold wherever IEEE 754 does."""
    c, s = harmonics.angles(torch.tensor([0x12345, 0x155555, 1]), 21)
    assert [value.hex() for value in c.tolist()] == GOLDEN[0]
    assert [value.hex() for value in s.tolist()] == GOLDEN[1]


@pytest.mark.parametrize("count", [1, 20, 255])
def test_dealt_harmonics(count: int) -> None:
    mask = torch.from_numpy(np.random.default_rng(count).integers(-(2**63), 2**63 - 1, 1000))
    got = harmonics.of_mask(mask, 21, count, 40).numpy() / 2.0**40
    turns = (np.arange(1, count + 1)[:, None] * (mask.numpy() & (2**21 - 1))) % 2**21
    angle = 2 * np.pi * turns / 2**21
    assert_close(got, np.stack([np.cos(angle), np.sin(angle)]), 0.5 * 2.0**-40 + 2e-13, "rounding to 40 places")


# ---- on shares --------------------------------------------------------------------------------------------------


def shared(f: FourierSeries, x: Array, parameters: MpcParameters | None = None) -> Shared:
    """The series of the client's ``x``."""
    return in_threads(lambda b, x: x.series(f), x, parameters=parameters)


def held(x: Array, places: int) -> Callable[[MpcBackend], MpcTensor]:
    """The client's ``x`` with so many binary places, as a product has them."""
    ring = np.rint(np.ldexp(x, places)).astype(np.int64)
    return lambda b: MpcTensor(b, b.runtime.share(ring, owner=1), places)


def typical(f: FourierSeries, run: Shared) -> float:
    """What rounding factors and dealt values errs by: the root of its mean square, from the places either has."""
    (dealt,) = {request.argument // 64 for request in run.requests[0] if request.kind is Kind.SERIES}
    factors, squares = sum(any(pair) for pair in f.pairs), sum(c * c for c in (*f.cosines, *f.sines))
    return math.sqrt((factors * 4.0 ** (dealt - run.places) + squares * 4.0**-dealt) / 12)


def as_rounded(f: FourierSeries, run: Shared, places: int) -> FourierSeries:
    """With the slope as shares of an argument with so many places are multiplied by it."""
    digits = run.places - places
    return replace(f, linear=round(f.linear * 2.0**digits) / 2.0**digits)


def assert_rounded(run: Shared, f: FourierSeries, x: Array, places: int) -> None:
    """Errors are those of rounding: on average as large as they should be, and six times that at most."""
    error, usual = run.value - direct(as_rounded(f, run, places), x), typical(f, run) + 2.0**-run.places
    assert_close(error, 0 * x, 6 * usual, "six times what rounding typically errs by")
    assert np.sqrt(np.mean(error**2)) == pytest.approx(typical(f, run), rel=0.1, abs=2.0**-run.places)


@names
@pytest.mark.parametrize(
    ("parties", "places", "truncation"),
    [(2, 16, "exact"), (3, 16, "exact"), (5, 12, "exact"), (2, 19, "exact"), (2, 16, "local")],
)
def test_shares(name: str, parties: int, places: int, truncation: Any) -> None:
    f, x = SERIES[name], points(SERIES[name], 1000, places).reshape(10, 100)
    run = shared(f, x, MpcParameters(parties=parties, fractional_bits=places, truncation=truncation))
    assert_rounded(run, f, x, places)
    assert [request.kind for request in run.requests[0]] == [Kind.SERIES]  # nothing is truncated


@names
@pytest.mark.parametrize("places", [12, 16, 19])
def test_rounding_is_what_was_promised(name: str, places: int) -> None:
    """Three units where a linear layer takes the result as it takes a product, else half a unit."""
    f = SERIES[name]
    run = shared(f, points(f, 2, places), MpcParameters(fractional_bits=places))
    assert run.places >= 2 * places
    assert typical(f, run) <= (3 if run.places == 2 * places else 0.5) * 2.0**-places
    fewer = replace(run, places=run.places - 1)
    assert run.places == 2 * places or f.linear or typical(f, fewer) > 0.25 * 2.0**-places  # and no more than it takes


@pytest.mark.parametrize(("relative", "small"), [(False, 6), (True, 7)])
def test_small_values_are_rounded_to_small_units(relative: bool, small: int) -> None:
    """To units of what holds the largest value, or where errors are relative the smallest."""
    f = FourierSeries(32.0, (0.004, -0.001), (0.0, 0.002), (-14.0, 14.0), constant=0.0105, relative=relative)
    x = points(f, 2000)
    run, values = shared(f, x), direct(f, x)
    assert 2.0**-8 < values.min() <= 2.0**-7 < values.max() <= 2.0**-6
    assert run.places == 32 + small
    assert typical(f, run) <= 3 * 2.0 ** -(16 + small)
    assert_rounded(run, f, x, 16)


def test_parties_whose_coefficients_differ_use_the_first_ones() -> None:
    f = SERIES["general"]
    x = points(f, 2000)
    run = in_threads(lambda b, x: x.series(f.scaled(1 + 1e-7 * b.runtime.rank)), x)
    assert_rounded(run, f, x, 16)


def test_shares_of_exp_reach_its_error() -> None:
    assert EXP.error is not None
    assert EXP.error < 5e-6
    x = points(EXP, 4000)
    run = shared(EXP, x)
    assert_close(run.value, np.exp(x), EXP.error + 6 * typical(EXP, run), "the series' own error, and rounding")


def test_rounding_errs_by_no_bias() -> None:
    f = replace(SERIES["even"], constant=0.25)
    x = points(f, 20_000)
    run = shared(f, x)
    assert abs((run.value - direct(f, x)).mean()) < 0.04 * typical(f, run)  # 1/sqrt(20000) is 0.007


@pytest.mark.parametrize(
    ("places", "factor", "dealt"), [(16, 19, 19), (19, 22, 22), (24, 27, 27), (26, 28, 27), (28, 28, 27)]
)
def test_heavy_series_keep_within_the_ring(places: int, factor: int, dealt: int) -> None:
    f = FourierSeries(16.0, (1.0,) * 64, (), (-7.0, 7.0))  # 64 at x = 0: with 55 places that is 2^61
    x = np.append(points(f, 500, 12), 0.0)
    run = shared(f, x, MpcParameters(fractional_bits=places, integer_bits=6))
    assert run.requests[0][0].argument == series_argument(bits=4 + places, places=dealt)
    assert run.places == factor + dealt
    assert_rounded(run, f, x, places)


@pytest.mark.parametrize("places", [16, 25])
def test_a_constant_beyond_the_ring_that_harmonics_cancel(places: int) -> None:
    """The ring wraps, so that only the series' values need room in it."""
    f = FourierSeries(8.0, (-20000.0,), (), (-0.25, 0.25), constant=20000.5)
    x = points(f, 500, places)
    run = shared(f, x, MpcParameters(fractional_bits=places, integer_bits=9))
    assert places == 16 or f.constant * 2.0**run.places > 2.0**62
    assert_close(run.value, direct(f, x), 6 * typical(f, run) + 1e-11, "rounding, in float64 as well")


# ---- what is read of the argument -------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [4, 10, 16, 20, 32, 50, 57])
@pytest.mark.parametrize("parties", [2, 5])
def test_arguments_of_other_places(parties: int, places: int) -> None:
    """Read to 2^-32 of the period, with what P-1 parties drop below that."""
    f = SERIES["even"]
    x = points(f, 500, min(places, 40))
    argument = held(x, places)
    run = in_threads(lambda b, _: argument(b).series(f), x, parameters=MpcParameters(parties=parties))
    assert run.sent[1][0].dtype == torch.int32
    steepest = np.abs(f.derivative()(x)).max()
    dropped = parties * f.period / 2**32 * steepest if places > 27 else 0.0
    assert_close(
        run.value, direct(f, x), 6 * typical(f, run) + dropped, "rounding, and bits below the last that is read"
    )
    assert run.recorders[0].total("truncations") == 0


def test_a_linear_term_needs_its_argument_truncated() -> None:
    f, x = SERIES["general"], points(SERIES["general"], 500, 20)
    argument = held(x, 20)
    run = in_threads(lambda b, _: argument(b).series(f), x)
    assert run.recorders[0].total("truncations") == 500
    steepest = np.abs(f.derivative()(x)).max()
    slope = abs(as_rounded(f, run, 16).linear - f.linear) * 8
    error = 6 * typical(f, run) + slope + steepest * 2.0**-16
    assert_close(run.value, direct(f, x), error, "rounding, and the truncation times the slope")


def test_a_product_is_read_as_it_is() -> None:
    f, x = SERIES["even"], points(SERIES["even"], 500) / 4
    x = np.rint(x * 2**16) / 2**16
    run = in_threads(lambda b, x: x.square().series(f), x)
    unread = 2 * 2.0**-27 * np.abs(f.derivative()(x * x)).max()
    assert_close(run.value, direct(f, x * x), 6 * typical(f, run) + unread, "rounding; x² is exact, and read to 2^-27")
    assert run.recorders[0].total("rounds", phase="online") == 2
    assert run.recorders[0].total("truncations") == 0


@pytest.mark.parametrize("parties", [2, 3, 5])
def test_dropped_bits_make_the_argument_less_by_at_most_a_unit_a_party(parties: int) -> None:
    """The angle read is that of ⌊x/2^d⌋, or of one of the P-1 units below; wraps of shares vanish with the period."""
    f, bits, dropped = FourierSeries(2.0, (0.5,), (0.25,), (-0.5, 0.5)), 30, 22
    x = np.random.default_rng(parties).integers(-(2**29), 2**29, 4000)
    places = {"bits": bits, "dropped": dropped, "factor_places": 25, "dealt_places": 25}

    def program(b: MpcBackend, _: Any) -> MpcTensor:
        share = periodic.harmonics_of(b.runtime, b.runtime.share(x, owner=1), f, **places)
        return MpcTensor(b, share, 50)

    value = in_threads(program, np.zeros(1), parameters=MpcParameters(parties=parties)).value
    candidates = [direct(f, ((x >> dropped) - below) * 2.0 / (1 << (bits - dropped))) for below in range(parties)]
    distance = np.abs(np.array(candidates) - value)
    assert distance.min(0).max() < 1e-6  # 25 places
    found = np.bincount(distance.argmin(0), minlength=parties)
    assert np.all(found > 10)  # each occurs


def test_long_periods_open_long_words() -> None:
    f = FourierSeries(2.0**20, (1.0, 0.5), (0.25, 0.0), (-400_000.0, 500_000.0))
    x = points(f, 300)
    run = shared(f, x, MpcParameters(integer_bits=20))
    assert run.sent[1][0].dtype == torch.int64
    assert_rounded(run, f, x, 16)
    assert run.recorders[0].total("bytes_sent", phase="online") == 8 * 300


# ---- cost -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("truncation", "parties"), [("exact", 2), ("exact", 3), ("local", 2)])
def test_cost(truncation: Any, parties: int) -> None:
    f, n = SERIES["even"], 60
    parameters = MpcParameters(parties=parties, truncation=truncation)
    run = shared(f, points(f, n), parameters)
    assert run.sent[1][0].element_size() == 4  # what is sent, not what is counted
    for rank, party in enumerate(run.recorders):
        plan = SymbolicMpc(parameters, rank)
        with plan.recorder.phase("online"):
            assert plan.shape_input((3, 20)).series(f).shape == (3, 20)
        assert [asked.request for asked in plan.planner.asked] == run.requests[rank]
        for recorder in (party, plan.recorder):
            assert recorder.total("rounds", phase="online") == recorder.total("rounds", phase="setup") == 1
            assert recorder.total("bytes_sent", phase="online") == 4 * n * (parties - 1)
            assert recorder.total("bytes_sent", phase="setup") == (0 if rank else 8 * (20 + 2) * (parties - 1))
            assert recorder.total("harmonics", phase="online") == 20 * n
            assert recorder.total("harmonics", phase="offline") == 20 * n
            assert recorder.total("dealer_bytes") == (0 if rank else 16 * 20 * n)


def test_large_tensors_are_dealt_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    f = SERIES["general"]
    x = points(f, 1000)
    whole = shared(f, x)
    monkeypatch.setattr(periodic, "_MOST_DEALT", 18 * 300)
    monkeypatch.setattr(harmonics, "_BLOCK", 70)
    parts = shared(f, x)
    assert [request.first for request in parts.requests[0]] == [(300,), (300,), (300,), (100,)]
    assert len(parts.sent) == len(whole.sent)
    assert_rounded(parts, f, x, 16)


def chi_square(values: np.ndarray) -> float:
    """How far 256 bins are from uniform, in standard deviations."""
    found = np.bincount(values, minlength=256)
    expected = len(values) / 256
    return float((((found - expected) ** 2 / expected).sum() - 255) / math.sqrt(2 * 255))


@pytest.mark.parametrize(("parties", "secret"), [(2, 0.0), (2, -7.0), (2, 7.9921875), (3, -7.0)])
@pytest.mark.parametrize(("places", "bits"), [(16, 21), (40, 32)])
def test_what_is_opened_is_uniform(places: int, bits: int, parties: int, secret: float) -> None:
    """The same secret 65,536 times: what each party sends, and the sum, look like random bits; keys are fixed."""
    f, n = SERIES["even"], 1 << 16
    argument = held(np.full(n, secret), places)
    run = in_threads(lambda b, _: argument(b).series(f), np.zeros(n), parameters=MpcParameters(parties=parties))
    sent = [share.numpy().astype(np.int64) & (2**32 - 1) for share in run.sent[1]]
    assert all((share < 1 << bits).all() for share in sent)  # reduced: nothing of x above
    for word in (*sent, sum(sent) % (1 << bits)):
        assert abs(chi_square(word & 255)) < 4.5
        assert abs(chi_square(word >> (bits - 8))) < 4.5
        assert abs(np.corrcoef(word[1:], word[:-1])[0, 1]) < 0.02
    assert abs(np.corrcoef(sent[0], sent[1])[0, 1]) < 0.02
    assert chi_square((np.full(n, int(secret * 2**16)) + sent[0] % 64) & 255) > 100  # too small a mask would show


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (FourierSeries(2.0**-20, (1.0,), (), (0.0, 2.0**-30)), "period of 1 to 62 bits"),
        (FourierSeries(2.0**50, (1.0,), (), (0.0, 1.0)), "is 66 bits of values with 16 binary places"),
        (FourierSeries(4.0, (2.0**30,), (), (0.0, 1.0)), "fit it with a smaller weight"),
    ],
)
def test_unfit_series_are_refused_before_anything_is_opened(f: FourierSeries, words: str) -> None:
    backend = MpcBackend(NullRuntime(), Recorder(modelled=True))
    with pytest.raises(InputError, match=words):
        backend.input(np.zeros(3)).series(f)
    assert backend.recorder.total("rounds", phase="online") == backend.recorder.total("dealer_requests") == 0
