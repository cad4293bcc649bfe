"""An encoder block with private random weights on secret shares: a model folder of one layer, and what a party does.

The block is a whole model, so that protocols, calibration and folding are those of any model; its embedding is the
identity and is left out, like its head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mpc_report import counted

from secureattn import load_protocol
from secureattn.approx import Realisation, realise
from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.launch import run_parties
from secureattn.backends.crypten.runtime import CLIENT, MODEL_OWNER
from secureattn.backends.crypten.shapes import ShapesOnly
from secureattn.backends.memory import give_back
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.backends.symbolic import SymbolicMpc
from secureattn.events import Recorder
from secureattn.ledger import Ledger, Party
from secureattn.nn import parameters
from secureattn.nn.config import ModelConfig
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import fold
from secureattn.nn.model import Model, load_model
from secureattn.nn.ranges import Ranges
from secureattn.plan import Plan, party_name
from secureattn.protocol import exact_realisations
from secureattn.train.ranges import calibrate

Array = npt.NDArray[np.float64]
SEED = 20240607
CALIBRATION_SAMPLES = 4


def make(folder: Path, *, tokens: int, width: int, heads: int, hidden: int, attention: str) -> Model:
    """Write the model folder: random weights, ranges calibrated on random inputs that are not measured later."""
    config = ModelConfig(
        name=f"block-{tokens}x{width}-{attention}",
        tokens=tokens,
        features=width,
        width=width,
        heads=heads,
        hidden=hidden,
        layers=1,
        classes=1,
        attention=attention,
    )
    weights = parameters.initial(config, SEED)
    weights |= {"embed.weight": np.eye(width), "position": np.zeros((tokens, width))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.to_json())
    parameters.save(folder / "model.safetensors", weights)
    ranges: Ranges = calibrate(config, weights, inputs(config, CALIBRATION_SAMPLES, salt=1))
    (folder / "ranges.json").write_text(ranges.to_json())
    return load_model(folder)


def inputs(config: ModelConfig, samples: int = 1, *, salt: int = 0) -> Array:
    """Normal numbers ``[N,S,D]`` whose mean over the features is 0, as the stream of a folded model's is."""
    rng = np.random.default_rng([SEED, salt])
    x = rng.normal(size=(samples, config.tokens, config.width))
    centred: Array = x - x.mean(-1, keepdims=True)
    return centred


def exact(model: Model, x: Array, *, quad: bool = False) -> Array:
    """The block with the true functions, in float64: ``[N,S,D]``, less its mean over the features; ``quad`` puts
    MPCFormer's quadratic in the place of GELU.
    """
    functions = exact_realisations(model)
    if quad:
        site = next(site for site, function in model.config.sites().items() if function == "gelu")
        functions[site] = realise("gelu", {"kind": "quad"}, model.ranges.domains[site])
    return _clear(model, functions, x, exact=True)


def references(model: Model, protocol: str, x: Array) -> dict[str, Array]:
    """What the block should come to: with the true functions, and with the protocol's in the clear."""
    found = load_protocol(protocol)
    served = replace(model, config=found.served(model.config))
    quad = found.functions["gelu"]["kind"] == "quad"
    return {"exact": exact(model, x, quad=quad), "clear": _clear(served, found.realisations(model), x, exact=False)}


def _clear(model: Model, functions: Mapping[str, Realisation], x: Array, *, exact: bool) -> Array:
    backend = PlaintextBackend(exact=exact)
    network = Encoder(fold(model.config, model.weights, functions), backend)
    with torch.no_grad():
        return backend.reveal(network.layer(0, backend.input(x)))


def planned(model: Model, protocol: str) -> list[dict[str, Any]]:
    """What a plan says that every party will count."""
    found = load_protocol(protocol)
    folded = Plan(model, found, 1, found.realisations(model)).folded(weights=False)
    parties = []
    for rank in range(found.mpc.parties):
        backend = SymbolicMpc(found.mpc, rank, ahead=True)
        with ShapesOnly(), backend.recorder.phase("setup"):
            network = Encoder(folded, backend)
        with ShapesOnly(), backend.recorder.phase("online"):
            network.layer(0, backend.shape_input((1, model.config.tokens, model.config.width)))
        parties.append(counted(Party.of(party_name(rank), backend.recorder)))
    return parties


def run(
    model: Model, protocol: str, x: Array, *, turns: int, overrides: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The block under a protocol, so often in the same processes: of each turn the output and what was recorded."""
    found = load_protocol(protocol)
    found = replace(found, mpc=replace(found.mpc, **(overrides or {})))
    plan = Plan(model, found, len(x), found.realisations(model))
    arguments = [
        (plan.model.folder, found, len(x), turns, x if rank == CLIENT else None) for rank in range(found.mpc.parties)
    ]
    results = run_parties("mpc_block:party", arguments, found.mpc)
    turns_of = []
    for turn in range(turns):
        named = tuple(Party(party_name(r.rank), tuple(r.value[turn]["events"])) for r in results)
        ledger = Ledger(plan.title, "crypten", named, measured=True)
        turns_of.append({"output": results[CLIENT].value[turn]["output"], "ledger": ledger})
    return turns_of


def party(backend: MpcBackend, argument: tuple[Path, Any, int, int, Array | None]) -> list[dict[str, Any]]:
    """What one party does: once share the weights, then in every turn deal ahead, compute, open to the client."""
    folder, protocol, samples, turns, x = argument
    model, runtime = load_model(folder), backend.runtime
    plan = Plan(model, protocol, samples, protocol.realisations(model))
    folded = plan.folded(weights=runtime.rank == MODEL_OWNER)
    model.forget_weights()
    shape = (samples, model.config.tokens, model.config.width)
    planner = SymbolicMpc(protocol.mpc, runtime.rank)
    with ShapesOnly():
        Encoder(folded, planner).layer(0, planner.shape_input(shape))
    with backend.recorder.phase("setup"):
        own = Encoder(folded, backend)
        give_back()
    found = []
    for _ in range(turns):
        backend.recorder = runtime.recorder = recorder = Recorder()
        with recorder.phase("offline"):
            runtime.prepare(planner.planner.asked)
        with recorder.phase("encrypt"):
            shared = backend.input(np.broadcast_to(0.0, shape) if x is None else x, owner=CLIENT)
        with recorder.phase("setup"), recorder.op("wait"):
            runtime.open([runtime.constant(np.zeros(1, dtype=np.int64))])  # all parties begin together
        with recorder.phase("online"):
            result = own.layer(0, shared)
        with recorder.phase("decrypt"):
            output = backend.reveal(result, to=CLIENT)
        found.append({"output": output, "events": list(recorder.events.values())})
    return found
