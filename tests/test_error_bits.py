"""Error in bits, operation by operation: what is compared with what, and that a wrong coefficient shows where it is."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from secureattn.backends.ckks.dense_layout import dense_pack
from secureattn.backends.ckks.parameters import CkksParameters
from secureattn.backends.ckks.reading import expected_slots
from secureattn.backends.ckks.roles import pack
from secureattn.backends.symbolic import SymbolicCkks, SymbolicDense
from secureattn.cli import main
from secureattn.commands import output, profiling
from secureattn.errors import InputError
from secureattn.events import Event, Recorder
from secureattn.ledger import LAN, to_json
from secureattn.nn.model import load_model
from secureattn.plan import Plan, make_plan
from secureattn.protocol import load_protocol
from secureattn.resources import find
from secureattn.runs import Run, clear_run, execute

needs_tenseal = pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="TenSEAL is not installed")
PARAMETERS = CkksParameters(1 << 13, (48, 38, 38, 38, 52), 38)
SAMPLES = 2
DENSE = "dense"


# ---- where values lie -------------------------------------------------------------------------------------------


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape)


def test_features_in_the_batch_layout() -> None:
    """As the client packs them, where there is a query and a token; nothing is claimed of the rest."""
    x, backend = values(3, 5, 4), SymbolicCkks(PARAMETERS, tokens=5)
    packed = pack(x, backend.tokens, backend.batch)
    tensor = backend.input(x.shape)
    for part, slots in enumerate(packed):
        found = expected_slots(tensor, part, x).reshape(8, -1)
        assert np.array_equal(found[:5, :3], slots.reshape(8, -1)[:5, :3])
        assert np.isnan(found[5:]).all()
        assert np.isnan(found[:, 3:]).all()
    heads = tensor.split_heads(2)
    again = [expected_slots(heads, part, x.reshape(3, 5, 2, 2).transpose(0, 2, 1, 3)) for part in range(4)]
    np.testing.assert_array_equal(again, [expected_slots(tensor, part, x) for part in range(4)])


def test_one_token_is_at_every_token_in_the_batch_layout() -> None:
    backend = SymbolicCkks(PARAMETERS, tokens=5)
    with backend.recorder.phase("online"):
        tensor = backend.input((3, 5, 4)).sum(1)
    x = values(3, 1, 4)
    found = expected_slots(tensor, 2, x).reshape(8, -1)
    np.testing.assert_array_equal(found[:, :3], np.tile(x[:, 0, 2], (8, 1)))
    assert np.isnan(found[:, 3:]).all()


def test_scores_in_the_batch_layout() -> None:
    """Offset r holds query token t and key t + r mod T."""
    backend = SymbolicCkks(PARAMETERS, tokens=5)
    with backend.recorder.phase("online"):
        q = backend.input((3, 5, 4)).split_heads(2)
        scores = q.scores(q)
    x = values(3, 2, 5, 5)
    for part, (head, r) in enumerate(itertools.product(range(2), range(8))):
        found = expected_slots(scores, part, x).reshape(8, -1)
        for t in range(8):
            key = (t + r) % 8
            if t < 5 and key < 5:
                np.testing.assert_array_equal(found[t, :3], x[:, head, t, key])
            else:
                assert np.isnan(found[t]).all()


def dense(tokens: int, features: int, queries: int) -> SymbolicDense:
    return SymbolicDense(PARAMETERS, tokens=tokens, features=features, heads=2, queries=queries)


def test_features_in_the_dense_layout() -> None:
    """As the client packs them; every query, token and feature is there, in every copy."""
    x, backend = values(3, 5, 6), dense(5, 6, 4)
    (slots,) = dense_pack(x, backend.layout)
    found = expected_slots(backend.input(x.shape), 0, x)
    there = ~np.isnan(found)
    np.testing.assert_array_equal(found[there], slots[there])
    copies = backend.layout.axes(x.shape)[1]
    assert there.sum() == x.size * copies
    assert set(found[there]) == set(x.flat)


def test_scores_in_the_dense_layout() -> None:
    """By blocks: the key in copy c of part p is c mod n + p·n tokens on."""
    backend = dense(5, 8, 1)
    with backend.recorder.phase("online"):
        q = backend.input((1, 5, 8)).split_heads(2)
        scores = q.scores(q)
    x, layout, n = values(1, 2, 5, 5), backend.layout, scores.offsets
    for part in range(scores.parts.size):
        found = expected_slots(scores, part, x).reshape(-1, 2, layout.tokens)
        for c, h, t in np.ndindex(*found.shape):
            key = (t + part * n + c % n) % layout.tokens
            expected = x[0, h, t, key] if t < 5 and key < 5 else np.nan
            np.testing.assert_array_equal(found[c, h, t], expected)


# ---- whole runs -------------------------------------------------------------------------------------------------


@cache
def plan(layout: str) -> Plan:
    protocol = load_protocol(find("protocols", "power-softmax-ckks"))
    made = replace(protocol, ckks=replace(protocol.ckks, layout=layout))
    return make_plan(load_model(find("models", "digits-vit")), made, samples=SAMPLES)


@cache
def inspected(layout: str) -> Run:
    return execute(plan(layout), plan(layout).model.samples(SAMPLES)[0], errors=True)


def bits(run: Run) -> dict[tuple[str, str], float]:
    return {(e.region, e.op): e.error_bits for e in run.parties[0].events if e.error_bits is not None}


def check(layout: str) -> None:
    run = inspected(layout)
    clear = clear_run(plan(layout), plan(layout).model.samples(SAMPLES)[0])
    found = bits(run)
    assert abs(found["head", "sum"] + np.log2(np.abs(run.outputs - clear.outputs).max())) < 1
    assert {"embed", "layer.0/attention", "layer.0/attention/norm", "layer.0/ffn/gelu", "head"} <= {r for r, _ in found}
    assert all(15 < found[at] < 32 for at in found), found
    assert found["embed", "linear"] > found["head", "sum"] + 2  # errors add up
    assert not any(op in ("other", "inspect") for _, op in found)


@needs_tenseal
def test_errors_of_a_run_in_the_dense_layout() -> None:
    check(DENSE)


@needs_tenseal
@pytest.mark.slow
def test_errors_of_a_run_in_the_batch_layout() -> None:
    check("batch")


@needs_tenseal
def test_such_a_run_says_that_it_is_not_private() -> None:
    run = inspected(DENSE)
    assert "NOT private" in run.warnings[0]
    document = profiling.document(plan(DENSE), run, ())
    assert run.warnings[0] in document["warnings"]
    (polynomial,) = [e for e in document["events"] if (e["region"], e["op"]) == ("layer.0/ffn/gelu", "polynomial")]
    assert polynomial["error_bits"] == bits(run)["layer.0/ffn/gelu", "polynomial"]
    console = output.stdout()
    with console.capture() as shown:
        profiling.show(plan(DENSE), run, (LAN,), console, top=5)
    assert "NOT private" in shown.get()
    assert shown.get().count("error bits") == 2


@needs_tenseal
def test_the_work_of_comparing_is_no_part_of_the_program() -> None:
    """Counts are those of the plan; the decryptions are listed apart."""
    counted = {(e.region, e.op, e.phase): e.counts for e in inspected(DENSE).parties[0].events}
    for event in plan(DENSE).ledger.parties[0].events:
        here = {name: n for name, n in counted[event.region, event.op, event.phase].items() if n}
        assert here == {name: n for name, n in event.counts.items() if n}, (event.region, event.op)
    assert {phase for _, op, phase in counted if op == "inspect"} == {"decrypt"}


@needs_tenseal
def test_a_wrong_coefficient_shows_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """One coefficient of the clear run's GELU is off by 1e-3: nothing before it differs, everything after does."""
    from secureattn.runs import inspection

    site, right = "layer.0/ffn/gelu", inspection.clear_values
    gelu = plan(DENSE).realisations[site]
    assert gelu.polynomial is not None
    coefficients = list(gelu.polynomial.coefficients)
    coefficients[4] += 1e-3
    wrong = gelu.with_polynomial(replace(gelu.polynomial, coefficients=tuple(coefficients)))
    tampered = replace(plan(DENSE), realisations={**plan(DENSE).realisations, site: wrong})
    monkeypatch.setattr(inspection, "clear_values", lambda _, *given: right(tampered, *given))
    found = bits(execute(plan(DENSE), plan(DENSE).model.samples(SAMPLES)[0], errors=True))
    assert 9 < found[site, "polynomial"] < 12  # T_4 is at most 1: the error is at most 1e-3, 2^-9.97
    assert all(found[at] > 15 for at in found if not at[0].startswith(("layer.0/ffn/gelu", "head")) and at[1] != "add")
    assert found["head", "sum"] < 13


def test_nobody_sees_values_unless_asked() -> None:
    backend = SymbolicCkks(PARAMETERS, tokens=4)
    seen: list[str] = []
    with backend.recorder.phase("online"):
        x = backend.input((1, 4, 2))
        assert x.observe("here") is x
        backend.observers.append(lambda site, _: seen.append(site))
        with backend.region("part"):
            x.observe("here").refresh("there")
    assert seen == ["part/here", "part/there"]


def test_the_last_operation_is_known() -> None:
    recorder = Recorder(modelled=True)
    assert recorder.last is None
    with recorder.phase("online"), recorder.region("a"):
        with recorder.op("one"), recorder.op("two"):
            pass
        assert isinstance(recorder.last, Event)
        assert recorder.last.op == "one"
    assert (recorder.last.region, recorder.last.op) == ("a", "one")


@pytest.mark.parametrize("protocol", ["plaintext", "power-softmax-mpc"])
def test_other_engines_refuse(protocol: str) -> None:
    made = replace(plan_of_plaintext(), protocol=load_protocol(find("protocols", protocol)))
    with pytest.raises(InputError, match=f"measured on ckks, this protocol runs on {made.protocol.engine}; secureattn"):
        execute(made, made.model.samples(1)[0], errors=True)


def test_the_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "digits-vit", "plaintext", "--samples", "1", "--error"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_unknown_errors_stay_unknown() -> None:
    run = clear_run(plan_of_plaintext(), plan_of_plaintext().model.samples(1)[0])
    assert all(event["error_bits"] is None for event in to_json(run.ledger)["events"])
    assert run.warnings == ()


def plan_of_plaintext() -> Plan:
    return make_plan(load_model(find("models", "digits-vit")), load_protocol(find("protocols", "plaintext")), samples=1)
