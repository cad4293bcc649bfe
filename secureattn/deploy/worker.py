"""A process that evaluates for a server: it does one job at a time, and whatever becomes of it, the server goes on.

What is large lies in files; over the pipe go a few words of JSON. Told ``{"do": "evaluate", …}``, it says ``progress``,
``round`` (a request lies in the job's folder; it goes on when told ``answered``), and in the end ``done``, ``refused``
(the client's fault, in one line) or ``failed``. It ends when the pipe does.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from secureattn import load_model, load_protocol
from secureattn.backends.ckks.processes import Link
from secureattn.deploy.evaluator import Evaluator
from secureattn.deploy.offer import read_plan
from secureattn.deploy.rounds import Rounds
from secureattn.errors import EngineError, InputError, SecureAttnError

_TELL_S = 0.2
_LOG = logging.getLogger(__name__)


class Worker:
    """One end of the pipe, and the evaluator that holds the model and the keys used last."""

    def __init__(self, link: Link, evaluator: Evaluator) -> None:
        self._link = link
        self._evaluator = evaluator
        self._key_folder = ""
        self._told = 0.0

    def evaluate(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job; what to say of it in the end."""
        run, queries = Path(job["run"]), [Path(query) for query in job["queries"]]
        try:
            if (self._evaluator.keys, self._key_folder) != (job["keys"], job["key_folder"]):  # names may coincide
                self._evaluator.use(Path(job["key_folder"]))
            answer = Rounds(run, self._evaluator.offer, job["keys"], self._ask)
            self._evaluator.evaluate(queries, run / "result", answer)
        except InputError as error:
            return {"refused": str(error)}
        except SecureAttnError as error:
            return {"failed": str(error)}
        except MemoryError:
            return {"failed": "memory ran out; use a smaller batch, fewer workers or a larger machine"}
        except (EOFError, OSError):
            raise
        except Exception as error:  # of ours, and none of the client's business
            _LOG.exception("run %s failed", run.name)
            return {"failed": f"the evaluation failed inside the server ({type(error).__name__}); its log says more"}
        return {"done": True}

    def progress(self, text: str, done: int, of: int) -> None:
        """Say how far it is, a few times a second."""
        now = time.monotonic()
        if now - self._told > _TELL_S:
            self._told = now
            self._link.send({"progress": [text, done, of]})

    def _ask(self, number: int) -> None:
        self._link.send({"round": number})
        told, _ = self._link.receive()
        if told != {"answered": number}:
            raise EngineError(f"round {number} was not answered")


def main() -> None:
    """``python -m secureattn.deploy.worker FD MODEL PROTOCOL PLAN``, started by a server."""
    parser = argparse.ArgumentParser(prog="secureattn.deploy.worker", description=__doc__)
    parser.add_argument("pipe", type=int, help="file descriptor of the pipe to the server")
    for name in ("model", "protocol", "plan"):
        parser.add_argument(name)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt of the group is the server's to act on
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    link = Link(Connection(options.pipe))
    os.set_inheritable(options.pipe, False)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            model, protocol = load_model(options.model), load_protocol(options.protocol)
            evaluator = Evaluator(*read_plan(Path(options.plan), model, protocol))
        except SecureAttnError as error:
            link.send({"unfit": str(error)})
            return
        worker = Worker(link, evaluator)
        evaluator.progress = worker.progress
        link.send({"ready": True})
        while True:
            job, _ = link.receive()
            link.send(worker.evaluate(job))


if __name__ == "__main__":
    main()
