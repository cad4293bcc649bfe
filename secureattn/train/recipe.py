"""How to train: a recipe, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from secureattn.approx import Interval


@dataclass(frozen=True)
class Recipe:
    """``targets`` maps the last part of a site's path to the interval its values should keep to; sites it does not
    name have a default. ``penalty`` weighs the range penalty, ``momentum`` is that of BatchNorm's statistics.
    """

    targets: Mapping[str, Interval] = field(default_factory=dict)
    epochs: int = 160
    batch: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 0.05
    penalty: float = 1.0
    label_smoothing: float = 0.05
    momentum: float = 0.1
    seed: int = 0
