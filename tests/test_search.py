"""The joint search: what it saves, what it keeps, what it writes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from secureattn.cli import main
from secureattn.commands.searching import write_protocol
from secureattn.errors import InputError, PlanError
from secureattn.nn.model import Model, load_model
from secureattn.plan import Plan, make_plan, program_cost
from secureattn.protocol import Protocol, load_protocol
from secureattn.resources import find
from secureattn.runs import clear_run
from secureattn.runs.search import Found, search

SAMPLES = 90


@cache
def model() -> Model:
    return load_model(find("models", "digits-vit"))


@cache
def protocol(name: str) -> Protocol:
    return load_protocol(find("protocols", name))


@cache
def found(name: str = "power-softmax-ckks", samples: int | None = SAMPLES) -> Found:
    return search(model(), protocol(name), samples=samples)


def accuracies(plan: Plan, count: int) -> tuple[float, float]:
    """Measured by a clear run of the plan: of the samples that choose and of those that check."""
    inputs, labels = model().samples(count)
    right = clear_run(plan, inputs).outputs.argmax(-1) == labels
    return float(right[::2].mean()), float(right[1::2].mean())


def assert_saves(result: Found) -> None:
    """Less cost than the protocol as it is, and no accuracy lost, on the samples that chose and on the others."""
    assert result.chosen.cost < result.given.cost
    assert result.chosen.accuracy >= max(result.exact[0], result.given.accuracy)
    assert result.chosen.checked >= result.given.checked


def test_levels_are_saved_and_accuracy_kept() -> None:
    assert_saves(found())
    assert found().unit == "levels"


@pytest.mark.slow
def test_on_all_samples_three_levels_are_saved() -> None:
    result = found(samples=None)
    assert_saves(result)
    assert result.chosen.cost <= result.given.cost - 3
    assert result.chosen.checked >= result.exact[1]


def test_rounds_are_saved_on_shares() -> None:
    result = search(model(), protocol("crypten"), samples=120)
    assert_saves(result)
    assert result.unit == "rounds"
    assert result.chosen.cost < result.given.cost / 2
    draft = Plan(model(), protocol("crypten"), 120, {s: c.realisation for s, c in result.chosen.choices.items()})
    assert program_cost(draft) == result.chosen.cost


def test_the_frontier_is_not_dominated() -> None:
    points = found().frontier
    costs, distances = [p.cost for p in points], [p.distance for p in points]
    assert costs == sorted(set(costs))
    assert distances == sorted(set(distances), reverse=True)
    assert found().chosen in points
    assert points[0].cost < found().given.cost < points[-1].cost
    assert not any(p.accuracy >= found().exact[0] for p in points if p.cost < found().chosen.cost)
    best = min(p.distance for p in points if p.cost <= found().given.cost)
    assert best <= found().given.distance


def test_points_say_what_a_run_finds() -> None:
    inputs, _ = model().samples(SAMPLES)
    for point in (found().chosen, found().given, found().frontier[2]):
        plan = Plan(
            model(), protocol("power-softmax-ckks"), SAMPLES, {s: c.realisation for s, c in point.choices.items()}
        )
        assert (point.accuracy, point.checked) == accuracies(plan, SAMPLES)
        exact, clear = (clear_run(plan, inputs[::2], exact=exact).outputs for exact in (True, False))
        assert point.distance == pytest.approx(np.sqrt(((clear - exact) ** 2).mean()), rel=1e-6)


def test_the_written_protocol_is_the_chosen_point(tmp_path: Path) -> None:
    write_protocol(found(), find("protocols", "power-softmax-ckks"), tmp_path / "mine.toml")
    mine = load_protocol(tmp_path / "mine.toml")
    assert dict(mine.sites) == found().chosen.sites
    plan = make_plan(model(), mine, samples=SAMPLES)
    assert program_cost(plan) == found().chosen.cost
    assert plan.ckks is not None
    assert plan.ckks.depth == found().chosen.cost
    given = make_plan(model(), protocol("power-softmax-ckks"), samples=SAMPLES)
    assert program_cost(given) == found().given.cost
    assert accuracies(plan, SAMPLES) == (found().chosen.accuracy, found().chosen.checked)
    direct = Plan(model(), mine, SAMPLES, {s: c.realisation for s, c in found().chosen.choices.items()})
    inputs, _ = model().samples(8)
    np.testing.assert_array_equal(clear_run(plan, inputs).outputs, clear_run(direct, inputs).outputs)


def test_a_budget_buys_the_most_faithful_within_it() -> None:
    points = found().frontier
    budget = found().chosen.cost + 2
    result = search(model(), protocol("power-softmax-ckks"), samples=30, budget=budget)
    assert result.chosen.cost <= budget
    assert result.chosen.distance == min(p.distance for p in result.frontier if p.cost <= budget)
    assert budget < points[-1].cost
    cheapest = result.frontier[0].cost
    with pytest.raises(
        PlanError, match=f"nothing fits {cheapest - 1} levels: the cheapest assignment takes {cheapest}"
    ):
        search(model(), protocol("power-softmax-ckks"), samples=30, budget=cheapest - 1)


def test_a_loss_allowed_saves_more() -> None:
    result = search(model(), protocol("power-softmax-ckks"), samples=SAMPLES, loss=0.1)
    assert result.chosen.cost < found().chosen.cost
    assert result.exact[0] - 0.1 <= result.chosen.accuracy < result.exact[0]


@pytest.mark.parametrize("loss", [-0.1, 1.0, float("nan")])
def test_a_loss_is_a_share(loss: float) -> None:
    with pytest.raises(InputError, match="share from 0 to below 1"):
        search(model(), protocol("power-softmax-ckks"), loss=loss)


def test_refusals() -> None:
    with pytest.raises(PlanError, match="'plaintext' counts neither"):
        search(model(), protocol("plaintext"))
    with pytest.raises(InputError, match="at least 2 samples"):
        search(model(), protocol("power-softmax-ckks"), samples=1)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--budget", "20"], "add --search"),
        (["--loss", "0"], "add --search"),
        (["-o", "mine.toml"], "add --search"),
        (["--search", "--loss", "0.1", "--budget", "20"], "not both"),
        (["--search", "--loss", "2"], "share"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], word: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "digits-vit", "power-softmax-ckks", *options]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("secureattn: error: ")
    assert printed.err.count("\n") == 1
    assert word in printed.err
    assert not list(tmp_path.iterdir())


def test_a_protocol_with_sites_is_refused_before_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_protocol(found(), find("protocols", "power-softmax-ckks"), tmp_path / "mine.toml")

    def searched(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("secureattn.commands.searching.searched", searched)
    again = ["plan", "digits-vit", str(tmp_path / "mine.toml"), "--search", "-o", str(tmp_path / "two.toml")]
    assert main(again) == 1
    assert "has a section [sites] already" in capsys.readouterr().err
    assert not (tmp_path / "two.toml").exists()


def test_the_command_prints_and_writes_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secureattn.commands.searching.searched", lambda *_, **__: found())
    files = ["--json", str(tmp_path / "s.json"), "-o", str(tmp_path / "mine.toml")]
    assert main(["plan", "digits-vit", "power-softmax-ckks", "--search", *files]) == 0
    printed = capsys.readouterr().out
    assert f"chosen: {found().chosen.cost} levels" in printed
    assert '"layer.0/ffn/gelu" = { kind = ' in printed
    written = json.loads((tmp_path / "s.json").read_text())
    assert written["schema"] == 1
    assert written["chosen"]["sites"] == found().chosen.sites
    assert written["given"]["cost"] == found().given.cost
    assert len(written["frontier"]) == len(found().frontier)
    assert load_protocol(tmp_path / "mine.toml").sites == found().chosen.sites
