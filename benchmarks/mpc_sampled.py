"""Truncated products, softmax and GELU on secret shares, by the million and by the row; softmax on plain CrypTen too.

The client knows what comes out, and counts what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from secureattn import load_protocol
from secureattn.approx import realise
from secureattn.approx.attention.softmax import softmax
from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.launch import run_parties
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.products import products
from secureattn.backends.crypten.runtime import CLIENT, MODEL_OWNER
from secureattn.backends.crypten.truncation import truncate

Array = npt.NDArray[np.float64]
SEED = 20240607
CHUNK = 1 << 20
GROSS_UNITS = 2
"""A truncated product is grossly wrong if it is so many units in the last place off; rounding alone is below one."""

ROWS = 32
PEAK = 12.0
INTEGER_BITS = 20
"""Declared range for rows with such a peak: exponentials up to e^12."""

EXP_ERROR, RECIPROCAL_ERROR = 1e-4, 1e-4


def truncated(count: int, truncation: str) -> dict[str, Any]:
    """So many products of operands whose product fills the declared range, truncated: how many are grossly wrong."""
    parameters = MpcParameters(truncation=truncation)  # type: ignore[arg-type]
    chunks = -(-count // CHUNK)
    client = run_parties("mpc_sampled:multiply", [chunks] * 2, parameters)[CLIENT]
    wrong, worst = client.value
    return {
        "truncation": truncation,
        "products": chunks * CHUNK,
        "fractional_bits": parameters.fractional_bits,
        "integer_bits": parameters.integer_bits,
        "gross": wrong,
        "largest_other_units": worst,
    }


def multiply(backend: MpcBackend, chunks: int) -> tuple[int, float]:
    """What a party does: factors of either party, uniform below 2^(integer_bits/2), multiplied and truncated."""
    runtime, parameters = backend.runtime, backend.runtime.parameters
    bits, rng = parameters.fractional_bits, np.random.default_rng(SEED)
    most = 1 << (bits + parameters.integer_bits // 2)
    wrong, worst = 0, 0.0
    for _ in range(chunks):
        x, y = (rng.integers(-most + 1, most, CHUNK) for _ in range(2))  # both know all: this is about arithmetic
        with backend.recorder.op("multiply"):
            factors = runtime.share(x, owner=MODEL_OWNER), runtime.share(y, owner=CLIENT)
            (product,) = products(runtime, [factors])
            (scaled,) = truncate(runtime, [product], [bits])
            found = runtime.reveal(scaled, to=CLIENT)
        if found is None:
            continue
        off = np.abs(found.numpy() - x * y / 2.0**bits)
        gross = off >= GROSS_UNITS
        wrong += int(gross.sum())
        worst = max(worst, float(off[~gross].max()))
    return wrong, worst


# ---- softmax ------------------------------------------------------------------------------------------------


def rows(keys: int) -> dict[str, tuple[Array, Array | None]]:
    """Scores ``[ROWS,keys]`` and masks: almost equal ones, one far above the rest, and all but some keys hidden."""
    rng = np.random.default_rng([SEED, keys])
    flat = rng.normal(scale=0.1, size=(ROWS, keys))
    peaked = rng.normal(scale=0.5, size=(ROWS, keys))
    peaked[np.arange(ROWS), rng.integers(0, keys, ROWS)] += PEAK
    mask = (np.arange(keys) < rng.integers(1, keys + 1, (ROWS, 1))).astype(np.float64)
    return {"flat": (flat, None), "peaked": (peaked, None), "masked": (rng.normal(size=(ROWS, keys)), mask)}


def true_softmax(scores: Array, mask: Array | None) -> Array:
    """In float64."""
    powers = np.exp(scores - scores.max(-1, keepdims=True)) * (1.0 if mask is None else mask)
    weights: Array = powers / powers.sum(-1, keepdims=True)
    return weights


def softmax_errors(sizes: list[int]) -> list[dict[str, Any]]:
    """For every number of keys and kind of row: the largest error of a weight on shares, and the rounds."""
    cases = [(keys, kind) for keys in sizes for kind in ("flat", "peaked", "masked")]
    parameters = MpcParameters(integer_bits=INTEGER_BITS)
    results = run_parties("mpc_sampled:weigh", [cases] * 2, parameters)
    found = []
    for (keys, kind), (weights, rounds) in zip(cases, results[CLIENT].value, strict=True):
        expected = true_softmax(*rows(keys)[kind])
        error = float(np.abs(weights - expected).max())
        found.append({"keys": keys, "rows": kind, "rounds": rounds, "max_abs_error": error})
    return found


def weigh(backend: MpcBackend, cases: list[tuple[int, str]]) -> list[tuple[Array | None, int]]:
    """What a party does: softmax of rows that the client owns, with functions made for where those rows lie."""
    found = []
    for keys, kind in cases:
        scores, mask = rows(keys)[kind]
        exp, reciprocal = functions(scores, mask)
        x = backend.input(scores if backend.runtime.rank == CLIENT else np.zeros_like(scores))
        before = backend.recorder.total("rounds", phase="online")
        weights = softmax(x, exp=exp, reciprocal=reciprocal, mask=mask).weights()
        rounds = backend.recorder.total("rounds", phase="online") - before
        found.append((backend.reveal(weights, to=CLIENT), rounds))
    return found


def functions(scores: Array, mask: Array | None) -> tuple[Any, Any]:
    """exp and 1/x on the ranges of these rows, a tenth wider."""
    shown = np.ones_like(scores) if mask is None else mask
    visible = shown.sum(-1, keepdims=True)
    shifted = scores - (scores * shown).sum(-1, keepdims=True) / visible
    total = (np.exp(shifted) * shown).sum(-1) * (1.0 if mask is None else 2.0 ** -np.ceil(np.log2(visible[:, 0])))
    low, high = min(float((shifted * shown).min()), 0.0), max(float((shifted * shown).max()), 0.0)
    margin = (high - low) / 10
    exp = realise("exp", {"kind": "fourier", "error": EXP_ERROR}, (low - margin, high + margin))
    domain = (float(total.min()) / 1.1, float(total.max()) * 1.1)
    return exp, realise("reciprocal", {"kind": "octaves", "error": RECIPROCAL_ERROR}, domain)


def peer_softmax_errors(parties: Callable[..., Any], directory: Path, sizes: list[int]) -> list[float]:
    """The largest error of a weight by CrypTen's own softmax, in the order of ``softmax_errors``; hidden keys' scores
    are lowered by 10,000, as masks do in the clear.
    """
    cases = [(keys, kind) for keys in sizes for kind in ("flat", "peaked", "masked")]
    outputs: list[Array] = parties(_peer_weigh, directory, (cases,))[CLIENT]
    expected = (true_softmax(*rows(keys)[kind]) for keys, kind in cases)
    errors = [float(np.abs(a - b).max()) for a, b in zip(outputs, expected, strict=True)]
    return [error if math.isfinite(error) else 1e300 for error in errors]


def _peer_weigh(crypten: Any, rank: int, cases: list[tuple[int, str]]) -> list[Array]:
    found = []
    for keys, kind in cases:
        scores, mask = rows(keys)[kind]
        lowered = scores if mask is None else scores - 1e4 * (1 - mask)
        own = torch.from_numpy(lowered if rank == CLIENT else np.zeros_like(lowered)).float()
        x = crypten.cryptensor(own, src=CLIENT)
        found.append(x.softmax(-1).get_plain_text().double().numpy())
    return found


# ---- GELU ---------------------------------------------------------------------------------------------------

GELU_RANGE, GELU_POINTS = 10.0, 4001
GELU_PROTOCOLS = ("accurate-mpc", "puma", "bolt-gelu", "shaft", "secformer")


def gelu_errors() -> dict[str, float]:
    """The largest error of each protocol's GELU over a grid, on shares."""
    points = np.linspace(-GELU_RANGE, GELU_RANGE, GELU_POINTS)
    values = run_parties("mpc_sampled:activate", [points] * 2)[CLIENT].value
    true = torch.nn.functional.gelu(torch.from_numpy(points)).numpy()
    return {name: float(np.abs(found - true).max()) for name, found in values.items()}


def activate(backend: MpcBackend, points: Array) -> dict[str, Array | None]:
    """What a party does: GELU of numbers that the client owns, under every protocol."""
    x = backend.input(points if backend.runtime.rank == CLIENT else np.zeros_like(points))
    found = {}
    for name in GELU_PROTOCOLS:
        function = realise("gelu", load_protocol(name).functions["gelu"], (-GELU_RANGE, GELU_RANGE))
        found[name] = backend.reveal(function(x), to=CLIENT)
    return found
