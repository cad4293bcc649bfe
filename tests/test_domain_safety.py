"""Inputs that a model was not calibrated for: what leaves a domain is counted and told, at every site and command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from secureattn.approx import Realisation, realise
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.cli import main
from secureattn.nn.batch import Batch
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import fold
from secureattn.nn.model import load_model
from secureattn.plan import Plan, make_plan
from secureattn.protocol import load_protocol
from secureattn.resources import find
from secureattn.runs import Run, clear_run

MODEL = find("models", "digits-vit")


@cache
def plan(samples: int) -> Any:
    return make_plan(load_model(MODEL), load_protocol(find("protocols", "plaintext")), samples=samples)


def inputs(samples: int) -> np.ndarray:
    return load_model(MODEL).samples(samples)[0]


def counted(samples: np.ndarray) -> dict[str, int]:
    """Values outside each site's domain, counted from a run watched here."""
    p = plan(len(samples))
    folded = fold(p.config, p.model.weights, p.realisations)
    backend, seen = PlaintextBackend(), dict[str, list[torch.Tensor]]()
    backend.observers.append(lambda site, value: seen.setdefault(site, []).append(value.clone()))
    with torch.no_grad():
        Encoder(folded, backend)(backend.input(samples))
    found = {}
    for site, function in folded.functions().items():
        low, high = function.domain
        values = torch.cat([value.flatten() for value in seen[site]])
        found[site] = sum(not low - 1e-6 <= value <= high + 1e-6 for value in values.tolist())
    return {site: n for site, n in found.items() if n}


@pytest.fixture
def scaled(tmp_path: Path) -> Callable[[float, int], Path]:
    """A copy of the model whose held-out samples are multiplied by a factor."""

    def made(factor: float, samples: int) -> Path:
        folder = tmp_path / "scaled"
        shutil.copytree(MODEL, folder)
        given, labels = load_model(MODEL).samples(samples)
        save_file({"inputs": factor * given, "labels": labels}, folder / "samples.safetensors")
        return folder

    return made


# ---- the clear run ----------------------------------------------------------------------------------------------


def test_nothing_escapes_on_the_samples_the_model_was_calibrated_on() -> None:
    pytest.importorskip("sklearn")
    from secureattn.train.data import digits

    split = digits()
    assert clear_run(plan(len(split.train_inputs)), split.train_inputs).escapes == {}


def test_nothing_escapes_on_held_out_samples() -> None:
    assert clear_run(plan(360), inputs(360)).escapes == {}


def test_what_escapes_is_counted_at_its_site() -> None:
    wide = 3 * inputs(60)
    escapes = dict(clear_run(plan(60), wide).escapes)
    assert escapes == counted(wide)
    assert "layer.0/attention/norm" in escapes
    assert set(escapes) == set(plan(60).model.config.sites())  # what is NaN by then has left its domain as well


def test_more_values_escape_from_more_samples() -> None:
    """The first site sees each sample alone, so counts add up."""
    site, wide = "layer.0/attention/norm", 3 * inputs(60)
    parts = [clear_run(plan(30), half).escapes[site] for half in (wide[:30], wide[30:])]
    assert clear_run(plan(60), wide).escapes[site] == sum(parts)


def test_a_site_seen_twice_counts_both_times(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = 3 * inputs(8)
    once = clear_run(plan(8), wide).escapes
    observe = PlaintextBackend.observe

    def twice(self: PlaintextBackend, site: str, value: Any) -> None:
        observe(self, site, value)
        observe(self, site, value)

    monkeypatch.setattr(PlaintextBackend, "observe", twice)
    assert clear_run(plan(8), wide).escapes == {site: 2 * n for site, n in once.items()}


@cache
def rooted() -> tuple[Plan, Batch, dict[str, Realisation], Run]:
    """MiniLM as a protocol plans it, four texts, roots that hardly err in the place of its rough ones, and a run."""
    model = load_model(find("models", "minilm"))
    batch = model.batch(model.samples(4)[0])
    p = make_plan(model, load_protocol(find("protocols", "accurate-plaintext")), samples=4, shape=batch.shape)
    bears = p.config.bears()
    assert len(bears) == 2 * model.config.layers
    assert all(0 < (p.realisations[site].error or 0.0) <= bears[site] for site in bears)
    near = {site: realise("rsqrt", {"kind": "octaves", "error": 1e-5}, p.realisations[site].domain) for site in bears}
    return p, batch, near, clear_run(replace(p, realisations={**p.realisations, **near}), batch)


@pytest.mark.parametrize("error", [-0.1, 0.1])
def test_roots_that_err_by_all_that_normalising_takes_out_leave_no_domain(error: float) -> None:
    """Of a protocol's rough roots only the bound is known: at either end of it nothing escapes and nothing changes."""
    p, batch, near, wanted = rooted()
    off = {
        site: replace(r, apply=lambda x, r=r: r.apply(x) * (1 + error * (1 - 1e-4)), polynomial=None, series=None)
        for site, r in near.items()
    }
    run = clear_run(replace(p, realisations={**p.realisations, **off}), batch)
    assert wanted.escapes == run.escapes == {}
    assert np.abs(wanted.outputs - run.outputs).max() < 1e-3


def test_true_functions_have_no_domain_to_leave() -> None:
    assert clear_run(plan(8), 3 * inputs(8), exact=True).escapes == {}


# ---- compare ----------------------------------------------------------------------------------------------------


def test_compare_warns_of_escapes(
    scaled: Callable[[float, int], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "c.json"
    assert main(["compare", str(scaled(3.0, 12)), "plaintext", "--json", str(report)]) == 0
    expected = counted(3 * inputs(12))
    found = json.loads(report.read_text())
    assert found["escapes"] == expected
    assert found["max_abs_error"]["approximation"] is None  # the clear run ends in NaN
    (line,) = [line for line in capsys.readouterr().out.split("\n") if "outside their function's domain" in line]
    for site, n in expected.items():
        assert f"{n} at {site}" in line


def test_compare_says_nothing_where_nothing_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "c.json"
    assert main(["compare", "digits-vit", "plaintext", "--samples", "12", "--json", str(report)]) == 0
    assert json.loads(report.read_text())["escapes"] == {}
    assert "outside" not in capsys.readouterr().out


# ---- infer ------------------------------------------------------------------------------------------------------


def infer(model: str | Path, values: np.ndarray, folder: Path) -> int:
    np.save(folder / "in.npy", values)
    return main(["infer", str(model), "plaintext", str(folder / "in.npy"), "-o", str(folder / "out.npy")])


def test_infer_warns_of_inputs_outside_what_was_calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    around = load_model(MODEL).ranges.input
    assert around is not None
    values = inputs(3)
    values[0, 0, 0], values[1, 2, 3], values[2, 5, 1] = around[0] - 1e-3, around[1] + 1e-3, 1.2
    assert infer("digits-vit", values, tmp_path) == 0
    printed = capsys.readouterr()
    (line,) = printed.err.strip().split("\n")
    assert line.startswith("secureattn: warning: 3 of 192 input values lie outside [-0.1, 1.1]")
    assert "results may be wrong" in line
    assert "warning" not in printed.out.split("trust")[0]
    assert np.load(tmp_path / "out.npy").shape == (3, 10)


def test_scores_that_are_not_finite_are_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = inputs(3)
    values[1] *= 50
    np.save(tmp_path / "in.npy", values)
    assert main(["infer", "digits-vit", "plaintext", str(tmp_path / "in.npy"), "-o", str(tmp_path / "out.json")]) == 0
    outside, lost = capsys.readouterr().err.strip().split("\n")
    assert "input values lie outside" in outside
    assert "1 of 3 inputs have scores that are not finite" in lost
    found = json.loads((tmp_path / "out.json").read_text())
    assert [c is None for c in found["classes"]] == [s is None for s in found["scores"]] == [False, True, False]


def test_infer_says_nothing_of_inputs_within(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = inputs(3)
    values[0, 0, 0], values[1, 2, 3] = load_model(MODEL).ranges.input or (0, 1)
    assert infer("digits-vit", values, tmp_path) == 0
    assert capsys.readouterr().err == ""


def test_infer_cannot_warn_where_ranges_name_no_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(MODEL, tmp_path / "old")
    ranges = json.loads((tmp_path / "old" / "ranges.json").read_text())
    del ranges["input"]
    (tmp_path / "old" / "ranges.json").write_text(json.dumps(ranges))
    assert infer(tmp_path / "old", 1.2 * inputs(3), tmp_path) == 0
    assert capsys.readouterr().err == ""


# ---- files that cannot be written -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["info", "--json", "r.json"],
        ["plan", "digits-vit", "plaintext", "--json", "r.json"],
        ["approx", "show", "gelu/bolt", "--json", "r.json"],
    ],
)
def test_a_full_disk_is_one_line(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "write_text", full)
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("secureattn: error: ")
    assert "No space left on device" in error
    assert "r.json" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o500)
    try:
        (folder / "probe").touch()
    except PermissionError:
        pass
    else:
        pytest.skip("this user may write anywhere")
    assert main(["info", "--json", str(folder / "r.json")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("secureattn: error: ")
    assert "Permission denied" in error
    assert error.count("\n") == 1
