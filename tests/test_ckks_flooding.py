"""Noise for scores that will be shared: how it is distributed, what it costs, and that a run adds it."""

from __future__ import annotations

import importlib.util
import math
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secureattn.backends.ckks.flooding import Flooding, discrete_gaussian
from secureattn.commands import output, plan_tables
from secureattn.errors import PlanError, ProtocolError
from secureattn.events import Recorder
from secureattn.nn.model import load_model
from secureattn.plan import Plan, make_plan
from secureattn.protocol import CkksOptions, load_protocol
from secureattn.resources import find
from secureattn.runs import agreement, clear_run

needs_tenseal = pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="TenSEAL is not installed")


# ---- the noise --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1, 3])
def test_small_noise_has_the_very_distribution(sigma: int) -> None:
    """Chi-square over all integers that 40 000 samples should hit at least 20 times."""
    count, reach = 40_000, 12 * sigma
    weights = {x: math.exp(-(x**2) / (2 * sigma**2)) for x in range(-reach, reach + 1)}
    expected = {x: count * w / sum(weights.values()) for x, w in weights.items()}
    samples = [discrete_gaussian(sigma) for _ in range(count)]
    frequent = [x for x in expected if expected[x] >= 20]
    rest = count - sum(expected[x] for x in frequent)
    observed = [samples.count(x) for x in frequent]
    chi2 = sum((n - expected[x]) ** 2 / expected[x] for x, n in zip(frequent, observed, strict=True))
    chi2 += (count - sum(observed) - rest) ** 2 / rest
    assert chi2 < len(frequent) + 6 * math.sqrt(2 * len(frequent))


def test_wide_noise_is_normal() -> None:
    """Standard deviation within 5 %, the mean 0, the distribution function within the 1e-6 bound of Kolmogorov."""
    sigma, count = 10**9 + 7, 20_000
    samples = np.sort([discrete_gaussian(sigma) for _ in range(count)]) / sigma
    assert 0.95 < samples.std() < 1.05
    assert abs(samples.mean()) < 6 / math.sqrt(count)
    normal = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in samples])
    assert np.abs(normal - (np.arange(count) + 0.5) / count).max() < 2.7 / math.sqrt(count)


def test_noise_is_what_the_divergence_needs() -> None:
    """n·d²/(2σ²) = 2^-(s+7), with d the error and a step of the grid, a 1024th of it."""
    for bits, error_bits, count in ((30, 30, 10), (20, 22, 1), (31, 36, 5120)):
        made = Flooding(bits, error_bits, count)
        error = 2.0**-error_bits
        assert made.grid == error / 1024
        divergence = count * (error / made.grid + 1) ** 2 / (2 * made.sigma**2)
        assert 0.999 < divergence / 2.0 ** -(bits + 7) <= 1
        assert made.deviation == pytest.approx(8 * math.sqrt(count) * 2 ** (bits / 2) * error, rel=2e-3)


def test_published_scores_keep_the_precision_that_is_stated() -> None:
    made = Flooding(30, 30, 5120)
    scores = np.random.default_rng(0).uniform(-20, 20, (512, 10))
    first, second = made.published(scores), made.published(scores)
    assert first.shape == scores.shape
    assert (first != second).mean() > 0.999
    for published in (first, second):
        assert np.abs(published - scores).max() < 2.0**-made.precision_bits
        assert 0.95 < (published - scores).std() / made.deviation < 1.05
        assert np.array_equal(np.rint(published / made.grid) * made.grid, published)
    assert abs(np.corrcoef((first - scores).ravel(), (second - scores).ravel())[0, 1]) < 6 / math.sqrt(scores.size)
    assert made.precision_bits == pytest.approx(-math.log2(6 * made.deviation + 2.0**-30))


def test_seeds_do_not_fix_the_noise() -> None:
    made, seen = Flooding(20, 25, 4), []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        seen.append(made.published(np.zeros(4)))
    assert (seen[0] != seen[1]).all()


def test_what_costs_precision() -> None:
    """Two bits of security one bit, four times the scores one bit, a bit less error one bit back."""
    base = Flooding(20, 25, 10).precision_bits
    assert base - Flooding(22, 25, 10).precision_bits == pytest.approx(1, abs=1e-2)
    assert base - Flooding(20, 25, 40).precision_bits == pytest.approx(1, abs=1e-2)
    assert Flooding(20, 26, 10).precision_bits - base == pytest.approx(1, abs=1e-2)


def test_too_little_precision_is_refused() -> None:
    with pytest.raises(PlanError) as caught:
        Flooding(30, 20, 10)
    message = str(caught.value)
    assert "flooding 10 scores of error 2^-20 by 30 bits takes noise of standard deviation 0.79" in message
    assert "leaves -2.2 bits after the point where 2 are needed; use a larger scale_bits" in message
    assert "\n" not in message


# ---- protocols and plans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"flooding_bits": 30}, "go together"),
        ({"error_bits": 20}, "go together"),
        ({"flooding_bits": -1, "error_bits": 20}, "flooding_bits must be a whole number from 0 to 128, not -1"),
        ({"flooding_bits": True, "error_bits": 20}, "not True"),
        ({"flooding_bits": 30.0, "error_bits": 20}, "not 30.0"),
        ({"flooding_bits": 30, "error_bits": 20, "scale_bits": (40, 45)}, "needs one ckks.scale_bits"),
        ({"flooding_bits": 30, "error_bits": 41}, "error_bits must be a whole number from 0 to 40, not 41"),
    ],
)
def test_options_are_checked(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        CkksOptions(**options)


def test_options_are_read(tmp_path: Path) -> None:
    text = find("protocols", "power-softmax-ckks").read_text()
    (tmp_path / "shared.toml").write_text(text + "flooding_bits = 20\nerror_bits = 21\n")
    assert load_protocol(tmp_path / "shared.toml").ckks == CkksOptions(flooding_bits=20, error_bits=21)


@cache
def plan(*, flooding_bits: int = 20, error_bits: int = 21, samples: int = 2) -> Plan:
    protocol = load_protocol(find("protocols", "power-softmax-ckks"))
    options = CkksOptions(layout="dense", scale_bits=45, flooding_bits=flooding_bits, error_bits=error_bits)
    return make_plan(load_model(find("models", "digits-vit")), replace(protocol, ckks=options), samples=samples)


def test_plans_show_the_cost() -> None:
    made = plan()
    assert made.ckks is not None
    assert made.ckks.flooding == Flooding(20, 21, 20)
    parameters = plan_tables.document(made)["parameters"]
    assert parameters["flooding_bits"] == 20
    assert parameters["precision_bits"] == pytest.approx(3.25, abs=0.01)
    console = output.stdout()
    with console.capture() as shown:
        plan_tables.show(made, console)
    text = " ".join(shown.get().split())
    assert "flooded by 20 bits, noise of standard deviation 0.017 on each of 20" in text
    assert "3.3 bits after the point stay of 21, 17.7 are lost" in text


def test_plans_without_it_say_nothing() -> None:
    made = plan(flooding_bits=0, error_bits=0)
    assert made.ckks is not None
    assert made.ckks.flooding is None
    parameters = plan_tables.document(made)["parameters"]
    assert parameters["flooding_bits"] is parameters["precision_bits"] is None


def test_plans_that_leave_no_precision_are_refused() -> None:
    with pytest.raises(PlanError, match="flooding 3600 scores of error 2\\^-21 by 20 bits"):
        plan(samples=360)


# ---- runs -------------------------------------------------------------------------------------------------------


@needs_tenseal
def test_a_run_floods_what_it_gives_out() -> None:
    """One query's results, decrypted 300 times: noise of the stated size around the clear scores, never the same."""
    from secureattn.plan.terms import Terms
    from secureattn.runs.roles import Client, Server

    made = plan()
    assert made.ckks is not None
    assert made.ckks.flooding is not None
    inputs, recorder = made.model.samples(2)[0], Recorder()
    client = Client.generate(Terms.of(made))
    with recorder.phase("online"):
        blobs = Server(made, client.evaluation_keys, recorder).evaluate(client.encrypt(inputs), 2, client.refresh)
    client.close()  # of its processes; it goes on decrypting
    clear = clear_run(made, inputs).outputs
    published = np.stack([client.decrypt(blobs, 2) for _ in range(300)])
    noise = published - clear
    assert 0.95 < noise.std() / made.ckks.flooding.deviation < 1.05
    assert np.abs(noise).max() < 2.0**-made.ckks.flooding.precision_bits
    assert (np.ptp(published, axis=0) > made.ckks.flooding.deviation).all()
    assert len(np.unique(published)) > 0.99 * published.size
    assert all(agreement(one, clear) == 1 for one in published)
    client.terms = replace(client.terms, flooding=None)
    bare = client.decrypt(blobs, 2)
    assert np.array_equal(bare, client.decrypt(blobs, 2))
    assert np.abs(bare - clear).max() < 2.0**-made.ckks.flooding.error_bits
