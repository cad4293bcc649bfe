"""The table of operations: what every engine must compute, in numpy, and how far off it may be and why.

A plain module: the parties of a secret-sharing run, processes of their own, import it to run the same programs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.polynomial import chebyshev as cheb
from numpy.polynomial import polynomial as poly

from secureattn.approx.attention.power_softmax import power_softmax
from secureattn.approx.attention.softmax import softmax
from secureattn.approx.layernorm import layernorm
from secureattn.backends.ckks.backend import CkksBackend
from secureattn.backends.ckks.batch import BatchTensor
from secureattn.backends.ckks.cipher import Cipher, OutOfLevels
from secureattn.backends.ckks.machine import Machine
from secureattn.backends.ckks.parameters import CkksParameters, chain, most_levels
from secureattn.backends.ckks.roles import MaskedRefresh, pack
from secureattn.backends.crypten import harmonics
from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.material import Request, draw, elements
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.runtime import Runtime
from secureattn.backends.symbolic import SymbolicCkks
from secureattn.events import Recorder
from secureattn.polynomial import Polynomial
from secureattn.series import FourierSeries

SEED = 20250611
ULP = 2.0**-16  # one unit in the last place of 16 fractional bits
TOKENS, HEADS = 4, 2  # of every program; a power of two, other counts are in test_ckks_batch.py
REFRESH_POINT = "somewhere/point"  # the one refresh point that the encrypted runs use

Array = np.ndarray


def grid(*shape: int, salt: int = 0, low: float = -1.0, high: float = 1.0) -> Array:
    """Uniform numbers in an interval that fixed point holds exactly: inputs carry no error of their own."""
    rng = np.random.default_rng([SEED, salt, *shape])
    return np.rint(rng.uniform(low, high, size=shape) / ULP) * ULP


X, Y = grid(3, TOKENS, 6), grid(3, TOKENS, 6, salt=1)
SMALL = grid(3, TOKENS, 6, salt=11, low=-0.3, high=0.3)  # queries that keep scores small
COLUMN = grid(3, TOKENS, 1, salt=2)
WIDE = grid(3, TOKENS, 6, salt=3, low=-2.0, high=2.0)  # variances in [0.6, 2.2]
W, B, SB = grid(5, 6, salt=4), grid(5, salt=5), grid(TOKENS, 5, salt=6)
ROW, PLACES = grid(6, salt=7), grid(TOKENS, 6, salt=8)
MASK = np.tril(np.ones((TOKENS, TOKENS)))
KERNEL = grid(HEADS, 2 * TOKENS - 1, salt=12)[
    :, np.arange(TOKENS) - np.arange(TOKENS)[:, None] + TOKENS - 1
]  # Toeplitz
GAIN, SHIFT = grid(6, salt=9, low=0.5, high=1.5), grid(6, salt=10)


# ---- how far off a result may be --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """Largest absolute error, and why it is that."""

    error: float
    reason: str


ROUNDING = Bound(1e-14, "float64 rounds")
ROUNDING_MANY = Bound(1e-12, "float64 rounds at every step of a longer formula")

FRESH = Bound(1e-8, "noise of a fresh encryption at scale 2^40, and nothing amplifies it")
NOISE = Bound(3e-8, "encryption noise at scale 2^40 through a product or two, summed over a few features")
ROTATED = Bound(6e-6, "key switching with a special prime no wider than the first, all that N = 2^13 has room for")
ROTATED_TWICE = Bound(2e-5, "noise of key switching, times values up to 3, or summed over 4 keys")
NOISE_DEEP = Bound(3e-7, "encryption noise at scale 2^40, which every level of a polynomial adds to and may double")

SHARES = Bound(0.0, "sums and products are exact while the ring has room for their places; inputs lie on its grid")
FACTOR = Bound(2.0**-22, "a public factor keeps 22 significant bits")
CUT_MANY = Bound(8 * ULP, "a truncation at each of three steps, doubled by the Chebyshev recursion, and one at the end")


# ---- functions, fitted here by numpy alone ----------------------------------------------------------------------


def fitted(f: Callable[[Array], Array], degree: int, low: float, high: float) -> Polynomial:
    """A Chebyshev interpolant, from numpy."""
    return Polynomial(tuple(cheb.Chebyshev.interpolate(f, degree, [low, high]).coef.tolist()), (low, high))


def clear(p: Polynomial) -> Callable[[Array], Array]:
    """The polynomial in numpy, from its coefficients and domain alone."""
    low, high = p.domain

    def value(x: Array) -> Array:
        if p.basis == "monomial":
            return poly.polyval(x, p.coefficients)
        return cheb.chebval((2 * x - low - high) / (high - low), p.coefficients)

    return value


def waves(f: FourierSeries) -> Callable[[Array], Array]:
    """The series in numpy, term by term."""
    sines = f.sines or (0.0,) * len(f.cosines)

    def value(x: Array) -> Array:
        angles = [2 * np.pi * k * x / f.period for k in range(1, len(f.cosines) + 1)]
        terms = [a * np.cos(t) + b * np.sin(t) for a, b, t in zip(f.cosines, sines, angles, strict=True)]
        return f.constant + f.linear * x + np.sum(terms, axis=0)

    return value


def rounded(f: FourierSeries, places: int) -> Bound:
    """On shares, of a result with so many places: either half may have one more, which takes 1.12 times the least."""
    squares = sum(c * c for c in (*f.cosines, *f.sines))
    usual = 1.12 * float(np.sqrt(np.sqrt(len(f.cosines) * squares) * 2.0**-places / 6))
    return Bound(6 * usual, "six times what rounding factors and dealt values typically errs by")


def heavy(x: Array) -> Array:
    """Almost even: ``x·tanh(x)/2 + x/2``, a stand-in for GELU."""
    return x * np.tanh(x) / 2 + x / 2


CUBIC = fitted(np.sin, 3, -1.0, 1.0)
SEPTIC = fitted(np.exp, 7, -1.5, 2.0)
EVEN = fitted(heavy, 7, -1.0, 1.0)  # its odd coefficients but the first are noise of the fit
MONOMIAL = Polynomial((0.25, -1.0, 0.5, 0.75), (-1.0, 1.0), "monomial")
EVEN_SERIES = FourierSeries(4.0, (0.7, -0.3), (), (-1.0, 1.0), constant=0.1, linear=0.5)  # of the shape of GELU
ODD_SERIES = FourierSeries(8.0, (0.0,) * 3, (1.1, 0.0, -0.3), (-1.0, 1.0))
SERIES = FourierSeries(4.0, (0.4, 0.25), (-0.6, 0.15), (-1.0, 1.5), constant=-0.75, linear=-0.3)
EXP = fitted(np.exp, 7, -1.0, 1.0)
RECIPROCAL = fitted(np.reciprocal, 3, 4.0, 6.0)  # of width 2: no affine map to pay for
NORMALISER = fitted(np.reciprocal, 7, 1.0, 3.0)
RSQRT = fitted(lambda x: x**-0.5, 7, 0.5, 2.5)


# ---- numpy's own forms ------------------------------------------------------------------------------------------


def heads(x: Array) -> Array:
    b, s, d = x.shape
    return x.reshape(b, s, HEADS, d // HEADS).transpose(0, 2, 1, 3)


def merged(x: Array) -> Array:
    b, h, s, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, s, h * d)


def scores(q: Array, k: Array) -> Array:
    return np.einsum("bhsd,bhtd->bhst", heads(q), heads(k))


def mix(a: Array, v: Array) -> Array:
    return np.einsum("bhst,bhtd->bhsd", a, v)


def squares(x: Array) -> Array:
    """Σ x² of every token, ``[B,H,S,1]``."""
    return (heads(x) ** 2).sum(-1, keepdims=True)


def mean_shift_weights(x: Array, y: Array) -> Array:
    s = scores(x, y)
    e = clear(EXP)(s - s.mean(-1, keepdims=True))
    return e * clear(RECIPROCAL)(e.sum(-1, keepdims=True))


def power_weights(x: Array, y: Array) -> Array:
    powers = scores(x, y) ** 4
    return powers * clear(NORMALISER)(powers.sum(-1, keepdims=True) + 1.0)


def normalised(x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * clear(RSQRT)(x.var(-1, keepdims=True) + 1e-3) * GAIN + SHIFT


# ---- the same over Tensor ---------------------------------------------------------------------------------------


def run_scores(x: Any, y: Any) -> Any:
    return x.split_heads(HEADS).scores(y.split_heads(HEADS))


def run_squares(x: Any) -> Any:
    return (k := x.split_heads(HEADS)).inner(k)


def run_linear_attention(x: Any, y: Any, kernel: Any = None) -> tuple[Any, Any]:
    k = y.split_heads(HEADS)
    return x.split_heads(HEADS).linear_attention(k, k, kernel)


def run_mean_shift(b: Any, x: Any, y: Any) -> Any:
    return softmax(
        run_scores(x, y), exp=lambda s: s.polynomial(EXP), reciprocal=lambda s: s.polynomial(RECIPROCAL)
    ).weights()


def run_power(b: Any, x: Any, y: Any) -> Any:
    return power_softmax(run_scores(x, y), p=4, epsilon=1.0, reciprocal=lambda s: s.polynomial(NORMALISER)).weights()


def run_layernorm(b: Any, x: Any) -> Any:
    return layernorm(x, epsilon=1e-3, rsqrt=lambda t: t.polynomial(RSQRT), gain=GAIN, bias=SHIFT)


def sum_of_bits(bits: Sequence[Any]) -> Any:
    """Comparisons in one number."""
    return bits[0].combine([(2.0**i, bit) for i, bit in enumerate(bits)])


def run_refresh(b: Any, x: Any, y: Any) -> Any:
    region, point = REFRESH_POINT.split("/")
    with b.region(region):
        return (x * y).observe("seen").refresh(point) * y


def run_refresh_elsewhere(b: Any, x: Any) -> Any:
    with b.region("elsewhere"):
        return x.refresh("point")


@dataclass(frozen=True)
class Program:
    """Inputs ``[B,S,D]``, the program over Tensor, the same in numpy, and the error allowed on each engine."""

    inputs: tuple[Array, ...]
    run: Callable[..., Any]
    expected: Callable[..., Array]
    bounds: Mapping[str, Bound | None]  # None: the engine lacks what the program needs


def op(
    inputs: tuple[Array, ...],
    run: Callable[..., Any],
    expected: Callable[..., Array],
    plaintext: Bound,
    ckks: Bound | None,
    crypten: Bound,
) -> Program:
    return Program(inputs, run, expected, {"plaintext": plaintext, "ckks": ckks, "crypten": crypten})


PROGRAMS: dict[str, Program] = {
    "add": op((X, Y), lambda b, x, y: x + y, lambda x, y: x + y, ROUNDING, FRESH, SHARES),
    "add_column": op((X, COLUMN), lambda b, x, c: x + c, lambda x, c: x + c, ROUNDING, FRESH, SHARES),
    "add_scalar": op((X,), lambda b, x: 1.25 + x, lambda x: x + 1.25, ROUNDING, FRESH, SHARES),
    "add_vector": op((X,), lambda b, x: x + ROW, lambda x: x + ROW, ROUNDING, FRESH, SHARES),
    "add_places": op((X,), lambda b, x: x + PLACES, lambda x: x + PLACES, ROUNDING, FRESH, SHARES),
    "sub": op((X, Y), lambda b, x, y: x - y, lambda x, y: x - y, ROUNDING, FRESH, SHARES),
    "sub_itself": op((X,), lambda b, x: x - x, lambda x: x - x, ROUNDING, FRESH, SHARES),
    "sub_from_scalar": op((X,), lambda b, x: 2 - x, lambda x: 2 - x, ROUNDING, FRESH, SHARES),
    "neg": op((X,), lambda b, x: -x, lambda x: -x, ROUNDING, FRESH, SHARES),
    "mul": op((X, Y), lambda b, x, y: x * y, lambda x, y: x * y, ROUNDING, NOISE, SHARES),
    "mul_column": op((X, COLUMN), lambda b, x, c: x * c, lambda x, c: x * c, ROUNDING, NOISE, SHARES),
    "mul_by_wider": op((COLUMN, X), lambda b, c, x: c * x, lambda c, x: c * x, ROUNDING, NOISE, SHARES),
    "mul_float": op((X,), lambda b, x: x * 0.3, lambda x: x * 0.3, ROUNDING, NOISE, FACTOR),
    "mul_tiny": op((X,), lambda b, x: x * 1e-9, lambda x: x * 1e-9, ROUNDING, NOISE, FACTOR),
    "mul_zero": op((X,), lambda b, x: x * 0, lambda x: x * 0, ROUNDING, NOISE, SHARES),
    "mul_int": op((X,), lambda b, x: -3 * x, lambda x: -3 * x, ROUNDING, NOISE, SHARES),
    "mul_two": op((X,), lambda b, x: x * 2, lambda x: x * 2, ROUNDING, FRESH, SHARES),
    "mul_vector": op((X,), lambda b, x: x * ROW, lambda x: x * ROW, ROUNDING, NOISE, SHARES),
    "mul_places": op((X,), lambda b, x: x * PLACES, lambda x: x * PLACES, ROUNDING, NOISE, SHARES),
    "square": op((X,), lambda b, x: x.square(), lambda x: x * x, ROUNDING, NOISE, SHARES),
    "square_of_square": op(
        (X,),
        lambda b, x: x.square().square(),
        lambda x: x**4,
        ROUNDING,
        NOISE,
        Bound(2 * ULP, "the truncation of x², below 1, counts twice"),
    ),
    "linear": op((X,), lambda b, x: x.linear(b.weight(W), b.weight(B)), lambda x: x @ W.T + B, ROUNDING, NOISE, SHARES),
    "linear_matrix": op((X,), lambda b, x: x.linear(b.matrix(W)), lambda x: x @ W.T, ROUNDING, NOISE, SHARES),
    "linear_places": op(
        (X,), lambda b, x: x.linear(b.weight(W), b.weight(SB)), lambda x: x @ W.T + SB, ROUNDING, NOISE, SHARES
    ),
    "linear_no_bias": op((X,), lambda b, x: x.linear(b.weight(W)), lambda x: x @ W.T, ROUNDING, NOISE, SHARES),
    "inner": op(
        (X, Y), lambda b, x, y: x.inner(y), lambda x, y: (x * y).sum(-1, keepdims=True), ROUNDING, NOISE, SHARES
    ),
    "inner_itself": op(
        (X,), lambda b, x: x.inner(x), lambda x: (x * x).sum(-1, keepdims=True), ROUNDING, NOISE, SHARES
    ),
    "sum_features": op((X,), lambda b, x: x.sum(-1), lambda x: x.sum(-1, keepdims=True), ROUNDING, NOISE, SHARES),
    "sum_tokens": op((X,), lambda b, x: x.sum(1), lambda x: x.sum(1, keepdims=True), ROUNDING, ROTATED, SHARES),
    "sum_one_token": op(
        (X,), lambda b, x: x.sum(1).sum(1), lambda x: x.sum(1, keepdims=True), ROUNDING, ROTATED, SHARES
    ),
    "mean_features": op((X,), lambda b, x: x.mean(-1), lambda x: x.mean(-1, keepdims=True), ROUNDING, NOISE, FACTOR),
    "mean_tokens": op((X,), lambda b, x: x.mean(1), lambda x: x.mean(1, keepdims=True), ROUNDING, ROTATED, SHARES),
    "token_mean_off": op(
        (X,), lambda b, x: x - x.mean(1), lambda x: x - x.mean(1, keepdims=True), ROUNDING, ROTATED, SHARES
    ),
    "take_features": op((X,), lambda b, x: x.take(-1, slice(1, 4)), lambda x: x[..., 1:4], ROUNDING, FRESH, SHARES),
    "take_feature": op((X,), lambda b, x: x.take(2, -1), lambda x: x[..., -1:], ROUNDING, FRESH, SHARES),
    "take_token": op((X,), lambda b, x: x.take(1, 2), lambda x: x[:, 2:3], ROUNDING, ROTATED, SHARES),
    "take_last_token": op((X,), lambda b, x: x.take(1, -1), lambda x: x[:, -1:], ROUNDING, ROTATED, SHARES),
    "split_heads": op((X,), lambda b, x: x.split_heads(HEADS), heads, ROUNDING, FRESH, SHARES),
    "merge_heads": op((X,), lambda b, x: x.split_heads(HEADS).merge_heads(), lambda x: x, ROUNDING, FRESH, SHARES),
    "scores": op((X, Y), lambda b, x, y: run_scores(x, y), scores, ROUNDING, ROTATED, SHARES),
    "scores_sum": op(
        (X, Y),
        lambda b, x, y: run_scores(x, y).sum(-1),
        lambda x, y: scores(x, y).sum(-1, keepdims=True),
        ROUNDING,
        ROTATED,
        SHARES,
    ),
    "scores_mean": op(
        (X, Y),
        lambda b, x, y: (s := run_scores(x, y)) - s.mean(-1),
        lambda x, y: scores(x, y) - scores(x, y).mean(-1, keepdims=True),
        ROUNDING,
        ROTATED,
        SHARES,
    ),
    "scores_mask": op(
        (X, Y), lambda b, x, y: run_scores(x, y) * MASK, lambda x, y: scores(x, y) * MASK, ROUNDING, ROTATED, SHARES
    ),
    "scores_plus": op(
        (X, Y), lambda b, x, y: run_scores(x, y) + MASK, lambda x, y: scores(x, y) + MASK, ROUNDING, ROTATED, SHARES
    ),
    "scores_mix": op(
        (X, Y),
        lambda b, x, y: run_scores(x, y).mix(y.split_heads(HEADS)).merge_heads(),
        lambda x, y: merged(mix(scores(x, y), heads(y))),
        ROUNDING,
        ROTATED,
        SHARES,
    ),
    "per_key_plus": op(
        (X, Y),
        lambda b, x, y: run_scores(x, y) + run_squares(y).per_key(),
        lambda x, y: scores(x, y) + squares(y).swapaxes(2, 3),
        ROUNDING,
        ROTATED,
        SHARES,
    ),
    "per_key_times": op(
        (X, Y),
        lambda b, x, y: run_scores(x, y) * y.split_heads(HEADS).sum(-1).per_key(),
        lambda x, y: scores(x, y) * heads(y).sum(-1)[:, :, None],
        ROUNDING,
        ROTATED_TWICE,
        SHARES,
    ),
    "per_key_first": op(
        (X, Y),
        lambda b, x, y: y.split_heads(HEADS).sum(-1).per_key() * run_scores(x, y),
        lambda x, y: scores(x, y) * heads(y).sum(-1)[:, :, None],
        ROUNDING,
        ROTATED_TWICE,
        SHARES,
    ),
    "per_key_and_query": op(
        (X, Y),
        lambda b, x, y: x.split_heads(HEADS).sum(-1) * y.split_heads(HEADS).sum(-1).per_key(),
        lambda x, y: heads(x).sum(-1, keepdims=True) * heads(y).sum(-1)[:, :, None],
        ROUNDING,
        ROTATED_TWICE,
        SHARES,
    ),
    "per_key_mixed": op(
        (X, Y),
        lambda b, x, y: (run_scores(x, y) + run_squares(y).per_key()).mix(y.split_heads(HEADS)),
        lambda x, y: mix(scores(x, y) + squares(y).swapaxes(2, 3), heads(y)),
        ROUNDING,
        ROTATED_TWICE,
        SHARES,
    ),
    "per_query_times": op(
        (X, Y),
        lambda b, x, y: run_scores(x, y) * x.split_heads(HEADS).sum(-1),
        lambda x, y: scores(x, y) * heads(x).sum(-1, keepdims=True),
        ROUNDING,
        ROTATED_TWICE,
        SHARES,
    ),
    "linear_attention": op(
        (X, Y),
        lambda b, x, y: run_linear_attention(x, y)[0].merge_heads(),
        lambda x, y: merged(mix(scores(x, y), heads(y))),
        ROUNDING,
        ROTATED_TWICE,
        SHARES,
    ),
    "linear_attention_total": op(
        (X, Y),
        lambda b, x, y: run_linear_attention(x, y)[1],
        lambda x, y: scores(x, y).sum(-1, keepdims=True),
        ROUNDING,
        ROTATED_TWICE,
        SHARES,
    ),
    "linear_attention_kernel": op(
        (X, Y),
        lambda b, x, y: run_linear_attention(x, y, b.weight(KERNEL))[0].merge_heads(),
        lambda x, y: merged(mix(scores(x, y) * KERNEL, heads(y))),
        ROUNDING,
        ROTATED_TWICE,
        Bound(4 * ULP, "the truncation of a weight for every one of 4 keys, times a value below 1"),
    ),
    "linear_attention_kernel_total": op(
        (X, Y),
        lambda b, x, y: run_linear_attention(x, y, b.weight(KERNEL))[1],
        lambda x, y: (scores(x, y) * KERNEL).sum(-1, keepdims=True),
        ROUNDING,
        ROTATED_TWICE,
        SHARES,
    ),
    "mul_weight_number": op((X,), lambda b, x: x * b.weight(B[:1]), lambda x: x * B[:1], ROUNDING, NOISE, SHARES),
    "mul_weight_vector": op((X,), lambda b, x: x * b.weight(ROW), lambda x: x * ROW, ROUNDING, NOISE, SHARES),
    "mul_weight_places": op((X,), lambda b, x: x * b.weight(PLACES), lambda x: x * PLACES, ROUNDING, NOISE, SHARES),
    "mul_weight_scores": op(
        (X, Y),
        lambda b, x, y: run_scores(x, y) * b.weight(KERNEL),
        lambda x, y: scores(x, y) * KERNEL,
        ROUNDING,
        ROTATED,
        SHARES,
    ),
    "add_weight_vector": op((X,), lambda b, x: x + b.weight(ROW), lambda x: x + ROW, ROUNDING, FRESH, SHARES),
    "add_weight_scores": op(
        (X, Y),
        lambda b, x, y: run_scores(x, y) + b.weight(KERNEL),
        lambda x, y: scores(x, y) + KERNEL,
        ROUNDING,
        ROTATED,
        SHARES,
    ),
    "row_factor": op(
        (X, Y),
        lambda b, x, y: (s := run_scores(x, y)).mix(y.split_heads(HEADS)) * s.sum(-1),
        lambda x, y: mix(scores(x, y), heads(y)) * scores(x, y).sum(-1, keepdims=True),
        ROUNDING,
        Bound(2e-5, "noise of key switching in either factor, times the other, up to 4"),
        Bound(3.3 * ULP, "the truncation of one factor, times the other, up to 3.3"),
    ),
    "factor_first": op(
        (X, Y),
        lambda b, x, y: (s := run_scores(x, y)).sum(-1) * s.mix(y.split_heads(HEADS)),
        lambda x, y: mix(scores(x, y), heads(y)) * scores(x, y).sum(-1, keepdims=True),
        ROUNDING,
        Bound(2e-5, "noise of key switching in either factor, times the other, up to 4"),
        Bound(3.3 * ULP, "the truncation of one factor, times the other, up to 3.3"),
    ),
    "combine": op(
        (X, Y),
        lambda b, x, y: x.combine([(0.3, x), (-2e-3, y)], [(x, y), (x, x)], 1.7),
        lambda x, y: 0.3 * x - 2e-3 * y + x * y + x * x + 1.7,
        ROUNDING,
        NOISE,
        FACTOR,
    ),
    "combine_levels": op(
        (X, Y),
        lambda b, x, y: x.combine([(0.5, x)], [(x * y, y), (x, x)], 0.0),
        lambda x, y: 0.5 * x + x * y * y + x * x,
        ROUNDING,
        NOISE,
        SHARES,
    ),
    "combine_terms": op(
        (X, Y),
        lambda b, x, y: x.combine([(0.5, x), (3, y)], (), -0.5),
        lambda x, y: 0.5 * x + 3 * y - 0.5,
        ROUNDING,
        NOISE,
        SHARES,
    ),
    "combine_column": op(
        (COLUMN, X),
        lambda b, c, x: c.combine([(0.5, c)], [(c, x)], 1.0),
        lambda c, x: 0.5 * c + c * x + 1.0,
        ROUNDING,
        NOISE,
        SHARES,
    ),
    "linear_heads": op(
        (X,),
        lambda b, x: x.split_heads(HEADS).linear(b.weight(W[:, :3]), b.weight(B)),
        lambda x: heads(x) @ W[:, :3].T + B,
        ROUNDING,
        NOISE,
        SHARES,
    ),
    "polynomial_3": op((X,), lambda b, x: x.polynomial(CUBIC), clear(CUBIC), ROUNDING, NOISE_DEEP, CUT_MANY),
    "polynomial_7": op((X,), lambda b, x: x.polynomial(SEPTIC), clear(SEPTIC), ROUNDING_MANY, NOISE_DEEP, CUT_MANY),
    "polynomial_even": op((X,), lambda b, x: x.polynomial(EVEN), clear(EVEN), ROUNDING_MANY, NOISE_DEEP, CUT_MANY),
    "polynomial_monomial": op((X,), lambda b, x: x.polynomial(MONOMIAL), clear(MONOMIAL), ROUNDING, NOISE_DEEP, SHARES),
    "polynomial_constant": op(
        (X,), lambda b, x: x.polynomial(Polynomial((0.75,), (-1, 1))), lambda x: 0 * x + 0.75, ROUNDING, FRESH, SHARES
    ),
    "series_even": op(
        (X,), lambda b, x: x.series(EVEN_SERIES), waves(EVEN_SERIES), ROUNDING, NOISE_DEEP, rounded(EVEN_SERIES, 38)
    ),
    "series_odd": op(
        (X,), lambda b, x: x.series(ODD_SERIES), waves(ODD_SERIES), ROUNDING, NOISE_DEEP, rounded(ODD_SERIES, 32)
    ),
    "series_general": op((X,), lambda b, x: x.series(SERIES), waves(SERIES), ROUNDING, NOISE_DEEP, rounded(SERIES, 38)),
    "refresh": op((X, Y), run_refresh, lambda x, y: x * y * y, ROUNDING, NOISE, SHARES),
    "refresh_unused": op((X,), run_refresh_elsewhere, lambda x: x, ROUNDING, FRESH, SHARES),
    "power_softmax": op((SMALL, Y), run_power, power_weights, ROUNDING_MANY, NOISE_DEEP, CUT_MANY),
    "softmax_mean_shift": op((SMALL, Y), run_mean_shift, mean_shift_weights, ROUNDING_MANY, NOISE_DEEP, CUT_MANY),
    "layernorm": op(
        (WIDE,),
        run_layernorm,
        normalised,
        ROUNDING_MANY,
        NOISE_DEEP,
        Bound(32 * ULP, "that of a polynomial, times a value up to 4"),
    ),
    "less": op((X, Y), lambda b, x, y: x.less(y), lambda x, y: (x < y) * 1.0, ROUNDING, None, SHARES),
    "less_scalar": op((X,), lambda b, x: x.less(0.125), lambda x: (x < 0.125) * 1.0, ROUNDING, None, SHARES),
    "less_each": op(
        (X, Y),
        lambda b, x, y: sum_of_bits((x * y).less_each([y, 0.125, x])),
        lambda x, y: (x * y < y) * 1.0 + 2.0 * (x * y < 0.125) + 4.0 * (x * y < x),
        ROUNDING,
        None,
        SHARES,
    ),
    "pool": op(
        (X,),
        lambda b, x: x.split_heads(HEADS).pool(2),
        lambda x: (heads(x)[:, :, ::2] + heads(x)[:, :, 1::2]) / 2,
        ROUNDING,
        None,
        SHARES,
    ),
    "pool_all": op(
        (X,),
        lambda b, x: x.split_heads(HEADS).pool(TOKENS),
        lambda x: heads(x).mean(2, keepdims=True),
        ROUNDING,
        None,
        SHARES,
    ),
    "max": op((X,), lambda b, x: x.max(-1), lambda x: x.max(-1, keepdims=True), ROUNDING, None, SHARES),
}
"""Name → program. Errors are absolute; results are of order 1."""


# ---- counting ---------------------------------------------------------------------------------------------------

Counts = dict[tuple[str, str, str], dict[str, int]]


def counts(recorder: Recorder) -> Counts:
    """What every region, operation and phase counted, without what counted nothing."""
    found = {key: {name: n for name, n in event.counts.items() if n} for key, event in recorder.events.items()}
    return {key: counted for key, counted in found.items() if counted}


@dataclass(frozen=True)
class Result:
    """What an engine made of a program: its value (None where it cannot be seen), shape and counts."""

    value: Array | None
    shape: tuple[int, ...]
    counts: Counts


# ---- secret shares ----------------------------------------------------------------------------------------------


def run_party(backend: Any, names: list[str]) -> dict[str, Result]:
    """What one party of a secret-sharing run does: every program in turn, opened to the client."""
    return {name: run_shared(MpcBackend(backend.runtime, Recorder()), name) for name in names}


def run_shared(backend: Any, name: str) -> Result:
    """One program on one party's backend, real or planning; the client owns the inputs."""
    program = PROGRAMS[name]
    owner = 1
    contents = (x if backend.runtime.rank == owner else np.zeros_like(x) for x in program.inputs)
    inputs = [backend.input(x, owner=owner) for x in contents]
    with backend.recorder.phase("online"):
        output = program.run(backend, *inputs)
    counted = counts(backend.recorder)
    return Result(backend.reveal(output, to=owner), output.shape, counted)


class Table:
    """Where the parties of one run meet, each in a thread, and what each of them sent."""

    def __init__(self, parties: int) -> None:
        from secureattn.backends.crypten.dealer import Dealer

        self.barrier = threading.Barrier(parties, timeout=60)
        self.slots: list[Any] = [None] * parties
        self.sent: list[list[torch.Tensor]] = []
        self.dealer = Dealer([bytes([rank] * 32) for rank in range(parties)])

    def meet(self, rank: int, value: torch.Tensor) -> list[torch.Tensor]:
        """What every party puts down."""
        self.slots[rank] = value
        if self.barrier.wait() == 0:
            self.sent.append(list(self.slots))
        self.barrier.wait()
        return self.sent[-1]


class Threaded(Runtime):
    """A party with keys that are the same in every test; it does all that a real one does."""

    def __init__(self, parameters: MpcParameters, rank: int, table: Table) -> None:
        from secureattn.backends.crypten.csprng import Csprng

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
        return self.exchange(share)

    def from_first(self, values: torch.Tensor) -> torch.Tensor:
        self.count("rounds", 1)
        self.count("bytes_sent", 0 if self.rank else 8 * values.numel() * (self.parameters.parties - 1))
        return self.table.meet(self.rank, values)[0]

    def to_first(self, flat: torch.Tensor) -> torch.Tensor | None:
        self.count("rounds", 1)
        self.count("openings", flat.numel())
        self.count("bytes_sent", 8 * flat.numel() if self.rank else 0)
        sent = self.table.meet(self.rank, flat)
        return None if self.rank else torch.stack(sent).sum(0)

    def exchange(self, flat: torch.Tensor, *, xor: bool = False) -> torch.Tensor:
        self.count("rounds", 1)
        self.count("openings", flat.numel())
        self.count("bytes_sent", flat.numel() * flat.element_size() * (self.parameters.parties - 1))
        first, *others = self.table.meet(self.rank, flat)
        total = first.clone()
        for other in others:
            total = total ^ other if xor else total + other
        return total

    def _dealt(self, requests: Sequence[Request]) -> Iterator[tuple[torch.Tensor, ...]]:
        for request in requests:
            self.requests.append(request)
            masks, derived = draw(request, self.stream, self.rank)
            if self.rank == 0:
                self.count("dealer_bytes", request.correction_bytes)
                parts = torch.split(self.table.dealer.correction(request), [elements(s) for s in request.derived])
                derived = [part.reshape(shape) for part, shape in zip(parts, request.derived, strict=True)]
            yield (*masks, *derived)

    def multiply(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        product = torch.matmul(x, y)
        self.count("macs", product.numel() * x.shape[-1])
        return product

    def turned_back(self, opened: Any, dealt: Any, series: FourierSeries, bits: int, places: int) -> torch.Tensor:
        self.count("harmonics", opened.numel() * series.harmonics)
        return harmonics.turned_back(opened, dealt, series, bits, places)


@dataclass
class Shared:
    """What parties in threads made: the value and its binary places, every party's recorder and requests, and what
    each sent in each round.
    """

    value: Array
    places: int
    recorders: list[Recorder]
    requests: list[list[Request]]
    sent: list[list[torch.Tensor]]


def in_threads(program: Callable[..., Any], *inputs: Array, parameters: MpcParameters | None = None) -> Shared:
    """Run a program of the backend and tensors on shares of the client's inputs."""
    parameters = parameters or MpcParameters()
    table = Table(parameters.parties)

    def party(rank: int) -> tuple[Any, int, Recorder, list[Request]]:
        runtime, recorder = Threaded(parameters, rank, table), Recorder()
        try:
            backend = MpcBackend(runtime, recorder)
            tensors = [backend.input(x if rank == 1 else np.zeros_like(x)) for x in inputs]
            with recorder.phase("online"):
                output = program(backend, *tensors)
            return MpcBackend(runtime, Recorder()).reveal(output), output.places, recorder, runtime.requests
        except BaseException:
            table.barrier.abort()
            raise

    with ThreadPoolExecutor(parameters.parties) as pool:
        results = list(pool.map(party, range(parameters.parties)))
    values, places, recorders, requests = zip(*results, strict=True)
    return Shared(values[0], places[0], list(recorders), list(requests), table.sent)


# ---- ciphertexts ------------------------------------------------------------------------------------------------


class Encryption:
    """Both sides of CKKS for tests: a key owner, and an evaluator with keys for the given rotations."""

    def __init__(self, parameters: CkksParameters, rotations: Iterable[int], tokens: int = TOKENS) -> None:
        from secureattn.backends.ckks.evaluator import SealEvaluator
        from secureattn.backends.ckks.keys import KeyOwner

        self.parameters, self.tokens = parameters, tokens
        self.owner = KeyOwner.generate(parameters, rotations)
        assert self.owner.evaluation_keys is not None
        self.device = SealEvaluator(parameters, self.owner.evaluation_keys)
        self._encrypted: dict[bytes, list[Cipher]] = {}

    def backend(self) -> CkksBackend:
        """An evaluator with a recorder of its own."""
        machine = Machine(self.parameters, self.device, Recorder())
        refresher = MaskedRefresh(machine, self.owner.refresh)
        return CkksBackend(machine, tokens=self.tokens, schedule={REFRESH_POINT}, refresher=refresher)

    def encrypted(self, backend: CkksBackend, x: Array) -> BatchTensor:
        """``[B,S,F]`` encrypted; the same array only once."""
        if x.tobytes() not in self._encrypted:
            columns = pack(x, backend.tokens, backend.batch)
            self._encrypted[x.tobytes()] = [self._fresh(self.owner.encrypt(column)) for column in columns]
        return backend.tensor(self._encrypted[x.tobytes()], x.shape)

    def _fresh(self, blob: bytes) -> Cipher:
        ct = self.device.load(blob)
        return Cipher(self.device.level(ct), ct.scale, ct.size(), ct)

    def decrypted(self, x: BatchTensor) -> Array:
        """The value, read off the slots as the layout says: token·B + query, scores by cyclic diagonals."""
        backend = x.backend
        slots = [self.owner.decrypt(self.device.save(part.data)) for part in x.parts.flat]
        columns = np.stack(slots).reshape(*x.parts.shape, backend.tokens, backend.batch)  # [H or 1, parts, T, B]
        if x.shape[-2] == 1:  # one token: the same at every token
            assert np.ptp(columns, axis=2).max() < 1e-5
        if x.diagonals and x.shape[-1] > 1:
            t = np.arange(backend.tokens)
            columns = np.stack([columns[:, (t - i) % backend.tokens, i] for i in t], axis=2)
        by_query = columns.transpose(3, 0, 2, 1)  # [B, H or 1, T, parts]
        trimmed = by_query[: x.shape[0], :, : x.shape[-2], : x.shape[-1]]
        return trimmed if len(x.shape) == 4 else trimmed[:, 0]


def planned(
    run: Callable[..., Any], inputs: Sequence[Array], parameters: CkksParameters, tokens: int = TOKENS
) -> tuple[SymbolicCkks, BatchTensor]:
    """The same program on shapes alone."""
    backend = SymbolicCkks(parameters, tokens=tokens, schedule={REFRESH_POINT})
    with backend.recorder.phase("online"):
        return backend, run(backend, *(backend.input(x.shape) for x in inputs))


def smallest(run: Callable[..., Any], inputs: Sequence[Array], tokens: int = TOKENS) -> CkksParameters:
    """The smallest ring whose levels hold a program."""
    for ring in (1 << 13, 1 << 14):
        parameters = chain(ring, most_levels(ring))
        with contextlib.suppress(OutOfLevels):
            planned(run, inputs, parameters, tokens)
            return parameters
    raise AssertionError("the program is too deep for this table")


def seal_agrees(encryption: Encryption, x: BatchTensor) -> None:
    """What we keep of every ciphertext is what SEAL has: level, size, and the scale to the last bits."""
    for part in x.parts.flat:
        assert part.level == encryption.device.level(part.data)
        assert part.size == part.data.size() == 2
        assert abs(part.scale / part.data.scale - 1) <= 1e-12


def as_planned(x: BatchTensor, plan: BatchTensor) -> None:
    """Shape and layout, and every ciphertext's level and scale, are what was planned."""
    assert x.shape == plan.shape
    assert x.diagonals == plan.diagonals
    assert x.parts.shape == plan.parts.shape
    assert x.level == plan.level
    for part, expected in zip(x.parts.flat, plan.parts.flat, strict=True):
        assert (part.level, part.size) == (expected.level, expected.size)
        assert abs(part.scale / expected.scale - 1) <= 1e-12
