"""README says what is true: its script runs, its commands work, its generated table is current, its files exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pages
import pytest
import readme_commands as known

from secureattn import load_model

ROOT = pages.ROOT
README = (ROOT / "README.md").read_text()
LISTED = {*known.FAST, *known.SLOW, *known.BY_FILES, *known.NOT_RUN}
NAMED = sorted(set(known.commands(README)))


def run(folder: Path, *lines: str) -> str:
    """Command lines in one shell, in a folder; what they print."""
    return pages.execute(pages.Block("sh", (), "\n".join(lines)), folder, 1)


def test_the_ten_lines_run(tmp_path: Path) -> None:
    found = pages.python(README)
    script = found.replace('("power-softmax-ckks", "power-softmax-mpc")', '("power-softmax-mpc",)')
    assert script != found
    (tmp_path / "ten.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "ten.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    printed = re.search(r"power-softmax-mpc: (\d+)% correct, online .* s, (\d+) rounds", done.stdout)
    stated = re.search(r"power-softmax-mpc: (\d+)% correct, online .* s, (\d+) rounds", README)
    assert printed
    assert stated
    assert printed.groups() == stated.groups()


def test_the_support_table_is_current() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "report.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_linked_file_exists() -> None:
    targets = re.findall(r"\]\(([^)#]+)", README)
    assert targets
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target


# ---- commands ---------------------------------------------------------------------------------------------------


def test_every_command_is_run_or_said_why_not() -> None:
    whole = {command for command in NAMED if not known.is_form(command)}
    assert whole == LISTED, f"not listed: {sorted(whole - LISTED)}; not in README: {sorted(LISTED - whole)}"


def test_every_command_is_understood() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for command in NAMED:
        if command.startswith("make "):
            assert command.split()[1] in targets, command
        elif known.is_form(command):
            assert not known.unknown(command), f"{command}: no {known.unknown(command)}"
        else:
            assert known.accepted(command), command


def test_a_new_command_is_found_and_a_wrong_one_is_noticed() -> None:
    found = list(known.commands("```\nsecureattn plan  minilm puma   # so\n```\nSay `secureattn info\n--jsn F`."))
    assert found == ["secureattn plan minilm puma", "secureattn info --jsn F"]
    assert not known.is_form(found[0])
    assert found[0] not in LISTED
    assert known.is_form(found[1])
    assert known.unknown(found[1]) == ["--jsn"]
    assert known.unknown("secureattn plann MODEL") == ["plann"]


@pytest.mark.parametrize("command", known.FAST)
def test_a_quick_command_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, *arguments = shlex.split(command)
    assert name == "secureattn"
    done = commands.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", known.SLOW)
def test_a_command_runs(command: str, tmp_path: Path) -> None:
    if "generate" in command and importlib.util.find_spec("crypten") is None:
        pytest.skip("crypten is not installed")
    assert run(tmp_path, command)


@pytest.mark.slow
def test_the_commands_by_files_run(tmp_path: Path) -> None:
    pytest.importorskip("tenseal")
    images, labels = load_model("digits-vit").samples(1)
    np.save(tmp_path / "image.npy", images)
    *first, evaluate, refresh, decrypt = known.BY_FILES
    run(tmp_path, *first, f"{evaluate} > cost.txt &", refresh, "wait $!", decrypt)
    assert f'"classes": [{labels[0]}]' in " ".join((tmp_path / "scores.json").read_text().split())
