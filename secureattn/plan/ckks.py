"""Planning a CKKS run: what was chosen, and what follows from it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

from secureattn.backends.ckks.flooding import Flooding
from secureattn.backends.ckks.parameters import RINGS, CkksParameters
from secureattn.backends.ckks.wire import fresh_bytes, result_bytes
from secureattn.backends.symbolic import SymbolicDense, Unlimited
from secureattn.errors import PlanError
from secureattn.ledger import units
from secureattn.plan.alike import lengthened, shortened
from secureattn.plan.base import CkksPlan, Plan
from secureattn.plan.choice import (
    Chooser,
    Progress,
    Refreshed,
    Symbolic,
    check_bounds,
    check_stream,
    trimmed,
    with_refresh,
    without_refresh,
)
from secureattn.plan.memory import memory

LAYOUTS = ("batch", "dense")
_LESS = 0.97  # ciphertexts held with twice as many blocks, above which they are not worth it


def plan_ckks(draft: Plan, progress: Progress) -> CkksPlan:
    """The plan with the least predicted seconds for so many queries, keys left out; OutOfLevels or PlanError where no
    layout and ring holds the program.
    """
    flooding = _flooding(draft)
    check_stream(draft)
    best: CkksPlan | None = None
    refused: list[PlanError] = []
    predicted: dict[str, float] = {}
    folded = functools.cache(lambda short: (shortened(draft) if short else draft).folded(weights=True))
    for layout in _layouts(draft):
        few = shortened(draft) if layout == "batch" else draft  # what a dense layout encodes is no layer's own
        chooser = Chooser(few, folded(few is not draft), layout)
        try:
            found = _planned(chooser, progress, math.inf if best is None else best.latency_s)
        except PlanError as error:
            refused.append(error)
            continue
        if few is not draft:
            found = lengthened(found, draft.config.layers, found.depth - _depth(replace(chooser, layers=(0, 1, 3))))
        predicted[layout] = found.latency_s
        best = found if best is None or found.latency_s < best.latency_s else best
    if best is None:
        raise refused[0]
    return replace(best, predicted=predicted, flooding=flooding)


def _layouts(draft: Plan) -> tuple[str, ...]:
    """Those to choose from; PlanError where the one asked for cannot hold the inputs or results."""
    wanted = draft.protocol.ckks.layout
    alone = "inputs of unequal lengths" if draft.lengths is not None else ""
    alone = "scores at every token" if draft.config.output == "next" else alone
    if not alone:
        return LAYOUTS if wanted == "auto" else (wanted,)
    if wanted == "dense":
        raise PlanError(f'the dense layout has no {alone}; set ckks.layout = "batch" or "auto"')
    return ("batch",)


def program_depth(draft: Plan) -> int:
    """Levels that a program takes in one go, in the batch layout."""
    return _depth(Chooser(draft, draft.folded(weights=True), "batch"))


def _depth(chooser: Chooser) -> int:
    return int(Unlimited.levels - chooser.probe().output.level)


def _planned(chooser: Chooser, progress: Progress, enough: float) -> CkksPlan:
    """The best plan in one layout; no better than need be where one of ``enough`` seconds is known."""
    draft, probe = chooser.draft, chooser.probe()
    depth = int(Unlimited.levels - probe.output.level)
    if draft.protocol.ckks.refresh == "none":
        return _finished(chooser, depth, without_refresh(chooser, depth, RINGS))
    points = frozenset(probe.refresh_points)
    check_bounds(draft, points)
    found: list[Refreshed] = []
    refused: list[PlanError] = []
    for ring, scale_bits in itertools.product(RINGS, reversed(draft.protocol.ckks.scales)):
        progress(f"choosing refresh points: {chooser.layout} layout, ring degree {ring}, scale 2^{scale_bits}")
        try:
            one = with_refresh(chooser, depth, ring, scale_bits, points, enough)
        except PlanError as error:
            refused.append(error)
            continue
        found.append(one)
        enough = min(enough, one.seconds)
    if not found:
        raise refused[-1]
    return _fitting(chooser, depth, min(found, key=lambda one: one.seconds), progress)


def _fitting(chooser: Chooser, depth: int, refreshed: Refreshed, progress: Progress) -> CkksPlan:
    """With the fewest blocks of hidden features that memory allows, or the least memory where nothing else fits."""
    made = _finished(chooser, depth, trimmed(chooser, refreshed))
    while made.memory.total > chooser.draft.memory_bytes and chooser.layout == "batch":
        chooser = replace(chooser, blocks=2 * chooser.blocks)
        progress(f"{units.data(made.memory.total)} are too many: hidden features in {chooser.blocks} parts")
        if chooser.blocks > chooser.draft.config.hidden:
            break
        smaller = _finished(chooser, depth, trimmed(chooser, refreshed))
        if smaller.memory.ciphertexts > _LESS * made.memory.ciphertexts:
            break
        made = smaller
    return made


def _count_transfers(parameters: CkksParameters, backend: Symbolic) -> None:
    """What the client sends and gets: fresh ciphertexts of the features, results, each at its level."""
    recorder = backend.recorder
    with recorder.phase("encrypt"), recorder.op("encrypt"):
        for level in backend.input_levels:
            backend.machine.count("encryptions", level)
        recorder.primitive("bytes_sent", times=_query_bytes(parameters, backend))
    with recorder.phase("decrypt"), recorder.op("decrypt"):
        for level in backend.result_levels:
            backend.machine.count("decryptions", level)
        recorder.primitive("bytes_sent", times=_result_bytes(parameters, backend))


def _query_bytes(parameters: CkksParameters, backend: Symbolic) -> int:
    return sum(fresh_bytes(parameters, level) for level in backend.input_levels)


def _result_bytes(parameters: CkksParameters, backend: Symbolic) -> int:
    return len(backend.result_levels) * result_bytes(parameters)


def _finished(chooser: Chooser, depth: int, backend: Symbolic) -> CkksPlan:
    draft, parameters = chooser.draft, backend.machine.parameters
    used = frozenset(p for p in backend.refresh_points if p in backend.schedule)
    batches = math.ceil(draft.samples / backend.batch)
    rotations = tuple(sorted(backend.machine.steps))
    _count_transfers(parameters, backend)
    sizes = _sizes(parameters, backend, len(rotations))
    bits = {p: chooser.hiding_bits(parameters, p) for p in used}
    return CkksPlan(
        parameters=parameters,
        schedule=used,
        points=dict(backend.refresh_points),
        rotations=rotations,
        ceilings=backend.machine.place.ceilings,
        worth=frozenset(backend.machine.worth or ()),
        workers=backend.machine.workers,
        blocks=chooser.blocks,
        input_levels=backend.input_levels,
        dense=backend.layout if isinstance(backend, SymbolicDense) else None,
        predicted={},
        tokens=backend.tokens,
        capacity=backend.batch,
        batches=batches,
        depth=depth,
        output_level=min(backend.result_levels),
        hiding_bits=min(bits.values()) if bits else None,
        hiding_bits_run=_hiding_bits_run(parameters, backend, bits, batches) if bits else None,
        recorder=backend.recorder,
        sizes=sizes,
        memory=memory(parameters, backend.pools, len(rotations), backend.machine.workers),
        seconds=_phases(parameters, backend, len(rotations), batches),
    )


def _flooding(draft: Plan) -> Flooding | None:
    """Noise for scores that will be shared, all of a run under one key; PlanError where it leaves too few bits."""
    options = draft.protocol.ckks
    if not options.flooding_bits:
        return None
    tokens = draft.config.tokens if draft.config.output == "next" else 1
    return Flooding(options.flooding_bits, options.error_bits, draft.samples * tokens * draft.config.classes)


def _sizes(parameters: CkksParameters, backend: Symbolic, rotations: int) -> dict[str, int]:
    return {
        "galois_keys": rotations * parameters.key_bytes(),
        "relinearisation_key": parameters.key_bytes(),
        "public_key": parameters.public_key_bytes(),
        "query": _query_bytes(parameters, backend),
        "result": _result_bytes(parameters, backend),
        "ciphertext": parameters.ciphertext_bytes(parameters.levels),
    }


def _phases(parameters: CkksParameters, backend: Symbolic, rotations: int, batches: int) -> dict[str, float]:
    costs = backend.machine.costs
    keys = (rotations + 2) * costs.key_generation_s(parameters.ring_degree, parameters.levels + 2)
    setup = backend.recorder.seconds("setup") + costs.fresh_s(backend.pools.kept)
    again = {phase: batches * backend.recorder.seconds(phase) for phase in ("encrypt", "online", "refresh", "decrypt")}
    fresh = costs.fresh_s(backend.pools.ciphertexts - backend.pools.kept)
    if backend.machine.worth:  # a team comes and goes with each batch, and each takes its part of the memory
        again["online"] += batches * (costs.team_s(backend.machine.workers) + fresh / backend.machine.workers)
    else:
        again["online"] += fresh
    seconds = {"keys": keys, "setup": setup, **again}
    return {**seconds, "total": sum(seconds.values())}


def _hiding_bits_run(parameters: CkksParameters, backend: Symbolic, bits: Mapping[str, float], batches: int) -> float:
    """What is left when the whole run counts: statistical distances add up over coefficients and ciphertexts.

    Slots within ±B bound the coefficients' 2-norm by Δ·B (the embedding is √N times an isometry), so their 1-norm, and
    with it the distance of one ciphertext, is at most √N times that of one coefficient of size Δ·B.
    """
    coefficients = math.sqrt(parameters.ring_degree)
    return -math.log2(sum(batches * backend.refresh_points[p] * coefficients * 2.0 ** -bits[p] for p in bits))
