"""SecureAttn beside its peers, each as pip gives it in an environment of its own: CrypTen, MPCFormer, SPU, TenSEAL; and
what else is asked of inference between machines.

    make bench-peers
    python benchmarks/peers.py [--quick] [--json FILE] [--only PART…] [--fresh]

The first sets up the environments too, the second measures with those that are there (peers_environments.py). Every
peer is checked against float64 of the function that it claims to compute, then timed in turn with SecureAttn on the
same weights and inputs. ``deployment`` runs the tests of what a deployment must withstand, and keeps the figures that
they record; ``recording`` and ``workers`` are the benchmarks overhead.py and scaling.py. What each part measured is
kept in ``out/peers`` and not measured again, unless ``--fresh``; with ``--only``, parts that are not there come from
``benchmarks/results``. Once all are there, writes tables and everything as JSON, raw samples and checks, to
``benchmarks/results``. Wants a quiet machine with two cores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import whole_report
from measuring import Setting, gathered, run_all


def blocks(setting: Setting) -> dict[str, Any]:
    """An encoder block on secret shares: CrypTen by its own functions, MPCFormer's, SPU with three parties and two."""
    import peers_block
    import peers_run

    peers_run.any_installed()
    return peers_block.measure(setting)


def layers(setting: Setting) -> dict[str, Any]:
    """A small encoder under CKKS, many images at once: TenSEAL's own layers of its CKKSTensor."""
    return _on_tenseal(setting, "CKKSTensor")


def vectors(setting: Setting) -> dict[str, Any]:
    """The same encoder on one image: TenSEAL's own layers of its CKKSVector."""
    return _on_tenseal(setting, "CKKSVector")


def _on_tenseal(setting: Setting, tensor: str) -> dict[str, Any]:
    import peers_layers
    import peers_run

    peers_run.any_installed()
    return peers_layers.measure(setting, tensor)


def deployment(setting: Setting) -> dict[str, Any]:
    """Ten thousand spoilt files and uploads, clients at once, a server killed, requests of every kind, captures."""
    import deployment

    return deployment.measure(setting)


def recording(setting: Setting) -> dict[str, Any]:
    """What recording costs on every engine."""
    import overhead

    return {"parts": gathered("overhead", overhead.PARTS, quick=setting.quick)}


def workers(setting: Setting) -> dict[str, Any]:
    """Jobs a minute of one worker and two, by pipes and by Ray."""
    import scaling

    return {"parts": gathered("scaling", scaling.PARTS, quick=setting.quick)}


_ALL = (blocks, layers, vectors, deployment, recording, workers)
PARTS: Mapping[str, Callable[[Setting], dict[str, Any]]] = {part.__name__: part for part in _ALL}


if __name__ == "__main__":
    sys.exit(run_all("peers", __doc__, PARTS, whole_report))
