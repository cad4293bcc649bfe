"""Training decoders on text: bytes in, a model that expects the next one better, the same again from the same seed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from secureattn import load_model
from secureattn.nn.config import ModelConfig
from secureattn.nn.text import Tokenizer
from secureattn.resources import find
from secureattn.train.language import BYTES, Recipe, byte_tokenizer, corpus, perplexity, train, windows


@pytest.fixture
def small() -> ModelConfig:
    torch.set_num_threads(1)
    config = ModelConfig.load(find("models", "bytes-llama") / "config.json")
    return replace(config, tokens=16, width=16, heads=2, kv_heads=1, hidden=24, layers=1)


def test_the_corpus_is_text_and_its_end_is_held_out() -> None:
    known, held_out = corpus()
    assert len(held_out) == pytest.approx(0.1 * (len(known) + len(held_out)), abs=1)
    assert 0 <= known.min() <= known.max() < BYTES
    assert "assert" in bytes(known.astype(np.uint8)).decode(errors="ignore")


def test_windows_are_tokens_in_a_row() -> None:
    tokens = np.arange(100)
    batch = windows(tokens, 16, 50, np.random.default_rng(0))
    assert batch.values.shape == (50, 16)
    assert (np.diff(batch.values) == 1).all()
    assert batch.values.max() <= 99


def test_training_lowers_perplexity_and_repeats_to_the_bit(small: ModelConfig) -> None:
    known, held_out = corpus()
    recipe = Recipe(steps=60, batch=16, targets={"exp": (-8.0, 4.0), "normaliser": (1.0, 16.0)}, penalty=1.0)
    trained = train(small, known, recipe)
    batch = windows(held_out, 16, 64, np.random.default_rng(1))
    assert perplexity(small, trained, batch) < 50 < BYTES / 4  # measured 41
    again = train(small, known, recipe)
    assert all(np.array_equal(trained[name], again[name]) for name in trained)
    other = train(small, known, replace(recipe, seed=1))
    assert any(not np.array_equal(trained[name], other[name]) for name in trained)


def test_an_untrained_model_expects_every_byte_alike(small: ModelConfig) -> None:
    from secureattn.nn.parameters import initial

    batch = windows(corpus()[1], 16, 64, np.random.default_rng(1))
    assert math.log(perplexity(small, initial(small, 0), batch)) == pytest.approx(math.log(BYTES), abs=1.0)


def test_bytes_are_tokens_and_come_back(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer())
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 64)
    for text in ("plain", " leading and  two", "tabs\tand\nlines", "Zürich — 東京", "\x00\x7f"):
        (numbers,) = tokenizer.encode([text])
        assert numbers == list(text.encode())
        assert tokenizer.decode(numbers) == text


@pytest.mark.parametrize("name", ["bytes-gpt2", "bytes-gpt2-power", "bytes-llama", "bytes-llama-power"])
def test_shipped_models_carry_the_tokenizer_they_were_trained_with(name: str) -> None:
    assert (find("models", name) / "tokenizer.json").read_text() == byte_tokenizer()
    assert load_model(name).samples(2)[0].shape == (2, 64)
