"""Planning a CKKS run: what was chosen, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from secureattn.backends.ckks.cipher import OutOfLevels
from secureattn.backends.ckks.parameters import RINGS, CkksParameters
from secureattn.backends.ckks.wire import fresh_bytes, stored_bytes
from secureattn.backends.symbolic import SymbolicCkks, Unlimited
from secureattn.plan.base import CkksPlan, Plan
from secureattn.plan.choice import Chooser, Progress, check_bounds, hiding_bits, with_refresh, without_refresh


def plan_ckks(draft: Plan, progress: Progress) -> CkksPlan:
    """The plan with the least predicted seconds; OutOfLevels or PlanError where no ring holds the program."""
    chooser = Chooser(draft, draft.folded(weights=True))
    probe = chooser.probe()
    depth = Unlimited.levels - probe.output.level
    rings = [ring for ring in RINGS if ring // 2 >= probe.tokens]
    if draft.protocol.ckks.refresh == "none":
        return _finished(draft, depth, without_refresh(chooser, depth, rings))
    points = frozenset(probe.refresh_points)
    check_bounds(draft, points)
    best: CkksPlan | None = None
    failure: OutOfLevels | None = None
    for ring in rings:
        progress(f"choosing refresh points at ring degree {ring}")
        try:
            found = _finished(draft, depth, with_refresh(chooser, depth, ring, points))
        except OutOfLevels as error:
            failure = error
            continue
        if best is None or found.seconds["total"] < best.seconds["total"]:
            best = found
    if best is None:
        assert failure is not None
        raise failure
    return best


def program_depth(draft: Plan) -> int:
    """Levels that a program takes in one go."""
    return Unlimited.levels - Chooser(draft, draft.folded(weights=True)).probe().output.level


def _count_transfers(parameters: CkksParameters, backend: SymbolicCkks) -> None:
    """What the client sends and gets: fresh ciphertexts of the features, results, each at its level."""
    recorder = backend.recorder
    with recorder.phase("encrypt"), recorder.op("encrypt"):
        for level in backend.input_levels:
            backend.machine.count("encryptions", level)
        recorder.primitive("bytes_sent", times=_query_bytes(parameters, backend))
    with recorder.phase("decrypt"), recorder.op("decrypt"):
        for level in backend.results:
            backend.machine.count("decryptions", level)
        recorder.primitive("bytes_sent", times=_result_bytes(parameters, backend))


def _query_bytes(parameters: CkksParameters, backend: SymbolicCkks) -> int:
    return sum(fresh_bytes(parameters, level) for level in backend.input_levels)


def _result_bytes(parameters: CkksParameters, backend: SymbolicCkks) -> int:
    return sum(stored_bytes(parameters, level) for level in backend.results)


def _finished(draft: Plan, depth: int, backend: SymbolicCkks) -> CkksPlan:
    parameters = backend.machine.parameters
    used = frozenset(p for p in backend.refresh_points if p in backend.schedule)
    batches = math.ceil(draft.samples / backend.batch)
    rotations = tuple(sorted(backend.machine.steps))
    _count_transfers(parameters, backend)
    sizes = _sizes(parameters, backend, len(rotations))
    bits = {p: hiding_bits(draft, parameters, p) for p in used}
    return CkksPlan(
        parameters=parameters,
        schedule=used,
        points=dict(backend.refresh_points),
        rotations=rotations,
        ceilings=backend.machine.place.ceilings,
        worth=frozenset(backend.machine.worth or ()),
        workers=backend.machine.workers,
        input_levels=backend.input_levels,
        tokens=backend.tokens,
        capacity=backend.batch,
        batches=batches,
        depth=depth,
        output_level=min(backend.results),
        hiding_bits=min(bits.values()) if bits else None,
        hiding_bits_run=_hiding_bits_run(parameters, backend, bits, batches) if bits else None,
        recorder=backend.recorder,
        sizes=sizes,
        seconds=_phases(parameters, backend, len(rotations), batches),
    )


def _sizes(parameters: CkksParameters, backend: SymbolicCkks, rotations: int) -> dict[str, int]:
    return {
        "galois_keys": rotations * parameters.key_bytes(),
        "relinearisation_key": parameters.key_bytes(),
        "public_key": parameters.public_key_bytes(),
        "query": _query_bytes(parameters, backend),
        "result": _result_bytes(parameters, backend),
        "ciphertext": parameters.ciphertext_bytes(parameters.levels),
    }


def _phases(parameters: CkksParameters, backend: SymbolicCkks, rotations: int, batches: int) -> dict[str, float]:
    costs = backend.machine.costs
    keys = (rotations + 2) * costs.key_generation_s(parameters.ring_degree, parameters.levels + 2)
    phases = ("encrypt", "online", "refresh", "decrypt")
    seconds = {"keys": keys, **{phase: batches * backend.recorder.seconds(phase) for phase in phases}}
    return {**seconds, "total": sum(seconds.values())}


def _hiding_bits_run(
    parameters: CkksParameters, backend: SymbolicCkks, bits: Mapping[str, float], batches: int
) -> float:
    """What is left when the whole run counts: statistical distances add up over coefficients and ciphertexts.

    Slots within ±B bound the coefficients' 2-norm by Δ·B (the embedding is √N times an isometry), so their 1-norm, and
    with it the distance of one ciphertext, is at most √N times that of one coefficient of size Δ·B.
    """
    coefficients = math.sqrt(parameters.ring_degree)
    return -math.log2(sum(batches * backend.refresh_points[p] * coefficients * 2.0 ** -bits[p] for p in bits))
