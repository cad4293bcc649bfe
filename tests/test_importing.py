"""From a Hugging Face checkpoint to private inference by commands alone: convert, then compare and infer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import failed, run
from test_huggingface import SMALL, TEXT, VOCABULARY, filled

from secureattn import load_model
from secureattn.nn.huggingface.vit import patches

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[UNK]", "[PAD]", "the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "tree"]
LINES = ["the cat sat on the mat", "a dog ran", "the dog sat under a tree", "cat", "the cat ran under the tree"]


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with a tokenizer of whole words, as save_pretrained leaves it."""
    folder = tmp_path_factory.mktemp("roberta")
    config = transformers.RobertaConfig(**TEXT, **SMALL, num_labels=3)
    torch.manual_seed(0)
    transformers.RobertaForSequenceClassification(config).save_pretrained(folder)
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    return folder


def converted(source: Path, folder: Path, inputs: Path) -> Path:
    done = run("convert", source, "-o", folder, "--calibrate", inputs, "--samples", inputs)
    assert done.returncode == 0, done.stderr
    assert "calibrated on" in done.stdout
    return folder


def test_a_text_classifier_runs_from_convert_to_compare(roberta: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\n".join(LINES) + "\n")
    folder = converted(roberta, tmp_path / "mine", tmp_path / "lines.txt")
    done = run("compare", folder, "accurate-mpc", "--samples", "3", "--json", tmp_path / "compare.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["agreement"]["encrypted"] == 1.0
    assert found["max_abs_error"]["encryption"] < 1e-3
    assert found["accuracy"]["exact"] is None  # nobody labelled these
    done = run("infer", folder, "accurate-plaintext", tmp_path / "lines.txt", "-o", tmp_path / "scores.json")
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    theirs = transformers.RobertaForSequenceClassification.from_pretrained(roberta).eval()
    for line, got in zip(LINES, scores, strict=True):
        with torch.no_grad():
            wanted = theirs(torch.tensor([[WORDS.index(word) for word in line.split()]])).logits[0]
        assert np.abs(np.array(got) - wanted.numpy()).max() < 1e-3


def test_a_vision_transformer_runs_from_convert_to_compare(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=5)
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "vit")
    images = np.random.default_rng(0).normal(size=(6, 3, 8, 8))
    np.save(tmp_path / "images.npy", patches(images, 4))
    folder = converted(tmp_path / "vit", tmp_path / "mine", tmp_path / "images.npy")
    done = run("compare", folder, "accurate-plaintext", "--json", tmp_path / "compare.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "compare.json").read_text())["agreement"]["encrypted"] == 1.0
    done = run("infer", folder, "accurate-plaintext", tmp_path / "images.npy", "-o", tmp_path / "scores.npy")
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        wanted = model(torch.tensor(images, dtype=torch.float32)).logits.numpy()
    assert np.abs(np.load(tmp_path / "scores.npy") - wanted).max() < 1e-3


def test_convert_keeps_the_tokenizer_and_says_what_comes_next(roberta: Path, tmp_path: Path) -> None:
    done = run("convert", roberta, "-o", tmp_path / "mine", "--tokens", "9", "--json", tmp_path / "made.json")
    assert done.returncode == 0, done.stderr
    assert "secureattn calibrate" in done.stdout
    assert json.loads((tmp_path / "made.json").read_text())["calibrated"] is False
    assert (tmp_path / "mine" / "tokenizer.json").exists()
    assert "Converted from the checkpoint" in (tmp_path / "mine" / "README.md").read_text()
    (tmp_path / "lines.txt").write_text("\n".join(LINES) + "\n")
    done = run("calibrate", tmp_path / "mine", "--samples", tmp_path / "lines.txt")
    assert done.returncode == 0, done.stderr
    model = load_model(tmp_path / "mine")
    assert model.config.tokens == 9
    assert model.batch(LINES).lengths == (6, 3, 6, 1, 6)


def test_convert_refuses_what_it_cannot_do(roberta: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    assert "is not a new or empty folder" in failed("convert", roberta, "-o", tmp_path / "full")
    assert (tmp_path / "full" / "file").read_text() == "kept"
    out = tmp_path / "out"
    assert "takes up to 18 tokens, not 19" in failed("convert", roberta, "-o", out, "--tokens", "19")
    assert "keeps its attention" in failed("convert", roberta, "-o", out, "--attention", "power_softmax")
    assert "which attention?" in failed("convert", "digits-vit", "-o", out)
    assert not out.exists()


def test_a_loaded_model_is_converted_in_python() -> None:
    from secureattn.nn import huggingface

    model: Any = filled(transformers.BertModel(transformers.BertConfig(**TEXT, **SMALL)))
    made = huggingface.of_model(model, "mine")
    assert (made.config.name, made.config.features, made.config.output) == ("mine", VOCABULARY, "vector")
