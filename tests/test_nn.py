"""Networks: folding keeps the function, whatever serves it; what is read from files is checked, all at once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Array, assert_close
from safetensors.numpy import save_file

from secureattn.approx import Realisation, exact, realise
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.errors import InputError, ProtocolError
from secureattn.fit import chebyshev_to_monomial
from secureattn.nn import parameters
from secureattn.nn.config import ATTENTIONS, NORMS, ModelConfig
from secureattn.nn.encoder import Encoder
from secureattn.nn.fold import fold
from secureattn.nn.model import load_model
from secureattn.nn.ranges import Ranges, widened
from secureattn.polynomial import Polynomial

Weights = dict[str, torch.Tensor]
Scalar = Callable[[torch.Tensor], torch.Tensor]
ROUNDING = "float64 rounding of a network whose values stay below 100"


def config_of(attention: str = "power_softmax", norm: str = "layernorm", layers: int = 1, **more: Any) -> ModelConfig:
    """A small model where no two sizes are equal, so that a mistaken axis shows."""
    sizes = {"tokens": 5, "features": 3, "width": 8, "heads": 2, "hidden": 12, "classes": 4}
    options = {"power": 4, "attention_epsilon": 0.7, "norm_epsilon": 1e-3}
    return ModelConfig("test", layers=layers, attention=attention, norm=norm, **{**sizes, **options, **more})


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """Every parameter random, gains and statistics far from 1 and 0."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in parameters.shapes(config).items():
        if name.endswith("variance"):
            value = rng.uniform(0.3, 3.0, shape)
        elif name.endswith("gain"):
            value = rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)
        elif name.endswith("weight"):
            value = rng.normal(scale=shape[-1] ** -0.5, size=shape)
        else:
            value = rng.normal(scale=0.5, size=shape)
        made[name] = torch.tensor(value)
    return made


def inputs_of(config: ModelConfig, samples: int = 3) -> Array:
    return np.random.default_rng(99).normal(size=(samples, config.tokens, config.features))


# ---- the reference --------------------------------------------------------------------------------------------

EXACT: dict[str, Scalar] = {
    "rsqrt": lambda x: 1 / torch.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "gelu": lambda x: x * torch.special.ndtr(x),
    "exp": torch.exp,
}


class Reference:
    """The same encoder as a textbook writes it: nothing folded, nothing fused, one line a formula.

    ``functions`` maps a site to what serves it; ``seen`` keeps the range of every site's argument. The stream is
    defined up to its mean over features, which no norm sees; a LayerNorm model's head reads it with that mean removed.
    """

    def __init__(self, config: ModelConfig, w: Weights, functions: Mapping[str, Scalar] | None = None) -> None:
        self.config, self.w = config, w
        self.functions = functions or {site: EXACT[function] for site, function in config.sites().items()}
        self.seen: dict[str, tuple[float, float]] = {}

    def __call__(self, inputs: Array) -> Array:
        c, w = self.config, self.w
        x = torch.tensor(inputs) @ w["embed.weight"].T + w["embed.bias"] + w["position"]
        for i in range(c.layers):
            x = x + self.attention(f"layer.{i}", self.norm(f"layer.{i}", "attention", x))
            x = x + self.ffn(f"layer.{i}", self.norm(f"layer.{i}", "ffn", x))
        if c.norm == "layernorm":
            x = x - x.mean(-1, keepdim=True)
        pooled = x.mean(1, keepdim=True)
        return (pooled @ w["head.weight"].T + w["head.bias"]).numpy()

    def at(self, site: str, x: torch.Tensor) -> torch.Tensor:
        self.seen[site] = (float(x.min()), float(x.max()))
        return self.functions[site](x)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, layer: str, part: str, x: torch.Tensor) -> torch.Tensor:
        gain, bias = self.w[f"{layer}.{part}.norm.gain"], self.w[f"{layer}.{part}.norm.bias"]
        if self.config.norm == "batchnorm":
            mean, variance = self.w[f"{layer}.{part}.norm.mean"], self.w[f"{layer}.{part}.norm.variance"]
            return (x - mean) / torch.sqrt(variance + self.config.norm_epsilon) * gain + bias
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred**2).mean(-1, keepdim=True)
        return centred * self.at(f"{layer}/{part}/norm", variance + self.config.norm_epsilon) * gain + bias

    def attention(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        c = self.config
        width = c.width // c.heads
        contexts = []
        for h in range(c.heads):
            part = slice(h * width, (h + 1) * width)
            q, k, v = (self.linear(f"{layer}.attention.{n}", x)[..., part] for n in ("query", "key", "value"))
            contexts.append((q @ k.transpose(-1, -2) / math.sqrt(width), v))
        scores = torch.stack([s for s, _ in contexts], 1)
        weights = self.weights(layer, scores)
        mixed = torch.cat([weights[:, h] @ v for h, (_, v) in enumerate(contexts)], -1)
        return self.linear(f"{layer}.attention.output", mixed)

    def weights(self, layer: str, s: torch.Tensor) -> torch.Tensor:
        c, normaliser = self.config, f"{layer}/attention/normaliser"
        if c.attention == "softmax":
            top = self.at(f"{layer}/attention/exp", s - s.mean(-1, keepdim=True))
        else:
            top = (s + 5.0) ** 2 if c.attention == "quad" else s**c.power
        total = top.sum(-1, keepdim=True)
        if c.attention == "power_softmax":
            total = total + c.attention_epsilon
        if c.attention == "power_softmax_length_agnostic":
            top, total = top / c.tokens, total / c.tokens + c.attention_epsilon
        return top * self.at(normaliser, total)

    def ffn(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        return self.linear(f"{layer}.ffn.out", self.at(f"{layer}/ffn/gelu", self.linear(f"{layer}.ffn.in", x)))


def folded_run(
    config: ModelConfig, w: Weights, inputs: Array, served: Mapping[str, Realisation] | None = None
) -> Array:
    """The library's program, in float64."""
    served = served or {site: exact(function) for site, function in config.sites().items()}
    backend = PlaintextBackend(exact=True)
    return backend.reveal(Encoder(fold(config, w, served), backend)(backend.input(inputs)))


# ---- folding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_folding_keeps_the_function(attention: str, norm: str, layers: int) -> None:
    config = config_of(attention, norm, layers)
    for seed in range(3):
        w, x = random_weights(config, seed), inputs_of(config)
        wanted = Reference(config, w)(x)
        assert 0.1 < np.abs(wanted).max() < 100
        assert_close(folded_run(config, w, x), wanted, 1e-9, ROUNDING)


def test_torchs_layernorm_and_softmax_agree_with_the_reference() -> None:
    """The yardstick itself, where torch has the same function."""
    config = config_of("softmax")
    w, x = random_weights(config), torch.tensor(inputs_of(config)) @ torch.randn(3, 8, dtype=torch.float64)
    reference = Reference(config, w)
    gain, bias = w["layer.0.ffn.norm.gain"], w["layer.0.ffn.norm.bias"]
    wanted = torch.nn.functional.layer_norm(x, (8,), gain, bias, config.norm_epsilon)
    assert_close(reference.norm("layer.0", "ffn", x), wanted, 1e-12, "rounding")
    assert_close(reference.weights("layer.0", x), torch.softmax(x, -1), 1e-12, "rounding")
    multihead = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    at = "layer.0.attention"
    state = {
        "in_proj_weight": torch.cat([w[f"{at}.{n}.weight"] for n in ("query", "key", "value")]),
        "in_proj_bias": torch.cat([w[f"{at}.{n}.bias"] for n in ("query", "key", "value")]),
        "out_proj.weight": w[f"{at}.output.weight"],
        "out_proj.bias": w[f"{at}.output.bias"],
    }
    multihead.load_state_dict(state)
    with torch.no_grad():
        assert_close(reference.attention("layer.0", x), multihead(x, x, x)[0], 1e-12, "rounding")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attention", ["power_softmax", "softmax"])
def test_every_parameter_matters(attention: str, norm: str) -> None:
    """The comparison above would notice one parameter folded wrongly, be it by one part in a million."""
    config = config_of(attention, norm)
    w, x = random_weights(config), inputs_of(config)
    right = folded_run(config, w, x)
    for name in w:
        wrong = {**w, name: w[name] * (1 + 1e-6 * torch.linspace(0.5, 1.0, w[name].numel()).reshape(w[name].shape))}
        error = np.abs(Reference(config, wrong)(x) - right).max()
        if attention == "softmax" and name == "layer.0.attention.key.bias":
            assert error < 1e-9, "a key's bias shifts whole rows, which softmax does not see"
        else:
            assert error > 1e-9, name


@pytest.mark.parametrize("change", [{"attention_epsilon": 0.7001}, {"norm_epsilon": 1.001e-3}, {"power": 6}])
def test_every_constant_matters(change: dict[str, Any]) -> None:
    config = config_of()
    w, x = random_weights(config), inputs_of(config)
    with pytest.raises(AssertionError, match="exceeds"):
        assert_close(folded_run(replace(config, **change), w, x), Reference(config, w)(x), 1e-9, "deliberately wrong")


def narrow(attention: str, norm: str = "layernorm", layers: int = 1) -> tuple[ModelConfig, Weights, Array]:
    """A model whose normalisers stay within a decade or so, as training with a range penalty makes them."""
    config = config_of(attention, norm, layers, attention_epsilon=20.0 if attention == "power_softmax" else 4.0)
    w = random_weights(config)
    for i in range(layers):
        w[f"layer.{i}.attention.query.weight"] *= 0.3
        w[f"layer.{i}.attention.query.bias"] *= 0.3
    return config, w, inputs_of(config)


def served_by(config: ModelConfig, w: Weights, x: Array, **options: dict[str, Any]) -> dict[str, Realisation]:
    """A realisation a site, made for the range seen there."""
    reference = Reference(config, w)
    reference(x)
    made = {}
    for site, function in config.sites().items():
        domain = widened(function, reference.seen[site], 0.05)
        made[site] = realise(function, options.get(function, {"kind": "chebyshev", "degree": 15}), domain)
    return made


def unfolded(realisation: Realisation) -> Scalar:
    """The polynomial as it was fitted, evaluated by numpy."""
    p = realisation.polynomial
    assert p is not None
    return lambda x: torch.tensor(np.polynomial.Chebyshev(p.coefficients, domain=p.domain)(x.numpy()))


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_folding_keeps_polynomials(attention: str, norm: str, layers: int) -> None:
    """The affine maps of Chebyshev domains move into weights; the polynomial stays the same one."""
    config, w, x = narrow(attention, norm, layers)
    served = served_by(config, w, x)
    wanted = Reference(config, w, {site: unfolded(r) for site, r in served.items()})(x)
    assert np.abs(wanted).max() < 100
    assert_close(folded_run(config, w, x, served), wanted, 1e-9, ROUNDING)
    assert np.abs(wanted - Reference(config, w)(x)).max() > 1e-8, "the polynomials do differ from the true functions"


def test_folding_keeps_realisations_that_are_no_polynomial() -> None:
    """Goldschmidt, Newton and quad take their arguments unscaled."""
    config, w, x = narrow("power_softmax")
    options = {
        "reciprocal": {"kind": "goldschmidt", "error": 1e-12},
        "rsqrt": {"kind": "newton", "steps": 6, "degree": 7},
    }
    served = served_by(config, w, x, **options, gelu={"kind": "quad"})
    functions = {site: EXACT[function] for site, function in config.sites().items()}
    functions["layer.0/ffn/gelu"] = lambda t: t**2 / 8 + t / 4 + 0.5
    assert_close(folded_run(config, w, x, served), Reference(config, w, functions)(x), 1e-9, "1e-12 of Goldschmidt")


@pytest.mark.parametrize("attention", ["power_softmax", "quad"])
def test_folding_keeps_monomial_polynomials(attention: str) -> None:
    """They have no affine map to fold, but a Power-Softmax normaliser scales them all the same."""
    config, w, x = narrow(attention)
    served, functions = served_by(config, w, x), {}
    for site, realisation in served.items():
        draft = realise(realisation.function, {"kind": "chebyshev", "degree": 5}, realisation.domain).polynomial
        assert draft is not None
        coefficients = tuple(float(c) for c in chebyshev_to_monomial(draft.coefficients, draft.domain))
        p = Polynomial(coefficients, draft.domain, "monomial")
        served[site] = realisation.with_polynomial(p)
        functions[site] = lambda t, c=coefficients: sum(a * t**k for k, a in enumerate(c))
    wanted = Reference(config, w, functions)(x)
    assert np.abs(wanted).max() < 100
    assert_close(folded_run(config, w, x, served), wanted, 1e-9, ROUNDING)


def test_folding_takes_away_affine_maps() -> None:
    """What folding is for: no slope is left at a GELU or a Power-Softmax normaliser."""
    config = config_of()
    w, x = random_weights(config), inputs_of(config)
    served = served_by(config, w, x)
    layer = fold(config, w, served).layers[0]
    for site, realisation in (("layer.0/ffn/gelu", layer.gelu), ("layer.0/attention/normaliser", layer.normaliser)):
        assert realisation.polynomial is not None
        assert realisation.polynomial.slope == 1.0
        assert realisation.polynomial.depth == served[site].polynomial.depth - 1  # type: ignore[union-attr]
    config, w, x = narrow("power_softmax", "batchnorm")
    layer = fold(config, w, served_by(config, w, x)).layers[0]
    assert layer.attention_norm is None
    assert layer.ffn_norm is None


def test_gradients_reach_every_parameter() -> None:
    config = config_of()
    w = {name: value.requires_grad_() for name, value in random_weights(config).items()}
    backend = PlaintextBackend(exact=True)
    served = {site: exact(function) for site, function in config.sites().items()}
    logits = Encoder(fold(config, w, served), backend)(backend.input(inputs_of(config))).data  # type: ignore[attr-defined]
    logits.square().sum().backward()
    for name, value in w.items():
        assert value.grad is not None, name
        assert torch.any(value.grad != 0), name


def test_sites_are_observed_under_their_names() -> None:
    for attention in ATTENTIONS:
        for norm in NORMS:
            config = config_of(attention, norm, 2)
            backend = PlaintextBackend(exact=True)
            seen: dict[str, torch.Tensor] = {}
            backend.observers.append(seen.__setitem__)
            served = {site: exact(function) for site, function in config.sites().items()}
            Encoder(fold(config, random_weights(config), served), backend)(backend.input(inputs_of(config)))
            assert set(config.sites()) <= set(seen)
            assert seen["layer.1/ffn/gelu"].shape == (3, config.tokens, config.hidden)


def test_output_shape_and_independence_of_samples() -> None:
    config = config_of(layers=2)
    w, x = random_weights(config), inputs_of(config)
    together = folded_run(config, w, x)
    assert together.shape == (3, 1, config.classes)
    for i in range(3):
        assert_close(together[i : i + 1], folded_run(config, w, x[i : i + 1]), 1e-12, "samples do not mix")


# ---- config ---------------------------------------------------------------------------------------------------


def write(path: Path, raw: Any) -> Path:
    path.write_text(json.dumps(raw))
    return path


def raw_config(**changes: Any) -> dict[str, Any]:
    return {**json.loads(config_of().to_json()), **changes}


def violations_of(call: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.violations


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_config_round_trip(tmp_path: Path, attention: str, norm: str) -> None:
    config = config_of(attention, norm, 2, heads=4)
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    assert ModelConfig.load(path) == config


def test_config_lists_unknown_and_missing_keys_at_once(tmp_path: Path) -> None:
    raw = raw_config(colour="blue", depth=3)
    del raw["width"], raw["name"]
    found = violations_of(lambda: ModelConfig.load(write(tmp_path / "c.json", raw)))
    assert sorted(found) == ["missing key 'name'", "missing key 'width'", "unknown key 'colour'", "unknown key 'depth'"]


def test_config_lists_every_wrong_value_at_once(tmp_path: Path) -> None:
    changes = {"tokens": 0, "heads": 1.5, "attention": "cosine", "norm": "none", "norm_epsilon": -1.0, "classes": "ten"}
    found = violations_of(lambda: ModelConfig.load(write(tmp_path / "c.json", raw_config(**changes))))
    assert len(found) == len(changes)
    for name, value in changes.items():
        assert any(name in violation and repr(value) in violation for violation in found), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 9}, "width 9 does not divide into 2 heads"),
        ({"power": 3}, "power must be even, not 3"),
        ({"attention_epsilon": float("nan")}, "attention_epsilon must be a positive number, not nan"),
    ],
)
def test_config_refuses(changes: dict[str, Any], said: str) -> None:
    assert violations_of(lambda: config_of(**changes)) == (said,)


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"format": 2}', '"text"'])
def test_config_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    assert len(violations_of(lambda: ModelConfig.load(path))) == 1
    assert len(violations_of(lambda: ModelConfig.load(tmp_path / "absent.json"))) == 1


# ---- parameters -----------------------------------------------------------------------------------------------


def arrays_of(config: ModelConfig) -> dict[str, Array]:
    return {name: value.numpy() for name, value in random_weights(config).items()}


@pytest.mark.parametrize("norm", NORMS)
def test_parameters_round_trip(tmp_path: Path, norm: str) -> None:
    """Files hold float32; what comes back is that, exactly, as float64."""
    config = config_of(norm=norm, layers=2)
    arrays = arrays_of(config)
    parameters.save(tmp_path / "w.safetensors", arrays)
    loaded = parameters.load(tmp_path / "w.safetensors", config)
    assert loaded.keys() == arrays.keys() == parameters.shapes(config).keys()
    for name, value in arrays.items():
        assert loaded[name].dtype == np.float64
        assert_close(loaded[name], value.astype(np.float32), 0.0, "exact")
    parameters.save(tmp_path / "again.safetensors", loaded)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()


def test_parameters_list_everything_wrong_at_once(tmp_path: Path) -> None:
    config = config_of()
    arrays = arrays_of(config)
    del arrays["head.bias"], arrays["layer.0.ffn.in.weight"]
    arrays["extra"] = np.zeros(2)
    arrays["position"] = arrays["position"].T
    arrays["embed.bias"][3] = np.nan
    arrays["layer.0.ffn.norm.gain"][0] = np.inf
    parameters.save(tmp_path / "w.safetensors", arrays)
    assert violations_of(lambda: parameters.load(tmp_path / "w.safetensors", config)) == (
        "missing head.bias",
        "missing layer.0.ffn.in.weight",
        "unknown extra",
        "embed.bias holds values that are not finite",
        "layer.0.ffn.norm.gain holds values that are not finite",
        "position has shape [8, 5], the config needs [5, 8]",
    )


@pytest.mark.parametrize("metadata", [None, {"secureattn.format": "2"}, {"format": "1"}])
def test_parameters_of_another_format_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    config = config_of()
    save_file(arrays_of(config), tmp_path / "w.safetensors", metadata=metadata)
    with pytest.raises(InputError, match="this release reads 1"):
        parameters.load(tmp_path / "w.safetensors", config)


def test_parameters_that_are_no_file_or_cut_short_are_refused(tmp_path: Path) -> None:
    config = config_of()
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match="cannot be read"):
        parameters.load(path, config)
    parameters.save(path, arrays_of(config))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot be read"):
        parameters.load(path, config)


def test_initial_parameters_fit_and_repeat() -> None:
    config = config_of(norm="batchnorm")
    made = parameters.initial(config, 3)
    assert {name: value.shape for name, value in made.items()} == parameters.shapes(config)
    for name, value in parameters.initial(config, 3).items():
        assert_close(value, made[name], 0.0, "the same seed")
    assert np.all(made["layer.0.ffn.norm.variance"] == 1)
    assert np.any(parameters.initial(config, 4)["head.weight"] != made["head.weight"])


# ---- ranges ---------------------------------------------------------------------------------------------------


def raw_ranges(config: ModelConfig) -> dict[str, Any]:
    sites = {site: {"observed": [0.5, 2.0], "domain": [0.25, 2.5]} for site in config.sites()}
    return {"format": 1, "samples": 10, "margin": 0.1, "sites": sites, "bounds": {"head/input": 3.0}}


def test_ranges_round_trip(tmp_path: Path) -> None:
    config = config_of("softmax", layers=2)
    ranges = Ranges.load(write(tmp_path / "r.json", raw_ranges(config)), config)
    (tmp_path / "again.json").write_text(ranges.to_json())
    assert Ranges.load(tmp_path / "again.json", config) == ranges
    assert ranges.domains["layer.1/attention/exp"] == (0.25, 2.5)
    assert (ranges.samples, ranges.margin, ranges.bounds) == (10, 0.1, {"head/input": 3.0})


def test_ranges_list_everything_wrong_at_once(tmp_path: Path) -> None:
    config = config_of()
    raw = raw_ranges(config)
    del raw["sites"]["layer.0/ffn/gelu"]
    raw["sites"]["layer.0/ffn/norm"]["domain"] = [2.0, 1.0]
    raw["sites"]["layer.0/attention/norm"]["domain"] = [float("nan"), 1.0]
    raw["bounds"] = {"head/input": -1.0, "layer.0/ffn/input": float("inf")}
    found = violations_of(lambda: Ranges.load(write(tmp_path / "r.json", raw), config))
    assert len(found) == 5
    assert "no range for layer.0/ffn/gelu; calibrate the model again" in found
    assert "layer.0/ffn/norm: [2.0, 1.0] is not an interval" in found
    assert "layer.0/attention/norm: [nan, 1.0] is not an interval" in found
    assert "head/input: bound -1.0 is not a positive number" in found


@pytest.mark.parametrize("change", [{"format": 2}, {"samples": "many"}, {"sites": {"a": [1]}}])
def test_ranges_that_cannot_be_read(tmp_path: Path, change: dict[str, Any]) -> None:
    config = config_of()
    raw = {**raw_ranges(config), **change}
    assert len(violations_of(lambda: Ranges.load(write(tmp_path / "r.json", raw), config))) == 1
    assert len(violations_of(lambda: Ranges.load(tmp_path / "absent.json", config))) == 1


def test_widened() -> None:
    assert widened("reciprocal", (2.2, 10.0), 0.1) == pytest.approx((2.0, 11.0))
    assert widened("reciprocal", (1.05, 10.0), 0.1, floor=1.0) == pytest.approx((1.0, 11.0))
    assert widened("rsqrt", (0.11, 1.0), 0.1) == pytest.approx((0.1, 1.1))
    assert widened("gelu", (-3.0, 2.0), 0.5) == pytest.approx((-4.5, 4.5))
    assert widened("exp", (-6.0, 2.0), 0.25) == pytest.approx((-8.0, 4.0))


# ---- a model folder -------------------------------------------------------------------------------------------


def test_a_model_folder(tmp_path: Path) -> None:
    config = config_of()
    (tmp_path / "config.json").write_text(config.to_json())
    write(tmp_path / "ranges.json", raw_ranges(config))
    model = load_model(tmp_path)
    assert model.config == config
    with pytest.raises(InputError, match="cannot be read"):
        _ = model.weights
    parameters.save(tmp_path / "model.safetensors", arrays_of(config))
    assert model.weights["head.weight"].shape == (4, 8)
    assert {n: tuple(v.shape) for n, v in model.weight_shapes.items()} == parameters.shapes(config)
    assert not any(v.any() for v in model.weight_shapes.values())
    with pytest.raises(InputError, match="no readable samples"):
        model.samples()
    save_file({"inputs": inputs_of(config), "labels": np.array([0, 1, 2])}, tmp_path / "samples.safetensors")
    x, labels = model.samples(2)
    assert_close(x, inputs_of(config)[:2], 0.0, "exact")
    assert labels.tolist() == [0, 1]
    for count in (0, 4):
        with pytest.raises(InputError, match=f"{count} samples were asked for, model test ships 3"):
            model.samples(count)
    assert model.check(x[0]).shape == (1, 5, 3)
    assert_close(model.check(x), x, 0.0, "exact")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.zeros((2, 5, 4)), r"shape \[2, 5, 4\], model test needs \[N, 5, 3\]"),
        (np.zeros((3, 5)), "needs"),
        (np.zeros((0, 5, 3)), "needs"),
        (np.full((1, 5, 3), np.nan), "not finite"),
        (np.full((1, 5, 3), -np.inf), "not finite"),
        (np.full((1, 5, 3), "a"), "numbers are needed"),
    ],
)
def test_wrong_input_is_refused(tmp_path: Path, data: Any, said: str) -> None:
    config = config_of()
    (tmp_path / "config.json").write_text(config.to_json())
    write(tmp_path / "ranges.json", raw_ranges(config))
    with pytest.raises(InputError, match=said):
        load_model(tmp_path).check(data)
