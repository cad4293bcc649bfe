"""Real data for the shipped models: scikit-learn's handwritten digits, cut into tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from secureattn.errors import EngineError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """Inputs ``[N,S,F]`` and labels ``[N]``, for training and held out."""

    train_inputs: Array
    train_labels: npt.NDArray[np.int64]
    test_inputs: Array
    test_labels: npt.NDArray[np.int64]


def digits() -> Split:
    """1,797 images of 8×8 (Alpaydin & Kaynak, 1998) as 16 tokens of 2×2 in [0,1]; 360 held out, a fixed split."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise EngineError("training needs scikit-learn; run pip install 'secureattn[models]'") from error
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16.0, labels, test_size=360, random_state=0, stratify=labels)
    return Split(patches(parts[0]), parts[2].astype(np.int64), patches(parts[1]), parts[3].astype(np.int64))


def patches(images: Array, size: int = 2) -> Array:
    """``[N, 64]`` images → ``[N, 16, 4]`` tokens of 2×2 pixels, row by row."""
    side = int(images.shape[1] ** 0.5)
    n = side // size
    cut = images.reshape(-1, n, size, n, size).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(cut.reshape(-1, n * n, size * size))


def shifted(tokens: Array, rng: np.random.Generator) -> Array:
    """Each image moved by up to one pixel in both directions, empty pixels in: augmentation for training."""
    n, side = len(tokens), 8
    images = tokens.reshape(n, 4, 4, 2, 2).transpose(0, 1, 3, 2, 4).reshape(n, side, side)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    moves = rng.integers(0, 3, size=(n, 2))
    out = np.stack([image[y : y + side, x : x + side] for image, (y, x) in zip(padded, moves, strict=True)])
    return patches(out.reshape(n, side * side))


def save_samples(path: Path, inputs: Array, labels: npt.NDArray[np.int64]) -> None:
    """Write held-out samples beside a model, for ``compare`` and ``profile``."""
    arrays: dict[str, npt.NDArray[Any]] = {"inputs": inputs.astype(np.float32), "labels": labels.astype(np.int64)}
    save_file(arrays, path, metadata={"secureattn.format": "1"})
