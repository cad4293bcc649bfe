"""digits-vit as a program over TenSEAL's ``CKKSTensor``, and over a stand-in in the clear that notes what it does.

One ciphertext per (token, feature), the images of a batch in its slots. Every operation goes through ``step(name, kind,
*inputs)``, so one text serves a whole encrypted run, the clear run it is compared with, samples of its operations, and
a run over ``CKKSVector`` (tenseal_vectors.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tenseal as ts

if TYPE_CHECKING:  # it also runs where nothing of ours is installed
    from secureattn.nn.fold import Folded, FoldedLayer
    from secureattn.polynomial import Polynomial

Array = npt.NDArray[np.float64]
Step = Callable[..., Any]
THREADS = os.cpu_count() or 1
"""``ts.context`` starts so many threads unless told otherwise."""
FEW = 8 * math.ceil(THREADS / 8)
PAIR = max(2, THREADS)


@dataclass
class Clear:
    """Stands in for a ``CKKSTensor``: values ``[B, …]`` in the clear, and the level that the ciphertexts would have."""

    array: Array
    level: int
    top: int

    @property
    def shape(self) -> list[int]:
        return list(self.array.shape[1:])

    def _with(self, array: Array, spent: int = 0, other: Any = None) -> Clear:
        level = min(self.level, other.level if isinstance(other, Clear) else self.top) - spent
        if level < 0:
            raise ValueError(f"{spent} levels needed, {level + spent} are left")
        return Clear(array, level, self.top)

    def __getitem__(self, item: tuple[slice, ...]) -> Clear:
        return self._with(self.array[(slice(None), *item)])

    def __add__(self, other: Any) -> Clear:
        return self._with(self.array + _values(other), 0, other)

    def __mul__(self, other: Any) -> Clear:
        return self._with(self.array * _values(other), 1, other)

    def mm(self, other: Any) -> Clear:
        return self._with(self.array @ _values(other), 1, other)

    def sum(self, axis: int) -> Clear:
        return self._with(self.array.sum(axis))

    def reshape(self, shape: Sequence[int]) -> Clear:
        return self._with(self.array.reshape(-1, *shape))

    def broadcast(self, shape: Sequence[int]) -> Clear:
        return self._with(np.broadcast_to(self.array, (len(self.array), *shape)))

    def transpose(self) -> Clear:
        return self._with(self.array.swapaxes(1, 2))

    def polyval(self, coefficients: Sequence[float]) -> Clear:
        depth = math.floor(math.log2(len(np.trim_zeros(coefficients, "b")) - 1)) + 1
        return self._with(np.asarray(np.polynomial.polynomial.polyval(self.array, coefficients)), depth)


def _values(x: Any) -> Any:
    return x.array if isinstance(x, Clear) else x


def refresh(x: Any) -> Any:
    """All levels again, from the key owner."""
    return replace(x, level=x.top) if isinstance(x, Clear) else ts.ckks_tensor(x.context(), x.decrypt(), batch=True)


@dataclass(frozen=True)
class Kind:
    """``apply`` on whole arguments; how many rows and columns of each make a sample; which axis of the first is summed
    over (its length counts in units); whether it sums products, so that one relinearisation and rescaling can do.
    """

    apply: Callable[..., Any]
    cuts: tuple[tuple[int | None, ...] | None, ...]
    summed: int | None = None
    deferrable: bool = False
    phase: str = "online"

    def units(self, inputs: Sequence[Any], output: Any) -> int:
        """Ciphertext operations: products of an mm, terms of a sum, ciphertexts otherwise."""
        return int(math.prod(output.shape) * (1 if self.summed is None else inputs[0].shape[self.summed]))

    def sample(self, inputs: Sequence[Any]) -> list[Any]:
        """The first rows and columns of the inputs; numbers and coefficients as they are."""
        pairs = zip(inputs, self.cuts, strict=True)
        return [x if cut is None else x[tuple(map(slice, cut[: len(x.shape)]))] for x, cut in pairs]


def _times_column(x: Any, column: Any) -> Any:
    # One value a token is kept as [S]: TenSEAL 0.3.18 mixes up what it encrypts when the last axis has length 1.
    return x * column.reshape([*column.shape, 1]).broadcast(x.shape)


MM = Kind(lambda x, weight: x.mm(weight), ((1, None), (None, FEW)), summed=1, deferrable=True)
SCORES = Kind(lambda q, k: q.mm(k.transpose()), ((1, None), (FEW, None)), summed=1, deferrable=True)
ADD = Kind(lambda x, y: x + y, ((1, FEW), (1, FEW)))
SHIFT = Kind(lambda x, constant: x + constant, ((PAIR, FEW), None))
AFFINE = Kind(lambda x, slope, shift: x * slope + shift, ((PAIR, FEW), None, None))
SCALE = Kind(lambda x, factor: x * factor, ((PAIR, FEW), None))
SQUARE = Kind(lambda x: x * x, ((1, FEW),))  # square() runs on one thread
SQUARES = Kind(lambda x: (x * x).sum(2), ((PAIR, None),), summed=1, deferrable=True)
ROW_SUMS = Kind(lambda x: x.sum(2), ((PAIR, None),), summed=1)
TIMES_COLUMN = Kind(_times_column, ((PAIR, FEW), (PAIR,)))
POLYVAL = Kind(lambda x, coefficients: x.polyval(coefficients), ((PAIR, 2 * FEW), None))
REFRESH = Kind(refresh, ((PAIR, FEW),), phase="refresh")


def monomials(p: Polynomial) -> list[float]:
    """Coefficients of powers of the mapped variable t in [−1,1]; those of x itself would underflow the scale."""
    return [float(c) for c in np.polynomial.chebyshev.cheb2poly(p.coefficients)]


def program(step: Step, folded: Folded, x: Any) -> Any:
    """Tokens ``[S,F]`` of a batch → class scores ``[1,C]``."""
    assert folded.embed is not None
    assert folded.head is not None
    x = _linear(step, "embed", x, folded.embed.weight, folded.embed.bias)
    x = _attention(step, folded, x)
    x = step("ffn refresh", REFRESH, x)
    total = _ffn(step, folded, x)
    head = folded.head
    return _linear(step, "head", step("head refresh", REFRESH, total), head.weight, x.shape[0] * head.bias)


def polynomial(layer: FoldedLayer, site: str) -> Polynomial:
    """The one that a function of the model is computed by."""
    found = layer.functions[site].polynomial
    assert found is not None
    return found


def _attention(step: Step, folded: Folded, x: Any) -> Any:
    """``x +`` attention. The row factor joins the numerators before the mix, which then runs near the last level."""
    config, layer = folded.config, folded.layers[0]
    p = polynomial(layer, "attention/norm")
    total = step("norm squares", SQUARES, x)
    total = step("norm refresh", REFRESH, step("norm affine", AFFINE, total, p.slope, p.shift))
    normed = step("norm product", TIMES_COLUMN, x, step("norm polyval", POLYVAL, total, monomials(p)))
    p, width, head_width = polynomial(layer, "attention/normaliser"), config.width, config.head_width
    assert (p.slope, config.power) == (1.0, 4)
    for start in range(0, width, head_width):
        rows = [slice(i + start, i + start + head_width) for i in (0, width, 2 * width)]
        q, k, v = (_linear(step, "qkv", normed, layer.qkv.weight[r], layer.qkv.bias[r]) for r in rows)
        squares = step("scores squared", SQUARE, step("scores", SCORES, q, k))
        powers = step("powers", SQUARE, step("scores refresh", REFRESH, squares))
        sums = step("normaliser sums", ROW_SUMS, powers)
        total = step("normaliser shift", SHIFT, sums, layer.attention_epsilon + p.shift)
        factor = step("normaliser polyval", POLYVAL, total, monomials(p))
        weights = step("attention weights", TIMES_COLUMN, powers, factor)
        context = step("mix", MM, weights, v)
        part = step("output", MM, context, np.asarray(layer.output.weight[:, rows[0]]).T)
        x = step("attention residual", ADD, x, part)
    return step("output bias", ADD, x, _every(layer.output.bias, x))


def _ffn(step: Step, folded: Folded, x: Any) -> Any:
    """Sum over tokens ``[1,D]`` of x + FFN(x), token by token: polyval takes some 18 MiB for each of S·F values."""
    layer = folded.layers[0]
    p = polynomial(layer, "ffn/norm")
    gelu = monomials(polynomial(layer, "ffn/gelu"))
    total = step("ffn norm affine", AFFINE, step("ffn norm squares", SQUARES, x), p.slope, p.shift)
    inverse = step("ffn norm refresh", REFRESH, step("ffn norm polyval", POLYVAL, total, monomials(p)))
    # One level spent on a value per token makes all that follows one level, and a prime, cheaper.
    normed = step("ffn norm product", TIMES_COLUMN, x, step("ffn norm lower", SCALE, inverse, 1.0))
    totals = None
    for token in (slice(i, i + 1) for i in range(x.shape[0])):
        hidden = _linear(step, "ffn in", normed[token, :], layer.ffn_in.weight, layer.ffn_in.bias)
        active = step("gelu polyval", POLYVAL, hidden, gelu)
        part = _linear(step, "ffn out", active, layer.ffn_out.weight, layer.ffn_out.bias)
        part = step("ffn residual", ADD, x[token, :], part)
        totals = part if totals is None else step("head token sums", ADD, totals, part)
    return totals


def _linear(step: Step, name: str, x: Any, weight: Any, bias: Any) -> Any:
    y = step(name, MM, x, np.asarray(weight).T)
    return step(f"{name} bias", ADD, y, _every(bias, y))


def _every(bias: Any, x: Any) -> Array:
    """A bias ``[D]`` or ``[S,D]`` for each of x's tokens: TenSEAL does not broadcast."""
    values = np.asarray(bias)
    return np.broadcast_to(values if values.ndim == 1 else values[: x.shape[0]], x.shape)


@dataclass
class Use:
    """An operation where it first occurs in the program, and its units at all places of that name."""

    kind: Kind
    inputs: tuple[Any, ...]
    output: Clear
    units: int


class Survey:
    """A run in the clear that notes every operation."""

    def __init__(self, folded: Folded, inputs: Array, levels: int) -> None:
        self.uses: dict[str, Use] = {}
        self.encryptions = inputs[0].size
        self.output = program(self, folded, Clear(inputs, levels, levels))

    def __call__(self, name: str, kind: Kind, *inputs: Any) -> Any:
        output = kind.apply(*inputs)
        use = self.uses.setdefault(name, Use(kind, inputs, output, 0))
        assert (use.kind, use.output.level) == (kind, output.level)
        use.units += kind.units(inputs, output)
        return output
