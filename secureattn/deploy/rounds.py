"""Refreshes through a folder: the evaluator leaves requests there, the key owner answers beside them.

A round is two files, ``001.request`` and ``001.answer``, each there whole or not at all; ``done`` says how it ended.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from secureattn.deploy import parcel
from secureattn.deploy.checks import check_answer
from secureattn.deploy.offer import Offer
from secureattn.deploy.parcel import ANSWER, REFRESH, blobs, opened
from secureattn.errors import EngineError

if TYPE_CHECKING:
    from secureattn.deploy.owner import Owner

DONE = "done"
_LOOK_S = 0.02
Wait = Callable[[int], None]
"""Returns when the answer to a round, by its number, lies beside the request; raises where none comes."""


class Rounds:
    """The evaluator's half: asks in a folder, and waits."""

    def __init__(self, folder: Path, offer: Offer, keys: str, wait: Wait) -> None:
        self.folder = folder
        self._offer = offer
        self._keys = keys
        self._wait = wait
        self._run = secrets.token_hex(16)
        self._round = 0

    def __call__(self, masked: Sequence[bytes], levels: Sequence[int]) -> list[bytes]:
        """Masked ciphertexts afresh; InputError where something else is answered."""
        self._round += 1
        request, answer = request_path(self.folder, self._round), answer_path(self.folder, self._round)
        answer.unlink(missing_ok=True)
        note = {"round": self._round, "run": self._run, "levels": list(levels)}
        named = {str(i): blob for i, blob in enumerate(masked)}
        parcel.write(request, self._offer.label(REFRESH, self._keys), blobs(named), note)
        self._wait(self._round)
        with opened(answer) as told:
            check_answer(told, self._offer.label(ANSWER, self._keys), note)
            fresh = [told.part(str(i)) for i in range(len(masked))]
        request.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)
        return fresh


def request_path(folder: Path, number: int) -> Path:
    """Where a round's request lies."""
    return folder / f"{number:03}.request"


def answer_path(folder: Path, number: int) -> Path:
    """Where its answer is awaited."""
    return folder / f"{number:03}.answer"


def waiting(folder: Path, *, wait_s: float) -> Wait:
    """Waits for answers in a folder, for each so many seconds at most."""

    def wait(number: int) -> None:
        deadline = time.monotonic() + wait_s
        while not answer_path(folder, number).exists():
            if time.monotonic() > deadline:
                raise EngineError(
                    f"no answer to {number:03}.request came within {wait_s:g} s; the key owner runs secureattn refresh"
                )
            time.sleep(_LOOK_S)

    return wait


@contextmanager
def meeting(folder: Path) -> Iterator[None]:
    """A folder for one evaluation, without what an earlier one left; who answers hears how it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / DONE, *folder.glob("*.request"), *folder.glob("*.answer")):
        path.unlink(missing_ok=True)
    how = "ended"
    try:
        yield
        how = "done"
    finally:
        with contextlib.suppress(OSError):
            (folder / DONE).write_text(how + "\n")


def serve(owner: Owner, folder: Path, *, wait_s: float, tell: Callable[[int], None] = lambda _: None) -> int:
    """The key owner's half: answer until the evaluator is done; how many rounds there were. EngineError where it ended
    without a result, or asks nothing for so many seconds.
    """
    number, deadline = 1, time.monotonic() + wait_s
    most = owner.offer.terms.most_rounds
    stale = (folder / DONE).exists()  # of an earlier evaluation, until the next one begins
    while stale or not (folder / DONE).exists():
        stale = stale and (folder / DONE).exists()
        request = request_path(folder, number)
        if request.exists():
            if number > most:
                raise EngineError(f"{request.name} is one more than the plan's {most} refreshes; it is not answered")
            owner.answer(request, answer_path(folder, number))
            tell(number)
            number, deadline = number + 1, time.monotonic() + wait_s
        elif time.monotonic() > deadline:
            raise EngineError(f"nothing was asked in {folder} within {wait_s:g} s; is secureattn evaluate on?")
        else:
            time.sleep(_LOOK_S)
    if (folder / DONE).read_text().strip() != "done":
        raise EngineError("the evaluator ended without a result; it says why")
    return number - 1
