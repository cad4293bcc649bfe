"""What an evaluator keeps of key owners whom it no longer serves: nothing."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import assert_close
from service import NOISE, small

pytest.importorskip("tenseal")

from secureattn.deploy import Evaluator, Owner


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Cycles stay where they are: hundreds of megabytes of keys can be a handful of objects to the collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("layout", ["dense", "batch"])
def test_the_keys_before_are_freed_at_once(tmp_path: Path, uncollected: None, layout: str) -> None:
    of = small(tmp_path, layout=layout)
    evaluator = Evaluator(of.plan, of.offer)
    before: list[weakref.ref[object]] = []
    for number in range(2):
        owner = Owner.generate(of.offer, tmp_path / str(number))
        owner.encrypt(of.inputs(number), tmp_path / "query")
        evaluator.use(owner.folder / "evaluator")
        assert [ref() for ref in before] == [None] * len(before)
        evaluator.evaluate(tmp_path / "query", tmp_path / "result", owner.client.refresh)
        assert_close(owner.decrypt(tmp_path / "result"), of.clear(of.inputs(number)), NOISE, "noise of a scale of 2^30")
        assert evaluator._server is not None
        before = [weakref.ref(evaluator._server), weakref.ref(evaluator._server.machine.device)]
        owner.close()
