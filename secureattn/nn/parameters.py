"""A model's parameters by name: their shapes, a fresh start for training, files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from secureattn.errors import InputError, ProtocolError
from secureattn.nn.config import STATISTICS_FREE, ModelConfig

Array = npt.NDArray[np.float64]
Parameters = dict[str, Array]
FORMAT = "1"


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of every parameter; matrices are ``[Dout,Din]``."""
    d, h = config.width, config.hidden
    own, shared = config.heads * config.head_width, config.shared_heads * config.head_width
    found: dict[str, tuple[int, ...]] = {"embed.weight": (d, config.features), "embed.bias": (d,)}
    if config.positions == "learned":
        found["position"] = (config.tokens, d)
    if config.output != "vector":
        found |= {"head.weight": (config.classes, d)} if not config.tied else {}
        found["head.bias"] = (config.classes,)
    if config.pooler:
        found |= {"pooler.weight": (d, d), "pooler.bias": (d,)}
    for norm, there in (("embed.norm", config.embed_norm), ("final.norm", config.final_norm)):
        found |= {f"{norm}.gain": (d,), f"{norm}.bias": (d,)} if there else {}
    for i in range(config.layers):
        sizes = {"query": (own, d), "key": (shared, d), "value": (shared, d), "output": (d, own)}
        linear = {f"attention.{part}": size for part, size in sizes.items()}
        linear |= {"ffn.in": (h, d), "ffn.out": (d, h), **({"ffn.up": (h, d)} if config.gated else {})}
        for part, size in linear.items():
            found[f"layer.{i}.{part}.weight"], found[f"layer.{i}.{part}.bias"] = size, size[:1]
        for part in ("attention", "ffn"):
            statistics = ("mean", "variance") if config.norm == "batchnorm" else ()
            for name in ("gain", "bias", *statistics):
                found[f"layer.{i}.{part}.norm.{name}"] = (d,)
            if config.norm in STATISTICS_FREE:
                found[f"layer.{i}.{part}.norm.alpha"] = (1,)
        for name, shape in config.own_parameters(i).items():
            found[f"layer.{i}.attention.{name}"] = shape
    return found


def initial(config: ModelConfig, seed: int) -> Parameters:
    """Parameters to start training from: scaled normal matrices, unit gains, zero biases."""
    rng = np.random.default_rng(seed)
    made: Parameters = {}
    for name, shape in shapes(config).items():
        if name.endswith(("gain", "variance")):
            made[name] = np.ones(shape)
        elif name.endswith("alpha"):
            made[name] = np.full(shape, 0.5)
        elif name == "position":
            made[name] = rng.normal(scale=0.5, size=shape)
        elif name.endswith("weight"):
            made[name] = rng.normal(scale=shape[-1] ** -0.5, size=shape)
        else:
            made[name] = np.zeros(shape)
    return made


def save(path: Path, parameters: Mapping[str, Array]) -> None:
    """Write float32 safetensors with the format version in the metadata."""
    arrays = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in parameters.items()}
    save_file(arrays, path, metadata={"secureattn.format": FORMAT})


def load(path: Path, config: ModelConfig) -> Parameters:
    """Read parameters as float64; every missing, surplus, misshapen or non-finite one is named."""
    try:
        with safe_open(path, framework="numpy") as file:
            version = (file.metadata() or {}).get("secureattn.format")
            arrays = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights {path} cannot be read: {error}") from error
    if version != FORMAT:
        raise InputError(f"weights {path} have format {version}, this release reads {FORMAT}")
    check(f"weights {path}", arrays, config)
    return arrays


def some(path: Path, names: Iterable[str]) -> Parameters:
    """Some parameters of a file as float64, and nothing else of it read."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name).astype(np.float64) for name in names}
    except (OSError, SafetensorError) as error:
        raise InputError(f"weights {path} cannot be read: {error}") from error


def check(subject: str, arrays: Mapping[str, Array], config: ModelConfig) -> None:
    """ProtocolError naming every missing, surplus, misshapen or non-finite parameter."""
    wanted = shapes(config)
    wrong = [f"missing {name}" for name in sorted(wanted.keys() - arrays.keys())]
    wrong += [f"unknown {name}" for name in sorted(arrays.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & arrays.keys()):
        if arrays[name].shape != wanted[name]:
            wrong.append(f"{name} has shape {list(arrays[name].shape)}, the config needs {list(wanted[name])}")
        elif not np.isfinite(arrays[name]).all():
            wrong.append(f"{name} holds values that are not finite")
    if wrong:
        raise ProtocolError(subject, wrong)
