"""Slots that small queries of one client under one key set share: who asks for some gets the next ones that are free.

Queries of other keys never meet: a ciphertext is under one key. Nothing here outlives the process: a place that is not
used in time, or before a restart, is gone, and its client asks for another.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

_KEPT_S = 600.0  # for those who were slow to fill a place


@dataclass
class Group:
    """Places in one set of ciphertexts: ``used`` slots of it are given, to be filled until ``until``."""

    client: str
    keys: str
    until: float
    used: int = 0
    places: dict[int, int] = field(default_factory=dict)
    begun: bool = False


@dataclass(frozen=True)
class Place:
    """``samples`` slots from ``offset`` on, of a group."""

    group: str
    offset: int
    samples: int


class Places:
    """Groups by id, of ``slots`` each, that are open for ``open_s`` seconds after the first place is given."""

    def __init__(self, slots: int, open_s: float) -> None:
        self.slots = slots
        self._open_s = open_s
        self._groups: dict[str, Group] = {}

    def give(self, client: str, keys: str, samples: int) -> Place:
        """The next free slots, of a group that is open or of a new one."""
        now = time.monotonic()
        name = next((name for name, group in self._groups.items() if self._fits(group, client, keys, samples, now)), "")
        if not name:
            self._forget(now)
            name = uuid.uuid4().hex
            self._groups[name] = Group(client, keys, now + self._open_s)
        group = self._groups[name]
        place = Place(name, group.used, samples)
        group.places[place.offset] = samples
        group.used += samples
        return place

    def holds(self, client: str, keys: str, place: Place) -> bool:
        """Whether a place was given to a client for these keys, and may still be filled."""
        group = self._groups.get(place.group)
        return (
            group is not None
            and not group.begun
            and (group.client, group.keys) == (client, keys)
            and group.places.get(place.offset) == place.samples
        )

    def waits_s(self, name: str, filled: int) -> float:
        """Seconds for which a group may still grow; none where all its slots are ``filled``, or nobody knows it."""
        group = self._groups.get(name)
        if group is None or filled >= self.slots:
            return 0.0
        return max(0.0, group.until - time.monotonic())

    def begin(self, name: str) -> None:
        """Who has not filled a place of this group has lost it."""
        if group := self._groups.get(name):
            group.begun = True

    def _fits(self, group: Group, client: str, keys: str, samples: int, now: float) -> bool:
        """Whether a group is open to these keys and has room."""
        same, room = (group.client, group.keys) == (client, keys), self.slots - group.used >= samples
        return same and room and not group.begun and now < group.until

    def _forget(self, now: float) -> None:
        old = [name for name, group in self._groups.items() if now > group.until + _KEPT_S]
        for name in old:
            del self._groups[name]
