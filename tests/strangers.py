"""Processes that want to have a Ray cluster run something, with its token or without."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping

STRANGERS: Mapping[str, Mapping[str, str]] = {
    "without a token": {"RAY_AUTH_MODE": "", "RAY_AUTH_TOKEN": ""},
    "who wants no authentication": {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""},
    "with a wrong token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
}
"""Who does not have a cluster's token, by what their process is told."""

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Else 127.0.0.1 is taken for another address of this machine."""
_KNOCK = """
import sys, ray
ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
print(ray.get(ray.remote(num_cpus=0)(lambda: "in").remote(), timeout=60))
"""


def knock(address: str, told: Mapping[str, str]) -> tuple[str, str]:
    """A process of a user of this machine that joins a cluster and has it run something: its words and its errors. It
    has a home of its own, where no token lies.
    """
    with tempfile.TemporaryDirectory() as home:
        said = {name: value for name, value in {**os.environ, "HOME": home, **told}.items() if value}
        command = [sys.executable, "-c", _KNOCK, address]
        done = subprocess.run(command, env=said, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout, done.stderr


def assert_refused(knocked: tuple[str, str]) -> None:
    """For want of the token, and nothing else."""
    said, errors = knocked
    assert said == ""
    assert "InvalidAuthToken" in errors
