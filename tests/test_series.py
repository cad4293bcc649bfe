"""Fourier series: the value, its polynomial twin, in the clear with gradients, and on shares of parties in threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Array, Counting, assert_close

from secureattn.backends.crypten import harmonics, runtime
from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.csprng import Csprng
from secureattn.backends.crypten.dealer import Dealer
from secureattn.backends.crypten.material import Request, draw, elements, series_argument
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.planning import NullRuntime, ring_bytes
from secureattn.backends.crypten.tensor import MpcTensor
from secureattn.backends.plaintext import PlaintextBackend
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


class Table:
    """Where the parties of one run meet, each in a thread, and what each of them sent."""

    def __init__(self, parties: int) -> None:
        self.barrier = threading.Barrier(parties, timeout=60)
        self.slots: list[Any] = [None] * parties
        self.sent: list[list[torch.Tensor]] = []
        self.dealer = Dealer([bytes([rank] * 32) for rank in range(parties)])

    def meet(self, rank: int, value: torch.Tensor) -> list[torch.Tensor]:
        self.slots[rank] = value
        if self.barrier.wait() == 0:
            self.sent.append(list(self.slots))
        self.barrier.wait()
        return self.sent[-1]


class Threaded(runtime.Runtime):
    """A party with keys that are the same in every test; it can do what a series, sums and truncations need."""

    def __init__(self, parameters: MpcParameters, rank: int, table: Table) -> None:
        super().__init__(parameters, rank)
        self.table, self.stream, self.common = table, Csprng(bytes([rank] * 32)), Csprng(b"c" * 32)
        self.requests: list[Request] = []

    def constant(self, values: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(values, dtype=np.int64))

    def share(self, values: Any, *, owner: int) -> torch.Tensor:
        shares = [self.common.ring(values.shape) for _ in range(self.parameters.parties)]
        rest = sum(share for rank, share in enumerate(shares) if rank != owner)
        return self.constant(values) - rest if self.rank == owner else shares[self.rank]

    def reveal(self, share: torch.Tensor, *, to: int | None) -> torch.Tensor:
        return self._exchange(share)

    def _from_first(self, values: Any) -> Any:
        words = self.constant(values.view(np.int64)) * (self.rank == 0)
        return self._exchange(words).numpy().view(np.float64)

    def _deal(self, request: Request) -> tuple[torch.Tensor, ...]:
        self.requests.append(request)
        masks, derived = draw(request, self.stream, derived=self.rank > 0)
        if self.rank == 0:
            parts = torch.split(self.table.dealer.correction(request), [elements(s) for s in request.derived])
            derived = [part.reshape(shape) for part, shape in zip(parts, request.derived, strict=True)]
        return (*masks, *derived)

    def _exchange(self, flat: torch.Tensor) -> torch.Tensor:
        self.count("rounds", 1)
        self.count("openings", flat.numel())
        self.count("bytes_sent", ring_bytes(flat, self.parameters.parties))
        first, *others = self.table.meet(self.rank, flat)
        total = first.clone()
        for other in others:
            total += other
        return total

    def _turned_back(self, opened: Any, dealt: Any, series: FourierSeries, bits: int, places: int) -> torch.Tensor:
        self.count("harmonics", opened.numel() * series.harmonics)
        return harmonics.turned_back(opened, dealt, series, bits, places)

    def _sign_bit(self, share: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    _multiply = _sign_bit  # type: ignore[assignment]


@dataclass
class Run:
    """What the parties made: the value, every party's recorder and requests, and what each sent in each round."""

    value: Array
    recorders: list[Recorder]
    requests: list[list[Request]]
    sent: list[list[torch.Tensor]]

    @property
    def opened(self) -> list[torch.Tensor]:
        """What the parties sent for the series; before that the first one's coefficients went round."""
        return self.sent[1]


def shared(program: Callable[[Any, Any], Any], x: Array, parameters: MpcParameters | None = None) -> Run:
    """Run a program on shares of ``x``."""
    parameters = parameters or MpcParameters()
    table = Table(parameters.parties)

    def party(rank: int) -> tuple[Any, Recorder, list[Request]]:
        own, online = Threaded(parameters, rank, table), Recorder()
        backend = MpcBackend(own, online)
        output = program(backend, backend.input(x if rank == 1 else np.zeros_like(x)))
        backend = MpcBackend(own, Recorder())
        return backend.reveal(output), online, own.requests

    with ThreadPoolExecutor(parameters.parties) as pool:
        results = list(pool.map(party, range(parameters.parties)))
    return Run(results[0][0], [result[1] for result in results], [result[2] for result in results], table.sent)


def exact_bound(f: FourierSeries) -> float:
    """What ``MpcTensor.series`` states for exact truncation, in units of the last place."""
    return 1.0 + 0.5 / math.sqrt(2) + (0.125 if f.linear else 0.01)


def local_bound(f: FourierSeries) -> float:
    """The same for local truncation."""
    reach = max(map(abs, f.domain)) if f.linear else 0.0
    return 1.0 + (f.harmonics + f.weight) / math.sqrt(2) + reach / 2


@names
@pytest.mark.parametrize(("parties", "places"), [(2, 16), (3, 16), (5, 12), (2, 19)])
def test_shares(name: str, parties: int, places: int) -> None:
    f = SERIES[name]
    x = points(f, 1000, places).reshape(10, 100)
    run = shared(lambda b, x: x.series(f), x, MpcParameters(parties=parties, fractional_bits=places))
    assert_close(
        run.value, direct(f, x), exact_bound(f) * 2.0**-places, "one truncation, and rounding of factors and of dealt"
    )


@names
def test_shares_truncated_locally(name: str) -> None:
    f = SERIES[name]
    x = points(f, 3000)
    run = shared(lambda b, x: x.series(f), x, MpcParameters(truncation="local"))
    error = run.value - direct(f, x)
    assert_close(run.value, direct(f, x), local_bound(f) / 2**16, "the worst rounding")
    if not f.linear:
        typical = math.sqrt((f.harmonics + sum(c * c for c in (*f.cosines, *f.sines)) + 2) / 12)
        assert np.sqrt(np.mean(error**2)) * 2**16 <= 1.1 * typical


def test_parties_whose_coefficients_differ_use_the_first_ones() -> None:
    f = SERIES["general"]
    x = points(f, 2000)

    def party(b: MpcBackend, x: MpcTensor) -> MpcTensor:
        return x.series(f.scaled(1 + 1e-7 * b.runtime.rank))

    run = shared(party, x)
    assert_close(run.value, direct(f, x), exact_bound(f) / 2**16, "as with equal coefficients")


def test_shares_of_exp_reach_its_error() -> None:
    assert EXP.error is not None
    assert EXP.error < 5e-6
    x = points(EXP, 4000)
    run = shared(lambda b, x: x.series(EXP), x)
    assert_close(
        run.value, np.exp(x), EXP.error + exact_bound(EXP) / 2**16, "the series' own error, and that of fixed point"
    )


def test_truncation_errs_by_no_bias() -> None:
    f = SERIES["even"]
    x = points(f, 20_000)
    error = shared(lambda b, x: x.series(f), x).value - direct(f, x)
    assert abs(error.mean()) * 2**16 < 0.02  # 0.4/sqrt(20000) is 0.003


@pytest.mark.parametrize(("places", "factor", "dealt"), [(19, 27, 27), (24, 28, 27), (28, 28, 27)])
def test_heavy_series_keep_within_the_ring(places: int, factor: int, dealt: int) -> None:
    f = FourierSeries(16.0, (1.0,) * 64, (), (-7.0, 7.0))  # 64 at x = 0: with 55 places that is 2^61
    x = np.append(points(f, 500, 12), 0.0)
    run = shared(lambda b, x: x.series(f), x, MpcParameters(fractional_bits=places))
    assert run.requests[0][0].argument == series_argument(bits=4 + places, places=dealt)
    bound = (64 * 2.0**-factor + 64 * 2.0**-dealt) / math.sqrt(2) + 1.02 * 2.0**-places
    assert_close(run.value, direct(f, x), bound, "rounding with the places that are left, and one truncation")


@pytest.mark.parametrize("places", [4, 10, 16, 20])
def test_inputs_of_other_places(places: int) -> None:
    f = SERIES["general"]
    x = points(f, 500, places)
    ring = np.rint(np.ldexp(x, places)).astype(np.int64)

    def program(b: MpcBackend, _: Any) -> Any:
        return MpcTensor(b, b.runtime.share(ring, owner=1), places).series(f)

    run = shared(program, x)
    assert run.opened[0].dtype == torch.int32
    assert_close(run.value, direct(f, x), exact_bound(f) / 2**16, "as with inputs of 16 places")


def test_long_periods_open_long_words() -> None:
    f = FourierSeries(2.0**20, (1.0, 0.5), (0.25, 0.0), (-400_000.0, 500_000.0))
    x = points(f, 300)
    run = shared(lambda b, x: x.series(f), x)
    assert run.opened[0].dtype == torch.int64
    assert_close(run.value, direct(f, x), exact_bound(f) / 2**16, "as with short words")
    assert run.recorders[0].total("bytes_sent", phase="online") == 2 * 8 * 300


@pytest.mark.parametrize(
    ("truncation", "rounds", "sent", "dealt"), [("exact", 2, 12, 16 * 20 + 16), ("local", 1, 4, 320)]
)
def test_cost(truncation: Any, rounds: int, sent: int, dealt: int) -> None:
    f, n, parameters = SERIES["even"], 60, MpcParameters(truncation=truncation)
    run = shared(lambda b, x: x.series(f), points(f, n), parameters)
    assert run.opened[0].element_size() == 4  # what is sent, not what is counted
    plan = NullRuntime(parameters)
    backend = MpcBackend(plan, Recorder(modelled=True))
    assert backend.input(np.zeros((3, 20))).series(f).shape == (3, 20)
    for recorder in (*run.recorders, backend.recorder):
        assert recorder.total("rounds", phase="online") == rounds
        assert recorder.total("bytes_sent", phase="online") == sent * n
        assert recorder.total("rounds", phase="setup") == 1
        assert recorder.total("bytes_sent", phase="setup") == 8 * (20 + 2)
        assert recorder.total("harmonics", phase="online") == 20 * n
        assert recorder.total("harmonics", phase="offline") == 20 * n
    assert backend.recorder.total("dealer_bytes") == dealt * n
    assert sum(request.correction_bytes for request in run.requests[0]) == dealt * n
    assert plan.requests == run.requests[0] == run.requests[1]


def test_large_tensors_are_dealt_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    f = SERIES["general"]
    x = points(f, 1000)
    whole = shared(lambda b, x: x.series(f), x)
    monkeypatch.setattr(runtime, "_MOST_DEALT", 18 * 300)
    monkeypatch.setattr(harmonics, "_BLOCK", 70)
    parts = shared(lambda b, x: x.series(f), x)
    assert [request.first for request in parts.requests[0]] == [(300,), (300,), (300,), (100,), (1000,)]
    assert len(parts.sent) == len(whole.sent)
    assert_close(parts.value, direct(f, x), exact_bound(f) / 2**16, "as in one part")


def chi_square(values: np.ndarray) -> float:
    """How far 256 bins are from uniform, in standard deviations."""
    found = np.bincount(values, minlength=256)
    expected = len(values) / 256
    return float((((found - expected) ** 2 / expected).sum() - 255) / math.sqrt(2 * 255))


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("secret", [0.0, -7.0, 7.9921875])
def test_what_is_opened_is_uniform(parties: int, secret: float) -> None:
    """The same secret 65,536 times: what each party sends, and the sum, look like 20 random bits; keys are fixed."""
    f, n, bits = SERIES["general"], 1 << 16, 20
    run = shared(lambda b, x: x.series(f), np.full(n, secret), MpcParameters(parties=parties))
    sent = [share.numpy().astype(np.int64) for share in run.opened]
    assert all(((share >= 0) & (share < 1 << bits)).all() for share in sent)  # reduced: nothing of x above
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
