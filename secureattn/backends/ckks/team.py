"""One program run by several processes together, each of which makes a part of its results for all.

Every process runs the whole program; where it comes to work that is shared, each does its portion, puts the results
where all can see them, and goes on when all have. So nothing is copied but once, what a process has written to is its
own from then on, and there is one fork a run.
"""

from __future__ import annotations

import bisect
import contextlib
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks.processes import Child, Link, collected
from secureattn.errors import EngineError

Made = TypeVar("Made")
Words = npt.NDArray[np.uint64]
_POPULATE_READ, _POPULATE_WRITE = 22, 23  # of madvise, Linux 5.14


def together(work: Callable[[Team], Made], size: int) -> Made:
    """``work`` by this process and ``size - 1`` forks; what it returns here.

    Raises what any of them raised, of our own errors the same, others as an EngineError that names them; all forks are
    gone by then.
    """
    memory = Memory(size)
    children: list[Child] = []
    try:
        for rank in range(1, size):

            def fork(link: Link, rank: int = rank) -> None:
                work(Team(rank, size, memory, leader=link))

            children.append(Child(fork, children))
        return work(Team(0, size, memory, children=children))
    finally:
        for child in children:
            child.end()


class Team:
    """What a process knows of the others: ``rank`` of ``size``, the first of which leads."""

    def __init__(
        self, rank: int, size: int, memory: Memory, *, leader: Link | None = None, children: Sequence[Child] = ()
    ) -> None:
        self.rank = rank
        self.size = size
        self.memory = memory
        self._leader = leader
        self._children = children

    def exchange(self, note: Any) -> list[Any]:
        """What every process says here, by rank. Memory that all have given up by then is used again."""
        mine = {"note": note, "dropped": self.memory.dropped()}
        if self._leader:
            self._leader.send(mine)
            everyone, _ = self._leader.receive()
        else:
            everyone = [mine, *(note for note, _ in collected(self._children))]
            for child in self._children:
                child.send(everyone)
        for one in everyone:
            self.memory.given_up(self.rank, one["dropped"])
        return [one["note"] for one in everyone]

    def through_leader(self, blobs: Sequence[bytes], serve: Callable[[list[bytes]], list[bytes]]) -> list[bytes]:
        """Answers to this process's blobs, which ``serve`` gives at the leader to those of all, by rank."""
        if self._leader:
            self._leader.send(None, blobs)
            return self._leader.receive()[1]
        asked = [list(blobs), *(theirs for _, theirs in collected(self._children))]
        answers = iter(serve([blob for some in asked for blob in some]))
        mine, *others = [[next(answers) for _ in some] for some in asked]
        for child, some in zip(self._children, others, strict=True):
            child.send(None, some)
        return mine


class Memory:
    """Memory that forks see at the same place; each process writes to a region of its own.

    Words are put somewhere by one process and then held by all, each by an object of its own; once none is left of
    these, their place is free, which the owner hears at the next exchange.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._region = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # of addresses: nothing is taken yet
        handle = os.memfd_create("secureattn")
        try:
            os.ftruncate(handle, size * self._region)
            self._map = mmap.mmap(handle, size * self._region)
        except (OSError, ValueError) as error:
            raise EngineError(f"no memory could be shared between processes ({error}); use 1 worker") from error
        finally:
            os.close(handle)
        self._words = np.frombuffer(self._map, dtype=np.uint64)
        self._end = 0  # of what this process has used of its region, in bytes
        self._seen = [0] * size  # of what it has read of each
        self._free = Gaps()
        self._holders: dict[int, int] = {}
        self._dropped: list[tuple[int, int]] = []

    def put(self, rank: int, words: Words) -> int:
        """Where words, any shape, now lie in the region of this process."""
        at = self._free.taken(words.nbytes)
        if at is None:
            at = self._more(rank, words.nbytes)
        self._holders[at] = self.size
        self._words[at // 8 : at // 8 + words.size] = words.reshape(-1)
        return at

    def words(self, at: int, count: int) -> Words:
        """What lies there, to be held by an object that was made of it."""
        rank, begin = divmod(at, self._region)
        if begin + 8 * count > self._seen[rank]:
            self._populate(_POPULATE_READ, at, 8 * count)
            self._seen[rank] = begin + 8 * count
        return self._words[at // 8 : at // 8 + count]

    def held_by(self, thing: Any, at: int, count: int) -> None:
        """This process holds what lies there for as long as the object lives."""
        weakref.finalize(thing, self._drop, at, 8 * count).atexit = False

    def _drop(self, at: int, size: int) -> None:
        self._dropped.append((at, size))

    def dropped(self) -> list[tuple[int, int]]:
        """What this process has given up since it was asked last."""
        found, self._dropped = self._dropped, []
        return found

    def given_up(self, rank: int, places: Sequence[tuple[int, int]]) -> None:
        """Some process has given these up."""
        for at, size in places:
            if at // self._region == rank:
                self._holders[at] -= 1
                if not self._holders[at]:
                    del self._holders[at]
                    self._free.add(at, size)

    def _more(self, rank: int, size: int) -> int:
        at = rank * self._region + self._end
        self._end += size
        if self._end > self._region:
            raise EngineError("there is no more memory to share between processes; use fewer workers")
        self._populate(_POPULATE_WRITE, at, size)
        return at

    def _populate(self, how: int, at: int, size: int) -> None:
        """Make pages at once: one by one, when they are touched, takes several times as long."""
        start = at - at % mmap.PAGESIZE
        with contextlib.suppress(OSError):  # a system that cannot makes them when they are touched
            self._map.madvise(how, start, at + size - start)


class Gaps:
    """Free places, in order, neighbours joined; the lowest that is large enough is taken."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._sizes: list[int] = []

    def taken(self, size: int) -> int | None:
        """Where there is room; None where there is not."""
        for i, there in enumerate(self._sizes):
            if there >= size:
                at = self._starts[i]
                if there == size:
                    del self._starts[i], self._sizes[i]
                else:
                    self._starts[i] += size
                    self._sizes[i] -= size
                return at
        return None

    def add(self, at: int, size: int) -> None:
        """A place that is free from now on."""
        i = bisect.bisect(self._starts, at)
        if i < len(self._starts) and at + size == self._starts[i]:
            size += self._sizes[i]
            del self._starts[i], self._sizes[i]
        if i and self._starts[i - 1] + self._sizes[i - 1] == at:
            self._sizes[i - 1] += size
        else:
            self._starts.insert(i, at)
            self._sizes.insert(i, size)
