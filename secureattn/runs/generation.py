"""Generation: a prompt goes in, scores of the next token come out to the client, which chooses and goes on.

On shares the network's weights, its cache of keys and values, the prompt and every token stay hidden from the party
that does not own them; how many tokens there are is public. So that not even where a text ends shows, a run makes as
many tokens as were asked for, and the client cuts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.launch import run_processes
from secureattn.backends.crypten.runtime import CLIENT, MODEL_OWNER
from secureattn.backends.memory import give_back
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.errors import CapabilityError, InputError
from secureattn.events import Recorder
from secureattn.ledger import Ledger
from secureattn.nn.batch import Batch, Shape
from secureattn.nn.choice import Choice, Tokens
from secureattn.nn.decoder import Decoder
from secureattn.nn.encoder import Cache
from secureattn.nn.fold import fold
from secureattn.nn.model import Model
from secureattn.plan import Plan
from secureattn.plan.generation import DECODE, PREFILL, symbolic
from secureattn.plan.mpc import entered, largest
from secureattn.protocol import Protocol, exact_realisations, fitted
from secureattn.runs import mpc, plaintext
from secureattn.runs.result import Array, Progress

__all__ = ["Generated", "clear", "generate", "party", "planned", "symbolic"]


@dataclass(frozen=True)
class Generated:
    """``tokens [B,n]`` that were chosen, the ``scores [B,n,V]`` they were chosen from, seconds of each step at the
    client, and what everything cost, in regions ``prefill`` and ``decode``.
    """

    tokens: Tokens
    scores: Array
    seconds: tuple[float, ...]
    ledger: Ledger

    def costs(self) -> dict[str, dict[str, float]]:
        """What the pass over the prompts cost, and a later pass, over a new token of each: seconds by phase and rounds
        of the party that has most, bytes of all together.
        """
        passes = {PREFILL: 1, DECODE: self.tokens.shape[1] - 1}
        return {name: self._cost(name, of) for name, of in passes.items() if of}

    def _cost(self, region: str, passes: int) -> dict[str, float]:
        parties = [
            [event for event in party.events if event.region.split("/")[0] == region] for party in self.ledger.parties
        ]
        found: dict[str, float] = {"passes": passes}
        for phase in ("offline", "online"):
            spent = (sum(e.seconds_self for e in events if e.phase == phase) for events in parties)
            found[f"{phase}_s"] = max(spent) / passes
        counted = {
            name: [sum(e.counts.get(name, 0) for e in events) for events in parties]
            for name in ("rounds", "bytes_sent", "dealer_bytes")
        }
        found["rounds"] = max(counted["rounds"]) / passes
        return {**found, **{name: sum(counted[name]) / passes for name in ("bytes_sent", "dealer_bytes")}}


def generate(
    plan: Plan, prompt: Batch, new: int, choice: Choice | None = None, *, progress: Progress | None = None
) -> Generated:
    """``new`` tokens behind each prompt ``[B,S]`` (all of one length), by the plan's engine. ``plan``: for S + new.

    Raises InputError for prompts it cannot go on from, CapabilityError for an engine that cannot.
    """
    engine, tell, choose = plan.protocol.engine, progress or (lambda *_: None), choice or Choice()
    plan.model.check_runs()
    _check(plan, prompt, new)
    if engine == "plaintext":
        return clear(plan, prompt, new, choose)
    if engine != "crypten":
        raise CapabilityError(f"{engine} cannot join keys to earlier ones; generate on secret shares")
    shape = prompt.shape
    bare = Model(plan.model.folder.resolve(), plan.model.config, plan.model.ranges)
    mine = (prompt, choose)
    arguments = [
        (bare, plan.protocol, shape, new, mine if rank == CLIENT else None) for rank in range(plan.protocol.mpc.parties)
    ]
    results = run_processes(
        "secureattn.runs.generation:party", arguments, plan.protocol.mpc, progress=lambda text: tell(text, 0, 0)
    )
    tokens, scores, seconds = results[CLIENT].value
    return Generated(tokens, scores, seconds, mpc.ledger_of(plan, results))


def clear(
    plan: Plan, prompt: Batch, new: int, choice: Choice, *, exact: bool = False, cached: bool = True
) -> Generated:
    """The same in the clear, with the approximations or the true functions; without a cache each step reads all."""
    _check(plan, prompt, new)
    served = exact_realisations(plan.model) if exact else plan.realisations
    config = plan.model.config if exact else plan.config
    backend = PlaintextBackend(exact=exact)
    network, cache = Decoder(fold(config, plan.model.weights, served), backend), Cache()
    known: list[Tokens] = []

    def step(numbers: Tokens) -> Array:
        known.append(numbers)
        shown, kept = (numbers, cache) if cached else (np.concatenate(known, 1), Cache())
        with torch.no_grad(), backend.recorder.phase("online"):
            x = plaintext.entered(backend, config, plan.model.entering(config, Batch(shown), kept.tokens))
            return backend.reveal(network.step(x, kept))

    tokens, scores, seconds = _loop(step, prompt, new, choice, backend.recorder)
    return Generated(tokens, scores, seconds, Ledger.of(backend.recorder, name=plan.title, engine="plaintext"))


def party(backend: MpcBackend, argument: Any) -> Any:
    """What one party does; the client brings back tokens, scores and seconds."""
    model, protocol, shape, new, mine = argument
    rank, recorder = backend.runtime.rank, backend.recorder
    plan = planned(model, protocol, shape, new)
    with recorder.phase("setup"):
        folded = plan.folded(weights=rank == MODEL_OWNER)
        model.forget_weights()
        network, cache = Decoder(folded, backend), Cache()
        asked = iter(symbolic(plan, rank, shape, new).asked)
        give_back()

    def step(numbers: Tokens) -> Array:
        tokens = shape.tokens if not cache.tokens else 1
        with recorder.phase("offline"):
            backend.runtime.prepare(next(asked))
        with recorder.phase("encrypt"):
            values = None if mine is None else model.entering(plan.config, Batch(numbers), cache.tokens)
            x = entered(backend, plan.config, Shape(shape.samples, tokens), values)
        with recorder.phase("online"):
            scores = network.step(x, cache)
        with recorder.phase("decrypt"):
            revealed = backend.reveal(scores, to=CLIENT)
        return revealed if revealed is not None else np.zeros((shape.samples, 1, 1))

    prompt, choice = mine or (Batch(np.zeros((shape.samples, shape.tokens), dtype=np.int64)), Choice())
    made = _loop(step, prompt, new, choice, recorder)
    return made if rank == CLIENT else None


def planned(model: Model, protocol: Protocol, shape: Shape, new: int) -> Plan:
    """What a generation needs of a plan: realisations, and a config for as many tokens as there will be.

    Raises a ProtocolError for what cannot be served, a PlanError for values beyond the declared range of shares.
    """
    served = fitted(protocol, model)
    plan = Plan(model, served, shape.samples, served.realisations(model), tokens=shape.tokens + new - 1, new=new)
    if served.engine == "crypten":
        largest(plan)
    return plan


def _loop(
    step: Callable[[Tokens], Array], prompt: Batch, new: int, choice: Choice, recorder: Recorder
) -> tuple[Tokens, Array, tuple[float, ...]]:
    chosen, scores, seconds, numbers = [], [], [], prompt.values
    for i in range(new):
        start = time.perf_counter()
        with recorder.region(DECODE if i else PREFILL):
            found = step(numbers)[:, -1]
        numbers = choice(found)[:, None]
        chosen.append(numbers)
        scores.append(found)
        seconds.append(time.perf_counter() - start)
    return np.concatenate(chosen, 1), np.stack(scores, 1), tuple(seconds)


def _check(plan: Plan, prompt: Batch, new: int) -> None:
    config = plan.model.config
    if config.output != "next":
        raise InputError(f"model {config.name} gives {config.output}, not scores of the next token")
    if prompt.lengths is not None:
        raise InputError("prompts of one run have the same number of tokens; run each length by itself")
    if new < 1 or prompt.shape.tokens + new - 1 > config.tokens:
        raise InputError(
            f"{prompt.shape.tokens} tokens and {new} new ones do not fit the {config.tokens} of model {config.name}"
        )
