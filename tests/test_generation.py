"""Generation: the network's own scores token by token, chosen by the client, in the clear and on shares."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import failed, run
from helpers import assert_close

from secureattn import load_model, load_protocol
from secureattn.errors import CapabilityError, InputError, PlanError, SecureAttnError
from secureattn.nn.batch import Batch
from secureattn.nn.choice import Choice
from secureattn.nn.model import Model
from secureattn.nn.parameters import initial, save
from secureattn.nn.ranges import UNMEASURED
from secureattn.plan import Plan, make_plan
from secureattn.runs import clear_run, execute, generation, perplexity
from secureattn.runs.generation import Generated
from secureattn.train.ranges import calibrate

MODELS = ("bytes-gpt2", "bytes-gpt2-power", "bytes-llama", "bytes-llama-power")
PROMPTS = ["The value of ", "A class body ", "If no object"]
NEW = 6


def planned(name: str, new: int = NEW, protocol: str = "accurate-mpc") -> tuple[Plan, Batch]:
    model = load_model(name)
    prompt = model.batch([p[:12] for p in PROMPTS])
    return generation.planned(model, load_protocol(protocol), prompt.shape, new), prompt


# ---- the client's choice ----------------------------------------------------------------------------------------


def test_the_best_token_is_chosen_unless_more_are_asked_for() -> None:
    scores = np.array([[0.0, 3.0, 1.0], [2.0, -1.0, 0.5]])
    assert Choice()(scores).tolist() == [1, 0]
    assert Choice(top_k=1, seed=5)(scores).tolist() == [1, 0]


def test_draws_follow_softmax_among_the_k_best_and_repeat_with_the_seed() -> None:
    scores = np.tile([1.0, 0.0, 2.0, -9.0], (20000, 1))
    drawn = Choice(top_k=2, temperature=0.5, seed=3)(scores)
    assert set(drawn.tolist()) == {0, 2}
    wanted = 1 / (1 + np.exp(-2.0))  # (2 − 1)/0.5 apart
    assert abs((drawn == 2).mean() - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / len(drawn))
    assert np.array_equal(drawn, Choice(top_k=2, temperature=0.5, seed=3)(scores))
    assert not np.array_equal(drawn, Choice(top_k=2, temperature=0.5, seed=4)(scores))


@pytest.mark.parametrize(("top_k", "temperature"), [(0, 1.0), (2, 0.0), (2, -1.0), (2, float("nan"))])
def test_choices_that_are_none_are_refused(top_k: int, temperature: float) -> None:
    with pytest.raises(InputError, match="a choice needs top_k"):
        Choice(top_k, temperature)


# ---- in the clear -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_changes_nothing(name: str) -> None:
    plan, prompt = planned(name, 20)
    runs = [generation.clear(plan, prompt, 20, Choice(), exact=True, cached=cached) for cached in (True, False)]
    assert np.array_equal(runs[0].tokens, runs[1].tokens)
    assert_close(runs[0].scores, runs[1].scores, 1e-10, "float64 rounds")


@pytest.mark.parametrize("name", MODELS)
def test_approximations_keep_the_perplexity_of_held_out_text(name: str) -> None:
    model = load_model(name)
    batch = model.batch(model.samples(8)[0])
    plan = make_plan(model, load_protocol("accurate-plaintext"), samples=8, shape=batch.shape)
    exact, clear = (clear_run(plan, batch, exact=exact).outputs for exact in (True, False))
    found, wanted = perplexity(clear, batch.values), perplexity(exact, batch.values)
    logits = torch.log_softmax(torch.tensor(exact[:, :-1]), -1)
    assert wanted == pytest.approx(float(torch.exp(-logits.gather(-1, torch.tensor(batch.values)[:, 1:, None]).mean())))
    assert abs(found / wanted - 1) < 1e-6
    assert_close(clear, exact, 2e-4, "sites err by 1e-6; scores reach 15")
    assert 3 < wanted < 9  # it has learnt: 256 bytes are equally likely to an untrained model


# ---- on shares --------------------------------------------------------------------------------------------------


def pythia_like(folder: Path) -> str:
    """A small decoder of GPT-NeoX' form with random weights: attention and FFN in parallel, half of a head turned."""
    start = load_model("bytes-llama")
    config = replace(
        start.config, name="parallel", parallel=True, rotary_share=0.5, norm="layernorm", activation="gelu",
        gated=False, kv_heads=None,
    )  # fmt: skip
    weights = initial(config, 3)
    (folder / "config.json").write_text(config.to_json())
    save(folder / "model.safetensors", weights)
    shutil.copyfile(start.folder / "tokenizer.json", folder / "tokenizer.json")
    texts = Model(folder, config, UNMEASURED).calibration(start.samples(8)[0][:, :24])
    (folder / "ranges.json").write_text(calibrate(config, weights, texts, margin=0.5).to_json())
    return str(folder)


@pytest.fixture(scope="module", params=["bytes-gpt2", "bytes-llama", "parallel"])
def on_shares(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, Batch, Generated]:
    own = request.param == "parallel"
    plan, prompt = planned(pythia_like(tmp_path_factory.mktemp("parallel")) if own else request.param)
    return plan, prompt, generation.generate(plan, prompt, NEW)


def test_greedy_tokens_on_shares_are_those_in_plaintext(on_shares: tuple[Plan, Batch, Generated]) -> None:
    plan, prompt, made = on_shares
    exact = generation.clear(plan, prompt, NEW, Choice(), exact=True)
    assert np.array_equal(made.tokens, exact.tokens)
    assert_close(made.scores, exact.scores, 2e-4, "sites err by 1e-6, 24 fractional bits; scores reach 15")


def test_every_pass_costs_what_was_planned(on_shares: tuple[Plan, Batch, Generated]) -> None:
    plan, prompt, made = on_shares
    for rank, party in enumerate(made.ledger.parties):
        modelled = generation.symbolic(plan, rank, prompt.shape, NEW).recorder
        for region in ("prefill", "decode"):
            for name in ("rounds", "bytes_sent", "dealer_bytes"):
                counted = sum(e.counts.get(name, 0) for e in party.events if e.region.split("/")[0] == region)
                wanted = sum(
                    e.counts.get(name, 0) for e in modelled.events.values() if e.region.split("/")[0] == region
                )
                assert counted == wanted > 0 or (name == "dealer_bytes" and rank), (rank, region, name)


def test_a_plan_of_new_tokens_is_what_a_generation_costs(on_shares: tuple[Plan, Batch, Generated]) -> None:
    plan, prompt, made = on_shares
    whole = make_plan(plan.model, load_protocol("accurate-mpc"), samples=len(prompt), shape=prompt.shape, new=NEW)
    assert whole.mpc is not None
    for recorder, party in zip(whole.mpc.recorders, made.ledger.parties, strict=True):
        for name in ("rounds", "bytes_sent", "dealer_bytes"):
            assert recorder.total(name) == sum(e.counts.get(name, 0) for e in party.events if e.op != "connect"), name
    with pytest.raises(PlanError, match=f"the plan is for {NEW} new tokens"):
        execute(whole, prompt)


def test_costs_are_apart_for_the_prompt_and_a_token(on_shares: tuple[Plan, Batch, Generated]) -> None:
    costs = on_shares[2].costs()
    assert set(costs) == {"prefill", "decode"}
    assert costs["decode"]["passes"] == NEW - 1
    assert costs["decode"]["bytes_sent"] < costs["prefill"]["bytes_sent"]
    assert 0 <= costs["prefill"]["rounds"] - costs["decode"]["rounds"] <= 20  # each series is agreed on once


def test_scores_of_whole_texts_on_shares_give_the_same_perplexity() -> None:
    model = load_model("bytes-gpt2")
    batch = Batch(model.samples(4)[0][:, :24])
    plan = make_plan(model, load_protocol("accurate-mpc"), samples=4, shape=batch.shape)
    found = perplexity(execute(plan, batch).outputs, batch.values)
    assert found == pytest.approx(perplexity(clear_run(plan, batch, exact=True).outputs, batch.values), rel=1e-5)


# ---- what is refused --------------------------------------------------------------------------------------------


def test_what_cannot_be_gone_on_from_is_refused() -> None:
    plan, prompt = planned("bytes-gpt2")
    with pytest.raises(InputError, match="12 tokens and 54 new ones do not fit the 64"):
        generation.generate(plan, prompt, 54)
    mixed = plan.model.batch(["one", "three"])
    with pytest.raises(InputError, match="have the same number of tokens"):
        generation.generate(plan, mixed, 2)
    minilm: Model = load_model("minilm")
    encoder = generation.planned(minilm, load_protocol("accurate-plaintext"), prompt.shape, 2)
    with pytest.raises(InputError, match="gives vector, not scores of the next token"):
        generation.generate(encoder, prompt, 2)
    for name, protocol, words in (
        ("minilm", "accurate-mpc", "gives vector, not scores of the next token"),
        ("bytes-gpt2", "accurate-mpc", "64 tokens and 2 new ones do not fit the 64"),
        ("bytes-gpt2-power", "power-softmax-ckks", "new tokens are planned on secret shares, not on ckks"),
    ):
        with pytest.raises(SecureAttnError, match=words):
            make_plan(load_model(name), load_protocol(protocol), samples=1, new=2)
    under, _ = planned("bytes-gpt2-power", 2, "power-softmax-ckks")
    with pytest.raises(CapabilityError, match="generate on secret shares"):
        generation.generate(under, prompt, 2)


# ---- commands ---------------------------------------------------------------------------------------------------


def test_generate_prints_the_text_and_what_a_token_costs(tmp_path: Path) -> None:
    done = run("generate", "bytes-llama", "accurate-plaintext", PROMPTS[0], "-n", "8", "--json", tmp_path / "g.json")
    assert done.returncode == 0, done.stderr
    assert PROMPTS[0] in done.stdout
    assert "prefill" in done.stdout
    found = json.loads((tmp_path / "g.json").read_text())
    assert len(found["tokens"][0]) == 8
    assert found["by_pass"]["decode"]["passes"] == 7
    assert "give either a PROMPT or a --file" in failed("generate", "bytes-llama", "plaintext")


def test_plan_takes_new_tokens_and_networks(tmp_path: Path) -> None:
    network = tmp_path / "near.toml"
    network.write_text("bandwidth_bps = 1e10\nround_trip_s = 1e-4\n")
    command = ("plan", "bytes-gpt2", "accurate-mpc", "--tokens", "8", "--new", "3")
    done = run(*command, "--network", "puma", "--network", network, "--json", tmp_path / "p.json")
    assert done.returncode == 0, done.stderr
    assert "1 samples of 8 tokens and 3 new ones" in done.stdout
    assert "peak memory predicted, client:" in done.stdout
    found = json.loads((tmp_path / "p.json").read_text())
    assert (found["tokens"], found["new_tokens"]) == (10, 3)
    assert list(found["networks"]) == ["PUMA", "near"]
    assert found["networks"]["PUMA"]["by_phase"]["online"] > found["networks"]["near"]["by_phase"]["online"] > 0
    assert set(found["mpc"]["memory_bytes"]) == {"model owner", "client", "dealer"}
    assert {event["region"].split("/")[0] for event in found["events"]} >= {"prefill", "decode"}


def test_compare_shows_perplexities_of_a_decoder(tmp_path: Path) -> None:
    done = run("compare", "bytes-gpt2", "accurate-plaintext", "--samples", "3", "--json", tmp_path / "c.json")
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    found = json.loads((tmp_path / "c.json").read_text())["perplexity"]
    assert found["encrypted"] == pytest.approx(found["exact"], rel=1e-3)
