"""An encoder block by hand on plain CrypTen, with its own functions, provider and truncation, and what starts parties.

Imports nothing of ours: it runs where only CrypTen is installed, too. Each party is a process of one thread. The first
party knows the weights, the second the input; party 0 makes the triples (TFP), as CrypTen does by default. Bytes are
what CrypTen counts, sent and received, divided by two.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from processes import peak_bytes

Array = npt.NDArray[np.float64]
OWNER, CLIENT = 0, 1


def parties(
    load: Callable[[], Any], work: Callable[..., Any], directory: Path, arguments: tuple[Any, ...]
) -> list[Any]:
    """``work(crypten, rank, *arguments)`` in two processes that CrypTen has been started in, and what they return."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(2):
        receiver, sender = context.Pipe(duplex=False)
        arguments_of = (rank, directory, load, work, arguments, sender)
        process = context.Process(target=_started, args=arguments_of, daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    results = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    return results


def _started(
    rank: int,
    directory: Path,
    load: Callable[[], Any],
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    pipe: Any,
) -> None:
    torch.set_num_threads(1)
    rendezvous = (directory / "rendezvous").as_uri()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "RENDEZVOUS": rendezvous, "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "DISTRIBUTED_BACKEND": "gloo"}
    crypten = load()
    crypten.init()
    crypten.cfg.communicator.verbose = True
    pipe.send(work(crypten, rank, *arguments))
    pipe.close()


def turns(
    crypten: Any, rank: int, weights: Mapping[str, Any], config: Any, functions: str, x: Array, count: int
) -> list[dict[str, Any]]:
    """What a party does: the block so often on ``x [S,D]``, ``functions`` being "default" or "mpcformer": of each turn
    the output ``[S,D]``, seconds, rounds, bytes sent, and the seconds that making triples took. ``weights``: by name;
    the owner's own, the client's shapes alone.
    """
    shares = {name: crypten.cryptensor(weights[name], src=OWNER) for name in sorted(weights)}  # in the same order
    spent = _watched(crypten)
    found = []
    for _ in range(count):
        own = torch.from_numpy(x).float() if rank == CLIENT else torch.zeros(x.shape)
        shared = crypten.cryptensor(own, src=CLIENT)
        crypten.communicator.get().barrier()
        crypten.reset_communication_stats()
        spent[:] = [0.0]
        start = time.perf_counter()
        y = _layer(shared, shares, config, functions)
        seconds = time.perf_counter() - start
        stats = crypten.communicator.get().get_communication_stats()
        output = y.get_plain_text().double().numpy()
        counted = {"rounds": stats["rounds"], "bytes_sent": stats["bytes"] / 2, "peak_bytes": peak_bytes(os.getpid())}
        found.append({"output": output, "seconds": seconds, "triples_s": spent[0], **counted})
    return found


def _watched(crypten: Any) -> list[float]:
    """Seconds spent on making triples, counted from now on."""
    provider, spent = crypten.mpc.get_default_provider(), [0.0]

    def timed(make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return make(*arguments, **options)
            finally:
                spent[0] += time.perf_counter() - start

        return made

    for name in ("generate_additive_triple", "square", "generate_binary_triple", "wrap_rng", "B2A_rng"):
        setattr(provider, name, timed(getattr(provider, name)))
    return spent


def _layer(x: Any, weights: dict[str, Any], config: Any, functions: str) -> Any:
    def linear(h: Any, name: str) -> Any:
        return h.matmul(weights[f"layer.0.{name}.weight"].t()) + weights[f"layer.0.{name}.bias"]

    def norm(h: Any, name: str) -> Any:
        centred = h - h.mean(-1, keepdim=True)
        inverse = (centred.square().mean(-1, keepdim=True) + config.norm_epsilon).inv_sqrt()
        return centred * inverse * weights[f"layer.0.{name}.gain"] + weights[f"layer.0.{name}.bias"]

    def heads(h: Any) -> Any:
        return h.view(config.tokens, config.heads, config.head_width).transpose(0, 1)

    h = norm(x, "attention.norm")
    q, k, v = (heads(linear(h, f"attention.{part}")) for part in ("query", "key", "value"))
    scores = q.matmul(k.transpose(-1, -2)) / math.sqrt(config.head_width)
    if functions == "default":
        attention = scores.softmax(-1)
    else:
        squares = (scores + 5.0).square()
        # the mean, not the sum: CrypTen's reciprocal holds up to 253 only
        attention = squares * squares.mean(-1, keepdim=True).reciprocal() / config.tokens
    context = attention.matmul(v).transpose(0, 1).reshape(config.tokens, config.width)
    x = x + linear(context, "attention.output")
    h = linear(norm(x, "ffn.norm"), "ffn.in")
    if functions == "default":  # CrypTen has no GELU, and its erf diverges beyond 2: the tanh form
        h = h * ((h + h.square() * h * 0.044715) * (2 * math.sqrt(2 / math.pi))).sigmoid()
    else:
        h = h.square() * 0.125 + h * 0.25 + 0.5
    return x + linear(h, "ffn.out")
