"""Memory that this process has freed."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def give_back() -> None:
    """Give freed memory back to the system: glibc keeps what large tensors leave, and what comes next grows beside it.

    Nothing happens where the C library has no ``malloc_trim``.
    """
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return lambda _: None
