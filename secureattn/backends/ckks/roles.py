"""The two sides of an encrypted run: what the client packs and unpacks, and the exchange of a masked refresh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks.cipher import Cipher, NullDevice
from secureattn.backends.ckks.machine import Machine
from secureattn.backends.ckks.units import Path
from secureattn.backends.ckks.wire import fresh_bytes, stored_bytes

Array = npt.NDArray[np.float64]
Answer = Callable[[Sequence[bytes], Sequence[int]], list[bytes]]
"""The key owner's half of a refresh: masked ciphertexts and the levels wanted in, fresh ones back."""


def pack(inputs: Array, tokens: int, batch: int) -> list[Array]:
    """``[B,S,F]`` → one slot vector per feature, slot = token·batch + query.

    Queries that are missing repeat the first one, tokens the last: zeros would be data no model was calibrated on.
    """
    b, s, f = inputs.shape
    queries = np.concatenate([inputs, np.repeat(inputs[:1], batch - b, axis=0)])
    padded = np.concatenate([queries, np.repeat(queries[:, -1:], tokens - s, axis=1)], axis=1)
    return [np.ascontiguousarray(padded[:, :, i].T.reshape(-1)) for i in range(f)]


def unpack(slots: Sequence[Array], shape: tuple[int, ...], batch: int) -> Array:
    """Slot vectors, one per feature, → ``[B,S,F]``."""
    b, s, _ = shape
    return np.stack([column.reshape(-1, batch)[:s, :b].T for column in slots], axis=-1)


class MaskedRefresh:
    """The evaluator's half of a refresh: mask each ciphertext, one round to the key owner, take the masks off."""

    def __init__(self, machine: Machine, answer: Answer | None) -> None:
        self.machine = machine
        self.answer = answer

    def __call__(self, ciphers: Sequence[Cipher]) -> list[Cipher]:
        """Fresh ciphertexts of the same values at the same scales, each on the level it is needed at."""
        machine, parameters = self.machine, self.machine.parameters
        recorder = machine.recorder
        recorder.primitive("rounds")
        if isinstance(machine.device, NullDevice):
            fresh = machine.map(self._modelled, ciphers, exchanges=3)  # masks go on, are answered, and come off
            sent = len(ciphers) * stored_bytes(parameters, level=1) + sum(
                fresh_bytes(parameters, c.level) for c in fresh
            )
            recorder.primitive("bytes_sent", times=sent)
            if machine.pools is not None:
                kept = sent + 32 * machine.slots * len(ciphers)  # messages, and the masks to take off again
                machine.pools.messages = max(machine.pools.messages, kept)
            return fresh
        device: Any = machine.device
        loop = machine.place.begin()
        levels = [self._level((*loop, i)) for i in range(len(ciphers))]
        for level in levels:
            machine.count("refreshes", level)
        mine = machine.portion(loop, len(ciphers))  # who masks a ciphertext takes its mask off, and shows it to nobody
        masks = {at: device.draw_mask(ciphers[at].scale, levels[at]) for at in mine}
        masked = [device.mask(ciphers[at].data, masks[at]) for at in mine]
        serve = functools.partial(self._served, levels=levels)
        fresh_ones = machine.team.through_leader(masked, serve) if machine.team else serve(masked)
        answers = dict(zip(mine, fresh_ones, strict=True))

        def unmask(at: int) -> Cipher:
            return Cipher(levels[at], ciphers[at].scale, 2, device.unmask(answers[at], masks[at]))

        return machine.over(loop, unmask, range(len(ciphers)), once=True)

    def _served(self, masked: list[bytes], levels: Sequence[int]) -> list[bytes]:
        assert self.answer is not None
        answers = self.answer(masked, levels)
        self.machine.recorder.primitive("bytes_sent", times=sum(map(len, masked)) + sum(map(len, answers)))
        return answers

    def _modelled(self, a: Cipher) -> Cipher:
        machine = self.machine
        machine.uses(a, 1, user=())  # whatever level it comes back on
        level = self._level(machine.place.path)
        machine.count("refreshes", level)
        return machine.made(level, a.scale)

    def _level(self, path: Path) -> int:
        """A unit that comes out of a refresh lies where it is needed, but above level 0."""
        return max(1, self.machine.place.ceilings.get(path, self.machine.parameters.levels))
