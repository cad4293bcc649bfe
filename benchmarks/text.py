"""Text measured: MiniLM's sentences on shares and under CKKS, what a party needs, small decoders, checkpoints.

    python benchmarks/text.py [--quick] [--json FILE] [--only PART…] [--fresh]

What each part measured is kept in ``out/text`` and not measured again, unless ``--fresh``; ``--only`` leaves the other
parts as they are there. Once all parts are there, writes tables and everything as JSON, raw samples and checks, to
``benchmarks/results``. Wants a quiet machine with two cores and 24 GiB; the run under CKKS takes most of an hour.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import text_report
from measuring import Setting, run_all, tell
from processes import parties
from text_ckks import ckks, ckks_layer, ckks_plan

MODEL, PROTOCOL = "minilm", "accurate-mpc"
SENTENCE = "How do I bake a good loaf of bread at home tonight?"
DECODERS = ("bytes-gpt2", "bytes-llama", "bytes-gpt2-power", "bytes-llama-power")
PROMPT, PROMPTS, NEW = 14, 10, 50


# ---- the parts ----------------------------------------------------------------------------------------------


def sentences(setting: Setting) -> dict[str, Any]:
    """All shipped sentences in one run on shares, with padding, against each alone in plaintext."""
    from secureattn import load_model, load_protocol, make_plan
    from secureattn.runs import agreement, clear_run, cosines, execute

    model, protocol = load_model(MODEL), load_protocol(PROTOCOL)
    texts, _ = model.samples(12 if setting.quick else None)
    batch = model.batch(texts)
    plan = make_plan(model, protocol, samples=len(batch), shape=batch.shape)
    run, clear = execute(plan, batch), clear_run(plan, batch)
    alone = np.concatenate([clear_run(plan, model.batch([text]), exact=True).outputs for text in texts])
    together = clear_run(plan, batch, exact=True).outputs
    return {
        "lengths": list(batch.lengths or ()),
        "cosines": cosines(run.outputs, alone).tolist(),
        "clear_cosines": cosines(clear.outputs, alone).tolist(),
        "nearest_agreement": agreement(run.outputs, alone, vectors=True),
        "padding_max_abs_difference": float(np.abs(together - alone).max()),
        "escapes": dict(clear.escapes),
        **text_report.run_of(plan, run),
    }


def sentence(setting: Setting) -> dict[str, Any]:
    """One sentence of 16 tokens, several times, with rounds and bytes by layer."""
    from secureattn import load_model, load_protocol, make_plan
    from secureattn.runs import clear_run, cosines, execute

    model = load_model(MODEL)
    batch = model.batch([SENTENCE])
    plan = make_plan(model, load_protocol(PROTOCOL), samples=1, shape=batch.shape)
    exact, runs = clear_run(plan, batch, exact=True).outputs, []
    for _ in range(1 if setting.quick else 3):
        run = execute(plan, batch)
        runs.append({"cosine": float(cosines(run.outputs, exact)[0]), **text_report.run_of(plan, run)})
    return {"tokens": batch.shape.tokens, "runs": runs}


def party(setting: Setting) -> dict[str, Any]:
    """Owner, client and dealer as processes of the command line: how long each takes to get ready, and its memory."""
    (setting.folder / "one.txt").write_text(SENTENCE + "\n")
    found = {}
    for seat, one in parties(MODEL, PROTOCOL, setting.folder / "one.txt", setting.folder).items():
        phases = one["profile"].get("phases") or {}
        used = sum(phases.get(name) or 0.0 for name in ("encrypt", "online", "decrypt"))
        ready_s = None if seat == "dealer" else one["seconds"] - used
        found[seat] = {"seconds": one["seconds"], "peak_bytes": one["peak_bytes"], "ready_s": ready_s}
    return found


def generation(setting: Setting) -> dict[str, Any]:
    """Small decoders trained here: greedy tokens on shares and in plaintext, with a cache and without, perplexities."""
    from secureattn import load_model, load_protocol, make_plan
    from secureattn.nn.batch import Batch
    from secureattn.nn.choice import Choice
    from secureattn.runs import clear_run, execute, perplexity
    from secureattn.runs import generation as of

    protocol, found = load_protocol(PROTOCOL), {}
    for name in DECODERS[: 2 if setting.quick else None]:
        tell(f"generation: {name}")
        model = load_model(name)
        texts = model.samples(PROMPTS)[0]
        prompt, new = Batch(texts[:, :PROMPT]), 5 if setting.quick else NEW
        plan = of.planned(model, protocol, prompt.shape, new)
        made = of.generate(plan, prompt, new)
        exact, bare = (of.clear(plan, prompt, new, Choice(), exact=True, cached=cached) for cached in (True, False))
        held_out = model.batch(model.samples(8 if setting.quick else None)[0])
        whole = make_plan(model, protocol, samples=len(held_out), shape=held_out.shape)
        runs = {"exact": clear_run(whole, held_out, exact=True), "clear": clear_run(whole, held_out)}
        runs["encrypted"] = execute(whole, held_out)
        found[name] = {
            "tokens": made.tokens.tolist(),
            "plaintext_tokens": exact.tokens.tolist(),
            "tokens_without_cache": bare.tokens.tolist(),
            "by_pass": made.costs(),
            "seconds": list(made.seconds),
            "perplexity": {kind: perplexity(run.outputs, held_out.values) for kind, run in runs.items()},
        }
    return found


def checkpoints(setting: Setting) -> dict[str, Any]:
    """Random models saved by transformers, from convert to compare on shares by the command line alone."""
    import torch
    import transformers

    from secureattn.nn.huggingface.vit import patches

    shape: dict[str, Any] = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "hidden_size": 64,
        "intermediate_size": 128,
    }
    shape |= {"initializer_range": 0.1}  # classes that differ: an untrained model's are all but equal
    text = {"vocab_size": 100, "max_position_embeddings": 20, "pad_token_id": 1, "num_labels": 5}
    rng, found = np.random.default_rng(0), {}
    tokens, images = rng.integers(2, 100, (12, 16)), rng.normal(size=(12, 3, 16, 16))
    kinds: dict[str, Any] = {
        "RobertaForSequenceClassification": (transformers.RobertaConfig(**text, **shape), tokens),
        "BertForSequenceClassification": (transformers.BertConfig(**text, **shape), tokens),
        "ViTForImageClassification": (
            transformers.ViTConfig(**shape, image_size=16, patch_size=4, num_labels=5),
            patches(images, 4),
        ),
    }
    for name, (config, inputs) in kinds.items():
        tell(f"checkpoints: {name}")
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory(prefix="secureattn-") as directory:
            folder = Path(directory)
            getattr(transformers, name)(config).save_pretrained(folder / "theirs")
            np.save(folder / "inputs.npy", inputs)
            given = ["--calibrate", folder / "inputs.npy", "--samples", folder / "inputs.npy"]
            _command("convert", folder / "theirs", "-o", folder / "mine", *given)
            _command("compare", folder / "mine", PROTOCOL, "--json", folder / "compare.json")
            compared = json.loads((folder / "compare.json").read_text())
        found[name] = {key: compared[key] for key in ("agreement", "max_abs_error")}
    return {"models": found}


def _command(*arguments: Any) -> None:
    command = [sys.executable, "-m", "secureattn.cli", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


PARTS: Mapping[str, Callable[[Setting], dict[str, Any]]] = {
    part.__name__: part for part in (sentences, sentence, party, generation, checkpoints, ckks_plan, ckks_layer)
}
SLOW: Mapping[str, Callable[[Setting], dict[str, Any]]] = {"ckks": ckks}


if __name__ == "__main__":
    sys.exit(run_all("text", __doc__, PARTS, text_report, slow=SLOW))
