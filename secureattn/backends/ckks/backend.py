"""The CKKS engine in the batch layout: the evaluator's side of a run for as many queries as ciphertexts hold."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks.batch import BatchTensor
from secureattn.backends.ckks.cipher import Cipher
from secureattn.backends.ckks.elementwise import as_parts
from secureattn.backends.ckks.evaluating import Evaluating, Refresher
from secureattn.backends.ckks.machine import Machine
from secureattn.errors import InputError, PlanError
from secureattn.tensor import Public


class CkksBackend(Evaluating):
    """Runs a program on ciphertexts in the batch layout.

    ``tokens`` S is padded to a power of two T; ``batch`` = N/2/T queries share every ciphertext. ``schedule`` names the
    refresh points that are used; ``refresher`` serves them.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        tokens: int,
        schedule: Collection[str] = (),
        refresher: Refresher | None = None,
    ) -> None:
        super().__init__(machine, schedule, refresher)
        self.sequence = tokens
        self.tokens = 1 << max(0, tokens - 1).bit_length()
        slots = machine.parameters.slots
        if self.tokens > slots:
            raise PlanError(
                f"{tokens} tokens need a ring with {2 * self.tokens} coefficients, this one has {2 * slots}"
            )
        self.batch = slots // self.tokens

    @property
    def padded(self) -> bool:
        """Whether there are tokens that no query has."""
        return self.tokens != self.sequence

    def weight(self, array: Any) -> npt.NDArray[np.float64]:
        """A parameter, in the clear at the evaluator."""
        return np.asarray(array, dtype=np.float64)

    def matrix(self, array: Any) -> npt.NDArray[np.float64]:
        """The same."""
        return self.weight(array)

    def tensor(self, ciphers: Sequence[Cipher], shape: tuple[int, ...]) -> BatchTensor:
        """Encrypted input ``[B,S,F]``, one ciphertext per feature: where a program begins."""
        return BatchTensor(self, as_parts(self.begin(ciphers), (1, len(ciphers))), shape)

    def constant(self, column: npt.NDArray[np.float64]) -> bool:
        """Whether a part's public values are one number. What is given for each query is not, whatever it is: cost
        must not depend on it.
        """
        return len(column) < self.tokens * self.batch and bool(np.ptp(column) == 0)

    # ---- layout ---------------------------------------------------------------------------------------------

    def token_slots(self, column: npt.NDArray[np.float64], *, padding: float | None = None) -> npt.NDArray[np.float64]:
        """Slots that hold ``column[token]`` for every query; padded tokens hold ``padding``, or the last token's value.
        A column of all slots is what it is.

        A padded token is a copy of the last one, from the input on: whatever else it held would leave the domains that
        approximations were made for, and a ciphertext where one slot overflows is lost as a whole.
        """
        if len(column) == self.tokens * self.batch:
            return column
        padded = np.full(self.tokens, column[-1] if padding is None else padding)
        padded[: len(column)] = column
        return np.repeat(padded, self.batch)

    def columns(self, value: Public, shape: tuple[int, ...], *, diagonals: bool) -> npt.NDArray[np.float64]:
        """A public value by part: ``[H or 1, features or offsets, tokens or 1]``, or all slots of each part,
        where it has values for each query (with a first axis of 1 it has not).
        """
        array = np.asarray(value, dtype=np.float64)
        if array.ndim == 0:
            return array.reshape(1, 1, 1)
        queries = shape[0] if array.ndim == len(shape) and array.shape[0] > 1 else 1
        try:
            fitted = np.broadcast_to(array, (queries, *shape[1:]))
        except ValueError:
            raise InputError(f"a public value of shape {list(array.shape)} does not fit {list(shape)}") from None
        by_head = fitted if fitted.ndim == 4 else fitted[:, None]
        if not by_head.strides[1]:
            by_head = by_head[:, :1]  # one for all heads
        if diagonals and shape[-1] > 1:
            by_head = self._by_offset(by_head)
        by_part = by_head.transpose(1, 3, 2, 0)
        return by_part[..., 0] if queries == 1 else self._for_each(by_part)

    def _by_offset(self, array: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """``[Q,H,S,S]`` → ``[Q,H,T,T]``: entry (q, h, t, r) is the value at query t and key t+r mod T, 0 at padded
        keys.
        """
        s, t = array.shape[-1], np.arange(self.tokens)
        square = np.zeros((*array.shape[:2], self.tokens, self.tokens))
        square[:, :, :s, :s], square[:, :, s:, :s] = array, array[:, :, -1:]
        turned: npt.NDArray[np.float64] = square[:, :, t[:, None], (t[:, None] + t) % self.tokens]
        return turned

    def _for_each(self, by_part: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """``[H,F,tokens,Q]`` → all slots ``[H,F,T·B]``; as ``pack`` does, tokens repeat the last, queries the first."""
        heads, features, tokens, queries = by_part.shape
        t, q = np.arange(self.tokens), np.arange(self.batch)
        rows = by_part[:, :, np.minimum(t, tokens - 1)]
        slots = rows[..., np.where(q < queries, q, 0)]
        return slots.reshape(heads, features, -1)

    def results(self, output: BatchTensor) -> list[Cipher]:
        """What leaves the evaluator as a result, under fresh randomness: every part of ``[B,S,C]``, T parts of
        ``[B,1,C]`` in a ciphertext.

        A value that is the same at every token is a polynomial of X^T, as rotations by tokens leave it alone; so T of
        them fit between each other's coefficients, ``Σ_k X^k·part_k``. ``KeyOwner.decrypt_interleaved`` takes them
        apart.
        """
        machine, parts = self.machine, list(output.parts.flat)
        together = self.tokens if output.shape[-2] == 1 else 1
        with self.recorder.op("rerandomise"):
            groups = [parts[i : i + together] for i in range(0, len(parts), together)]
            return machine.map(lambda group: machine.rerandomised(self._interleaved(group)), groups)

    def _interleaved(self, ciphers: Sequence[Cipher]) -> Cipher:
        machine = self.machine
        level = machine.place.start(min(a.level for a in ciphers), 0)
        return functools.reduce(
            machine.add, [machine.shifted(machine.dropped(a, level), k) for k, a in enumerate(ciphers)]
        )
