"""Train this model on the Python reference, by bytes (one thread, minutes, repeatable)."""

from pathlib import Path

from secureattn.train.language import Recipe, run

RECIPE = Recipe()

if __name__ == "__main__":
    run(Path(__file__).parent, RECIPE)
