"""The comparison with peers: what it makes of its samples, what makes a peer wrong, and all of it in small."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import BENCHMARKS, assert_close

from secureattn.backends.ckks.parameters import chain

NOT_OURS = [*sorted((BENCHMARKS / "peers").glob("*.py"), key=str)]
NOT_OURS += [BENCHMARKS / f"{name}.py" for name in ("crypten_block", "processes", "tenseal_batch", "tenseal_vectors")]
ENVIRONMENTS = BENCHMARKS.parent / "out" / "peers"


@pytest.fixture(scope="module")
def report(benchmarks: Callable[[str], ModuleType]) -> ModuleType:
    return benchmarks("peers_report")


def run(**changed: Any) -> dict[str, Any]:
    sent = {"bytes_sent": 10, "bytes_all": 40, "rounds": 20}
    return {"total_s": 2.0, "online_s": 1.0, **sent, "max_abs_error": 1e-3, "peak_bytes": 100, **changed}


def peer(*turns: dict[str, Any], **changed: Any) -> dict[str, Any]:
    kept = {"turns": list(turns), "checked": run(), "wrong": [], "versions": {"that": "1.0"}}
    return {"against": "here", "most_error": 0.02, "status": "measured", "reason": None, **kept, **changed}


def parts(one: dict[str, Any], ours: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    case = {"label": "16 × 64", "load": [0.1, 0.3], "ours": {"here": ours or [run()] * 3}, "peers": {"That": one}}
    return {"blocks": {"commit": "abc", "cases": [case]}}


def failed(report: ModuleType, found: dict[str, Any]) -> dict[str, float]:
    return {check["name"]: check["value"] for check in report.checks(found) if not check["ok"]}


def test_ratios_are_medians_of_turns(report: ModuleType) -> None:
    turns = [run(total_s=9.0), run(total_s=8.0), run(total_s=3.0)]
    ours = [run(total_s=1.0), run(total_s=2.0), run(total_s=3.0)]
    assert report.ratio("total_s", turns, ours) == 4.0
    assert report.ratio("max_abs_error", [run(max_abs_error=6e-3), run()], [run(), run(max_abs_error=2e-3)]) == 3.0
    assert failed(report, parts(peer(*turns), ours)) == {}


@pytest.mark.parametrize(
    ("figure", "value", "called"),
    [
        ("total_s", 1.0, "seconds in all"),
        ("online_s", 0.5, "seconds online"),
        ("bytes_sent", 5, "bytes that a party sends"),
        ("bytes_all", 20, "bytes of all, dealer included"),
        ("rounds", 10, "rounds"),
        ("max_abs_error", 5e-4, "largest error"),
        ("peak_bytes", 50, "peak memory"),
    ],
)
def test_a_figure_that_falls_short_says_so(report: ModuleType, figure: str, value: float, called: str) -> None:
    found = parts(peer(*[run(**{figure: value})] * 3))
    assert failed(report, found) == {f"That, 16 × 64: {called}, its over ours": 0.5}
    assert len(report.checks(found)) == 8
    assert report._table(found["blocks"]).count("**0.50**") == 1


def test_what_a_peer_does_not_count_is_no_figure(report: ModuleType) -> None:
    found = parts(peer(*[run(online_s=None, rounds=None)] * 3))
    assert not any("online" in check["name"] or "rounds" in check["name"] for check in report.checks(found))
    table = report._table(found["blocks"])
    assert "| -- · 1.00 s |" in table
    assert "| -- · 20 |" in table


def test_a_wrong_peer_is_not_timed(report: ModuleType) -> None:
    wrong = [{"max_abs_error": 0.9, "reason": "1 of 9 values off by up to 9.0e-01"}]
    found = parts(peer(status="wrong", reason="off", wrong=wrong))
    (check,) = report.checks(found)
    assert (check["value"], check["bar"], check["ok"]) == (0.9, 0.02, False)
    assert "| wrong: off | -- |" in report._table(found["blocks"])


def test_a_peer_that_is_wrong_at_times_says_how_often(report: ModuleType) -> None:
    wrong = [{"max_abs_error": 0.9, "reason": "1 of 9 values off by up to 9.0e-01"}]
    found = parts(peer(*[run()] * 3, wrong=wrong))
    assert failed(report, found) == {"That, 16 × 64: its error on its own function": 0.9}
    assert "1 of 4 runs wrong: 1 of 9 values off" in report._table(found["blocks"])


def test_absent_and_failing_peers(report: ModuleType) -> None:
    absent = parts(peer(status="not installed", reason="no wheel"))
    assert report.checks(absent) == []
    assert "| not installed: no wheel | -- |" in report._table(absent["blocks"])
    assert list(failed(report, parts(peer(status="failed", reason="status 1")))) == ["That, 16 × 64: runs that failed"]


def test_shipped_figures_are_computed_from_shipped_samples(benchmarks: Callable[[str], ModuleType]) -> None:
    whole = benchmarks("whole_report")
    document = json.loads((BENCHMARKS / "results" / "peers.json").read_text())
    assert document["checks"] == whole.checks(document["parts"], quick=False)
    assert (BENCHMARKS / "results" / "peers.md").read_text() == whole.text(document)
    assert {len(part["cases"]) for part in document["parts"].values() if "cases" in part} == {3}


@pytest.mark.parametrize("path", NOT_OURS, ids=lambda path: path.name)
def test_what_peers_run_is_not_ours(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    assert names
    assert not [name for name in names if name.split(".")[0] == "secureattn"]


@pytest.mark.parametrize("part", ["layers", "vectors"])
def test_tables_say_what_they_are_of(report: ModuleType, part: str) -> None:
    here = {"cpu": "this", "cores": 2}
    (blocks,) = parts(peer(*[run()] * 3)).values()
    one = {**blocks, "images": 360, "machine": {"cpu": "that", "cores": 4}, "commit": "def"}
    text = report.text({"machine": here, "parts": {"blocks": blocks, part: one}})
    assert text.count("| 16 × 64 | That | here |") == 2
    assert text.index(report.BLOCKS[:40]) < text.index({"layers": "Under CKKS", "vectors": "on a single image"}[part])
    assert f"this, 2 cores (blocks at abc) and on that, 4 cores ({part} at def)" in text
    assert {"layers": "3 under CKKS", "vectors": "3 on one image"}[part] in text
    alike = report.text({"machine": here, "parts": {"blocks": blocks, part: {**blocks, "images": 360}}})
    assert "Measured on this, 2 cores; that 1.0." in alike


# ---- TenSEAL's vectors ---------------------------------------------------------------------------------------


def tiny(tokens: int, width: int, heads: int, hidden: int) -> SimpleNamespace:
    """A folded model with polynomials of degree 3, four features and two classes."""
    draw = np.random.default_rng(3)

    def linear(outputs: int, inputs: int) -> SimpleNamespace:
        weight = draw.uniform(-1, 1, (outputs, inputs)) / inputs**0.5
        return SimpleNamespace(weight=weight, bias=draw.uniform(-0.5, 0.5, outputs))

    def fitted(slope: float, shift: float) -> SimpleNamespace:
        coefficients = draw.uniform(-0.5, 0.5, 4)
        return SimpleNamespace(polynomial=SimpleNamespace(coefficients=coefficients, slope=slope, shift=shift))

    functions = {"attention/norm": fitted(0.5, -0.5), "attention/normaliser": fitted(1.0, -0.25)}
    functions |= {"ffn/norm": fitted(0.25, -0.5), "ffn/gelu": fitted(1.0, 0.0)}
    parts = {"qkv": linear(3 * width, width), "output": linear(width, width)}
    parts |= {"ffn_in": linear(hidden, width), "ffn_out": linear(width, hidden)}
    config = SimpleNamespace(tokens=tokens, width=width, heads=heads, head_width=width // heads, power=4)
    layer = SimpleNamespace(**parts, functions=functions, attention_epsilon=0.5)
    return SimpleNamespace(config=config, embed=linear(width, 4), layers=(layer,), head=linear(2, width))


def test_the_program_over_vectors_is_the_one_in_the_clear(benchmarks: Callable[[str], ModuleType]) -> None:
    ts = pytest.importorskip("tenseal")
    program, vectors, case = benchmarks("tenseal_program"), benchmarks("tenseal_vectors"), tiny(2, 8, 2, 4)
    case.embed.bias = np.stack([case.embed.bias, -case.embed.bias])  # with positions
    found = chain(1 << 14, 6)
    context = ts.context(ts.SCHEME_TYPE.CKKS, found.ring_degree, coeff_mod_bit_sizes=list(found.prime_bits))
    context.global_scale = 2.0**found.scale_bits
    context.generate_galois_keys()
    ways = vectors.ways(case.config.width, case.config.head_width)

    def step(name: str, kind: Any, *inputs: Any) -> Any:
        return ways.get(kind, kind.apply)(*inputs)

    image = np.random.default_rng(4).uniform(-1, 1, (1, 2, 4))
    expected = program.Survey(case, image, 6).output.array
    scores = program.program(step, case, vectors.encrypt(context, image))
    assert expected.shape == (1, 1, 2)
    assert np.abs(expected).max() > 0.5
    assert_close(vectors.decrypt(scores), expected, 1e-4, "under CKKS")
    assert vectors.serialised_bytes(scores) == len(scores.cells[0].serialize())


# ---- the reference -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(benchmarks: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Any:
    if importlib.util.find_spec("crypten") is None:
        pytest.skip("CrypTen is not installed")
    block, peers = benchmarks("mpc_block"), benchmarks("peers_block")
    model = block.make(tmp_path_factory.mktemp("block"), attention="softmax", **vars(peers.SHAPES[0]))
    quad = block.make(tmp_path_factory.mktemp("quad"), attention="quad", **vars(peers.SHAPES[0]))
    return model, quad, block.inputs(model.config), peers._weights(model)


def test_the_reference_is_our_exact_block(benchmarks: Callable[[str], ModuleType], small: Any) -> None:
    reference, block = benchmarks("block_reference"), benchmarks("mpc_block")
    model, quad, x, weights = small
    for functions, of in (("true", model), ("mpcformer", quad)):
        found = reference.block(weights, x[0], model.config, functions)
        exact = block.exact(of, x, quad=functions == "mpcformer")[0]
        assert_close(found, exact, 1e-9, "both in float64")


@pytest.mark.parametrize(
    ("like", "attend", "activate"),
    [
        ("mpcformer", None, lambda x: 0.25 * x**2 + 0.125 * x + 0.5),
        ("mpcformer", lambda s: (s + 4) ** 2 / ((s + 4) ** 2).sum(-1, keepdims=True), None),
        ("tanh", None, lambda x: x / (1 + np.exp(-1.702 * x))),
        ("tanh", lambda s: np.exp(1.1 * s) / np.exp(1.1 * s).sum(-1, keepdims=True), None),
    ],
)
def test_another_formula_is_wrong(
    benchmarks: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    small: Any,
    like: str,
    attend: Any,
    activate: Any,
) -> None:
    reference, most = benchmarks("block_reference"), benchmarks("peers_block").MOST_ERROR
    model, _, x, weights = small
    right = reference.block(weights, x[0], model.config, like)
    functions = reference.FUNCTIONS[like]
    monkeypatch.setitem(reference.FUNCTIONS, like, (attend or functions[0], activate or functions[1]))
    assert np.abs(reference.block(weights, x[0], model.config, like) - right).max() > most


# ---- environments --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_does_not_install_says_why(
    benchmarks: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environments = benchmarks("peers_environments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environments, "LISTS", tmp_path)
    (tmp_path / "spu.txt").write_text("./no-such-wheel-1.0-py3-none-any.whl\n")
    assert environments.why_not("spu") == "run make bench-peers"
    assert not environments.set_up("spu")
    assert environments.python("spu") is None
    assert "no-such-wheel" in environments.why_not("spu")
    (tmp_path / "spu.txt").write_text("# nothing\n")
    assert environments.set_up("spu")
    assert environments.python("spu").exists()
    (tmp_path / "spu.txt").write_text("# something else\n")
    assert environments.python("spu") is None


def test_the_reason_is_what_pip_calls_an_error(benchmarks: Callable[[str], ModuleType]) -> None:
    last_error = benchmarks("peers_environments")._last_error
    assert last_error("Looking\nERROR: no wheel\nERROR: nothing found for spu\n[notice] newer pip\n").endswith(
        "for spu"
    )
    assert last_error("a traceback\nOSError: disk full\n") == "OSError: disk full"


def test_a_failing_peers_last_words_are_its_party_s(benchmarks: Callable[[str], ModuleType]) -> None:
    last_words = benchmarks("peers_run").last_words
    assert last_words("Traceback\nAttributeError: no tokens\nTraceback\n  raise EOFError\nEOFError\n") == (
        "AttributeError: no tokens"
    )
    assert last_words("killed\n\n") == "killed"
    assert last_words("") == "nothing said"


def test_no_peer_at_all_is_an_error(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "peers.py"), "--quick", "--only", "blocks"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "no peer is installed; run make bench-peers"


@pytest.mark.slow
@pytest.mark.skipif(not list(ENVIRONMENTS.glob("env-*/.ready")), reason="make bench-peers has set up no environment")
def test_all_of_it_in_small(tmp_path: Path) -> None:
    (tmp_path / "out" / "peers").mkdir(parents=True)
    for environment in ENVIRONMENTS.glob("env-*"):
        (tmp_path / "out" / "peers" / environment.name).symlink_to(environment)
    command = [sys.executable, str(BENCHMARKS / "peers.py"), "--quick", "--fresh", "--json", str(tmp_path / "all.json")]
    command += ["--only", "blocks", "layers", "vectors"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200)
    document = json.loads((tmp_path / "all.json").read_text())
    assert done.returncode == (0 if all(check["ok"] for check in document["checks"]) else 1), done.stderr
    right = [check for check in document["checks"] if check["name"].endswith("its error on its own function")]
    assert right
    assert all(check["ok"] for check in right)
    for case in (case for part in document["parts"].values() for case in part["cases"]):
        for name, peer in case["peers"].items():
            assert peer["status"] in ("measured", "not installed"), (name, peer["reason"])
            assert all(turn["bytes_all"] and turn["rounds"] for turn in peer["turns"])
