"""Training decoders on text by bytes: next-token cross-entropy plus a range penalty, through the folded program."""

from __future__ import annotations

import json
import math
import pydoc_data.topics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save_file
from torch.nn.functional import cross_entropy

from secureattn.approx import Interval
from secureattn.nn import text
from secureattn.nn.batch import Batch
from secureattn.nn.config import ModelConfig
from secureattn.nn.parameters import Parameters, initial, save
from secureattn.train.forward import Array, forward, tensors, true_functions
from secureattn.train.ranges import calibrate
from secureattn.train.targets import range_penalty, targets_of

Tokens = npt.NDArray[np.int64]
BYTES = 256
HELD_OUT = 0.1


@dataclass(frozen=True)
class Recipe:
    """``steps`` of AdamW on ``batch`` windows each, the learning rate falling to 0 along a cosine. ``targets`` and
    ``penalty``: as in ``recipe.Recipe``; no penalty where it is 0.
    """

    steps: int = 3000
    batch: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    targets: Mapping[str, Interval] = field(default_factory=dict)
    penalty: float = 0.0
    seed: int = 0


def corpus() -> tuple[Tokens, Tokens]:
    """The Python language reference as every CPython carries it (``pydoc_data``), in bytes: to train on, and the last
    tenth, held out.
    """
    whole = "\n".join(body for _, body in sorted(pydoc_data.topics.topics.items()))
    tokens = np.frombuffer(whole.encode(), dtype=np.uint8).astype(np.int64)
    cut = round(len(tokens) * (1 - HELD_OUT))
    return tokens[:cut], tokens[cut:]


def train(config: ModelConfig, tokens: Tokens, recipe: Recipe) -> Parameters:
    """From scratch, on windows of the model's length at random places. One seed gives the same bits on one thread."""
    start, rng = initial(config, recipe.seed), np.random.default_rng(recipe.seed)
    served = true_functions(config)
    weights = {name: value.to(torch.float32).requires_grad_() for name, value in tensors(start).items()}
    optimiser = torch.optim.AdamW(weights.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
    targets = {}
    if recipe.penalty:
        targets = targets_of(config, recipe.targets, start, windows(tokens, config.tokens, 8, rng))
    for step in range(recipe.steps):
        batch = windows(tokens, config.tokens, recipe.batch, rng)
        seen = forward(config, weights, served, batch)
        loss = _surprise(seen.logits, batch)
        penalty = recipe.penalty * range_penalty(seen.arguments, targets)
        optimiser.zero_grad()
        (loss + penalty).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 200 == 0:
            said = f"step {step + 1}/{recipe.steps}  loss {loss.item():.3f}  penalty {float(penalty):.4f}"
            print(said, file=sys.stderr)
    return {name: value.detach().double().numpy() for name, value in weights.items()}


def perplexity(config: ModelConfig, parameters: Mapping[str, Array], batch: Batch) -> float:
    """``exp`` of the mean surprise at the next token, with the true functions."""
    with torch.no_grad():
        seen = forward(config, tensors(parameters), true_functions(config), batch, torch.float64)
    return math.exp(float(_surprise(seen.logits, batch)))


def windows(tokens: Tokens, length: int, count: int, rng: np.random.Generator) -> Batch:
    """``count`` times so many tokens in a row, from random places."""
    starts = rng.integers(0, len(tokens) - length + 1, count)
    return Batch(tokens[starts[:, None] + np.arange(length)])


def run(folder: Path, recipe: Recipe) -> None:
    """Train the model of ``folder/config.json`` on the corpus; write weights, ranges, held-out windows, tokenizer."""
    torch.set_num_threads(1)
    config = ModelConfig.load(folder / "config.json")
    known, held_out = corpus()
    parameters = train(config, known, recipe)
    rng = np.random.default_rng(1)
    save(folder / "model.safetensors", parameters)
    ranges = calibrate(config, parameters, windows(known, config.tokens, 256, rng))
    (folder / "ranges.json").write_text(ranges.to_json())
    samples = windows(held_out, config.tokens, 64, rng)
    save_file({"inputs": samples.values}, folder / "samples.safetensors")
    (folder / text.FILE).write_text(byte_tokenizer())
    for part, batch in (("training", windows(known, config.tokens, 64, rng)), ("held-out", samples)):
        print(f"{config.name}: perplexity on {part} text {perplexity(config, parameters, batch):.3f}", file=sys.stderr)


def byte_tokenizer() -> str:
    """tokenizer.json of a tokenizer whose tokens are bytes, their numbers their values."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {character: byte for byte, character in enumerate(_characters())}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return json.dumps(json.loads(made.to_str()), indent=1, ensure_ascii=True) + "\n"


def _characters() -> list[str]:
    """The character that stands for each byte in byte-level tokenizers: itself where it prints, else one behind 255."""
    prints = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(BYTES, 2 * BYTES))
    return [chr(byte if byte in prints else next(others)) for byte in range(BYTES)]


def _surprise(scores: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean of −ln p over the tokens after the first, from scores ``[N,S,V]`` of the token after each."""
    return cross_entropy(scores[:, :-1].flatten(0, 1), torch.as_tensor(batch.values)[:, 1:].flatten())
