"""A client of a server that is watched while it answers refreshes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from secureattn.deploy.connection import Connection


class Watched(Connection):
    """Calls ``asked`` with a job's path before it answers the first refresh of that job; ``jobs``: those so far."""

    def __init__(self, *arguments: Any, asked: Callable[[str], Any], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.jobs: list[str] = []
        self._asked = asked
        self._lock = threading.Lock()

    def _answer(self, job: Any, path: str) -> None:
        with self._lock:
            first = job.path not in self.jobs
            self.jobs += [job.path] * first
        if first:
            self._asked(job.path)
        super()._answer(job, path)
