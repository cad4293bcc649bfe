"""The machine a run was measured on, found out without importing any engine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("numpy", "torch", "tenseal", "crypten")


def machine() -> dict[str, Any]:
    """Cores this process may use, processor, memory, system and versions; null for what is missing or unknown."""
    return {
        "cpu": _cpu(),
        "cores": _cores(),
        "memory_bytes": _memory_bytes(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def in_words(described: dict[str, Any]) -> str:
    """Processor, cores and memory, for a caption."""
    words = [described.get("cpu") or described.get("platform") or "unknown machine"]
    if described.get("cores"):
        words.append(f"{described['cores']} core{'s' * (described['cores'] > 1)}")
    if described.get("memory_bytes"):
        words.append(f"{described['memory_bytes'] / 2**30:.0f} GiB")
    return ", ".join(words)


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = (value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == "model name")
    return next(names, None) or platform.processor() or platform.machine() or None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
