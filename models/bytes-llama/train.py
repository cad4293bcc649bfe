"""Train this model on the Python reference, by bytes (one thread, minutes, repeatable)."""

from pathlib import Path

from secureattn.train.language import Recipe, run

RECIPE = Recipe(targets={"exp": (-10.0, 5.0), "normaliser": (1.0, 64.0)}, penalty=1.0)

if __name__ == "__main__":
    run(Path(__file__).parent, RECIPE)
