"""The cheapest realisation of a function under constraints: domain, largest error, engine."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from secureattn.approx import FUNCTIONS, Interval, Realisation, realise
from secureattn.approx.generic import DEGREES, check_positive
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.errors import InputError, PlanError, SecureAttnError
from secureattn.nn.model import Model
from secureattn.plan.costs import Cost, cost
from secureattn.protocol import Protocol

ENGINES = ("plaintext", "ckks", "crypten")
_HARMONICS = (4, 8, 12, 16, 24, 32, 48)
_ERRORS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)


@dataclass(frozen=True)
class Choice:
    """A realisation, the options that make it (a protocol's line), and its cost, on shares with these parameters."""

    realisation: Realisation
    options: Mapping[str, Any]
    parameters: MpcParameters = field(default_factory=MpcParameters)

    @functools.cached_property
    def cost(self) -> Cost:
        """Counted when first asked for."""
        return cost(self.realisation, self.parameters)

    def rank(self, engine: str) -> tuple[float, ...]:
        """What is compared: levels, then products under CKKS and in the clear, where what compares comes last; rounds,
        then bytes on shares; the error at last.
        """
        made = self.realisation
        assert made.error is not None
        if engine == "crypten":
            return self.cost.rounds, self.cost.bytes_sent + self.cost.dealer_bytes, made.error
        depth, products = made.depth, made.products
        return math.inf if depth is None else depth, math.inf if products is None else products, made.error


def cheapest(
    function: str, domain: Interval, error: float, engine: str, parameters: MpcParameters | None = None
) -> Choice:
    """The first of ``candidates`` by rank; PlanError where nothing reaches the error."""
    found = candidates(function, domain, error, engine, parameters)
    if not found:
        if FUNCTIONS[function].RANGE == "positive":
            check_positive(function, domain)
        raise PlanError(
            f"no realisation of {function} reaches error {error:.1e} on [{domain[0]:.4g}, {domain[1]:.4g}] under "
            f"{engine}; allow a larger error or narrow the domain"
        )
    return min(found, key=lambda choice: choice.rank(engine))


def fitted(protocol: Protocol, model: Model, error: float, errors: Mapping[str, float] | None = None) -> Protocol:
    """The protocol with the cheapest realisation that errs by at most ``error`` at every site of a model; ``errors``
    names another bound for single functions.
    """
    config, domains = protocol.served(model.config, model.ranges), model.ranges.domains
    bounds = errors or {}
    sites = {
        site: cheapest(function, domains[site], bounds.get(function, error), protocol.engine, protocol.mpc).options
        for site, function in config.sites().items()
    }
    return replace(protocol, sites=sites)


def typical(function: str, kind: str) -> Interval:
    """A domain to show a kind on: what the file names in ``TYPICAL_OF`` (kinds that hold elsewhere), as ``TYPICAL``, or
    one by ``RANGE``.
    """
    module = FUNCTIONS[function]
    elsewhere: Mapping[str, Interval] = getattr(module, "TYPICAL_OF", {})
    domain: Interval = getattr(module, "TYPICAL", (1 / 16, 1.0) if module.RANGE == "positive" else (-8.0, 8.0))
    return elsewhere.get(kind, domain)


def described(function: str, kind: str) -> dict[str, Any]:
    """Options that show a kind: its defaults, and degree 15 or 16 harmonics where it has none."""
    taken = inspect.signature(FUNCTIONS[function].REALISATIONS[kind]).parameters
    options: dict[str, Any] = {"kind": kind}
    for name, size in (("degree", 15), ("harmonics", 16)):
        if name in taken and taken[name].default is None:
            options[name] = size
    return options


def candidates(
    function: str, domain: Interval, error: float, engine: str, parameters: MpcParameters | None = None
) -> list[Choice]:
    """Every realisation of the function itself that covers the domain, errs by at most ``error`` (relative where the
    function's realisations state relative errors) and can run on the engine.

    Polynomials are tried at the largest degree of every depth first; of the least depth that reaches the error, the
    smallest degree that does is tried too, for fewer products.
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r} is none of {', '.join(ENGINES)}")
    if function not in FUNCTIONS:
        raise InputError(f"unknown function {function!r}, known are {', '.join(sorted(FUNCTIONS))}")
    if not error > 0:
        raise InputError(f"an error to reach must be positive, not {error}")
    found = []
    for options in _descriptions(function, domain, error, engine):
        made = _made(function, domain, options)
        if made is None or made.changes_model or made.error is None or not made.error <= error:
            continue
        if engine != "ckks" or not made.needs:
            found.append(Choice(made, _by_size(made, options), parameters or MpcParameters()))
    return found


def _by_size(made: Realisation, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """A series by its harmonics instead of its error, so that whoever builds it again need not search."""
    if made.series is None or made.kind != "fourier":
        return options
    named = {name: value for name, value in options.items() if name != "error"}
    return {**named, "harmonics": made.series.harmonics}


def frontier(function: str, domain: Interval, engine: str, parameters: MpcParameters | None = None) -> list[Choice]:
    """Realisations that no other beats in both cost and error, cheapest first: what a search may put at a site. Of as
    many rounds or levels it is the closest; on shares none is closer than one unit in the last place.
    """
    parameters = parameters or MpcParameters()
    enough = 2.0**-parameters.fractional_bits if engine == "crypten" else 0.0
    made = []
    for options in _sizes(function, engine):
        realisation = _made(function, domain, options)
        if realisation is None or realisation.changes_model or realisation.error is None:
            continue
        if engine != "ckks" or not realisation.needs:
            made.append(Choice(realisation, options, parameters))
    kept: list[Choice] = []
    for choice in sorted(made, key=lambda c: c.rank(engine)):
        assert choice.realisation.error is not None
        best = kept[-1].realisation.error or 0.0 if kept else math.inf
        if best > enough and choice.realisation.error < 0.9 * best:
            if kept and kept[-1].rank(engine)[0] == choice.rank(engine)[0]:
                kept.pop()
            kept.append(choice)
    return kept


def _kinds(function: str, engine: str) -> Iterator[tuple[dict[str, Any], Mapping[str, inspect.Parameter]]]:
    """Every kind, with what the file names for it in ``CANDIDATES``, and the options it takes."""
    module = FUNCTIONS[function]
    more: Mapping[str, Any] = getattr(module, "CANDIDATES", {})
    for kind, build in module.REALISATIONS.items():
        if kind == "fourier" and engine != "crypten":
            continue  # elsewhere a series runs as a polynomial fitted to it: fitted to the function itself it is better
        for extra in more.get(kind, ({},)):
            yield {"kind": kind, **extra}, inspect.signature(build).parameters


def _sizes(function: str, engine: str) -> Iterator[dict[str, Any]]:
    """Every kind in several sizes: degrees at the edges of depth, numbers of harmonics, errors of iterations."""
    grid: dict[str, tuple[Any, ...]] = {"degree": DEGREES, "harmonics": _HARMONICS, "error": _ERRORS}
    for options, taken in _kinds(function, engine):
        name = next((n for n in grid if n in taken and (n == "error" or taken[n].default is None)), None)
        for size in grid[name] if name else (None,):
            yield {**options, name: size} if name else options


def _descriptions(function: str, domain: Interval, error: float, engine: str) -> Iterator[dict[str, Any]]:
    """Options worth trying for an error, by the options each kind takes."""
    for options, taken in _kinds(function, engine):
        if "degree" in taken and taken["degree"].default is None:
            yield from _degrees(function, domain, error, options)
        elif "error" in taken:
            yield from _errors(function, domain, error, options)
        else:
            yield options


def _degrees(function: str, domain: Interval, error: float, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The largest degree of the least depth that reaches the error, and the smallest that does (by bisection)."""

    def reaches(degree: int) -> bool:
        made = _made(function, domain, {**options, "degree": degree})
        return made is not None and made.error is not None and made.error <= error

    below = 0
    for edge in DEGREES:
        if reaches(edge):
            low, high = below, edge
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if reaches(middle) else (middle, high)
            yield from ({**options, "degree": degree} for degree in {high, edge})
            return
        below = edge


def _errors(function: str, domain: Interval, error: float, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The error itself; where what it makes errs by more, as its error is that of a part, one as much smaller."""
    yield {**options, "error": error}
    made = _made(function, domain, {**options, "error": error})
    if made is not None and made.error is not None and made.error > error:
        yield {**options, "error": 0.99 * error * error / made.error}


@functools.lru_cache(maxsize=4096)
def _build(function: str, domain: Interval, options: tuple[tuple[str, Any], ...]) -> Realisation | None:
    try:
        return realise(function, dict(options), domain)
    except SecureAttnError:
        return None


def _made(function: str, domain: Interval, options: Mapping[str, Any]) -> Realisation | None:
    return _build(function, domain, tuple(options.items()))
