"""The choice of a CKKS plan: layout, ring, levels and refresh points with the least predicted seconds."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from secureattn.backends.ckks.cipher import OutOfLevels
from secureattn.backends.ckks.dense import DenseTensor
from secureattn.backends.ckks.parameters import RINGS, CkksParameters, chain, most_levels
from secureattn.backends.ckks.units import Path
from secureattn.backends.symbolic import SymbolicCkks, SymbolicDense, Unlimited
from secureattn.errors import PlanError, ProtocolError
from secureattn.ledger import PLANNED
from secureattn.nn.config import ModelConfig
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import Folded
from secureattn.plan.base import Plan

HIDING_BITS = 40
"""Least statistical hiding of a value by a refresh mask."""

Progress = Callable[[str], None]
Points = frozenset[str]
Symbolic = SymbolicCkks | SymbolicDense


@dataclass(frozen=True)
class Chooser:
    """Runs one program symbolically in one layout, "batch" or "dense", under any parameters and refresh points.
    ``layers``: those that run, all unless given; ``blocks``: parts of an FFN's hidden features.
    """

    draft: Plan
    folded: Folded
    layout: str
    layers: tuple[int, ...] | None = None
    blocks: int = 1
    _kept: dict[int, dict[Any, Any]] = field(default_factory=dict, repr=False)

    def run(
        self,
        parameters: CkksParameters,
        points: Points = frozenset(),
        *,
        refresh: bool = True,
        ceilings: Mapping[Path, int] | None = None,
        prepared: bool = False,
    ) -> Symbolic:
        """The whole program on no data; OutOfLevels where levels do not suffice. ``prepared`` as a server that has
        encoded its weights.
        """
        config, backend = self.draft.config, self._backend(parameters, points, refresh, ceilings, prepared)
        network = Encoder(self.folded, backend, layers=self.layers, blocks=self.blocks)
        first = self.draft.batches_of(backend.batch)[0]
        shape, lengths = (len(first), config.tokens, config.features), self.draft.lengths_of(first)
        if prepared and isinstance(backend, SymbolicDense):
            backend.prepare(lambda x: cast(DenseTensor, network(x, lengths)), shape)
            backend.pools.kept = backend.pools.alive_bytes
        with backend.recorder.phase("online"):
            x = backend.input(shape)
            backend.input_levels = tuple(part.level for part in x.parts.flat)
            backend.output = network(x, lengths)
            backend.result_levels = tuple(result.level for result in backend.results(backend.output))
        return backend

    def _backend(
        self,
        parameters: CkksParameters,
        points: Points,
        refresh: bool,
        ceilings: Mapping[Path, int] | None,
        prepared: bool,
    ) -> Symbolic:
        draft, config = self.draft, self.draft.config
        if self.layout == "batch":
            return SymbolicCkks(
                parameters,
                tokens=config.tokens,
                schedule=points,
                refresh=refresh,
                ceilings=ceilings,
                workers=draft.workers,
                costs=draft.costs,
            )
        return SymbolicDense(
            parameters,
            tokens=config.tokens,
            features=widest(config),
            heads=config.heads,
            queries=draft.samples,
            width=config.width,
            schedule=points,
            refresh=refresh,
            ceilings=ceilings,
            workers=draft.workers,
            costs=draft.costs,
            kept=None if prepared else self._kept.setdefault(parameters.ring_degree, {}),
        )

    def settled(self, parameters: CkksParameters, points: Points = frozenset(), *, refresh: bool = True) -> Symbolic:
        """A run in which nothing is computed at a higher level than its result is needed at; where scales that then
        meet differ, and aligning them takes a level that nothing has left, with one to spare, or as far as that goes.
        """
        ceilings: dict[Path, int] = {}
        backend = self.run(parameters, points, refresh=refresh)
        while lower := backend.demand.ceilings():
            try:
                backend = self.run(parameters, points, refresh=refresh, ceilings=ceilings | lower)
            except OutOfLevels:
                if not refresh:  # a chain with a level more is as good
                    raise
                with contextlib.suppress(OutOfLevels):
                    spared = ceilings | {path: level + 1 for path, level in lower.items()}
                    backend, ceilings = self.run(parameters, points, ceilings=spared), spared
                break
            ceilings |= lower
        if isinstance(backend, SymbolicCkks):
            return backend  # nothing of the batch layout is encoded beforehand
        return self.run(parameters, points, refresh=refresh, ceilings=ceilings, prepared=True)

    def seconds(self, parameters: CkksParameters, points: Points) -> float:
        """About what settled runs of all batches would take on one core, messages included (``PLANNED``)."""
        backend = self.run(parameters, points)
        costs, total = backend.machine.costs, backend.recorder.total
        computed = backend.demand.seconds(
            lambda name, level: costs.primitive_s(name, parameters.ring_degree, level + 1)
        )
        batches = math.ceil(self.draft.samples / backend.batch)
        return batches * (computed + PLANNED.seconds(total("rounds"), total("bytes_sent")))

    def deepest(self) -> Chooser:
        """With the layers that need the most levels: no other fits where those do not, and all cost much the same."""
        depths: dict[int, dict[str, int]] = {}
        for i, layer in enumerate(self.folded.layers):
            depths[i] = {site: f.depth or 0 for site, f in layer.functions.items()}

        def deeper(i: int, j: int) -> bool:
            """Whether the first needs as many levels everywhere; of equals, the earlier one does."""
            if depths[i].keys() != depths[j].keys() or not all(depths[i][site] >= n for site, n in depths[j].items()):
                return False
            return i < j or depths[i] != depths[j]

        deepest = tuple(j for j in depths if not any(deeper(i, j) for i in depths if i != j))
        return replace(self, layers=deepest, _kept={})

    def hiding_bits(self, parameters: CkksParameters, point: str) -> float:
        """How well a refresh point's mask hides a value: within its calibrated bound, which holds for every form of the
        program, and, where it is a polynomial's argument, within the domain that this form of it has.
        """
        bound = self.draft.model.ranges.bounds[point]
        function = self.folded.functions().get(point.removesuffix(".in"))
        if function is not None and function.polynomial is not None:
            bound = min(bound, max(map(abs, function.domain)))
        return parameters.refresh_hiding_bits(bound)

    def probe(self) -> Symbolic:
        """A run with more levels than anything needs: it shows the program's depth and where refreshes are possible."""
        return self.run(cast(CkksParameters, Unlimited(RINGS[-1])), refresh=False)


def without_refresh(chooser: Chooser, depth: int, rings: Sequence[int]) -> Symbolic:
    """The smallest ring, the largest scale and the fewest levels that hold the program; PlanError where none do."""
    draft, scales = chooser.draft, chooser.draft.protocol.ckks.scales
    for ring, scale_bits in itertools.product(rings, reversed(scales)):
        # Sums of unequal scales may cost a level that the probe for depth, whose scales all agree, did not see.
        for levels in range(depth, most_levels(ring, scale_bits) + 1):
            try:
                return chooser.settled(chain(ring, levels, scale_bits), refresh=False)
            except OutOfLevels:
                continue
    scale_bits = scales[0]
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


@dataclass(frozen=True)
class Refreshed:
    """A chain, the refresh points chosen for it, and about the seconds of all batches."""

    parameters: CkksParameters
    points: Points
    seconds: float


def with_refresh(chooser: Chooser, depth: int, ring: int, scale_bits: int, points: Points, enough: float) -> Refreshed:
    """The cheapest refresh points on a ring, at a scale, that a local search finds.

    It starts with all that hide enough and takes out, or back in, what makes the run cheaper, until nothing does;
    layers have their points in common, so the search looks at the deepest. Where the start takes more than twice
    ``enough`` seconds the search is left.
    """
    parameters = chain(ring, min(most_levels(ring, scale_bits), max(depth, 1)), scale_bits)
    hidden = {point: chooser.hiding_bits(parameters, point) for point in sorted(points)}
    allowed = frozenset(point for point, bits in hidden.items() if bits >= HIDING_BITS)
    kinds: dict[str, Points] = {}
    for point in allowed:
        kind = re.sub(r"^layer\.\d+", "layer", point)
        kinds[kind] = kinds.get(kind, frozenset()) | {point}
    try:
        whole = chooser.seconds(parameters, allowed)
    except OutOfLevels as error:
        raise _exposed(error, hidden) if points - allowed else error from None
    if whole > 2 * enough:
        return Refreshed(parameters, allowed, whole)
    few = chooser.deepest()
    found = _searched(few, parameters, allowed, kinds)
    with contextlib.suppress(OutOfLevels):
        return Refreshed(parameters, found, chooser.seconds(parameters, found))
    found = _searched(chooser, parameters, allowed, kinds)  # scales of other layers met at other levels
    return Refreshed(parameters, found, chooser.seconds(parameters, found))


def _exposed(error: OutOfLevels, hidden: Mapping[str, float]) -> PlanError:
    """Why levels ran out where not all refresh points may be used."""
    near = error.region.rpartition("/")[0]
    return PlanError(f"levels run out at {error.region or 'the top level'}: {_shown(hidden, near)}")


def _shown(hidden: Mapping[str, float], near: str) -> str:
    """What refresh points would give away, one of them near a region."""
    refused = [point for point, bits in hidden.items() if bits < HIDING_BITS]
    one = next((point for point in refused if point.startswith(f"{near}/")), refused[0])
    return (
        f"{len(refused)} of {len(hidden)} refresh points would show the key owner too much, such as {one}, where a "
        f"mask hides values by {hidden[one]:.0f} bits and {HIDING_BITS} are wanted; choose a model with narrower "
        "ranges, or train it with a range penalty"
    )


def _searched(chooser: Chooser, parameters: CkksParameters, allowed: Points, kinds: Mapping[str, Points]) -> Points:
    """From all allowed points on, what a local search arrives at."""
    chosen, cost = allowed, chooser.seconds(parameters, allowed)
    tried = {allowed}
    changed = True
    while changed:
        changed = False
        for kind in sorted(kinds):
            trial = chosen ^ kinds[kind]
            if trial in tried:  # what was tried costs no less than what is chosen
                continue
            tried.add(trial)
            try:
                seconds = chooser.seconds(parameters, trial)
            except OutOfLevels:
                continue
            if seconds < cost:
                chosen, cost, changed = trial, seconds, True
    return chosen


def trimmed(chooser: Chooser, refreshed: Refreshed) -> Symbolic:
    """The settled run, on no more levels than it leaves in use: keys are smaller for it."""
    settled = chooser.settled(refreshed.parameters, refreshed.points)
    parameters = refreshed.parameters
    if settled.highest == parameters.levels:
        return settled
    return chooser.settled(chain(parameters.ring_degree, settled.highest, parameters.scale_bits), refreshed.points)


def widest(config: ModelConfig) -> int:
    """The largest width of anything in a model."""
    return max(config.features, config.width, config.hidden, config.classes)


def check_stream(draft: Plan) -> None:
    """PlanError, before any weight is read, where a stream that no norm replaces could be refreshed nowhere and has
    more layers, each of two linear layers in a row at least, than any chain has levels.
    """
    config, ckks = draft.config, draft.protocol.ckks
    chains = [chain(ring, most_levels(ring, bits), bits) for ring in RINGS for bits in ckks.scales]
    if config.norm_after or ckks.refresh == "none" or 2 * config.layers <= max(c.levels for c in chains):
        return
    bounds = {point: bound for point, bound in draft.model.ranges.bounds.items() if point.endswith("/input")}
    hidden = {point: max(c.refresh_hiding_bits(bound) for c in chains) for point, bound in bounds.items()}
    if hidden and max(hidden.values()) < HIDING_BITS:
        raise PlanError(f"{config.layers} layers need their stream refreshed: {_shown(hidden, 'layer.0/attention')}")


def check_bounds(draft: Plan, points: Points) -> None:
    """ProtocolError where a refresh point has no calibrated bound."""
    missing = sorted(points - draft.model.ranges.bounds.keys())
    if missing:
        raise ProtocolError(
            f"model {draft.model.config.name}",
            [f"no bound for refresh point{'s' * (len(missing) > 1)} {', '.join(missing)}; calibrate again"],
        )
