"""The choice of a CKKS plan: ring, levels and refresh points with the least predicted seconds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from secureattn.backends.ckks.batch import BatchTensor
from secureattn.backends.ckks.cipher import OutOfLevels
from secureattn.backends.ckks.parameters import RINGS, CkksParameters, chain, most_levels
from secureattn.backends.ckks.units import Path
from secureattn.backends.symbolic import SymbolicCkks, Unlimited
from secureattn.errors import PlanError, ProtocolError
from secureattn.ledger import LAN
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import Folded
from secureattn.plan.base import Plan

HIDING_BITS = 40
"""Least statistical hiding of a value by a refresh mask."""

Progress = Callable[[str], None]
Points = frozenset[str]


@dataclass(frozen=True)
class Chooser:
    """Runs one program symbolically under any parameters and refresh points."""

    draft: Plan
    folded: Folded

    def run(
        self,
        parameters: CkksParameters,
        points: Points = frozenset(),
        *,
        refresh: bool = True,
        ceilings: Mapping[Path, int] | None = None,
    ) -> SymbolicCkks:
        """The whole program on no data; OutOfLevels where levels do not suffice."""
        config = self.draft.config
        backend = SymbolicCkks(
            parameters,
            tokens=config.tokens,
            schedule=points,
            refresh=refresh,
            ceilings=ceilings,
            workers=self.draft.workers,
        )
        network = Encoder(self.folded, backend)
        with backend.recorder.phase("online"):
            x = backend.input((min(self.draft.samples, backend.batch), config.tokens, config.features))
            backend.input_levels = tuple(part.level for part in x.parts.flat)
            backend.output = cast(BatchTensor, network(x))
            backend.results = tuple(result.level for result in backend.rerandomised(backend.output))
        return backend

    def settled(
        self, parameters: CkksParameters, points: Points = frozenset(), *, refresh: bool = True
    ) -> SymbolicCkks:
        """A run in which nothing is computed at a higher level than its result is needed at."""
        ceilings: dict[Path, int] = {}
        while True:
            backend = self.run(parameters, points, refresh=refresh, ceilings=ceilings)
            assert backend.machine.demand is not None
            lower = backend.machine.demand.ceilings()
            if not lower:
                return backend
            ceilings |= lower

    def seconds(self, parameters: CkksParameters, points: Points) -> float:
        """About what a settled run of one batch would take on one core, with its messages on a LAN."""
        backend = self.run(parameters, points)
        machine = backend.machine
        assert machine.demand is not None
        computed = machine.demand.seconds(
            lambda name, level: machine.costs.primitive_s(name, parameters.ring_degree, level + 1)
        )
        return computed + LAN.seconds(backend.recorder.total("rounds"), backend.recorder.total("bytes_sent"))

    def probe(self) -> SymbolicCkks:
        """A run with more levels than anything needs: it shows the program's depth and where refreshes are possible."""
        return self.run(cast(CkksParameters, Unlimited(RINGS[-1])), refresh=False)


def without_refresh(chooser: Chooser, depth: int, rings: list[int]) -> SymbolicCkks:
    """The smallest ring and the fewest levels that hold the whole program; PlanError where none does."""
    draft, scale_bits = chooser.draft, chooser.draft.protocol.ckks.scale_bits
    for ring in rings:
        # Sums of unequal scales may cost a level that the probe for depth, whose scales all agree, did not see.
        for levels in range(depth, most_levels(ring, scale_bits) + 1):
            try:
                return chooser.settled(chain(ring, levels, scale_bits), refresh=False)
            except OutOfLevels:
                continue
    available = most_levels(rings[-1], scale_bits)
    region = ""
    try:
        chooser.run(chain(rings[-1], available, scale_bits), refresh=False)
    except OutOfLevels as error:
        region = error.region
    raise PlanError(
        f"{draft.model.config.name} under {draft.protocol.name} needs {max(depth, available + 1)} levels in one go, "
        f"{available} fit 128-bit security at ring degree {rings[-1]}, and they run out at {region}; lower the degrees "
        'there, choose a model whose norms fold (norm = "batchnorm"), or set refresh = "client"'
    )


def with_refresh(chooser: Chooser, depth: int, ring: int, points: Points) -> SymbolicCkks:
    """The cheapest refresh points on a ring that a local search finds, on no more levels than they leave in use.

    It starts with all that hide enough and takes out, or back in, what makes the run cheaper, until nothing does;
    layers have their points in common.
    """
    scale_bits = chooser.draft.protocol.ckks.scale_bits
    parameters = chain(ring, min(most_levels(ring, scale_bits), max(depth, 1)), scale_bits)
    allowed = frozenset(p for p in points if hiding_bits(chooser.draft, parameters, p) >= HIDING_BITS)
    kinds: dict[str, Points] = {}
    for point in allowed:
        kind = re.sub(r"^layer\.\d+", "layer", point)
        kinds[kind] = kinds.get(kind, frozenset()) | {point}
    chosen, cost = allowed, chooser.seconds(parameters, allowed)
    changed = True
    while changed:
        changed = False
        for kind in sorted(kinds):
            try:
                trial = chooser.seconds(parameters, chosen ^ kinds[kind])
            except OutOfLevels:
                continue
            if trial < cost:
                chosen, cost, changed = chosen ^ kinds[kind], trial, True
    settled = chooser.settled(parameters, chosen)
    return chooser.settled(chain(ring, settled.highest, scale_bits), chosen)


def hiding_bits(draft: Plan, parameters: CkksParameters, point: str) -> float:
    """How well a refresh point's mask hides a value."""
    return parameters.refresh_hiding_bits(draft.model.ranges.bounds[point])


def check_bounds(draft: Plan, points: Points) -> None:
    """ProtocolError where a refresh point has no calibrated bound."""
    missing = sorted(points - draft.model.ranges.bounds.keys())
    if missing:
        raise ProtocolError(
            f"model {draft.model.config.name}",
            [f"no bound for refresh point{'s' * (len(missing) > 1)} {', '.join(missing)}; calibrate again"],
        )
