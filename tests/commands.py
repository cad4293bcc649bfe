"""The command line in this process. A new one loads torch first, which takes longer than most commands; test_cli.py
meets commands as processes.
"""

from __future__ import annotations

import subprocess
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from secureattn.cli import main


@dataclass(frozen=True)
class Done:
    """Exit status and what was printed."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str | Path) -> Done:
    """``secureattn`` with these arguments."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main([*map(str, arguments)])
        except SystemExit as ended:  # argparse's, for wrong usage
            status = int(ended.code or 0)
    return Done(status, out.getvalue(), err.getvalue())


def failed(*arguments: str | Path) -> str:
    """The one line that a failing command leaves on stderr; nothing on stdout, status 1."""
    return the_error(run(*arguments))


def the_error(done: Done | subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr of a command that failed as it should."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("secureattn: error: ")
    return done.stderr.rstrip("\n")
