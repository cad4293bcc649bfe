"""The cheapest realisation: nothing cheaper does, what is chosen does what was asked, what it costs is what is run."""

from __future__ import annotations

import importlib.util
import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Counting

from secureattn.approx import FUNCTIONS, Realisation, realise
from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.planning import NullRuntime
from secureattn.errors import InputError, PlanError, SecureAttnError
from secureattn.events import Recorder
from secureattn.nn.model import load_model
from secureattn.plan import make_plan
from secureattn.plan.costs import cost
from secureattn.plan.select import Choice, candidates, cheapest, fitted, frontier, typical
from secureattn.protocol import load_protocol
from secureattn.resources import find

CASES = [
    ("gelu", (-6.0, 6.0)),
    ("exp", (-8.0, 0.0)),
    ("rsqrt", (1 / 64, 1.0)),
    ("reciprocal", (0.05, 1.0)),
    ("sigmoid", (-8.0, 8.0)),
    ("relu", (-2.0, 2.0)),
    ("log", (0.1, 2.0)),
]
ERRORS = (1e-1, 1e-3, 1e-5)
DEGREES = range(1, 41)


def run_on_numbers(made: Realisation, x: np.ndarray) -> Counting:
    """Values, depth and products by a tensor that shares nothing with the engines."""
    result = made(Counting(x))
    assert isinstance(result, Counting)
    return result


def true(function: str, x: np.ndarray) -> np.ndarray:
    return np.asarray(FUNCTIONS[function].TRUE(torch.from_numpy(x)).numpy())


@cache
def every_polynomial(function: str, domain: tuple[float, float]) -> list[Realisation]:
    found = []
    for kind in ("chebyshev", "remez"):
        for degree in DEGREES:
            try:
                found.append(realise(function, {"kind": kind, "degree": degree}, domain))
            except SecureAttnError:
                continue
    assert len(found) > len(DEGREES)
    return found


def chosen(function: str, domain: tuple[float, float], error: float, engine: str) -> Choice | None:
    try:
        return cheapest(function, domain, error, engine)
    except PlanError:
        return None


# ---- nothing cheaper does ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "domain"), CASES)
def test_nothing_of_less_depth_or_fewer_products_reaches_the_error(function: str, domain: tuple[float, float]) -> None:
    every = every_polynomial(function, domain)
    met = {made.error for made in every[:: len(every) // 2] if made.error is not None}  # met exactly by one of them
    for error in (*(ERRORS[:1] if function == "relu" else ERRORS), *met):
        do = [(made.depth, made.products) for made in every if made.error is not None and made.error <= error]
        choice = chosen(function, domain, error, "ckks")
        if do:
            assert choice is not None
            assert (choice.realisation.depth, choice.realisation.products) <= min(do)  # type: ignore[type-var]


def test_iterations_are_considered_too() -> None:
    """Where a range spans four decades an iteration is less deep than any polynomial that reaches the error."""
    domain, error = (1e-4, 1.0), 1e-4
    choice = cheapest("reciprocal", domain, error, "ckks")
    kinds = {c.realisation.kind for c in candidates("reciprocal", domain, error, "ckks")}
    assert {"goldschmidt", "newton"} & kinds
    assert "normalised" not in kinds  # compares
    assert choice.rank("ckks") == min(c.rank("ckks") for c in candidates("reciprocal", domain, error, "ckks"))


def test_a_kink_is_served_by_a_composite_sign_where_no_polynomial_does() -> None:
    for error in (3e-3, 1e-3):
        made = cheapest("relu", (-8.0, 8.0), error, "ckks").realisation
        assert made.kind == "composite"
        x = np.concatenate([sign * np.geomspace(1e-4, 8, 40001) for sign in (-1, 1)])
        assert np.abs(run_on_numbers(made, x).data - np.maximum(x, 0)).max() <= error * (1 + 1e-6)


# ---- what is chosen does what was asked -------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "domain"), CASES)
@pytest.mark.parametrize("error", ERRORS)
def test_the_error_holds_when_measured_again(function: str, domain: tuple[float, float], error: float) -> None:
    choice = chosen(function, domain, error, "ckks")
    if choice is None:
        assert all(made.error is None or made.error > error for made in every_polynomial(function, domain))
        return
    made = choice.realisation
    assert made.covers(domain)
    x = np.concatenate([np.linspace(*domain, 50001), np.geomspace(*domain, 50001) if domain[0] > 0 else []])
    right = true(function, x)
    off = np.abs(run_on_numbers(made, x).data - right) / (np.abs(right) if made.relative else 1)
    assert off.max() <= error * (1 + 1e-6)
    assert choice.realisation.error == pytest.approx(off.max(), rel=2e-2)  # symmetric domains may be wider than asked
    assert realise(function, choice.options, domain).error == made.error


def test_errors_of_one_function_can_be_compared() -> None:
    for function, module in FUNCTIONS.items():
        rows = [c.realisation for c in candidates(function, typical(function, ""), 0.3, "plaintext")]
        assert rows, function
        assert len({made.relative for made in rows if made.error}) <= 1, function
        assert {made.kind for made in rows} <= set(module.REALISATIONS)


def test_what_computes_another_function_is_never_chosen() -> None:
    for engine in ("ckks", "crypten", "plaintext"):
        found = candidates("gelu", (-4.0, 4.0), 1.0, engine)
        assert found
        assert not any(choice.realisation.changes_model for choice in found)


@pytest.mark.parametrize("function", ["gelu", "relu", "max", "sign", "tanh", "rsqrt", "elu1", "stablemax", "exp"])
def test_without_comparison_nothing_piecewise(function: str) -> None:
    domain = typical(function, "")
    shared, levelled = (candidates(function, domain, 0.1, engine) for engine in ("crypten", "ckks"))
    assert not any(choice.realisation.needs for choice in [*levelled, *frontier(function, domain, "ckks")])
    if function != "exp":
        assert any(choice.realisation.needs for choice in shared)
    for choice in levelled:
        assert choice.realisation.depth is not None


# ---- order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("function", "domain"), CASES)
def test_on_shares_rounds_come_first_then_bytes(function: str, domain: tuple[float, float]) -> None:
    found = candidates(function, domain, 1e-3, "crypten")
    first = min((c.cost.rounds, c.cost.bytes_sent + c.cost.dealer_bytes) for c in found)
    best = cheapest(function, domain, 1e-3, "crypten").cost
    assert (best.rounds, best.bytes_sent + best.dealer_bytes) == first
    assert best.rounds <= 4  # a series, or one comparison and a product


def test_in_the_clear_what_compares_comes_last() -> None:
    assert not cheapest("relu", (-2.0, 2.0), 3e-2, "plaintext").realisation.needs
    exact = cheapest("relu", (-2.0, 2.0), 1e-9, "plaintext")
    assert (exact.realisation.kind, exact.realisation.error) == ("compare", 0.0)


@pytest.mark.parametrize("engine", ["ckks", "crypten"])
@pytest.mark.parametrize(("function", "domain"), CASES[3:7])
def test_no_choice_of_a_frontier_beats_another(function: str, domain: tuple[float, float], engine: str) -> None:
    found = frontier(function, domain, engine)
    pairs = [(choice.rank(engine)[0], choice.realisation.error) for choice in found]
    assert pairs == sorted(pairs)
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(pairs))  # type: ignore[operator]


# ---- costs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 25])
def test_a_frontier_on_shares_ends_at_the_last_place(bits: int) -> None:
    """One opening, beside what takes none: harmonics that fixed point cannot tell apart would cost dealt bytes."""
    *coarse, best = frontier("sigmoid", (-8.0, 8.0), "crypten", MpcParameters(fractional_bits=bits))
    assert best.cost.rounds == 1
    assert {(choice.cost.rounds, choice.cost.bytes_sent) for choice in coarse} <= {(0, 0)}
    assert best.realisation.error is not None
    assert best.realisation.error <= 2.0**-bits
    fewer = realise("sigmoid", {"kind": "fourier", "harmonics": best.options["harmonics"] - 4}, (-8.0, 8.0))
    assert fewer.error is not None
    assert fewer.error > 2.0**-bits


@pytest.mark.parametrize("engine", ["ckks", "crypten"])
@pytest.mark.parametrize(("function", "domain"), CASES)
def test_levels_and_products_are_those_of_a_run(function: str, domain: tuple[float, float], engine: str) -> None:
    for choice in candidates(function, domain, 1e-2, engine):
        made, counted = choice.realisation, choice.cost
        if made.needs or made.series:
            continue
        ran = run_on_numbers(made, np.linspace(*domain, 7))
        assert (counted.depth, counted.products) == (ran.depth, ran.tally.products), made.label


PRICED: list[tuple[str, dict[str, Any], tuple[float, float]]] = [
    ("gelu", {"kind": "chebyshev", "degree": 15}, (-4.0, 4.0)),
    ("gelu", {"kind": "fourier", "harmonics": 12}, (-4.0, 4.0)),
    ("gelu", {"kind": "bolt"}, (-4.0, 4.0)),
    ("rsqrt", {"kind": "octaves"}, (2.0**-8, 1.0)),
    ("reciprocal", {"kind": "goldschmidt", "error": 1e-3}, (0.1, 1.0)),
    ("max", {"kind": "compare"}, (-4.0, 4.0)),
]


@pytest.mark.parametrize(("function", "options", "domain"), PRICED)
@pytest.mark.parametrize("truncation", ["exact", "local"])
def test_traffic_is_that_of_a_party(function: str, options: Any, domain: Any, truncation: Any) -> None:
    parameters, shape = MpcParameters(truncation=truncation), (40, 16)
    backend = MpcBackend(NullRuntime(parameters), Recorder(modelled=True))
    made = realise(function, options, domain)
    x = backend.input(np.zeros(shape))
    with backend.recorder.phase("online"):
        made(x)
    got = cost(made, parameters)
    total = backend.recorder.total
    assert got.rounds == total("rounds", phase="online")
    assert got.bytes_sent == total("bytes_sent", phase="online") / 640
    assert got.dealer_bytes == (total("dealer_bytes", phase="online") + total("dealer_bytes", phase="offline")) / 640


def price(backend: MpcBackend, rows: list[Any]) -> list[tuple[int, int]]:
    """Run inside a party: rounds and bytes of each realisation on 32 values."""
    found = []
    for function, options, domain in rows:
        low, high = domain
        x = backend.input(np.linspace(low, high, 32).reshape(2, 16) if backend.runtime.rank == 1 else np.zeros((2, 16)))
        before = [backend.recorder.total(name, phase="online") for name in ("rounds", "bytes_sent")]
        with backend.recorder.phase("online"):
            realise(function, options, domain)(x)
        after = [backend.recorder.total(name, phase="online") for name in ("rounds", "bytes_sent")]
        found.append((after[0] - before[0], after[1] - before[1]))
    return found


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("crypten") is None, reason="CrypTen is not installed")
def test_traffic_is_that_of_real_parties() -> None:
    from secureattn.backends.crypten.launch import run_parties

    for result in run_parties(price, [PRICED] * 2, timeout_s=120):
        for (function, options, domain), (rounds, sent) in zip(PRICED, result.value, strict=True):
            expected = cost(realise(function, options, domain))
            assert (expected.rounds, expected.bytes_sent * 32) == (rounds, sent), function


# ---- refusals and protocols -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("gelu", (-4.0, 4.0), 1e-3, "abacus"), "'abacus' is none of"),
        (("gello", (-4.0, 4.0), 1e-3, "ckks"), "unknown function 'gello'"),
        (("gelu", (-4.0, 4.0), 0.0, "ckks"), "positive"),
        (("gelu", (-4.0, 4.0), float("nan"), "ckks"), "positive"),
        (("gelu", (-4.0, 4.0), 1e-20, "ckks"), "no realisation of gelu reaches error 1.0e-20 on [-4, 4] under ckks"),
        (("log", (-1.0, 1.0), 1e-3, "ckks"), "log needs a positive domain"),
    ],
)
def test_refusals_are_one_sentence(arguments: Any, word: str) -> None:
    with pytest.raises((InputError, PlanError)) as caught:
        cheapest(*arguments)
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["power-softmax-ckks", "power-softmax-mpc", "crypten"])
@pytest.mark.parametrize("error", [1e-2, 1e-5])
def test_fitted_protocols_serve_the_model_within_the_error(name: str, error: float) -> None:
    model, protocol = load_model(find("models", "digits-vit")), load_protocol(find("protocols", name))
    made = fitted(protocol, model, error)
    sites = protocol.served(model.config).sites()
    assert set(made.sites) == set(sites)
    for site, realisation in make_plan(model, made, samples=2).realisations.items():
        assert realisation.error is not None
        assert realisation.error <= error
        assert realisation.covers(model.ranges.domains[site])
