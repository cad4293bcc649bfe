"""README says what is true: its script runs, its generated table is current, its files exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_ten_lines_run(tmp_path: Path) -> None:
    found = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert found
    script = found[1].replace('("power-softmax-ckks", "power-softmax-mpc")', '("power-softmax-mpc",)')
    assert script != found[1]
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
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target
