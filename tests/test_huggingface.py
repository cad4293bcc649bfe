"""Checkpoints of transformers against the library itself: exact mode gives what it gives, for every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Array, assert_close
from safetensors.numpy import save_file

from secureattn.approx import exact
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.errors import InputError, ProtocolError
from secureattn.nn import huggingface
from secureattn.nn.decoder import Decoder
from secureattn.nn.encoder import Cache, Encoder
from secureattn.nn.fold import fold
from secureattn.nn.huggingface import Converted
from secureattn.nn.huggingface.vit import patches

transformers = pytest.importorskip("transformers")

VOCABULARY, LONGEST = 50, 20
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 24, "intermediate_size": 40}
WIDE = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 36}
TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": LONGEST, "pad_token_id": 1}
FLOAT32 = "rotary angles are float32 there"


def filled(model: Any) -> Any:
    """Every parameter far from its initial value, in float64."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def network(made: Converted, kind: type[Encoder] = Encoder) -> tuple[Any, PlaintextBackend]:
    backend = PlaintextBackend(exact=True)
    weights = {name: torch.tensor(value) for name, value in made.parameters.items()}
    served = {site: exact(function) for site, function in made.config.sites().items()}
    return kind(fold(made.config, weights, served), backend), backend


def encoder(name: str, shape: dict[str, int], **more: Any) -> Any:
    config, model = name.split(":")
    return filled(getattr(transformers, model)(getattr(transformers, config)(**TEXT, **shape, num_labels=5, **more)))


ENCODERS = [
    "BertConfig:BertModel",
    "BertConfig:BertForSequenceClassification",
    "RobertaConfig:RobertaModel",
    "RobertaConfig:RobertaForSequenceClassification",
    "XLMRobertaConfig:XLMRobertaForSequenceClassification",
]


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(("shape", "activation"), [(SMALL, "gelu"), (WIDE, "gelu_new"), (WIDE, "relu")])
def test_encoders(name: str, shape: dict[str, int], activation: str) -> None:
    """With inputs of different lengths: what lies behind an input's end changes nothing."""
    model = encoder(name, shape, hidden_act=activation)
    ids, lengths = np.random.default_rng(0).integers(2, VOCABULARY, (4, 9)), np.array([9, 3, 1, 7])
    there = np.arange(9) < lengths[:, None]
    with torch.no_grad():
        out = model(input_ids=torch.tensor(np.where(there, ids, 1)), attention_mask=torch.tensor(there.astype(int)))
    wanted = (out.logits if "Classification" in name else out.pooler_output).numpy()
    net, backend = network(huggingface.of_model(model))
    got = backend.reveal(net(backend.tokens(ids, VOCABULARY), list(lengths)))[:, 0]
    assert_close(got, wanted, 1e-12, "float64 rounds")


@pytest.mark.parametrize("model", ["ViTModel", "ViTForImageClassification"])
@pytest.mark.parametrize(("shape", "image", "patch"), [(SMALL, 12, 4), (WIDE, 10, 2)])
def test_vision(model: str, shape: dict[str, int], image: int, patch: int) -> None:
    config = transformers.ViTConfig(**shape, image_size=image, patch_size=patch, num_labels=5)
    made = filled(getattr(transformers, model)(config))
    images = np.random.default_rng(0).normal(size=(3, 3, image, image))
    with torch.no_grad():
        out = made(torch.tensor(images))
    wanted = (out.logits if "Classification" in model else out.pooler_output).numpy()
    net, backend = network(huggingface.of_model(made))
    assert_close(backend.reveal(net(backend.input(patches(images, patch))))[:, 0], wanted, 1e-12, "float64 rounds")


def llama(**more: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**TEXT, **SMALL, **more}))


def gpt_neox(**more: Any) -> Any:
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**{**TEXT, **SMALL, **more}))


DECODERS: dict[str, Any] = {
    "GPT-2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=LONGEST, n_embd=24, n_layer=2, n_head=3)
    ),
    "GPT-2, narrow": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=LONGEST, n_embd=16, n_layer=1, n_head=1, n_inner=20)
    ),
    "LLaMA": llama,
    "LLaMA, shared heads of their own size": lambda: llama(
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, rope_theta=500.0
    ),
    "LLaMA, one head of keys, tied, biases": lambda: llama(
        num_attention_heads=4, num_key_value_heads=1, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
    ),
    "GPT-NeoX": gpt_neox,
    "GPT-NeoX, one after the other": lambda: gpt_neox(use_parallel_residual=False, hidden_act="gelu_new"),
    "GPT-NeoX, positions everywhere, tied, no biases": lambda: gpt_neox(
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0},
        tie_word_embeddings=True,
        attention_bias=False,
    ),
    "GPT-NeoX, wide heads": lambda: gpt_neox(
        num_attention_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
    ),
    "Mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**TEXT, **WIDE, num_key_value_heads=1, sliding_window=None)
    ),
    "Qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**TEXT, **WIDE, num_key_value_heads=2)),
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str) -> None:
    """In one pass, and by a prompt and then token by token with a cache."""
    model = filled(DECODERS[name]())
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, 9))
    with torch.no_grad():
        wanted = model(torch.tensor(ids)).logits.numpy()
    net, backend = network(huggingface.of_model(model), Decoder)
    error, why = (1e-12, "float64 rounds") if name.startswith("GPT-2") else (1e-6, FLOAT32)
    whole = backend.reveal(net(backend.tokens(ids, VOCABULARY)))
    assert_close(whole, wanted, error, why)
    cache, parts = Cache(), []
    for piece in (ids[:, :5], *(ids[:, t : t + 1] for t in range(5, 9))):
        parts.append(backend.reveal(net.step(backend.tokens(piece, VOCABULARY), cache, all_tokens=True)))
    assert_close(np.concatenate(parts, 1), whole, 1e-12, "float64 rounds")
    alone = backend.reveal(net.step(backend.tokens(ids, VOCABULARY), Cache()))
    assert_close(alone[:, 0], whole[:, -1], 1e-12, "float64 rounds")


# ---- folders ----------------------------------------------------------------------------------------------------


def test_a_saved_checkpoint_is_the_loaded_model(tmp_path: Path) -> None:
    model = encoder(ENCODERS[1], SMALL)
    model.float().save_pretrained(tmp_path / "there")
    made, direct = huggingface.read(tmp_path / "there", "mine"), huggingface.of_model(model.double(), "mine")
    assert made.config == direct.config
    assert made.tokenizer is None
    for name, value in direct.parameters.items():
        assert_close(made.parameters[name], value.astype(np.float32), 0.0, "the same numbers")


@pytest.mark.parametrize("kind", ["GPT-2", "LLaMA", "GPT-NeoX"])
def test_a_saved_decoder_is_the_loaded_one(tmp_path: Path, kind: str) -> None:
    """Whatever names its tensors have in a file."""
    model = filled(DECODERS[kind]())
    model.float().save_pretrained(tmp_path)
    made, direct = huggingface.read(tmp_path, "mine"), huggingface.of_model(model.double(), "mine")
    assert made.config == direct.config
    assert all(np.array_equal(made.parameters[name], value) for name, value in direct.parameters.items())


@pytest.mark.parametrize("kind", ["GPT-2", "LLaMA", "GPT-NeoX", *ENCODERS])
def test_settings_alone_give_the_config_that_the_checkpoint_gives(tmp_path: Path, kind: str) -> None:
    model = DECODERS[kind]() if kind in DECODERS else encoder(kind, SMALL)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    config, notes = huggingface.config_of(tmp_path / "config.json")
    assert config == huggingface.of_model(model.double(), tmp_path.name).config
    assert notes == ()


def test_how_sentence_transformers_pools(tmp_path: Path) -> None:
    saved(tmp_path, pooling={"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, normalised=True)
    config = huggingface.read(tmp_path).config
    assert (config.output, config.pooling, config.pooler, config.unit) == ("vector", "mean", False, True)
    saved(tmp_path, pooling={"pooling_mode_cls_token": True})
    config = huggingface.read(tmp_path, tokens=7).config
    assert (config.output, config.pooling, config.pooler, config.unit, config.tokens) == (
        "vector", "first", False, False, 7
    )  # fmt: skip


def saved(folder: Path, pooling: dict[str, bool], *, normalised: bool = False) -> None:
    """A BERT of sentence-transformers."""
    encoder(ENCODERS[0], SMALL).float().save_pretrained(folder)
    kinds = ["Transformer", "Pooling", *["Normalize"] * normalised]
    modules = [{"idx": i, "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 24, **pooling}))


def test_everything_that_is_not_supported_is_listed_at_once(tmp_path: Path) -> None:
    saved(tmp_path, pooling={"pooling_mode_max_tokens": True})
    settings = json.loads((tmp_path / "config.json").read_text())
    settings |= {"hidden_act": "mish", "is_decoder": True, "architectures": ["BertForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ProtocolError) as refused:
        huggingface.read(tmp_path)
    for words in ("'mish'", "is_decoder is True", "pooling_mode_max_tokens", "BertForMaskedLM"):
        assert words in str(refused.value)


def test_modules_that_nobody_reads_are_named(tmp_path: Path) -> None:
    model = encoder(ENCODERS[0], SMALL)
    tensors = {name: value.float().numpy() for name, value in model.state_dict().items()}
    tensors |= {
        "encoder.layer.0.adapter.down.weight": np.zeros((3, 3), np.float32),
        "gate.bias": np.zeros(3, np.float32),
    }
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**model.config.to_dict(), "architectures": ["BertModel"]}))
    with pytest.raises(ProtocolError) as refused:
        huggingface.read(tmp_path)
    for words in ("module encoder.layer.0.adapter.down", "module gate", "encoder.layer.1.output.dense.bias is missing"):
        assert words in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "t5", "architectures": ["T5Model"]}, "model_type 't5' is none of bert"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "is a pickle, which is not read"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    if settings["model_type"] == "t5":
        save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises((InputError, ProtocolError), match=words):
        huggingface.read(tmp_path)


def test_patches_are_rows_of_pixels_behind_a_row_of_zeros() -> None:
    images: Array = np.arange(2 * 3 * 4 * 6, dtype=float).reshape(2, 3, 4, 6)
    rows = patches(images, 2)
    assert rows.shape == (2, 1 + 2 * 3, 3 * 4)
    assert not rows[:, 0].any()
    assert np.array_equal(rows[1, 1 + 1 * 3 + 2], images[1, :, 2:4, 4:6].reshape(-1))
