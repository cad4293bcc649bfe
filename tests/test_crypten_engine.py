"""The secret-sharing engine between real processes: values, counts, randomness, failures."""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

if importlib.util.find_spec("crypten") is None:
    pytest.skip("CrypTen is not installed", allow_module_level=True)

import torch

from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.comparison import negative
from secureattn.backends.crypten.launch import PartyResult, run_parties
from secureattn.backends.crypten.material import Kind, Request
from secureattn.backends.crypten.parameters import RING_BITS, MpcParameters
from secureattn.backends.crypten.planning import NullRuntime
from secureattn.backends.crypten.tensor import MpcTensor
from secureattn.backends.crypten.transport import Mesh
from secureattn.backends.crypten.truncation import truncate
from secureattn.errors import EngineError, InputError, ProtocolError
from secureattn.events import Recorder
from secureattn.series import FourierSeries

SEED = 20240607
ULP = 2.0**-16  # one unit in the last place of 16 fractional bits
LIMIT_S = 120.0  # no run takes as long; a hang fails instead of blocking


# ---- the table of operations: arrays on the 2^-16 grid, the operation, the same in numpy, the largest error -----


def grid(*shape: int, scale: float = 1.0, salt: int = 0) -> np.ndarray:
    """Random numbers that fixed point holds exactly, so that only truncation errs."""
    rng = np.random.default_rng([SEED, salt, *shape])
    return np.rint(rng.normal(size=shape) * scale / ULP) * ULP


X, Y, ROW = grid(2, 4, 6), grid(2, 4, 6, salt=1), grid(2, 4, 1, salt=2)
Q, K = grid(2, 3, 5, 4), grid(2, 3, 5, 4, salt=1)
A = grid(2, 3, 5, 5)
W, B = grid(7, 6), grid(7)
WIDE = grid(3, 7, scale=50.0)
MASK = (Y > 0).astype(float)
EDGES = np.array([-4096.0, ULP - 4096.0, -1.0, -ULP, 0.0, ULP, 1.0, 4096.0 - ULP])  # of 12 integer bits
NEAR = X + np.resize([-ULP, 0.0, ULP], X.shape)
WAVES = FourierSeries(16.0, (0.5, -0.25, 0.125), (1.0, 0.0, -0.75), (-7.0, 7.0), constant=0.3, linear=-0.7)
TIDE = FourierSeries(2.0**17, (1.5,), (-0.5,), (-200.0, 200.0))  # 33 bits to open
SWITCH = FourierSeries(2.0, (-0.5,), (), (0.0, 1.0), constant=0.5)  # 0 and 1 stay
RIPPLE = FourierSeries(16.0, (0.5, -0.25, 0.125), (1.0, 0.0, -0.75), (-7.0, 7.0), constant=0.3)


def series(f: FourierSeries) -> Callable[[np.ndarray], np.ndarray]:
    """The definition, term by term."""

    def value(x: np.ndarray) -> np.ndarray:
        total = f.constant + f.linear * x
        for k, a in enumerate(f.cosines, 1):
            total = total + a * np.cos(2 * np.pi * k * x / f.period)
        for k, b in enumerate(f.sines, 1):
            total = total + b * np.sin(2 * np.pi * k * x / f.period)
        return total

    return value


def rounding(f: FourierSeries, places: int) -> float:
    """Six times the standard error of a series whose factors and dealt values have so many places together."""
    spread = sum(c * c for c in (*f.cosines, *f.sines))
    return 6 * min(
        math.sqrt((f.harmonics * 4.0**-factor + spread * 4.0 ** (factor - places)) / 12) for factor in range(1, places)
    )


def reading(f: FourierSeries, units: float) -> float:
    """What a series changes where its argument is read so much too low."""
    return units * float(np.abs(f.derivative()(np.linspace(*f.domain, 1001))).max())


def largest(x: np.ndarray) -> float:
    return float(np.abs(x).max())


def weighed(bits: list[Any]) -> Any:
    """Several bits as one number."""
    return bits[0].combine([(2**i, bit) for i, bit in enumerate(bits)])


def scores_cut(b: MpcBackend, x: Any) -> Any:
    """Scores of two parts of one product."""
    whole = x.square()
    q, k = (whole.take(-1, slice(start, start + 2)).split_heads(1) for start in (0, 2))
    return q.scores(k)


Case = tuple[tuple[np.ndarray, ...], Callable[..., Any], Callable[..., Any], float]

CASES: dict[str, Case] = {
    # exact: numbers on the grid, and nothing is truncated
    "add": ((X, Y), lambda b, x, y: x + y, np.add, 0.0),
    "add_row": ((X, ROW), lambda b, x, y: x + y, np.add, 0.0),
    "add_public": ((X,), lambda b, x: 1.25 + x + Y[0], lambda x: x + 1.25 + Y[0], 0.0),
    "sub_public": ((X,), lambda b, x: 2 - x, lambda x: 2 - x, 0.0),
    "sub_public_wider": ((ROW,), lambda b, x: x - Y, lambda x: x - Y, 0.0),
    "neg": ((X,), lambda b, x: -x, np.negative, 0.0),
    "add_weight": ((X,), lambda b, x: x + b.weight(B[:6]), lambda x: x + B[:6], 0.0),
    "sum": ((X,), lambda b, x: x.sum(-1), lambda x: x.sum(-1, keepdims=True), 0.0),
    "heads": ((X,), lambda b, x: x.split_heads(3).merge_heads(), lambda x: x, 0.0),
    "take": ((X,), lambda b, x: x.take(1, -1), lambda x: x[:, -1:], 0.0),
    "take_slice": ((X,), lambda b, x: x.take(-1, slice(4, None, -2)), lambda x: x[..., 4::-2], 0.0),
    "refresh": ((X,), lambda b, x: x.refresh("here").observe("there"), lambda x: x, 0.0),
    "mul": ((X, Y), lambda b, x, y: x * y, np.multiply, 0.0),
    "mul_row": ((X, ROW), lambda b, x, y: x * y, np.multiply, 0.0),
    "mul_weight": ((X,), lambda b, x: x * b.weight(B[:6]), lambda x: x * B[:6], 0.0),
    "mul_integer": ((X,), lambda b, x: x * -3, lambda x: -3 * x, 0.0),
    "mul_half": ((X,), lambda b, x: x * 0.5, lambda x: x * 0.5, 0.0),
    "mul_mask": ((X,), lambda b, x: x * MASK, lambda x: x * MASK, 0.0),
    "square": ((X,), lambda b, x: x.square(), np.square, 0.0),
    "cube": ((X, Y), lambda b, x, y: x * y * x, lambda x, y: x * y * x, 0.0),
    "linear": ((X,), lambda b, x: x.linear(b.weight(W), b.weight(B)), lambda x: x @ W.T + B, 0.0),
    "linear_product": ((X, Y), lambda b, x, y: (x * y).linear(b.matrix(W)), lambda x, y: (x * y) @ W.T, 0.0),
    "inner": ((X, Y), lambda b, x, y: x.inner(y), lambda x, y: (x * y).sum(-1, keepdims=True), 0.0),
    "inner_row": ((X, Y[:1, :1]), lambda b, x, y: x.inner(y), lambda x, y: (x * y).sum(-1, keepdims=True), 0.0),
    "inner_same": ((X,), lambda b, x: x.inner(x), lambda x: (x * x).sum(-1, keepdims=True), 0.0),
    "scores": ((Q, K), lambda b, q, k: q.scores(k), lambda q, k: q @ k.swapaxes(-1, -2), 0.0),
    "mix": ((A, K), lambda b, a, v: a.mix(v), np.matmul, 0.0),
    "add_product": (
        (X, Y),
        lambda b, x, y: 0.5 - (x * y + x) + x * y * y,
        lambda x, y: 0.5 - x * y - x + x * y * y,
        0.0,
    ),
    # exact: the comparison's bit is an integer
    "less": ((X, Y), lambda b, x, y: x.less(y), lambda x, y: (x < y) * 1.0, 0.0),
    "less_public": ((WIDE,), lambda b, x: x.less(10.5), lambda x: (x < 10.5) * 1.0, 0.0),
    "less_itself": ((X,), lambda b, x: x.less(x), lambda x: 0.0 * x, 0.0),
    "less_near": ((X, NEAR), lambda b, x, y: x.less(y), lambda x, y: (x < y) * 1.0, 0.0),
    "less_edges": ((EDGES,), lambda b, x: x.less(0.0), lambda x: (x < 0) * 1.0, 0.0),
    "less_product": ((X, Y), lambda b, x, y: (x * y).less(2.0), lambda x, y: (x * y < 2.0) * 1.0, 0.0),
    "less_each": (
        (X, Y),
        lambda b, x, y: weighed(x.less_each([y, 0.5, y.take(-1, 0)])),
        lambda x, y: (x < y) * 1.0 + (x < 0.5) * 2.0 + (x < y[..., :1]) * 4.0,
        0.0,
    ),
    "select": ((X, Y), lambda b, x, y: x.less(y) * x, lambda x, y: (x < y) * x, 0.0),
    "max": ((WIDE,), lambda b, x: x.max(-1), lambda x: x.max(-1, keepdims=True), 0.0),
    "max_one": ((ROW,), lambda b, x: x.max(-1), lambda x: x, 0.0),
    "combine_products": ((X, Y), lambda b, x, y: x.combine((), [(x, y)]), np.multiply, 0.0),
    "combine_integers": ((X, Y), lambda b, x, y: x.combine([(2, x), (-1, y)], (), 3), lambda x, y: 2 * x - y + 3, 0.0),
    "combine_bit": ((X, Y), lambda b, x, y: x.combine((), [(x.less(y), x)]), lambda x, y: (x < y) * x, 0.0),
    # what is truncated errs by less than one unit in the last place, and so does a result times what multiplies it
    "max_product": ((X,), lambda b, x: x.square().max(-1), lambda x: np.square(x).max(-1, keepdims=True), ULP),
    "mul_product": ((X, Y), lambda b, x, y: (x * y) * y.square(), lambda x, y: x * y**3, ULP * largest(Y**2)),
    "mul_row_product": ((X, ROW), lambda b, x, y: x * y.square(), lambda x, y: x * y * y, ULP * largest(X)),
    "square_product": (
        (X, Y),
        lambda b, x, y: (x * y).square(),
        lambda x, y: (x * y) ** 2,
        ULP * (2 * largest(X * Y) + ULP),
    ),
    "linear_cube": (
        (X, Y),
        lambda b, x, y: (x * y * x).linear(b.weight(W)),
        lambda x, y: (x * y * x) @ W.T,
        ULP * largest(np.abs(W).sum(-1)),
    ),
    "scores_cut": (
        (X,),
        scores_cut,
        lambda x: np.square(x)[:, None, :, :2] @ np.square(x)[:, None, :, 2:4].swapaxes(-1, -2),
        ULP * 2 * largest(X**2),
    ),
    # a public factor keeps 22 significant bits: half a unit of 2^-23, -31, -22 and -24 for a value
    "mul_public": ((X,), lambda b, x: x * 0.3, lambda x: x * 0.3, 2.0**-24 * largest(X)),
    "mul_small": ((WIDE,), lambda b, x: x * 1e-3, lambda x: x * 1e-3, 2.0**-32 * largest(WIDE)),
    "mul_array": ((X,), lambda b, x: x * np.full(6, math.pi), lambda x: x * math.pi, 2.0**-23 * largest(X)),
    "mean": ((X,), lambda b, x: x.mean(-1), lambda x: x.mean(-1, keepdims=True), 2.0**-25 * largest(X.sum(-1))),
    "combine": (
        (X, Y),
        lambda b, x, y: x.combine([(0.3, x), (-2e-3, y)], [(x, y), (x, x)], 1.7),
        lambda x, y: 0.3 * x - 2e-3 * y + x * y + x * x + 1.7,
        2.0**-24 * (largest(X) + largest(Y)) + 2.0**-40,
    ),
    "pool": (
        (Q[:, :, :4],),
        lambda b, x: x.pool(4) + x.pool(2).sum(2),
        lambda x: x.sum(2, keepdims=True) * 0.75,
        0.0,
    ),
    # a series: its result has 32 places, or as many as a slope with 22 significant bits makes it
    "series": ((X,), lambda b, x: x.series(WAVES), series(WAVES), rounding(WAVES, 38) + 2.0**-23 * largest(X)),
    "series_long": ((WIDE,), lambda b, x: x.series(TIDE), series(TIDE), rounding(TIDE, 32)),
    "series_bit": ((X, Y), lambda b, x, y: x.less(y).series(SWITCH), lambda x, y: (x < y) * 1.0, rounding(SWITCH, 32)),
    "series_product": (
        (X, Y),
        lambda b, x, y: (x * y).series(RIPPLE),
        lambda x, y: series(RIPPLE)(x * y),
        rounding(RIPPLE, 32) + reading(RIPPLE, 3 * 2.0**-28),  # read to 2^-32 of the period, up to 3 parties' worth low
    ),
}


def run_case(backend: MpcBackend, name: str, owners: tuple[int, ...] = (1, 0)) -> Any:
    """The case's operation, with inputs of different owners; a party gives contents only for what it owns."""
    arrays, operation, _, _ = CASES[name]
    rank = backend.runtime.rank
    inputs = [
        backend.input(array if owner == rank else np.full_like(array, 99.0), owner=owner)
        for array, owner in zip(arrays, owners, strict=False)
    ]
    return operation(backend, *inputs)


def check(name: str, got: np.ndarray, error: float | None = None) -> None:
    """Assert a result against numpy within the table's error, or the one given."""
    arrays, _, reference, planned = CASES[name]
    error = planned if error is None else error
    expected = reference(*arrays)
    assert got.shape == expected.shape, f"{name}: shape {got.shape}, expected {expected.shape}"
    worst = float(np.abs(got - expected).max())
    assert worst <= error, f"{name}: error {worst / ULP:.3g} units, allowed {error / ULP:.3g} (seed {SEED})"


def counts(recorder: Recorder) -> dict[tuple[str, str], dict[str, int]]:
    """What every operation and phase counted, without what counted nothing."""
    return {(e.op, e.phase): {k: n for k, n in e.counts.items() if n} for e in recorder.events.values() if e.counts}


# ---- entries: run inside the parties ----------------------------------------------------------------------------


@contextmanager
def no_torch_randomness() -> Iterator[None]:
    """Make every way of torch and numpy's global state to make random numbers raise."""
    forbidden = mock.Mock(side_effect=AssertionError("a generator that is no CSPRNG was used"))
    with ExitStack() as stack:
        for owner, names in (
            (torch, ("randint", "rand", "randn", "randperm", "bernoulli", "normal", "empty_like_random")),
            (torch.Tensor, ("random_", "uniform_", "normal_", "bernoulli_")),
            (np.random, ("rand", "randint", "random")),
        ):
            for name in names:
                if hasattr(owner, name):
                    stack.enter_context(mock.patch.object(owner, name, forbidden))
        yield


Sent = tuple[int, int, "list[Any] | None"]


@contextmanager
def watched_sends(log: list[Sent], dealer: int) -> Iterator[None]:
    """Note what this party sends: destination, bytes, and contents where they go to the dealer."""
    move = Mesh._move

    def noted(mesh: Mesh, sent: dict[int, torch.Tensor], found: dict[int, torch.Tensor]) -> None:
        for to, tensor in sent.items():
            log.append((to, tensor.numel() * tensor.element_size(), tensor.tolist() if to == dealer else None))
        move(mesh, sent, found)

    with mock.patch.object(Mesh, "_move", noted):
        yield


def measure(backend: MpcBackend, names: list[str]) -> dict[str, Any]:
    """Every case in turn: value, our counts, and the bytes of every message to each party."""
    dealer = backend.runtime.parameters.parties
    sent: list[Sent] = []
    results: dict[str, Any] = {"sent": sent, "cases": {}}
    with no_torch_randomness(), watched_sends(sent, dealer):
        for name in names:
            recorder, before = Recorder(), len(sent)
            own = MpcBackend(backend.runtime, recorder)
            output = run_case(own, name)
            value = own.reveal(output, to=1)
            messages = [(dst, size) for dst, size, _ in sent[before:] if dst != dealer]
            results["cases"][name] = (value, counts(recorder), messages)
    return results


def everything(backend: MpcBackend, names: list[str]) -> dict[str, Any]:
    """All that two parties and a dealer are asked in one run."""
    results = measure(backend, names)
    own = MpcBackend(backend.runtime, Recorder())
    with own.recorder.op("more"):
        results["truncation"] = exact_truncation(own)
        with no_torch_randomness():
            results["signs"] = wrong_signs(own)
            results["own"] = crypten_functions(own)
    results["prepared"] = {name: prepared(backend, name) for name in ("max", "series")}
    results["ahead"] = matrix_prepared(backend)
    results["errors"] = refused(backend)
    return results


def ring_samples() -> np.ndarray:
    """2^20 ring elements below 2^62: uniform ones, ones of every magnitude, and the edges."""
    rng = np.random.default_rng(SEED)
    uniform = rng.integers(-(2**62) + 1, 2**62, size=2**19, dtype=np.int64)
    spread = uniform[::2] >> rng.integers(0, 62, size=2**18, dtype=np.int64)
    small = rng.integers(-(2**17), 2**17, size=2**18 - 13, dtype=np.int64)
    edges = [0, 1, -1, 2**16, -(2**16), 2**16 - 1, 1 - 2**16, 2**62 - 1, 1 - 2**62, 2**61, -(2**61), 2**47, -(2**47)]
    return np.concatenate([uniform, spread, small, np.array(edges, dtype=np.int64)])


def exact_truncation(backend: MpcBackend) -> dict[int, tuple[int, int, float]]:
    """Least and largest difference from the rounded-down quotient, and the mean error in units, by bits; one round."""
    runtime, values, found = backend.runtime, ring_samples(), {}
    share, before = runtime.share(values, owner=1), backend.recorder.total("rounds")
    several = truncate(runtime, [share] * 3, (16, 1, 46))
    assert backend.recorder.total("rounds") == before + 1
    for bits, scaled in zip((16, 1, 46), several, strict=True):
        opened = runtime.reveal(scaled, to=None)
        assert opened is not None
        difference = opened.numpy() - (values >> bits)
        rest = (values & ((1 << bits) - 1)) / 2.0**bits
        found[bits] = (int(difference.min()), int(difference.max()), float((difference - rest).mean()))
    return found


def wrong_signs(backend: MpcBackend) -> dict[int, int]:
    """How many comparisons go wrong, by bits: at the edges of what they hold, around 0, and at random."""
    wrong = {}
    for bits in (1, 16, 28, 30, 31, 44, 60):
        edge, rng = 1 << bits, np.random.default_rng([SEED, bits])
        values = [np.array([-edge, 1 - edge, -1, 0, 1, edge - 1]), rng.integers(-edge, edge, size=(3, 100))]
        shares = [backend.runtime.share(value, owner=owner) for owner, value in enumerate(values)]
        opened = [backend.runtime.reveal(sign, to=None) for sign in negative(backend.runtime, shares, bits)]
        wrong[bits] = sum(int((sign.numpy() != (v < 0)).sum()) for sign, v in zip(opened, values, strict=True))  # type: ignore[union-attr]
    return wrong


def crypten_functions(backend: MpcBackend) -> dict[str, np.ndarray]:
    """CrypTen's own tensors run on our dealer and our randomness."""
    from secureattn.backends.crypten.communicator import crypten

    x, y = (crypten.cryptensor(torch.from_numpy(v), src=0) for v in (X, Y))
    made = {"less": x < y, "mul": x * y, "square": x.square(), "relu": x.relu()}
    made["matmul"] = x.matmul(y.transpose(-1, -2))
    return {name: tensor.get_plain_text().numpy() for name, tensor in made.items()}


def prepared(backend: MpcBackend, name: str) -> tuple[Any, int, int]:
    """Deal ahead what a plan says, then run without the dealer."""
    plan = NullRuntime(backend.runtime.parameters, backend.runtime.rank)
    run_case(MpcBackend(plan, Recorder(modelled=True)), name)
    ahead, online = Recorder(), Recorder()
    MpcBackend(backend.runtime, ahead)
    with ahead.phase("offline"):
        backend.runtime.prepare(plan.asked)
    own = MpcBackend(backend.runtime, online)
    value = own.reveal(run_case(own, name), to=None)
    return value, ahead.total("dealer_requests"), online.total("dealer_requests")


def matrix_prepared(backend: MpcBackend) -> tuple[float, Recorder, Recorder]:
    """The largest error of a linear layer dealt ahead, and what preparing and then running it counted."""

    def layer(b: MpcBackend, matrix: Any) -> Any:
        with b.region("layer"):
            return b.input(X).linear(matrix)

    plan = NullRuntime(backend.runtime.parameters, backend.runtime.rank)
    plan.matrices.update(backend.runtime.matrices)  # what was fixed before has its number
    planner = MpcBackend(plan, Recorder(modelled=True))
    layer(planner, planner.matrix(W))
    matrix = MpcBackend(backend.runtime, Recorder()).matrix(W)
    ahead = MpcBackend(backend.runtime, Recorder()).recorder
    backend.runtime.prepare(plan.asked)
    online = MpcBackend(backend.runtime, Recorder())
    value = online.reveal(layer(online, matrix), to=None)
    assert value is not None
    return largest(value - X @ W.T), ahead, online.recorder


def refused(backend: MpcBackend) -> list[str]:
    """What bad operands say; nothing is sent, so the parties stay in step."""
    x = backend.input(np.zeros((2, 3)))
    attempts: list[Callable[[], Any]] = [
        lambda: x + np.zeros(4),
        lambda: x * float("nan"),
        lambda: x * 1e30,
        lambda: x.linear(backend.weight(np.zeros((5, 4)))),
        lambda: x.split_heads(2),
        lambda: x.take(1, 3),
        lambda: x.sum(2),
        lambda: backend.input(np.zeros(2), owner=2),
        lambda: backend.input(np.full(2, 1e30)) if backend.runtime.rank == 1 else x.sum(7),
    ]
    said = []
    for attempt in attempts:
        try:
            attempt()
        except InputError as error:
            said.append(str(error))
    assert len(said) == len(attempts)
    return said


def local_and_dealer(backend: MpcBackend, names: list[str]) -> dict[str, Any]:
    """The cases, and what a run with a dealer that could read everything warns of."""
    results = measure(backend, names)
    results["warning"] = backend.runtime.parameters.warning
    return results


def fails(backend: MpcBackend, directory: str) -> None:
    """Party 1 ends in the way the directory's name says; party 0 goes on until it cannot."""
    rank, how = backend.runtime.rank, Path(directory).name
    (Path(directory) / f"{rank}.pid").write_text(str(os.getpid()))
    x = backend.input(X)
    backend.reveal(x * x, to=None)
    if rank == 1:
        (Path(directory) / "since").write_text(repr(time.time()))
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "raise":
            raise ValueError("a party's own\ntrouble")
        elif how == "protocol":
            raise ProtocolError("the run", ["one", "two"])
        elif how == "unpicklable":
            return lambda: None  # type: ignore[return-value]
        elif how == "hang":
            time.sleep(1000)
    while how != "unpicklable":
        backend.reveal(x * x, to=None)


# ---- values, counts, randomness ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> list[PartyResult]:
    return run_parties(everything, [list(CASES)] * 2, timeout_s=LIMIT_S)


@pytest.mark.parametrize("name", CASES)
def test_value(pair: list[PartyResult], name: str) -> None:
    nobody, value = (result.value["cases"][name][0] for result in pair)
    assert nobody is None
    check(name, value)


def test_check_fails_on_wrong_values() -> None:
    with pytest.raises(AssertionError, match="error"):
        check("add", X + Y + ULP)
    with pytest.raises(AssertionError, match="shape"):
        check("sum", X)


ONE_WAY = ("linear", "fix_weight", "agree", "reveal")
"""Operations whose rounds go to one party or come from one; in all others every party sends to every other."""


def assert_planned(results: list[PartyResult], parameters: MpcParameters) -> None:
    """Planned and counted are equal at every party, operation and phase; so are bytes and messages that were sent."""
    for name in results[0].value["cases"]:
        for rank, result in enumerate(results):
            recorder = Recorder(modelled=True)
            plan = MpcBackend(NullRuntime(parameters, rank), recorder)
            shape = (output := run_case(plan, name)).shape
            plan.reveal(output, to=1)
            _, counted, messages = result.value["cases"][name]
            assert counts(recorder) == counted, f"{name} at party {rank}"
            assert shape == CASES[name][2](*CASES[name][0]).shape
            assert sum(size for _, size in messages) == recorder.total("bytes_sent"), f"{name} at party {rank}"
        one_way = sum(e.counts.get("rounds", 0) for e in recorder.events.values() if e.op in ONE_WAY)
        exchanged = (recorder.total("rounds") - one_way) * parameters.parties
        messages = (exchanged + one_way) * (parameters.parties - 1)
        assert sum(len(result.value["cases"][name][2]) for result in results) == messages, name


def test_plan_equals_run(pair: list[PartyResult]) -> None:
    assert_planned(pair, MpcParameters())


def test_exact_truncation_never_errs_grossly(pair: list[PartyResult]) -> None:
    for result in pair:
        for bits, (least, most, mean) in result.value["truncation"].items():
            assert (least, most) == (0, 1), f"{bits} bits: off by {least} to {most} units"
            assert abs(mean) < 3e-3, f"{bits} bits: mean error {mean} units"  # 0.5/sqrt(2^20) is 5e-4


def test_signs_at_the_edges(pair: list[PartyResult]) -> None:
    for result in pair:
        assert not any(result.value["signs"].values()), f"wrong comparisons by bits: {result.value['signs']}"


def test_crypten_runs_on_our_dealer(pair: list[PartyResult]) -> None:
    own = pair[1].value["own"]
    # CrypTen truncates locally, which errs by a unit, and encodes by cutting off: another, times a factor below 8
    expected = {"less": X < Y, "mul": X * Y, "square": X * X, "relu": np.maximum(X, 0)}
    expected["matmul"] = X @ Y.swapaxes(-1, -2)
    assert own.keys() == expected.keys()
    for name, value in expected.items():
        assert np.abs(own[name] - value).max() <= 8 * ULP, name


def test_dealing_ahead(pair: list[PartyResult]) -> None:
    for result in pair:
        for name, (value, ahead, online) in result.value["prepared"].items():
            check(name, value)
            assert (ahead, online) == (1, 0)


def test_a_linear_layer_dealt_ahead_leaves_the_client_nothing_to_multiply(pair: list[PartyResult]) -> None:
    macs = X.size * len(W)
    for result, before, after in zip(pair, (0, macs), (macs, 0), strict=True):
        error, ahead, online = result.value["ahead"]
        assert error == 0.0
        assert (ahead.total("macs"), online.total("macs")) == (before, after)
        assert (ahead.total("dealer_requests"), online.total("dealer_requests")) == (1, 0)
        assert ahead.events["layer", "deal", "offline"].counts["dealer_macs"] == macs


def test_party_0_sends_its_matrix_masked_and_nothing_of_the_input(pair: list[PartyResult]) -> None:
    owner, client = (result.value["cases"]["linear"][2] for result in pair)
    assert owner == [(1, 8 * W.size), (1, 8 * X.size // X.shape[-1] * len(W))]  # set-up and the result's share
    assert client == [(0, 8 * X.size)]


def test_bad_operands_are_refused(pair: list[PartyResult]) -> None:
    expected = ["broadcast [2, 3] with [4]", "NaN", "scale it down", "[Dout,3]", "2 heads", "index=3", "axis 2"]
    for said, words in zip(pair[1].value["errors"], [*expected, "0 to 1", "1e+30"], strict=True):
        assert words in said
        assert "\n" not in said


def test_dealer_sees_requests_only(pair: list[PartyResult]) -> None:
    to_dealer = [[words for _, _, words in result.value["sent"] if words is not None] for result in pair]
    assert to_dealer[1] == []
    assert len(to_dealer[0]) > 100
    for (count,), headers in zip(to_dealer[0][::2], to_dealer[0][1::2], strict=True):
        assert len(headers) == count
        for words in headers:
            request = Request.parse(torch.tensor(words))
            assert request.kind is not Kind.STOP
            assert request.header().tolist() == words  # nothing rides along


def test_offline_is_apart(pair: list[PartyResult]) -> None:
    counted = pair[0].value["cases"]["max_product"][1]
    assert set(counted) == {
        (op, "online") for op in ("square", "truncate", "less", "mul", "reveal")
    } | {("deal", "offline")}  # fmt: skip
    compared = X.size - X.size // X.shape[-1]
    assert counted["deal", "offline"]["dealer_bytes"] == 8 * X.size + 16 * X.size + (88 + 8) * compared
    assert "dealer_bytes" not in pair[1].value["cases"]["max_product"][1]["deal", "offline"]


def test_a_series_opens_short_words(pair: list[PartyResult]) -> None:
    for name, opened, size in (("series", 4, X.size), ("series_product", 4, X.size), ("series_long", 8, WIDE.size)):
        counted = pair[1].value["cases"][name][1]
        assert counted["series", "online"] == {"rounds": 1, "openings": size, "bytes_sent": opened * size,
                                               "harmonics": size * (1 if name == "series_long" else 3)}  # fmt: skip
        assert ("truncate", "online") not in counted


def test_setup_is_timed(pair: list[PartyResult]) -> None:
    setup = [event for event in pair[0].events if event.phase == "setup" and event.op == "connect"]
    assert len(setup) == 1
    assert setup[0].seconds_self > 0


def test_three_parties() -> None:
    names = ["add", "mul", "cube", "linear", "linear_cube", "inner", "scores", "scores_cut", "mix", "less_near",
             "less_edges", "less_each", "max_product", "mul_public", "combine", "series", "series_product"]  # fmt: skip
    parameters = MpcParameters(parties=3)
    results = run_parties(measure, [names] * 3, parameters, timeout_s=LIMIT_S, trace=True)
    for name in names:
        check(name, results[1].value["cases"][name][0])
    assert_planned(results, parameters)
    owner, client, third = (result.value["cases"]["linear"][2] for result in results)
    opened = (1, 8 * X.size // X.shape[-1] * len(W))
    assert owner == [(1, 8 * W.size), (2, 8 * W.size), opened]
    assert client == [(0, 8 * X.size)]
    assert third == [(0, 8 * X.size), opened]


def test_local_truncation_first_party_dealing_and_public_weights() -> None:
    """Local truncation leaves room for no spare bits: a public factor keeps 16, a series 32 places."""
    errors = dict.fromkeys(["mul", "add_weight", "mul_weight", "linear", "inner", "square", "less_edges"], 0.0)
    errors |= {"max_product": ULP, "mul_row_product": ULP * largest(X)}
    errors["mul_public"] = ULP + 2.0**-18 * largest(X)
    errors["cube"] = ULP * (largest(X) + 1)
    errors["series_product"] = rounding(RIPPLE, 32) + reading(RIPPLE, 2 * 2.0**-28)
    parameters = MpcParameters(dealer="tfp", truncation="local", weights="public")
    results = run_parties(local_and_dealer, [list(errors)] * 2, parameters, timeout_s=LIMIT_S)
    for name, error in errors.items():
        check(name, results[1].value["cases"][name][0], error)
    assert_planned(results, parameters)
    recorded = results[0].value["cases"]
    assert ("truncate", "online") not in recorded["mul"][1]
    assert "rounds" not in recorded["max_product"][1]["truncate", "online"]
    assert "dealer_bytes" not in recorded["mul"][1]["deal", "offline"]
    assert [size for _, size in recorded["linear"][2]] == [8 * X.size // X.shape[-1] * len(W)]  # the result's share
    assert "development" in results[0].value["warning"]


@pytest.mark.parametrize("name", CASES)
def test_every_value_has_room(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    initialise, used = MpcTensor.__init__, []

    def noted(self: MpcTensor, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        used.append(self.places + self.size)

    monkeypatch.setattr(MpcTensor, "__init__", noted)
    for fractional, integer in ((16, 12), (24, 12), (12, 20)):
        for weights in ("shared", "public"):
            parameters = MpcParameters(fractional_bits=fractional, integer_bits=integer, weights=weights)  # type: ignore[arg-type]
            run_case(MpcBackend(NullRuntime(parameters), Recorder(modelled=True)), name)
    assert max(used) <= RING_BITS


# ---- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("kill", EngineError, "party 1 was killed by signal 9 (SIGKILL)"),
        ("raise", EngineError, "party 1 failed: ValueError: a party's own trouble"),
        ("protocol", ProtocolError, "the run: one; two"),
        ("unpicklable", InputError, "party 1 returned what cannot be brought back"),
        ("hang", EngineError, "party 1 did not finish within 15 s; party 0"),
    ],
)
def test_failure_ends_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, error: type[Exception], words: str
) -> None:
    directory = tmp_path / how
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(error) as caught:
        run_parties(fails, [str(directory)] * 2, timeout_s=15.0 if how == "hang" else LIMIT_S)
    assert type(caught.value) is error
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.time() - float((directory / "since").read_text()) < 15.0
    assert_gone(int(file.read_text()) for file in directory.glob("*.pid"))
    assert not list(tmp_path.glob("secureattn-*"))
    if isinstance(caught.value, ProtocolError):
        assert caught.value.violations == ("one", "two")


def test_dead_dealer_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "wait"
    directory.mkdir()
    ended = []

    def progress(text: str) -> None:
        if text == "party 0 started":
            dealer = next(child for child in multiprocessing.active_children() if child.name == "the dealer")
            dealer.kill()
            ended.append(time.time())

    with pytest.raises(EngineError, match="the dealer was killed by signal 9"):
        run_parties(fails, [str(directory)] * 2, timeout_s=LIMIT_S, progress=progress)
    assert time.time() - ended[0] < 15.0
    assert_gone(int(file.read_text()) for file in directory.glob("*.pid"))
    assert not multiprocessing.active_children()


def test_parties_end_with_their_parent(tmp_path: Path) -> None:
    directory = tmp_path / "hang"
    directory.mkdir()
    program = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from secureattn.backends.crypten.launch import run_parties\n"
        "from test_crypten_engine import fails\n"
        f"if __name__ == '__main__': run_parties(fails, [{str(directory)!r}] * 2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(program)
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "TMPDIR": str(tmp_path)})
    deadline = time.time() + LIMIT_S
    while not (directory / "since").exists() and time.time() < deadline:
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    pids = [int(file.read_text()) for file in directory.glob("*.pid")]
    assert len(pids) == 2
    while any(alive(pid) for pid in pids) and time.time() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in pids)
    while list(tmp_path.glob("secureattn-*")) and time.time() < deadline:
        time.sleep(0.1)
    assert not list(tmp_path.glob("secureattn-*"))


def test_bad_calls_start_nothing() -> None:
    with pytest.raises(InputError, match="2 parties need as many arguments, not 1"):
        run_parties(measure, [[]])
    with pytest.raises(InputError, match="cannot be handed"):
        run_parties(measure, [lambda: None, lambda: None])
    assert not multiprocessing.active_children()


def test_unknown_entry_is_refused() -> None:
    with pytest.raises(InputError, match="no_such_module"):
        run_parties("no_such_module:entry", [None, None], timeout_s=LIMIT_S)


def assert_gone(pids: Iterator[int]) -> None:
    assert not [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not collected yet does not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
