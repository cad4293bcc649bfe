"""Where a process listens: every caller has a thread of its own and a few seconds to say who it is, so that no stranger
keeps another caller waiting.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections import OrderedDict, deque
from collections.abc import Callable

from secureattn.backends.crypten.links import Links
from secureattn.backends.crypten.tls import Refused

_MOST_STRANGERS = 64  # at once; with more, who has been silent longest is sent away


class Door:
    """Listens at an address until it is closed, and gives whoever is let in to ``enter(rank, connection)``, in that
    caller's thread. ``welcome(rank)`` says why a process is not let in, or nothing.
    """

    def __init__(
        self,
        where: tuple[str, int],
        links: Links,
        enter: Callable[[int, socket.socket], None],
        *,
        token: bytes | None = None,
        welcome: Callable[[int], str] = lambda _: "",
    ) -> None:
        self._links, self._enter, self._token, self._welcome = links, enter, token, welcome
        self._server = listening(where)
        self._ending, self._ended = socket.socketpair()
        self._strangers: OrderedDict[socket.socket, socket.socket] = OrderedDict()
        self._changing = threading.Lock()
        self.refused: deque[str] = deque(maxlen=3)  # who was not let in lately, and why
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def port(self) -> int:
        """Where it is."""
        return int(self._server.getsockname()[1])

    def close(self) -> None:
        """Listen no more; who is inside stays."""
        self._ending.close()
        self._listener.join()
        with self._changing:
            for stranger in self._strangers.values():
                _hang_up(stranger)

    def _listen(self) -> None:
        with self._server, self._ended:
            while self._server in select.select([self._server, self._ended], [], [])[0]:
                with contextlib.suppress(OSError):
                    caller, address = self._server.accept()
                    self._note(caller)
                    threading.Thread(target=self._hear, args=(caller, address[0]), daemon=True).start()

    def _note(self, caller: socket.socket) -> None:
        with self._changing:
            self._strangers[caller] = caller.dup()  # TLS takes the first one over
            if len(self._strangers) > _MOST_STRANGERS:
                _hang_up(next(iter(self._strangers.values())))

    def _hear(self, caller: socket.socket, host: str) -> None:
        try:
            rank, connection = self._links.answer(caller, self._token, self._welcome)
        except (OSError, Refused) as failure:
            if (said := f"{host} was refused: {failure}") not in self.refused:
                self.refused.append(said)
            return
        finally:
            with self._changing:
                self._strangers.pop(caller).close()
        self._enter(rank, connection)


def listening(where: tuple[str, int]) -> socket.socket:
    """A socket that listens at an address, by the first of its meanings that is of this machine."""
    failure: OSError | None = None
    for family, _, _, _, address in socket.getaddrinfo(*where, type=socket.SOCK_STREAM):
        try:
            return socket.create_server(address, family=family, backlog=128)
        except OSError as tried:
            failure = failure or tried
    raise failure or OSError("no such address")


def _hang_up(stranger: socket.socket) -> None:
    """Wake the thread that listens to somebody; it closes the connection."""
    with contextlib.suppress(OSError):
        stranger.shutdown(socket.SHUT_RDWR)
