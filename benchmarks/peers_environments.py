"""Sets up the peers' environments under out/peers, each with its own packages, and says where one is or why not.

    python benchmarks/peers_environments.py [PEER…]

Packages and versions stand in peers/PEER.txt; those of peers/PEER-alone.txt come without what they ask for. An
environment is set up again when these files change.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from measuring import tell

LISTS = Path(__file__).resolve().parent / "peers"
HOME = Path("out") / "peers"
NAMES = ("crypten", "spu", "tenseal")
NOT_SET_UP = "run make bench-peers"


def python(name: str) -> Path | None:
    """The interpreter of an environment that is complete and current."""
    folder = _folder(name)
    ready = folder / ".ready"
    current = ready.exists() and ready.read_text() == _asked(name)
    return (folder / "bin" / "python").absolute() if current else None


def why_not(name: str) -> str:
    """Why an environment is not there, in a line."""
    said = _reason(name)
    return said.read_text().strip() if said.exists() else NOT_SET_UP


def set_up(name: str) -> bool:
    """Make an environment unless it is there; False, with the reason kept, where the packages do not install."""
    if python(name):
        return True
    folder, reason = _folder(name), _reason(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    reason.unlink(missing_ok=True)
    tell(f"{name}: installing …")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = [[sys.executable, "-m", "venv", str(folder)]]
    steps += [[*pip, *options, "-r", str(path)] for path, options in _lists(name)]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            reason.write_text(_last_error(done.stderr or done.stdout) + "\n")
            tell(f"{name}: not installed: {why_not(name)}")
            return False
    (folder / ".ready").write_text(_asked(name))
    return True


def _lists(name: str) -> list[tuple[Path, list[str]]]:
    """Files of packages with pip's options for them."""
    found = [(LISTS / f"{name}.txt", list[str]()), (LISTS / f"{name}-alone.txt", ["--no-deps"])]
    return [(path, options) for path, options in found if path.exists()]


def _asked(name: str) -> str:
    """Changes with the packages asked for and with the interpreter."""
    text = sys.version + "".join(path.read_text() for path, _ in _lists(name))
    return hashlib.sha256(text.encode()).hexdigest()


def _last_error(output: str) -> str:
    """The last line in which pip says what is wrong, or the last of all."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["pip said nothing"]
    return next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])


def _folder(name: str) -> Path:
    return HOME / f"env-{name}"


def _reason(name: str) -> Path:
    return HOME / f"env-{name}.txt"


def main() -> int:
    """Set up those named, or all; what does not install is told and left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(NAMES)}; all unless some are named")
    options = parser.parse_args()
    unknown = sorted(set(options.peers) - set(NAMES))
    if unknown:
        parser.error(f"no peer is called {' or '.join(unknown)}; there are {', '.join(NAMES)}")
    done = [set_up(name) for name in options.peers or NAMES]
    return 0 if any(done) else 1


if __name__ == "__main__":
    sys.exit(main())
