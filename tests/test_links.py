"""Links between processes: who is let in by its certificate, who is not and how all hear of it, what strangers do."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest import mock

import capture
import numpy as np
import pytest
import torch
from test_party import LIMIT_S, NAMES, at_once, commands, free_port, inputs, needs_crypten, started

from secureattn import load_model, load_protocol, make_plan
from secureattn.backends.crypten import links as linking
from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.door import Door
from secureattn.backends.crypten.launch import run_parties
from secureattn.backends.crypten.links import Links
from secureattn.backends.crypten.meeting import Address, Meeting
from secureattn.backends.crypten.table import Reached, Table, _write
from secureattn.backends.crypten.tls import Identity
from secureattn.backends.crypten.transport import Mesh
from secureattn.cli import main
from secureattn.deploy import certificates
from secureattn.deploy.party import Seat, take_part
from secureattn.errors import EngineError, InputError
from secureattn.nn.model import Model
from secureattn.runs import mpc

__all__ = ["inputs"]  # a fixture
ROLES = ["owner", "client", "dealer"]
LONG_AGO = datetime(2020, 1, 1, tzinfo=timezone.utc)
HERE = "127.0.0.1"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificates of a run."""
    folder = tmp_path_factory.mktemp("run")
    certificates.make(folder, ROLES)
    return folder


@pytest.fixture(scope="module")
def others(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    """Certificates that do not serve: of a client, made wrongly in one way each."""
    made = {}
    for name, own, more in (
        ("another authority", False, {}),
        ("expired", True, {"start": LONG_AGO, "days": 1}),
        ("too early", True, {"start": datetime.now(timezone.utc) + timedelta(days=2)}),
        ("another address", True, {"hosts": {"client": ["10.9.8.7"]}}),
        ("this address", True, {"hosts": {"client": ["10.9.8.7", HERE]}}),
    ):
        folder = tmp_path_factory.mktemp("others")
        if own:
            shutil.copytree(run / certificates.KEPT, folder / certificates.KEPT)
        made[name] = Identity.of(certificates.make(folder, ["client"], **more)[0])  # type: ignore[arg-type]
    return made


def links(run: Path | None, rank: int) -> Links:
    return Links(rank, NAMES, None if run is None else Identity.load(run, ROLES[rank]))


@contextlib.contextmanager
def served(run: Path | None) -> Iterator[tuple[Table, tuple[str, int]]]:
    """The first party's table, and where it is."""
    table = Table()
    with contextlib.closing(table):
        table.serve((HERE, 0), links(run, 0))
        assert table.door is not None
        yield table, (HERE, table.door.port)


def refusals(table: Table) -> str:
    """What the first party noted, once it has noted something."""
    assert table.door is not None
    door: Door = table.door
    wait_until(lambda: bool(door.refused))
    return "; ".join(door.refused)


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("not within 10 s")


# ---- who is let in ----------------------------------------------------------------------------------------------


def meshed(run: Path, work: Callable[[Mesh, int], Any]) -> list[Any]:
    """What each of three processes, here threads, makes of its connections."""
    address = Address(HERE, free_port())

    def one(rank: int) -> Any:
        identity = Identity.load(run, ROLES[rank])
        with Meeting(address, rank, NAMES, wait_s=20, identity=identity) as meeting:
            assert meeting.agree({"model": "m"}) == [{}] * 3
            with Mesh.connect(meeting.store, rank=rank, size=3, links=meeting.links) as mesh:
                found = work(mesh, rank)
            meeting.over()
            return found

    return at_once(one, 3)


def test_large_messages_cross_both_ways_at_once(run: Path) -> None:
    own = [torch.full((1 << 19,), rank, dtype=torch.int64) for rank in range(3)]

    def work(mesh: Mesh, rank: int) -> list[int]:
        return [int(t.sum()) >> 19 for t in mesh.exchange(own[rank], [r for r in range(3) if r != rank])]

    assert meshed(run, work) == [[1, 2], [0, 2], [0, 1]]


def test_one_connection_is_read_and_written_by_two_threads(run: Path) -> None:
    """As the dealer's, which answers while further requests come in."""
    turns = 300

    def work(mesh: Mesh, rank: int) -> list[int]:
        if rank == 1:
            return []
        other = 2 - rank
        for turn in range(turns):
            mesh.deliver(torch.full((5000 + turn,), turn, dtype=torch.int64), other)
        found = [mesh.receive(torch.empty(5000 + turn, dtype=torch.int64), other) for turn in range(turns)]
        mesh.delivered()
        return [turn for turn, t in enumerate(found) if bool((t != turn).any())]

    assert meshed(run, work) == [[], [], []]


def test_all_is_tls_1_3_and_no_certificate_is_no_entry(run: Path) -> None:
    with served(run) as (table, where):
        with links(run, 1).call(where, 0, wait_s=5) as connection:
            assert isinstance(connection, ssl.SSLSocket)
            assert connection.version() == "TLSv1.3"
        anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anybody.load_verify_locations(run / "owner" / "ca.pem")
        anybody.check_hostname = False
        with socket.create_connection(where) as plain, anybody.wrap_socket(plain) as stranger:
            with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
                stranger.recv(1)
        assert "it shows no certificate" in refusals(table)
        table.door.refused.clear()  # type: ignore[union-attr]
        anybody.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(where) as plain, pytest.raises(ssl.SSLError):
            anybody.wrap_socket(plain)
        assert "it does not speak TLS 1.3" in refusals(table)


@pytest.mark.parametrize(
    ("kind", "caller_says", "called_says"),
    [
        (
            "another authority",
            "its certificate is not from the authority in ca.pem",
            "it refuses this process's certificate, which is not from its authority",
        ),
        ("expired", "it refuses this process's certificate, which has expired", "its certificate has expired"),
        ("too early", "it refuses this process's TLS (bad certificate)", "its certificate is not valid yet"),
        (
            "another address",
            f"it refuses this process (its certificate is for 10.9.8.7, not for {HERE})",
            f"its certificate is for 10.9.8.7, not for {HERE}",
        ),
    ],
)
def test_a_certificate_that_does_not_serve(
    kind: str, caller_says: str, called_says: str, run: Path, others: dict[str, Identity]
) -> None:
    with served(run) as (table, where):
        with pytest.raises(EngineError) as said:
            Links(1, NAMES, others[kind]).call(where, 0, wait_s=5)
        assert str(said.value) == f"no connection to model owner at {HERE}:{where[1]}: {caller_says}"
        assert refusals(table) == f"{HERE} was refused: {called_says}"
        with links(run, 1).call(where, 0, wait_s=5) as connection:  # the rightful one still comes in
            assert Reached(connection, patience_s=5).add("taken/1", 1) == 1


def test_an_address_in_a_certificate_is_one_to_come_from(run: Path, others: dict[str, Identity]) -> None:
    with served(run) as (_, where), Links(1, NAMES, others["this address"]).call(where, 0, wait_s=5):
        pass


def test_the_clients_certificate_cannot_pose_as_the_dealers(run: Path) -> None:
    with served(run) as (table, where):
        with pytest.raises(EngineError, match="its certificate is for client, not for dealer"):
            Links(2, NAMES, Identity.of(run / "client")).call(where, 0, wait_s=5)
        assert "its certificate is for client, not for dealer" in refusals(table)


def test_who_is_called_must_have_the_role_too(run: Path) -> None:
    with contextlib.closing(Table()) as table:
        table.serve((HERE, 0), Links(0, NAMES, Identity.of(run / "dealer")))
        assert table.door is not None
        with pytest.raises(EngineError, match=r"model owner at .*: its certificate is for dealer, not for owner"):
            links(run, 1).call((HERE, table.door.port), 0, wait_s=5)


def test_nobody_writes_in_anothers_name(run: Path) -> None:
    with served(run) as (table, where):
        for write in (lambda t: t.set("told/2", "x"), lambda t: t.add("taken/0", 1)):
            with contextlib.closing(Reached(links(run, 1).call(where, 0, wait_s=5), patience_s=5)) as client:
                client.set("told/1", "mine")
                assert client.get("told/1") == b"mine"
                assert client.add("beat/2", 0) == 0
                with pytest.raises(OSError, match="the table does not answer"):
                    write(client)
        for nonsense in ([], {"what": "set", "key": 1, "value": 2}, {"what": "get", "key": {}, "value": 0}):
            with links(run, 1).call(where, 0, wait_s=5) as connection:
                _write(connection, nonsense)
                assert connection.recv(1) == b""
        assert not table.check(["told/2"])
        assert table.add("taken/0", 0) == 0


@pytest.mark.parametrize("sealed", ["caller", "called"])
def test_one_side_without_tls_is_one_line_at_both(sealed: str, run: Path) -> None:
    caller, called = (run, None) if sealed == "caller" else (None, run)
    with served(called) as (table, where):
        with pytest.raises(EngineError, match=r"not speak TLS\)?; give all processes --tls FOLDER, or none$"):
            links(caller, 1).call(where, 0, wait_s=5)
        assert "TLS" in refusals(table)


def test_a_rank_is_taken_once(run: Path) -> None:
    address = Address(HERE, free_port())

    def one(i: int) -> Any:
        rank = (0, 1, 1)[i]
        with Meeting(address, rank, NAMES[:2], wait_s=5, identity=Identity.load(run, ROLES[rank])) as meeting:
            told = meeting.agree({"model": "m"})
            meeting.over()
            return told

    results = at_once(one, 3)
    assert results[0] == [{}, {}]
    assert sum("client (rank 1) is at" in str(result) for result in results) == 1


# ---- strangers --------------------------------------------------------------------------------------------------


def garbage(where: tuple[str, int]) -> socket.socket:
    stranger = socket.create_connection(where)
    stranger.sendall(os.urandom(1000))
    return stranger


def silence(where: tuple[str, int]) -> socket.socket:
    return socket.create_connection(where)


def half_a_handshake(where: tuple[str, int]) -> socket.socket:
    stranger = socket.create_connection(where)
    stranger.sendall(b"\x16\x03\x01\x02\x00\x01")
    return stranger


def gone(where: tuple[str, int]) -> socket.socket:
    stranger = half_a_handshake(where)
    stranger.shutdown(socket.SHUT_RDWR)
    return stranger


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("stranger", [garbage, silence, half_a_handshake, gone])
def test_strangers_stop_nobody(stranger: Callable[[tuple[str, int]], socket.socket], sealed: bool, run: Path) -> None:
    """More of them than there are places for strangers, on the table's port and on every process's own."""
    folder = run if sealed else None
    meetings: dict[int, Meeting] = {}
    address, listens = Address(HERE, free_port()), threading.Barrier(3)
    with contextlib.ExitStack() as kept:

        def knock(where: tuple[str, int]) -> None:
            for _ in range(100):
                kept.enter_context(stranger(where))

        def one(rank: int) -> list[int]:
            identity = None if folder is None else Identity.load(folder, ROLES[rank])
            if rank:
                listens.wait(10)
            meetings[rank] = meeting = Meeting(address, rank, NAMES, wait_s=20, identity=identity)
            with meeting:
                if rank == 0:
                    knock((address.host, address.port))
                    listens.wait(10)
                elif rank == 2:
                    for other in (0, 1):  # they listen already, and wait for this one
                        wait_until(lambda at=f"at/{other}": meeting.store.check([at]))  # type: ignore[misc]
                        host, port = meeting.store.get(f"at/{other}").decode().split()
                        knock((host, int(port)))
                with Mesh.connect(meeting.store, rank=rank, size=3, links=meeting.links) as mesh:
                    own = torch.tensor([rank])
                    found = [int(t) for t in mesh.exchange(own, [r for r in range(3) if r != rank])]
                meeting.over()
                return found

        assert at_once(one, 3) == [[1, 2], [0, 2], [0, 1]]


def test_who_says_nothing_is_sent_away(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linking, "HANDSHAKE_S", 0.2)
    for folder in (run, None):
        for stranger in (silence, half_a_handshake):
            with served(folder) as (table, where), stranger(where) as connection:
                connection.settimeout(10)
                while connection.recv(64):
                    pass
                assert table.door is not None
                assert "was refused: it " in refusals(table)


def test_a_drop_at_a_time_gains_no_time(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linking, "HANDSHAKE_S", 0.5)
    with served(None) as (table, where), silence(where) as connection:
        sent = 0
        with contextlib.suppress(OSError):
            for octet in b"secattn\x01" + bytes(19):  # one short of a whole greeting
                connection.sendall(bytes([octet]))
                sent += 1
                threading.Event().wait(0.1)
        assert "in time" in refusals(table)
        assert sent < 27


def test_who_does_not_come_is_named_with_who_came_instead(run: Path) -> None:
    """The first party's own line tells of a client of another run."""
    address = Address(HERE, free_port())
    with Meeting(address, 0, NAMES[:2], wait_s=1.0, identity=Identity.load(run, "owner")) as meeting:
        with pytest.raises(EngineError):
            Links(1, NAMES).call((address.host, address.port), 0, wait_s=5)
        with pytest.raises(
            EngineError, match=rf"client did not come .* within 1 s; {HERE} was refused: it does not spe"
        ):
            meeting.agree({})


def test_who_answers_with_something_else_is_named(run: Path) -> None:
    with socket.create_server((HERE, 0)) as server:

        def banner() -> None:
            for _ in range(2):
                caller, _ = server.accept()
                with caller, contextlib.suppress(OSError):
                    caller.sendall(b"220 mail.example ESMTP ready, say hello\r\n")
                    while caller.recv(1 << 12):
                        pass

        thread = threading.Thread(target=banner)
        thread.start()
        where = server.getsockname()
        with pytest.raises(EngineError, match="it is no process of a run"):
            links(None, 1).call(where, 0, wait_s=5)
        with pytest.raises(EngineError, match="it does not speak TLS"):
            links(run, 1).call(where, 0, wait_s=5)
        thread.join(10)


def test_what_is_altered_on_the_way_ends_the_run(run: Path) -> None:
    """A man in the middle who puts a record in that no key of theirs sealed."""

    def work(mesh: Mesh, rank: int) -> Any:
        if rank == 0:
            with socket.socket(fileno=os.dup(mesh._connections[1].fileno())) as bare:
                bare.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        return mesh.receive(torch.empty(4, dtype=torch.int64), 0) if rank == 1 else None

    assert "was lost: something on the way altered what was sent" in str(meshed(run, work)[1])


# ---- files and options ------------------------------------------------------------------------------------------


def test_certificates_are_made_once_and_for_their_owner_alone(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "made"
    assert main(["certificates", "-o", str(folder)]) == 0
    assert "goes to no other machine" in capsys.readouterr().out
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.pem"))
    each = [f"{role}/{name}.pem" for role in ROLES for name in ("ca", "cert", "key")]
    assert files == sorted([*each, "authority/ca.pem", "authority/ca-key.pem"])
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*.pem")} == {0o600}
    before = {path: path.read_bytes() for path in folder.rglob("*.pem")}
    assert main(["certificates", "-o", str(folder), "--roles", "party-2,dealer"]) == 1
    assert "dealer exists and is never overwritten" in capsys.readouterr().err
    assert main(["certificates", "-o", str(folder), "--roles", "party-2", "--hosts", f"party-2={HERE},::1"]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert (folder / "party-2" / "ca.pem").read_bytes() == (folder / "owner" / "ca.pem").read_bytes()
    assert Identity.load(folder, "party-2")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--roles", "boss"], "a role is owner, client, dealer or party-N, not 'boss'"),
        (["--hosts", "party-2=10.0.0.1"], "--hosts names party-2, which is none of the roles"),
        (["--hosts", "owner=example.org"], "a certificate is kept to IP addresses, not to 'example.org'"),
    ],
)
def test_certificates_that_make_no_sense(more: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["certificates", "-o", str(tmp_path / "new"), *more]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_serve_is_one_sentence(run: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(run / "client", tmp_path / name))

    with pytest.raises(InputError, match=r"cert\.pem is for client, and this process is dealer"):
        Identity.load(run / "client", "dealer")
    (missing := copy("missing") / "ca.pem").unlink()
    with pytest.raises(InputError, match=r"has no ca\.pem; make certificates with secureattn certificates"):
        Identity.load(missing.parent, "client")
    (seen := copy("seen") / "key.pem").chmod(0o640)
    with pytest.raises(InputError, match=r"can be read by others \(mode 0640\); run chmod 600 "):
        Identity.load(seen.parent, "client")
    (foreign := copy("foreign") / "key.pem").write_bytes((run / "dealer" / "key.pem").read_bytes())
    with pytest.raises(InputError, match="cannot be used for TLS"):
        Identity.load(foreign.parent, "client")
    (broken := copy("broken") / "cert.pem").write_text("no certificate")
    with pytest.raises(InputError, match="is no certificate that names a role"):
        Identity.load(broken.parent, "client")
    shutil.copytree(run / certificates.KEPT, tmp_path / "old" / certificates.KEPT)
    (old,) = certificates.make(tmp_path / "old", ["client"], start=LONG_AGO, days=1)
    with pytest.raises(InputError, match="is valid from 2020-01-01 00:00 to 2020-01-02 00:00 UTC, not now"):
        Identity.load(old, "client")


@pytest.mark.parametrize("host", ["192.0.2.1", "0.0.0.0", "::"])
def test_plain_links_stay_on_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the way there is: who listens everywhere is open to all, though it reaches itself by loopback."""
    model, protocol = load_model("digits-vit"), load_protocol("accurate-mpc")
    monkeypatch.setattr("secureattn.deploy.party._own_address", lambda _: "127.0.0.1")
    with pytest.raises(InputError, match=rf"links to {host}:99 leave this machine .* or --insecure-links$"):
        take_part(model, protocol, Seat(2, Address(host, 99)))


def test_insecure_and_tls_exclude_each_other(capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["party", "m", "p", "--tls", "f", "--insecure-links"])
    assert "not allowed with" in capsys.readouterr().err


# ---- processes --------------------------------------------------------------------------------------------------


@dataclass
class Noted:
    """What one party brought back, sent and received: in all, and where results were opened."""

    outputs: Any
    crossed: list[bytes]
    opened: list[tuple[dict[int, Any], dict[int, Any]]]


def noting(backend: MpcBackend, argument: mpc.Argument) -> Noted:
    """A party's whole part, with every message it sends and receives noted."""
    move, reveal = Mesh._move, backend.reveal
    messages: list[tuple[dict[int, Any], dict[int, Any]]] = []
    opened: list[tuple[dict[int, Any], dict[int, Any]]] = []

    def moved(mesh: Mesh, sent: dict[int, torch.Tensor], found: dict[int, torch.Tensor]) -> None:
        move(mesh, sent, found)
        messages.append(({to: t.numpy() for to, t in sent.items()}, {by: t.numpy() for by, t in found.items()}))

    def revealed(tensor: Any, *, to: int | None) -> Any:
        before = len(messages)
        result = reveal(tensor, to=to)
        opened.extend(messages[before:])
        return result

    with mock.patch.object(Mesh, "_move", moved), mock.patch.object(backend, "reveal", revealed):
        outputs = mpc.party(backend, argument)
    return Noted(outputs, [t.tobytes() for both in messages for part in both for t in part.values()], opened)


@needs_crypten
def test_scores_are_opened_to_the_client_alone(inputs: Path) -> None:
    """The owner sends its share of them and receives nothing, so it never has what it would take to know them."""
    plan = make_plan(load_model("digits-vit"), load_protocol("accurate-mpc"), samples=12)
    batch = plan.model.batch(np.load(inputs))
    bare = Model(plan.model.folder, plan.model.config, plan.model.ranges)
    arguments = [(bare, plan.protocol, plan.shape, own) for own in (None, batch)]
    owner, client = (result.value for result in run_parties(noting, arguments, plan.protocol.mpc))
    assert owner.outputs is None
    ((sent, received),) = owner.opened
    assert received == {}
    assert list(sent) == [1]
    ((returned, share),) = client.opened
    assert returned == {}
    assert (share[0] == sent[1]).all()
    places = (plan.protocol.mpc.fractional_bits, plan.protocol.mpc.weight_bits)
    scores = capture.needles({"scores": client.outputs}, [], places)
    assert scores.found(np.ascontiguousarray(client.outputs).tobytes())
    assert not set().union(*(scores.found(message) for message in owner.crossed))
    assert np.abs(sent[1].astype(np.float64)).mean() > 2.0**60  # a share: all of the ring, whatever the scores


@pytest.mark.slow
@needs_crypten
@pytest.mark.parametrize("wrong", ["authority", "none", "role"])
def test_a_wrong_certificate_is_one_line_at_every_process(wrong: str, run: Path, inputs: Path, tmp_path: Path) -> None:
    """The dealer's, in a real run: none hangs, none writes scores."""
    lines = commands(f"{HERE}:{free_port()}", inputs, tmp_path, "--tls", str(run), "--wait", "8")
    where = lines[2].index("--tls")
    if wrong == "authority":
        certificates.make(tmp_path / "other", ["dealer"])
        lines[2][where + 1] = str(tmp_path / "other")
    elif wrong == "none":
        del lines[2][where : where + 2]
    else:
        lines[2][where + 1] = str(run / "client")
    processes = started(lines)
    ends = [process.communicate(timeout=LIMIT_S) for process in processes]
    assert [process.returncode for process in processes] == [1, 1, 1]
    for out, err in ends:
        assert out == ""
        assert err.startswith("secureattn: error: ")
        assert err.count("\n") == 1
    assert "dealer did not come" in ends[0][1]
    assert ("was refused" in ends[0][1]) == (wrong != "role")  # the dealer itself sees a wrong role at once
    assert not (tmp_path / "scores.npy").exists()


@pytest.mark.slow
@needs_crypten
@pytest.mark.skipif(importlib.util.find_spec("torch.distributed.run") is None, reason="torch has no torchrun")
def test_torchrun_starts_all_with_one_folder_of_certificates(run: Path, inputs: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "3",
        "--master-port",
        str(free_port()),
    ]
    command += ["-m", "secureattn.cli", "party", "digits-vit", "accurate-mpc", "--tls", str(run)]
    command += ["--input", str(inputs), "-o", str(tmp_path / "scores.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("TLS 1.3, both ends by certificate") == 3
    plan = make_plan(load_model("digits-vit"), load_protocol("accurate-mpc"), samples=12)
    from secureattn.runs import clear_run

    assert np.abs(np.load(tmp_path / "scores.npy") - clear_run(plan, np.load(inputs)).outputs).max() < 2e-3
