"""A small model under CKKS on a small ring, and server processes of it, for tests of what goes on around them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from safetensors.numpy import save_file

from secureattn import load_model, load_protocol, make_plan
from secureattn.deploy.offer import Offer, write_plan
from secureattn.nn import parameters
from secureattn.nn.config import ModelConfig
from secureattn.plan import Plan
from secureattn.runs import clear_run
from secureattn.train.ranges import calibrate

CONFIG = ModelConfig("small", 4, 3, 8, 2, 16, 1, 3, attention="square_scaled", norm="batchnorm")
PROTOCOL = """
format = 1
engine = "ckks"
source = "tests"
trust = "semi-honest server and client"

[functions]
gelu = { kind = "chebyshev", degree = 7 }

[ckks]
refresh = "client"
scale_bits = 30
layout = "dense"
"""
SAMPLES = 2
NOISE = 2e-3
"""Encryption error of scores at scale 2^30, with a margin: a wrong answer is off by 0.1 and more."""


@dataclass(frozen=True)
class Small:
    """Folders of the model and protocol, their plan on a ring of 2^13, and its file."""

    folder: Path
    plan: Plan
    offer: Offer

    @property
    def names(self) -> list[str]:
        """MODEL and PROTOCOL on a command line."""
        return [str(self.folder / "model"), str(self.folder / "small.toml")]

    @property
    def plan_file(self) -> Path:
        return self.folder / "plan.json"

    def inputs(self, seed: int, count: int = SAMPLES) -> Any:
        return np.random.default_rng(seed).uniform(-1, 1, (count, CONFIG.tokens, CONFIG.features))

    def clear(self, inputs: Any) -> Any:
        return clear_run(self.plan, inputs).outputs


def small(folder: Path, *, layout: str = "dense") -> Small:
    """Made, calibrated and planned in a folder."""
    weights, inputs = parameters.initial(CONFIG, seed=1), np.random.default_rng(0).uniform(-1, 1, (64, 4, 3))
    (folder / "model").mkdir()
    parameters.save(folder / "model" / "model.safetensors", weights)
    (folder / "model" / "config.json").write_text(CONFIG.to_json())
    (folder / "model" / "ranges.json").write_text(calibrate(CONFIG, weights, inputs, margin=0.3).to_json())
    save_file({"inputs": inputs[:8]}, folder / "model" / "samples.safetensors")
    (folder / "small.toml").write_text(PROTOCOL.replace('"dense"', f'"{layout}"'))
    with mock.patch("secureattn.plan.ckks.RINGS", (1 << 13,)):
        model, protocol = load_model(folder / "model"), load_protocol(folder / "small.toml")
        plan = make_plan(model, protocol, samples=SAMPLES, workers=1)
    return Small(folder, plan, write_plan(plan, folder / "plan.json"))


@dataclass
class Running:
    """A server process and where it is."""

    process: subprocess.Popen[str]
    url: str
    errors: Path

    def workers(self) -> list[int]:
        """Its workers, by process."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(path.read_text().rpartition(")")[2].split()[1]) == self.process.pid:
                    found.append(int(path.parent.name))
        return found

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        self.process.send_signal(how)
        return self.process.wait(60)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running(of: Small, *options: Any, port: int | None = None, scheme: str = "http") -> Iterator[Running]:
    """A server on loopback that is ready, until the end of the block."""
    port, errors = port or free_port(), of.folder / f"errors-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "secureattn.cli", "serve", *of.names, "--plan", str(of.plan_file)]
    command += ["--port", str(port), *map(str, options)]
    with errors.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file, text=True, env=os.environ)
    server = Running(process, f"{scheme}://127.0.0.1:{port}", errors)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        if process.poll() is None:
            server.end(signal.SIGKILL)


def _wait_until_ready(server: Running) -> None:
    deadline, trusting = time.monotonic() + 90, ssl._create_unverified_context()
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise AssertionError(server.errors.read_text())
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{server.url}/ready", timeout=5, context=trusting):
            return
        time.sleep(0.05)
    raise AssertionError(f"no server in time: {server.errors.read_text()}")
