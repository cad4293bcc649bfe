"""Code in Markdown pages: found, run as a reader would run it, and compared with the output that stands beside it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", flags=re.DOTALL | re.MULTILINE)
_PORTS = ("8443", "29500")  # those that pages name; a test takes others, which are free


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the words behind it, its lines without indentation."""

    language: str
    words: tuple[str, ...]
    code: str


def blocks(text: str) -> list[Block]:
    """Every fenced block of a page, in order."""
    found = []
    for _, head, body in _BLOCK.findall(text):
        language, *words = head.split() or [""]
        found.append(Block(language, tuple(words), textwrap.dedent(body)))
    return found


def python(text: str) -> str:
    """The first block of Python on a page."""
    return next(block.code for block in blocks(text) if block.language == "python")


def run(path: Path, folder: Path) -> int:
    """Every block of a page in order, in one folder; how many. What a block printed is compared with the ``text
    compared`` block behind it.
    """
    done, printed, ports = 0, "", dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    for block in blocks(path.read_text()):
        if block.language in ("python", "sh"):
            done += 1
            printed = execute(block, folder, done, ports)
        elif "compared" in block.words:
            assert matches(block.code, printed), f"{path.name} shows\n{block.code}\nand this was printed:\n{printed}"
    return done


def matches(shown: str, printed: str) -> bool:
    """Whether text is what a page shows: … stands for anything within a line, alone for any lines; blanks and the
    blank lines of tables do not count.
    """
    pattern = ""
    for line in _lines(shown):
        one = r"[^\n]*".join(re.escape(part) for part in line.split("…"))
        pattern += r"(?:[^\n]*\n)*?" if line == "…" else one + "\n"
    return re.fullmatch(pattern, "".join(line + "\n" for line in _lines(printed))) is not None


def _lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def execute(block: Block, folder: Path, number: int, ports: Mapping[str, str] = MappingProxyType({})) -> str:
    """What a block prints, by a process of its own in a folder; ``ports`` take the place of those it names."""
    code = block.code
    for named, port in ports.items():
        code = code.replace(named, port)
    script = folder / f"block-{number}.{'py' if block.language == 'python' else 'sh'}"
    script.write_text(code if block.language == "python" else f"set -eu\n{code}")
    command = [sys.executable if block.language == "python" else "sh", str(script)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # a reader's checkout is installed; here it is found first, whatever is installed
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    errors = folder / f"errors-{number}.txt"
    with errors.open("w") as stderr:
        process = subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=stderr)
        printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, f"block {number} failed:\n{code}\n{errors.read_text()}"
    return printed


def _free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as kept:
        servers = [kept.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [str(server.getsockname()[1]) for server in servers]


@contextlib.contextmanager
def ended(folder: Path) -> Iterator[None]:
    """A folder whose processes, by the files ``*.pid`` in it, are over in the end, even where a page broke off."""
    try:
        yield
    finally:
        for path in folder.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(path.read_text()), signal.SIGKILL)
