"""The peer: the same encoder block on plain CrypTen, beside us in one environment."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crypten_block
import numpy as np
import numpy.typing as npt
from crypten_block import OWNER

from secureattn.backends.crypten.install import load_crypten
from secureattn.nn.model import load_model

Array = npt.NDArray[np.float64]


def run(folder: Path, functions: str, x: Array, *, turns: int) -> list[dict[str, Any]]:
    """The block so often in the same processes, ``functions`` being "default" or "mpcformer": of each turn the output
    ``[S,D]``, seconds, rounds, bytes sent, and the seconds that making triples took.
    """
    with tempfile.TemporaryDirectory(prefix="secureattn-peer-") as directory:
        results = parties(_block, Path(directory), (folder, functions, x, turns))
    made: list[dict[str, Any]] = [
        {**a, "output": b["output"], "seconds": max(a["seconds"], b["seconds"])} for a, b in zip(*results, strict=True)
    ]
    return made


def parties(work: Callable[..., Any], directory: Path, arguments: tuple[Any, ...]) -> list[Any]:
    """``work(crypten, rank, *arguments)`` in two processes that CrypTen has been started in, and what they return."""
    return crypten_block.parties(load_crypten, work, directory, arguments)


def _block(crypten: Any, rank: int, folder: Path, functions: str, x: Array, turns: int) -> list[dict[str, Any]]:
    model = load_model(folder)
    known = model.weights if rank == OWNER else model.weight_shapes
    weights = {name: known[name].float() for name in known if name.startswith("layer.0")}
    return crypten_block.turns(crypten, rank, weights, model.config, functions, x[0], turns)
