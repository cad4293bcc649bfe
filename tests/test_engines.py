"""Every operation on every engine: values against numpy, and what the plan counts against what the run counts."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from helpers import assert_close
from programs import (
    PROGRAMS,
    SEED,
    Bound,
    Encryption,
    Result,
    X,
    Y,
    as_planned,
    counts,
    in_threads,
    planned,
    run_shared,
    seal_agrees,
    smallest,
    sum_of_bits,
)

from secureattn.backends.ckks.batch import BatchTensor
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.backends.symbolic import SymbolicCkks, SymbolicMpc
from secureattn.errors import CapabilityError

CKKS_PROGRAMS = [name for name, program in PROGRAMS.items() if program.bounds["ckks"] is not None]
LIMIT_S = 240.0  # a hang of the parties fails instead of blocking

needs_tenseal = pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="TenSEAL is not installed")
needs_crypten = pytest.mark.skipif(importlib.util.find_spec("crypten") is None, reason="CrypTen is not installed")


def check(name: str, engine: str, value: np.ndarray) -> None:
    """A result against numpy, within the table's bound for this engine."""
    program = PROGRAMS[name]
    bound = program.bounds[engine]
    assert isinstance(bound, Bound)
    expected = program.expected(*program.inputs)
    assert_close(value, expected, bound.error, f"{name} on {engine} (seed {SEED}): {bound.reason}")


# ---- in the clear -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_plaintext(name: str) -> None:
    program, backend = PROGRAMS[name], PlaintextBackend()
    output = program.run(backend, *map(backend.input, program.inputs))
    assert output.shape == program.expected(*program.inputs).shape
    check(name, "plaintext", backend.reveal(output))


@pytest.mark.parametrize("name", PROGRAMS)
def test_check_fails_on_a_wrong_value(name: str) -> None:
    program = PROGRAMS[name]
    expected = program.expected(*program.inputs)
    wrong = expected.copy()
    wrong.flat[-1] += 2e-3  # above every bound of the table
    for engine in [engine for engine, bound in program.bounds.items() if bound]:
        check(name, engine, expected)
        with pytest.raises(AssertionError):
            check(name, engine, wrong)


# ---- comparisons ------------------------------------------------------------------------------------------------


def compared(x: Any, y: Any, *, at_once: bool) -> Any:
    """All comparisons in one number; on shares x has twice the places of y."""
    others = [y, 0.125, X[0], x * -1]
    return sum_of_bits(x.less_each(others) if at_once else [x.less(other) for other in others])


def test_comparing_several_at_once_is_comparing_one_by_one() -> None:
    clear = PlaintextBackend()
    products, y = clear.input(X) * clear.input(Y), clear.input(Y)
    values = [clear.reveal(compared(products, y, at_once=at_once)) for at_once in (True, False)]
    runs = [in_threads(lambda b, x, y, a=a: compared(x * y, y, at_once=a), X, Y) for a in (True, False)]
    for value in (values[1], *(run.value for run in runs)):
        assert_close(value, values[0], 0.0, "bits are whole numbers")
    rounds = [run.recorders[0].total("rounds", phase="online") for run in runs]
    comparisons = [run.recorders[0].total("comparisons") for run in runs]
    # The product, then truncation and comparison; x itself is truncated once for both public numbers.
    assert rounds == [1 + 1 + 3, 1 + 3 * 1 + 4 * 3]
    assert comparisons == [4 * X.size, 4 * X.size]
    assert all(0 < (values[0].astype(int) >> i & 1).mean() < 1 for i in range(4))


# ---- CKKS -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encryption() -> Callable[[int], Encryption]:
    """Keys by ring degree, for every rotation that any program of the table plans."""

    @cache
    def made(ring_degree: int) -> Encryption:
        steps: set[int] = set()
        for program in (PROGRAMS[name] for name in CKKS_PROGRAMS):
            parameters = smallest(program.run, program.inputs)
            if parameters.ring_degree == ring_degree:
                found = parameters
                steps |= planned(program.run, program.inputs, parameters)[0].machine.steps
        return Encryption(found, steps)

    return made


@needs_tenseal
@pytest.mark.parametrize("name", CKKS_PROGRAMS)
def test_ckks(encryption: Callable[[int], Encryption], name: str) -> None:
    program = PROGRAMS[name]
    plan, expected = planned(program.run, program.inputs, smallest(program.run, program.inputs))
    keys = encryption(plan.machine.parameters.ring_degree)
    backend = keys.backend()
    inputs = [keys.encrypted(backend, x) for x in program.inputs]
    with backend.recorder.phase("online"):
        output: BatchTensor = program.run(backend, *inputs)
    check(name, "ckks", keys.decrypted(output))
    as_planned(output, expected)
    seal_agrees(keys, output)
    assert counts(backend.recorder) == counts(plan.recorder)
    assert levels(backend) == levels(plan)
    assert backend.refresh_points == plan.refresh_points


def levels(backend: Any) -> dict[Any, tuple[int | None, int | None]]:
    """Levels in and out of every operation."""
    return {key: (event.level_in, event.level_out) for key, event in backend.recorder.events.items()}


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in CKKS_PROGRAMS])
def test_ckks_refuses_what_it_lacks_in_one_sentence(name: str) -> None:
    program, operation = PROGRAMS[name], name.split("_")[0]
    needed, remedy = {
        "less": ("comparison", "choose a polynomial realisation in the protocol"),
        "max": ("comparison", "choose a polynomial realisation in the protocol"),
        "pool": (
            "products of matrices of scores",
            "choose another attention variant, or run the model on secret shares",
        ),
    }[operation]

    def run(backend: SymbolicCkks, *inputs: Any) -> Any:
        with backend.region("ffn"):
            return program.run(backend, *inputs)

    with pytest.raises(CapabilityError) as caught:
        planned(run, program.inputs, smallest(lambda b, x, *_: x, program.inputs))
    message = str(caught.value)
    assert message.startswith(f"{operation} needs {needed}, which the ckks engine lacks, at ffn; {remedy}")
    assert "\n" not in message


# ---- secret shares ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parties() -> list[dict[str, Result]]:
    """Two parties and a dealer, three processes, run every program of the table in turn."""
    from secureattn.backends.crypten.launch import run_parties

    results = run_parties("programs:run_party", [list(PROGRAMS)] * 2, timeout_s=LIMIT_S)
    return [result.value for result in results]


@needs_crypten
@pytest.mark.parametrize("name", PROGRAMS)
def test_crypten(parties: list[dict[str, Result]], name: str) -> None:
    owner, client = (party[name] for party in parties)
    assert owner.value is None  # opened to the client alone
    assert client.value is not None
    check(name, "crypten", client.value)
    for rank, result in enumerate((owner, client)):
        backend = SymbolicMpc(_parameters(), rank)
        plan = run_shared(backend, name)
        assert result.shape == plan.shape == client.value.shape
        assert result.counts == plan.counts, f"party {rank}"


def _parameters() -> Any:
    from secureattn.backends.crypten.parameters import MpcParameters

    return MpcParameters()
