"""Train this model on the Python reference, by bytes (one thread, minutes, repeatable)."""

from pathlib import Path

from secureattn.train.language import Recipe, run

RECIPE = Recipe(targets={"normaliser": (1.0, 16.0)}, penalty=1.0)

if __name__ == "__main__":
    run(Path(__file__).parent, RECIPE)
