"""The CKKS engine: the evaluator's side of a run. It holds public keys and model weights, never a secret key."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks.batch import BatchTensor
from secureattn.backends.ckks.cipher import Cipher, OutOfLevels
from secureattn.backends.ckks.elementwise import Parts, as_parts
from secureattn.backends.ckks.machine import Machine
from secureattn.errors import InputError, PlanError
from secureattn.tensor import Capability, Public, Tensor


class Refresher(Protocol):
    """The way to the key owner: masked ciphertexts out, fresh ones back."""

    def __call__(self, ciphers: Sequence[Cipher]) -> list[Cipher]: ...


class CkksBackend:
    """Runs a program on ciphertexts in the batch layout.

    ``tokens`` S is padded to a power of two T; ``batch`` = N/2/T queries share every ciphertext. ``schedule`` names the
    refresh points that are used; ``refresher`` serves them.
    """

    name = "ckks"
    capabilities: frozenset[Capability] = frozenset()

    def __init__(
        self,
        machine: Machine,
        *,
        tokens: int,
        schedule: Collection[str] = (),
        refresher: Refresher | None = None,
    ) -> None:
        self.machine = machine
        self.recorder = machine.recorder
        self.sequence = tokens
        self.tokens = 1 << max(0, tokens - 1).bit_length()
        slots = machine.parameters.slots
        if self.tokens > slots:
            raise PlanError(
                f"{tokens} tokens need a ring with {2 * self.tokens} coefficients, this one has {2 * slots}"
            )
        self.batch = slots // self.tokens
        self.schedule = schedule
        self.refresher = refresher
        self.refresh_points: dict[str, int] = {}

    @property
    def padded(self) -> bool:
        """Whether there are tokens that no query has."""
        return self.tokens != self.sequence

    def weight(self, array: Any) -> npt.NDArray[np.float64]:
        """A parameter, in the clear at the evaluator."""
        return np.asarray(array, dtype=np.float64)

    def tensor(self, ciphers: Sequence[Cipher], shape: tuple[int, ...]) -> BatchTensor:
        """Encrypted input ``[B,S,F]``, one ciphertext per feature: where a program begins."""
        self.machine.place.restart()
        self.refresh_points.clear()
        fresh = self.machine.map(self.machine.lowered, ciphers)
        return BatchTensor(self, as_parts(fresh, (1, len(fresh))), shape)

    def region(self, name: str) -> AbstractContextManager[None]:
        """Name the part of the network that runs inside."""
        return self.recorder.region(name)

    def observe(self, site: str, x: Tensor) -> None:
        """Nothing to see: values are encrypted."""

    # ---- layout ---------------------------------------------------------------------------------------------

    def token_slots(self, column: npt.NDArray[np.float64], *, padding: float | None = None) -> npt.NDArray[np.float64]:
        """Slots that hold ``column[token]`` for every query; padded tokens hold ``padding``, or the last token's value.

        A padded token is a copy of the last one, from the input on: whatever else it held would leave the domains that
        approximations were made for, and a ciphertext where one slot overflows is lost as a whole.
        """
        padded = np.full(self.tokens, column[-1] if padding is None else padding)
        padded[: len(column)] = column
        return np.repeat(padded, self.batch)

    def columns(self, value: Public, shape: tuple[int, ...], *, diagonals: bool) -> npt.NDArray[np.float64]:
        """A public value by part: ``[H or 1, features or offsets, tokens or 1]``."""
        array = np.asarray(value, dtype=np.float64)
        if array.ndim == 0:
            return array.reshape(1, 1, 1)
        try:
            array = np.broadcast_to(array, (1, *shape[1:]))
        except ValueError:
            raise InputError(
                f"a public value of shape {list(array.shape)} does not fit {list(shape)}; it must be the same for "
                "every query of a batch"
            ) from None
        if diagonals and shape[-1] > 1:
            return self._by_offset(array[0])
        by_head = array.reshape((-1, *array.shape[-2:]))
        return by_head.transpose(0, 2, 1)

    def _by_offset(self, array: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """``[H,S,S]`` → ``[H,T,T]``: entry (h, r, t) is the value at query t and key t+r mod T, 0 at padded keys."""
        heads, s, _ = array.shape
        square = np.zeros((heads, self.tokens, self.tokens))
        square[:, :s, :s], square[:, s:, :s] = array, array[:, -1:]
        t = np.arange(self.tokens)
        return np.stack([square[:, t, (t + r) % self.tokens] for r in range(self.tokens)], axis=1)

    def rerandomised(self, output: BatchTensor) -> list[Cipher]:
        """What leaves the evaluator as a result: every part under fresh randomness."""
        with self.recorder.op("rerandomise"):
            machine = self.machine
            return machine.map(lambda part: machine.rerandomised(machine.lowered(part)), output.parts.flat)

    # ---- refresh --------------------------------------------------------------------------------------------

    def refresh(self, site: str, x: BatchTensor) -> Parts | None:
        """Serve a refresh point: every part goes to the key owner in one round; None where the schedule lacks it."""
        path = f"{self.recorder.path}/{site}"
        self.refresh_points[path] = self.refresh_points.get(path, 0) + x.parts.size  # a point may be passed repeatedly
        if path not in self.schedule:
            return None
        if self.refresher is None:
            raise PlanError(f'the plan refreshes at {path}, but the protocol forbids it; set refresh = "client"')
        if x.level < 1:
            raise OutOfLevels("a refresh", 1, x.level, path)
        with self.recorder.phase("refresh"), self.recorder.op("refresh"):
            fresh = self.refresher(list(x.parts.flat))
            self.recorder.levels(x.level, fresh[0].level)
        return as_parts(fresh, x.parts.shape)
