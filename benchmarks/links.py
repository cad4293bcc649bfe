"""What TLS between parties costs: the same messages between two processes on plain links and inside TLS, in turn.

    python benchmarks/links.py [--quick] [--json FILE] [--fresh]

Both processes hold two links to each other over loopback, one of each kind, and exchange the same tensor over one and
the other, in an order that changes from turn to turn: ``large`` ones both ways at once, and ``small`` ones, a round of
a protocol, a thousand a turn. Beside it, what AES-256-GCM alone takes for the large ones. What was measured is kept in
``out/links``, and makes ``benchmarks/results/links.json``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measuring
import torch
from checking import described
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from measuring import Setting, run_all

from secureattn.backends.crypten.meeting import Address, Meeting
from secureattn.backends.crypten.tls import Identity
from secureattn.backends.crypten.transport import Mesh
from secureattn.deploy import certificates

ROLES = ("owner", "client")
KINDS = ("plain", "tls")
LARGE_BYTES, QUICK_LARGE_BYTES = 1 << 27, 1 << 23
SMALL_BYTES, ROUNDS = 64, 1000
TURNS = 15
_RECORD_BYTES = 1 << 14
_WAIT_S = 60.0


def exchanges(setting: Setting) -> dict[str, Any]:
    """Seconds of an exchange at the first process, by size and kind, turn by turn."""
    large = QUICK_LARGE_BYTES if setting.quick else LARGE_BYTES
    turns = 3 if setting.quick else TURNS
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(len(ROLES)) as pool:
        certificates.make(Path(folder), ROLES)
        ports = _free_ports()
        asked = [(rank, folder, ports, large, turns) for rank in range(len(ROLES))]
        seconds, _ = pool.starmap(_exchanged, asked, chunksize=1)
    return {"large_bytes": large, "small_bytes": SMALL_BYTES, "seconds": seconds, "cipher_s": _cipher_s(large)}


def _exchanged(rank: int, folder: str, ports: Mapping[str, int], large: int, turns: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    identity = Identity.load(Path(folder), ROLES[rank])
    sizes = {"large": (large, 1), "small": (SMALL_BYTES, ROUNDS)}
    seconds: dict[str, dict[str, list[float]]] = {size: {kind: [] for kind in KINDS} for size in sizes}
    with contextlib.ExitStack() as ending:
        meshes = {}
        for kind in KINDS:
            address, proof = Address("127.0.0.1", ports[kind]), identity if kind == "tls" else None
            meeting = ending.enter_context(Meeting(address, rank, ROLES, wait_s=_WAIT_S, identity=proof))
            ending.callback(meeting.over)
            meeting.agree({})
            mesh = Mesh.connect(meeting.store, rank=rank, size=len(ROLES), links=meeting.links)
            meshes[kind] = ending.enter_context(mesh)
        for size, (count, times) in sizes.items():
            own = torch.zeros(count // 8, dtype=torch.int64)
            for turn in range(-1, turns):  # the first is a warm-up
                for kind in KINDS if turn % 2 else reversed(KINDS):
                    mesh = meshes[kind]
                    mesh.barrier([1 - rank])
                    start = time.perf_counter()
                    for _ in range(times):
                        list(mesh.exchange(own, [1 - rank]))
                    if turn >= 0:
                        seconds[size][kind].append((time.perf_counter() - start) / times)
    return seconds


def _free_ports() -> dict[str, int]:
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        return {"plain": one.getsockname()[1], "tls": other.getsockname()[1]}


def _cipher_s(size: int) -> float:
    """Seconds to encrypt so much and decrypt as much, in TLS's records, on one core."""
    cipher, nonce, record = AESGCM(os.urandom(32)), os.urandom(12), bytes(_RECORD_BYTES)
    sealed = cipher.encrypt(nonce, record, None)
    start, times = time.perf_counter(), size // _RECORD_BYTES
    for _ in range(times):
        cipher.encrypt(nonce, record, None)
        cipher.decrypt(nonce, sealed, None)
    return time.perf_counter() - start


# ---- what is made of it -------------------------------------------------------------------------------------


def ratios(part: Mapping[str, Any], size: str) -> list[float]:
    """TLS over plain, turn by turn."""
    seconds = part["seconds"][size]
    return [tls / plain for plain, tls in zip(seconds["plain"], seconds["tls"], strict=True)]


def document(parts: Mapping[str, Mapping[str, Any]], *, quick: bool) -> dict[str, Any]:
    """Everything, as JSON. No figure is asked for: what TLS costs is told, and links beyond a machine have it."""
    return described(parts, [], quick=quick)


def text(document: Mapping[str, Any]) -> str:
    """A table."""
    from secureattn.ledger import units

    part = document["parts"]["exchanges"]
    rows = ["| both ways at once | plain | TLS 1.3 | TLS / plain | lowest to highest |", "|---|---:|---:|---:|---|"]
    for size, count in (("large", part["large_bytes"]), ("small", part["small_bytes"])):
        cells = [units.seconds(_median(part["seconds"][size][kind])) for kind in KINDS]
        found = ratios(part, size)
        spread = f"{min(found):.2f} to {max(found):.2f}"
        rows.append(f"| {units.data(count)} | {' | '.join(cells)} | {_median(found):.2f} | {spread} |")
    where = measuring.measured_on(document)
    rows += [
        "",
        f"Medians of {len(found)} turns between two processes over loopback. AES-256-GCM alone takes "
        f"{units.seconds(part['cipher_s'])} of a core for the large one. Measured on {where}; "
        f"{measuring.loads(document['parts'])}.",
        "",
    ]
    return "\n".join(rows)


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


if __name__ == "__main__":
    sys.exit(run_all("links", __doc__, {"exchanges": exchanges}, sys.modules[__name__]))
