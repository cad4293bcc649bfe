"""One process of a run on secret shares, started by itself: the model's owner, the client, another party, the dealer.

The processes meet at the first party's address, tell each other what they run, and refuse to go on unless it is the
same. Then each does its part; the model's owner alone reads the weights, the client alone the input and the result.
A process that dies, hangs or fails ends all others, each with one line that says why.

With certificates every connection is TLS 1.3 and both sides prove their role, the meeting place's too unless torchrun
keeps it. Without, what parties send each other is masked, but whoever reads all links reads the dealer's keys as well
and can take the masks off, and whoever writes to them can pose as a party: beyond this machine that is refused unless
asked for. torch.distributed and gloo alone give no encryption, no authentication and no roles.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from secureattn import __version__
from secureattn.backends.crypten import clocks, dealer
from secureattn.backends.crypten.backend import MpcBackend
from secureattn.backends.crypten.clocks import Offset
from secureattn.backends.crypten.links import LinkLost
from secureattn.backends.crypten.meeting import Address, Meeting
from secureattn.backends.crypten.pulse import Pulse
from secureattn.backends.crypten.ring import device_of
from secureattn.backends.crypten.runtime import CLIENT
from secureattn.backends.crypten.tls import Identity, role_of
from secureattn.backends.crypten.transport import Mesh, world_size
from secureattn.errors import EngineError, InputError, SecureAttnError
from secureattn.events import Recorder
from secureattn.ledger import Ledger, Party
from secureattn.nn.batch import Batch, Shape
from secureattn.nn.model import Model
from secureattn.plan import party_name
from secureattn.protocol import Protocol, fitted
from secureattn.runs.mpc import DEALER, party
from secureattn.runs.result import Array

WAIT_S = 60.0
SEALED = "TLS 1.3, both ends by certificate"
PLAIN = "neither encrypted nor authenticated"


@dataclass(frozen=True)
class Seat:
    """Which process of a run this is, and where all meet; ``launched`` by torchrun, which tells all the same."""

    rank: int
    address: Address
    wait_s: float = WAIT_S
    launched: bool = False
    tls: Path | None = None
    """The folder of this process's certificate (see ``tls``), or one with a folder for each role."""
    insecure: bool = False
    """Whether links without TLS may leave this machine."""


@dataclass(frozen=True)
class Outcome:
    """What one process brings back: outputs ``[N,C]`` at the client, of the model's ``kind``, and its own ledger, whose
    time line is on the first process's clock to within ``clock_error_s`` (None where nobody traced).
    """

    name: str
    rank: int
    samples: int
    outputs: Array | None
    ledger: Ledger
    kind: str = "scores"
    clock_error_s: float | None = None
    links: str = PLAIN


def names(protocol: Protocol) -> list[str]:
    """What the processes are called, by rank."""
    parties = [party_name(rank) for rank in range(protocol.mpc.parties)]
    return [*parties, DEALER] if protocol.mpc.dealer == "ttp" else parties


def check(protocol: Protocol, rank: int, processes: int | None = None) -> None:
    """Refuse a rank that the protocol has no place for, and a launcher's other number of processes."""
    if protocol.engine != "crypten":
        raise InputError(f"protocol {protocol.name} runs on {protocol.engine}, parties run on crypten")
    size = world_size(protocol.mpc)
    who = f"protocol {protocol.name} is for {size} processes ({', '.join(names(protocol))})"
    if processes is not None and processes != size:
        raise InputError(f"{who}, not for {processes}")
    if not 0 <= rank < size:
        raise InputError(f"{who}, with ranks from 0 to {size - 1}, not {rank}")


def take_part(
    model: Model,
    protocol: Protocol,
    seat: Seat,
    inputs: Batch | None = None,
    *,
    device: str = "cpu",
    trace: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Do one process's part of a run. ``inputs`` are the client's, None at all others. ``trace``: keep its time line,
    on the first process's clock.

    ``tell`` gets the one line of a process that must end because another hangs; it then ends at once, with status 1.
    """
    protocol = fitted(protocol, model)
    check(protocol, seat.rank)
    if (inputs is not None) != (seat.rank == CLIENT):
        raise InputError("the client, and nobody else, gives inputs")
    device_of(device)
    protocol.realisations(model)  # what cannot be served is refused before anybody waits
    recorder = Recorder(trace=trace)
    own = {
        "clock": clocks.identity() if trace else "",
        "trace": trace,
        **({} if inputs is None else asdict(inputs.shape)),
    }
    host, called = _own_address(seat.address), names(protocol)
    identity = None if seat.tls is None else Identity.load(seat.tls, role_of(called[seat.rank]))
    if identity is None and not seat.insecure and _leaves(seat.address, host):
        raise InputError(
            f"links to {seat.address.shown} leave this machine and would be {PLAIN}: anybody on the way could read the "
            "inputs or pose as a party; give --tls FOLDER (secureattn certificates makes it), or --insecure-links"
        )
    meeting = Meeting(seat.address, seat.rank, called, wait_s=seat.wait_s, identity=identity)
    with meeting:
        return _met(model, protocol, meeting, host, inputs, own, recorder, device, tell)


def _met(
    model: Model,
    protocol: Protocol,
    meeting: Meeting,
    host: str,
    inputs: Batch | None,
    own: Mapping[str, Any],
    recorder: Recorder,
    device: str,
    tell: Callable[[str], None],
) -> Outcome:
    called = meeting.names[meeting.rank]
    links = PLAIN if meeting.links.identity is None else SEALED
    try:
        told = meeting.agree({**_facts(model, protocol), "links": links}, own)
        with Pulse(meeting, tell):
            run = _Run(model, protocol, meeting, host, told, recorder)
            outcome = _work(run, inputs, device)
            meeting.over()
        return replace(outcome, links=links)
    except LinkLost as lost:
        raise EngineError(meeting.cause() or f"{called}: {lost}") from lost
    except BaseException as failure:
        reason = str(failure) if isinstance(failure, SecureAttnError) else f"{type(failure).__name__}: {failure}"
        meeting.failed(f"{called} ended: {' '.join(reason.split())}")
        raise


@dataclass(frozen=True)
class _Run:
    """What a process knows once all have met; ``told`` is what each said of itself, by rank."""

    model: Model
    protocol: Protocol
    meeting: Meeting
    host: str
    told: Sequence[Mapping[str, Any]]
    recorder: Recorder

    @property
    def shape(self) -> Shape:
        """Of the client's inputs."""
        said = self.told[CLIENT]
        lengths = said["lengths"]
        return Shape(int(said["samples"]), int(said["tokens"]), None if lengths is None else tuple(map(int, lengths)))

    def offset(self, mesh: Mesh) -> Offset | None:
        """Of this process's clock to the first one's; None, and no message, where nobody traces."""
        if not any(one["trace"] for one in self.told):
            return None
        with self.recorder.phase("setup"), self.recorder.op("compare_clocks"):
            return clocks.compared(mesh, [str(one["clock"]) for one in self.told])


def _work(run: _Run, inputs: Batch | None, device: str) -> Outcome:
    meeting, recorder, mpc = run.meeting, run.recorder, run.protocol.mpc
    rank, size, outputs = meeting.rank, world_size(mpc), None
    with recorder.phase("setup"), recorder.op("connect"):
        wait_s, links = meeting.wait_s, meeting.links
        mesh = Mesh.connect(meeting.store, rank=rank, size=size, host=run.host, wait_s=wait_s, links=links)
    with mesh:
        before = run.offset(mesh)
        if rank == mpc.parties:
            dealer.serve(mpc, mesh, recorder)
        else:
            outputs = _party(run, mesh, inputs, device)
        after = run.offset(mesh)
    offset = before.along(after) if before is not None and after is not None else None
    me = Party.of(meeting.names[rank], recorder)
    if offset is not None:
        me = replace(me, origin_s=me.origin_s + offset.seconds)
    ledger = Ledger(f"{run.model.config.name} · {run.protocol.name}", "crypten", (me,), measured=True)
    error_s = None if offset is None else offset.error_s
    return Outcome(me.name, rank, run.shape.samples, outputs, ledger, run.model.config.output, error_s)


def _party(run: _Run, mesh: Mesh, inputs: Batch | None, device: str) -> Array | None:
    from secureattn.backends.crypten.crypten_runtime import CryptenRuntime  # the dealer needs no CrypTen

    recorder = run.recorder
    with recorder.phase("setup"), recorder.op("connect"):
        runtime = CryptenRuntime(run.protocol.mpc, mesh, device=device)
    outputs = party(MpcBackend(runtime, recorder), (run.model, run.protocol, run.shape, inputs))
    runtime.finish()
    return outputs


def _facts(model: Model, protocol: Protocol) -> dict[str, str]:
    """What all processes must have in common; the weights are the owner's own business."""
    beyond = None if protocol.beyond is None else asdict(protocol.beyond)
    served = (protocol.functions, protocol.sites, protocol.softmax, beyond, protocol.embedding, asdict(protocol.mpc))
    described = {
        "protocol": (protocol.name, json.dumps(served, sort_keys=True, default=dict)),
        "model": (model.config.name, model.config.to_json() + model.ranges.to_json()),
    }
    hashes = {
        what: f"{name} ({hashlib.sha256(text.encode()).hexdigest()[:12]})" for what, (name, text) in described.items()
    }
    return {"secureattn": __version__, **hashes}


def _leaves(address: Address, host: str) -> bool:
    """Whether anything but this machine's loopback is an end of links, by any meaning of a name."""
    meant = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return not all(ip_address(end).is_loopback for end in (host, *(where[0] for *_, where in meant)))


def _own_address(address: Address) -> str:
    """This machine's address on the way to where all meet: it listens there and nowhere else."""
    try:
        (family, kind, _, _, where), *_ = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)
        with socket.socket(family, kind) as probe:
            probe.connect(where)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as failure:
        raise EngineError(f"{address.shown} cannot be reached: {failure}") from failure
