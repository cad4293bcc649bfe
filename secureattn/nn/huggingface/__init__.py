"""Checkpoints of Hugging Face transformers as models of ours: a file per family. Nothing of theirs is imported.

A family says which of their settings it can follow, and where each of our parameters comes from. What cannot be
followed is listed all at once, by the name it has there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from secureattn.errors import InputError, ProtocolError
from secureattn.nn import parameters
from secureattn.nn.config import ModelConfig
from secureattn.nn.huggingface import bert, gpt2, gpt_neox, llama, vit
from secureattn.nn.huggingface.family import Family, Source

Array = npt.NDArray[np.float64]

FAMILIES: tuple[Family, ...] = (*bert.FAMILIES, *vit.FAMILIES, *gpt2.FAMILIES, *gpt_neox.FAMILIES, *llama.FAMILIES)
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Converted:
    """A model of ours, and the folder its tokenizer is in, if it has one."""

    config: ModelConfig
    parameters: parameters.Parameters
    tokenizer: Path | None = None


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint of theirs (its config.json names a ``model_type``)."""
    return is_settings(folder / "config.json")


def is_settings(file: Path) -> bool:
    """Whether a file is a config.json of theirs."""
    try:
        return "model_type" in json.loads(file.read_text())
    except (OSError, ValueError, TypeError):
        return False


def config_of(file: Path) -> tuple[ModelConfig, tuple[str, ...]]:
    """Our config from their config.json alone, for plans, and what its report must say: a class that we do not run is
    planned as the first of its family that we do. ProtocolError with all that is not supported.
    """
    settings, name = _json(file), file.parent.name if file.name == "config.json" else file.stem
    source = Source(settings, {}, *_pooling(file.parent))
    family = _family(name, source)
    notes: tuple[str, ...] = ()
    if source.architecture not in family.architectures:
        first = family.architectures[0]
        notes = (f"planned as {first}, which is run, in the place of {source.architecture}",)
        source = replace(source, settings={**settings, "architectures": [first]})
    if wrong := list(family.unsupported(source)):
        raise ProtocolError(f"checkpoint {name}", wrong)
    try:
        return family.config(name, source), notes
    except KeyError as error:
        raise ProtocolError(f"checkpoint {name}", [f"setting {error.args[0]!r} is missing"]) from error


def read(folder: Path, name: str | None = None, *, tokens: int | None = None) -> Converted:
    """Convert a folder with config.json and safetensors (and tokenizer.json, and sentence-transformers' modules.json),
    for at most so many ``tokens`` if given.

    Raises InputError for files that cannot be read, ProtocolError with all that is not supported.
    """
    settings, tensors = _json(folder / "config.json"), _tensors(folder)
    made = convert(name or folder.name, Source(settings, tensors, *_pooling(folder)), tokens)
    tokenizer = folder / TOKENIZER
    return Converted(made.config, made.parameters, tokenizer if tokenizer.exists() else None)


def of_model(model: Any, name: str = "model", *, tokens: int | None = None) -> Converted:
    """Convert a loaded ``transformers`` model: its config and its state, whatever it was loaded from."""
    settings = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    tensors = {key: value.detach().cpu().double().numpy() for key, value in model.state_dict().items()}
    return convert(name, Source(settings, tensors), tokens)


def convert(name: str, source: Source, tokens: int | None = None) -> Converted:
    """Settings and tensors as a config and parameters of ours."""
    family = _family(name, source)
    wrong = list(family.unsupported(source))
    if source.architecture not in family.architectures:
        wrong.append(f"architecture {source.architecture!r} is none of {', '.join(family.architectures)}")
    if wrong:
        raise ProtocolError(f"checkpoint {name}", wrong)
    config = family.config(name, source)
    if tokens is not None:
        if config.input != "tokens" or tokens > config.tokens:
            raise InputError(f"checkpoint {name} takes up to {config.tokens} tokens, not {tokens}")
        config = replace(config, tokens=tokens)
    wanted = parameters.shapes(config)
    made, missing = {}, []
    for ours in wanted:
        try:
            made[ours] = np.ascontiguousarray(family.parameter(ours, config, source), dtype=np.float64)
        except KeyError as error:
            missing.append(f"tensor {error.args[0]} is missing, from which {ours} is made")
    wrong = [*missing, *_left(family, source)]
    wrong += [
        f"{ours} has shape {list(made[ours].shape)}, the settings say {list(shape)}"
        for ours, shape in wanted.items()
        if ours in made and made[ours].shape != shape
    ]
    if wrong:
        raise ProtocolError(f"checkpoint {name}", wrong)
    return Converted(config, made)


def _family(name: str, source: Source) -> Family:
    kind, known = source.settings.get("model_type"), {family.model_type: family for family in FAMILIES}
    if kind not in known:
        raise ProtocolError(f"checkpoint {name}", [f"model_type {kind!r} is none of {', '.join(sorted(known))}"])
    return known[kind]


def _left(family: Family, source: Source) -> list[str]:
    """Tensors that nothing of ours was made from and that the family does not say may be left."""
    modules = sorted({key.rsplit(".", 1)[0] for key in source.unused() if not family.may_be_left(key)})
    return [f"module {module} is not supported" for module in modules]


def _pooling(folder: Path) -> tuple[Any, Any]:
    """What sentence-transformers put beside a checkpoint: its modules, and how it pools."""
    files = (folder / "modules.json", folder / "1_Pooling" / "config.json")
    modules, pooling = (_json(file) if file.exists() else None for file in files)
    return modules, pooling


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _tensors(folder: Path) -> Mapping[str, Array]:
    index = folder / "model.safetensors.index.json"
    files = sorted(set(_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    if not (folder / files[0]).exists():
        others = sorted(path.name for path in folder.glob("*.bin"))
        remedy = f"; {others[0]} is a pickle, which is not read: save the model as safetensors" if others else ""
        raise InputError(f"{folder} has no {files[0]}{remedy}")
    found: dict[str, Array] = {}
    for name in files:
        try:
            with safe_open(folder / name, framework="pt") as file:  # bfloat16 too, which numpy does not know
                found |= {key: file.get_tensor(key).double().numpy() for key in file.keys()}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{folder / name} cannot be read: {error}") from error
    return found
