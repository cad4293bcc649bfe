"""numpy's BLAS on one thread, where several processes run side by side or matrices are small.

OpenBLAS's threads wait for each other by spinning: with more of them than cores, fits that take a second alone were
measured to take up to 150.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy  # noqa: F401 - a library must be loaded to be found
from threadpoolctl import ThreadpoolController

_BLAS = ThreadpoolController()
_Function = TypeVar("_Function", bound=Callable[..., Any])


def one_thread(function: _Function) -> _Function:
    """The same function; its matrix products and factorisations run on one thread."""
    return cast(_Function, _BLAS.wrap(limits=1, user_api="blas")(function))
