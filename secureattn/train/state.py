"""What training carries from one step to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from secureattn.nn.config import ModelConfig
from secureattn.nn.parameters import Parameters, shapes
from secureattn.train.forward import Array
from secureattn.train.recipe import Recipe

_STATISTICS = (".norm.mean", ".norm.variance")


class State:
    """Float32 weights by name, the optimiser, its schedule, the generator of batches and shifts, finished epochs and
    what each ended with (``epoch``, ``loss``, ``penalty``). BatchNorm's statistics are constants to the optimiser.
    """

    def __init__(self, config: ModelConfig, recipe: Recipe, start: Mapping[str, Array], samples: int) -> None:
        self.rng = np.random.default_rng(recipe.seed)
        self.weights = {name: torch.tensor(start[name], dtype=torch.float32) for name in shapes(config)}
        self.learnt = {
            name: weight.requires_grad_() for name, weight in self.weights.items() if not name.endswith(_STATISTICS)
        }
        self.optimiser = torch.optim.AdamW(
            self.learnt.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        steps = recipe.epochs * -(-samples // recipe.batch)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, recipe.learning_rate, total_steps=steps)
        self.history: list[dict[str, Any]] = []

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)

    def parameters(self) -> Parameters:
        """The weights as float64 arrays."""
        return {name: w.detach().numpy().astype(np.float64) for name, w in self.weights.items()}
