"""What an import loads: an engine only where it is asked for, each in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

CORE = ("tensor", "polynomial", "series", "fit", "errors", "events")
NO_ENGINE = ("tenseal", "crypten")


def loaded(module: str, watched: tuple[str, ...]) -> set[str]:
    """Which of the watched packages a fresh interpreter holds after one import."""
    code = f"import sys, {module}; print(*[name for name in {watched!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return set(done.stdout.split())


def test_the_library_loads_no_engine() -> None:
    assert loaded("secureattn", ("tenseal", "crypten", "torch")) == set()


def test_the_core_loads_no_engine() -> None:
    modules = ", ".join(f"secureattn.{name}" for name in CORE)
    assert loaded(modules, ("tenseal", "crypten", "torch")) == set()


def test_approximations_load_torch_for_their_true_forms_and_no_engine() -> None:
    assert loaded("secureattn.approx, secureattn.approx.attention", NO_ENGINE) == set()


@pytest.mark.parametrize("module", ["machine", "batch", "backend"])
def test_the_ckks_programs_load_no_tenseal(module: str) -> None:
    assert loaded(f"secureattn.backends.ckks.{module}", NO_ENGINE) == set()


def test_roles_between_machines_are_loaded_when_they_are_asked_for() -> None:
    assert loaded("secureattn.deploy", ("tenseal", "torch", "httpx2")) == set()


def test_the_command_line_is_read_without_what_commands_need() -> None:
    assert loaded("secureattn.cli", ("numpy", "torch", "rich", *NO_ENGINE)) == set()


@pytest.mark.parametrize(
    "arguments",
    [["plan", "digits-vit"], ["keygen", "-o", "keys"], ["report", "digits-vit", "-o", "x.html"], ["query", "--help"]],
)
def test_usage_is_told_before_anything_is_loaded(arguments: list[str]) -> None:
    code = f"""
import sys
from secureattn.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    print("status", end.code, *[name for name in ("numpy", "torch", "rich") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"status {0 if '--help' in arguments else 2}"


def test_networks_and_the_plaintext_engine_load_no_engine() -> None:
    assert loaded("secureattn.nn.encoder, secureattn.nn.model, secureattn.backends.plaintext", NO_ENGINE) == set()


def test_the_check_sees_what_is_loaded() -> None:
    assert loaded("json", ("json", "tenseal")) == {"json"}
