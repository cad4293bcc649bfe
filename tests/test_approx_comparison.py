"""Functions with a jump or a kink, and what is compared to compute them: sign, relu, max, clip, exp's cuts, octaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Array, Counting, assert_close
from programs import in_threads

from secureattn import fit
from secureattn.approx import Interval, Realisation, clip, exact, exp, max, realise, reciprocal, relu, rsqrt, sign
from secureattn.approx.realisation import EVERYWHERE
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.backends.symbolic import SymbolicMpc
from secureattn.errors import PlanError, RangeError
from secureattn.polynomial import Polynomial
from secureattn.tensor import Capability

BACKEND = PlaintextBackend()
EXACT = PlaintextBackend(exact=True)
COARSE = {"gap": 2.0**-4, "error": 2.0**-4}


class Rows(Counting):
    """A counting tensor that can be taken apart along its last axis."""

    def _new(self, data: Any, depth: int) -> Rows:
        return Rows(data, depth, self.tally)

    def take(self, axis: int, index: int | slice) -> Rows:
        assert axis == -1
        assert isinstance(index, slice)
        return self._new(self.data[..., index], self.depth)


def run(made: Realisation, x: Array) -> Array:
    """The value on the plaintext engine."""
    return BACKEND.reveal(made(BACKEND.input(x)))


def counts(made: Realisation, x: Array) -> tuple[int, int, int]:
    """Depth, products and comparisons."""
    y = made(Rows(x))
    assert isinstance(y, Counting)
    return y.depth, y.tally.products, y.tally.comparisons


def both_sides(low: float, high: float, count: int = 20001) -> Array:
    """``low ≤ |x| ≤ high``, even in log x."""
    x = np.geomspace(low, high, count)
    return np.r_[-x[::-1], x]


# ---- sign -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "options", "error", "depth", "products"),
    [
        (1.0, COARSE, 6.1494e-2, 6, 9),
        (3.0, COARSE, 6.1494e-2, 7, 9),  # the slope 1/3 is not folded
        (3.0, {}, 8.5998e-4, 10, 20),
        (5.0, {"gap": 2.0**-8}, 4.4759e-4, 13, 22),
    ],
)
def test_composite_sign(m: float, options: dict[str, float], error: float, depth: int, products: int) -> None:
    made = realise("sign", {"kind": "composite", **options}, (-m, m / 2))
    assert made.domain == (-m, m)
    gap = options.get("gap", 2.0**-6)
    x = both_sides(gap * m, m)
    found = np.max(np.abs(run(made, x) - np.sign(x)))
    assert found == pytest.approx(error, rel=1e-3)
    assert made.error == pytest.approx(error, rel=1e-3)
    assert counts(made, x[:3]) == (depth, products, 0)
    assert (made.depth, made.products) == (depth, products)
    inside = np.linspace(-gap * m, gap * m, 2001)
    values = run(made, inside)
    assert np.max(np.abs(values)) <= 1 + error * 1.001, "bounded within the gap"
    assert_close(values, -values[::-1], 1e-13, "odd")


def test_the_slope_of_a_composite_sign_can_be_folded() -> None:
    made = sign.composite((-3.0, 3.0), **COARSE)
    assert made.polynomial is not None
    folded = made.with_polynomial(made.polynomial.on_unit())
    x = both_sides(0.2, 3.0, 101)
    assert_close(run(folded, x / 3), run(made, x), 1e-13, "x/3 computed elsewhere")
    assert folded.depth == (made.depth or 0) - 1


@pytest.mark.parametrize("which", [0, 1])
def test_a_wrong_coefficient_of_the_sign_is_caught(which: int) -> None:
    """1 % of any coefficient shows in the measured error."""
    polynomials, error = sign.composition(1.0, **COARSE)
    x = both_sides(2.0**-4, 1.0, 5001)
    for k in range(1, polynomials[which].degree + 1, 2):
        p = polynomials[which]
        wrong = tuple(c * (1 + 0.01 * (j == k)) for j, c in enumerate(p.coefficients))
        mutant = [*polynomials]
        mutant[which] = Polynomial(wrong, p.domain)
        found = np.max(np.abs(BACKEND.reveal(sign.in_turn(mutant, BACKEND.input(x))) - np.sign(x)))
        assert found != pytest.approx(error, rel=1e-3)


def test_compared_sign() -> None:
    made = realise("sign", {"kind": "compare"}, (-50.0, 50.0))
    x = np.array([-50.0, -1e-300, 0.0, 1e-300, 7.0])
    assert_close(run(made, x), [-1.0, -1.0, 1.0, 1.0, 1.0], 0.0, "1 at 0, by choice")
    assert counts(made, x) == (0, 0, 1)
    assert (made.domain, made.error, made.needs) == (EVERYWHERE, 0.0, {Capability.COMPARE})


# ---- relu -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "interval", "error", "cost"),
    [
        ({"kind": "composite", **COARSE}, (-1.0, 1.0), 3.0747e-2, (7, 10)),
        ({"kind": "composite"}, (-1.0, 1.0), 1.0609e-3, (10, 21)),
        ({"kind": "composite"}, (-4.0, 1.0), 4.2437e-3, (11, 21)),
        ({"kind": "composite", "gap": 2.0**-8}, (-1.0, 1.0), 2.5314e-4, (13, 23)),
        ({"kind": "chebyshev", "degree": 15}, (-4.0, 4.0), 1.2560e-1, (5, 6)),
        ({"kind": "chebyshev", "degree": 31}, (-4.0, 4.0), 6.2575e-2, (6, 9)),
        ({"kind": "remez", "degree": 15}, (-4.0, 4.0), 3.9898e-2, (5, 6)),
        ({"kind": "remez", "degree": 31}, (-4.0, 4.0), 1.8665e-2, (6, 9)),
    ],
)
def test_relu(options: dict[str, Any], interval: Interval, error: float, cost: tuple[int, int]) -> None:
    made = realise("relu", options, interval)
    m = -interval[0]
    x = np.r_[both_sides(1e-5 * m, m), np.linspace(-m, m, 20001)]
    assert np.max(np.abs(run(made, x) - np.maximum(x, 0))) == pytest.approx(error, rel=1e-3)
    assert made.error == pytest.approx(error, rel=1e-3)
    assert counts(made, x[:3]) == (*cost, 0)
    assert (made.depth, made.products) == cost


def test_compared_relu() -> None:
    made = realise("relu", {"kind": "compare"}, (-50.0, 50.0))
    x = np.array([-50.0, -1e-9, 0.0, 1e-9, 7.0])
    assert_close(run(made, x), np.maximum(x, 0), 0.0, "exact")
    assert counts(made, x) == (1, 1, 1)
    assert (made.error, made.needs) == (0.0, {Capability.COMPARE})


def test_relu_by_series() -> None:
    made = realise("relu", {"kind": "fourier", "harmonics": 16}, (-4.0, 4.0))
    x = np.linspace(-4, 4, 4001)
    assert_close(run(made, x), np.maximum(x, 0), 0.0206, "2.05e-2 measured")
    assert made.series is not None
    assert made.series.linear == 0.5


# ---- max ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [1, 2, 3, 5, 8, 11, 16])
@pytest.mark.parametrize("options", [COARSE, {}])
def test_max_of_a_row(keys: int, options: dict[str, float]) -> None:
    made = realise("max", {"kind": "composite", "keys": 16, **options}, (-3.0, 1.0))
    x = np.random.default_rng(keys).uniform(-3, 1, (50, 4, keys))
    x[0, 0, :] = -3.0  # all alike
    x[0, 1, : keys // 2] = 1.0  # ties
    x[0, 2, :] = -3.0
    x[0, 2, -1] = 1.0
    wanted = x.max(-1, keepdims=True)
    assert made.error is not None
    found = run(made, x)
    levels = math.ceil(math.log2(keys))
    assert_close(found, wanted, made.error * levels / 4 + 1e-15, "the error of a relu for every level")
    assert counts(made, x)[:2] == (levels * (made.depth or 0) // 4, levels * (made.products or 0) // 4)
    assert_close(run(realise("max", {"kind": "compare"}, (-3.0, 1.0)), x), wanted, 0.0, "exact")


def test_error_and_cost_of_max() -> None:
    """Four meetings of 16 keys: four times what one relu over the widest difference has."""
    made = max.composite((-1.0, 1.0))
    meeting = relu.composite((-2 * 1.001**4, 2 * 1.001**4))
    assert made.error == pytest.approx(4 * meeting.error, rel=1e-12)
    assert made.error == pytest.approx(8.5215e-3, rel=1e-3)
    assert (made.depth, made.products) == (4 * 11, 4 * 21)
    wider = max.composite((-1.0, 1.0), keys=17)
    assert wider.error == pytest.approx(1.25 * 1.001 * made.error, rel=1e-6)
    compare = max.compare()
    assert (compare.depth, compare.error, compare.needs) == (None, 0.0, {Capability.COMPARE})


def test_max_of_two_reaches_its_error() -> None:
    """The stated error is met, not only kept: by differences in the gap."""
    made = max.composite((-1.0, 1.0), keys=2)
    b = np.geomspace(1e-4, 2.0, 20001)
    x = np.stack([-np.ones_like(b), b - 1], -1)
    assert np.max(np.abs(run(made, x) - x.max(-1, keepdims=True))) == pytest.approx(made.error, rel=1e-3)


# ---- clip -----------------------------------------------------------------------------------------------------


def test_clip() -> None:
    x = np.array([-1e3, -4.0 - 1e-12, -4.0, -3.9, 0.0, 11.9, 12.0, 12.0 + 1e-12, 1e3])
    wanted = np.minimum(np.maximum(x, -4), 12)
    made = realise("clip", {"kind": "compare"}, (-1e3, 1e3))
    assert_close(run(made, x), wanted, 1e-14, "one sum of numbers up to 12")
    assert counts(made, x) == (1, 1, 2)
    assert_close(EXACT.reveal(exact("clip")(EXACT.input(x))), wanted, 0.0, "the true form")
    same = realise("clip", {"kind": "none"}, (-4.0, 12.0))
    assert_close(run(same, wanted), wanted, 0.0, "nothing is done")
    assert counts(same, wanted) == (0, 0, 0)
    assert (same.depth, same.products, same.error) == (0, 0, 0.0)


@pytest.mark.parametrize(("name", "factor"), [("LOW", 1.01), ("LOW", 0.99), ("HIGH", 1.01), ("HIGH", 0.99)])
def test_a_wrong_bound_of_clip_is_caught(name: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, name, getattr(clip, name) * factor)
    with pytest.raises(AssertionError):
        test_clip()


# ---- exp with a cut -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "power", "error", "products"), [(exp.puma, 32, 8.5475e-3, 6), (exp.bumblebee, 64, 4.2514e-3, 7)]
)
def test_cut_exponentials(build: Callable[[Interval], Realisation], power: int, error: float, products: int) -> None:
    made = build((-30.0, 0.0))
    x = np.r_[np.linspace(-1e6, 0, 1001), np.linspace(-40, 0, 8001), -14.0, np.nextafter(-14.0, -20)]
    published = np.where(x < -14, 0.0, (1 + np.maximum(x, -14) / power) ** power)
    assert_close(run(made, x), published, 1e-14, "rounding of a power")
    assert np.max(np.abs(run(made, x) - np.exp(x))) == pytest.approx(error, rel=1e-3)
    assert made.error == pytest.approx(error, rel=1e-3)
    assert counts(made, x)[1:] == (products, 1)
    assert made.covers((-1e9, 0.0))
    assert not made.covers((-1.0, 0.5))
    assert build((-30.0, 1.0)).error == pytest.approx(math.e - (1 + 1 / power) ** power, rel=1e-3)


@pytest.mark.parametrize("name", ["PUMA", "BUMBLEBEE"])
@pytest.mark.parametrize("cut", [(-14.0 * 1.01, 0), (-14.0 * 0.99, 0), (-14.0, 1)])
def test_a_wrong_cut_is_caught(name: str, cut: tuple[float, int], monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(exp, name)
    build = getattr(exp, name.lower())
    monkeypatch.setattr(exp, name, (cut[0], right[1] + cut[1]))
    with pytest.raises(AssertionError):
        test_cut_exponentials(build, 2 ** right[1], {5: 8.5475e-3, 6: 4.2514e-3}[right[1]], right[1] + 1)


# ---- octaves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kappa", "comparisons"), [(1.9, 0), (2.0, 0), (2.1, 1), (4.0, 1), (5.0, 2), (16.0, 2), (1000.0, 4), (2.0**16, 4)]
)
@pytest.mark.parametrize("high", [1.0, 40.0])
def test_octaves(kappa: float, comparisons: int, high: float) -> None:
    """⌈log2⌈log2 κ⌉⌉ comparisons bring any x into the highest octave by the power of two that does."""
    domain = (high / kappa, high)
    powers = high * 2.0 ** -np.arange(math.floor(math.log2(kappa)) + 1)
    x = np.clip(np.r_[np.geomspace(*domain, 999), powers, np.nextafter(powers, 0)], *domain)
    tensor = Counting(x)
    u, scale = reciprocal.normalise(tensor, domain)
    assert isinstance(u, Counting)
    assert np.all((u.data >= high / 2) & (u.data <= high))
    s = u.data / x
    assert_close(s, 2.0 ** np.round(np.log2(s)), 0.0, "powers of two")
    scale = scale.data if isinstance(scale, Counting) else np.full_like(x, scale)
    assert_close(scale / s, np.ones_like(x), 1e-14, "the same power")
    assert tensor.tally.comparisons == comparisons
    assert tensor.tally.products == np.maximum(2 * comparisons - 1, 0)


@pytest.mark.parametrize(("degree", "error", "products"), [(3, 1.7331e-3, 2), (5, 5.1018e-5, 4), (7, 1.5018e-6, 5)])
def test_normalised_reciprocal(degree: int, error: float, products: int) -> None:
    """The minimax error of 1/u on an octave, whatever κ: 1/T_{n+1}(3) for degree n."""
    assert error == pytest.approx(1 / math.cosh((degree + 1) * math.acosh(3)), rel=1e-3)
    for domain, comparisons in (((3.0, 40.0), 2), ((1e-3, 0.9), 4), ((0.6, 1.1), 0)):
        made = reciprocal.normalised(domain, degree=degree)
        x = np.geomspace(*domain, 20001)
        assert np.max(np.abs(run(made, x) * x - 1)) == pytest.approx(error, rel=2e-3)
        assert made.error == pytest.approx(error, rel=1e-3)
        assert counts(made, x)[1:] == (products + 2 * comparisons, comparisons)
        assert made.needs == {Capability.COMPARE}


SPU = (26.02942339, -49.86605845, 38.4714796, -15.47994394, 4.14285016)  # highest power first


def check_spu() -> None:
    for domain, comparisons in (((0.25, 0.5), 0), ((3.0, 40.0), 2), ((1e-3, 0.9), 4)):
        x = np.r_[np.geomspace(*domain, 20001)[1:-1], (1 - 1e-9) * domain[1]]
        u = x / 2.0 ** np.ceil(np.log2(x / (domain[1] * (1 - 1e-15)))) / domain[1] / 2
        made = rsqrt.spu(domain)
        wanted = np.polyval(SPU, u) * np.sqrt(u / x)
        assert_close(run(made, x) / wanted, np.ones_like(x), 1e-12, "rounding of terms up to 10")
        assert made.error == pytest.approx(8.2154e-5, rel=1e-3)
        assert np.max(np.abs(run(made, x) * np.sqrt(x) - 1)) == pytest.approx(8.2154e-5, rel=2e-3)
        assert counts(made, x)[1:] == (3 + 2 * comparisons, comparisons)


def test_spu() -> None:
    check_spu()


@pytest.mark.parametrize("k", range(5))
def test_a_wrong_coefficient_of_spu_is_caught(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsqrt, "SPU", tuple(c * (1 + 1e-9 * (j == k)) for j, c in enumerate(rsqrt.SPU)))
    with pytest.raises(AssertionError):
        check_spu()


# ---- octaves side by side -------------------------------------------------------------------------------------

STRIDES = {"reciprocal": 5, "rsqrt": 6}
POWERS = {"reciprocal": -1.0, "rsqrt": -0.5}
HIGH = 1500.0
of_octaves = pytest.mark.parametrize("function", STRIDES)


@cache
def by_octaves(function: str, bits: int) -> tuple[Realisation, Array]:
    """For κ = 2^bits, and numbers from the whole domain: even in log x, the thresholds and their neighbours."""
    made = realise(function, {"kind": "octaves"}, (HIGH / 2**bits, HIGH))
    stride = STRIDES[function]
    thresholds = HIGH / 2.0 ** np.arange(stride, bits, stride)
    x = np.r_[np.geomspace(HIGH / 2**bits, HIGH, 20001), thresholds, np.nextafter(thresholds, 0), thresholds * 0.9998]
    return made, x


@of_octaves
@pytest.mark.parametrize("bits", [2, 5, 7, 17])
def test_octaves_side_by_side(function: str, bits: int) -> None:
    """An error that does not depend on κ, met and kept on the whole domain."""
    made, x = by_octaves(function, bits)
    assert made.error is not None
    assert made.error <= 1e-4
    assert np.max(np.abs(run(made, x) / x ** POWERS[function] - 1)) == pytest.approx(made.error, rel=1e-2)
    assert made.covers((HIGH / 2**bits, HIGH))
    assert made.relative
    assert made.needs == (frozenset() if bits <= STRIDES[function] else {Capability.COMPARE})


@of_octaves
@pytest.mark.parametrize(("bits", "parties"), [(2, 2), (7, 2), (7, 3), (17, 2)])
def test_octaves_on_shares(function: str, bits: int, parties: int) -> None:
    """Rounding errs by units of what holds the smallest value of the series, the one at HIGH: typically three where it
    has as many places as a product, else half a one; and by one where there is no room and it is truncated.
    """
    made, x = by_octaves(function, bits)
    assert made.error is not None
    x = np.rint(x[::7] * 2**16) / 2**16
    shared = in_threads(lambda b, x: made(x), x, parameters=MpcParameters(parties=parties))
    smallest = HIGH ** POWERS[function]
    small = -math.ceil(math.log2(smallest + 2.0**-16))
    units = 3.0 if shared.places == 2 * 16 + small else 0.5
    off = np.abs(shared.value / x ** POWERS[function] - 1)
    truncated = shared.recorders[0].total("truncations") > 0
    assert off.max() <= made.error + (6 * units + truncated) * 2.0 ** -(16 + small) / smallest


@of_octaves
def test_rounds_of_octaves_do_not_depend_on_how_many(function: str) -> None:
    """Comparisons 3, the products and the series one each; nothing but the series where there is one stride."""
    rounds = {}
    for bits in (2, 7, 17):
        made, _ = by_octaves(function, bits)
        plan = SymbolicMpc(MpcParameters())
        with plan.recorder.phase("online"):
            made(plan.shape_input((3, 20)))
        steps, total = math.ceil(bits / STRIDES[function]), plan.recorder.total
        assert total("comparisons") == 60 * (steps - 1)
        assert total("products") == (0 if steps == 1 else 2 * 60)
        truncating = sum(e.counts["rounds"] for e in plan.recorder.events.values() if e.op == "truncate")
        rounds[bits] = total("rounds", phase="online")
        assert rounds[bits] - truncating == (1 if steps == 1 else 6)
    assert rounds[2] == 1
    assert rounds[7] == rounds[17]


# ---- gradients, refusals, true forms --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "options"),
    [
        ("sign", {"kind": "composite", **COARSE}),
        ("relu", {"kind": "composite", **COARSE}),
        ("relu", {"kind": "compare"}),
        ("max", {"kind": "composite", **COARSE}),
        ("max", {"kind": "compare"}),
        ("clip", {"kind": "compare"}),
        ("clip", {"kind": "none"}),
    ],
)
def test_gradients(function: str, options: dict[str, Any]) -> None:
    """gradcheck's own tolerances, away from kinks."""
    made = realise(function, options, (-1.0, 1.0))
    x = torch.tensor([[-0.81, -0.33, 0.52], [0.71, 0.13, -0.2]], dtype=torch.float64).requires_grad_()

    def value(t: torch.Tensor) -> torch.Tensor:
        return made(BACKEND.input(t)).data  # type: ignore[attr-defined, no-any-return]

    assert torch.autograd.gradcheck(value, x, eps=1e-6, atol=1e-6, rtol=1e-5)
    assert torch.any(torch.autograd.grad(value(x).sum(), x)[0] != 0)


def test_refusals() -> None:
    with pytest.raises(RangeError, match=r"clip\(none\) holds on \[-4, 12\]"):
        realise("clip", {"kind": "none"}, (-4.1, 3.0))
    with pytest.raises(RangeError, match="at least 2 keys"):
        realise("max", {"kind": "composite", "keys": 1}, (-1.0, 1.0))
    with pytest.raises(PlanError, match="made for 4 keys, got 5; raise keys"):
        run(max.composite((-1.0, 1.0), keys=4), np.zeros((1, 5)))
    for build in (reciprocal.normalised, reciprocal.octaves, rsqrt.octaves):
        with pytest.raises(PlanError, match="positive domain"):
            build((0.0, 1.0))
    with pytest.raises(PlanError, match=r"reciprocal\(octaves\) needs a stride of at least 1, got 0"):
        reciprocal.octaves((0.1, 1.0), stride=0)


def test_true_forms() -> None:
    x = torch.tensor([[-20.0, -0.5, 0.0, 30.0]], dtype=torch.float64)
    assert_close(sign.TRUE(x), [[-1.0, -1.0, 0.0, 1.0]], 0.0, "exact")
    assert_close(relu.TRUE(x), [[0.0, 0.0, 0.0, 30.0]], 0.0, "exact")
    assert_close(max.TRUE(x), [[30.0]], 0.0, "exact")
    assert_close(clip.TRUE(x), [[-4.0, -0.5, 0.0, 12.0]], 0.0, "exact")
    assert fit.composite_sign(2.0**-4, 2.0**-4).degrees == (3, 13)
