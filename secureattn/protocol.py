"""Protocols: how and by whom a model is computed. Reads and checks ``protocols/*.toml``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from secureattn.approx import FUNCTIONS, Realisation, exact, realise, violations
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.errors import ProtocolError, SecureAttnError
from secureattn.nn.model import Model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENGINES = ("plaintext", "ckks", "crypten")
REFRESH = ("client", "none")


@dataclass(frozen=True)
class CkksOptions:
    """``refresh``: "client" lets the key owner restore levels under a mask, "none" forbids it. ``scale_bits``: Δ."""

    refresh: str = "client"
    scale_bits: int = 40

    def __post_init__(self) -> None:
        wrong = []
        if self.refresh not in REFRESH:
            wrong.append(f'ckks.refresh must be "client" or "none", not {self.refresh!r}')
        if type(self.scale_bits) is not int or self.scale_bits not in range(30, 46):
            wrong.append(f"ckks.scale_bits must be a whole number from 30 to 45, not {self.scale_bits!r}")
        if wrong:
            raise ProtocolError("ckks options", wrong)


@dataclass(frozen=True)
class Protocol:
    """A checked protocol. ``functions``: function name → its realisation's kind and options."""

    name: str
    engine: str
    trust: str
    source: str
    functions: Mapping[str, Mapping[str, Any]]
    ckks: CkksOptions = field(default_factory=CkksOptions)
    mpc: MpcParameters = field(default_factory=MpcParameters)
    changes_model: bool = False

    def realisations(self, model: Model) -> dict[str, Realisation]:
        """What serves each site of a model, made for its calibrated domain; all that cannot be are named at once."""
        made: dict[str, Realisation] = {}
        wrong: list[str] = []
        for site, function in model.config.sites().items():
            if function not in self.functions:
                wrong.append(f"{site} needs {function}, for which the protocol names no realisation")
                continue
            try:
                made[site] = realise(function, self.functions[function], model.ranges.domains[site])
            except SecureAttnError as error:
                wrong.append(f"{site}: {error}")
        if wrong:
            raise ProtocolError(f"protocol {self.name} cannot serve model {model.config.name}", wrong)
        return made


def exact_realisations(model: Model) -> dict[str, Realisation]:
    """The true function at every site."""
    return {site: exact(function) for site, function in model.config.sites().items()}


def load_protocol(path: Path) -> Protocol:
    """Read a protocol; every violation is listed at once."""
    try:
        raw = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProtocolError(f"protocol {path}", [str(error)]) from error
    wrong = _violations(raw)
    ckks, mpc = CkksOptions(), MpcParameters()
    try:
        ckks = CkksOptions(**_known(raw.get("ckks", {}), CkksOptions))
    except ProtocolError as error:
        wrong += error.violations
    try:
        mpc = MpcParameters(**_known(raw.get("mpc", {}), MpcParameters))
    except ProtocolError as error:
        wrong += [f"mpc.{violation}" for violation in error.violations]
    if wrong:
        raise ProtocolError(f"protocol {path.name}", wrong)
    return Protocol(
        name=path.stem,
        engine=raw["engine"],
        trust=raw["trust"],
        source=raw["source"],
        functions=raw.get("functions", {}),
        ckks=ckks,
        mpc=mpc,
        changes_model=raw.get("changes_model", False),
    )


def _violations(raw: Mapping[str, Any]) -> list[str]:
    wrong = []
    known = {"format", "engine", "trust", "source", "functions", "ckks", "mpc", "changes_model"}
    wrong += [f"unknown key {key!r}" for key in raw if key not in known]
    if raw.get("format") != 1 or not isinstance(raw["format"], int) or raw["format"] is True:
        wrong.append("format must be 1, the only version this release reads")
    if raw.get("engine") not in ENGINES:
        wrong.append(f"engine {raw.get('engine')!r} is none of {', '.join(ENGINES)}")
    for key in ("trust", "source"):
        if not isinstance(raw.get(key), str) or not raw[key].strip():
            wrong.append(f"{key} must say in words {'who is trusted' if key == 'trust' else 'where it comes from'}")
    for section, engine in (("ckks", "ckks"), ("mpc", "crypten")):
        options = raw.get(section, {})
        if not isinstance(options, dict):
            wrong.append(f"{section} must be a section [{section}] of options, not {options!r}")
            continue
        if options and raw.get("engine") != engine:
            wrong.append(f"section [{section}] belongs to engine {engine!r}, not {raw.get('engine')!r}")
        allowed = {f.name for f in fields(CkksOptions if section == "ckks" else MpcParameters)}
        wrong += [f"{section}: unknown option {key!r}" for key in options if key not in allowed]
    functions = raw.get("functions", {})
    if not isinstance(functions, dict):
        wrong.append(f"functions must be a section [functions], a function a line, not {functions!r}")
        functions = {}
    if not isinstance(raw.get("changes_model", False), bool):
        wrong.append(f"changes_model must be true or false, not {raw['changes_model']!r}")
    changing = []
    for function, options in functions.items():
        if not isinstance(options, dict):
            wrong.append(f'functions.{function} must be a table such as {{ kind = "chebyshev", degree = 15 }}')
            continue
        found = violations(function, options)
        wrong += found
        if not found and options["kind"] == "exact" and raw.get("engine") != "plaintext":
            wrong.append(f"functions.{function}: only the plaintext engine can run the true function")
        if not found and _changes_model(function, options["kind"]):
            changing.append(function)
    if changing and raw.get("changes_model") is not True:
        wrong.append(f"{', '.join(changing)}: another function than the model's; say changes_model = true")
    return wrong


def _changes_model(function: str, kind: str) -> bool:
    return kind in getattr(FUNCTIONS[function], "CHANGES_MODEL", ())


def _known(options: Any, kind: type) -> dict[str, Any]:
    allowed = {f.name for f in fields(kind)}
    return {key: value for key, value in options.items() if key in allowed} if isinstance(options, dict) else {}
