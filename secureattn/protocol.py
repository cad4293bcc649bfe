"""Protocols: how and by whom a model is computed. Reads and checks ``protocols/*.toml``."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from secureattn.approx import FUNCTIONS, Realisation, exact, named, realise, violations
from secureattn.approx.attention import VARIANTS
from secureattn.approx.attention import realisations as ways_of
from secureattn.backends.crypten.parameters import MpcParameters, places_beside
from secureattn.errors import ProtocolError, SecureAttnError
from secureattn.nn.config import ModelConfig
from secureattn.nn.model import Model
from secureattn.nn.ranges import Ranges
from secureattn.precision import FIT, Precision, read
from secureattn.precision import violations as precision_violations

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENGINES = ("plaintext", "ckks", "crypten")
REFRESH = ("client", "none")
LAYOUTS = ("auto", "batch", "dense")
SCALES = range(30, 51)
_FITTING = ("integer_bits", "fractional_bits")


@dataclass(frozen=True)
class CkksOptions:
    """``refresh``: "client" lets the key owner restore levels under a mask, "none" forbids it. ``scale_bits``: log2 Δ,
    or both ends of what a plan may choose from: a smaller scale leaves more levels to a ring, and less precision.
    ``layout``: "batch" or "dense", or "auto" for whichever is predicted to be faster. ``flooding_bits`` of security for
    results that will be shared, 0 for results that stay with the key owner; then ``error_bits``: no score errs by more
    than 2^-error_bits (see ``backends.ckks.flooding``).
    """

    refresh: str = "client"
    scale_bits: int | Sequence[int] = 40
    layout: str = "auto"
    flooding_bits: int = 0
    error_bits: int = 0

    def __post_init__(self) -> None:
        wrong = []
        if self.refresh not in REFRESH:
            wrong.append(f'ckks.refresh must be "client" or "none", not {self.refresh!r}')
        if self.layout not in LAYOUTS:
            wrong.append(f'ckks.layout must be "auto", "batch" or "dense", not {self.layout!r}')
        ends = list(self.scale_bits) if isinstance(self.scale_bits, list | tuple) else [self.scale_bits]
        numbers = [x for x in ends if type(x) is int and x in SCALES]
        if not 1 <= len(ends) <= 2 or len(numbers) < len(ends) or numbers[0] > numbers[-1]:
            wrong.append(
                f"ckks.scale_bits must be a whole number from {SCALES[0]} to {SCALES[-1]}, or two of them, the smaller "
                f"one first, not {self.scale_bits!r}"
            )
        wrong += [
            f"ckks.{name} must be a whole number from 0 to {most}, not {value!r}"
            for name, value, most in (("flooding_bits", self.flooding_bits, 128), ("error_bits", self.error_bits, 40))
            if type(value) is not int or value not in range(most + 1)
        ]
        if not wrong and bool(self.flooding_bits) != bool(self.error_bits):
            wrong.append(
                "ckks.flooding_bits and ckks.error_bits go together; state as error_bits what secureattn profile "
                "--error measures at the head, less 4"
            )
        if not wrong and self.flooding_bits and len(self.scales) > 1:
            wrong.append("ckks.flooding_bits needs one ckks.scale_bits, on which the error depends, not a range")
        if wrong:
            raise ProtocolError("ckks options", wrong)

    @property
    def scales(self) -> range:
        """Bits of every scale that a plan may choose."""
        low, high = (
            (self.scale_bits,) * 2 if isinstance(self.scale_bits, int) else (self.scale_bits[0], self.scale_bits[-1])
        )
        return range(low, high + 1)


@dataclass(frozen=True)
class Beyond:
    """Another way to compute softmax where shifted scores reach more than ``reach`` above 0."""

    kind: str
    reach: float


@dataclass(frozen=True)
class Protocol:
    """A checked protocol. ``functions``: function name → its realisation's kind and options, ``sites``: the same for
    sites of a model, which win, each by its path or all of one name; ``softmax``: the attention variant that computes a
    softmax model's attention; ``beyond``: another way for layers whose scores reach far; ``fits_range``: the declared
    range follows the model's, ``fits_places``: there are as many binary places as it leaves room for; ``precision``:
    what is asked for, by what comes out of a model; ``embedding``: how a model of tokens gets them, ``one_hot`` rows
    times its owner's table, or rows ``looked_up`` by the client, who then has the table.
    """

    name: str
    engine: str
    trust: str
    source: str
    functions: Mapping[str, Mapping[str, Any]]
    ckks: CkksOptions = field(default_factory=CkksOptions)
    mpc: MpcParameters = field(default_factory=MpcParameters)
    changes_model: bool = False
    sites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    softmax: str = "softmax"
    beyond: Beyond | None = None
    embedding: str = "one_hot"
    fits_range: bool = False
    fits_places: bool = False
    precision: Mapping[str, Precision] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Hex digest of all that it says of functions and parameters, not of who wrote it down."""
        said = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("source", "trust")}
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=_plain).encode()).hexdigest()

    def served(self, config: ModelConfig, ranges: Ranges | None = None) -> ModelConfig:
        """The model as this protocol computes it: softmax in the way named here, tokens embedded by whoever may.

        With ranges, layers whose scores reach too far for that way have it computed in the one for such layers.
        """
        changed: dict[str, Any] = {"attention": self.softmax} if config.attention == "softmax" else {}
        if changed and self.beyond is not None and ranges is not None:
            site, way = f"attention/{VARIANTS[self.softmax].on_scores}", VARIANTS[self.beyond.kind].name
            ends = [ranges.domains[f"layer.{i}/{site}"][1] for i in range(config.layers)]
            if max(ends) > self.beyond.reach:
                changed["by_layer"] = tuple(way if end > self.beyond.reach else self.softmax for end in ends)
        if config.input == "tokens" and self.embedding == "looked_up":
            changed |= {"input": "embedded", "features": config.width}
        return replace(config, **changed)

    def precise(self, output: str) -> Protocol:
        """The protocol for models with that output, as precise as it asks for there."""
        wanted = self.precision.get(output)
        if wanted is None:
            return self
        places = wanted.fractional_bits
        return replace(
            self,
            functions=wanted.of(self.functions),
            mpc=self.mpc if places in (None, FIT) else replace(self.mpc, fractional_bits=places),
            fits_places=self.fits_places if places is None else places == FIT,
            precision={},
        )

    def options(self, site: str, function: str) -> Mapping[str, Any] | None:
        """What the protocol says of a site, or of every site of its name, or else of its function."""
        of_function = named(function, self.functions)
        found: Mapping[str, Any] | None = self.sites.get(site, self.sites.get(site.rsplit("/", 1)[-1], of_function))
        return found

    def realisations(self, model: Model) -> dict[str, Realisation]:
        """What serves each site of a model, made for its calibrated domain; all that cannot be are named at once."""
        made: dict[str, Realisation] = {}
        config = self.served(model.config, model.ranges)
        sites, bears = config.sites(), config.bears()
        foreign = [site for site in self.sites.keys() - sites if "/" in site]
        wrong = [f"{site} is no site of the model, which has {', '.join(sites)}" for site in foreign]
        for site, function in sites.items():
            options = self.options(site, function)
            if options is None:
                wrong.append(f"{site} needs {function}, for which the protocol names no realisation")
            elif site not in model.ranges.domains:
                wrong.append(f"{site} has no calibrated range; calibrate the model again")
            else:
                try:
                    made[site] = realise(function, options, model.ranges.domains[site])
                except SecureAttnError as error:
                    wrong.append(f"{site}: {error}")
        wrong += [
            f"{site}: {r.label} errs by {r.error:.2g}, and the domains after it hold for {bears[site]:g}; allow less"
            for site, r in made.items()
            if (r.error or 0.0) > bears.get(site, math.inf)
        ]
        if wrong:
            raise ProtocolError(f"protocol {self.name} cannot serve model {model.config.name}", wrong)
        return made


def fitted(protocol: Protocol, model: Model) -> Protocol:
    """The protocol as it serves this model: as precise as what comes out needs, with a declared range that holds the
    model's values, where it leaves that open or where they are assumed (what nobody saw refuses no plan), and binary
    places to fill what that leaves, where it leaves them open.
    """
    protocol = protocol.precise(model.config.output)
    if protocol.engine != "crypten":
        return protocol
    integer, places = protocol.mpc.integer_bits, protocol.mpc.fractional_bits
    if protocol.fits_range or model.ranges.assumed:
        _, largest = model.ranges.largest(protocol.served(model.config, model.ranges))
        integer = max(integer, math.frexp(largest)[1])
    if protocol.fits_places:
        places = places_beside(integer)
    return replace(protocol, mpc=replace(protocol.mpc, integer_bits=integer, fractional_bits=places))


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
    ckks = CkksOptions()
    try:
        ckks = CkksOptions(**_known(raw.get("ckks", {}), CkksOptions))
    except ProtocolError as error:
        wrong += error.violations
    mpc, violated = _mpc(raw)
    wrong += violated
    if wrong:
        raise ProtocolError(f"protocol {path.name}", wrong)
    softmax = raw.get("functions", {}).get("softmax", {"kind": "mean_shift"})
    return Protocol(
        name=path.stem,
        engine=raw["engine"],
        trust=raw["trust"],
        source=raw["source"],
        functions={name: options for name, options in raw.get("functions", {}).items() if name != "softmax"},
        sites=raw.get("sites", {}),
        softmax=_softmax(softmax["kind"]),
        beyond=Beyond(_softmax(softmax["beyond"]), float(softmax["reach"])) if "beyond" in softmax else None,
        fits_range=raw.get("mpc", {}).get("integer_bits") == FIT,
        fits_places=raw.get("mpc", {}).get("fractional_bits") == FIT,
        precision=read(raw),
        ckks=ckks,
        mpc=mpc,
        changes_model=raw.get("changes_model", False),
        embedding=raw.get("embedding", "looked_up" if raw["engine"] == "ckks" else "one_hot"),
    )


def _violations(raw: Mapping[str, Any]) -> list[str]:
    wrong = []
    known = {f.name for f in fields(Protocol)} - {"name", "softmax", "beyond", "fits_range", "fits_places"} | {"format"}
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
    if not isinstance(raw.get("changes_model", False), bool):
        wrong.append(f"changes_model must be true or false, not {raw['changes_model']!r}")
    embeddings = ("looked_up",) if raw.get("engine") == "ckks" else ("one_hot", "looked_up")
    if raw.get("embedding", "looked_up") not in embeddings:
        wrong.append(f"embedding must be {' or '.join(embeddings)} on {raw.get('engine')}, not {raw['embedding']!r}")
    return wrong + precision_violations(raw) + _function_violations(raw) + _site_violations(raw)


def _mpc(raw: Mapping[str, Any]) -> tuple[MpcParameters, list[str]]:
    """The parameters of a run on shares, those that follow the model's range at their defaults, and what is wrong with
    them, or with them once they are as precise as the protocol asks for.
    """
    given = _known(raw.get("mpc", {}), MpcParameters)
    fixed = {key: value for key, value in given.items() if key not in _FITTING or value != FIT}
    made, wrong = MpcParameters(), list[str]()
    precision = {} if precision_violations(raw) else read(raw)
    places = {"mpc": given.get("fractional_bits")}
    places |= {f"precision.{output}": asked.fractional_bits for output, asked in precision.items()}
    for section, asked in places.items():
        try:
            wanted = {"fractional_bits": asked} if asked not in (None, FIT) else {}
            parameters = MpcParameters(**{**fixed, **wanted})
        except ProtocolError as error:
            wrong += [f"{section}.{violation}" for violation in error.violations]
            continue
        made = parameters if section == "mpc" else made
        if asked == FIT and parameters.truncation == "local":
            wrong.append(f'{section}.fractional_bits: "fit" fills the ring, which needs truncation = "exact"')
    return made, wrong


def _function_violations(raw: Mapping[str, Any]) -> list[str]:
    functions = raw.get("functions", {})
    if not isinstance(functions, dict):
        return [f"functions must be a section [functions], a function a line, not {functions!r}"]
    wrong = []
    changing = []
    for function, options in functions.items():
        if not isinstance(options, dict):
            wrong.append(f'functions.{function} must be a table such as {{ kind = "chebyshev", degree = 15 }}')
            continue
        found = _softmax_violations(options) if function == "softmax" else violations(function, options)
        wrong += found
        if not found and options["kind"] == "exact" and raw.get("engine") != "plaintext":
            wrong.append(f"functions.{function}: only the plaintext engine can run the true function")
        if not found and any(_changes_model(function, options.get(which, "")) for which in ("kind", "beyond")):
            changing.append(function)
    if changing and raw.get("changes_model") is not True:
        wrong.append(f"{', '.join(changing)}: another function than the model's; say changes_model = true")
    return wrong


def _site_violations(raw: Mapping[str, Any]) -> list[str]:
    """A site's function is the model's business, so its options are checked when a model is there; what has no path
    stands for the sites of that name, of any layer, and has to be one of an attention.
    """
    sites = raw.get("sites", {})
    if not isinstance(sites, dict):
        return [f"sites must be a section [sites], a site a line, not {sites!r}"]
    names = {site for variant in VARIANTS.values() for site in variant.sites}
    unknown = [site for site in sites if "/" not in site and site not in names]
    return [f"sites.{site} is a site of no attention; those of a model are named by their path" for site in unknown] + [
        f'sites.{site} must be a table such as {{ kind = "chebyshev", degree = 15 }}'
        for site, options in sites.items()
        if not isinstance(options, dict) or not isinstance(options.get("kind"), str)
    ]


def _softmax(kind: str) -> str:
    """The attention variant that computes softmax in the way a kind names."""
    return "softmax" if kind == "mean_shift" else f"softmax_{kind}"


def _softmax_violations(options: Mapping[str, Any]) -> list[str]:
    ways = ["mean_shift", *(kind for kind in ways_of("softmax") if kind != "softmax")]
    wrong = [f"softmax takes no option {name!r}" for name in options if name not in ("kind", "beyond", "reach")]
    kind, beyond, reach = (options.get(name) for name in ("kind", "beyond", "reach"))
    if ("beyond" in options) != ("reach" in options):
        wrong.append("softmax: beyond, another kind, goes with reach, the largest shifted score that needs none")
    elif "beyond" in options:
        if kind != "mean_shift" or beyond not in ("max_shift", "normalise_square"):
            wrong.append(f"softmax: beyond mean_shift go max_shift or normalise_square, not {beyond!r} beyond {kind!r}")
        if isinstance(reach, bool) or not isinstance(reach, int | float) or not 0 < reach < math.inf:
            wrong.append(f"softmax: reach must be a positive number, not {reach!r}")
    if kind in VARIANTS and kind not in ways:
        wrong.append(
            f"softmax: {kind} is another function; convert the model to it: secureattn convert --attention {kind}"
        )
    elif kind not in ways:
        wrong.append(f"softmax: kind {kind!r} is none of {', '.join(ways)}")
    return wrong


def _changes_model(function: str, kind: str) -> bool:
    return function in FUNCTIONS and kind in getattr(FUNCTIONS[function], "CHANGES_MODEL", ())


def _known(options: Any, kind: type) -> dict[str, Any]:
    allowed = {f.name for f in fields(kind)}
    return {key: value for key, value in options.items() if key in allowed} if isinstance(options, dict) else {}


def _plain(value: Any) -> Any:
    """A part of a protocol as JSON can say it."""
    return dict(value) if isinstance(value, Mapping) else asdict(value)
