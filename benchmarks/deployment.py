"""What a deployment must withstand, with the figures that the tests of it record: spoilt uploads, several clients at
once, a server that is killed, requests of every kind, and what can be captured between parties.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as Xml
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import Setting, tell

TESTS = Path(__file__).resolve().parent.parent / "tests"
READERS = {
    True: "test_fuzz.py::test_spoilt_files_are_refused_by_every_reader",
    False: "test_fuzz.py::test_ten_thousand_spoilt_files_are_refused_by_every_reader",
}
UPLOADS = {
    True: "test_fuzz.py::test_a_server_refuses_spoilt_uploads",
    False: "test_fuzz.py::test_a_server_refuses_ten_thousand_spoilt_uploads",
}
"""By whether small versions will do."""

CLIENTS = "test_server.py::test_three_clients_at_once"
KILLED = "test_server.py::test_a_server_killed_in_the_middle"
REQUESTS = "test_server.py::test_nothing_that_its_own_description_allows_or_forbids_makes_it_fail"
CAPTURE = "test_capture.py::test_tls_shows_records_and_nothing_else"
_LIMIT_S = 3600


def measure(setting: Setting) -> dict[str, Any]:
    """Every test's outcome (``passed``, ``failed``, or ``skipped`` where the machine does not allow it), its seconds
    and the figures that it recorded, by the name that it has here.
    """
    asked = {"readers": READERS[setting.quick], "uploads": UPLOADS[setting.quick]}
    asked |= {"clients": CLIENTS, "killed": KILLED, "requests": REQUESTS, "capture": CAPTURE}
    found = {}
    for name, test in asked.items():
        tell(f"{name} …")
        found[name] = {"test": f"tests/{test}", "cases": run([test])}
    return {"tests": found}


def run(tests: Sequence[str]) -> list[dict[str, Any]]:
    """Tests in a process of their own; one record a case. RuntimeError where none could be run."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["-o", "junit_family=xunit1", f"--junitxml={kept}"]
        done = subprocess.run(
            [*command, *(str(TESTS / test) for test in tests)],
            capture_output=True,
            text=True,
            cwd=TESTS.parent,
            timeout=_LIMIT_S,
        )
        if not kept.exists():
            raise RuntimeError(f"no tests were run: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
        cases = [_case(case) for case in Xml.parse(kept).iter("testcase")]
    if not cases:
        raise RuntimeError(f"there are no tests {', '.join(tests)}")
    return cases


def _case(case: Xml.Element) -> dict[str, Any]:
    outcome, reason = "passed", None
    for kind, called in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if (found := case.find(kind)) is not None:
            outcome, reason = called, found.get("message")
    properties = {one.attrib["name"]: float(one.attrib["value"]) for one in case.iter("property")}
    return {
        "case": case.attrib["name"],
        "outcome": outcome,
        "reason": reason,
        "seconds": float(case.attrib["time"]),
        "figures": properties,
    }
