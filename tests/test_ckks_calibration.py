"""The CKKS cost model: its forms, its fit, its file, and the command that measures it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from secureattn.backends.ckks import calibration, processes
from secureattn.backends.ckks.costs import PRIMITIVES, RATES, TYPICAL, Costs
from secureattn.backends.ckks.parameters import RINGS, chain, most_levels
from secureattn.cli import main
from secureattn.errors import InputError

MEASURED = dataclasses.replace(TYPICAL, measured="2026-01-02")


# ---- forms ------------------------------------------------------------------------------------------------------


def flat(**rates: float) -> Costs:
    """Every primitive takes 1 + 2k + 3k² seconds on N = 2^14, every rate is 0 but those named."""
    primitives = {name: {1 << 14: (1.0, 2.0, 3.0)} for name in PRIMITIVES}
    return Costs(primitives, {**dict.fromkeys(RATES, 0.0), **rates})


@pytest.mark.parametrize("primes", [1, 2, 9])
def test_primitives_are_quadratic_in_the_primes_left(primes: int) -> None:
    for name in PRIMITIVES:
        assert flat().primitive_s(name, 1 << 14, primes) == 1 + 2 * primes + 3 * primes**2


def test_other_rings_cost_like_the_nearest_by_transforms() -> None:
    costs = flat()
    assert costs.primitive_s("rotations", 1 << 15, 2) == pytest.approx(17 * 2 * 15 / 14, rel=1e-12)
    assert costs.primitive_s("rotations", 1 << 12, 2) == pytest.approx(17 / 4 * 12 / 14, rel=1e-12)


def test_matrix_products_are_splitting_joining_and_multiplying() -> None:
    costs = flat(matrix_inputs=3.0, matrix_outputs=5.0, matrix_products=7.0)
    assert costs.matrix_s(1024, 4, 2, 3, 11) == 2 * 1024 * 4 * (2 * 3.0 + 3 * 5.0) + 2 * 1024 * 11 * 7.0


def test_sharing_slows_waits_and_sends() -> None:
    costs = flat(processes=0.5, exchanges=0.25, residues_sent=0.125, together=1.5)
    assert costs.sharing_s(10.0, 3, 8) == 1.5 * 10 + 2 * 0.25 + 8 * 0.125
    assert costs.sharing_s(10.0, 3, 8, exchanges=3) == 1.5 * 10 + 3 * 2 * 0.25 + 8 * 0.125
    assert costs.sharing_s(10.0, 1, 0) == 15.0
    assert [costs.team_s(processes) for processes in (1, 3)] == [0.0, 1.0]


def test_memory_costs_when_it_is_first_used() -> None:
    assert flat(fresh_bytes=0.5).fresh_s(7) == 3.5


def test_keys_grow_with_ring_and_primes_squared() -> None:
    costs = flat(keys=2.0)
    assert costs.key_generation_s(1 << 13, 5) == 2 * 8192 * 13 * 5 * 4


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("name", PRIMITIVES)
def test_typical_costs_are_positive_and_grow(name: str, ring: int) -> None:
    seconds = [TYPICAL.primitive_s(name, ring, k) for k in range(1, most_levels(ring) + 2)]
    assert seconds[0] > 0
    assert seconds == sorted(seconds)
    assert set(TYPICAL.rates) == set(RATES)


def test_typical_costs_keep_the_order_that_work_dictates() -> None:
    def s(name: str) -> float:
        return TYPICAL.primitive_s(name, 1 << 14, 9)

    assert s("additions") < s("squares") < s("ct_products") < s("rescales") < s("rotations")
    assert s("rotations") == pytest.approx(s("relinearisations"), rel=0.15)


# ---- fit --------------------------------------------------------------------------------------------------------


def test_fit_finds_the_coefficients_that_made_the_points() -> None:
    fitted = pytest.importorskip("secureattn.backends.ckks.primitives").fitted
    for made in ((0.5, 0.25, 0.125), (0.0, 0.0, 2.0), (-0.1, 0.5, 0.0)):
        points = [(k, made[0] + made[1] * k + made[2] * k**2) for k in (1, 2, 3, 5, 9)]
        assert fitted(points) == pytest.approx(made, abs=1e-9)


def test_fit_is_not_bent_by_one_bad_moment() -> None:
    fitted = pytest.importorskip("secureattn.backends.ckks.primitives").fitted
    points = [(k, 0.5 + 0.25 * k + 0.125 * k**2) for k in range(1, 9)]
    points[4] = (5, 3 * points[4][1])
    a, b, c = fitted(points)
    for k in range(1, 9):
        assert a + b * k + c * k**2 == pytest.approx(0.5 + 0.25 * k + 0.125 * k**2, rel=0.04)


def test_fit_never_gives_falling_or_negative_seconds() -> None:
    fitted = pytest.importorskip("secureattn.backends.ckks.primitives").fitted
    random = np.random.default_rng(0)
    for _ in range(50):
        points = [(k, float(s)) for k, s in zip(range(1, 7), random.uniform(0.1, 1, 6), strict=True)]
        a, b, c = fitted(points)
        seconds = [a + b * k + c * k**2 for k in range(1, 30)]
        assert min(seconds) > 0
        assert seconds == sorted(seconds)


def test_levels_to_measure_at_include_both_ends() -> None:
    sampled = pytest.importorskip("secureattn.backends.ckks.primitives").sampled
    assert sampled(3) == [0, 1, 2, 3]
    for levels in (8, 19):
        assert sampled(levels)[0] == 0
        assert sampled(levels)[-1] == levels
        assert len(sampled(levels)) <= 8


# ---- measuring --------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> object:
    """Little is measured, and quickly."""
    primitives = pytest.importorskip("secureattn.backends.ckks.primitives")
    monkeypatch.setattr(primitives, "_COLD_BYTES", 1 << 20)
    return primitives.Bench.made(chain(1 << 13, 2))


def test_every_primitive_is_measured_at_every_level_it_can_run_at(bench: object) -> None:
    above = dict(bench.primitives(2))  # type: ignore[attr-defined]
    assert set(above) == set(PRIMITIVES)
    assert all(0 < s < 60 for s in above.values())
    lowest = {name for name, _ in bench.primitives(0)}  # type: ignore[attr-defined]
    assert set(PRIMITIVES) - lowest == {"ct_products", "squares", "relinearisations", "rescales", "refreshes"}


@pytest.mark.skipif(not processes.available(), reason="work is shared on Linux only")
def test_sharing_gives_rates_of_every_kind(bench: object) -> None:
    rates = bench.sharing()  # type: ignore[attr-defined]
    assert set(rates) == {"processes", "exchanges", "residues_sent", "together"}
    assert rates["together"] >= 1
    assert all(math.isfinite(rate) and rate >= 0 for rate in rates.values())


# ---- the file ---------------------------------------------------------------------------------------------------


def same(a: Costs, b: Costs) -> bool:
    return (a.primitives, a.rates, a.measured) == (b.primitives, b.rates, b.measured)


def test_costs_come_back_as_they_were_saved(tmp_path: Path) -> None:
    file = tmp_path / "new" / "costs.json"
    calibration.save(MEASURED, file)
    loaded = calibration.load(file)
    assert loaded is not None
    assert same(loaded, MEASURED)
    assert "2026-01-02" in loaded.source
    assert [path.name for path in file.parent.iterdir()] == ["costs.json"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 1),
        ("machine", {"cpu": "another", "cores": 2, "tenseal": "0.3.16"}),
        ("machine", {**calibration.machine(), "cores": 10**6}),
        ("machine", {**calibration.machine(), "tenseal": "0.0"}),
    ],
)
def test_costs_of_another_machine_or_version_are_not_used(tmp_path: Path, key: str, value: object) -> None:
    file = tmp_path / "costs.json"
    calibration.save(MEASURED, file)
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    assert calibration.load(file) is None


def rows(rings: object) -> dict[str, object]:
    return {name: rings for name in PRIMITIVES}


def damaged(**changes: object) -> str:
    rings = {str(ring): list(row) for ring, row in TYPICAL.primitives["rotations"].items()}
    whole = {
        "format": 2,
        "machine": calibration.machine(),
        "date": "2026-01-02",
        "primitives": rows(rings),
        "rates": dict(TYPICAL.rates),
    }
    return json.dumps({**whole, **changes})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '"costs"',
        damaged(rates={}),
        damaged(rates={**TYPICAL.rates, "together": "1"}),
        damaged(rates={**TYPICAL.rates, "processes": -1.0}),
        damaged(rates={**TYPICAL.rates, "processes": math.inf}),
        damaged(primitives={}),
        damaged(primitives=rows({})),
        damaged(primitives=rows({"16384": [1.0, 2.0]})),
        damaged(primitives=rows({"16384": [-4.0, 1.0, 1.0]})),
        damaged(primitives=rows({"16384": [4.0, -1.0, 1.0]})),
        damaged(primitives=rows({"ring": [1.0, 1.0, 1.0]})),
        damaged(primitives=rows({"0": [1.0, 1.0, 1.0]})),
        damaged(primitives=rows(5)),
        damaged(date=5),
    ],
)
def test_a_damaged_file_is_ignored_with_one_warning(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calibration.path().parent.mkdir()
    calibration.path().write_text(text)
    with pytest.raises(InputError, match="plan --calibrate"):
        calibration.load(calibration.path())
    assert calibration.current() is TYPICAL
    assert len(caplog.records) == 1
    assert "damaged" in caplog.text


def test_current_costs_are_the_measured_ones_where_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert calibration.path() == tmp_path / "secureattn" / "ckks-costs.json"
    assert calibration.current() is TYPICAL
    calibration.save(MEASURED, calibration.path())
    assert same(calibration.current(), MEASURED)
    assert not caplog.records


def test_the_cache_is_at_home_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert calibration.path() == Path.home() / ".cache" / "secureattn" / "ckks-costs.json"


# ---- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A cache of its own, and a measurement that takes no time; the list says how often it ran."""
    primitives = pytest.importorskip("secureattn.backends.ckks.primitives")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ran: list[str] = []

    def measure(progress: object) -> Costs:
        ran.append("measured")
        return MEASURED

    monkeypatch.setattr(primitives, "measure", measure)
    return ran


def test_calibrate_alone_prints_keeps_and_writes(
    measured: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--calibrate", "--json", str(tmp_path / "costs.json")]) == 0
    out = capsys.readouterr().out
    assert "costs measured on this machine on 2026-01-02" in out
    assert f"{1e3 * MEASURED.primitive_s('rotations', 1 << 14, 9):.3g}" in out
    assert all(name.replace("_", " ") in out for name in PRIMITIVES)
    written = json.loads((tmp_path / "costs.json").read_text())
    assert written["primitives"]["rotations"]["16384"] == list(MEASURED.primitives["rotations"][1 << 14])
    assert written["machine"] == calibration.machine()
    assert same(calibration.current(), MEASURED)
    assert measured == ["measured"]


@pytest.mark.parametrize(
    "arguments",
    [["plan"], ["plan", "digits-vit"], ["plan", "digits-vit", "--calibrate"], ["plan", "--calibrate", "--search"]],
)
def test_a_plan_needs_a_model_and_a_protocol(
    arguments: list[str], measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "MODEL" in capsys.readouterr().err
    assert not measured


def test_nothing_is_measured_for_a_file_that_cannot_be_written(measured: list[str], tmp_path: Path) -> None:
    assert main(["plan", "--calibrate", "--json", str(tmp_path / "none" / "costs.json")]) == 1
    assert not measured
