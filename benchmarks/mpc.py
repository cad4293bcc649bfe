"""The secret-sharing engine measured: an encoder block beside plain CrypTen, truncations, softmax, the whole test set.

    python benchmarks/mpc.py [--quick] [--json FILE] [--only PART…] [--fresh]

What each part measured is kept in ``out/mpc`` and not measured again, unless ``--fresh``; ``--only`` leaves the other
parts as they are there. Once all parts are there, writes tables and everything as JSON, raw samples and checks, to
``benchmarks/results``. Wants a quiet machine with two cores.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mpc_report
from measuring import Setting, run_all, tell

HERE = Path(__file__).resolve().parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])  # the parties'

SHAPE = {"tokens": 128, "width": 768, "heads": 12, "hidden": 3072}
QUICK_SHAPE = {"tokens": 16, "width": 64, "heads": 4, "hidden": 256}
PROTOCOLS = {
    "accurate-mpc": "softmax",
    "puma": "softmax",
    "bolt-gelu": "softmax",
    "shaft": "softmax",
    "mpcformer": "quad",
}
"""What runs the block, and with which attention; the functions of the first and the last run on plain CrypTen too."""

PEERS = {"default": "softmax", "mpcformer": "quad"}
WARM = 2
"""Times a block runs in the same processes; the last one counts."""

KEYS, QUICK_KEYS = [16, 128, 512, 2048], [16, 128]
PRODUCTS, QUICK_PRODUCTS = 10**8, 10**6
DIGITS = ("accurate-mpc", "power-softmax-mpc")


# ---- the parts ----------------------------------------------------------------------------------------------


def block(setting: Setting) -> dict[str, Any]:
    """The encoder block under every protocol and on plain CrypTen, in turn."""
    import mpc_block
    import mpc_crypten
    import numpy as np

    shape = QUICK_SHAPE if setting.quick else SHAPE
    models = {
        attention: mpc_block.make(setting.folder / f"block-{attention}", attention=attention, **shape)
        for attention in ("softmax", "quad")
    }
    x = mpc_block.inputs(models["softmax"].config)
    references = {name: mpc_block.references(models[of], name, x) for name, of in PROTOCOLS.items()}
    exact = {of: mpc_block.exact(models[of], x, quad=of == "quad") for of in models}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in PROTOCOLS}
    peers: dict[str, list[dict[str, Any]]] = {name: [] for name in PEERS}
    for turn in range(setting.turns):
        tell(f"block: turn {turn + 1} of {setting.turns}")
        for name, of in PEERS.items():
            *_, run = mpc_crypten.run(models[of].folder, name, x, turns=WARM)
            output = run.pop("output")
            error = np.abs(output - output.mean(-1, keepdims=True) - exact[of][0]).max()
            peers[name].append({**run, "max_abs_error": float(error)})
        for name, of in PROTOCOLS.items():
            *_, run = mpc_block.run(models[of], name, x, turns=WARM)
            runs[name].append(mpc_report.run_of(run, references[name]))
    plans = {name: mpc_block.planned(models[of], name) for name, of in PROTOCOLS.items()}
    return {"shape": shape, "runs": runs, "peers": peers, "plans": plans}


def truncation(setting: Setting) -> dict[str, Any]:
    """Products that fill the declared range, truncated exactly and locally: how many are grossly wrong."""
    import mpc_sampled

    count = QUICK_PRODUCTS if setting.quick else PRODUCTS
    return {way: mpc_sampled.truncated(count, way) for way in ("exact", "local")}


def softmax(setting: Setting) -> dict[str, Any]:
    """Softmax over rows of several kinds and lengths, here and by CrypTen."""
    import mpc_crypten
    import mpc_sampled

    sizes = QUICK_KEYS if setting.quick else KEYS
    found = mpc_sampled.softmax_errors(sizes)
    with tempfile.TemporaryDirectory(prefix="secureattn-peer-") as directory:
        peer = mpc_sampled.peer_softmax_errors(mpc_crypten.parties, Path(directory), sizes)
    return {"rows": [{**one, "crypten_max_abs_error": error} for one, error in zip(found, peer, strict=True)]}


def gelu(setting: Setting) -> dict[str, Any]:
    """GELU of every protocol on a grid, on shares: the error of formula and fixed point together."""
    import mpc_sampled

    return {"functions": mpc_sampled.gelu_errors()}


def digits(setting: Setting) -> dict[str, Any]:
    """The shipped model on all its test images in one batch."""
    from secureattn import load_model, load_protocol, runs
    from secureattn.plan import make_plan

    found = {}
    for name in DIGITS[: 1 if setting.quick else None]:
        model, protocol = load_model("digits-vit"), load_protocol(name)
        inputs, labels = model.samples(32 if setting.quick else None)
        plan = make_plan(model, protocol, samples=len(inputs))
        run = runs.execute(plan, inputs)
        clear, exact = runs.clear_run(plan, inputs), runs.clear_run(plan, inputs, exact=True)
        found[name] = mpc_report.digits_of(plan, run, clear.outputs, exact.outputs, labels)
    return found


PARTS: Mapping[str, Callable[[Setting], dict[str, Any]]] = {
    part.__name__: part for part in (block, truncation, softmax, gelu, digits)
}


if __name__ == "__main__":
    sys.exit(run_all("mpc", __doc__, PARTS, mpc_report))
