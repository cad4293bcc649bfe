"""What CONTRIBUTING shows works: its file is an approximation like any other."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pages
import pytest
from helpers import assert_close

from secureattn import approx
from secureattn.approx import realise
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.plan.select import cheapest

TEXT = (pages.ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture
def mish(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The file of the walk-through, as a module among the functions."""
    module = ModuleType("mish")
    exec(compile(pages.python(TEXT), "mish.py", "exec", dont_inherit=True), module.__dict__)
    monkeypatch.setitem(approx.FUNCTIONS, "mish", module)
    return module


def test_the_walk_through_adds_a_function(mish: ModuleType) -> None:
    x = np.linspace(-5, 5, 1001)
    true = x * np.tanh(np.log1p(np.exp(x)))
    backend = PlaintextBackend()
    for options, error in (({"kind": "hinge"}, 0.3089), ({"kind": "remez", "degree": 15}, 1e-3)):
        made = realise("mish", options, (-5.0, 5.0))
        assert made.error is not None
        assert made.error <= 1.01 * error
        assert_close(backend.reveal(made(backend.input(x))), true, 1.01 * made.error, "the stated error")
    assert mish.hinge().error == pytest.approx(0.3089, rel=1e-3)


def test_it_can_be_chosen(mish: ModuleType) -> None:
    assert cheapest("mish", (-5.0, 5.0), 1e-3, "ckks").cost.depth is not None
    assert cheapest("mish", (-5.0, 5.0), 1e-3, "crypten").cost.rounds == 1
