"""What a run asks of a batch of images as TenSEAL's ``CKKSTensor``, one ciphertext a value: ``tenseal_program`` is
written for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tenseal as ts
from tenseal_program import Array, Kind

ROTATES = False


def encrypt(context: Any, inputs: Array) -> Any:
    """Images ``[B,S,F]``."""
    return ts.ckks_tensor(context, ts.plain_tensor(inputs), batch=True)


def decrypt(x: Any) -> Array:
    """``[B,S,D]``."""
    return np.array(x.decrypt().tolist())


def serialised_bytes(x: Any) -> int:
    """Of all ciphertexts, as the first one has them."""
    first = x[tuple(slice(0, 1) for _ in x.shape)]
    return int(len(first.serialize()) * math.prod(x.shape))


def ways(width: int, head_width: int) -> Mapping[Kind, Callable[..., Any]]:
    """All kinds are done as the program has them."""
    return {}
