"""A peer asked to compute a case in its own environment: checked first, then timed in turn with SecureAttn.

Between us and a peer stand a subprocess, JSON and plain arrays. A peer that is not installed, fails, or is wrong is
not timed, and its record says why.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import peers_environments
from measuring import tell, write

Array = npt.NDArray[np.float64]
HERE = Path(__file__).resolve().parent
LIMIT_S = 1800
"""No peer takes this long unless it hangs."""

TRIES = 3
"""So often a peer may compute before it has to be right."""


class PeerError(Exception):
    """A peer that did not answer, and its last words."""


@dataclass(frozen=True)
class Peer:
    """A peer: its environment, its script, the functions it is asked for, and the protocol of ours beside it."""

    name: str
    environment: str
    script: str
    functions: str
    against: str


@dataclass
class Asked:
    """A peer, its case, the reference ``expected``, the error above which an output is wrong, and what is
    made of outputs before they are compared.
    """

    peer: Peer
    case: Mapping[str, Any]
    arrays: Mapping[str, Array]
    expected: Array
    most_error: float
    folder: Path
    settle: Callable[[Array], Array]
    record: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.record = {
            "against": self.peer.against,
            "most_error": self.most_error,
            "status": "measured",
            "reason": None,
            "turns": [],
            "wrong": [],
        }

    def check(self, *, timed: bool = False) -> None:
        """Compute once, counted, before anything is timed; where it is ``timed`` itself, it makes a turn if right."""
        if not peers_environments.python(self.peer.environment):
            self._drop("not installed", peers_environments.why_not(self.peer.environment))
            return
        run = self._right(turns=1, counted=True)
        if run:
            self.record["checked"] = run
            self.record["turns"] += [run] if timed else []

    def turn(self, *, warm: bool = True) -> None:
        """Compute, timed, after a warm-up in the same processes; nothing for a peer that has been dropped."""
        if self.record["status"] == "measured" and (run := self._right(turns=1 + warm, counted=False)):
            self.record["turns"].append(run)

    def summed(self) -> dict[str, Any]:
        """The record, its turns with what the checked run counted: rounds, bytes of the party that sends most, and of
        all; None where the peer counts none.
        """
        checked = self.record.get("checked", {"bytes_sent": None, "rounds": None})
        sent = checked["bytes_sent"]
        most = max(sent) if sent and len(sent) > 1 else None  # one figure is both parties' together
        counts = {"bytes_sent": most, "bytes_all": sent and sum(sent), "rounds": checked["rounds"]}
        return {**self.record, "turns": [{**turn, **counts} for turn in self.record["turns"]]}

    def _right(self, **how: Any) -> dict[str, Any] | None:
        """A run whose output is right; wrong ones are kept apart, untimed. Local truncation is wrong at random, so a
        peer gets some tries; none for one that fails or is never right, which is dropped.
        """
        for _ in range(TRIES):
            try:
                answer, output = self._answer(**how)
            except PeerError as failure:
                self._drop("failed", str(failure))
                return None
            self.record["versions"] = answer["versions"]
            errors = np.abs(self.settle(output) - self.expected)
            off, most = int(np.sum(~(errors <= self.most_error))), float(np.nan_to_num(errors.max(), nan=1e300))
            if not off:
                return {**answer["turns"][-1], "max_abs_error": most}
            said = f"{off:,} of {errors.size:,} values off by up to {most:.1e}"
            self.record["wrong"].append({"max_abs_error": most, "reason": said})
            tell(f"{self.peer.name}: {said}")
        self._drop("wrong", said)
        return None

    def _drop(self, status: str, reason: str) -> None:
        self.record |= {"status": status, "reason": reason, "turns": []}
        tell(f"{self.peer.name}: {status}: {reason}")

    def _answer(self, **more: Any) -> tuple[dict[str, Any], Array]:
        at = self.folder / f"{self.peer.name}"
        arrays, told, out = (at.with_suffix(f".{kind}") for kind in ("npz", "case.json", "out.json"))
        kept: dict[str, Any] = dict(self.arrays)
        np.savez(arrays, **kept)
        case = {**self.case, **more, "functions": self.peer.functions, "arrays": str(arrays.absolute())}
        write(told, case)
        python = peers_environments.python(self.peer.environment)
        command = [str(python), str(HERE / "peers" / self.peer.script), str(told.absolute()), str(out.absolute())]
        environment = {**os.environ, "PYTHONPATH": str(HERE)}  # the plain files that both sides share
        with at.with_suffix(".log").open("w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
            failed = _ended(process)
            log.seek(0)
            said = last_words(log.read())
        if failed:
            raise PeerError(f"{failed}: {said}")
        return json.loads(out.read_text()), np.load(out.with_suffix(".npy"), allow_pickle=False)


def last_words(log: str) -> str:
    """The last error that a peer's log explains, or its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["nothing said"]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return (errors or lines)[-1][:200]


def _ended(process: subprocess.Popen[bytes]) -> str | None:
    """Why a process failed; those it started end with it."""
    try:
        code = process.wait(LIMIT_S)
        return f"status {code}" if code else None
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT_S} s"
    finally:
        if process.poll() is None or process.returncode:
            _end_group(process.pid)
            process.wait()


def _end_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def any_installed() -> None:
    """SystemExit where no peer's environment is there: nothing could be measured."""
    if not any(map(peers_environments.python, peers_environments.NAMES)):
        sys.exit(f"no peer is installed; {peers_environments.NOT_SET_UP}")
