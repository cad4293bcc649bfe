"""Training: gradients through approximations, reproducible and resumable runs, conversion, calibration, the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from secureattn import load_model
from secureattn.approx.attention import VARIANTS, Attention, Call, realisations
from secureattn.errors import InputError, ProtocolError
from secureattn.nn import config as config_module
from secureattn.nn.config import ModelConfig
from secureattn.nn.parameters import Parameters, initial
from secureattn.nn.ranges import Ranges
from secureattn.tensor import Tensor
from secureattn.train import checkpoint
from secureattn.train.convert import convert, student_start
from secureattn.train.data import Split, digits
from secureattn.train.forward import Values, forward, tensors, true_functions
from secureattn.train.loop import Checkpoints, train
from secureattn.train.objectives import Batch, Classification, Distillation
from secureattn.train.ranges import calibrate, served_by
from secureattn.train.recipe import Recipe
from secureattn.train.report import report
from secureattn.train.script import accuracies
from secureattn.train.targets import RATIO, range_penalty, targets_of

TINY = ModelConfig("tiny", 16, 4, 8, 2, 12, 1, 10, attention="power_softmax", power=2)
CHEBYSHEV = {name: {"kind": "chebyshev", "degree": 15} for name in ("gelu", "rsqrt", "reciprocal", "exp")}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def split() -> Split:
    return digits()


@pytest.fixture(scope="module")
def few(split: Split) -> Split:
    return replace(split, train_inputs=split.train_inputs[:192], train_labels=split.train_labels[:192])


def spread(config: ModelConfig, seed: int = 0) -> Parameters:
    """Parameters with nothing at a special value."""
    rng = np.random.default_rng(seed + 100)
    return {
        name: value + 0.1 * rng.normal(size=value.shape) * (1 if "variance" not in name else 0)
        for name, value in initial(config, seed).items()
    }


def same(a: Parameters, b: Parameters) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# ---- what a pass shows ------------------------------------------------------------------------------------------


def test_every_value_of_a_site_is_kept() -> None:
    values = Values()
    values("a", torch.ones(2, 3))
    values("b", torch.tensor([[1.0, 2.0]]))
    values("b", torch.tensor([5.0]))
    assert values.all()["a"].shape == (2, 3)
    assert values.all()["b"].tolist() == [1.0, 2.0, 5.0]


def test_calibration_covers_a_site_that_runs_twice(monkeypatch: pytest.MonkeyPatch, few: Split) -> None:
    def twice(q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        s = call.scores(q, k)
        return call.mix(call["exp"](s + 3.0) + call["exp"](s - 7.0), v)

    variant = Attention("twice", "", twice, source="", sites={"exp": "exp"})
    monkeypatch.setitem(VARIANTS, "twice", variant)
    monkeypatch.setattr(config_module, "ATTENTIONS", (*config_module.ATTENTIONS, "twice"))
    config = replace(TINY, attention="twice")
    parameters = spread(config)
    scores = forward(config, tensors(parameters), true_functions(config), few.train_inputs, torch.float64).points[
        "layer.0/attention/scores"
    ]
    low, high = calibrate(config, parameters, few.train_inputs).observed["layer.0/attention/exp"]
    assert low == pytest.approx(float(scores.min()) - 7.0, rel=1e-12)
    assert high == pytest.approx(float(scores.max()) + 3.0, rel=1e-12)


@pytest.mark.parametrize(
    ("attention", "norm"),
    [("power_softmax", "layernorm"), ("softmax", "rmsnorm"), ("quad", "batchnorm"), ("softmax", "dyt")],
)
def test_arguments_do_not_feel_the_folding(attention: str, norm: str, few: Split) -> None:
    """Served by approximations of 1e-9 the folded program holds other numbers, its functions the same arguments."""
    config = replace(TINY, attention=attention, norm=norm)
    parameters, inputs = spread(config), few.train_inputs[:16]
    ranges = calibrate(config, parameters, inputs)
    functions = {f: {"kind": "chebyshev", "degree": 63} for f in set(config.sites().values())}
    served = served_by(config, ranges, functions)
    exact = forward(config, tensors(parameters), true_functions(config), inputs, torch.float64)
    folded = forward(config, tensors(parameters), served, inputs, torch.float64)
    gelu = "layer.0/ffn/gelu"
    assert float((folded.points[gelu] - exact.points[gelu]).abs().max()) > 0.1
    for site, value in exact.arguments.items():
        assert float((folded.arguments[site] - value).abs().max()) < 1e-6 * max(1.0, float(value.abs().max())), site


# ---- targets and penalty ----------------------------------------------------------------------------------------


def test_penalty_by_hand() -> None:
    values = {"a": torch.tensor([0.0, 3.0, -1.0, 2.0]), "b": torch.tensor([0.5])}
    found = range_penalty(values, {"a": (0.0, 2.0), "b": (0.0, 1.0)})
    assert float(found) == pytest.approx((0.25 + 0.25) / 4 + 0.1 * 0.25, rel=1e-6)


def test_default_targets(few: Split) -> None:
    config = replace(TINY, attention="softmax")
    parameters = spread(config)
    found = targets_of(config, {"norm": (0.5, 2.0)}, parameters, few.train_inputs)
    assert found["layer.0/attention/norm"] == found["layer.0/ffn/norm"] == (0.5, 2.0)
    assert found["layer.0/attention/normaliser"] == (15.68, 15.68 * RATIO)  # Σ exp of 16 keys is never below 16
    assert found["layer.0/ffn/gelu"] == (-3.0, 3.0)
    low, high = targets_of(replace(TINY, attention="quad"), {}, parameters, few.train_inputs)[
        "layer.0/attention/normaliser"
    ]
    assert high / low == pytest.approx(RATIO)
    assert 16 * 25 / RATIO < low < 16 * 25 < high  # scores near 0: Σ (s + 5)² near 400


@pytest.mark.parametrize("attention", ["softmax", "quad"])
def test_ranges_narrow_without_named_targets(attention: str, few: Split) -> None:
    config = replace(TINY, attention=attention)
    wide = {"query": 4.0, "ffn.in": 4.0}
    start = {
        name: value * next((factor for part, factor in wide.items() if part in name), 1.0)
        for name, value in spread(config).items()
    }
    targets = targets_of(config, {}, start, few.train_inputs)

    def penalty(weight: float) -> float:
        trained = tensors(train(config, few, Recipe(epochs=15, penalty=weight), start))
        seen = forward(config, trained, true_functions(config), few.train_inputs, torch.float64)
        return float(range_penalty(seen.arguments, targets))

    assert penalty(5.0) < 0.5 * penalty(0.0)


# ---- training through approximations ----------------------------------------------------------------------------


@pytest.mark.parametrize(("attention", "norm"), [("power_softmax", "layernorm"), ("softmax", "batchnorm")])
def test_gradient_through_polynomials_is_that_of_finite_differences(attention: str, norm: str, few: Split) -> None:
    config = replace(TINY, attention=attention, norm=norm)
    parameters, inputs = spread(config), few.train_inputs[:6]
    ranges = calibrate(config, parameters, inputs)
    served = served_by(config, ranges, {**CHEBYSHEV, "gelu": {"kind": "chebyshev", "degree": 3}})
    inner = {site: ranges.observed[site] for site in config.sites()}
    targets = {site: (a + 0.2 * (b - a), b - 0.3 * (b - a)) for site, (a, b) in inner.items()}
    batch = Batch(inputs, torch.as_tensor(few.train_labels[:6]), 0)

    def loss(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        seen = forward(config, weights, served, inputs, torch.float64)
        return Classification(0.05)(seen, batch) + range_penalty(seen.arguments, targets)

    weights = {name: w.requires_grad_() for name, w in tensors(parameters).items()}
    loss(weights).backward()
    rng, step = np.random.default_rng(3), 1e-6
    for name, weight in weights.items():
        direction = torch.as_tensor(rng.normal(size=weight.shape))
        with torch.no_grad():
            up, down = (loss({**weights, name: weight + sign * step * direction}) for sign in (1, -1))
            assert weight.grad is not None
            slope = float((weight.grad * direction).sum())
        assert slope == pytest.approx(float(up - down) / (2 * step), rel=1e-4, abs=1e-7), name


def test_fine_tuning_through_a_coarse_function_lowers_its_loss(split: Split) -> None:
    model = load_model("digits-vit")
    start = {name: w.numpy() for name, w in model.weights.items()}
    served = served_by(model.config, model.ranges, {**CHEBYSHEV, "gelu": {"kind": "chebyshev", "degree": 3}})

    def clear_loss(parameters: Parameters) -> float:
        with torch.no_grad():
            seen = forward(model.config, tensors(parameters), served, split.test_inputs, torch.float64)
        return float(torch.nn.functional.cross_entropy(seen.logits, torch.as_tensor(split.test_labels)))

    recipe = Recipe(epochs=3, learning_rate=1e-3)
    through = train(model.config, split, recipe, start, served=served)
    around = train(model.config, split, recipe, start)
    assert clear_loss(through) < 0.8 * clear_loss(start)
    assert clear_loss(through) < clear_loss(around)


def test_what_cannot_serve_is_named_at_once() -> None:
    model = load_model("digits-vit")
    with pytest.raises(ProtocolError, match=r"attention/norm: .*ffn/gelu: "):
        served_by(model.config, model.ranges, {"gelu": {"kind": "no"}, "rsqrt": {"kind": "chebyshev", "degree": 0}})


# ---- reproducible and resumable ---------------------------------------------------------------------------------


def test_same_seed_same_bits(few: Split) -> None:
    first, again, other = (train(TINY, few, Recipe(epochs=2, seed=seed)) for seed in (5, 5, 6))
    assert same(first, again)
    assert not same(first, other)


class Stop(Exception):
    pass


def stopping(at: int):
    def tell(text: str, done: int, of: int) -> None:
        if done == at:
            raise Stop

    return tell


@pytest.mark.parametrize("norm", ["layernorm", "batchnorm"])
def test_a_resumed_run_ends_with_the_same_bits(norm: str, tmp_path: Path, few: Split) -> None:
    config, recipe = replace(TINY, norm=norm), Recipe(epochs=4)
    whole = train(config, few, recipe)
    with pytest.raises(Stop):
        train(config, few, recipe, checkpoints=Checkpoints(tmp_path, every=2), progress=stopping(3))
    index = json.loads((tmp_path / checkpoint.INDEX).read_text())
    assert index["epoch"] == index["last"]["epoch"] == 2
    assert index["best"]["loss"] == min(row["loss"] for row in index["history"])
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    told: list[tuple[int, int]] = []
    resumed = train(
        config,
        few,
        recipe,
        checkpoints=Checkpoints(tmp_path, every=2, resume=True),
        progress=lambda text, done, of: told.append((done, of)),
    )
    assert told == [(3, 4), (4, 4)]
    assert same(whole, resumed)
    finished = train(config, few, recipe, checkpoints=Checkpoints(tmp_path, resume=True))
    assert same(whole, finished)


def test_a_staged_conversion_resumes_within_its_first_stage(tmp_path: Path, few: Split) -> None:
    teacher, student = replace(TINY, attention="softmax"), replace(TINY, attention="quad")
    given, recipe, how = spread(teacher), Recipe(epochs=4), Distillation(attention_first=0.75, labels=0.5)
    whole = convert((teacher, given), student, few, recipe, how=how)
    keep = Checkpoints(tmp_path, every=1)
    with pytest.raises(Stop):
        convert((teacher, given), student, few, recipe, how=how, checkpoints=keep, progress=stopping(2))
    resumed = convert((teacher, given), student, few, recipe, how=how, checkpoints=replace(keep, resume=True))
    assert same(whole, resumed)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, few: Split) -> None:
    recipe = Recipe(epochs=2)
    with pytest.raises(InputError, match="no checkpoint to resume"):
        train(TINY, few, recipe, checkpoints=Checkpoints(tmp_path, resume=True))
    train(TINY, few, recipe, checkpoints=Checkpoints(tmp_path))
    with pytest.raises(InputError, match="holds a checkpoint; resume it"):
        train(TINY, few, recipe, checkpoints=Checkpoints(tmp_path))
    again = Checkpoints(tmp_path, resume=True)
    with pytest.raises(InputError, match=r"another run \(recipe.epochs is 2 there, 3 here\); resume it as"):
        train(TINY, few, replace(recipe, epochs=3), checkpoints=again)
    with pytest.raises(InputError, match=r"config.attention is power_softmax there, quad here"):
        train(replace(TINY, attention="quad"), few, recipe, checkpoints=again)
    with pytest.raises(InputError, match=r"\(start is another\)"):
        train(TINY, few, recipe, spread(TINY), checkpoints=again)
    (tmp_path / checkpoint.INDEX).write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        train(TINY, few, recipe, checkpoints=again)


def test_what_diverges_is_said(few: Split) -> None:
    start = {name: value * (1e30 if name.endswith("weight") else 1.0) for name, value in spread(TINY).items()}
    targets = {"norm": (0.1, 1.0), "normaliser": (1.0, 8.0), "gelu": (-3.0, 3.0)}
    with pytest.raises(InputError, match=r"training tiny diverged in epoch 1: .* lower the learning rate"):
        train(TINY, few, Recipe(targets, epochs=1), start)


# ---- conversion -------------------------------------------------------------------------------------------------


def test_a_norm_without_its_mean_starts_as_its_teacher(few: Split) -> None:
    """LayerNorm is RMSNorm of centred values: the student computes the very function."""
    teacher = replace(TINY, layers=2)
    given, student = spread(teacher), replace(teacher, norm="rmsnorm")
    start = student_start(teacher, given, student, few.train_inputs)
    inputs = few.train_inputs[:8]
    wanted = forward(teacher, tensors(given), true_functions(teacher), inputs, torch.float64).logits
    scale = {name: value for name, value in start.items() if "query" not in name}
    queries = {name: value for name, value in given.items() if "query" in name}
    found = forward(student, tensors({**scale, **queries}), true_functions(student), inputs, torch.float64).logits
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    assert not np.allclose(start["embed.weight"], given["embed.weight"])


def test_scores_of_powers_start_in_the_middle_of_their_target(few: Split) -> None:
    teacher, student = replace(TINY, attention="softmax"), replace(TINY, power=4, attention_epsilon=0.5)
    start = student_start(teacher, spread(teacher), student, few.train_inputs)
    seen = forward(student, tensors(start), true_functions(student), few.train_inputs, torch.float64)
    assert float(seen.arguments["layer.0/attention/normaliser"].mean()) == pytest.approx(0.5 * RATIO**0.5, rel=1e-6)


def test_only_attention_learns_in_the_first_stage(few: Split) -> None:
    teacher, student = replace(TINY, attention="softmax"), replace(TINY, attention="quad")
    given = spread(teacher)
    found = convert((teacher, given), student, few, Recipe(epochs=1), how=Distillation(attention_first=1.0))
    moved = {name for name in found if not np.array_equal(found[name], given[name].astype(np.float32))}
    assert moved
    assert all(".attention." in name and ".norm." not in name for name in moved)
    assert "layer.0.attention.query.weight" in moved


def test_a_student_of_another_shape_is_refused(few: Split) -> None:
    with pytest.raises(ProtocolError, match="width is 16, the teacher's 8; layers is 2, the teacher's 1"):
        convert((TINY, spread(TINY)), replace(TINY, width=16, layers=2), few, Recipe(epochs=1))


@pytest.mark.parametrize(
    ("taught", "converted", "part"),
    [  # three or four of the held-out images are one percent, less than the spread of short trainings
        (16, 12, "training"),
        pytest.param(160, 40, "held-out", marks=pytest.mark.slow),
    ],
)
def test_softmax_becomes_power_softmax_within_one_percent(taught: int, converted: int, part: str, split: Split) -> None:
    config = replace(load_model("digits-vit").config, attention="softmax")
    student = replace(config, attention="power_softmax", power=4)
    teacher = train(config, split, Recipe(epochs=taught))
    start = student_start(config, teacher, student, split.train_inputs)
    found = convert((config, teacher), student, split, Recipe(epochs=converted, learning_rate=3e-3))
    wanted = accuracies(config, teacher, split)[part]
    assert accuracies(student, start, split)[part] < wanted - 0.3  # the weights alone do not do
    assert accuracies(student, found, split)[part] >= wanted - 0.01


@pytest.mark.parametrize("attention", sorted(VARIANTS))
def test_every_variant_trains_converts_and_calibrates(attention: str, few: Split) -> None:
    teacher, config = replace(TINY, attention="softmax"), replace(TINY, attention=attention)
    some = replace(few, train_inputs=few.train_inputs[:64], train_labels=few.train_labels[:64])
    recipe = Recipe(epochs=2)
    trained = train(config, some, recipe)
    converted = convert((teacher, spread(teacher)), config, some, recipe)
    for parameters in (trained, converted):
        assert all(np.isfinite(value).all() for value in parameters.values())
    assert {row.site for row in report(config, trained, some.train_inputs)} >= config.sites().keys()
    assert calibrate(config, trained, some.train_inputs).domains.keys() >= config.sites().keys()


# ---- calibration and report -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits-vit", "digits-vit-oneshot"])
def test_shipped_ranges_are_what_calibration_finds(name: str, split: Split) -> None:
    model = load_model(name)
    found = calibrate(model.config, {k: w.numpy() for k, w in model.weights.items()}, split.train_inputs)
    assert found.domains.keys() >= model.config.sites().keys()
    for site in model.config.sites():
        assert found.domains[site] == pytest.approx(model.ranges.domains[site], rel=1e-9)
    assert found.bounds == pytest.approx(model.ranges.bounds, rel=1e-9)
    assert model.ranges.input == found.input == pytest.approx((-0.1, 1.1))


def test_calibration_covers_every_way_to_compute_softmax(tmp_path: Path, few: Split) -> None:
    config = replace(TINY, attention="softmax")
    found = calibrate(config, spread(config), few.train_inputs, margin=0.25)
    for kind, variant in realisations("softmax").items():
        for site in replace(config, attention=variant.name).sites():
            low, high = found.observed[site]
            assert found.domains[site][0] <= low <= high <= found.domains[site][1], (kind, site)
    path = tmp_path / "ranges.json"
    path.write_text(found.to_json())
    assert Ranges.load(path, config) == found
    old = json.loads(path.read_text())
    assert old.pop("input") == pytest.approx([-0.25, 1.25])
    path.write_text(json.dumps(old))
    assert Ranges.load(path, config) == replace(found, input=None)
    path.write_text(json.dumps({**old, "input": [1.0, 0.0]}))
    with pytest.raises(ProtocolError, match=r"input: \[1.0, 0.0\] is not an interval"):
        Ranges.load(path, config)


def test_report_agrees_with_numpy(few: Split) -> None:
    config = TINY
    parameters = spread(config)
    rows = {row.site: row for row in report(config, parameters, few.train_inputs, {"gelu": (-0.5, 0.5)})}
    assert rows.keys() >= config.sites().keys()
    values = (
        forward(config, tensors(parameters), true_functions(config), few.train_inputs, torch.float64)
        .arguments["layer.0/ffn/gelu"]
        .numpy()
        .ravel()
    )
    gelu, norm = rows["layer.0/ffn/gelu"], rows["layer.0/attention/norm"]
    assert gelu.observed == (values.min(), values.max())
    assert gelu.central == pytest.approx(tuple(np.quantile(values, [0.001, 0.999])), rel=1e-2)
    assert gelu.outside == pytest.approx((np.abs(values) > 0.5).mean(), abs=1e-12)
    assert gelu.target == (-0.5, 0.5)
    assert gelu.ratio is None
    assert norm.ratio == pytest.approx(norm.domain[1] / norm.domain[0])
    assert norm.degrees[0] is not None
    assert norm.degrees[1] is not None
    assert norm.degrees[0] <= norm.degrees[1]
    domains = calibrate(config, parameters, few.train_inputs).domains
    assert {site: row.domain for site, row in rows.items()} == domains
