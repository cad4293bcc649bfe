"""SecureAttn: transformer formulas written once, run in the clear, under CKKS and on secret shares.

Importing the package loads no engine; each of these functions loads what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pathlib import Path

    from secureattn.nn.batch import Shape
    from secureattn.nn.model import Model
    from secureattn.plan import Plan
    from secureattn.protocol import Protocol
    from secureattn.runs import Run

__all__ = ["__version__", "load_model", "load_protocol", "make_plan", "run"]


def load_model(name: str | Path) -> Model:
    """A model by its name or its folder."""
    from secureattn.nn import model
    from secureattn.resources import find

    return model.load_model(find("models", str(name)))


def load_protocol(name: str | Path) -> Protocol:
    """A protocol by its name or its TOML file."""
    from secureattn import protocol
    from secureattn.resources import find

    return protocol.load_protocol(find("protocols", str(name)))


def make_plan(
    model: Model, protocol: Protocol, *, samples: int, workers: int | None = None, shape: Shape | None = None
) -> Plan:
    """What a run over so many samples will cost; refuses what cannot run and says what would help.

    ``workers``: processes that share the work under CKKS, every core unless given. ``shape``: how many tokens texts
    have, as ``model.batch(texts).shape`` says.
    """
    from secureattn import plan

    return plan.make_plan(model, protocol, samples=samples, workers=workers, shape=shape)


def run(plan: Plan, inputs: Any) -> Run:
    """Inputs ``[N,S,F]`` through the plan's engine: class scores ``[N,C]`` and what everything cost.

    Parties on shares are processes: a script that runs them needs ``if __name__ == "__main__":``.
    """
    from secureattn import runs

    return runs.execute(plan, inputs)
