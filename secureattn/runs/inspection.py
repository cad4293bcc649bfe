"""Error in bits, operation by operation: the key owner opens what an encrypted run computes, beside a clear run.

A debugging aid. A run that is inspected is not private.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from secureattn.backends.ckks.cipher import Device
from secureattn.backends.ckks.keys import KeyOwner
from secureattn.backends.ckks.reading import expected_slots
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.events import Recorder
from secureattn.nn.encoder import Encoder
from secureattn.plan import Plan
from secureattn.runs.result import Array

SAMPLED = 16
"""Ciphertexts of a value that are decrypted, spread over it."""

RESULT = "result"
"""Where the two runs meet last: the site of the class scores."""

WARNING = (
    f"this run was NOT private: the key owner decrypted intermediate values (up to {SAMPLED} ciphertexts of each) to "
    "compare them with a run in the clear; the times hold that work; use it on test data only"
)


class Inspector:
    """Compares a program's values at every site that both runs show (``Tensor.observe`` and ``Tensor.refresh``).

    The error belongs to the operation that ended last before; of several, the worst counts:
    ``error_bits = −log2 max |encrypted − clear|``.
    """

    def __init__(self, plan: Plan, owner: KeyOwner, device: Device, recorder: Recorder) -> None:
        self._plan = plan
        self._owner = owner
        self._device: Any = device
        self._recorder = recorder
        self._clear: dict[str, deque[Array]] = {}

    def expect(self, inputs: Array, lengths: Sequence[int] | None = None) -> None:
        """Run the same program in the clear, on the inputs that are encrypted next."""
        self._clear = clear_values(self._plan, inputs, lengths)

    def __call__(self, site: str, x: Any) -> None:
        """See an encrypted value: ``x`` at ``region/site``."""
        event, value = self._recorder.last, self._clear[site].popleft()
        if event is None:
            return
        with self._recorder.phase("decrypt"), self._recorder.op("inspect"):
            error = max(self._error(x, int(part), value) for part in _spread(x.parts.size))
        self._recorder.last = event  # the work just done is not the program's
        bits = -math.log2(error) if error else math.inf
        event.error_bits = bits if event.error_bits is None else min(event.error_bits, bits)

    def _error(self, x: Any, part: int, value: Array) -> float:
        blob = self._device.save(x.parts.flat[part].data)
        return float(np.nanmax(np.abs(self._owner.decrypt(blob) - expected_slots(x, part, value)), initial=0.0))


def clear_values(plan: Plan, inputs: Array, lengths: Sequence[int] | None = None) -> dict[str, deque[Array]]:
    """What a clear run of the plan's program shows: site → its values ``[B,…]``, in order."""
    seen: dict[str, deque[Array]] = defaultdict(deque)
    backend = PlaintextBackend()
    backend.observers.append(lambda site, value: seen[site].append(value.numpy()))
    with torch.no_grad():
        network = Encoder(plan.folded(), backend, blocks=plan.ckks.blocks if plan.ckks else 1)
        backend.observe(RESULT, network(backend.input(inputs), lengths))
    return seen


def _spread(size: int) -> list[int]:
    """Up to SAMPLED numbers below size, the ends among them."""
    return sorted({round(i) for i in np.linspace(0, size - 1, min(size, SAMPLED))})
