"""What a CKKS evaluator is in any layout: it holds public keys and model weights, never a secret key."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from secureattn.backends.ckks.cipher import Cipher, OutOfLevels
from secureattn.backends.ckks.machine import Machine
from secureattn.errors import PlanError
from secureattn.tensor import Capability, Tensor


class Refresher(Protocol):
    """The way to the key owner: masked ciphertexts out, fresh ones back."""

    def __call__(self, ciphers: Sequence[Cipher]) -> list[Cipher]: ...


class Evaluating:
    """Regions, results and refresh points. ``schedule`` names the points that are used, ``refresher`` serves them;
    ``refresh_points`` counts the ciphertexts that pass each.
    """

    name = "ckks"
    capabilities: frozenset[Capability] = frozenset()

    def __init__(self, machine: Machine, schedule: Collection[str], refresher: Refresher | None) -> None:
        self.machine = machine
        self.recorder = machine.recorder
        self.schedule = schedule
        self.refresher = refresher
        self.refresh_points: dict[str, int] = {}
        self.observers: list[Callable[[str, Tensor], None]] = []

    def begin(self, ciphers: Sequence[Cipher]) -> list[Cipher]:
        """Encrypted input, no higher than needed: where a program begins."""
        self.machine.place.restart()
        self.refresh_points.clear()
        return self.machine.map(self.machine.lowered, ciphers)

    def region(self, name: str) -> AbstractContextManager[None]:
        """Name the part of the network that runs inside."""
        return self.recorder.region(name)

    def observe(self, site: str, x: Tensor) -> None:
        """Pass the encrypted value on under ``region/site``, to whoever measures errors; as a rule there is nobody."""
        for observer in self.observers if self.machine.leads else ():
            observer(f"{self.recorder.path}/{site}", x)

    def rerandomised(self, parts: Sequence[Cipher]) -> list[Cipher]:
        """Ciphertexts that leave the evaluator, under fresh randomness."""
        machine = self.machine
        with self.recorder.op("rerandomise"):
            return machine.map(lambda part: machine.rerandomised(machine.lowered(part)), parts)

    def refresh(self, site: str, parts: Any) -> list[Cipher] | None:
        """Serve a refresh point: every part goes to the key owner in one round; None where the schedule lacks it."""
        path = f"{self.recorder.path}/{site}"
        self.refresh_points[path] = self.refresh_points.get(path, 0) + parts.size  # a point may be passed repeatedly
        if path not in self.schedule:
            return None
        if self.refresher is None:
            raise PlanError(f'the plan refreshes at {path}, but the protocol forbids it; set refresh = "client"')
        lowest = min(part.level for part in parts.flat)
        if lowest < 1:
            raise OutOfLevels("a refresh", 1, lowest, path)
        with self.recorder.phase("refresh"), self.recorder.op("refresh"):
            fresh = self.refresher(list(parts.flat))
            self.recorder.levels(lowest, fresh[0].level)
        return fresh
