"""Runs on one machine, every role in its place: client and server under CKKS, parties and dealer on shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from secureattn.errors import InputError, PlanError
from secureattn.nn.batch import Batch
from secureattn.plan import Plan
from secureattn.runs.quality import agreement, cosines, perplexity
from secureattn.runs.result import Array, Progress, Run

__all__ = ["Array", "Progress", "Run", "agreement", "clear_run", "cosines", "execute", "perplexity", "require"]


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
    plan.model.check_runs()
    if plan.new is not None:
        raise PlanError(f"the plan is for {plan.new} new tokens, which runs.generation makes; plan without them")
    batch = plan.model.batch(inputs)
    if len(batch) != plan.samples:
        raise PlanError(f"the plan is for {plan.samples} samples, the input has {len(batch)}; plan again")
    if batch.shape != plan.shape:
        raise PlanError("the plan is for inputs of other lengths; plan for the shape of this batch")
    if device != "cpu":
        from secureattn.backends.crypten.ring import device_of
        from secureattn.runs import mpc

        device_of(device)
        return mpc.run(plan, batch, tell, trace, device=device)
    if not errors:
        return _engine(engine)(plan, batch, tell, trace)
    from secureattn.runs import ckks

    return ckks.run(plan, batch, tell, trace, errors=True)


def require(engine: str) -> None:
    """EngineError, with the command that helps, if the engine's library is missing."""
    _engine(engine)


def _engine(name: str) -> Callable[[Plan, Batch, Progress, bool], Run]:
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

    batch = plan.model.batch(inputs)
    return plaintext.run(plan.at(batch.shape), batch, lambda *_: None, False, exact=exact)
