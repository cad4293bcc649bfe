"""Jobs of one client side by side: as many at once as there is room for, one progress of all, one failure ends all."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from secureattn.errors import EngineError
from secureattn.runs.result import Progress

Made = TypeVar("Made")
_MOST = 64
"""At once: each is a thread here, and a connection that waits."""
_LOOK_S = 5.0  # until it is asked again how much room there is


class GivenUp(EngineError):
    """Another job has failed, so nobody wants this one any longer."""


class Together:
    """What ``count`` jobs have in common. ``over`` is set where one has failed; ``tell`` hears of all of them as one,
    or of the only one as it is.
    """

    def __init__(self, count: int, tell: Progress) -> None:
        self.count = count
        self.over = threading.Event()
        self._tell = tell
        self._lock = threading.Lock()
        self._done = 0
        self._there: dict[int, float] = {}  # jobs that the server has → the share of them that is done

    def told(self, number: int, text: str, done: int, of: int) -> None:
        """How far a job is that the server has."""
        if self.count == 1:
            self._tell(text, done, of)
            return
        with self._lock:
            self._there[number] = done / of if of else 0.0
            percent = round(100 * (self._done + sum(self._there.values())))
            text = f"{self._done} of {self.count} batches done, {len(self._there)} at the server"
            self._tell(text, percent, 100 * self.count)

    def ended(self, number: int) -> None:
        """A job is over."""
        with self._lock:
            self._done += 1
            self._there.pop(number, None)

    def others(self, number: int) -> bool:
        """Whether the server has others of these jobs, whose end makes room for one."""
        with self._lock:
            return any(other != number for other in self._there)


class Side:
    """A job among those beside it. ``cancel`` is called, by another thread, where one of those has failed."""

    def __init__(self, together: Together, number: int) -> None:
        self.number = number
        self.over = together.over
        self.alone = together.count == 1
        self.cancel: Callable[[], None] = lambda: None
        self._together = together

    def tell(self, text: str, done: int, of: int) -> None:
        """How far it is; the server has it."""
        self._together.told(self.number, text, done, of)

    @property
    def accompanied(self) -> bool:
        """Whether the server has others of these jobs, whose end makes room for this one."""
        return self._together.others(self.number)


def side_by_side(count: int, do: Callable[[Side], Made], *, width: Callable[[], int], tell: Progress) -> list[Made]:
    """What ``do`` makes of each job, in order, as many at once as ``width`` says, which may change. Where one fails the
    others are cancelled, and when all have ended its error is raised.
    """
    together = Together(count, tell)
    sides = [Side(together, number) for number in range(count)]
    if count == 1:
        return [do(sides[0])]
    made: dict[int, Made] = {}
    waiting, running = deque(sides), dict[Future[Made], Side]()
    with ThreadPoolExecutor(min(count, _MOST)) as threads:
        try:
            while waiting or running:
                while waiting and len(running) < max(1, min(width(), _MOST)):
                    side = waiting.popleft()
                    running[threads.submit(do, side)] = side
                for future in wait(running, _LOOK_S if waiting else None, FIRST_COMPLETED).done:
                    side = running.pop(future)
                    made[side.number] = future.result()
                    together.ended(side.number)
        except BaseException:
            together.over.set()
            for side in running.values():
                side.cancel()
            raise
    return [made[number] for number in range(count)]
