"""Planning a CKKS run: ring, levels and refresh points with the least predicted seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import cast

from secureattn.backends.ckks.batch import BatchTensor
from secureattn.backends.ckks.costs import key_generation_s
from secureattn.backends.ckks.machine import OutOfLevels
from secureattn.backends.ckks.parameters import RINGS, CkksParameters, chain, most_levels
from secureattn.backends.ckks.wire import fresh_bytes, stored_bytes
from secureattn.backends.symbolic import SymbolicCkks, Unlimited
from secureattn.errors import PlanError, ProtocolError
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import Folded
from secureattn.plan.base import CkksPlan, Plan

HIDING_BITS = 40
"""Least statistical hiding of a value by a refresh mask."""

Progress = Callable[[str], None]


def plan_ckks(draft: Plan, progress: Progress) -> CkksPlan:
    """The plan with the least predicted seconds; OutOfLevels or PlanError where no ring holds the program."""
    folded, scale_bits = draft.folded(weights=True), draft.protocol.ckks.scale_bits
    probe = _probe(draft, folded)
    depth = Unlimited.levels - probe.output.level
    rings = [ring for ring in RINGS if ring // 2 >= probe.tokens]
    if draft.protocol.ckks.refresh == "none":
        return _without_refresh(draft, folded, depth, rings)
    best: CkksPlan | None = None
    failure: OutOfLevels | None = None
    for ring in rings:
        parameters = chain(ring, min(most_levels(ring, scale_bits), max(depth, 1)), scale_bits)
        if best is not None and _floor_s(parameters) > best.seconds["total"]:
            continue
        progress(f"choosing refresh points at ring degree {ring}")
        try:
            found = _with_refresh(draft, folded, depth, parameters, frozenset(probe.refresh_points))
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
    return Unlimited.levels - _probe(draft, draft.folded(weights=True)).output.level


def _probe(draft: Plan, folded: Folded) -> SymbolicCkks:
    """A run with more levels than anything needs: it shows the program's depth and where refreshes are possible."""
    parameters = cast(CkksParameters, Unlimited(RINGS[-1]))
    return _run(draft, folded, parameters, frozenset(), refresh=False)


def _without_refresh(draft: Plan, folded: Folded, depth: int, rings: list[int]) -> CkksPlan:
    """The smallest ring and the fewest levels that hold the whole program."""
    scale_bits = draft.protocol.ckks.scale_bits
    for ring in rings:
        # Sums of unequal scales may cost a level that the probe for depth, whose scales all agree, did not see.
        for levels in range(depth, most_levels(ring, scale_bits) + 1):
            parameters = chain(ring, levels, scale_bits)
            try:
                return _finished(draft, depth, parameters, _run(draft, folded, parameters, frozenset(), refresh=False))
            except OutOfLevels:
                continue
    available = most_levels(rings[-1], scale_bits)
    region = ""
    try:
        _run(draft, folded, chain(rings[-1], available, scale_bits), frozenset(), refresh=False)
    except OutOfLevels as error:
        region = error.region
    raise PlanError(
        f"{draft.model.config.name} under {draft.protocol.name} needs {max(depth, available + 1)} levels in one go, "
        f"{available} fit 128-bit security at ring degree {rings[-1]}, and they run out at {region}; lower the degrees "
        'there, choose a model whose norms fold (norm = "batchnorm"), or set refresh = "client"'
    )


def _with_refresh(
    draft: Plan, folded: Folded, depth: int, parameters: CkksParameters, points: frozenset[str]
) -> CkksPlan:
    """Start with a refresh at every point, then leave out, largest first, each one that is not worth its cost."""
    schedule = frozenset(p for p in points if _hiding_bits(draft, parameters, p) >= HIDING_BITS)
    backend = _run(draft, folded, parameters, schedule)
    changed = True
    while changed:
        changed = False
        for point in sorted(schedule, key=lambda p: (-backend.refresh_points[p], p)):
            try:
                trial = _run(draft, folded, parameters, schedule - {point})
            except OutOfLevels:
                continue
            if trial.recorder.seconds() < backend.recorder.seconds():
                backend, schedule, changed = trial, schedule - {point}, True
    return _finished(draft, depth, parameters, backend)


def _run(
    draft: Plan, folded: Folded, parameters: CkksParameters, schedule: frozenset[str], *, refresh: bool = True
) -> SymbolicCkks:
    config = draft.config
    backend = SymbolicCkks(parameters, tokens=config.tokens, schedule=schedule, refresh=refresh)
    network = Encoder(folded, backend)
    with backend.recorder.phase("online"):
        x = backend.input((min(draft.samples, backend.batch), config.tokens, config.features))
        backend.output = cast(BatchTensor, network(x))
        backend.rerandomised(backend.output)
    return backend


def _count_transfers(draft: Plan, parameters: CkksParameters, backend: SymbolicCkks) -> None:
    """What the client sends and gets: fresh ciphertexts of the features, results at the level they end on."""
    features, outputs, recorder = draft.model.config.features, backend.output.parts.size, backend.recorder
    with recorder.phase("encrypt"), recorder.op("encrypt"):
        backend.machine.count("encryptions", parameters.levels, features)
        recorder.primitive("bytes_sent", times=features * fresh_bytes(parameters))
    with recorder.phase("decrypt"), recorder.op("decrypt"):
        backend.machine.count("decryptions", backend.output.level, outputs)
        recorder.primitive("bytes_sent", times=outputs * stored_bytes(parameters, backend.output.level))


def _finished(draft: Plan, depth: int, parameters: CkksParameters, backend: SymbolicCkks) -> CkksPlan:
    used = frozenset(p for p in backend.refresh_points if p in backend.schedule)
    batches = math.ceil(draft.samples / backend.batch)
    rotations = tuple(sorted(backend.machine.steps))
    _count_transfers(draft, parameters, backend)
    sizes = _sizes(draft, parameters, backend, len(rotations))
    bits = {p: _hiding_bits(draft, parameters, p) for p in used}
    return CkksPlan(
        parameters=parameters,
        schedule=used,
        points=dict(backend.refresh_points),
        rotations=rotations,
        tokens=backend.tokens,
        capacity=backend.batch,
        batches=batches,
        depth=depth,
        output_level=backend.output.level,
        hiding_bits=min(bits.values()) if bits else None,
        hiding_bits_run=_hiding_bits_run(parameters, backend, bits, batches) if bits else None,
        recorder=backend.recorder,
        sizes=sizes,
        seconds=_phases(parameters, backend, len(rotations), batches),
    )


def _sizes(draft: Plan, parameters: CkksParameters, backend: SymbolicCkks, rotations: int) -> dict[str, int]:
    return {
        "galois_keys": rotations * parameters.key_bytes(),
        "relinearisation_key": parameters.key_bytes(),
        "public_key": parameters.public_key_bytes(),
        "query": draft.model.config.features * fresh_bytes(parameters),
        "result": backend.output.parts.size * stored_bytes(parameters, backend.output.level),
        "ciphertext": parameters.ciphertext_bytes(parameters.levels),
    }


def _phases(parameters: CkksParameters, backend: SymbolicCkks, rotations: int, batches: int) -> dict[str, float]:
    keys = (rotations + 2) * key_generation_s(parameters.ring_degree, parameters.levels + 2)
    phases = ("encrypt", "online", "refresh", "decrypt")
    seconds = {"keys": keys, **{phase: batches * backend.recorder.seconds(phase) for phase in phases}}
    return {**seconds, "total": sum(seconds.values())}


def _hiding_bits(draft: Plan, parameters: CkksParameters, point: str) -> float:
    bound = draft.model.ranges.bounds.get(point)
    if bound is None:
        raise ProtocolError(
            f"model {draft.model.config.name}", [f"no bound for refresh point {point}; calibrate again"]
        )
    return parameters.refresh_hiding_bits(bound)


def _hiding_bits_run(
    parameters: CkksParameters, backend: SymbolicCkks, bits: Mapping[str, float], batches: int
) -> float:
    """What is left when the whole run counts: statistical distances add up over coefficients and ciphertexts.

    Slots within ±B bound the coefficients' 2-norm by Δ·B (the embedding is √N times an isometry), so their 1-norm, and
    with it the distance of one ciphertext, is at most √N times that of one coefficient of size Δ·B.
    """
    coefficients = math.sqrt(parameters.ring_degree)
    return -math.log2(sum(batches * backend.refresh_points[p] * coefficients * 2.0 ** -bits[p] for p in bits))


def _floor_s(parameters: CkksParameters) -> float:
    """Less than any plan on these parameters can cost: its keys alone."""
    return 2 * key_generation_s(parameters.ring_degree, parameters.levels + 2)
