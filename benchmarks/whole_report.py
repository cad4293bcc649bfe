"""One document of all that is asked of encrypted inference between machines: peers, deployment, recording, workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import deployment_report
import overhead_report
import peers_report
import scaling_report
from checking import Check, Part, described

BESIDE = ("deployment", "recording", "workers")
"""Parts that are no comparison with a peer."""


def checks(parts: Mapping[str, Part], *, quick: bool) -> list[Check]:
    """One row a figure, computed from the raw samples of its part."""
    found = peers_report.checks(_peers(parts))
    if "deployment" in parts:
        found += deployment_report.checks(parts["deployment"], quick=quick)
    if "recording" in parts:
        found += _named("recording", overhead_report.checks(parts["recording"]["parts"], quick=quick))
    if "workers" in parts:
        found += _named("workers", scaling_report.checks(parts["workers"]["parts"]))
    return found


def document(parts: Mapping[str, Part], *, quick: bool) -> dict[str, Any]:
    """Everything, as JSON: machine, raw samples by part, and the checks."""
    return described(parts, checks(parts, quick=quick), quick=quick)


def text(document: Mapping[str, Any]) -> str:
    """The tables of peers and of the deployment; recording and workers have files of their own."""
    parts = document["parts"]
    compared = _peers(parts)
    found = [peers_report.text({**document, "parts": compared})] if compared else []
    if "deployment" in parts:
        found.append(deployment_report.text(parts["deployment"], quick=document["quick"]))
    return "\n".join(found)


def _peers(parts: Mapping[str, Part]) -> dict[str, Part]:
    return {name: part for name, part in parts.items() if name not in BESIDE}


def _named(name: str, found: list[Check]) -> list[Check]:
    return [{**check, "name": f"{name}: {check['name']}"} for check in found]
