"""What tensors in the batch layout have in common when they meet, and how far rotations reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from secureattn.errors import InputError

if TYPE_CHECKING:
    from secureattn.backends.ckks.batch import BatchTensor


def common_layout(tensors: Sequence[BatchTensor]) -> tuple[tuple[int, ...], bool]:
    """The shape of what is computed elementwise, and whether it lies in diagonals; one column fits either layout."""
    shapes = [list(x.shape) for x in tensors]
    kinds = {x.diagonals for x in tensors if x.shape[-1] > 1}
    if len(kinds) > 1:
        raise InputError(f"the batch layout cannot join scores and features elementwise, the shapes are {shapes}")
    try:
        return np.broadcast_shapes(*shapes), kinds == {True}
    except ValueError:
        raise InputError(f"shapes {shapes} do not broadcast") from None


def baby_steps(tokens: int, key_switches: Callable[[int], int]) -> int:
    """The power of two, up to the number of tokens, with the fewest key switches."""
    return min((1 << i for i in range(tokens.bit_length())), key=key_switches)
