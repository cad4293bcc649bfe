"""Files from anybody: damaged, forged, of other plans and keys, too large, compressed; each refusal is a sentence."""

from __future__ import annotations

import functools
import gzip
import json
import os
import resource
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from service import NOISE, Small, running, small

pytest.importorskip("tenseal")
pytest.importorskip("fastapi")

import httpx2
from helpers import assert_close

from secureattn.backends.ckks.seal import Ring
from secureattn.backends.ckks.wire import widen
from secureattn.deploy import parcel
from secureattn.deploy.checks import check_query, key_id
from secureattn.deploy.connection import Connection
from secureattn.deploy.evaluator import load_keys
from secureattn.deploy.offer import Offer, read_offer
from secureattn.deploy.owner import Owner
from secureattn.errors import SecureAttnError

FEW, MANY = 300, 10_000
Record = Callable[[str, object], None]
"""``record_property``: figures that the benchmarks publish, in the report of a run."""
BODY = "application/octet-stream"
SETTINGS: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.generate,),
}


@dataclass(frozen=True)
class Files:
    """Good files of every kind that a server reads, and how each is read by those who must."""

    of: Small
    owner: Owner
    good: dict[str, bytes]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    of = small(tmp_path_factory.mktemp("small"))
    owner = Owner.generate(of.offer, of.folder / "keys")
    owner.encrypt(of.inputs(1), of.folder / "query")
    blob, level = owner.client.owner.encrypt([0.5], 1), 2
    label, note = of.offer.label(parcel.REFRESH, owner.keys), {"round": 1, "run": "0" * 32, "levels": [level]}
    parcel.write(of.folder / "request", label, parcel.blobs({"0": blob}), note)
    good = {name: (of.folder / name).read_bytes() for name in ("query", "request")}
    good["offer"] = json.dumps(of.offer.document()).encode()
    good["public"] = (of.folder / "keys" / "evaluator" / "public.key").read_bytes()
    good["ciphertext"] = blob
    yield Files(of, owner, good)
    owner.close()


# ---- what may come -----------------------------------------------------------------------------------------------


def truncated(draw: st.DrawFn, good: bytes) -> bytes:
    return good[: draw(st.integers(0, len(good) - 1))]


def flipped(draw: st.DrawFn, good: bytes) -> bytes:
    """A few bits, most of them near the beginning, where a file says what it is."""
    bad = bytearray(good)
    near = st.integers(0, min(2048, len(good) - 1))
    for at in draw(st.lists(st.one_of(near, st.integers(0, len(good) - 1)), min_size=1, max_size=4, unique=True)):
        bad[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(bad)


def oversized(draw: st.DrawFn, good: bytes) -> bytes:
    return good + draw(st.binary(min_size=1, max_size=64)) * draw(st.sampled_from([1, 1000, 20_000]))


def spliced(draw: st.DrawFn, good: bytes) -> bytes:
    """Something else in the middle: zeros, ones, text, the file's own beginning."""
    at, length = draw(st.integers(0, len(good) - 1)), draw(st.integers(1, 256))
    inside = draw(st.sampled_from([b"\0" * length, b"\xff" * length, b"9" * length, b"[" * length, good[:length]]))
    bad = good[:at] + inside + good[at + draw(st.sampled_from([0, len(inside)])) :]
    return bad if bad != good else good + b"\0"


def compressed(draw: st.DrawFn, good: bytes) -> bytes:
    """Bombs: megabytes of zeros in kilobytes, as gzip and zlib make them, and behind a good file's header."""
    size = draw(st.sampled_from([1 << 16, 1 << 20, 1 << 22]))
    compress = draw(st.sampled_from([gzip.compress, zlib.compress]))
    made = bomb(size, compress)
    return draw(st.sampled_from([made, good[:64] + made]))


@functools.cache
def bomb(size: int, compress: Callable[[bytes], bytes]) -> bytes:
    return compress(bytes(size))


def rewritten(draw: st.DrawFn, good: bytes) -> bytes:
    """A header that lies: other lengths, offsets, types, names, numbers, nesting; valid JSON or nearly."""
    length = int.from_bytes(good[:8], "little")
    text = good[8 : 8 + length].decode(errors="replace")
    one = draw(
        st.sampled_from(["-1", "1e400", "99999999999999999999", "null", "[]", '"x"', "NaN", "[" * 300, "{}", "0"])
    )
    digits = [i for i, c in enumerate(text) if c.isdigit()] or [0]
    at = draw(st.sampled_from(digits))
    text = text[:at] + one + text[at + 1 :]
    told = draw(st.sampled_from([len(text.encode()), length, 0, 1 << 20, 1 << 40, (1 << 64) - 1]))
    return told.to_bytes(8, "little") + text.encode() + good[8 + length :]


KINDS: list[Callable[[st.DrawFn, bytes], bytes]] = [truncated, flipped, oversized, spliced, compressed, rewritten]


@st.composite
def bad_files(draw: st.DrawFn, good: dict[str, bytes], names: list[str]) -> tuple[str, bytes]:
    """One of the good files, spoilt, or nothing but noise."""
    name = draw(st.sampled_from(names))
    kind = draw(st.sampled_from([*KINDS, None]))
    bad = draw(st.binary(max_size=200)) if kind is None else kind(draw, good[name])
    return name, bad if bad != good[name] else bad + b"\0"


def is_one_sentence(message: str) -> bool:
    return 0 < len(message) < 600 and "\n" not in message and "Traceback" not in message


# ---- readers ----------------------------------------------------------------------------------------------------


def read(files: Files, ring: Ring, name: str, path: Path) -> None:
    """As a server or key owner reads such a file; raises what they raise, returns where nothing is wrong."""
    offer, keys = files.of.offer, files.owner.keys
    if name == "ciphertext":
        widen(offer.terms.parameters, path.read_bytes())
        ring.load(path.read_bytes())
    elif name == "offer":
        read_offer(path)
    elif name == "request":
        files.owner.answer(path, path.with_name("answer"))
    elif name == "query":
        with parcel.opened(path) as query:
            check_query(query, offer, keys)
    else:
        with parcel.opened(path, offer.label(parcel.PUBLIC, keys)) as public:
            assert key_id(public.part("public")) == keys


def fuzz_readers(files: Files, examples: int, record: Record) -> None:
    ring, path = Ring(files.of.offer.terms.parameters), files.of.folder / "fuzzed"
    seen, fed = {"refused": 0, "read": 0}, [0]

    @settings(max_examples=examples, **SETTINGS)
    @given(st.data())
    def feed(data: st.DataObject) -> None:
        name, blob = data.draw(bad_files(files.good, list(files.good)))
        fed[0] += 1
        path.write_bytes(blob)
        try:
            read(files, ring, name, path)
        except SecureAttnError as error:
            seen["refused"] += is_one_sentence(str(error))
        else:
            # residues that were changed and are below their primes are a ciphertext; a plan's words say what they say
            seen["read"] += name in ("ciphertext", "offer")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        feed()
    finally:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        for name, value in {"fed": fed[0], "amiss": fed[0] - sum(seen.values()), "grown_bytes": grown}.items():
            record(name, value)
    assert grown < 256 << 20, f"reading took {grown >> 20} MiB"
    assert seen["refused"] > 0.8 * examples
    assert sum(seen.values()) == fed[0] >= examples, "a file that was changed was read, or refused in no sentence"


def test_good_files_are_read(files: Files) -> None:
    """What follows spoils these; were they refused as they are, it would say nothing."""
    ring = Ring(files.of.offer.terms.parameters)
    for name, blob in files.good.items():
        path = files.of.folder / "good"
        path.write_bytes(blob)
        read(files, ring, name, path)


def test_spoilt_files_are_refused_by_every_reader(files: Files, record_property: Record) -> None:
    fuzz_readers(files, FEW, record_property)


@pytest.mark.slow
def test_ten_thousand_spoilt_files_are_refused_by_every_reader(files: Files, record_property: Record) -> None:
    fuzz_readers(files, MANY, record_property)


@pytest.mark.parametrize("name", ["public.key", "evaluation.key"])
def test_keys_whose_residues_were_forged_are_refused_where_they_are_loaded(
    files: Files, tmp_path: Path, name: str
) -> None:
    """With a hash that fits: residues above their primes, and those of a key of another name."""
    for file in ("public.key", "evaluation.key"):
        (tmp_path / file).write_bytes((files.of.folder / "keys" / "evaluator" / file).read_bytes())
    with parcel.opened(tmp_path / name) as key:
        parts = {part: b"\xff" * key.size(part) for part in key.names}
        label = key.label
    parcel.write(tmp_path / name, label, parcel.blobs(parts), {})
    with pytest.raises(SecureAttnError, match=r"its key has another name|SEAL refuses its residues"):
        load_keys(tmp_path, files.of.offer)


# ---- over HTTP --------------------------------------------------------------------------------------------------


def fuzz_server(files: Files, examples: int, record: Record) -> None:
    """Uploads to every route that takes one, in every way they can be wrong, to a server that is none the worse."""
    owner, statuses, longest_s, fine = files.owner, dict[int, int](), [0.0], [0]
    foreign = Owner.generate(files.of.offer, files.of.folder / f"foreign-{uuid.uuid4()}")
    foreign.encrypt(files.of.inputs(2), files.of.folder / "foreign-query")
    good = {**files.good, "foreign": (files.of.folder / "foreign-query").read_bytes()}
    good |= {f"other {name}": other_label(files, name) for name in ("parameters", "model", "protocol", "plan", "kind")}
    state = files.of.folder / f"state-{uuid.uuid4()}"
    with running(files.of, "--state", state) as server, httpx2.Client(base_url=server.url, timeout=60) as client:
        with Connection(server.url) as connection:
            connection.give_keys(owner)
        routes = {
            "query": lambda: f"/v1/jobs/{uuid.uuid4()}",
            "public": lambda: f"/v1/keys/{owner.keys[:-4]}{os.urandom(2).hex()}/public",
            "evaluation": lambda: f"/v1/keys/{owner.keys[:-4]}{os.urandom(2).hex()}/evaluation",
            "answer": lambda: f"/v1/jobs/{uuid.uuid4()}/rounds/1",
        }

        @settings(max_examples=examples, **SETTINGS)
        @given(st.data())
        def send(data: st.DataObject) -> None:
            whole = data.draw(st.booleans())
            names = [name for name in good if whole and name not in ("query", "offer")] or list(files.good)
            name, blob = data.draw(bad_files(good, names))
            blob = good[name] if whole else blob
            headers = {"content-type": data.draw(st.sampled_from([BODY] * 9 + ["text/plain"]))}
            if data.draw(st.integers(0, 19)) == 0:
                headers["content-encoding"] = "gzip"
            path, began = routes[data.draw(st.sampled_from(list(routes)))](), time.monotonic()
            answer = client.put(path, content=blob, headers=headers)
            longest_s[0] = max(longest_s[0], time.monotonic() - began)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            assert 400 <= answer.status_code < 500, answer.text
            assert set(answer.json()) == {"error"}
            assert is_one_sentence(answer.json()["error"]), answer.text
            fine[0] += 1

        client.get("/health")
        before = peak_bytes(server.process.pid)
        try:
            send()
        finally:
            grown, sent = peak_bytes(server.process.pid) - before, sum(statuses.values())
            figures = {"fed": sent, "amiss": sent - fine[0], "longest_s": longest_s[0], "grown_bytes": grown}
            for name, value in figures.items():
                record(name, value)
        assert grown < 128 << 20
        assert client.get("/health").json() == {"ready": True, "workers": 1, "draining": False}
        assert list((state / "incoming").iterdir()) == list((state / "jobs").iterdir()) == []
        with Connection(server.url) as connection:
            assert_close(
                connection.infer(owner, files.of.inputs(3)), files.of.clear(files.of.inputs(3)), NOISE, "as ever"
            )
        assert "Traceback" not in server.errors.read_text()
    foreign.close()
    assert sum(statuses.values()) >= examples
    assert {400, 404, 413, 415} <= set(statuses)


def other_label(files: Files, field: str) -> bytes:
    """A query, whole, that says it is for something else."""
    path = files.of.folder / "other"
    with parcel.opened(files.of.folder / "query") as query:
        parts, label, note = {name: query.part(name) for name in query.names}, query.label, query.note
    changed = parcel.RESULT if field == "kind" else f"other {'1' * 64}"
    parcel.write(path, replace(label, **{field: changed}), parcel.blobs(parts), note)
    return path.read_bytes()


def peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def test_a_server_refuses_spoilt_uploads(files: Files, record_property: Record) -> None:
    fuzz_server(files, FEW, record_property)


@pytest.mark.slow
def test_a_server_refuses_ten_thousand_spoilt_uploads(files: Files, record_property: Record) -> None:
    fuzz_server(files, MANY, record_property)


def test_a_query_that_only_seal_can_refuse_fails_in_one_sentence_and_harms_nothing(files: Files) -> None:
    """With a hash that fits: residues above their primes, a level or scale that is not the plan's, another key's."""
    of, owner = files.of, files.owner
    parameters = of.offer.terms.parameters
    good = owner.client.owner.encrypt([0.5], of.offer.terms.input_levels[0], parameters.scales[-1])
    other = owner.client.owner.encrypt([0.5], of.offer.terms.input_levels[0], 2.0**20)
    forged = {"above": good[:32] + b"\xff" * (len(good) - 32), "scale": other, "seed": good[:-65] + b"\xff" * 65}
    with running(of) as server, httpx2.Client(base_url=server.url, timeout=60) as client:
        with Connection(server.url) as connection:
            connection.give_keys(owner)
        for name, blob in forged.items():
            path, job = of.folder / name, f"/v1/jobs/{uuid.uuid4()}"
            note = {"samples": 1, "lengths": None}
            parcel.write(path, of.offer.label(parcel.QUERY, owner.keys), parcel.blobs({"0/0": blob}), note)
            accepted = client.put(job, content=path.read_bytes(), headers={"content-type": BODY})
            assert accepted.status_code == 200, accepted.text
            told = ended(client, job)
            assert told["state"] == "failed", name
            assert is_one_sentence(told["error"]), name
            assert "ciphertext" in told["error"]
        with Connection(server.url) as connection:
            assert_close(connection.infer(owner, of.inputs(4)), of.clear(of.inputs(4)), NOISE, "the same worker")
        assert "worker_deaths_total 0.0" in client.get("/metrics").text


def ended(client: httpx2.Client, job: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        told: dict[str, Any] = client.get(job).json()
        if told["state"] not in ("queued", "running"):
            return told
        time.sleep(0.02)
    raise AssertionError("it did not end within a minute")


def test_offers_that_are_no_offers(files: Files, tmp_path: Path) -> None:
    for document in (None, [], 1, {}, {"format": 1}, {**files.of.offer.document(), "terms": []}):
        with pytest.raises(SecureAttnError) as caught:
            Offer.read(document, "the offer")
        assert is_one_sentence(str(caught.value))
