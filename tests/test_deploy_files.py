"""Encrypted inference by files: keys, queries, refreshes and results between processes that share nothing else."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import failed, run
from helpers import assert_close

from secureattn import load_model, load_protocol, make_plan
from secureattn.errors import EngineError, InputError, PlanError, SecureAttnError
from secureattn.nn.model import Model
from secureattn.plan import Plan, stored
from secureattn.plan.terms import Terms
from secureattn.protocol import CkksOptions
from secureattn.runs import clear_run

pytest.importorskip("tenseal")

from test_ckks_text import TEXTS, accurate, model, planned

from secureattn.backends.ckks.keys import EvaluationKeys
from secureattn.deploy import Evaluator, Owner, Rounds, parcel, read_offer, read_plan, rounds, write_plan
from secureattn.deploy.evaluator import load_keys
from secureattn.deploy.owner import key_sizes

__all__ = ["model"]  # a fixture

COUNT = 2
CKKS_ERROR = 2e-5


@dataclass(frozen=True)
class Kept:
    """A plan's file, the key owner's folder, a query of real images, and its result as files alone made it."""

    folder: Path
    plan: Plan
    inputs: Any
    owner: Owner
    evaluator: Evaluator

    def evaluated(self, query: Path, to: str, answer: Callable[..., list[bytes]] | None = None) -> Path:
        self.evaluator.evaluate(query, self.folder / to, answer or self.owner.client.refresh)
        return self.folder / to


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("files")
    model, protocol = load_model("digits-vit"), load_protocol("power-softmax-ckks")
    made = make_plan(model, protocol, samples=COUNT, workers=1)
    write_plan(made, folder / "plan.json")
    owner = Owner.generate(read_offer(folder / "plan.json"), folder / "keys")
    inputs, _ = model.samples(COUNT)
    owner.encrypt(inputs, folder / "query")
    evaluator = Evaluator(*read_plan(folder / "plan.json", model, protocol))
    evaluator.use(folder / "keys" / "evaluator")
    yield Kept(folder, made, inputs, owner, evaluator)
    owner.close()


def secureattn(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "secureattn.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


# ---- plans as documents -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 400])
def test_a_plan_survives_its_file(tmp_path: Path, samples: int) -> None:
    """In either layout, and with everything an evaluator goes by."""
    model, protocol = load_model("digits-vit"), load_protocol("power-softmax-ckks")
    made = make_plan(model, protocol, samples=samples, workers=2)
    offer = write_plan(made, tmp_path / "plan.json")
    again, same = read_plan(tmp_path / "plan.json", model, protocol)
    assert same == offer == read_offer(tmp_path / "plan.json")
    assert made.ckks is not None
    assert again.ckks is not None
    assert made.ckks.layout == ("dense" if samples == 1 else "batch")
    ours, theirs = made.ckks, again.ckks
    assert replace(ours, recorder=theirs.recorder) == theirs
    assert ours.recorder.events == theirs.recorder.events
    assert (made.samples, made.lengths, made.workers) == (again.samples, again.lengths, again.workers)


def test_terms_that_were_tampered_with_are_refused(kept: Kept) -> None:
    document = json.loads(json.dumps(Terms.of(kept.plan).document()))
    assert Terms.read(document) == Terms.of(kept.plan)
    weak = {**document["parameters"], "ring_degree": 8192}
    with pytest.raises(PlanError, match="128-bit security"):
        Terms.read({**document, "parameters": weak})
    for name in document:
        for bad in ("x", -1, [], {}, 1.5, [-1], {"x": 1}, None, True):
            changed = {**document, name: bad}
            assert outcome(changed) in (None, changed), f"{name} = {bad!r} was read as something else"
        assert outcome({key: value for key, value in document.items() if key != name}) is None
    assert outcome({**document, "rotations": [1, 1 << 40]}) is None
    assert outcome({**document, "capacity": 2 * document["capacity"]}) is None


def outcome(document: Any) -> Any:
    """The document that terms were read from, as they would be written; None where they are refused."""
    try:
        return json.loads(json.dumps(Terms.read(document).document()))
    except SecureAttnError:
        return None


def test_a_plan_that_would_hide_too_little_is_refused(kept: Kept) -> None:
    """An evaluator that is given a plan to refresh where masks hide little does not."""
    model, protocol = kept.plan.model, kept.plan.protocol
    wide = {name: 1e9 for name in model.ranges.bounds}
    loose = replace(model, ranges=replace(model.ranges, bounds=wide))
    with pytest.raises(PlanError, match=r"would hide .* bits, 40 are needed"):
        stored.plan_of(stored.document(kept.plan), Terms.of(kept.plan), loose, protocol)


def test_a_plan_of_another_model_protocol_or_release_says_which(kept: Kept, tmp_path: Path) -> None:
    path = kept.folder / "plan.json"
    with pytest.raises(InputError, match=r"is a plan of model digits-vit \(.*\), not digits-vit-oneshot"):
        read_plan(path, load_model("digits-vit-oneshot"), kept.plan.protocol)
    with pytest.raises(InputError, match="is a plan of protocol power-softmax-ckks"):
        read_plan(path, kept.plan.model, load_protocol("power-softmax-ckks-oneshot"))
    document = json.loads(path.read_text())
    document["identity"]["release"] = "9.9"
    (tmp_path / "other.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"release 9\.9 of secureattn"):
        read_plan(tmp_path / "other.json", kept.plan.model, kept.plan.protocol)
    for text in ("", "{", "[]", '{"format": 2}', '{"format": 1}', "[" * 100000):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError):
            read_offer(tmp_path / "bad.json")


# ---- files ------------------------------------------------------------------------------------------------------


def test_sizes_are_announced_and_the_secret_key_is_its_owners_alone(kept: Kept) -> None:
    keys = kept.folder / "keys"
    files = {path.name: path.stat().st_size for path in keys.rglob("*.key")}
    for name, size in key_sizes(kept.owner.offer).items():
        assert 0 < files.pop(name) - size < 8192
    assert not files
    assert stat.S_IMODE((keys / "secret.key").stat().st_mode) == 0o600
    with pytest.raises(InputError, match="never overwritten"):
        Owner.generate(kept.owner.offer, keys)
    secret = (keys / "secret.key").read_bytes()
    (keys / "evaluator" / "secret.key").write_bytes(secret)
    with pytest.raises(InputError, match="which no evaluator may have"):
        load_keys(keys / "evaluator", kept.owner.offer)
    (keys / "evaluator" / "secret.key").unlink()


def test_a_secret_key_that_others_can_read_is_not_used(kept: Kept, tmp_path: Path) -> None:
    for name in ("secret.key", "plan.json"):
        (tmp_path / name).write_bytes((kept.folder / "keys" / name).read_bytes())
    (tmp_path / "secret.key").chmod(0o640)
    with pytest.raises(InputError, match="can be read by others"):
        Owner.load(tmp_path)
    (tmp_path / "secret.key").chmod(0o600)
    loaded = Owner.load(tmp_path)
    assert loaded.keys == kept.owner.keys
    loaded.close()


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="only Linux has memory that is a file without a name")
def test_a_secret_key_is_loaded_by_way_of_no_folder(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files could not be made it is loaded all the same: neither the temporary directory nor a tmpfs is there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    loaded = Owner.load(kept.folder / "keys")
    ciphertext = kept.owner.client.owner.encrypt(np.array([1.5]))
    assert_close(loaded.client.owner.decrypt(ciphertext)[:1], np.array([1.5]), 1e-6, "noise of a fresh ciphertext")
    loaded.close()


@pytest.mark.parametrize("name", ["public.key", "evaluation.key"])
def test_a_flipped_bit_of_a_key_is_refused_before_anything_is_loaded(
    kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = kept.folder / "keys" / "evaluator"
    for file in folder.glob("*.key"):
        (tmp_path / file.name).hardlink_to(file)
    (tmp_path / name).unlink()
    shutil.copyfile(folder / name, tmp_path / name)
    monkeypatch.setattr(EvaluationKeys, "of_parts", lambda *_: pytest.fail("a damaged key was loaded"))
    size = (tmp_path / name).stat().st_size
    with (tmp_path / name).open("r+b", buffering=0) as key:
        for at in (0, 9, 300, size // 2, size - 1):
            key.seek(at)
            (good,) = key.read(1)
            key.seek(at)
            key.write(bytes([good ^ 1]))
            with pytest.raises(InputError):
                load_keys(tmp_path, kept.owner.offer)
            key.seek(at)
            key.write(bytes([good]))
    with pytest.raises(pytest.fail.Exception, match="a damaged key was loaded"):
        load_keys(tmp_path, kept.owner.offer)  # mended: it was the bits, and of_parts is where keys are loaded


def test_keys_are_read_through_once_to_be_checked(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(path: Path, said: bytes) -> str:
        hashed.append(path.name)
        return hash_of(path, said)

    hash_of = parcel._hash_of
    monkeypatch.setattr(parcel, "_hash_of", counted)
    keys, _ = load_keys(kept.folder / "keys" / "evaluator", kept.owner.offer)
    assert keys == kept.owner.keys
    assert sorted(hashed) == ["evaluation.key", "public.key"]


def test_results_equal_the_clear_run(kept: Kept) -> None:
    found = kept.owner.decrypt(kept.evaluated(kept.folder / "query", "result"))
    wanted = clear_run(kept.plan, kept.inputs).outputs
    assert_close(found, wanted, CKKS_ERROR, "encryption noise at scale 2^40 through 32 levels, logits to 8")
    events = kept.evaluator.ledger
    assert kept.plan.ckks is not None
    for name in ("ct_products", "rotations", "refreshes", "rounds"):
        assert events.total(name) == kept.plan.ckks.recorder.total(name), name


def test_a_query_may_hold_fewer_inputs_than_planned_and_no_more(kept: Kept) -> None:
    shape = kept.owner.encrypt(kept.inputs[1:], kept.folder / "one")
    assert shape.samples == 1
    found = kept.owner.decrypt(kept.evaluated(kept.folder / "one", "one-result"))
    wanted = clear_run(kept.plan, kept.inputs[1:]).outputs
    assert_close(found, wanted, CKKS_ERROR, "encryption noise at scale 2^40 through 32 levels, logits to 8")
    with pytest.raises(InputError, match="a query of this plan holds 1 to 2"):
        kept.owner.encrypt(np.concatenate([kept.inputs] * 2), kept.folder / "many")
    for bad in (kept.inputs[:, :3], kept.inputs * np.nan, np.array(["x"])):
        with pytest.raises(InputError):
            kept.owner.encrypt(bad, kept.folder / "many")
    assert not (kept.folder / "many").exists()


@pytest.mark.parametrize("field", ["kind", "parameters", "model", "protocol", "plan", "keys"])
def test_a_query_for_something_else_says_for_what(kept: Kept, tmp_path: Path, field: str) -> None:
    with parcel.opened(kept.folder / "query") as query:
        parts = {name: query.part(name) for name in query.names}
        note, label = query.note, query.label
    other = replace(label, **{field: parcel.RESULT if field == "kind" else f"other {'0' * 64}"})
    parcel.write(tmp_path / "query", other, parcel.blobs(parts), note)
    wanted = "holds a result, a query is needed" if field == "kind" else rf"was made for .*{field} other 0{{12}}, not "
    with pytest.raises(InputError, match=wanted):
        kept.evaluator.evaluate(tmp_path / "query", tmp_path / "result", kept.owner.client.refresh)
    assert not (tmp_path / "result").exists()


def test_rounds_through_a_folder(kept: Kept, tmp_path: Path) -> None:
    """Evaluator and key owner see nothing but the folder; what is left there is how it ended."""
    served: list[int] = []
    thread = threading.Thread(target=lambda: served.append(rounds.serve(kept.owner, tmp_path, wait_s=60)))
    with rounds.meeting(tmp_path):
        thread.start()
        waits = rounds.waiting(tmp_path, wait_s=60)
        through = Rounds(tmp_path, kept.owner.offer, kept.owner.keys, waits)
        result = kept.evaluated(kept.folder / "query", "through", through)
    thread.join(60)
    assert served == [kept.owner.offer.terms.rounds]
    assert [path.name for path in tmp_path.iterdir()] == ["done"]
    wanted = clear_run(kept.plan, kept.inputs).outputs
    assert_close(kept.owner.decrypt(result), wanted, CKKS_ERROR, "as by a call")


def test_an_answer_to_another_request_is_no_answer(kept: Kept, tmp_path: Path) -> None:
    """One of an earlier run, with the right number of ciphertexts under the right keys."""
    blob = kept.owner.client.owner.encrypt(np.zeros(4), 1)

    def stale(number: int) -> None:
        fresh = {str(i): blob for i in range(1)}
        note = {"round": number, "run": "0" * 32}
        label = kept.owner.offer.label(parcel.ANSWER, kept.owner.keys)
        parcel.write(rounds.answer_path(tmp_path, number), label, parcel.blobs(fresh), note)

    with pytest.raises(InputError, match="answers another request"):
        Rounds(tmp_path, kept.owner.offer, kept.owner.keys, stale)([blob], [1])
    waits = rounds.waiting(tmp_path, wait_s=0.05)
    with pytest.raises(EngineError, match=r"no answer to 001\.request came within"):
        Rounds(tmp_path, kept.owner.offer, kept.owner.keys, waits)([blob], [1])


def test_a_client_without_its_package_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    monkeypatch.delitem(sys.modules, "secureattn.deploy.connection", raising=False)
    with pytest.raises(EngineError, match=r"needs the package 'httpx2', which is missing; run pip install .*httpx2"):
        from secureattn.deploy import Connection  # noqa: F401


# ---- texts ------------------------------------------------------------------------------------------------------


def test_texts_of_any_length_by_files(model: Model, tmp_path: Path) -> None:
    """Their owner looks rows up in the model's public embedding; the evaluator sees how long each is."""
    plan = planned(model, replace(accurate("softmax"), ckks=CkksOptions(refresh="client", layout="batch")), TEXTS)
    write_plan(plan, tmp_path / "plan.json")
    again, offer = read_plan(tmp_path / "plan.json", model, plan.protocol)
    assert offer.terms.ragged
    owner = Owner.generate(offer, tmp_path / "keys")
    evaluator = Evaluator(again, offer)
    evaluator.use(tmp_path / "keys" / "evaluator")
    fewer = TEXTS.part([1, 4, 0])
    with pytest.raises(InputError, match="takes tokens, which its public embedding turns into numbers here"):
        owner.encrypt(fewer, tmp_path / "query")
    owner.encrypt(fewer, tmp_path / "query", model=model)
    with parcel.opened(tmp_path / "query") as query:
        assert query.note["lengths"] == [3, 2, 2]
    evaluator.evaluate(tmp_path / "query", tmp_path / "result", owner.client.refresh)
    found = owner.decrypt(tmp_path / "result")
    assert_close(found, clear_run(plan, fewer).outputs, 1e-4, "noise of a scale of 2^40 through a layer")
    owner.close()


# ---- the commands -----------------------------------------------------------------------------------------------


def test_the_five_commands(tmp_path: Path) -> None:
    """Each in a process of its own; two of them at once, in a folder both see."""
    model = load_model("digits-vit")
    inputs, _ = model.samples(1)
    np.save(tmp_path / "x.npy", inputs)
    at = ("digits-vit", "power-softmax-ckks")
    keys = tmp_path / "keys"
    said = secureattn("keygen", *at, "-o", keys, "--json", tmp_path / "keys.json")
    sizes = json.loads((tmp_path / "keys.json").read_text())["bytes"]
    assert {"secret.key", "evaluator/public.key", "evaluator/evaluation.key"} <= set(sizes)
    assert "evaluation.key" in said.stderr.splitlines()[0]
    assert "mode 0600" in said.stdout
    secureattn("encrypt", tmp_path / "x.npy", "--keys", keys, "-o", tmp_path / "query")
    alone = ("evaluate", *at, tmp_path / "query", "--keys", keys / "evaluator", "-o", tmp_path / "result")
    assert "refreshes 14 times; name a folder" in failed(*alone)
    command = [sys.executable, "-m", "secureattn.cli", "refresh", str(tmp_path / "rounds"), "--keys", str(keys)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        evaluated = secureattn(*alone, "--rounds", tmp_path / "rounds", "--json", tmp_path / "cost.json")
        answered, _ = owner.communicate(timeout=60)
    assert owner.returncode == 0
    assert "14 rounds answered" in answered
    assert "trust: semi-honest" in evaluated.stdout
    assert json.loads((tmp_path / "cost.json").read_text())["total"]["rounds"] == 14
    secureattn("decrypt", tmp_path / "result", "--keys", keys, "-o", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    wanted = clear_run(make_plan(model, load_protocol(at[1]), samples=1), inputs).outputs
    assert_close(np.array(found["scores"]), wanted, CKKS_ERROR, "encryption noise")
    assert found["classes"] == [int(wanted.argmax())]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["keygen", "-o", "keys"], 2, "give MODEL and PROTOCOL to plan for, or --plan FILE"),
        (["keygen", "digits-vit", "puma", "-o", "keys"], 1, "keys and queries are for plans under CKKS"),
        (["keygen", "digits-vit", "power-softmax-ckks", "--tokens", "8", "-o", "keys"], 1, "always 16 tokens, not 8"),
        (["encrypt", "x.npy", "--keys", "nowhere", "-o", "q"], 1, "input x.npy cannot be read"),
        (["decrypt", "r", "--keys", "nowhere", "-o", "r.json"], 1, "holds no secret.key; make keys"),
        (["refresh", "folder", "--keys", "nowhere"], 1, "holds no secret.key; make keys"),
    ],
)
def test_bad_usage_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.returncode == code
    assert said in done.stderr.splitlines()[-1]
    assert code == 2 or done.stderr.count("\n") == 1
