"""The peer: the same encoder block written by hand on plain CrypTen, with its own functions, provider and truncation.

Each party is a process of one thread. The first party knows the weights, the second the input; party 0 makes the
triples (TFP), as CrypTen does by default. Bytes are what CrypTen counts, sent and received, divided by two.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from secureattn.backends.crypten.install import load_crypten
from secureattn.nn.model import load_model

Array = npt.NDArray[np.float64]
OWNER, CLIENT = 0, 1


def run(folder: Path, functions: str, x: Array, *, turns: int) -> list[dict[str, Any]]:
    """The block so often in the same processes, ``functions`` being "default" or "mpcformer": of each turn the output
    ``[S,D]``, seconds, rounds, bytes sent, and the seconds that making triples took.
    """
    with tempfile.TemporaryDirectory(prefix="secureattn-peer-") as directory:
        results = parties(_block, Path(directory), (folder, functions, x, turns))
    made: list[dict[str, Any]] = [
        {**a, "output": b["output"], "seconds": max(a["seconds"], b["seconds"])} for a, b in zip(*results, strict=True)
    ]
    return made


def parties(work: Callable[..., Any], directory: Path, arguments: tuple[Any, ...]) -> list[Any]:
    """``work(crypten, rank, *arguments)`` in two processes that CrypTen has been started in, and what they return."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(2):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_started, args=(rank, directory, work, arguments, sender), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    results = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    return results


def _started(rank: int, directory: Path, work: Callable[..., Any], arguments: tuple[Any, ...], pipe: Any) -> None:
    torch.set_num_threads(1)
    rendezvous = (directory / "rendezvous").as_uri()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "RENDEZVOUS": rendezvous, "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "DISTRIBUTED_BACKEND": "gloo"}
    crypten = load_crypten()
    crypten.init()
    crypten.cfg.communicator.verbose = True
    pipe.send(work(crypten, rank, *arguments))
    pipe.close()


def _block(crypten: Any, rank: int, folder: Path, functions: str, x: Array, turns: int) -> list[dict[str, Any]]:
    model = load_model(folder)
    known = model.weights if rank == OWNER else model.weight_shapes
    names = sorted(name for name in known if name.startswith("layer.0"))  # both share them in the same order
    weights = {name: crypten.cryptensor(known[name].float(), src=OWNER) for name in names}
    spent = _watched(crypten)
    found = []
    for _ in range(turns):
        shared = crypten.cryptensor(
            torch.from_numpy(x[0]).float() if rank == CLIENT else torch.zeros(x[0].shape), src=CLIENT
        )
        crypten.communicator.get().barrier()
        crypten.reset_communication_stats()
        spent[:] = [0.0]
        start = time.perf_counter()
        y = _layer(crypten, shared, weights, model.config, functions)
        seconds = time.perf_counter() - start
        stats = crypten.communicator.get().get_communication_stats()
        output = y.get_plain_text().double().numpy()
        counted = {"rounds": stats["rounds"], "bytes_sent": stats["bytes"] / 2}
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


def _layer(crypten: Any, x: Any, weights: dict[str, Any], config: Any, functions: str) -> Any:
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
