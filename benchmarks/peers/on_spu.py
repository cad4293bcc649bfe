"""The encoder block in jax on SecretFlow-SPU: each party a process, linked by brpc over loopback, with SPU's defaults.

Weights and input are secret shares. Bytes and messages are the totals that SPU's own profile logs of its links; where
they are counted nothing is timed. SPU has no offline phase that could be told from the rest.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import case
import jax
import jax.numpy as jnp
import numpy as np
from processes import peak_bytes
from spu import api, libspu
from spu.utils import frontend

PARTIES = {"ABY3": 3, "SEMI2K": 2}
_TOTALS = re.compile(r"Link details: total send bytes (\d+), recv bytes \d+, send actions (\d+)")


def block(told: SimpleNamespace, weights: dict[str, Any], x: Any) -> Any:
    """``x [S,D]`` through the block: softmax, GELU by tanh, LayerNorm as jax has them."""

    def linear(h: Any, name: str) -> Any:
        return h @ weights[f"layer.0.{name}.weight"].T + weights[f"layer.0.{name}.bias"]

    def norm(h: Any, name: str) -> Any:
        centred = h - jnp.mean(h, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + told.norm_epsilon)
        return centred * inverse * weights[f"layer.0.{name}.gain"] + weights[f"layer.0.{name}.bias"]

    def heads(h: Any) -> Any:
        return h.reshape(told.tokens, told.heads, told.head_width).transpose(1, 0, 2)

    h = norm(x, "attention.norm")
    q, k, v = (heads(linear(h, f"attention.{part}")) for part in ("query", "key", "value"))
    attention = jax.nn.softmax(q @ k.transpose(0, 2, 1) / np.sqrt(told.head_width), axis=-1)
    context = (attention @ v).transpose(1, 0, 2).reshape(told.tokens, told.width)
    x = x + linear(context, "attention.output")
    h = jax.nn.gelu(linear(norm(x, "ffn.norm"), "ffn.in"), approximate=True)
    return x + linear(h, "ffn.out")


def runtime_config(told: SimpleNamespace) -> libspu.RuntimeConfig:
    """A protocol over 64-bit rings, all else as SPU sets it."""
    config = libspu.RuntimeConfig(protocol=getattr(libspu.ProtocolKind, told.functions), field=libspu.FieldType.FM64)
    config.enable_pphlo_profile = told.counted
    return config


def party(
    rank: int, told: SimpleNamespace, ports: Sequence[int], code: bytes, given: Any, log: Path, pipe: Any
) -> None:
    """What a party does: the block so often, from the same shares; what SPU logs goes to a file."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    where = libspu.link.Desc()
    for other, port in enumerate(ports):
        where.add_party(f"party {other}", f"127.0.0.1:{port}")
    link = libspu.link.create_brpc(where, rank)
    runtime = api.Runtime(link, runtime_config(told))
    program = libspu.Executable()
    program.ParseFromString(code)
    for name, one in zip(program.input_names, given, strict=True):
        runtime.set_var(name, share(one))
    seconds = []
    for _ in range(told.turns):
        link.barrier()
        start = time.perf_counter()
        runtime.run(program)
        seconds.append(time.perf_counter() - start)
    results = [plain(runtime.get_var(name)) for name in program.output_names]
    pipe.send((seconds, results, peak_bytes(os.getpid())))
    link.stop_link()


def plain(one: libspu.Share) -> tuple[bytes, list[bytes]]:
    """A share as bytes that a pipe takes."""
    return one.meta, list(one.share_chunks)


def share(one: tuple[bytes, list[bytes]]) -> libspu.Share:
    """And back."""
    made = libspu.Share()
    made.meta, made.share_chunks = one
    return made


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def run(told: SimpleNamespace, code: bytes, shares: Sequence[Any], folder: Path) -> tuple[list[Any], list[Path]]:
    """What every party sends back, and its log."""
    context = multiprocessing.get_context("spawn")
    ports, logs = free_ports(len(shares)), [folder / f"{rank}.log" for rank in range(len(shares))]
    pipes, started = [], []
    for rank, given in enumerate(shares):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=party, args=(rank, told, ports, code, given, logs[rank], sender), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        started.append(process)
    found = [pipe.recv() for pipe in pipes]
    for process in started:
        process.join()
    return found, logs


def counted(logs: Sequence[Path]) -> dict[str, Any]:
    """What SPU says that every party sent in its last turn: bytes, and the most messages of one."""
    last = [found[-1] if (found := _TOTALS.findall(log.read_text(errors="replace"))) else None for log in logs]
    if None in last:
        return {"bytes_sent": None, "rounds": None}
    totals = [(int(sent), int(actions)) for sent, actions in filter(None, last)]
    return {"bytes_sent": [sent for sent, _ in totals], "rounds": max(actions for _, actions in totals)}


def main() -> None:
    """Compile once, share weights and input, run, put the result together."""
    told, arrays = case.read()
    weights = {name: value.astype(np.float32) for name, value in sorted(arrays.items()) if name != "x"}
    given = (weights, arrays["x"].astype(np.float32))
    flat, _ = jax.tree_util.tree_flatten(given)
    secret = [libspu.Visibility.VIS_SECRET] * len(flat)
    names = [f"in{i}" for i in range(len(flat))]

    def function(weights: Any, x: Any) -> Any:
        return block(told, weights, x)

    program, _ = frontend.compile(
        frontend.Kind.JAX, function, given, {}, names, secret, lambda out: [f"out{i}" for i in range(len(out))]
    )
    io = api.Io(PARTIES[told.functions], runtime_config(told))
    dealt = [[plain(one) for one in io.make_shares(value, libspu.Visibility.VIS_SECRET)] for value in flat]
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        found, logs = run(told, program.SerializeToString(), list(zip(*dealt, strict=True)), Path(folder))
        sent = counted(logs)
    output = np.asarray(io.reconstruct([share(results[0]) for _, results, _ in found]), dtype=np.float64)
    peak = max(peak for *_, peak in found)
    turns = [
        {"total_s": max(seconds), "online_s": None, "peak_bytes": peak, **sent}
        for seconds in zip(*(seconds for seconds, *_ in found), strict=True)
    ]
    case.answer(turns, output, ["spu", "jax"])


if __name__ == "__main__":
    main()
