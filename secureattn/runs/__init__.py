"""Runs on one machine, every role in its place: client and server under CKKS, parties and dealer on shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from secureattn.errors import InputError, PlanError
from secureattn.plan import Plan
from secureattn.runs.result import Array, Progress, Run

__all__ = ["Array", "Progress", "Run", "agreement", "clear_run", "execute", "require"]


def execute(
    plan: Plan,
    inputs: Any,
    *,
    progress: Progress | None = None,
    trace: bool = False,
    errors: bool = False,
    device: str = "cpu",
) -> Run:
    """Run a plan on inputs ``[N,S,F]`` with its engine; class scores ``[N,C]`` and what everything cost.

    ``device``, "cpu" or "cuda", is where shares are; other engines run on the CPU. ``errors`` compares every operation
    with a clear run and gives up privacy for it. Raises InputError for unusable inputs, and for errors on another
    engine than CKKS, before anything expensive; EngineError for a missing engine.
    """
    engine, tell = plan.protocol.engine, progress or (lambda *_: None)
    if errors and engine != "ckks":
        raise InputError(
            f"errors by operation are measured on ckks, this protocol runs on {engine}; secureattn compare gives the "
            "error of the scores on any engine"
        )
    if device != "cpu" and engine != "crypten":
        raise InputError(f"--device {device} is for secret shares, this protocol runs on {engine}, on the CPU")
    array = plan.model.check(inputs)
    if len(array) != plan.samples:
        raise PlanError(f"the plan is for {plan.samples} samples, the input has {len(array)}; plan again")
    if device != "cpu":
        from secureattn.backends.crypten.ring import device_of
        from secureattn.runs import mpc

        device_of(device)
        return mpc.run(plan, array, tell, trace, device=device)
    if not errors:
        return _engine(engine)(plan, array, tell, trace)
    from secureattn.runs import ckks

    return ckks.run(plan, array, tell, trace, errors=True)


def require(engine: str) -> None:
    """EngineError, with the command that helps, if the engine's library is missing."""
    _engine(engine)


def _engine(name: str) -> Callable[[Plan, Array, Progress, bool], Run]:
    """The engine's runner; importing it needs the engine's library."""
    if name == "ckks":
        from secureattn.runs import ckks

        return ckks.run
    if name == "crypten":
        from secureattn.backends.crypten.install import load_crypten
        from secureattn.runs import mpc

        load_crypten()  # its parties are other processes: missing here, it is missing there
        return mpc.run
    from secureattn.runs import plaintext

    return plaintext.run


def clear_run(plan: Plan, inputs: Any, *, exact: bool = False) -> Run:
    """The same program in the clear: its approximations, or with ``exact`` the true functions."""
    from secureattn.runs import plaintext

    return plaintext.run(plan, plan.model.check(inputs), lambda *_: None, False, exact=exact)


def agreement(a: Array, b: Array) -> float:
    """Share of rows with the same largest entry."""
    return float(np.mean(a.argmax(-1) == b.argmax(-1)))
