"""The encoder block on CrypTen as pip gives it, by its own functions or by MPCFormer's: two parties on loopback.

CrypTen's ONNX converter imports internals that torch dropped in 2.6; an empty module stands in for it.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import case
import crypten_block
import torch


def load() -> Any:
    """The ``crypten`` module."""
    absent = ModuleType("crypten.nn.onnx_converter")
    vars(absent).update(from_onnx=None, from_pytorch=None, from_tensorflow=None, TF_AND_TF2ONNX=False)
    sys.modules[absent.__name__] = absent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("crypten")


def party(crypten: Any, rank: int, told: SimpleNamespace, arrays: dict[str, case.Array]) -> list[dict[str, Any]]:
    """What a party does."""
    weights = {name: torch.from_numpy(value).float() for name, value in arrays.items() if name != "x"}
    return crypten_block.turns(crypten, rank, weights, told, told.functions, arrays["x"], told.turns)


def main() -> None:
    """Compute the case so often in the same processes."""
    told, arrays = case.read()
    with tempfile.TemporaryDirectory(prefix="peer-") as directory:
        results = crypten_block.parties(load, party, Path(directory), (told, arrays))
    turns = [
        {
            "total_s": max(one["seconds"] for one in both),
            "online_s": max(one["seconds"] for one in both) - both[crypten_block.OWNER]["triples_s"],
            "rounds": max(one["rounds"] for one in both),
            "bytes_sent": [one["bytes_sent"] for one in both],
            "peak_bytes": max(one["peak_bytes"] for one in both),
        }
        for both in zip(*results, strict=True)
    ]
    case.answer(turns, results[crypten_block.CLIENT][-1]["output"], ["crypten", "torch"])


if __name__ == "__main__":
    main()
