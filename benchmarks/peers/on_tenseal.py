"""An encoder on the layers of TenSEAL's CKKSTensor or CKKSVector as pip gives them: one process, as many threads as
TenSEAL takes.

Refreshes decrypt and encrypt anew, unmasked and within the process, which favours the peer. Bytes are the size of one
serialised ciphertext of a tensor times their number, for the queries, both ways of every refresh, and the result.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import case
import tenseal as ts
import tenseal_batch
import tenseal_vectors
from processes import peak_bytes
from tenseal_program import REFRESH, program

TENSORS: Mapping[str, ModuleType] = {"CKKSTensor": tenseal_batch, "CKKSVector": tenseal_vectors}
"""TenSEAL's types and what a run asks of each."""


def main() -> None:
    """Keys and a whole run so often; keys are part of the total only."""
    told, arrays = case.read()
    folded = model(told, arrays)
    turns, output = [], arrays["x"]
    for _ in range(told.turns):
        measured, output = once(told, folded, arrays["x"])
        turns.append({**measured, "peak_bytes": peak_bytes(os.getpid())})
    case.answer(turns, output, ["tenseal"])


def model(told: SimpleNamespace, arrays: dict[str, case.Array]) -> SimpleNamespace:
    """Folded weights and polynomials as ``program`` reads them."""

    def linear(name: str) -> SimpleNamespace:
        return SimpleNamespace(weight=arrays[f"{name}.weight"], bias=arrays[f"{name}.bias"])

    functions = {
        site: SimpleNamespace(
            polynomial=SimpleNamespace(coefficients=arrays[f"{site}.coefficients"], slope=slope, shift=shift)
        )
        for site, (slope, shift) in told.maps.items()
    }
    parts = {name: linear(name) for name in ("qkv", "output", "ffn_in", "ffn_out")}
    layer = SimpleNamespace(**parts, functions=functions, attention_epsilon=told.attention_epsilon)
    return SimpleNamespace(config=told, embed=linear("embed"), layers=(layer,), head=linear("head"))


def once(told: SimpleNamespace, folded: SimpleNamespace, inputs: case.Array) -> tuple[dict[str, Any], case.Array]:
    """A run on inputs ``[B,S,F]`` and its scores ``[B,1,C]``; the seconds that weighing takes are left out."""
    tensor = TENSORS[told.tensor]
    ways = tensor.ways(told.width, told.head_width)
    sent, rounds, weighing_s = 0, 0, 0.0

    def weigh(*tensors: Any) -> None:
        nonlocal sent, weighing_s
        start = time.perf_counter()
        if told.counted:
            sent += sum(map(tensor.serialised_bytes, tensors))
        weighing_s += time.perf_counter() - start

    def step(name: str, kind: Any, *inputs: Any) -> Any:
        nonlocal rounds
        result = ways.get(kind, kind.apply)(*inputs)
        if kind is REFRESH:
            rounds += 1
            weigh(inputs[0], result)
        return result

    start = time.perf_counter()
    context = ts.context(ts.SCHEME_TYPE.CKKS, told.ring_degree, coeff_mod_bit_sizes=told.prime_bits)
    context.global_scale = 2.0**told.scale_bits
    if tensor.ROTATES:
        context.generate_galois_keys()
    keys_s = time.perf_counter() - start
    start = time.perf_counter()
    x = tensor.encrypt(context, inputs)
    scores = program(step, folded, x)
    output = tensor.decrypt(scores)
    online_s = time.perf_counter() - start - weighing_s
    weigh(x, scores)
    counts = {"rounds": rounds + 1, "bytes_sent": [sent] if told.counted else None}
    return {"total_s": keys_s + online_s, "online_s": online_s, **counts}, output


if __name__ == "__main__":
    main()
