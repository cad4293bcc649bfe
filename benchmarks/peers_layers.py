"""A small encoder by TenSEAL's own layers and by SecureAttn under CKKS, in turn.

digits-vit cut to its first tokens and FFN units, on the same images, with the same folded weights and polynomials: many
images at once as TenSEAL's CKKSTensor, or a single one as its CKKSVector. CKKSTensor needs a ciphertext a value and
minutes already for a few tokens, so shapes are smaller than those on shares. One token is none of them: TenSEAL 0.3.18
then mixes up what it encrypts as CKKSTensor, and the result is wrong.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tenseal_peer
from ckks_runs import REFRESH_PROTOCOL, Job, apart, computed, encrypted
from measuring import Setting, tell
from peers_run import Asked, Peer
from tenseal_program import polynomial

from secureattn import load_model, load_protocol, runs
from secureattn.backends.ckks.parameters import chain
from secureattn.nn import parameters
from secureattn.nn.fold import Folded, fold
from secureattn.nn.model import WEIGHTS, Model
from secureattn.plan import make_plan
from secureattn.train.data import save_samples

Array = npt.NDArray[np.float64]
SHAPES = ((2, 16), (2, 64), (4, 64))
"""Tokens, FFN units."""

MOST_ERROR = 5e-3
"""Above this error of a score, of which the largest is about 15, TenSEAL is wrong."""

IMAGES = {"CKKSTensor": tenseal_peer.IMAGES, "CKKSVector": 1}
"""At once, by TenSEAL's type."""


@dataclass(frozen=True)
class Cut:
    """The model of so few tokens, its images and what they come to in the clear."""

    model: Model
    folded: Folded
    inputs: Array
    expected: Array


def measure(setting: Setting, tensor: str) -> dict[str, Any]:
    """Every shape, or the smallest alone when quick, as one of TenSEAL's types."""
    cases = [_case(*shape, tensor, setting) for shape in SHAPES[: 1 if setting.quick else None]]
    return {"images": IMAGES[tensor], "cases": cases}


def _case(tokens: int, hidden: int, tensor: str, setting: Setting) -> dict[str, Any]:
    """Everyone's runs on one shape, turn by turn. TenSEAL's first turn is the one that is checked and weighed."""
    folder = setting.folder / f"{tensor}-{tokens}x{hidden}"
    cut = _cut(tokens, hidden, IMAGES[tensor], folder)
    config = cut.model.config
    label = f"{tokens} × {config.width}, FFN {hidden}"
    peer = Peer(f"TenSEAL {tensor}", "tenseal", "on_tenseal.py", "polynomials", REFRESH_PROTOCOL)
    told = {**_told(cut.folded), "tensor": tensor}
    asked = Asked(peer, told, _arrays(cut), cut.expected, MOST_ERROR, folder, np.asarray)
    job = Job(str(cut.model.folder), REFRESH_PROTOCOL, len(cut.inputs))
    load = [os.getloadavg()[0]]
    peak = apart(encrypted, job, watched=True)["peak_bytes"]
    ours = []
    for turn in range(setting.turns):
        tell(f"{label}: turn {turn + 1} of {setting.turns}")
        asked.turn(warm=False) if turn else asked.check(timed=True)
        ours.append({**_our_run(job), "peak_bytes": peak})
        load.append(os.getloadavg()[0])
    shape = {name: getattr(config, name) for name in ("tokens", "width", "heads", "hidden")}
    peers = {peer.name: asked.summed()}
    return {"shape": shape, "label": label, "load": load, "ours": {REFRESH_PROTOCOL: ours}, "peers": peers}


def _cut(tokens: int, hidden: int, count: int, folder: Path) -> Cut:
    """Write the model folder, with so many images."""
    model = load_model("digits-vit")
    images, labels = model.samples(count)
    assert labels is not None
    inputs = np.ascontiguousarray(images[:, :tokens])
    config = replace(model.config, tokens=tokens, hidden=hidden, name=f"digits-vit-{tokens}x{hidden}")
    weights = parameters.load(model.folder / WEIGHTS, model.config)
    kept: dict[str, Any] = {f"layer.0.ffn.in.{name}": np.s_[:hidden] for name in ("weight", "bias")}
    kept |= {"position": np.s_[:tokens], "layer.0.ffn.out.weight": np.s_[:, :hidden]}
    for name, part in kept.items():
        weights[name] = weights[name][part]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.to_json())
    (folder / "ranges.json").write_text(model.ranges.to_json())
    parameters.save(folder / WEIGHTS, weights)
    save_samples(folder / "samples.safetensors", inputs, labels)
    made = load_model(folder)
    protocol = load_protocol(REFRESH_PROTOCOL)
    expected = runs.clear_run(make_plan(made, protocol, samples=len(inputs)), inputs).outputs
    folded = fold(made.config, made.weights, protocol.realisations(made))
    return Cut(made, folded, inputs, expected.reshape(len(inputs), 1, -1))


def _told(folded: Folded) -> dict[str, Any]:
    """What the peer needs beside arrays: sizes, constants, ring and primes."""
    config, layer = folded.config, folded.layers[0]
    found = chain(tenseal_peer.RING_DEGREE, tenseal_peer.LEVELS)
    polynomials = {site: polynomial(layer, site) for site in layer.functions}
    sizes = {name: getattr(config, name) for name in ("tokens", "width", "heads", "head_width", "power")}
    return {
        **sizes,
        "attention_epsilon": layer.attention_epsilon,
        "maps": {site: (float(p.slope), float(p.shift)) for site, p in polynomials.items()},
        "ring_degree": found.ring_degree,
        "prime_bits": list(found.prime_bits),
        "scale_bits": found.scale_bits,
    }


def _arrays(cut: Cut) -> dict[str, Array]:
    layer = cut.folded.layers[0]
    linears = {"embed": cut.folded.embed, "head": cut.folded.head}
    linears |= {name: getattr(layer, name) for name in ("qkv", "output", "ffn_in", "ffn_out")}
    found = {"x": np.asarray(cut.inputs, dtype=np.float64)}
    for name, linear in linears.items():
        assert linear is not None
        found |= {f"{name}.weight": linear.weight.numpy(), f"{name}.bias": linear.bias.numpy()}
    for site in layer.functions:
        found[f"{site}.coefficients"] = np.asarray(polynomial(layer, site).coefficients)
    return found


def _our_run(job: Job) -> dict[str, Any]:
    """The same figures as the peer's."""
    found = apart(encrypted, job)["result"]
    return {
        "total_s": found["seconds"]["total"],
        "online_s": computed(found["seconds"]),
        "rounds": found["counts"]["rounds"] + 1,
        "bytes_sent": None,
        "bytes_all": sum(found["bytes"].values()),
        "max_abs_error": found["max_abs_error"]["encryption"],
        "layout": found["layout"],
    }
