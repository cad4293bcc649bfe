"""What crosses the wires between three machines: neither inputs nor weights nor scores, with TLS or without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import capture
import numpy as np
import pytest
import torch
from test_party import COMMAND, LIMIT_S, MODEL, PROTOCOL, SAMPLES, needs_crypten

from secureattn import load_model, load_protocol, make_plan
from secureattn.deploy import certificates
from secureattn.runs import clear_run

pytestmark = [
    needs_crypten,
    pytest.mark.skipif(bool(capture.missing()), reason=f"nothing can be captured: {capture.missing()}"),
]
WHERE = f"{capture.address(0)}:29500"
PLACES = (load_protocol(PROTOCOL).mpc.fractional_bits, load_protocol(PROTOCOL).mpc.weight_bits)


def captured(folder: Path, commands: Sequence[Sequence[str]]) -> tuple[list[Any], dict[capture.Flow, bytes]]:
    """Run a command in each namespace; how they ended, and all that crossed."""
    folder.mkdir()
    script = [sys.executable, capture.__file__, str(folder), json.dumps([list(command) for command in commands])]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # three processes share this machine
    done = subprocess.run([*capture.ISOLATED, *script], capture_output=True, text=True, timeout=2 * LIMIT_S, env=alone)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["lost"] == [0, 0, 0]
    return said["ends"], capture.flows(folder.glob("*.pcap"))


def tensors(found: Any) -> list[np.ndarray[Any, Any]]:
    """Every array in a nest of dataclasses, mappings and sequences."""
    if isinstance(found, (torch.Tensor, np.ndarray)):
        return [np.asarray(found, dtype=np.float64)]
    if is_dataclass(found):
        return tensors([getattr(found, field.name) for field in fields(found)])
    if isinstance(found, dict):
        return tensors(list(found.values()))
    return [array for one in found for array in tensors(one)] if isinstance(found, (list, tuple)) else []


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("capture") / "inputs.npy"
    np.save(path, load_model(MODEL).samples(SAMPLES)[0])
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Each process's own model folder. Where the client and the dealer would find weights is a pipe that nobody writes
    to: whoever opened it would wait for ever.
    """
    made = []
    for name in ("owner", "client", "dealer"):
        made.append(folder := tmp_path_factory.mktemp(name) / MODEL)
        folder.mkdir()
        for file in ("config.json", "ranges.json", "model.safetensors"):
            if file == "model.safetensors" and name != "owner":
                os.mkfifo(folder / file)
            else:
                (folder / file).write_bytes((load_model(MODEL).folder / file).read_bytes())
    return made


@pytest.fixture(scope="module")
def sought(inputs: Path) -> capture.Needles:
    """Inputs, weights as stored and as folded, scores, and the files."""
    model, plan = load_model(MODEL), make_plan(load_model(MODEL), load_protocol(PROTOCOL), samples=SAMPLES)
    values = {"input": np.load(inputs), "scores": clear_run(plan, np.load(inputs)).outputs}
    values |= {name: np.asarray(weight) for name, weight in model.weights.items()}
    values |= {f"folded {i}": array for i, array in enumerate(tensors(plan.folded()))}
    return capture.needles(values, [inputs, model.folder / "model.safetensors"], PLACES)


def classified(folder: Path, folders: list[Path], inputs: Path, links: list[list[str]]) -> dict[capture.Flow, bytes]:
    """A real run of three processes that ends well and classifies rightly, and all that crossed."""
    roles = (["owner"], ["client", "--input", str(inputs), "-o", str(folder.with_suffix(".npy"))], ["dealer"])
    commands = [
        [*COMMAND, str(model), PROTOCOL, "--rendezvous", WHERE, *link, "--rank", *role]
        for model, role, link in zip(folders, roles, links, strict=True)
    ]
    ends, flows = captured(folder, commands)
    assert [code for _, _, code in ends] == [0, 0, 0], ends
    scores = np.load(folder.with_suffix(".npy"))
    plan = make_plan(load_model(MODEL), load_protocol(PROTOCOL), samples=SAMPLES)
    assert np.abs(scores - clear_run(plan, np.load(inputs)).outputs).max() < 2e-3
    exact = capture.needles({"scores": scores}, [], PLACES)  # as opened at the client, to the last bit
    assert not set().union(*(exact.found(payload) for payload in flows.values()))
    return flows


def assert_all_crossed(flows: dict[capture.Flow, bytes]) -> None:
    """Every pair of processes talked over its wire, and shares of all images and masks for them went by."""
    pairs = {frozenset((flow[0], flow[2])) for flow in flows}
    assert pairs == {frozenset((capture.address(a), capture.address(b))) for a, b in capture.WIRES}
    assert sum(map(len, flows.values())) > 4e6


def test_the_search_finds_what_is_sent_in_the_clear(inputs: Path, sought: capture.Needles, tmp_path: Path) -> None:
    """Every encoding of an input and a weight over the same wires, at odd offsets: each is found, so none is missed."""
    weight = np.asarray(load_model(MODEL).weights["embed.weight"])
    sent, labels = [b"x"], set()
    for name, values in (("input", np.load(inputs)), ("embed.weight", weight)):
        for label, encoded in capture.encodings(name, values, PLACES):
            sent.append(encoded.tobytes() + b"odd")
            labels.add(label)
    for file in (inputs, load_model(MODEL).folder / "model.safetensors"):
        sent.append(file.read_bytes())
        labels.add(file.name)
    (tmp_path / "sent").write_bytes(b"".join(sent))
    where = f"('{capture.address(0)}', 29500)"
    listen = f"import socket; c = socket.create_server({where}).accept()[0]\nwhile c.recv(1 << 20): pass"
    send = (
        f"import socket, time\nfor _ in range(500):\n try: c = socket.create_connection({where}); break\n"
        f" except OSError: time.sleep(0.02)\nc.sendall(open({str(tmp_path / 'sent')!r}, 'rb').read())"
    )
    run = [sys.executable, "-c"]
    _, flows = captured(tmp_path / "clear", [[*run, listen], [*run, send], ["true"]])
    (payload,) = flows.values()
    assert payload == (tmp_path / "sent").read_bytes()
    assert labels <= sought.labels
    assert labels <= sought.found(payload)


def test_tls_shows_records_and_nothing_else(
    inputs: Path,
    folders: list[Path],
    sought: capture.Needles,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    certificates.make(tmp_path / "run", ["owner", "client", "dealer"])
    links = [["--tls", str(tmp_path / "run" / role)] for role in ("owner", "client", "dealer")]
    flows = classified(tmp_path / "tls", folders, inputs, links)
    assert_all_crossed(flows)
    record_property("captured_bytes", sum(map(len, flows.values())))
    record_property("sought", len(sought.labels))
    for flow, payload in flows.items():
        assert sought.found(payload) == set()
        called = (*flow[2:], *flow[:2]) in flows and payload[5] == 2
        assert called or payload[5] == 1  # a ServerHello, or a ClientHello
        capture.assert_tls_1_3(payload, called=called)


@pytest.mark.slow
def test_shares_hide_both_on_plain_links_too(
    inputs: Path, folders: list[Path], sought: capture.Needles, tmp_path: Path
) -> None:
    """What crosses plain links is masked: nothing is to be seen. It is not safe from whoever reads all of them, since
    the keys from which the masks are drawn cross as well.
    """
    flows = classified(tmp_path / "plain", folders, inputs, [["--insecure-links"]] * 3)
    assert_all_crossed(flows)
    for payload in flows.values():
        assert sought.found(payload) == set()
    assert any(b"secattn" in payload for payload in flows.values())  # it was plain indeed
    with pytest.raises(AssertionError):
        capture.assert_tls_1_3(next(iter(flows.values())), called=False)
