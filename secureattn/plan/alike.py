"""Plans of many layers from plans of few, where a config alone is planned and all its layers are alike.

What enters the first layer and leaves the last one may lie at other levels than what goes from layer to layer; so the
first, the last and two between them are planned, and the second of these stands for all there are more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from secureattn.events import Event, Recorder
from secureattn.plan.base import CkksPlan, Plan

PLANNED = 4
"""Layers that stand for more."""


def shortened(draft: Plan) -> Plan:
    """The same of a model with as few layers, where those of a config alone are more and alike."""
    model = draft.model
    if not model.alone or model.config.layers <= PLANNED or model.config.by_layer:
        return draft
    few = replace(draft, model=replace(model, config=replace(model.config, layers=PLANNED)))
    sites = few.config.sites()
    return replace(few, realisations={site: draft.realisations[site] for site in sites})


def lengthened(plan: CkksPlan, layers: int, depth: int) -> CkksPlan:
    """What was planned of few layers, for so many; ``depth``: levels of one."""
    more = layers - PLANNED
    recorder = Recorder(modelled=True)
    for event in plan.recorder.events.values():
        for region in _names(event.region, layers):
            recorder.events[region, event.op, event.phase] = _copied(event, region)
    seconds = dict(plan.seconds)
    for phase in ("online", "refresh"):
        added = plan.batches * (recorder.seconds(phase) - plan.recorder.seconds(phase))
        seconds[phase] += added
        seconds["total"] += added
    run = plan.hiding_bits_run  # distances add up, of equal layers at most in proportion
    return replace(
        plan,
        recorder=recorder,
        seconds=seconds,
        depth=plan.depth + more * depth,
        schedule=frozenset(_all_names(plan.schedule, layers)),
        points={name: count for point, count in plan.points.items() for name in _names(point, layers)},
        hiding_bits_run=None if run is None else run - math.log2((layers - 1) / (PLANNED - 1)),
    )


def _all_names(names: Iterable[str], layers: int) -> Iterator[str]:
    for name in names:
        yield from _names(name, layers)


def _names(name: str, layers: int) -> Iterator[str]:
    """A region or refresh point by the names it has among so many layers."""
    layer, slash, rest = name.partition("/")
    numbers = {f"layer.{PLANNED - 2}": range(PLANNED - 2, layers - 1), f"layer.{PLANNED - 1}": [layers - 1]}
    for number in numbers.get(layer, []):
        yield f"layer.{number}{slash}{rest}"
    if layer not in numbers:
        yield name


def _copied(event: Event, region: str) -> Event:
    return replace(event, region=region, counts=dict(event.counts), primitive_s=dict(event.primitive_s))
