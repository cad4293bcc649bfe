"""Three network namespaces, each two joined by veth, and all that crosses them: recorded, put together, searched.

``capture.py FOLDER COMMANDS`` runs the commands of a JSON list, one in each namespace, inside ``ISOLATED``; what
crossed the three wires is in FOLDER afterwards, as pcap files.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from wire import _run, _wait_for_namespace

ISOLATED = ["unshare", "--net"]
"""What to put before ``capture.py``; for root."""

WIRES = ((0, 1), (0, 2), (1, 2))
_ALL, _OUT_OF = 0x0003, (263, 6)  # ETH_P_ALL; SOL_PACKET, PACKET_STATISTICS
_FORCED_BUFFER = 33  # SO_RCVBUFFORCE
_BUFFER_BYTES = 1 << 28
_PCAP = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1)
_WINDOW = 4  # consecutive values

Flow = tuple[str, int, str, int]
Array = npt.NDArray[np.float64]


def address(place: int) -> str:
    """The address in a namespace."""
    return f"10.78.0.{place + 1}"


def missing() -> str:
    """Why nothing can be captured here, or nothing."""
    if os.geteuid():
        return "only root makes network namespaces"
    if tools := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
        return f"{' and '.join(tools)} are missing (packages iproute2, util-linux)"
    probe = [*ISOLATED, "ip", "link", "add", "near", "type", "veth", "peer", "name", "far"]
    done = subprocess.run(probe, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"no network namespaces may be made here: {done.stderr.strip()}"


# ---- recording --------------------------------------------------------------------------------------------------


def main() -> int:
    """See the first line of this file."""
    if sys.argv[1] == "record":
        return record(*sys.argv[2:])
    folder, commands = Path(sys.argv[1]), json.loads(sys.argv[2])
    with joined() as holders:
        recorders = [_recorder(inside(holders[a]), f"to{b}", folder / f"{a}{b}.pcap") for a, b in WIRES]
        running = [
            subprocess.Popen([*inside(holders[i]), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for i, command in enumerate(commands)
        ]
        ends = [(*process.communicate(), process.returncode) for process in running]
        lost = [_stopped(recorder) for recorder in recorders]
    print(json.dumps({"ends": ends, "lost": lost}))
    return 0


@contextmanager
def joined() -> Iterator[list[int]]:
    """The namespaces, each named by the process that holds it, until the end of the block."""
    held = ["unshare", "--net", "cat"]
    holders = [subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) for _ in range(3)]
    try:
        for holder in holders:
            _wait_for_namespace(holder.pid)
        _join([holder.pid for holder in holders])
        yield [holder.pid for holder in holders]
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def inside(holder: int) -> list[str]:
    """What to put before a command for it to run in a namespace."""
    return ["nsenter", "--target", str(holder), "--net"]


def _join(holders: list[int]) -> None:
    for a, b in WIRES:
        ends = [(f"to{b}", a, b), (f"to{a}", b, a)]
        _run(*inside(holders[a]), "ip", "link", "add", ends[0][0], "type", "veth", "peer", "name", ends[1][0], "netns",
             str(holders[b]))  # fmt: skip
        for name, here, there in ends:
            for arguments in (
                ("link", "set", name, "up"),
                ("addr", "add", f"{address(here)}/32", "dev", name),
                ("route", "add", f"{address(there)}/32", "dev", name, "src", address(here)),
            ):
                _run(*inside(holders[here]), "ip", *arguments)
    for holder in holders:
        _run(*inside(holder), "ip", "link", "set", "lo", "up")


def _recorder(within: list[str], name: str, file: Path) -> subprocess.Popen[str]:
    command = [*within, sys.executable, __file__, "record", name, str(file)]
    recorder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert recorder.stdout is not None
    assert recorder.stdout.readline() == "ready\n"
    return recorder


def _stopped(recorder: subprocess.Popen[str]) -> int:
    recorder.send_signal(signal.SIGTERM)
    return int(recorder.communicate()[0])


def record(name: str, file: str) -> int:
    """Every frame of an interface, both ways, until SIGTERM; prints how many were lost."""
    stop, stopped = socket.socketpair()
    signal.signal(signal.SIGTERM, lambda *_: stop.close())
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)) as tap, Path(file).open("wb") as out:
        tap.setsockopt(socket.SOL_SOCKET, _FORCED_BUFFER, _BUFFER_BYTES)
        tap.bind((name, 0))
        tap.settimeout(0.2)
        out.write(_PCAP)
        print("ready", flush=True)
        stopped.setblocking(False)
        while True:
            try:
                frame = tap.recv(1 << 18)
                out.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)
            except TimeoutError:
                if stop.fileno() < 0:
                    break
        _, lost = struct.unpack("II", tap.getsockopt(*_OUT_OF, 8))
    print(lost)
    return 0


# ---- putting together -------------------------------------------------------------------------------------------


def flows(files: Iterable[Path]) -> dict[Flow, bytes]:
    """What each side of every TCP connection sent, by (from, port, to, port); no piece may be missing."""
    pieces: dict[Flow, list[tuple[int, bytes]]] = defaultdict(list)
    starts: dict[Flow, int] = {}
    for file in files:
        for flow, sequence, opens, payload in _segments(file.read_bytes()):
            if opens:
                starts[flow] = sequence + 1
            elif payload:
                pieces[flow].append((sequence, payload))
    found = {}
    for flow, sent in pieces.items():
        whole = bytearray()
        for at, payload in sorted(((sequence - starts[flow]) % (1 << 32), payload) for sequence, payload in sent):
            assert at <= len(whole), f"{flow}: octets {len(whole)} to {at} were not captured"
            whole[at : at + len(payload)] = payload
        found[flow] = bytes(whole)
    return found


def _segments(captured: bytes) -> Iterator[tuple[Flow, int, bool, bytes]]:
    at = len(_PCAP)
    while at < len(captured):
        (length,) = struct.unpack_from("<I", captured, at + 8)
        frame, at = captured[at + 16 : at + 16 + length], at + 16 + length
        if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
            continue
        packet = frame[14 : 14 + int.from_bytes(frame[16:18], "big")]
        segment = packet[4 * (packet[0] & 15) :]
        source, target, sequence = struct.unpack_from("!HHI", segment)
        flow = (socket.inet_ntoa(packet[12:16]), source, socket.inet_ntoa(packet[16:20]), target)
        yield flow, sequence, bool(segment[13] & 2), segment[4 * (segment[12] >> 4) :]


# ---- searching --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needles:
    """Windows of values as octets, by their first eight, and what each would be a trace of."""

    by_key: Mapping[int, list[tuple[bytes, str]]]

    @property
    def labels(self) -> set[str]:
        """All that can be found."""
        return {label for windows in self.by_key.values() for _, label in windows}

    def found(self, payload: bytes) -> set[str]:
        """What is in there, wherever it begins."""
        keys = np.array(sorted(self.by_key), dtype=np.uint64)
        labels = set()
        for offset in range(8):
            words = np.frombuffer(payload, dtype="<u8", offset=offset, count=max(len(payload) - offset, 0) // 8)
            near = keys[np.minimum(np.searchsorted(keys, words), len(keys) - 1)]
            for word in np.flatnonzero(near == words):
                at = offset + 8 * int(word)
                labels |= {label for octets, label in self.by_key[int(words[word])] if payload.startswith(octets, at)}
        return labels


def encodings(name: str, values: Array, places: Iterable[int]) -> Iterator[tuple[str, npt.NDArray[np.generic]]]:
    """Values, row by row and column by column, as floats and in fixed point, of either order of octets."""
    ways = {"": values} if values.ndim < 2 else {"": values, " transposed": values.swapaxes(-1, -2)}
    for way, array in ways.items():
        flat = np.ascontiguousarray(array).reshape(-1)
        for order in "<>":
            for kind in ("f4", "f8"):
                yield f"{name}{way} {order}{kind}", flat.astype(order + kind)
            for place in places:
                yield f"{name}{way} {order}i8·2^{place}", np.rint(np.ldexp(flat, place)).astype(order + "i8")


def needles(arrays: Mapping[str, Array], files: Iterable[Path], places: Iterable[int]) -> Needles:
    """Every window of four consecutive values that is not mostly zeros or one value, and every 32 octets of files."""
    found: dict[int, list[tuple[bytes, str]]] = defaultdict(list)
    places = tuple(places)
    for name, values in arrays.items():
        for label, encoded in encodings(name, values, places):
            octets, size = encoded.tobytes(), encoded.itemsize
            for at in range(len(encoded) - _WINDOW + 1):
                if len(set(encoded[at : at + _WINDOW].tolist()) - {0}) == _WINDOW:
                    window = octets[size * at : size * (at + _WINDOW)]
                    found[int.from_bytes(window[:8], "little")].append((window, label))
    for file in files:
        octets = file.read_bytes()
        for at in range(0, len(octets) - 32, 8):
            if len(set(window := octets[at : at + 32])) >= 16:
                found[int.from_bytes(window[:8], "little")].append((window, file.name))
    return Needles(found)


# ---- TLS --------------------------------------------------------------------------------------------------------

_HANDSHAKE, _CHANGE, _DATA = 22, 20, 23


def assert_tls_1_3(payload: bytes, *, called: bool) -> None:
    """A flow holds TLS 1.3 records only: one hello in the clear, an empty gesture to old boxes, then sealed ones."""
    kinds, at = [], 0
    while at < len(payload):
        kind, version, length = struct.unpack_from("!BHH", payload, at)
        assert version in (0x0301, 0x0303), hex(version)
        assert length <= (1 << 14) + 256
        if kind == _HANDSHAKE and called:
            hello = payload[at + 5 : at + 5 + length]
            assert hello[0] == 2, "not a ServerHello"
            assert b"\x00\x2b\x00\x02\x03\x04" in hello, "another version than 1.3 was agreed on"
        kinds.append(kind)
        at += 5 + length
    assert at == len(payload), "the last record is cut off"
    assert kinds[0] == _HANDSHAKE
    assert kinds.count(_CHANGE) <= 1
    assert set(kinds[1:]) <= {_CHANGE, _DATA}
    assert all(after == _DATA for before, after in pairwise(kinds) if before in (_CHANGE, _DATA))


if __name__ == "__main__":
    sys.exit(main())
