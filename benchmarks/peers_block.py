"""One encoder block with private random weights, by peers on secret shares and by SecureAttn, in turn.

Same weights, same input, every party a process of this machine. Peers are checked against float64 of the functions that
they claim to compute: CrypTen has no GELU, so that one and jax's default use the tanh form; MPCFormer's are its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import block_reference
import mpc_block
import mpc_report
import numpy as np
import numpy.typing as npt
from measuring import Setting, tell
from peers_run import HERE, Asked, Peer
from processes import heaviest

from secureattn.nn import parameters
from secureattn.nn.model import WEIGHTS, Model

Array = npt.NDArray[np.float64]
WARM = 2
MOST_ERROR = 0.02
"""Above this error of an output a peer is wrong: fixed point leaves about half of it, another formula exceeds it."""

PEERS = {
    Peer("CrypTen", "crypten", "on_crypten.py", "default", "accurate-mpc"): "tanh",
    Peer("MPCFormer", "crypten", "on_crypten.py", "mpcformer", "mpcformer"): "mpcformer",
    Peer("SPU ABY3", "spu", "on_spu.py", "ABY3", "accurate-mpc"): "tanh",
    Peer("SPU SEMI2K", "spu", "on_spu.py", "SEMI2K", "accurate-mpc"): "tanh",
}
"""Each with the functions that it claims to compute."""

SIZES = ("tokens", "width", "heads", "head_width", "norm_epsilon")
"""What a peer is told of the block, beside its weights."""

OURS = {"accurate-mpc": ("softmax", "true"), "mpcformer": ("quad", "mpcformer")}
"""Our protocols: the model's attention, and the functions that errors are measured against."""


@dataclass(frozen=True)
class Shape:
    """Tokens × width, heads, FFN width."""

    tokens: int
    width: int
    heads: int
    hidden: int

    @property
    def label(self) -> str:
        """As tables and checks say it."""
        return f"{self.tokens} × {self.width}"


SHAPES = (Shape(16, 64, 4, 256), Shape(32, 384, 12, 1536), Shape(128, 768, 12, 3072))


def measure(setting: Setting) -> dict[str, Any]:
    """Every shape, or the smallest alone when quick."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"cases": [_case(shape, setting) for shape in SHAPES[: 1 if setting.quick else None]]}


def _case(shape: Shape, setting: Setting) -> dict[str, Any]:
    """Everyone's runs on one shape, turn by turn."""
    folder = setting.folder / f"block-{shape.tokens}x{shape.width}"
    models = {name: _model(shape, attention, folder) for name, (attention, _) in OURS.items()}
    config = models["accurate-mpc"].config
    weights = _weights(models["accurate-mpc"])
    x = mpc_block.inputs(config)
    expected = {name: block_reference.block(weights, x[0], config, name) for name in block_reference.FUNCTIONS}
    arrays, sizes = {**weights, "x": x[0]}, {name: getattr(config, name) for name in SIZES}
    settle = block_reference.centred
    asked = [Asked(p, sizes, arrays, expected[of], MOST_ERROR, folder, settle) for p, of in PEERS.items()]
    ours: dict[str, list[dict[str, Any]]] = {name: [] for name in OURS}
    load = [os.getloadavg()[0]]
    for one in asked:
        tell(f"{shape.label}: checking {one.peer.name}")
        one.check()
    peaks = {name: _peak_bytes(models[name], name, x) for name in OURS}
    for turn in range(setting.turns):
        tell(f"{shape.label}: turn {turn + 1} of {setting.turns}")
        for one in asked:
            one.turn()
        for name, (_, functions) in OURS.items():
            ours[name].append({**_our_run(models[name], name, x, expected[functions]), "peak_bytes": peaks[name]})
        load.append(os.getloadavg()[0])
    peers = {one.peer.name: one.summed() for one in asked}
    return {"shape": vars(shape), "label": shape.label, "load": load, "ours": ours, "peers": peers}


def _model(shape: Shape, attention: str, folder: Path) -> Model:
    return mpc_block.make(folder / attention, attention=attention, **vars(shape))


def _weights(model: Model) -> dict[str, Array]:
    """Layer 0's, as the model's file has them."""
    found = parameters.load(model.folder / WEIGHTS, model.config)
    return {name: value for name, value in found.items() if name.startswith("layer.0")}


def _peak_bytes(model: Model, protocol: str, x: Array) -> int:
    """Of our largest process. Watching takes some of a core, so runs that are timed go unwatched."""
    return heaviest(lambda: mpc_block.run(model, protocol, x, turns=WARM))[1]


def _our_run(model: Model, protocol: str, x: Array, expected: Array) -> dict[str, Any]:
    """The same figures as a peer's, of the second run in the same processes."""
    *_, run = mpc_block.run(model, protocol, x, turns=WARM)
    parties = [mpc_report.counted(party) for party in run["ledger"].parties]
    sent = [party["bytes_sent"] for party in parties]
    return {
        "total_s": mpc_report.taken({"parties": parties}, dealer=True),
        "online_s": mpc_report.taken({"parties": parties}),
        "rounds": max(party["rounds"] for party in parties),
        "bytes_sent": max(sent),
        "bytes_all": sum(sent) + sum(party["dealer_bytes"] for party in parties),
        "max_abs_error": float(np.abs(block_reference.centred(run["output"][0]) - expected).max()),
    }
