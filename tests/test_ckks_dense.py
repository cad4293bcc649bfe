"""The dense layout: where every value lies, every operation on any shape, what blocks cost, and whole models."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers import assert_close, eight_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import PROGRAMS, REFRESH_POINT, Bound, clear, counts, fitted
from safetensors.numpy import load_file
from test_variants import NORMS, ODE, SAMPLES, TOKENS, chosen, inputs_of, shipped, weights_of

from secureattn.approx.attention import VARIANTS
from secureattn.approx.attention.power_softmax import power_softmax
from secureattn.approx.attention.softmax import softmax
from secureattn.approx.layernorm import rmsnorm
from secureattn.backends.ckks.cipher import Cipher, OutOfLevels
from secureattn.backends.ckks.dense import DenseTensor
from secureattn.backends.ckks.dense_backend import DenseBackend
from secureattn.backends.ckks.dense_layout import DenseLayout, dense_pack, dense_unpack
from secureattn.backends.ckks.machine import Machine
from secureattn.backends.ckks.parameters import CkksParameters, chain, most_levels
from secureattn.backends.ckks.roles import MaskedRefresh
from secureattn.backends.symbolic import SymbolicDense, Unlimited
from secureattn.errors import InputError, PlanError
from secureattn.events import Recorder
from secureattn.nn import parameters as nn_parameters
from secureattn.nn.config import ModelConfig
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import Folded, fold
from secureattn.nn.model import Model, load_model
from secureattn.plan import Plan
from secureattn.resources import find
from secureattn.runs import clear_run
from secureattn.train.ranges import calibrate

SEED = 20250613
EXACT = Bound(1e-10, "float64 rounds at every step of a longer formula")
CKKS = [name for name, variant in VARIANTS.items() if not variant.needs]
LONG = ("softplus_l1_reweighted", ODE, "linear_elu", "mala", "kernelized_rpe", "relu", "relu_scaled")
"""Variants whose functions take seconds to choose."""
REFRESHED = [name for name in CKKS if name not in (*LONG[:2], *LONG[5:], "power_softmax")]
"""Variants whose longest way between two refresh points fits N = 2^14."""
SLOW = {False: (), True: pytest.mark.slow}

Array = np.ndarray
Run = Callable[..., Any]

needs_tenseal = pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="TenSEAL is not installed")


def values(*shape: int, salt: int = 0, scale: float = 1.0) -> Array:
    """Uniform in ±scale."""
    return np.random.default_rng([SEED, salt, *shape]).uniform(-scale, scale, size=shape)


# ---- an engine without noise ------------------------------------------------------------------------------------


class ClearDevice:
    """Slots in float64: shows what the layout computes, exactly."""

    def encode(self, slots: Array, level: int, scale: float) -> Array:
        return slots

    def add(self, a: Array, b: Array) -> Array:
        return a + b

    accumulate = add_constant = add_vector = add

    def negate(self, a: Array) -> Array:
        return -a

    def multiply(self, a: Array, b: Array, *scale: float) -> Array:
        return a * b

    multiply_encoded = multiply_constant = multiply

    def square(self, a: Array) -> Array:
        return a * a

    def rotate(self, a: Array, steps: int) -> Array:
        return np.roll(a, -steps)

    def relinearize(self, a: Array, *level: int) -> Array:
        return a

    rescale = drop_to = rerandomise = relinearize


def small(slots: int) -> CkksParameters:
    """As many levels as anything needs on a ring as small as one likes."""
    return cast(CkksParameters, Unlimited(2 * slots))


def clear_backend(slots: int, **sizes: Any) -> DenseBackend:
    return DenseBackend(Machine(small(slots), cast(Any, ClearDevice()), Recorder()), **sizes)


def entered(backend: DenseBackend, x: Array) -> DenseTensor:
    """``[B,S,W]`` as an input."""
    (slots,) = dense_pack(x, backend.layout)
    parameters = backend.machine.parameters
    return backend.tensor([Cipher(parameters.levels, parameters.scales[-1], 2, slots)], x.shape)


def read(x: DenseTensor, slots: list[Array], error: float = 1e-9) -> Array:
    """The value, and that every slot holds it: by the layout's formula alone, slot by slot."""
    layout, (b, s) = x.backend.layout, (x.shape[0], x.backend.layout.sequence)
    heads = x.shape[1] if len(x.shape) == 4 else layout.heads if x.block[-1] % layout.heads == 0 else 1
    width = 1 if x.diagonals else x.block[-1] if len(x.shape) == 4 else x.block[-1] // heads
    h_all, d_all = 1 << (heads - 1).bit_length(), 1 << (width - 1).bit_length()
    copies = layout.slots // (d_all * h_all * layout.tokens * layout.batch)
    d, c, h, t, q = np.unravel_index(
        np.arange(layout.slots), (d_all, copies, h_all, layout.tokens, layout.batch), order="C"
    )
    d, h, q = np.minimum(d, width - 1), np.minimum(h, heads - 1), np.where(q < b, q, 0)
    out = np.full(x.shape, np.nan)
    for part, held in enumerate(slots):
        if x.diagonals:
            key = (t + part * x.offsets + c % x.offsets) % layout.tokens
            at: tuple[Any, ...] = (q, h, np.minimum(t, s - 1), np.minimum(key, s - 1))
        elif len(x.shape) == 4:
            at = (q, h, np.minimum(t, x.shape[2] - 1), part * width + d)
        else:
            at = (q, np.minimum(t, x.shape[1] - 1), part * x.block[-1] + h * width + d)
        out[at] = held
        spread = np.abs(out[at] - held).max()
        assert spread <= error * max(1.0, np.abs(held).max()), f"part {part}: a slot differs by {spread:.2e}"
    return out


def held(x: DenseTensor) -> list[Array]:
    return [part.data for part in x.parts]


# ---- where values lie -------------------------------------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn) -> tuple[DenseLayout, tuple[int, int, int]]:
    """A layout and the shape of a tensor that it holds."""
    tokens, heads, width, batch = (draw(st.integers(1, n)) for n in (8, 3, 5, 4))
    padded = 1 << (batch - 1).bit_length()
    slots = 8 * 4 * 8 * padded << draw(st.integers(0, 2))
    return DenseLayout(slots, tokens, heads, padded), (batch, tokens, heads * width)


@settings(max_examples=60, deadline=None)
@given(layouts())
def test_unpack_undoes_pack(case: tuple[DenseLayout, tuple[int, int, int]]) -> None:
    layout, shape = case
    x = values(*shape)
    (slots,) = dense_pack(x, layout)
    assert slots.shape == (layout.slots,)
    assert np.array_equal(dense_unpack([slots], shape, layout), x)
    b, s, _ = shape
    by_head = x.reshape(b, s, layout.heads, -1).transpose(0, 2, 1, 3)
    assert np.array_equal(dense_unpack([slots], by_head.shape, layout), by_head)


def test_a_slot_by_hand() -> None:
    """2 heads of 2 places, 3 tokens padded to 4, 2 queries, 4 copies: slot = (((d·4 + c)·2 + h)·4 + t)·2 + b."""
    x = values(2, 3, 4)
    (slots,) = dense_pack(x, DenseLayout(2 * 4 * 2 * 4 * 2, 3, 2, 2))
    assert slots[(((1 * 4 + 3) * 2 + 0) * 4 + 2) * 2 + 1] == x[1, 2, 1]
    assert slots[(((0 * 4 + 2) * 2 + 1) * 4 + 0) * 2 + 0] == x[0, 0, 2]
    assert slots[(((1 * 4 + 0) * 2 + 1) * 4 + 3) * 2 + 1] == x[1, 2, 3]  # a padded token


def test_more_queries_than_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"^a ciphertext holds 1 queries of 3 tokens, got 2 of 3; split them"):
        dense_pack(values(2, 3, 4), DenseLayout(64, 3))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(PlanError, match=r"needs 128 slots for 1 × 4 tokens of 20 features, .* has 64; use the batch"):
        clear_backend(64, tokens=4, features=20)


@pytest.mark.parametrize(("queries", "batch"), [(1, 1), (2, 2), (3, 4), (100, 8)])
def test_as_many_queries_as_are_there_and_fit(queries: int, batch: int) -> None:
    assert clear_backend(256, tokens=4, features=8, heads=2, queries=queries).batch == batch


# ---- every operation on any shape -------------------------------------------------------------------------------

RECIPROCAL = fitted(np.reciprocal, 3, 1.0, 3.0)
RSQRT = fitted(lambda x: x**-0.5, 3, 0.5, 2.5)
NARROW = fitted(np.reciprocal, 7, 0.9, 1.1)
EXP = fitted(np.exp, 3, -1.0, 1.0)


class Shapes:
    """One shape of program: its inputs, weights and public values, and numpy's view of heads."""

    def __init__(self, queries: int, tokens: int, heads: int, width: int) -> None:
        self.queries, self.tokens, self.heads = queries, tokens, heads
        self.features = heads * width
        self.x = values(queries, tokens, self.features, scale=0.7)
        self.y = values(queries, tokens, self.features, salt=1, scale=0.7)
        self.square = values(heads, tokens, tokens, salt=2)
        self.places = values(tokens, self.features, salt=3)
        self.three = values(3 * self.features, self.features, salt=4)
        self.outputs = values(5, self.features, salt=5)
        self.two = values(self.features, 2, salt=6)

    def by_head(self, x: Array) -> Array:
        b, s, d = x.shape
        return x.reshape(b, s, self.heads, d // self.heads).transpose(0, 2, 1, 3)

    def merged(self, x: Array) -> Array:
        b, h, s, d = x.shape
        return x.transpose(0, 2, 1, 3).reshape(b, s, h * d)

    def scores(self) -> Array:
        return np.einsum("bhsd,bhtd->bhst", self.by_head(self.x), self.by_head(self.y))

    def run_scores(self, x: Any, y: Any) -> Any:
        return x.split_heads(self.heads).scores(y.split_heads(self.heads))

    def heads_of(self, x: Any) -> Any:
        return x.split_heads(self.heads)


def run_blocks(c: Shapes, b: Any, x: Any) -> Any:
    """Queries, keys and values from one layer, each another part of it."""
    made = x.linear(b.weight(c.three), b.weight(c.three[:, 0]))
    q, k, v = (made.take(-1, slice(i * c.features, (i + 1) * c.features)) for i in range(3))
    return q * 1.5 + k - v


def blocks(c: Shapes) -> Array:
    q, k, v = np.split(c.x @ c.three.T + c.three[:, 0], 3, axis=-1)
    return 1.5 * q + k - v


def row_mean(x: Array) -> Array:
    return x.mean(-1, keepdims=True)


def run_softmax(c: Shapes, x: Any, y: Any) -> Any:
    made = softmax(
        c.run_scores(x, y), exp=lambda t: t.polynomial(EXP), reciprocal=lambda t: t * (1 / c.tokens), mask=c.square > 0
    )
    return made.weights().mix(c.heads_of(y)).merge_heads()


def softmax_of(c: Shapes) -> Array:
    shown = (c.square > 0) * 1.0
    visible = np.maximum(shown.sum(-1, keepdims=True), 1.0)
    shift = (c.scores() * shown).sum(-1, keepdims=True) * eight_bits(1 / visible)
    e = clear(EXP)((c.scores() - shift) * shown) * shown * 2.0 ** -np.floor(np.log2(visible))
    total = e.sum(-1, keepdims=True) + 1 - shown.max(-1, keepdims=True)
    return c.merged((e * total / c.tokens) @ c.by_head(c.y))


def run_power(c: Shapes, x: Any, y: Any) -> Any:
    made = power_softmax(c.run_scores(x, y), p=2, epsilon=1.0, reciprocal=lambda t: t.polynomial(RECIPROCAL))
    return made.numerator.mix(c.heads_of(y)) * made.factor


def power_of(c: Shapes) -> Array:
    squares = c.scores() ** 2
    return squares @ c.by_head(c.y) * clear(RECIPROCAL)(squares.sum(-1, keepdims=True) + 1)


Case = tuple[Callable[[Shapes, Any, Any, Any], Any], Callable[[Shapes], Array]]
CASES: dict[str, Case] = {
    "linear": (
        lambda c, b, x, y: x.linear(b.weight(c.outputs), b.weight(c.outputs[:, 0])),
        lambda c: c.x @ c.outputs.T + c.outputs[:, 0],
    ),
    "linear_places": (
        lambda c, b, x, y: x.linear(b.weight(c.three), b.weight(np.tile(c.places, 3))),
        lambda c: c.x @ c.three.T + np.tile(c.places, 3),
    ),
    "linear_blocks": (lambda c, b, x, y: run_blocks(c, b, x), blocks),
    "linear_of_blocks": (
        lambda c, b, x, y: x.linear(b.weight(c.three)).linear(b.weight(c.three.T)),
        lambda c: c.x @ c.three.T @ c.three,
    ),
    "linear_down_and_up": (
        lambda c, b, x, y: x.linear(b.weight(c.outputs[:2])).linear(b.weight(c.two)),
        lambda c: c.x @ c.outputs[:2].T @ c.two.T,
    ),
    "linear_one_output": (
        lambda c, b, x, y: x.linear(b.weight(c.outputs[:1]), b.weight(c.outputs[0, :1])) * y,
        lambda c: (c.x @ c.outputs[:1].T + c.outputs[0, 0]) * c.y,
    ),
    "linear_one_input": (
        lambda c, b, x, y: x.sum(-1).linear(b.weight(c.outputs[:, :1])),
        lambda c: c.x.sum(-1, keepdims=True) @ c.outputs[:, :1].T,
    ),
    "linear_heads": (
        lambda c, b, x, y: c.heads_of(x).linear(b.weight(c.outputs[:3, : c.features // c.heads])),
        lambda c: c.by_head(c.x) @ c.outputs[:3, : c.features // c.heads].T,
    ),
    "linear_zero": (
        lambda c, b, x, y: x.linear(b.weight(0 * c.three), b.weight(c.three[:, 0])),
        lambda c: np.broadcast_to(c.three[:, 0], (*c.x.shape[:2], 3 * c.features)),
    ),
    "linear_summed": (
        lambda c, b, x, y: x.linear(b.weight(c.three)).sum(-1),
        lambda c: (c.x @ c.three.T).sum(-1, keepdims=True),
    ),
    "take_features": (
        lambda c, b, x, y: x.take(-1, slice(c.features // 2, c.features)),
        lambda c: c.x[..., c.features // 2 :],
    ),
    "take_feature": (lambda c, b, x, y: x.take(-1, -1) * y, lambda c: c.x[..., -1:] * c.y),
    "take_token": (lambda c, b, x, y: x.take(1, -1) + y, lambda c: c.x[:, -1:] + c.y),
    "sum_tokens": (lambda c, b, x, y: x.sum(1), lambda c: c.x.sum(1, keepdims=True)),
    "mean_tokens": (
        lambda c, b, x, y: c.heads_of(x) - c.heads_of(x).mean(-2),
        lambda c: c.by_head(c.x) - c.by_head(c.x).mean(-2, keepdims=True),
    ),
    "sum_features": (lambda c, b, x, y: x.sum(-1) * y, lambda c: c.x.sum(-1, keepdims=True) * c.y),
    "bias_then_sum": (
        lambda c, b, x, y: (x + c.places + 0.5).mean(-1),
        lambda c: row_mean(c.x + c.places + 0.5),
    ),
    "sum_of_heads": (
        lambda c, b, x, y: c.heads_of(x).sum(-1) * c.heads_of(y),
        lambda c: c.by_head(c.x).sum(-1, keepdims=True) * c.by_head(c.y),
    ),
    "inner": (lambda c, b, x, y: x.inner(y), lambda c: (c.x * c.y).sum(-1, keepdims=True)),
    "inner_heads": (
        lambda c, b, x, y: c.heads_of(x).inner(c.heads_of(x)).inner(c.heads_of(y).sum(-1)),
        lambda c: (c.by_head(c.x) ** 2).sum(-1, keepdims=True) * c.by_head(c.y).sum(-1, keepdims=True),
    ),
    "public": (
        lambda c, b, x, y: x * b.weight(c.places) - c.places * 3 + c.places[0] * y,
        lambda c: c.x * c.places - c.places * 3 + c.places[0] * c.y,
    ),
    "combine": (
        lambda c, b, x, y: x.combine([(0.5, x), (3, x.sum(-1))], [(x * y, y), (x, x)], 0.25),
        lambda c: 0.5 * c.x + 3 * c.x.sum(-1, keepdims=True) + c.x * c.y * c.y + c.x**2 + 0.25,
    ),
    # 0 lies ten times its width outside this domain: what is padded must not
    "far_from_zero": (
        lambda c, b, x, y: (x * 0.1 + 1.0).polynomial(NARROW).sum(1),
        lambda c: clear(NARROW)(0.1 * c.x + 1.0).sum(1, keepdims=True),
    ),
    "scores": (lambda c, b, x, y: c.run_scores(x, y), lambda c: c.scores()),
    "scores_sum": (
        lambda c, b, x, y: c.run_scores(x, y).sum(-1) * c.heads_of(y),
        lambda c: c.scores().sum(-1, keepdims=True) * c.by_head(c.y),
    ),
    "scores_sum_twice": (
        lambda c, b, x, y: c.run_scores(x, y).sum(-1).sum(-1),
        lambda c: c.scores().sum(-1, keepdims=True),
    ),
    "scores_public": (
        lambda c, b, x, y: c.run_scores(x, y) * b.weight(c.square) + c.square[:, :1] - c.square[:, :, :1] + 2.0,
        lambda c: c.scores() * c.square + c.square[:, :1] - c.square[:, :, :1] + 2.0,
    ),
    "scores_inner": (
        lambda c, b, x, y: (s := c.run_scores(x, y)).inner(s),
        lambda c: (c.scores() ** 2).sum(-1, keepdims=True),
    ),
    "scores_mixed": (
        lambda c, b, x, y: c.run_scores(x, y).mix(c.heads_of(y)).merge_heads(),
        lambda c: c.merged(c.scores() @ c.by_head(c.y)),
    ),
    "scores_mixed_deeper_values": (
        lambda c, b, x, y: c.run_scores(x, y).mix(c.heads_of(y.square().square().square())),
        lambda c: c.scores() @ c.by_head(c.y**8),
    ),
    "per_key": (
        lambda c, b, x, y: (c.heads_of(x).sum(-1).per_key() * c.run_scores(x, y) + c.heads_of(y).take(-1, 0)).sum(-1),
        lambda c: (c.by_head(c.x).sum(-1)[:, :, None] * c.scores() + c.by_head(c.y)[..., :1]).sum(-1, keepdims=True),
    ),
    "per_key_mixed": (
        lambda c, b, x, y: (c.heads_of(x).take(-1, 0).per_key() * c.square).mix(c.heads_of(y)),
        lambda c: (c.by_head(c.x)[..., 0][:, :, None] * c.square) @ c.by_head(c.y),
    ),
    "linear_attention": (
        lambda c, b, x, y: (lambda pair: pair[0] * pair[1])(
            c.heads_of(x).linear_attention(c.heads_of(y), c.heads_of(y), b.weight(c.square))
        ),
        lambda c: (w := c.scores() * c.square) @ c.by_head(c.y) * w.sum(-1, keepdims=True),
    ),
    "softmax": (lambda c, b, x, y: run_softmax(c, x, y), softmax_of),
    "power_softmax": (lambda c, b, x, y: run_power(c, x, y), power_of),
    "rmsnorm": (
        lambda c, b, x, y: rmsnorm(x, inverse_rms=lambda t: (t + 0.5).polynomial(RSQRT)).sum(1),
        lambda c: (c.x * clear(RSQRT)((c.x**2).sum(-1, keepdims=True) + 0.5)).sum(1, keepdims=True),
    ),
}


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 8), st.integers(1, 3), st.integers(1, 5), st.integers(0, 3))
def test_any_shape(name: str, queries: int, tokens: int, heads: int, width: int, room: int) -> None:
    """From one copy of the widest tensor, with scores in several ciphertexts, to more copies than tokens."""
    run, expected = CASES[name]
    c = Shapes(queries, tokens, heads, width)
    widest = max(3, heads * width) if name == "linear_heads" else max(5, heads * width)
    slots = 1
    while True:  # the least that holds the program
        with_room = slots << room
        try:
            backend = clear_backend(slots, tokens=tokens, features=widest, heads=heads, queries=queries)
            DenseLayout(slots, tokens, heads, backend.batch).axes((1, heads, tokens, max(3, width)))
            if backend.batch >= queries:
                break
        except PlanError:
            pass
        slots *= 2
    backend = clear_backend(with_room, tokens=tokens, features=widest, heads=heads, queries=queries)
    with backend.recorder.phase("online"):
        out = run(c, backend, entered(backend, c.x), entered(backend, c.y))
    wanted = expected(c)
    assert_close(read(out, held(out)), wanted, EXACT.error * max(1.0, np.abs(wanted).max()), EXACT.reason)


@pytest.mark.parametrize("slot", [3, 100, 255])
def test_a_wrong_slot_is_seen(slot: int) -> None:
    """What the property rests on, in a slot that no one would read."""
    backend = clear_backend(256, tokens=3, features=6, heads=2)
    x = entered(backend, values(1, 3, 6))
    assert np.array_equal(read(x, held(x)), values(1, 3, 6))
    (spoilt,) = (slots.copy() for slots in held(x))
    spoilt[slot] += 1e-6
    with pytest.raises(AssertionError, match="a slot differs"):
        read(x, [spoilt])


# ---- what is refused --------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "features_and_scores": (
        lambda b, x: x.split_heads(2).scores(x.split_heads(2)) + x.split_heads(2),
        "the dense layout cannot join scores and features elementwise, the shapes are",
    ),
    "widths": (lambda b, x: x + x.take(-1, slice(0, 3)), "shapes [[1, 4, 6], [1, 4, 3]] do not broadcast"),
    "other_heads": (lambda b, x: x.split_heads(3), "the dense layout has 2 heads of one block of features"),
    "heads_of_blocks": (
        lambda b, x: x.linear(b.weight(values(18, 6))).split_heads(2),
        "the dense layout has 2 heads of one block of features, cannot split [1, 4, 18] in 3 blocks into 2",
    ),
    "several_tokens": (lambda b, x: x.take(1, slice(0, 2)), "the dense layout cannot take slice(0, 2, None) of axis 1"),
    "sum_of_queries": (lambda b, x: x.sum(0), "the dense layout has no sum over axis 0 of [1, 4, 6]"),
    "linear_of_scores": (
        lambda b, x: x.split_heads(2).scores(x.split_heads(2)).linear(b.weight(values(3, 4))),
        "linear needs features and a weight [Dout,Din], got [1, 2, 4, 4] and [3, 4]",
    ),
    "linear_width": (lambda b, x: x.linear(b.weight(values(3, 4))), "linear needs features and a weight [Dout,Din]"),
    "inner_widths": (lambda b, x: x.inner(x.take(-1, 0)), "inner needs equal widths, got [1, 4, 6] and [1, 4, 1]"),
    "public_by_query": (lambda b, x: x + values(2, 4, 6), "a public value of shape [2, 4, 6] does not fit [1, 4, 6]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name: str) -> None:
    run, said = REFUSED[name]
    backend = SymbolicDense(small(512), tokens=4, features=18, heads=2)
    with backend.recorder.phase("online"), pytest.raises(InputError) as caught:
        run(backend, backend.input((1, 4, 6)))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("run", "what", "needed"),
    [
        (lambda b, x: x * values(6), "a product with a public vector", 1),
        (lambda b, x: x.linear(b.weight(values(3, 6))), "a linear layer", 1),
        (lambda b, x: x.split_heads(2).scores(x.split_heads(2)), "a shift of keys or values", 1),
        (lambda b, x: x.sum(1), "a product with a public vector", 1),
        (lambda b, x: x.polynomial(EXP), "a polynomial of degree 3", 2),
    ],
)
def test_levels_that_run_out_are_reported_with_the_place(run: Run, what: str, needed: int) -> None:
    backend = SymbolicDense(chain(1 << 13, 1), tokens=4, features=6, heads=2)
    with backend.recorder.phase("online"):
        x = backend.input((1, 4, 6)).square()
        with backend.region("layer.0"), pytest.raises(OutOfLevels) as caught:
            run(backend, x)
    assert (caught.value.what, caught.value.needed, caught.value.left) == (what, needed, 0)
    assert caught.value.region == "layer.0"


def test_a_refresh_that_the_protocol_forbids() -> None:
    backend = SymbolicDense(chain(1 << 13, 1), tokens=4, features=6, schedule={"a/point"}, refresh=False)
    with backend.recorder.phase("online"), backend.region("a"):
        with pytest.raises(
            PlanError, match=r"^the plan refreshes at a/point, but the protocol forbids it; set refresh"
        ):
            backend.input((1, 4, 6)).refresh("point")


# ---- real ciphertexts -------------------------------------------------------------------------------------------

TABLE = {"tokens": 4, "features": 12, "heads": 2, "queries": 3}
TOO_DEEP = ("softmax_mean_shift", "layernorm")  # padded places cost a level more, and N = 2^14 has eight
NOISE = Bound(2e-6, "rotations at scale 2^40 on N = 2^13, whose outer primes are equally wide; measured 1.5e-6")
REAL = [name for name, program in PROGRAMS.items() if program.bounds["ckks"] is not None and name not in TOO_DEEP]


def planned(name: str, parameters: CkksParameters) -> tuple[SymbolicDense, DenseTensor]:
    """A program of the table on shapes alone."""
    program, backend = PROGRAMS[name], SymbolicDense(parameters, schedule={REFRESH_POINT}, **TABLE)
    with backend.recorder.phase("online"):
        inputs = [backend.input(cast(tuple[int, int, int], x.shape)) for x in program.inputs]
        return backend, program.run(backend, *inputs)


@cache
def ring_of(name: str) -> CkksParameters:
    """The smallest ring whose levels hold a program."""
    for parameters in (chain(ring, most_levels(ring)) for ring in (1 << 13, 1 << 14)):
        try:
            planned(name, parameters)
            return parameters
        except OutOfLevels:
            continue
    raise AssertionError(f"{name} is too deep for this table")


class Sides:
    """A key owner, and what executes under its keys."""

    def __init__(self, parameters: CkksParameters, steps: set[int]) -> None:
        from secureattn.backends.ckks.evaluator import SealEvaluator
        from secureattn.backends.ckks.keys import KeyOwner

        self.parameters = parameters
        self.owner = KeyOwner.generate(parameters, steps)
        assert self.owner.evaluation_keys is not None
        self.device = SealEvaluator(parameters, self.owner.evaluation_keys)

    def backend(self, schedule: Any, machine_options: Any = None, **sizes: Any) -> DenseBackend:
        machine = Machine(self.parameters, self.device, Recorder(), **(machine_options or {}))
        refresher = MaskedRefresh(machine, self.owner.refresh)
        return DenseBackend(machine, schedule=schedule, refresher=refresher, **sizes)

    def encrypted(self, backend: DenseBackend, x: Array) -> DenseTensor:
        (slots,) = dense_pack(x, backend.layout)
        ct = self.device.load(self.owner.encrypt(slots))
        return backend.tensor([Cipher(self.device.level(ct), ct.scale, ct.size(), ct)], x.shape)

    def decrypted(self, ciphers: Any) -> list[Array]:
        return [self.owner.decrypt(self.device.save(cipher.data)) for cipher in ciphers]


@pytest.fixture(scope="module")
def sides() -> Callable[[CkksParameters], Sides]:
    """Keys of a ring for every rotation that the table plans on it."""
    pytest.importorskip("tenseal")

    @cache
    def made(parameters: CkksParameters) -> Sides:
        on_it = [name for name in REAL if ring_of(name) == parameters]
        return Sides(parameters, set().union(*(planned(name, parameters)[0].machine.steps for name in on_it)))

    return made


@needs_tenseal
@pytest.mark.parametrize("name", REAL)
def test_ciphertexts(sides: Callable[[CkksParameters], Sides], name: str) -> None:
    """Values, and every operation's counts and levels: those of the plan."""
    program, parameters = PROGRAMS[name], ring_of(name)
    both, (plan, expected) = sides(parameters), planned(name, parameters)
    backend = both.backend({REFRESH_POINT}, **TABLE)
    with backend.recorder.phase("online"):
        out = program.run(backend, *(both.encrypted(backend, x) for x in program.inputs))
    value = read(out, both.decrypted(out.parts), 2 * NOISE.error)
    assert_close(value, program.expected(*program.inputs), NOISE.error, NOISE.reason)
    assert counts(backend.recorder) == counts(plan.recorder)
    assert levels(backend) == levels(plan)
    assert backend.refresh_points == plan.refresh_points
    assert (out.shape, out.diagonals, out.offsets) == (expected.shape, expected.diagonals, expected.offsets)
    for part, other in zip(out.parts, expected.parts, strict=True):
        assert (part.level, part.size) == (other.level, other.size) == (both.device.level(part.data), 2)
        assert abs(part.scale / other.scale - 1) <= 1e-12
        assert abs(part.scale / part.data.scale - 1) <= 1e-12


def levels(backend: DenseBackend) -> dict[Any, tuple[int | None, int | None]]:
    """Levels in and out of every operation."""
    return {key: (event.level_in, event.level_out) for key, event in backend.recorder.events.items()}


# ---- whole models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Plan]:
    """A tiny model by attention variant, calibrated on data that holds the samples, with functions chosen for it."""

    @cache
    def made(name: str) -> Plan:
        shape = {"tokens": TOKENS.get(name, 4), "features": 3, "width": 8, "heads": 2, "hidden": 8}
        norm = NORMS.get(name, "batchnorm")
        config = ModelConfig(name=name, layers=1, classes=3, attention=name, norm=norm, **shape)
        folder, weights = tmp_path_factory.mktemp(name), weights_of(config)
        nn_parameters.save(folder / "model.safetensors", weights)
        (folder / "config.json").write_text(config.to_json())
        (folder / "ranges.json").write_text(calibrate(config, weights, inputs_of(config, 64)).to_json())
        return drafted(load_model(folder))

    return made


def drafted(model: Model) -> Plan:
    """What will run, without one engine's part."""
    protocol = chosen(shipped("power-softmax-ckks"), model)
    return Plan(model, protocol, SAMPLES, protocol.realisations(model))


def sizes_of(plan: Plan, queries: int) -> dict[str, int]:
    config = plan.config
    features = max(config.width, config.hidden, config.features, config.classes)
    sizes = {"tokens": config.tokens, "features": features, "heads": config.heads}
    return {**sizes, "queries": queries, "width": config.width}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW[name in LONG]) for name in CKKS])
def test_every_variant_is_exact(plan_of: Callable[[str], Plan], name: str) -> None:
    """As a program on slots: what is encrypted errs by noise alone."""
    plan = plan_of(name)
    x = inputs_of(plan.config, SAMPLES)
    backend = clear_backend(256, **sizes_of(plan, SAMPLES))
    with backend.recorder.phase("online"):
        out = Encoder(plan.folded(), backend)(entered(backend, x))
    wanted = clear_run(plan, x).outputs
    error = 1e-9 if name == ODE else 1e-11
    assert_close(read(out, held(out))[:, 0], wanted, error, f"{name}: float64 rounds")


# ---- what a block costs -----------------------------------------------------------------------------------------


def log2(n: int) -> int:
    return n.bit_length() - 1


def bsgs(rotations: int, outputs: int = 1) -> int:
    """Fewest key switches of so many sums of the same rotations."""
    widths = [1 << i for i in range(log2(rotations) + 1)]
    return min(b - 1 + outputs * (rotations // b - 1) for b in widths)


def shift(tokens: int, heads: int) -> tuple[int, int]:
    """Rotations and public products of a shift of keys or values."""
    if heads == 1:
        return bsgs(tokens), tokens
    return min((1 << i) - 1 + 2 * tokens // (1 << i) - 1 for i in range(1, log2(tokens))), 2 * tokens - 1


def block_costs(t: int, d: int, h: int, f: int, features: int, slots: int) -> dict[tuple[str, str], dict[str, int]]:
    """The formulas of the layout's docstring; T tokens, D features in H heads, F hidden, all powers of two."""
    offsets = min(t, slots // (d * t))
    parts = t // offsets
    rotated, masks = shift(t, h)
    linear = {"rotations": bsgs(d, 3) + bsgs(d), "pt_products": 4 * d, "encodes": 4 * d + 4, "rescales": 4}
    product = {"ct_products": 1, "relinearisations": 1, "rescales": 1}
    return {
        ("embed", "linear"): {
            "rotations": bsgs(features),
            "pt_products": features,
            "encodes": features + 1,
            "rescales": 1,
        },
        ("layer.0/attention", "linear"): linear,
        ("layer.0/attention", "inner"): {**product, "rotations": log2(d)},
        ("layer.0/attention", "scores"): {
            "rotations": rotated + parts * log2(d // h),
            "pt_products": masks,
            "encodes": masks,
            "ct_products": parts,
            "relinearisations": parts,
            "rescales": 2 * parts,
        },
        ("layer.0/attention", "square"): {name: 2 * parts for name in product},
        ("layer.0/attention", "sum"): {"rotations": log2(offsets)},
        ("layer.0/attention", "mix"): {
            "rotations": rotated + 2 * log2(offsets),
            "pt_products": masks + 1,
            "encodes": masks + 1,
            "ct_products": parts,
            "relinearisations": 1,
            "rescales": parts + 2,
        },
        ("layer.0/attention", "multiply"): {name: 2 for name in product},
        ("layer.0/ffn", "linear"): {
            "rotations": bsgs(d) + bsgs(f),
            "pt_products": d + f,
            "encodes": d + f + 2,
            "rescales": 2,
        },
        ("layer.0/ffn", "inner"): {**product, "rotations": log2(d)},
        ("layer.0/ffn", "multiply"): product,
        ("head", "linear"): {"rotations": bsgs(d), "pt_products": d, "encodes": d + 1, "rescales": 1},
        ("head", "sum"): {"rotations": 2 * log2(t), "pt_products": 1, "encodes": 1, "rescales": 1},
    }


@pytest.mark.parametrize(
    ("t", "d", "h", "f", "slots"),
    [
        (16, 32, 2, 64, 8192),
        (16, 32, 2, 64, 4096),
        (8, 16, 4, 64, 1 << 12),
        (4, 16, 1, 16, 512),
        (16, 32, 1, 128, 1 << 12),
        (32, 64, 4, 128, 1 << 14),
    ],
)
def test_a_block_costs_what_the_formulas_say(
    tmp_path_factory: pytest.TempPathFactory, t: int, d: int, h: int, f: int, slots: int
) -> None:
    shape = {"tokens": t, "features": 4, "width": d, "heads": h, "hidden": f, "layers": 1, "classes": 10}
    folded = digits_like(ModelConfig(name="block", **shape))
    backend = SymbolicDense(small(slots), tokens=t, features=max(d, f), heads=h, refresh=False)
    with backend.recorder.phase("online"):
        Encoder(folded, backend)(backend.input((1, t, 4)))
    found = {(region, op): made for (region, op, _), made in counts(backend.recorder).items()}
    for place, wanted in block_costs(t, d, h, f, 4, slots).items():
        free = ("additions",) if "linear" in place[1] or place[1] in ("scores", "mix", "inner", "sum") else ()
        assert {name: n for name, n in found[place].items() if name not in free} == wanted, place
    for site, function in folded.functions().items():
        assert function.polynomial is not None
        parts = 1  # elementwise functions cost as many ciphertexts as there are
        assert found[site, "polynomial"]["ct_products"] == parts * function.polynomial.products, site
    assert set(found) == {*block_costs(t, d, h, f, 4, slots)} | {
        *((site, "polynomial") for site in folded.functions()),
        ("layer.0/attention", "add"),
        ("layer.0/ffn", "add"),
    }


def digits_like(config: ModelConfig) -> Folded:
    """A program of this shape with the shipped model's functions and random weights."""
    plan = shipped_plan()
    shapes = nn_parameters.shapes(config)
    weights = {name: torch.as_tensor(values(*shape, salt=i)) for i, (name, shape) in enumerate(shapes.items())}
    return fold(config, weights, plan.realisations)


@cache
def shipped_plan() -> Plan:
    model, protocol = load_model(find("models", "digits-vit")), shipped("power-softmax-ckks")
    return Plan(model, protocol, 1, protocol.realisations(model))


# ---- whole models on ciphertexts --------------------------------------------------------------------------------


def scheduled(plan: Plan, parameters: CkksParameters, queries: int) -> SymbolicDense:
    """A plan that refreshes wherever it can: a first pass finds how low every ciphertext may lie, a second counts."""
    folded, config = plan.folded(), plan.config

    def passed(**options: Any) -> SymbolicDense:
        backend = SymbolicDense(parameters, **sizes_of(plan, queries), **options)
        network, shape = Encoder(folded, backend), (queries, config.tokens, config.features)
        if options.get("ceilings"):
            backend.prepare(network, shape)
        with backend.recorder.phase("online"):
            backend.output = network(backend.input(shape))
            backend.results(backend.output)
        return backend

    points = passed(schedule=Everywhere()).refresh_points
    demand = passed(schedule=frozenset(points)).machine.demand
    assert demand is not None
    return passed(schedule=frozenset(points), ceilings=demand.ceilings())


class Everywhere(frozenset[str]):
    """Every refresh point there is."""

    def __contains__(self, point: object) -> bool:
        return True


def run_encrypted(plan: Plan, x: Array, levels: int, workers: int = 1) -> tuple[Array, DenseBackend, SymbolicDense]:
    """Class scores from ciphertexts at N = 2^14; the evaluator that made them, and its plan."""
    parameters = chain(1 << 14, levels)
    planned = scheduled(plan, parameters, len(x))
    both = Sides(parameters, planned.machine.steps)
    options = {"ceilings": planned.machine.place.ceilings, "workers": workers}
    backend = both.backend(planned.schedule, options, **sizes_of(plan, len(x)))
    network = Encoder(plan.folded(), backend)
    backend.prepare(network, x.shape)
    with backend.recorder.phase("online"):
        encrypted = both.encrypted(backend, x)
        out, finished = backend.machine.together(lambda: (out := network(encrypted), backend.results(out)))
    assert out.level == planned.output.level
    slots = both.decrypted(finished)
    assert_close(read(out, slots, 1e-4), dense_unpack(slots, out.shape, backend.layout), 1e-4, "copies differ by noise")
    return dense_unpack(slots, out.shape, backend.layout)[:, 0], backend, planned


@needs_tenseal
@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW[name != "gaussian"]) for name in REFRESHED])
def test_variants_on_ciphertexts(plan_of: Callable[[str], Plan], name: str) -> None:
    plan = plan_of(name)
    x = inputs_of(plan.config, SAMPLES)
    found, backend, planned = run_encrypted(plan, x, 8)
    wanted = clear_run(plan, x).outputs
    print(f"{name}: error {np.abs(found - wanted).max():.2e}")
    assert_close(found, wanted, 2e-6, f"{name}: encryption noise at scale 2^40; measured 3e-7 at most")
    assert counts(backend.recorder) == counts(planned.recorder)
    assert levels(backend) == levels(planned)


@needs_tenseal
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_digits_vit(workers: int) -> None:
    """One image: class scores, and everything counted and encoded as planned, whatever the number of processes."""
    plan = shipped_plan()
    samples = load_file(find("models", "digits-vit") / "samples.safetensors")
    x = samples["inputs"][:1].astype(np.float64)
    found, backend, planned = run_encrypted(plan, x, 6, workers)
    wanted = clear_run(plan, x).outputs
    assert found.argmax() == wanted.argmax()
    assert_close(found, wanted, 1e-5, "encryption noise at scale 2^40; measured 1e-6")
    assert counts(backend.recorder) == counts(planned.recorder)
    assert levels(backend) == levels(planned)
    encodes = {phase: planned.recorder.total("encodes", phase=phase) for phase in ("setup", "online")}
    assert encodes["online"] == 8  # biases, which are added at the scale that is there: of 3 blocks, and 5 layers
    assert encodes["setup"] == planned.recorder.total("pt_products", phase="online") - weighted(planned)


def weighted(backend: SymbolicDense) -> int:
    """Products with numbers, which need no encoding."""
    scalar = ("polynomial", "add", "multiply")
    return sum(event.counts.get("pt_products", 0) for event in backend.recorder.events.values() if event.op in scalar)
