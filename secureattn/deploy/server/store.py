"""What a server keeps on disk: key sets of clients, and jobs with their files, so that a restart loses none.

``keys/<client>/<keys>/`` holds what a client uploaded of her keys, ``jobs/<id>/`` a query, a result and ``job.json``,
``runs/<id>/`` the requests and answers of an evaluation. Nothing in it is secret but from other clients.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from secureattn.deploy.parcel import EVALUATION_FILE, PUBLIC_FILE

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
STATES = (QUEUED, RUNNING, DONE, FAILED, CANCELLED)
KEY_FILES = {"public": PUBLIC_FILE, "evaluation": EVALUATION_FILE}
"""Parts of a key set, by the names they are uploaded under."""


@dataclass
class Job:
    """A query and what has become of it. ``version`` counts changes; ``round``: the request that waits for an answer;
    ``tries``: how often it was begun; ``query_hash`` tells a repeated upload from another one; ``group``: of jobs that
    share slots, empty for one that has them alone.
    """

    id: str
    client: str
    keys: str
    samples: int
    query_hash: str
    plan: str
    group: str = ""
    state: str = QUEUED
    error: str = ""
    tries: int = 0
    created: float = field(default_factory=time.time)
    changed: float = field(default_factory=time.time)
    version: int = 0
    round: int | None = None
    progress: tuple[str, int, int] = ("", 0, 0)

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in (DONE, FAILED, CANCELLED)


_KEPT = tuple(f.name for f in fields(Job) if f.name not in ("version", "round", "progress"))


class Store:
    """A folder, made if missing, and nothing of its own in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("incoming", "runs"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("keys", "jobs", "incoming", "runs"):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)

    def incoming(self) -> Path:
        """A new name for an upload."""
        return self.folder / "incoming" / uuid.uuid4().hex

    # ---- keys -----------------------------------------------------------------------------------------------

    def keys(self, client: str, keys: str) -> Path:
        """The folder of a key set."""
        return self.folder / "keys" / client / keys

    def key_parts(self, client: str, keys: str) -> list[str]:
        """Which parts of a key set are here."""
        folder = self.keys(client, keys)
        return [part for part, file in KEY_FILES.items() if (folder / file).exists()]

    def key_sets(self) -> list[tuple[str, str]]:
        """Clients and key sets that are here, in whole or part."""
        return [(one.parent.name, one.name) for one in (self.folder / "keys").glob("*/*")]

    def add_key(self, client: str, keys: str, part: str, upload: Path) -> None:
        """An upload takes its place in a key set."""
        folder = self.keys(client, keys)
        folder.mkdir(parents=True, exist_ok=True)
        upload.replace(folder / KEY_FILES[part])

    def drop_keys(self, client: str, keys: str) -> None:
        """Forget a key set."""
        shutil.rmtree(self.keys(client, keys), ignore_errors=True)

    # ---- jobs -----------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Path:
        """A job's folder."""
        return self.folder / "jobs" / job_id

    def add_job(self, job: Job, upload: Path) -> None:
        """An upload becomes a job's query."""
        folder = self.job(job.id)
        folder.mkdir()
        upload.replace(folder / "query")
        self.note(job)

    def note(self, job: Job) -> None:
        """Keep what has become of a job, whole or not at all."""
        path = self.job(job.id) / "job.json"
        draft = path.with_suffix(".new")
        kept = {name: value for name, value in asdict(job).items() if name in _KEPT}
        with draft.open("w", encoding="utf-8") as file:
            json.dump(kept, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)

    def drop_job(self, job_id: str) -> None:
        """Forget a job and its files."""
        shutil.rmtree(self.job(job_id), ignore_errors=True)

    def jobs(self) -> Iterator[Job]:
        """Those kept, oldest first; what cannot be read is removed: it was never announced as accepted."""
        found = []
        for folder in (self.folder / "jobs").iterdir():
            try:
                found.append(Job(**json.loads((folder / "job.json").read_text(encoding="utf-8"))))
            except (OSError, ValueError, TypeError):
                shutil.rmtree(folder, ignore_errors=True)
        yield from sorted(found, key=lambda job: job.created)

    def forget_query(self, job: Job) -> None:
        """What was asked is of no use once a job is over."""
        (self.job(job.id) / "query").unlink(missing_ok=True)

    # ---- runs -----------------------------------------------------------------------------------------------

    def begin(self) -> Path:
        """A folder for an evaluation."""
        folder = self.folder / "runs" / uuid.uuid4().hex
        folder.mkdir()
        return folder

    def end(self, run: Path) -> None:
        """It is over, whatever came of it."""
        shutil.rmtree(run, ignore_errors=True)

    def finished(self, run: Path, job: Job) -> None:
        """A run's result is that of each of its jobs."""
        to = self.job(job.id) / "result"
        to.unlink(missing_ok=True)
        os.link(run / "result", to)

    def told(self, run: Path, jobs: list[Job]) -> dict[str, Any]:
        """What a worker needs to know of jobs under one key set."""
        key_folder = self.keys(jobs[0].client, jobs[0].keys)
        (key_folder / PUBLIC_FILE).touch()
        queries = [str(self.job(job.id) / "query") for job in jobs]
        return {"run": str(run), "queries": queries, "keys": jobs[0].keys, "key_folder": str(key_folder)}

    def used(self, client: str, keys: str) -> float:
        """When a key set was used last, or came."""
        times = [path.stat().st_mtime for path in self.keys(client, keys).iterdir()]
        return max(times, default=0.0)
