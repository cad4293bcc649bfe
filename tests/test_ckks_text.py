"""Texts of any length under CKKS: pretrained softmax, norms after sums, queries of unequal lengths in one batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import Array, assert_close

from secureattn import load_protocol
from secureattn.errors import PlanError
from secureattn.nn import parameters
from secureattn.nn.batch import Batch, Shape
from secureattn.nn.config import ModelConfig
from secureattn.nn.model import Model
from secureattn.plan import Plan, make_plan
from secureattn.protocol import Protocol
from secureattn.runs import clear_run, execute
from secureattn.runs.result import Run
from secureattn.train.ranges import calibrate

CONFIG = ModelConfig(
    name="small-bert",
    tokens=3,
    features=40,
    width=8,
    heads=2,
    hidden=16,
    layers=1,
    classes=8,
    attention="softmax",
    norm_epsilon=1e-12,
    input="tokens",
    output="vector",
    unit=True,
    norm_after=True,
    embed_norm=True,
)
TOKENS = np.random.default_rng(5).integers(0, 40, size=(60, 3))
TEXTS = Batch(TOKENS[:5], (2, 3, 3, 1, 2))
"""Of 3 tokens at most, which leaves a padded one."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder: Path = tmp_path_factory.mktemp("small-bert")
    made = parameters.initial(CONFIG, seed=1)
    lengths = tuple(np.random.default_rng(6).integers(1, 4, size=60).tolist())
    ranges = calibrate(CONFIG, made, Batch(TOKENS, lengths), margin=0.6)
    (folder / "config.json").write_text(CONFIG.to_json())
    (folder / "ranges.json").write_text(ranges.to_json())
    parameters.save(folder / "model.safetensors", made)
    return Model(folder, CONFIG, ranges)


def accurate(softmax: str = "softmax_normalise_square") -> Protocol:
    return replace(load_protocol("accurate-ckks"), softmax=softmax)


def planned(model: Model, protocol: Protocol, batch: Batch, *, memory_bytes: float | None = None) -> Plan:
    return make_plan(model, protocol, samples=len(batch), shape=batch.shape, workers=1, memory_bytes=memory_bytes)


@pytest.fixture(scope="module")
def whole(model: Model) -> Plan:
    """All texts in one batch, all hidden features at once."""
    return planned(model, accurate(), TEXTS)


@pytest.fixture(scope="module", params=["softmax_normalise_square", "softmax"])
def encrypted(model: Model, whole: Plan, request: pytest.FixtureRequest) -> tuple[Plan, Run]:
    plan = whole if request.param == whole.protocol.softmax else planned(model, accurate(request.param), TEXTS)
    return plan, execute(plan, TEXTS, errors=True)


def test_vectors_are_those_in_the_clear(encrypted: tuple[Plan, Run]) -> None:
    plan, run = encrypted
    clear = clear_run(plan, TEXTS)
    assert clear.escapes == {}
    assert_close(run.outputs, clear.outputs, 1e-4, "noise of a scale of 2^40 through a layer")


def test_a_text_has_the_same_vector_alone(model: Model, encrypted: tuple[Plan, Run]) -> None:
    plan, run = encrypted
    exact = [clear_run(plan, TEXTS.part([row]), exact=True).outputs for row in range(len(TEXTS))]
    assert_close(run.outputs, np.concatenate(exact), 2e-2, "the approximations' errors through a layer")


def test_every_region_says_how_much_it_errs(encrypted: tuple[Plan, Run]) -> None:
    _, run = encrypted
    bits = {e.region: e.error_bits for e in run.parties[0].events if e.error_bits is not None}
    assert bits["layer.0/ffn/gelu"] > 10
    assert bits["layer.0/ffn"] > 10


@pytest.mark.parametrize("name", ["ct_products", "pt_products", "rotations", "relinearisations", "rescales", "rounds"])
def test_the_plan_counts_what_the_run_counts(encrypted: tuple[Plan, Run], name: str) -> None:
    plan, run = encrypted
    assert plan.ckks is not None
    assert run.total(name) == plan.ckks.recorder.total(name)


DECODER = replace(
    CONFIG,
    name="small-decoder",
    tokens=3,
    features=11,
    classes=11,
    hidden=10,
    input="tokens",
    output="next",
    causal=True,
    unit=False,
    norm_after=False,
    embed_norm=False,
    final_norm=True,
)
DECODERS = {
    "gpt2": replace(DECODER, tied=True),
    "llama": replace(DECODER, positions="rotary", gated=True, activation="silu", norm="rmsnorm"),
}


@pytest.mark.parametrize("family", DECODERS)
def test_scores_of_every_next_token(family: str, tmp_path: Path) -> None:
    config, rows = DECODERS[family], np.random.default_rng(7).integers(0, 11, size=(80, 3))
    made = parameters.initial(config, seed=2)
    parameters.save(tmp_path / "model.safetensors", made)
    model = Model(tmp_path, config, calibrate(config, made, Batch(rows), margin=0.5))
    batch = Batch(rows[:3], (3, 1, 2))
    plan = planned(model, accurate(), batch)
    run, clear = execute(plan, batch), clear_run(plan, batch)
    assert clear.escapes == {}
    there = np.arange(3) < np.array(batch.lengths)[:, None]
    assert np.array_equal(~np.isnan(run.outputs).any(-1), there)
    assert_close(run.outputs[there], clear.outputs[there], 1e-4, "noise of a scale of 2^40 through a layer")
    for name in ("ct_products", "rotations", "bytes_sent"):
        assert plan.ckks is not None
        assert run.total(name) == plan.ckks.recorder.total(name), name


def test_the_dense_layout_has_inputs_of_one_length(model: Model) -> None:
    dense = replace(accurate(), ckks=replace(accurate().ckks, layout="dense"))
    with pytest.raises(PlanError, match=r"the dense layout has no inputs of unequal lengths; set ckks.layout = "):
        planned(model, dense, TEXTS)


def test_lengths_of_a_batch_cost_nothing_to_know(model: Model) -> None:
    """What a plan costs shows that lengths differ, and not which they are."""
    plans = [planned(model, accurate(), Batch(TOKENS[:3], lengths)) for lengths in ((2, 3, 3), (3, 3, 1))]
    events = [
        {key: dict(event.counts) for key, event in plan.ckks.recorder.events.items()} for plan in plans if plan.ckks
    ]
    assert events[0] == events[1]


def test_the_last_batch_is_as_full_as_the_others(whole: Plan) -> None:
    plan = replace(whole, samples=5)
    assert plan.batches_of(2) == [[0, 1], [2, 3], [4, 4]]
    assert plan.at(Shape(5, 3)).batches_of(2) == [[0, 1], [2, 3], [4]]


def test_less_memory_makes_blocks_of_hidden_features(model: Model, whole: Plan) -> None:
    assert whole.ckks is not None
    assert whole.ckks.blocks == 1
    assert whole.warnings == ()
    memory = whole.ckks.memory
    parts = planned(model, accurate(), TEXTS, memory_bytes=memory.total - 0.1 * memory.ciphertexts)
    assert parts.ckks is not None
    assert parts.ckks.blocks > 1
    assert parts.ckks.memory.ciphertexts < memory.ciphertexts
    assert "this run takes" in " ".join(planned(model, accurate(), TEXTS, memory_bytes=1.0).warnings)
    run = execute(parts, TEXTS)
    assert_close(run.outputs, clear_run(whole, TEXTS).outputs, 1e-4, "noise of a scale of 2^40 through a layer")
    assert run.total("ct_products") == parts.ckks.recorder.total("ct_products")


def test_a_norm_after_a_sum_takes_a_slope_for_nothing(whole: Plan) -> None:
    functions: dict[str, Array] = {}
    for site, function in whole.folded().functions().items():
        if site.endswith("norm"):
            assert function.polynomial is not None
            functions[site] = np.diff(function.polynomial.domain)
    assert len(functions) == 2
    assert_close(list(functions.values()), np.full((2, 1), 2.0), 1e-9, "float64 rounds")


def test_roots_may_err_but_for_the_last(model: Model) -> None:
    made = accurate().realisations(model)
    errors = [made[f"layer.0/attention/square.{name}"].error or 0.0 for name in ("first", "middle", "rsqrt")]
    assert min(errors[:2]) > 2e-3 > errors[2]
