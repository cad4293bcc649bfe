"""What tests of processes need: memory that forks see as well, and what this process has left."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

FOREVER_S = 60


def open_files() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir() if path.exists())


def children() -> set[str]:
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


class Shared:
    """Words that forks see as well."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._words = (ctypes.c_int64 * count).from_buffer(self._memory)

    def __getitem__(self, at: int) -> int:
        return self._words[at]

    def __setitem__(self, at: int, value: int) -> None:
        self._words[at] = value


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit, "nothing happened for 30 seconds"
        time.sleep(0.002)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
