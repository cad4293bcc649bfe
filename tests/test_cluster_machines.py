"""A cluster of two machines, joined by Ray's own command, with a token: where replicas go, and a machine's loss."""

from __future__ import annotations

import contextlib
import secrets
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import capture
import pytest
from helpers import assert_close
from machines import Machine, machines
from service import NOISE, SAMPLES, Running, Small, running, small
from strangers import STRANGERS, assert_refused, knock

pytest.importorskip("tenseal")
pytest.importorskip("fastapi")
pytest.importorskip("ray", reason="a cluster needs ray: pip install ray")

from test_cluster import REPLICA, WORKER, eventually, infer

from secureattn.deploy.owner import Owner
from secureattn.deploy.server import cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(capture.missing()), reason=f"no machines can be made: {capture.missing()}"),
]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
PORT = 6379


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def owner(of: Small) -> Iterator[Owner]:
    made = Owner.generate(of.offer, of.folder / "keys")
    yield made
    made.close()


@dataclass(frozen=True)
class Joined:
    """Two machines, the first of them with Ray's head, and the address of that."""

    first: Machine
    second: Machine
    address: str

    def counts(self, called: str) -> list[int]:
        """Processes of a kind on each."""
        return [len(machine.processes(called)) for machine in (self.first, self.second)]

    def join(self) -> None:
        """Let the second machine join."""
        self.second.run(*RAY, "start", "--address", self.address, *_started(self.second))


def _started(machine: Machine) -> list[str]:
    store = ["--object-store-memory", str(100 << 20), "--disable-usage-stats"]
    return ["--node-ip-address", machine.address, "--num-cpus", "8", *store]


@pytest.fixture(scope="module")
def joined() -> Iterator[Joined]:
    """This thread is on the first machine, and so are servers."""
    with contextlib.ExitStack() as ending:
        folder = ending.enter_context(tempfile.TemporaryDirectory(prefix="sa-", ignore_cleanup_errors=True))
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        patch = ending.enter_context(pytest.MonkeyPatch.context())
        for name, value in {**token, "RAY_TMPDIR": folder, "TMPDIR": folder}.items():
            patch.setenv(name, value)
        first, second, _ = ending.enter_context(machines())
        found = Joined(first, second, f"{first.address}:{PORT}")
        head = ["start", "--head", "--port", str(PORT), "--include-dashboard", "false"]
        first.run(*RAY, *head, *_started(first))
        found.join()
        ending.enter_context(first.entered())
        yield found


@contextlib.contextmanager
def serving(of: Small, joined: Joined, address: str) -> Iterator[Running]:
    """A server of two replicas, one on each machine, which each have room for both."""
    with running(of, "--jobs", 2, "--cluster", address) as server:
        eventually(lambda: joined.counts(WORKER) == [1, 1], "a worker on each machine")
        assert joined.counts(REPLICA) == [1, 1]
        yield server


@pytest.mark.parametrize("found", [False, True], ids=["by address", "auto"])
def test_batches_are_spread_over_both_machines(of: Small, joined: Joined, owner: Owner, found: bool) -> None:
    """Neither of two batches answers its first refresh before the other is asked as well."""
    inputs, both = of.inputs(1, 2 * SAMPLES), threading.Barrier(2)
    with serving(of, joined, "auto" if found else joined.address) as server:
        scores = infer(server, owner, inputs, lambda: both.wait(60))
        assert cluster.PLAIN in server.errors.read_text()
        assert server.end() == 0
    assert_close(scores, of.clear(inputs), NOISE, "noise of a scale of 2^30")
    eventually(lambda: joined.counts(REPLICA) == [0, 0], "replicas are gone with their server")


def test_a_machine_is_lost_in_the_middle_of_a_job(of: Small, joined: Joined, owner: Owner) -> None:
    """Both machines have a batch when the second is gone: its batch is begun again on the first, and the machine gets
    a replica again once it is back.
    """
    inputs, both = of.inputs(2, 2 * SAMPLES), threading.Barrier(2, action=joined.second.kill)
    with serving(of, joined, joined.address) as server:
        (survivor,) = joined.first.processes(WORKER)
        scores = infer(server, owner, inputs, lambda: both.wait(60))
        assert_close(scores, of.clear(inputs), NOISE, "one of the batches at the second try")
        assert survivor in joined.first.processes(WORKER)
        assert " died: " in server.errors.read_text()
        eventually(lambda: joined.counts(WORKER) == [2, 0], "both replicas on the machine that is left")
    joined.join()


# ---- strangers --------------------------------------------------------------------------------------------------


def test_who_has_the_token_gets_in(joined: Joined) -> None:
    said, errors = knock(joined.address, {})
    assert said == "in\n", errors


@pytest.mark.parametrize("stranger", STRANGERS)
def test_strangers_are_refused(joined: Joined, stranger: str) -> None:
    assert_refused(knock(joined.address, STRANGERS[stranger]))
