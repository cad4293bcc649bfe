"""The plaintext engine: every operation of the interface against numpy, its capabilities, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Array, assert_close

from secureattn.backends.plaintext import PlaintextBackend, PlaintextTensor
from secureattn.errors import CapabilityError, InputError
from secureattn.events import Recorder
from secureattn.polynomial import Polynomial
from secureattn.tensor import Capability

BACKEND = PlaintextBackend()
RNG = np.random.default_rng(7)
TOKENS = RNG.normal(size=(2, 5, 6))  # [B,S,D]
OTHER = RNG.normal(size=(2, 5, 6))
HEADS = RNG.normal(size=(2, 3, 5, 4))  # [B,H,S,Dh]
KEYS = RNG.normal(size=(2, 3, 5, 4))
WEIGHT, BIAS, POSITIONS = RNG.normal(size=(4, 6)), RNG.normal(size=4), RNG.normal(size=(5, 4))
COLUMN = RNG.normal(size=(2, 5, 1))


def split(x: Array, heads: int) -> Array:
    """``[B,S,H·Dh]`` → ``[B,H,S,Dh]``, a head at a time."""
    return np.stack(np.split(x, heads, axis=-1), axis=1)


# Operation → the library's, numpy's, and the arguments.
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Array], tuple[Array, ...]]] = {
    "add": (lambda x, y: x + y, np.add, (TOKENS, OTHER)),
    "add a column": (lambda x, y: x + y, np.add, (TOKENS, COLUMN)),
    "add a number": (lambda x: x + 0.3, lambda x: x + 0.3, (TOKENS,)),
    "number plus": (lambda x: 0.3 + x, lambda x: 0.3 + x, (TOKENS,)),
    "add an array": (lambda x: x + OTHER[0], lambda x: x + OTHER[0], (TOKENS,)),
    "subtract": (lambda x, y: x - y, np.subtract, (TOKENS, OTHER)),
    "subtract a number": (lambda x: x - 2, lambda x: x - 2, (TOKENS,)),
    "number minus": (lambda x: 1.5 - x, lambda x: 1.5 - x, (TOKENS,)),
    "subtract an array": (lambda x: x - OTHER, lambda x: x - OTHER, (TOKENS,)),
    "multiply": (lambda x, y: x * y, np.multiply, (TOKENS, OTHER)),
    "multiply by a column": (lambda x, y: x * y, np.multiply, (TOKENS, COLUMN)),
    "multiply by a number": (lambda x: x * -0.5, lambda x: x * -0.5, (TOKENS,)),
    "number times": (lambda x: 3 * x, lambda x: 3 * x, (TOKENS,)),
    "multiply by an array": (lambda x: x * OTHER[:, :, :1], lambda x: x * OTHER[:, :, :1], (TOKENS,)),
    "negate": (lambda x: -x, np.negative, (TOKENS,)),
    "square": (lambda x: x.square(), np.square, (TOKENS,)),
    "linear": (
        lambda x: x.linear(BACKEND.weight(WEIGHT), BACKEND.weight(BIAS)),
        lambda x: np.einsum("bsi,oi->bso", x, WEIGHT) + BIAS,
        (TOKENS,),
    ),
    "linear, by a matrix": (
        lambda x: x.linear(BACKEND.matrix(WEIGHT), BACKEND.weight(BIAS)),
        lambda x: np.einsum("bsi,oi->bso", x, WEIGHT) + BIAS,
        (TOKENS,),
    ),
    "linear, no bias": (
        lambda x: x.linear(BACKEND.weight(WEIGHT)),
        lambda x: np.einsum("bsi,oi->bso", x, WEIGHT),
        (TOKENS,),
    ),
    "linear, a bias per token": (
        lambda x: x.linear(BACKEND.weight(WEIGHT), BACKEND.weight(POSITIONS)),
        lambda x: np.einsum("bsi,oi->bso", x, WEIGHT) + POSITIONS,
        (TOKENS,),
    ),
    "inner": (lambda x, y: x.inner(y), lambda x, y: np.einsum("bsd,bsd->bs", x, y)[..., None], (TOKENS, OTHER)),
    "scores": (lambda q, k: q.scores(k), lambda q, k: np.einsum("bhsd,bhtd->bhst", q, k), (HEADS, KEYS)),
    "mix": (
        lambda a, v: a.mix(v),
        lambda a, v: np.einsum("bhst,bhtd->bhsd", a, v),
        (np.einsum("bhsd,bhtd->bhst", HEADS, KEYS), KEYS),
    ),
    "sum over tokens": (lambda x: x.sum(1), lambda x: x.sum(1, keepdims=True), (TOKENS,)),
    "sum over the last axis": (lambda x: x.sum(-1), lambda x: x.sum(-1, keepdims=True), (TOKENS,)),
    "mean": (lambda x: x.mean(-1), lambda x: x.mean(-1, keepdims=True), (TOKENS,)),
    "split heads": (lambda x: x.split_heads(3), lambda x: split(x, 3), (TOKENS,)),
    "merge heads": (lambda x: x.merge_heads(), lambda x: np.concatenate(list(x.swapaxes(0, 1)), -1), (HEADS,)),
    "split and merge": (lambda x: x.split_heads(2).merge_heads(), lambda x: x, (TOKENS,)),
    "take one": (lambda x: x.take(1, 3), lambda x: x[:, 3:4], (TOKENS,)),
    "take the first": (lambda x: x.take(-1, 0), lambda x: x[..., :1], (TOKENS,)),
    "take the last": (lambda x: x.take(1, -1), lambda x: x[:, -1:], (TOKENS,)),
    "take the last but one": (lambda x: x.take(1, -2), lambda x: x[:, -2:-1], (TOKENS,)),
    "take a slice": (lambda x: x.take(-1, slice(2, 5)), lambda x: x[..., 2:5], (TOKENS,)),
    "combine": (
        lambda x, y: x.combine([(0.5, x), (-2.0, y)], [(x, y), (x, x)], 0.25),
        lambda x, y: 0.5 * x - 2 * y + x * y + x * x + 0.25,
        (TOKENS, OTHER),
    ),
    "combine terms alone": (lambda x, y: x.combine([(0.5, y)]), lambda x, y: 0.5 * y, (TOKENS, OTHER)),
    "combine products alone": (lambda x, y: x.combine(products=[(x, y)]), np.multiply, (TOKENS, OTHER)),
    "polynomial": (
        lambda x: x.polynomial(Polynomial((0.1, 0.2, 0.3, 0.4), (-4.0, 4.0), "monomial")),
        lambda x: 0.1 + 0.2 * x + 0.3 * x**2 + 0.4 * x**3,
        (TOKENS,),
    ),
    "less": (lambda x, y: x.less(y), lambda x, y: (x < y).astype(float), (TOKENS, OTHER)),
    "less than a number": (lambda x: x.less(0.1), lambda x: (x < 0.1).astype(float), (TOKENS,)),
    "less than each": (
        lambda x, y: sum(2.0**i * bit for i, bit in enumerate(x.less_each([y, 0.1, OTHER[:, :, :1]]))),
        lambda x, y: (x < y) + 2.0 * (x < 0.1) + 4.0 * (x < OTHER[:, :, :1]),
        (TOKENS, OTHER),
    ),
    "less than itself": (lambda x: x.less(x), np.zeros_like, (TOKENS,)),
    "max": (lambda x: x.max(-1), lambda x: x.max(-1, keepdims=True), (TOKENS,)),
    "max over tokens": (lambda x: x.max(1), lambda x: x.max(1, keepdims=True), (TOKENS,)),
    "refresh": (lambda x: x.refresh("here"), lambda x: x, (TOKENS,)),
}


@pytest.mark.parametrize("op", CASES)
def test_operation_equals_numpys(op: str) -> None:
    ours, numpys, arguments = CASES[op]
    y = ours(*(BACKEND.input(x) for x in arguments))
    wanted = numpys(*arguments)
    assert isinstance(y, PlaintextTensor)
    assert y.shape == wanted.shape
    assert_close(BACKEND.reveal(y), wanted, 2e-14, "the order of sums of up to 6 products of size about 10")


@pytest.mark.parametrize("op", [op for op in CASES if "less" not in op])
def test_gradients_flow_through(op: str) -> None:
    ours, _, arguments = CASES[op]
    tensors = [torch.tensor(x, requires_grad=True) for x in arguments]
    ours(*(BACKEND.input(t) for t in tensors)).data.square().sum().backward()
    assert any(t.grad is not None and torch.any(t.grad != 0) for t in tensors)


def test_weights_keep_their_gradient() -> None:
    weight = torch.tensor(WEIGHT, requires_grad=True)
    BACKEND.input(TOKENS).linear(BACKEND.weight(weight)).data.sum().backward()
    assert weight.grad is not None
    assert_close(weight.grad, np.tile(TOKENS.sum((0, 1)), (4, 1)), 1e-13, "a sum of ten tokens")


# ---- what it can and cannot do --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_input_that_is_not_finite_is_refused(value: float) -> None:
    data = TOKENS.copy()
    data[1, 2, 3] = value
    with pytest.raises(InputError, match="not finite"):
        BACKEND.input(data)
    with pytest.raises(InputError, match="not finite"):
        BACKEND.input(torch.tensor(data, dtype=torch.float32))


def test_a_number_too_large_for_the_type_is_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        PlaintextBackend(dtype=torch.float32).input(np.array([1e300]))


def test_exact_needs_exact_mode() -> None:
    exact = PlaintextBackend(exact=True)
    assert Capability.EXACT in exact.capabilities
    assert Capability.EXACT not in BACKEND.capabilities
    assert {Capability.COMPARE, Capability.LOOKUP} <= BACKEND.capabilities & exact.capabilities
    with BACKEND.recorder.region("layer.0"), BACKEND.recorder.region("ffn"):
        with pytest.raises(CapabilityError) as caught:
            BACKEND.input(TOKENS).exact("gelu", torch.nn.functional.gelu)
    assert str(caught.value) == (
        "gelu needs true functions instead of approximations, which the plaintext engine lacks, at layer.0/ffn; "
        "use the plaintext engine's exact mode"
    )
    assert_close(exact.reveal(exact.input(TOKENS).exact("tanh", torch.tanh)), np.tanh(TOKENS), 1e-15, "torch's own")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_has_the_backends_type(dtype: torch.dtype) -> None:
    backend = PlaintextBackend(dtype=dtype)
    x = backend.input(TOKENS.astype(np.float32))
    for y in (x, x + OTHER, x * OTHER, x.less(OTHER), x.max(-1), x.linear(backend.weight(WEIGHT))):
        assert y.data.dtype == dtype
    assert backend.reveal(x).dtype == np.float64


def test_observers_see_every_site_by_its_path() -> None:
    backend = PlaintextBackend()
    seen: list[tuple[str, tuple[int, ...]]] = []
    backend.observers.append(lambda site, value: seen.append((site, tuple(value.shape))))
    x = backend.input(TOKENS)
    with backend.region("layer.0"), backend.region("ffn"):
        assert x.observe("gelu") is x
        x.sum(1).refresh("input")
    assert seen == [("layer.0/ffn/gelu", (2, 5, 6)), ("layer.0/ffn/input", (2, 1, 6))]


def test_operations_are_recorded_where_they_ran() -> None:
    recorder = Recorder()
    backend = PlaintextBackend(recorder=recorder)
    x = backend.input(TOKENS)
    with backend.region("embed"):
        _ = (x * x) + x * 2.0
    calls = {(region, op): event.calls for (region, op, _), event in recorder.events.items()}
    assert calls[("embed", "multiply")] == 2
    assert calls[("embed", "add")] == 1


@pytest.mark.filterwarnings("error")
def test_an_array_that_may_not_be_written_is_a_factor() -> None:
    factor = np.ones(6)
    factor.setflags(write=False)
    assert np.array_equal(BACKEND.reveal(BACKEND.input(TOKENS) * factor), TOKENS)
