"""What every peer's script is told and answers: a case to compute, read from JSON and arrays, and what it measured.

    python on_PEER.py CASE.json OUT.json

Nothing here is ours but plain files: a peer's environment has no SecureAttn.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def read() -> tuple[SimpleNamespace, dict[str, Array]]:
    """The case, and its arrays by name, "x" among them."""
    told = json.loads(Path(sys.argv[1]).read_text())
    with np.load(told["arrays"], allow_pickle=False) as arrays:
        return SimpleNamespace(**told), {name: arrays[name] for name in arrays.files}


def answer(turns: Sequence[dict[str, Any]], output: Array, packages: Sequence[str]) -> None:
    """Keep the last turn's output beside the case, and say what was measured with which versions."""
    out = Path(sys.argv[2])
    np.save(out.with_suffix(".npy"), output, allow_pickle=False)
    versions = {name: importlib.metadata.version(name) for name in packages}
    out.write_text(json.dumps({"turns": turns, "versions": versions}, allow_nan=False))
