"""Joint search: which realisation of which size at every site keeps a model's accuracy at the least cost.

Costs are counted on the symbolic engine, accuracy on the clear run, so nothing is encrypted. Sites are searched
together by a beam: for every sum of the sites' own costs the few assignments whose scores stay closest to the exact
ones are kept and one site at a time is made cheaper. The program's cost, where parallel branches overlap, is counted
for what the search ends with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from secureattn.approx import Realisation
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.errors import InputError, PlanError
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import fold
from secureattn.nn.model import Model
from secureattn.plan import Plan, program_cost
from secureattn.plan.select import Choice, frontier
from secureattn.protocol import Protocol, exact_realisations
from secureattn.runs.result import Array, Progress

BEAM = 6
"""Assignments kept for every cost."""

UNIT = {"ckks": "levels", "crypten": "rounds"}
"""What is saved, by engine."""

Assignment = tuple[int, ...]


@dataclass(frozen=True)
class Point:
    """One assignment: ``cost`` in levels or rounds of the whole program; ``accuracy`` on the samples that chose it,
    ``checked`` on those that did not; ``distance``: root mean square of its scores' distance to the exact ones.
    """

    choices: Mapping[str, Choice]
    cost: int
    accuracy: float
    checked: float
    distance: float

    @property
    def sites(self) -> dict[str, Mapping[str, Any]]:
        """Site → options, as a protocol's [sites] writes them."""
        return {site: choice.options for site, choice in self.choices.items()}


@dataclass(frozen=True)
class Found:
    """The frontier, cheapest first; ``chosen`` of it; ``exact``: accuracy with true functions, on both halves;
    ``given``: what the protocol as it is costs and reaches.
    """

    unit: str
    frontier: tuple[Point, ...]
    chosen: Point
    exact: tuple[float, float]
    given: Point


def search(
    model: Model,
    protocol: Protocol,
    *,
    loss: float = 0.0,
    budget: int | None = None,
    samples: int | None = None,
    progress: Progress | None = None,
) -> Found:
    """Choose for every site; with a ``budget`` the most faithful assignment within it, else the cheapest whose accuracy
    is at most ``loss`` below that of the true functions.

    Every second sample chooses, the others check. PlanError where nothing meets the demand.
    """
    if not 0 <= loss < 1:
        raise InputError(f"a loss of accuracy is a share from 0 to below 1, not {loss}")
    tell = progress or (lambda *_: None)
    if protocol.engine not in UNIT:
        raise PlanError(f"a search saves levels or rounds, engine {protocol.engine!r} counts neither")
    served = protocol.realisations(model)
    work = _Search(model, protocol, samples)
    tell("listing realisations", 0, 0)
    sites = work.config.sites()
    options = {s: frontier(f, model.ranges.domains[s], protocol.engine, protocol.mpc) for s, f in sites.items()}
    missing = [site for site, found in options.items() if not found]
    if missing:
        raise PlanError(f"no realisation runs under {protocol.engine} at {', '.join(missing)}; calibrate again")
    found = _beam(work, options, tell)
    points = _nondominated([work.point(choices) for choices in found])
    given = work.point(
        {site: Choice(r, protocol.options(site, sites[site]) or {}, protocol.mpc) for site, r in served.items()}
    )
    return Found(UNIT[protocol.engine], points, _choose(points, work, loss, budget), work.exact, given)


class _Search:
    """The model's samples and exact scores, and what an assignment does to them."""

    def __init__(self, model: Model, protocol: Protocol, samples: int | None) -> None:
        self.model, self.protocol = model, protocol
        self.config = protocol.served(model.config, model.ranges)
        self.inputs, labels = model.samples(samples)
        if labels is None:
            raise InputError(f"a search needs samples with labels, which model {model.config.name} does not ship")
        if len(labels) < 2:
            raise InputError("a search needs at least 2 samples, one to choose and one to check")
        self.labels = labels
        self.wanted = self._scores(exact_realisations(model), self.inputs, exact=True)
        self.exact = self.accuracies(self.wanted)

    def _scores(self, served: Mapping[str, Realisation], inputs: Array, *, exact: bool = False) -> Array:
        backend = PlaintextBackend(exact=exact)
        config = self.model.config if exact else self.config
        with torch.no_grad(), np.errstate(all="ignore"):
            scores = Encoder(fold(config, self.model.weights, served), backend)(backend.input(inputs))
        return backend.reveal(scores)[:, 0]

    def accuracies(self, scores: Array) -> tuple[float, float]:
        """Share classified right among the samples that choose, and among those that check."""
        right: npt.NDArray[np.bool_] = scores.argmax(-1) == self.labels
        return float(right[::2].mean()), float(right[1::2].mean())

    def distance(self, choices: Mapping[str, Choice]) -> float:
        """Root mean square distance of the scores to the exact ones, on the samples that choose; inf for nonsense."""
        served = {site: choice.realisation for site, choice in choices.items()}
        return self._distance(self._scores(served, self.inputs[::2]))

    def _distance(self, scores: Array) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            distance = float(np.sqrt(np.mean((scores - self.wanted[::2]) ** 2)))
        return distance if np.isfinite(distance) else np.inf

    def point(self, choices: Mapping[str, Choice]) -> Point:
        """Everything about an assignment."""
        served = {site: choice.realisation for site, choice in choices.items()}
        scores = self._scores(served, self.inputs)
        accuracy, checked = self.accuracies(scores)
        plan = Plan(self.model, self.protocol, len(self.labels), served)
        return Point(choices, program_cost(plan), accuracy, checked, self._distance(scores[::2]))


def _beam(work: _Search, options: Mapping[str, Sequence[Choice]], tell: Progress) -> list[dict[str, Choice]]:
    """From the dearest choice at every site down to the cheapest, the closest assignments of every total cost."""
    sites, engine = list(options), work.protocol.engine
    ranks = {site: [int(choice.rank(engine)[0]) for choice in options[site]] for site in sites}

    def total(a: Assignment) -> int:
        return sum(ranks[site][i] for site, i in zip(sites, a, strict=True))

    def choices(a: Assignment) -> dict[str, Choice]:
        return {site: options[site][i] for site, i in zip(sites, a, strict=True)}

    start: Assignment = tuple(len(options[site]) - 1 for site in sites)
    waiting = {total(start): {start: work.distance(choices(start))}}
    kept: list[Assignment] = []
    first, last = total(start), total((0,) * len(sites))
    while waiting:
        cost = max(waiting)
        tell("searching", first - cost, first - last)
        best = sorted(waiting.pop(cost).items(), key=lambda item: item[1])[:BEAM]
        kept.append(best[0][0])
        for assignment, _ in best:
            for k, i in enumerate(assignment):
                if i:
                    cheaper = (*assignment[:k], i - 1, *assignment[k + 1 :])
                    bucket = waiting.setdefault(total(cheaper), {})
                    if cheaper not in bucket:
                        bucket[cheaper] = work.distance(choices(cheaper))
    return [choices(assignment) for assignment in kept]


def _nondominated(points: Sequence[Point]) -> tuple[Point, ...]:
    """Cheapest first, each closer to the exact scores than all cheaper ones."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.distance)):
        if not kept or point.distance < kept[-1].distance:
            kept.append(point)
    return tuple(kept)


def _choose(points: Sequence[Point], work: _Search, loss: float, budget: int | None) -> Point:
    unit = UNIT[work.protocol.engine]
    if budget is not None:
        within = [point for point in points if point.cost <= budget]
        if not within:
            raise PlanError(f"nothing fits {budget} {unit}: the cheapest assignment takes {points[0].cost}")
        return within[-1]
    needed = work.exact[0] - loss
    for point in points:
        if point.accuracy >= needed - 1e-9:
            return point
    raise PlanError(
        f"no assignment keeps accuracy {needed:.2%}: the best reaches {max(p.accuracy for p in points):.2%}; allow a "
        "larger loss, or calibrate narrower ranges"
    )
