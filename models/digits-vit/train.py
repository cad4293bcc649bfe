"""Train digits-vit: ``python models/digits-vit/train.py`` (one thread, a few minutes, repeatable)."""

from pathlib import Path

from secureattn.train.recipe import Recipe
from secureattn.train.script import run

RECIPE = Recipe(
    targets={"norm": (0.2, 1.5), "normaliser": (1.0, 8.0), "gelu": (-3.0, 3.0)},
    epochs=240,
    learning_rate=1e-2,
    penalty=1.0,
)

if __name__ == "__main__":
    run(Path(__file__).parent, RECIPE)
