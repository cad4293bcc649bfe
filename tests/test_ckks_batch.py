"""The batch layout: where every value lies, padded tokens, what runs out, and what SEAL holds of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import assert_close, eight_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Bound, Encryption, as_planned, counts, fitted, planned, seal_agrees

from secureattn.approx.attention.power_softmax import power_softmax
from secureattn.approx.attention.softmax import softmax
from secureattn.approx.layernorm import rmsnorm
from secureattn.backends.ckks.backend import CkksBackend
from secureattn.backends.ckks.cipher import NullDevice, OutOfLevels
from secureattn.backends.ckks.layout import baby_steps
from secureattn.backends.ckks.machine import Machine
from secureattn.backends.ckks.parameters import chain
from secureattn.backends.ckks.roles import pack, unpack
from secureattn.backends.symbolic import SymbolicCkks
from secureattn.errors import InputError, PlanError
from secureattn.events import Recorder

SEED = 20250612
SHALLOW, DEEP = chain(1 << 13, 3), chain(1 << 14, 8)
NOISE = Bound(1e-5, "key switching at N = 2^13 errs by 1e-6, a sum of products multiplies that")
DEEP_NOISE = Bound(1e-6, "encryption noise through 8 levels at scale 2^40, key switching with a wide special prime")

needs_tenseal = pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="TenSEAL is not installed")


def values(*shape: int, salt: int = 0, scale: float = 1.0) -> np.ndarray:
    """Uniform in ±scale."""
    return np.random.default_rng([SEED, salt, *shape]).uniform(-scale, scale, size=shape)


def layout(tokens: int, ring_degree: int = 1 << 13) -> CkksBackend:
    """A backend for its layout alone."""
    return CkksBackend(Machine(chain(ring_degree, 3), NullDevice(), Recorder(modelled=True)), tokens=tokens)


# ---- where values lie -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_unpack_undoes_pack(data: st.DataObject) -> None:
    tokens = 1 << data.draw(st.integers(0, 4))
    batch = data.draw(st.integers(1, 9))
    b, s, f = (data.draw(st.integers(1, n)) for n in (batch, tokens, 5))
    x = values(b, s, f)
    slots = pack(x, tokens, batch)
    assert [column.shape for column in slots] == [(tokens * batch,)] * f
    assert np.array_equal(unpack(slots, x.shape, batch), x)
    query, token, feature = (data.draw(st.integers(0, n - 1)) for n in x.shape)
    assert slots[feature][token * batch + query] == x[query, token, feature]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 8))
def test_missing_queries_repeat_the_first(b: int, missing: int) -> None:
    x = values(b, 3, 2)
    filled = unpack(pack(x, 4, b + missing), (b + missing, 3, 2), b + missing)
    assert np.array_equal(filled[:b], x)
    assert np.array_equal(filled[b:], np.repeat(x[:1], missing, axis=0))


def test_padded_tokens_repeat_the_last() -> None:
    x = values(2, 3, 2)
    filled = unpack(pack(x, 4, 2), (2, 4, 2), 2)
    assert np.array_equal(filled[:, :3], x)
    assert np.array_equal(filled[:, 3], x[:, 2])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 33))
def test_token_slots(tokens: int) -> None:
    backend = layout(tokens)
    assert backend.tokens >= tokens > backend.tokens // 2
    assert backend.tokens * backend.batch == backend.machine.parameters.slots
    assert backend.padded == (tokens & (tokens - 1) != 0)
    column = values(tokens)
    for padding, filler in ((None, column[-1]), (0.0, 0.0)):
        slots = backend.token_slots(column, padding=padding).reshape(backend.tokens, backend.batch)
        for token in range(backend.tokens):
            assert (slots[token] == (column[token] if token < tokens else filler)).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9))
def test_offsets_against_a_loop(heads: int, s: int) -> None:
    backend = layout(s)
    array = values(2, heads, s, s)
    found = backend._by_offset(array)
    assert found.shape == (2, heads, backend.tokens, backend.tokens)
    for q, h, token, offset in np.ndindex(*found.shape):
        key = (token + offset) % backend.tokens
        assert found[q, h, token, offset] == (array[q, h, min(token, s - 1), key] if key < s else 0.0)


@pytest.mark.parametrize("shape", [(5, 3, 4), (5, 2, 3, 4), (5, 1, 1, 4)], ids=["tokens", "heads", "keys"])
def test_columns_of_each_query(shape: tuple[int, ...]) -> None:
    """All slots, token by token and query by query; missing queries have the first one's, padded tokens the last's."""
    backend, value = layout(3), values(*shape)
    columns = backend.columns(value, (5, 2, 3, 4) if len(shape) == 4 else shape, diagonals=False)
    by_head = value if len(shape) == 4 else value[:, None]
    assert columns.shape == (by_head.shape[1], 4, backend.tokens * backend.batch)
    for h, d in np.ndindex(*columns.shape[:2]):
        slots = columns[h, d].reshape(backend.tokens, backend.batch)
        for t, q in ((0, 0), (2, 4), (3, 1), (1, 5), (0, backend.batch - 1)):
            assert slots[t, q] == by_head[q if q < 5 else 0, h, min(t, by_head.shape[2] - 1), d]


@pytest.mark.parametrize("shape", [(5, 3, 4), (5, 2, 3, 4)], ids=["tokens", "heads"])
@pytest.mark.parametrize("wide", [0, 1, 2, 3, 4])
def test_columns(shape: tuple[int, ...], wide: int) -> None:
    """A public value with ``wide`` axes of the shape's, by head, feature and token."""
    backend = layout(3)
    value = values(*((1, *shape[1:])[len(shape) - min(wide, len(shape)) :]))
    columns = np.broadcast_to(backend.columns(value, shape, diagonals=False), (*([1, 2][len(shape) - 3],), 4, 3))
    full = np.broadcast_to(value, (1, *shape[1:])).reshape(-1, 3, 4)
    for h, d, t in np.ndindex(*columns.shape):
        assert columns[h, d, t] == full[h, t, d]


def test_public_values_that_do_not_fit_are_refused() -> None:
    backend = SymbolicCkks(SHALLOW, tokens=3)
    x = backend.input((5, 3, 4))
    for value in (values(5), values(5, 2, 4), values(2, 3, 4)):
        with pytest.raises(InputError, match=r"^a public value of shape \[.*\] does not fit \[5, 3, 4\]$"):
            x + value


def test_more_tokens_than_slots_are_refused() -> None:
    with pytest.raises(PlanError, match=r"^5000 tokens need a ring with 16384 coefficients, this one has 8192$"):
        layout(5000)


@given(st.integers(0, 8))
def test_baby_steps_are_the_cheapest_power_of_two(exponent: int) -> None:
    tokens = 1 << exponent
    tried: list[int] = []
    best = baby_steps(tokens, lambda b: tried.append(b) or (b - 4) ** 2)  # type: ignore[func-returns-value]
    assert tried == [1 << i for i in range(exponent + 1)]
    assert best == min(tokens, 4)


# ---- real ciphertexts at any number of tokens -------------------------------------------------------------------

D, HEADS = 4, 2
W, BIAS = values(3, D, salt=1), values(3, salt=2)
RECIPROCAL = fitted(np.reciprocal, 3, 1.0, 3.0)
RSQRT = fitted(lambda x: x**-0.5, 3, 0.5, 2.5)
NARROW = fitted(np.reciprocal, 7, 0.9, 1.1)
EXP = fitted(np.exp, 3, -1.0, 1.0)


def clear(p: Any) -> Callable[[np.ndarray], np.ndarray]:
    low, high = p.domain
    return lambda x: np.polynomial.chebyshev.chebval((2 * x - low - high) / (high - low), p.coefficients)


def by_head(x: np.ndarray) -> np.ndarray:
    b, s, d = x.shape
    return x.reshape(b, s, HEADS, d // HEADS).transpose(0, 2, 1, 3)


def scores(x: np.ndarray) -> np.ndarray:
    return np.einsum("bhsd,bhtd->bhst", by_head(x), by_head(x))


def powers(x: np.ndarray) -> np.ndarray:
    squares = scores(x) ** 2
    return squares * clear(RECIPROCAL)(squares.sum(-1, keepdims=True) + 1.0)


def shifted(x: np.ndarray) -> np.ndarray:
    s = scores(x)
    e = clear(EXP)(s - s.sum(-1, keepdims=True) * eight_bits(1 / s.shape[-1]))
    return e * (e.sum(-1, keepdims=True) / x.shape[1])


def heads_of(x: Any) -> Any:
    return x.split_heads(HEADS)


def run_power(b: Any, x: Any) -> Any:
    s = heads_of(x).scores(heads_of(x))
    made = power_softmax(s, p=2, epsilon=1.0, reciprocal=lambda t: t.polynomial(RECIPROCAL))
    return (made.numerator.mix(heads_of(x)) * made.factor).merge_heads()


def run_shifted(b: Any, x: Any) -> Any:
    s = heads_of(x).scores(heads_of(x))
    made = softmax(s, exp=lambda t: t.polynomial(EXP), reciprocal=lambda t: t * (1 / x.shape[1]))
    return made.weights()


def merged(x: np.ndarray) -> np.ndarray:
    b, h, s, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, s, h * d)


Case = tuple[Callable[..., Any], Callable[[np.ndarray], np.ndarray]]

SHALLOW_CASES: dict[str, Case] = {
    "linear_summed": (
        lambda b, x: x.linear(b.weight(W), b.weight(np.outer(np.arange(x.shape[1]), BIAS))).sum(1),
        lambda x: (x @ W.T + np.outer(np.arange(x.shape[1]), BIAS)).sum(1, keepdims=True),
    ),
    "bias_then_sum": (
        lambda b, x: (x + values(D, salt=3) + 0.5).sum(1),
        lambda x: (x + values(D, salt=3) + 0.5).sum(1, keepdims=True),
    ),
    "mean_of_tokens": (lambda b, x: x - x.mean(1), lambda x: x - x.mean(1, keepdims=True)),
    "take_token": (lambda b, x: x.take(1, x.shape[1] - 1) * 2, lambda x: 2 * x[:, -1:]),
    "zero_weight": (
        lambda b, x: x.linear(b.weight(np.zeros((2, D))), b.weight(np.array([0.5, 0.0]))),
        lambda x: np.broadcast_to([0.5, 0.0], (*x.shape[:2], 2)),
    ),
    "zero_row": (
        lambda b, x: x.linear(b.weight(W * [[1.0], [0.0], [1e-20]])),
        lambda x: x @ (W * [[1.0], [0.0], [0.0]]).T,
    ),
    "zero_products": (lambda b, x: (x - x).square() + x, lambda x: x),
    "scores": (lambda b, x: heads_of(x).scores(heads_of(x)), scores),
    "scores_summed": (
        lambda b, x: heads_of(x).scores(heads_of(x)).sum(-1),
        lambda x: scores(x).sum(-1, keepdims=True),
    ),
    "scores_summed_twice": (
        lambda b, x: heads_of(x).scores(heads_of(x)).sum(-1).sum(-1),
        lambda x: scores(x).sum(-1, keepdims=True),
    ),
    "scores_public": (
        lambda b, x: heads_of(x).scores(heads_of(x)) * public(x.shape[1]) + public(x.shape[1]),
        lambda x: scores(x) * public(x.shape[1]) + public(x.shape[1]),
    ),
    "scores_inner": (
        lambda b, x: (s := heads_of(x).scores(heads_of(x))).inner(s),
        lambda x: (scores(x) ** 2).sum(-1, keepdims=True),
    ),
    "scores_per_key": (
        lambda b, x: heads_of(x).scores(heads_of(x)) + heads_of(x).sum(-1).per_key(),
        lambda x: scores(x) + by_head(x).sum(-1)[:, :, None],
    ),
    "per_key_times_per_query": (
        lambda b, x: heads_of(x).take(-1, 0).per_key() * heads_of(x).take(-1, 1),
        lambda x: by_head(x)[..., 0][:, :, None] * by_head(x)[..., 1:2],
    ),
    "per_key_summed": (
        lambda b, x: (heads_of(x).take(-1, 0).per_key() + heads_of(x).take(-1, 1)).sum(-1),
        lambda x: by_head(x)[..., 0].sum(-1)[..., None, None] + x.shape[1] * by_head(x)[..., 1:2],
    ),
    "per_key_mixed": (
        lambda b, x: (heads_of(x).take(-1, 0).per_key() * public(x.shape[1])).mix(heads_of(x)).merge_heads(),
        lambda x: merged((by_head(x)[..., 0][:, :, None] * public(x.shape[1])) @ by_head(x)),
    ),
    "scores_mixed": (
        lambda b, x: heads_of(x).scores(heads_of(x)).mix(heads_of(x)).merge_heads(),
        lambda x: merged(scores(x) @ by_head(x)),
    ),
}
DEEP_CASES: dict[str, Case] = {
    # 0 lies ten times its width outside this domain: what padded tokens hold must not
    "far_from_zero": (
        lambda b, x: (x * 0.1 + 1.0).polynomial(NARROW).sum(1),
        lambda x: clear(NARROW)(0.1 * x + 1.0).sum(1, keepdims=True),
    ),
    "linear_attention": (
        lambda b, x: heads_of(x).linear_attention(heads_of(x), heads_of(x), b.weight(public(x.shape[1])))[0],
        lambda x: (scores(x) * public(x.shape[1])) @ by_head(x),
    ),
    "linear_attention_total": (
        lambda b, x: heads_of(x).linear_attention(heads_of(x), heads_of(x), b.weight(public(x.shape[1])))[1],
        lambda x: (scores(x) * public(x.shape[1])).sum(-1, keepdims=True),
    ),
    "power_softmax": (run_power, lambda x: merged(powers(x) @ by_head(x))),
    "softmax": (run_shifted, shifted),
    "rmsnorm": (
        lambda b, x: rmsnorm(x, inverse_rms=lambda t: (t + 0.5).polynomial(RSQRT)).sum(1),
        lambda x: (x * clear(RSQRT)((x * x).sum(-1, keepdims=True) + 0.5)).sum(1, keepdims=True),
    ),
}


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8])
def test_cost_of_a_value_per_key(tokens: int) -> None:
    """A rotation for every offset but 0, and no level; each a key switch on a column, once for all heads' diagonals."""
    backend = SymbolicCkks(DEEP, tokens=tokens)
    column = heads_of(backend.input((2, tokens, D))).sum(-1).square()
    row = column.per_key()
    assert row.shape == (2, HEADS, tokens, tokens)
    assert row.diagonals
    assert row.parts.shape == (HEADS, backend.tokens)
    assert row.level == column.level == DEEP.levels - 1
    event = next(event for event in backend.recorder.events.values() if event.op == "per_key")
    assert {name: n for name, n in event.counts.items() if n} == (
        {"rotations": HEADS * (backend.tokens - 1)} if tokens > 1 else {}
    )
    assert (event.level_in, event.level_out) == (column.level, column.level)
    assert backend.machine.steps == {r * backend.batch for r in range(1, backend.tokens)}
    assert (row + column).level == column.level
    assert (row * column).level == column.level - 1


def public(tokens: int) -> np.ndarray:
    return values(HEADS, tokens, tokens, salt=4)


@pytest.fixture(scope="module")
def encryptions() -> dict[int, tuple[Encryption, Encryption]]:
    """Keys of a shallow and a deep ring by number of tokens, made when asked for, for what the cases plan."""
    pytest.importorskip("tenseal")

    class Made(dict[int, tuple[Encryption, Encryption]]):
        def __missing__(self, tokens: int) -> tuple[Encryption, Encryption]:
            pairs = ((SHALLOW, SHALLOW_CASES), (DEEP, DEEP_CASES))
            self[tokens] = tuple(  # type: ignore[assignment]
                Encryption(
                    parameters,
                    {
                        step
                        for run, _ in cases.values()
                        for step in planned(run, [data(tokens)], parameters, tokens)[0].machine.steps
                    },
                    tokens,
                )
                for parameters, cases in pairs
            )
            return self[tokens]

    return Made()


def data(tokens: int) -> np.ndarray:
    """Fewer queries than fit."""
    return values(2, tokens, D, scale=0.7)


@needs_tenseal
@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("name", [*SHALLOW_CASES, *DEEP_CASES])
def test_any_number_of_tokens(encryptions: dict[int, tuple[Encryption, Encryption]], name: str, tokens: int) -> None:
    deep = name in DEEP_CASES
    run, reference = (DEEP_CASES if deep else SHALLOW_CASES)[name]
    keys, bound = encryptions[tokens][deep], DEEP_NOISE if deep else NOISE
    x = data(tokens)
    plan, expected = planned(run, [x], keys.parameters, tokens)
    backend = keys.backend()
    assert backend.batch > len(x)
    encrypted = keys.encrypted(backend, x)
    with backend.recorder.phase("online"):
        output = run(backend, encrypted)
    assert_close(keys.decrypted(output), reference(x), bound.error, f"{name}, {tokens} tokens: {bound.reason}")
    as_planned(output, expected)
    seal_agrees(keys, output)
    assert counts(backend.recorder) == counts(plan.recorder)


@needs_tenseal
def test_scales_stay_exact_where_levels_meet(encryptions: dict[int, tuple[Encryption, Encryption]]) -> None:
    """Sums and products of values from different levels, kept at the very scale that SEAL computes."""
    keys = encryptions[2][True]
    x = data(2)
    backend = keys.backend()
    encrypted = keys.encrypted(backend, x)
    with backend.recorder.phase("online"):
        low = encrypted.square().square() * 0.7
        steps = [low + encrypted, encrypted + low, low * encrypted, encrypted * low, low.inner(encrypted)]
        steps += [encrypted.combine([(0.3, low)], [(encrypted, encrypted), (low, encrypted)], 0.1), low - encrypted]
    y = 0.7 * x**4
    wanted = [y + x, x + y, y * x, x * y, (y * x).sum(-1, keepdims=True), 0.3 * y + x * x + y * x + 0.1, y - x]
    for step, value in zip(steps, wanted, strict=True):
        seal_agrees(keys, step)
        assert_close(keys.decrypted(step), value, DEEP_NOISE.error, DEEP_NOISE.reason)


@needs_tenseal
def test_no_result_is_transparent(encryptions: dict[int, tuple[Encryption, Encryption]]) -> None:
    """x − x, products with 0 and zero weights come out as encryptions, not as the number itself."""
    keys = encryptions[2][False]
    backend = keys.backend()
    x = keys.encrypted(backend, data(2))
    with backend.recorder.phase("online"):
        nothing = [x - x, x * 0, x.linear(np.zeros((1, D))), (x - x).square(), x * np.zeros(D)]
    for tensor in nothing:
        assert not any(part.data.is_transparent() for part in tensor.parts.flat)
        assert_close(keys.decrypted(tensor), np.zeros(tensor.shape), NOISE.error, NOISE.reason)


# ---- what cannot be done ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "run"),
    [
        ("a product", lambda x: x * x),
        ("a linear layer", lambda x: x.linear(W)),
        ("a product", lambda x: x.square()),
        ("a product with a constant", lambda x: x * 0.5),
        ("a product with a public vector", lambda x: x.take(1, 0)),
        ("a product", lambda x: heads_of(x).scores(heads_of(x))),
        ("a sum of products", lambda x: x.inner(x)),
        ("a polynomial of degree 3", lambda x: x.polynomial(EXP)),
    ],
)
def test_out_of_levels_names_the_place_and_the_remedy(what: str, run: Callable[[Any], Any]) -> None:
    backend = SymbolicCkks(SHALLOW, tokens=4)
    with backend.region("layer.0"), backend.region("ffn"):
        x = backend.input((2, 4, D)) * 0.5 * 0.5
        assert x.level == 1
        if what.startswith("a polynomial"):
            low = x
        else:
            low = x * 0.5
            assert low.level == 0
        with pytest.raises(OutOfLevels) as caught:
            run(low)
    error, message = caught.value, str(caught.value)
    assert isinstance(error, PlanError)
    assert error.region == "layer.0/ffn"
    assert message.startswith(f"{what} needs ")
    assert 'at layer.0/ffn; use a lower degree, fewer layers, or refresh = "client"' in message
    assert "\n" not in message


def test_a_sum_of_two_scales_needs_a_level() -> None:
    """At one level only a multiplication by 1 brings two scales together; from a higher level it costs none of it."""
    machine = SymbolicCkks(SHALLOW, tokens=4).machine
    with machine.recorder.op("add"):
        low, other = machine.made(0, 2.0**40), machine.made(0, 1.5 * 2.0**40)
        with pytest.raises(OutOfLevels, match=r"^a sum of two scales needs 1 level, 0 remain at "):
            machine.add(low, other)
        total = machine.add(low, machine.made(2, 1.5 * 2.0**40))
        assert (total.level, total.scale) == (0, low.scale)
        total = machine.add(machine.made(1, 2.0**40), machine.made(1, 1.5 * 2.0**40))
        assert (total.level, total.scale) == (0, SHALLOW.scales[0])
        nearly = machine.made(1, 2.0**40 * (1 + 2.0**-36))  # further apart than SEAL's side adds
        assert machine.add(machine.made(1, 2.0**40), nearly).level == 0


def test_out_of_levels_says_how_many_are_needed_and_left() -> None:
    backend = SymbolicCkks(SHALLOW, tokens=4)
    with backend.region("head"), pytest.raises(OutOfLevels) as caught:
        (backend.input((2, 4, D)) * 0.5 * 0.5).polynomial(EXP)
    assert (caught.value.needed, caught.value.left) == (2, 1)
    assert str(caught.value).startswith("a polynomial of degree 3 needs 2 levels, 1 remains at head; ")


def test_a_refresh_needs_a_level_and_permission() -> None:
    backend = SymbolicCkks(SHALLOW, tokens=4, schedule={"head/input"})
    with (
        backend.region("head"),
        pytest.raises(OutOfLevels, match=r"^a refresh needs 1 level, 0 remain at head/input; "),
    ):
        (backend.input((2, 4, D)) * 0.5 * 0.5 * 0.5).refresh("input")
    backend = SymbolicCkks(SHALLOW, tokens=4, schedule={"head/input"}, refresh=False)
    with backend.region("head"), pytest.raises(PlanError, match=r'head/input, but .* set refresh = "client"$'):
        backend.input((2, 4, D)).refresh("input")


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x.sum(0),
        lambda x: heads_of(x).sum(1),
        lambda x: heads_of(x).scores(heads_of(x)).sum(-2),
        lambda x: x.take(1, slice(0, 2)),
        lambda x: x.take(0, 1),
        lambda x: heads_of(x).scores(heads_of(x)).take(-1, 0),
        lambda x: x + x.take(-1, slice(0, 2)),
        lambda x: x.linear(W[:, :2]),
        lambda x: x.inner(x.take(-1, slice(0, 2))),
        lambda x: heads_of(x).scores(heads_of(x)) + x.linear(values(8, 4)).split_heads(HEADS),
        lambda x: x.square().combine([(1.0, x.take(-1, slice(0, 3)))]) + x,
    ],
)
def test_what_the_layout_cannot_do_is_one_sentence(run: Callable[[Any], Any]) -> None:
    x = SymbolicCkks(DEEP, tokens=4).input((2, 4, D))
    with x.backend.region("here"), pytest.raises(InputError) as caught:
        run(x)
    assert "\n" not in str(caught.value)
    assert "[" in str(caught.value)  # the shapes
