"""Network namespaces joined by a wire of given bandwidth and delay, made of TUN devices and this process.

Runs inside ``ISOLATED``: every namespace has one address, 10.77.0.1 and up. A packet leaves
its sender's link when the ones before it are through, and arrives half a round trip later.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

MTU = 32000  # few packets, so that Python keeps up; TCP's first window is ten of them
_TUNSETIFF, _TUN, _NO_PI = 0x400454CA, 0x0001, 0x1000
ISOLATED = ["unshare", "--user", "--map-root-user", "--net"]
"""What to put before a command that makes a ``Wire``."""

_NO_SLOW_START = "/proc/sys/net/ipv4/tcp_slow_start_after_idle"


def permitted() -> bool:
    """Whether this machine lets us make namespaces and TUN devices."""
    probe = "import wire; wire.Wire(1, bandwidth_bps=1e9, round_trip_s=0.0)"
    command = [*ISOLATED, sys.executable, "-c", probe]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


class Wire:
    """So many namespaces, and a thread that carries packets between them."""

    def __init__(self, places: int, *, bandwidth_bps: float, round_trip_s: float) -> None:
        self._bandwidth, self._delay_s = bandwidth_bps, round_trip_s / 2
        self._devices, self._holders = [], []
        for i in range(places):
            self._devices.append(_device(f"wire{i}"))
            # stays as long as this process: its namespace is named by its pid
            holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            self._holders.append(holder)
            _wait_for_namespace(holder.pid)
            _run("ip", "link", "set", f"wire{i}", "netns", str(holder.pid))
            for arguments in (
                ("ip", "link", "set", "lo", "up"),
                ("ip", "addr", "add", f"{address(i)}/24", "dev", f"wire{i}"),
                ("ip", "link", "set", f"wire{i}", "mtu", str(MTU), "up"),
                ("sh", "-c", f"echo 0 > {_NO_SLOW_START}"),
            ):
                _run(*self.inside(i), *arguments)
        threading.Thread(target=self._carry, daemon=True).start()

    def inside(self, place: int) -> list[str]:
        """What to put before a command for it to run in a namespace."""
        return ["nsenter", "--target", str(self._holders[place].pid), "--net"]

    def run(self, commands: Sequence[Sequence[str]]) -> list[subprocess.Popen[str]]:
        """Start a command in each namespace."""
        return [
            subprocess.Popen([*self.inside(i), *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for i, command in enumerate(commands)
        ]

    def close(self) -> None:
        """End the namespaces."""
        for holder in self._holders:
            holder.kill()
            holder.wait()

    def _carry(self) -> None:
        free = [0.0] * len(self._devices)  # when each sender's link is
        due: list[tuple[float, int, int, bytes]] = []
        order = itertools.count()
        while True:
            wait = max(0.0, due[0][0] - time.monotonic()) if due else 1.0
            for device in select.select(self._devices, [], [], wait)[0]:
                sender, packet = self._devices.index(device), os.read(device, 1 << 16)
                receiver = packet[19] - 1 if packet[0] >> 4 == 4 else -1  # the last byte of an IPv4 destination
                if not 0 <= receiver < len(self._devices):
                    continue
                free[sender] = max(free[sender], time.monotonic()) + 8 * len(packet) / self._bandwidth
                heapq.heappush(due, (free[sender] + self._delay_s, next(order), receiver, packet))
            while due and due[0][0] <= time.monotonic():
                _, _, receiver, packet = heapq.heappop(due)
                os.write(self._devices[receiver], packet)


def address(place: int) -> str:
    """The address in a namespace."""
    return f"10.77.0.{place + 1}"


def _device(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN | _NO_PI))
    return device


def _wait_for_namespace(pid: int) -> None:
    own, there = Path("/proc/self/ns/net"), Path(f"/proc/{pid}/ns/net")
    while own.readlink() == there.readlink():
        time.sleep(0.01)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def main() -> int:
    """``wire.py BANDWIDTH ROUND_TRIP COMMANDS``: run the commands of a JSON list, each in a namespace of its own."""
    bandwidth, round_trip, commands = sys.argv[1:]
    wire = Wire(len(lines := json.loads(commands)), bandwidth_bps=float(bandwidth), round_trip_s=float(round_trip))
    ends = [(process.communicate()[0], process.returncode) for process in wire.run(lines)]
    wire.close()
    print("".join(out for out, _ in ends))
    return max(code for _, code in ends)


if __name__ == "__main__":
    sys.exit(main())
