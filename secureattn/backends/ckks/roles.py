"""The two sides of an encrypted run: what the client packs and unpacks, and the exchange of a masked refresh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks.machine import Cipher, Machine, NullDevice
from secureattn.backends.ckks.wire import fresh_bytes, stored_bytes

Array = npt.NDArray[np.float64]
Answer = Callable[[list[bytes]], list[bytes]]
"""The key owner's half of a refresh: masked ciphertexts in, fresh ones out."""


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
        """Fresh ciphertexts of the same values at the same scales, on the highest level."""
        recorder, parameters = self.machine.recorder, self.machine.parameters
        sent = len(ciphers) * stored_bytes(parameters, level=1)
        back = len(ciphers) * fresh_bytes(parameters)
        recorder.primitive("rounds")
        self.machine.count("refreshes", parameters.levels, len(ciphers))
        if isinstance(self.machine.device, NullDevice):
            recorder.primitive("bytes_sent", times=sent + back)
            return [Cipher(parameters.levels, c.scale, 2, None) for c in ciphers]
        assert self.answer is not None
        device: Any = self.machine.device
        masked = [device.mask(self.machine.dropped(c, 1).data) for c in ciphers]
        blobs = [blob for blob, _ in masked]
        answers = self.answer(blobs)
        recorder.primitive("bytes_sent", times=sum(map(len, blobs)) + sum(map(len, answers)))
        fresh = [device.unmask(blob, mask) for blob, (_, mask) in zip(answers, masked, strict=True)]
        return [Cipher(parameters.levels, c.scale, 2, data) for c, data in zip(ciphers, fresh, strict=True)]
