"""The connections of one process: to every other, over TCP or TLS over it.

Sockets and not torch's gloo: its messages wait for the receiver to ask for them, which makes every round a whole round
trip, where here both sides send at once and it takes half of one; and it neither encrypts nor asks who is at the other
end. Each message is preceded by eight bytes with its length, so that processes that are out of step notice; what is
counted leaves them out, and TLS's records.
"""

from __future__ import annotations

import select
import struct
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, MutableSequence
from contextlib import contextmanager
from typing import Any

import torch

from secureattn.backends.crypten.joining import Link, join
from secureattn.backends.crypten.links import LinkLost, Links
from secureattn.backends.crypten.parameters import MpcParameters

_CHUNK = 1 << 20
_LENGTH = struct.Struct("!Q")
_MOST_ON_THE_WAY = 1 << 27  # bytes


class Mesh:
    """This process's connections, by rank. ``waiting[rank]`` is 1 during an exchange, so whoever watches can tell who
    keeps the others waiting.
    """

    def __init__(self, rank: int, connections: Mapping[int, Link], waiting: MutableSequence[int] | None = None) -> None:
        self.rank = rank
        self._connections = connections
        self._waiting = waiting
        self._mail: dict[int, _Mail] = {}

    @classmethod
    def connect(
        cls,
        store: Any,
        *,
        rank: int,
        size: int,
        host: str = "127.0.0.1",
        wait_s: float = 60.0,
        waiting: MutableSequence[int] | None = None,
        links: Links | None = None,
    ) -> Mesh:
        """Connect to all other processes, who meet at ``store``; see ``joining.join``. Plain without ``links``."""
        links = links or Links(rank, [f"process {other}" for other in range(size)])
        return cls(rank, join(store, links, host=host, wait_s=wait_s), waiting)

    def exchange(self, own: torch.Tensor, others: Iterable[int]) -> Iterator[torch.Tensor]:
        """Send a tensor to each of the others, and what each sends meanwhile, of the same shape and type."""
        others = list(others)
        found = {other: torch.empty(own.shape, dtype=own.dtype) for other in others}
        with self._exchanging():
            self._move({other: own for other in others}, found)
        return iter([found[other] for other in others])

    def send(self, tensor: torch.Tensor, to: int) -> None:
        """Send a tensor to one other, who has to be receiving it."""
        with self._exchanging():
            self._move({to: tensor}, {})

    def receive(self, like: torch.Tensor, source: int) -> torch.Tensor:
        """A tensor of the shape and type of ``like`` that one other sends."""
        found = torch.empty(like.shape, dtype=like.dtype)
        with self._exchanging():
            self._move({}, {source: found})
        return found

    def deliver(self, tensor: torch.Tensor, to: int) -> None:
        """Send without waiting, unless much is on its way already; ``delivered`` waits for all of it."""
        if to not in self._mail:
            self._mail[to] = _Mail(self, to)
        with self._exchanging():
            self._mail[to].put(tensor)

    def delivered(self) -> None:
        """Wait until all has been sent."""
        with self._exchanging():
            for mail in self._mail.values():
                mail.empty()

    def barrier(self, others: Iterable[int]) -> None:
        """Wait until the others are here too."""
        for _ in self.exchange(torch.zeros(1, dtype=torch.uint8), others):
            pass

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.close()

    @contextmanager
    def _exchanging(self) -> Iterator[None]:
        if self._waiting is not None:
            self._waiting[self.rank] = 1
        try:
            yield
        except OSError as failure:
            raise LinkLost(f"the connection to the other processes was lost: {failure}") from failure
        if self._waiting is not None:
            self._waiting[self.rank] = 0

    def _move(self, sent: dict[int, torch.Tensor], found: dict[int, torch.Tensor]) -> None:
        """Send and receive at once, until all is through."""
        moving: list[_Moving] = [_Leaving(self._connections[other], other, tensor) for other, tensor in sent.items()]
        moving += [_Arriving(self._connections[other], other, tensor) for other, tensor in found.items()]
        while moving := [one for one in moving if not one.advance()]:
            events: dict[Link, int] = {}
            for one in moving:
                events[one.link] = events.get(one.link, 0) | one.event
            poll = select.poll()
            for link, event in events.items():
                poll.register(link, event)
            poll.poll()


class _Moving(ABC):
    """A message on its way over one connection: its length, then its octets."""

    event: int

    def __init__(self, link: Link, other: int, tensor: torch.Tensor) -> None:
        self.link = link
        self.other = other
        self.size = _size(tensor)
        self.header = bytearray(_LENGTH.pack(self.size))
        self.left = deque([memoryview(self.header), _octets(tensor)])

    def advance(self) -> bool:
        """Move what moves without waiting; whether all is through."""
        while self.left:
            if not len(self.left[0]):
                self.left.popleft()
                self.passed()
                continue
            try:
                done = self.step(self.left[0])
            except BlockingIOError:
                return False
            self.left[0] = self.left[0][done:]
        return True

    @abstractmethod
    def step(self, part: memoryview) -> int:
        """Move some of a part; how many octets went."""

    def passed(self) -> None:  # noqa: B027 - nothing to do on the way out
        """The length is through, or everything."""


class _Leaving(_Moving):
    event = select.POLLOUT

    def step(self, part: memoryview) -> int:
        return self.link.send(part[:_CHUNK])


class _Arriving(_Moving):
    event = select.POLLIN

    def step(self, part: memoryview) -> int:
        count = self.link.receive(part)
        if not count:
            raise ConnectionResetError(f"process {self.other} has gone")
        return count

    def passed(self) -> None:
        (length,) = _LENGTH.unpack(self.header)
        if length != self.size:
            raise LinkLost(f"process {self.other} sent {length} bytes where {self.size} were expected: out of step")


class _Mail:
    """What is to be sent to one other process, by a thread of its own."""

    def __init__(self, mesh: Mesh, to: int) -> None:
        self._mesh = mesh
        self._to = to
        self._changed = threading.Condition()
        self._waiting: deque[torch.Tensor] = deque()
        self._failure: OSError | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, tensor: torch.Tensor) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failure or sum(map(_size, self._waiting)) < _MOST_ON_THE_WAY)
            self._check()
            self._waiting.append(tensor)
            self._changed.notify_all()

    def empty(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failure or not self._waiting)
            self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting))
                tensor = self._waiting[0]
            try:
                self._mesh._move({self._to: tensor}, {})
            except OSError as failure:
                self._failure = failure
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()
                if self._failure is not None:
                    return


def world_size(parameters: MpcParameters) -> int:
    """Processes in all: the parties, and the dealer where it has its own."""
    return parameters.parties + (parameters.dealer == "ttp")


def _octets(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
