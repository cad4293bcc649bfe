"""What a machine's primitives cost: counted on a run, modelled on a plan, which notes the memory they take as well."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from secureattn.backends.ckks.cipher import Cipher
from secureattn.backends.ckks.loops import Loops
from secureattn.backends.ckks.pools import Held


class Counting(Loops):
    """Ciphertexts made, and primitives run on a device."""

    def made(self, level: int, scale: float, size: int = 2, data: Any = None) -> Cipher:
        """A new ciphertext; a planner notes the memory it takes."""
        if self.pools is not None:
            data = Held(self.pools, 16 * self.slots * (level + 1) * size)
        return Cipher(level, scale, size, data)

    def _like(self, a: Cipher, data: Any) -> Cipher:
        return self.made(a.level, a.scale, a.size, data)

    def _run(self, name: str, level: int, compute: Callable[[], Any], costs: float = 1.0) -> Any:
        """Run a primitive; one that ``costs`` more or less than those it is counted with is modelled so."""
        if self.recorder.modelled:
            return self.count(name, level, seconds=costs * self.modelled(name, level))
        start = time.perf_counter()
        result = compute()
        self.recorder.primitive(name, seconds=time.perf_counter() - start)
        return result

    def count(self, name: str, level: int, times: int = 1, *, seconds: float | None = None) -> None:
        """Count without measuring; on a modelled recorder at the modelled cost, or the one given."""
        if self.demand is None:
            self.recorder.primitive(name, times=times)
            return
        spent = self.modelled(name, level, times) if seconds is None else seconds
        self.demand.spend(self.place.path, name, level, spent)
        self.recorder.primitive(name, times=times, seconds=spent)

    def modelled(self, name: str, level: int, times: int = 1) -> float:
        """Modelled seconds of primitives at a level."""
        return times * self.costs.primitive_s(name, self.parameters.ring_degree, level + 1)

    def _spent(self, name: str, start: float) -> None:
        self.recorder.primitive(name, times=0, seconds=time.perf_counter() - start)

    def _reads(self, *operands: Cipher) -> None:
        if self.demand is not None:
            for a in operands:
                self.uses(a, a.level)
