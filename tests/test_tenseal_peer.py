"""The TenSEAL peer of the CKKS benchmark: the same function as ours, each operation right, counts and scaling exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from secureattn.backends.ckks.parameters import chain
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.nn.encoder import Encoder

pytest.importorskip("tenseal")
ONE_OF_EACH_KIND = (
    "scores",
    "output",
    "output bias",
    "normaliser shift",
    "norm affine",
    "ffn norm lower",
    "scores squared",
    "norm squares",
    "normaliser sums",
    "attention weights",
    "ffn norm polyval",
    "norm refresh",
)


@dataclass
class Bench:
    peer: Any
    program: Any
    folded: Any
    inputs: Any
    survey: Any
    tenseal: Any


@pytest.fixture(scope="module")
def bench(benchmarks: Callable[[str], ModuleType]) -> Bench:
    peer, program = benchmarks("tenseal_peer"), benchmarks("tenseal_program")
    folded, inputs = peer.folded_model()
    parameters = chain(peer.RING_DEGREE, peer.LEVELS)
    survey = program.Survey(folded, inputs, peer.LEVELS)
    return Bench(peer, program, folded, inputs, survey, peer.Peer(parameters))


def test_the_program_is_our_model(bench: Bench) -> None:
    backend = PlaintextBackend()
    with torch.no_grad():
        expected = backend.reveal(Encoder(bench.folded, backend)(backend.input(bench.inputs)))
    assert expected.shape == (360, 1, 10)
    np.testing.assert_allclose(bench.survey.output.array, expected, rtol=0, atol=1e-11)


def test_levels_are_used_to_the_last(bench: Bench) -> None:
    levels = {name: use.output.level for name, use in bench.survey.uses.items()}
    assert {n for n, level in levels.items() if level == 0} >= {"scores squared", "output", "ffn out"}
    refreshed = {n: bench.peer.inputs_level(u.inputs) for n, u in bench.survey.uses.items() if "refresh" in n}
    assert refreshed == {
        "norm refresh": 5,
        "scores refresh": 0,
        "ffn refresh": 0,
        "ffn norm refresh": 2,
        "head refresh": 0,
    }
    with pytest.raises(ValueError, match="1 levels needed, 0 are left"):
        _ = bench.survey.uses["output"].output * 1.0


@pytest.mark.parametrize("tokens", [2, 16])
def test_counts_follow_from_the_shapes(bench: Bench, tokens: int) -> None:
    s, d, f, c, heads, features = tokens, 32, 64, 10, 2, 4
    few = bench.survey if tokens == 16 else bench.program.Survey(bench.folded, bench.inputs[:, :tokens], 8)
    counts = bench.peer.counts(few)
    products = {"embed": s * features * d, "qkv": s * d * 3 * d, "output": s * d * d, "ffn in": s * d * f}
    products |= {"ffn out": s * f * d, "head": d * c, "scores": s * s * d, "mix": s * s * d}
    elements = {"scores squared": heads * s * s, "powers": heads * s * s, "attention weights": heads * s * s}
    elements |= {"normaliser polyval": heads * s, "norm polyval": s, "ffn norm polyval": s, "gelu polyval": s * f}
    elements |= {
        "scores refresh": heads * s * s,
        "ffn refresh": s * d,
        "head refresh": d,
        "norm squares": s * d,
        "head token sums": s * d - d,
    }
    ends = {"encrypt": s * features, "decrypt": c}
    for name, expected in (products | elements | ends).items():
        assert counts[name] == expected, name


def test_kinds_are_all_tried(bench: Bench) -> None:
    tried = {bench.survey.uses[name].kind for name in ONE_OF_EACH_KIND}
    assert tried == {use.kind for use in bench.survey.uses.values()}


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_operations_are_right(bench: Bench, name: str) -> None:
    use = bench.survey.uses[name]
    cuts = tuple(cut and tuple(n and min(n, 2) for n in cut) for cut in use.kind.cuts)
    clear = replace(use.kind, cuts=cuts).sample(use.inputs)
    expected = use.kind.apply(*clear)
    inputs = [bench.tenseal.encrypt(x.array, x.level) if isinstance(x, bench.program.Clear) else x for x in clear]
    for deferred in (False, True)[: 1 + bench.tenseal.deferrable(use)]:
        result = bench.tenseal.run(use, inputs, deferred=deferred)
        cipher = result.ciphertext()[0]
        assert result.shape == expected.shape
        assert (cipher.coeff_modulus_size() - 1, cipher.size()) == (expected.level, 2)
        assert np.abs(expected.array).max() > 0.05
        np.testing.assert_allclose(bench.tenseal.decrypt(result), expected.array, rtol=0, atol=1e-4)


def test_a_row_holds_what_scales(bench: Bench) -> None:
    row = bench.tenseal.sample("head", bench.survey.uses["head"])
    assert (row["level"], row["count_in_model"], row["units_in_sample"]) == (8, 320, 32 * bench.program.FEW)
    assert len(row["seconds_samples"]) == len(row["deferred_seconds_samples"]) == 1
    assert max(row["max_abs_error"], row["deferred_max_abs_error"]) < 1e-4
    ends = bench.tenseal.ends(bench.survey)
    assert [(r["name"], r["level"], r["count_in_model"]) for r in ends] == [("encrypt", 8, 64), ("decrypt", 7, 10)]
    assert max(r["max_abs_error"] for r in ends) < 1e-6


def test_scaling_is_by_medians_and_units(bench: Bench) -> None:
    rows = [
        {"name": "a", "phase": "online", "units_in_sample": 4, "seconds_samples": [1.0, 2.0, 9.0]},
        {"name": "b", "phase": "refresh", "units_in_sample": 1, "seconds_samples": [0.5]},
        {
            "name": "c",
            "phase": "online",
            "units_in_sample": 2,
            "seconds_samples": [8.0],
            "deferred_seconds_samples": [2.0],
        },
    ]
    units = {"a": 10, "b": 3, "c": 5}
    assert bench.peer.scaled(rows, units, deferred=False) == {"online": 25.0, "refresh": 1.5}
    assert bench.peer.scaled(rows, units, deferred=True) == {"online": 10.0, "refresh": 1.5}


def test_rounds_keep_all_samples_and_the_worst_error(bench: Bench) -> None:
    first = {"name": "a", "units_in_sample": 4, "seconds_samples": [1.0], "max_abs_error": 2e-6}
    second = {"name": "a", "units_in_sample": 4, "seconds_samples": [3.0], "max_abs_error": 1e-6}
    expected = {"name": "a", "units_in_sample": 4, "seconds_samples": [1.0, 3.0], "max_abs_error": 2e-6}
    assert bench.peer.merged([[first], [second]]) == [expected]


@pytest.mark.slow
def test_the_whole_program_on_two_tokens(bench: Bench) -> None:
    few = bench.inputs[:, :2]
    survey = bench.program.Survey(bench.folded, few, bench.peer.LEVELS)
    _, error = bench.tenseal.whole(bench.folded, few, survey, deferred=True)
    assert error < 5e-4
