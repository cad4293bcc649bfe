"""Peak memory of the processes of a run on shares: counted things, and what processes really take."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from secureattn import load_model, load_protocol, make_plan
from secureattn.nn.batch import Shape
from secureattn.plan import Plan
from secureattn.plan.party_memory import Held, PartyMemory, dealing, taking_part
from secureattn.protocol import Protocol

WORD = 8


def planned(samples: int = 1, tokens: int = 16, protocol: Protocol | None = None) -> Plan:
    model = load_model("bytes-gpt2")
    protocol = protocol or load_protocol("accurate-mpc")
    return make_plan(model, protocol, samples=samples, shape=Shape(samples, tokens))


def memory_of(plan: Plan) -> dict[str, PartyMemory]:
    assert plan.mpc is not None
    return {one.name: one for one in plan.mpc.memory}


def test_what_is_counted_is_what_messages_and_masks_say() -> None:
    """A party holds what it draws and what it is sent: here from the counts of the same plan."""
    plan = planned()
    assert plan.mpc is not None
    owner, client = plan.mpc.recorders
    found = memory_of(plan)
    matrices = found["client"].matrices
    assert matrices == owner.total("bytes_sent", phase="setup") - _agreed(plan)
    assert found["client"].dealt == client.total("keystream_bytes")  # all it holds it draws
    assert found["model owner"].dealt == owner.total("keystream_bytes") - matrices + owner.total("dealer_bytes")
    assert found["dealer"].matrices == matrices


def _agreed(plan: Plan) -> int:
    """Bytes of coefficients that the owner told, in set-up as well."""
    assert plan.mpc is not None
    events = plan.mpc.recorders[0].events.values()
    return sum(e.counts.get("bytes_sent", 0) for e in events if e.op == "agree")


def test_weights_are_where_they_are_known() -> None:
    plan = planned()
    model = plan.model
    parameters = sum(weight.numel() for weight in model.weight_shapes.values())
    found = memory_of(plan)
    assert found["model owner"].weights == found["model owner"].matrices
    assert found["model owner"].reading == WORD * parameters + found["model owner"].weights
    assert found["client"].reading == found["dealer"].reading == found["client"].weights == 0
    shared = load_protocol("accurate-mpc")
    public = memory_of(planned(protocol=replace(shared, mpc=replace(shared.mpc, weights="public"))))
    assert public["client"].weights == public["model owner"].weights == found["model owner"].weights
    assert public["client"].reading == found["model owner"].reading
    first = memory_of(planned(protocol=replace(shared, mpc=replace(shared.mpc, dealer="tfp"))))
    assert list(first) == ["model owner", "client"]  # the first party deals


def test_the_total_is_that_of_reading_of_set_up_or_of_the_run() -> None:
    run = PartyMemory("party", process=100, reading=25, weights=10, masking=30, matrices=20, dealt=5, working=4)
    assert run.total == 100 + 10 + 30
    assert replace(run, dealt=15).total == 100 + 10 + 20 + 15 + 4
    assert replace(run, reading=41).total == 100 + 41
    assert sum(run.parts().values()) == run.total + 100 + 25 + 10 + 30 + 20 + 5 + 4


def test_matrices_are_masked_one_after_the_other() -> None:
    """The largest counts in several copies, beside those before it."""
    early, late = (taking_part("party", 1, 0, Held(m, [], 0)).masking for m in ([9, 1], [1, 9]))
    assert late - early == WORD
    assert early == WORD * 36
    assert dealing(Held([9, 1], [], 0), 2).masking == WORD * 27


def test_more_inputs_than_go_together_take_no_more_memory() -> None:
    """Inputs run in parts, and the dealer's for one part is gone before the next begins."""
    few, many = planned(samples=256, tokens=64), planned(samples=1024, tokens=64)
    assert len(many.parts) > len(few.parts) >= 1
    dealt = [memory_of(plan)["client"].dealt for plan in (few, many)]
    assert dealt[1] <= 4 * dealt[0] / len(many.parts) * 1.01


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("crypten") is None, reason="CrypTen is not installed")
def test_processes_take_what_was_predicted(benchmarks: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """Within a third, most of which is the interpreter's."""
    plan = planned(samples=16, tokens=64)
    np.save(tmp_path / "x.npy", plan.model.samples(16)[0])
    taken = benchmarks("processes").parties("bytes-gpt2", "accurate-mpc", tmp_path / "x.npy", tmp_path)
    found = memory_of(plan)
    for seat, name in (("owner", "model owner"), ("client", "client"), ("dealer", "dealer")):
        assert 3 / 4 < found[name].total / taken[seat]["peak_bytes"] < 4 / 3, seat
