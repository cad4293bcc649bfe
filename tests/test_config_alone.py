"""Configs alone: planned with assumed ranges and no weights, refused by whatever would run them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import failed, run

from secureattn import load_model, load_protocol, make_plan
from secureattn.commands import plan_tables
from secureattn.errors import InputError, PlanError, ProtocolError
from secureattn.nn.assumed import ASSUMED, assumed
from secureattn.nn.batch import Shape
from secureattn.nn.config import ModelConfig
from secureattn.nn.model import Model
from secureattn.plan import Plan, alike
from secureattn.resources import find, names
from secureattn.runs import execute

CONFIGS = [name for name in names("models") if not (find("models", name) / "ranges.json").exists()]
PARAMETERS = {  # millions, as their papers or cards say
    "bert-base": 110, "bert-large": 336, "gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "pythia-70m": 70,
    "pythia-70m-power": 70, "llama-7b": 6738,
}  # fmt: skip


def planned(model: Model, protocol: str = "accurate-mpc", tokens: int = 8) -> Plan:
    return make_plan(model, load_protocol(protocol), samples=1, shape=Shape(1, tokens))


def cost(plan: Plan) -> dict[str, int]:
    """Of all parties, what is done once per model left out; rounds of one."""
    assert plan.mpc is not None
    found = {}
    for name in ("rounds", "bytes_sent", "dealer_bytes"):
        phases = ("offline", "online", "decrypt")
        counts = [sum(r.total(name, phase=phase) for phase in phases) for r in plan.mpc.recorders]
        found[name] = max(counts) if name == "rounds" else sum(counts)
    return found


# ---- what is shipped ---------------------------------------------------------------------------------------------


def test_every_config_is_as_large_as_its_paper_says() -> None:
    assert sorted(PARAMETERS) == CONFIGS
    for name, millions in PARAMETERS.items():
        model = load_model(name)
        assert sum(w.numel() for w in model.weight_shapes.values()) / 1e6 == pytest.approx(millions, rel=0.01), name
        assert all(w.is_meta for w in model.weight_shapes.values())
        assert "no weights are here" in " ".join((model.folder / "README.md").read_text().split())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_planned_and_says_that_ranges_are_assumed(name: str) -> None:
    plan = planned(load_model(name))
    assert plan.warnings == (ASSUMED,)
    document = plan_tables.document(plan)
    assert document["ranges"] == "assumed"
    assert document["warnings"] == [ASSUMED]


@pytest.mark.parametrize("name", ["bert-base", "pythia-70m"])
def test_more_bits_than_a_protocol_declares_are_planned_and_said(name: str) -> None:
    """PUMA declares fewer than pretrained models need."""
    plan = planned(load_model(name), "puma")
    bits = plan.protocol.mpc.integer_bits
    assert 2.0 ** (bits - 1) <= plan.model.ranges.largest(plan.config)[1] < 2.0**bits
    assert f"planned with mpc.integer_bits = {bits}, for assumed values, in the place of 11" in plan.warnings


def test_the_largest_is_planned_in_little_memory() -> None:
    code = (
        "import secureattn; from secureattn.nn.batch import Shape; p = secureattn.make_plan("
        "secureattn.load_model('llama-7b'), secureattn.load_protocol('accurate-mpc'), samples=1, shape=Shape(1, 8));"
        "import sys; peak = [x.split()[1] for x in open('/proc/self/status') if x.startswith('VmHWM')][0];"
        "print(peak, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    peak_kib, compiler = done.stdout.split()
    assert int(peak_kib) < 1 << 20  # its weights would be 50 GiB as the engine holds them
    assert compiler == "False"


# ---- assumed ranges ----------------------------------------------------------------------------------------------

FACTORS: dict[str, dict[str, float]] = {
    "minilm": {"rounds": 1.05, "bytes_sent": 1.01, "dealer_bytes": 1.25},
    "bytes-gpt2": {"rounds": 1.9, "bytes_sent": 1.4, "dealer_bytes": 2.2},
    "bytes-llama": {"rounds": 1.8, "bytes_sent": 1.35, "dealer_bytes": 2.0},
    "bytes-gpt2-power": {"rounds": 1.5, "bytes_sent": 1.05, "dealer_bytes": 1.3},
    "bytes-llama-power": {"rounds": 1.5, "bytes_sent": 1.05, "dealer_bytes": 1.45},
}
"""Cost under assumed ranges over cost under calibrated ones, at most, and at least 1. What is assumed of softmax models
is that they were pretrained, as MiniLM was; the two decoders of bytes were trained to keep their scores within 9, which
spares them softmax's way for far scores: half their rounds and bytes."""


@pytest.mark.parametrize("name", FACTORS)
def test_how_far_assumed_ranges_take_a_cost_from_calibrated_ones(name: str) -> None:
    model = load_model(name)
    calibrated = cost(planned(model, tokens=16))
    guessed = cost(planned(replace(model, ranges=assumed(model.config)), tokens=16))
    for count, most in FACTORS[name].items():
        assert 1 <= guessed[count] / calibrated[count] <= most, (count, guessed[count] / calibrated[count])
        assert guessed[count] / calibrated[count] > 1 + (most - 1) / 3 or most < 1.1, "the factor says less than it can"


@pytest.mark.parametrize("name", ["minilm", "bytes-gpt2", "bytes-llama", "bytes-gpt2-power", "digits-vit", *CONFIGS])
def test_every_site_has_a_domain_and_every_refresh_point_a_bound(name: str) -> None:
    """Those that calibration gives; and intervals of the calibrated models' size."""
    model = load_model(name)
    found = assumed(model.config)
    for form in model.config.forms():
        assert form.sites().keys() <= found.domains.keys()
    assert all(low < high for low, high in found.domains.values())
    assert all(0 < bound < np.inf for bound in found.bounds.values())
    if not model.ranges.assumed:
        points = model.ranges.bounds.keys() - {f"{site}.{end}" for site in found.domains for end in ("in", "out")}
        assert points <= found.bounds.keys()


# ---- Hugging Face's configs --------------------------------------------------------------------------------------


def settings_of(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    return folder / "config.json"


NEOX: dict[str, Any] = {
    "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "vocab_size": 50304, "hidden_size": 512,
    "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 2048, "hidden_act": "gelu",
    "rotary_pct": 0.25, "rotary_emb_base": 10000, "max_position_embeddings": 2048, "layer_norm_eps": 1e-05,
    "use_parallel_residual": True, "tie_word_embeddings": False,
}  # fmt: skip


def test_their_config_is_read_from_its_file_or_its_folder(tmp_path: Path) -> None:
    file = settings_of(tmp_path / "pythia-70m", **NEOX)
    shipped = load_model("pythia-70m")
    for path in (file, file.parent):
        model = load_model(path)
        assert model.config == shipped.config
        assert model.notes == (ASSUMED,)
        assert cost(planned(model)) == cost(planned(shipped))


def test_a_class_that_is_not_run_is_planned_as_one_that_is(tmp_path: Path) -> None:
    bert = {
        "model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 99, "hidden_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40, "hidden_act": "gelu",
        "max_position_embeddings": 20, "layer_norm_eps": 1e-12,
    }  # fmt: skip
    model = load_model(settings_of(tmp_path / "masked", **bert))
    assert model.config.pooler
    assert model.config.output == "vector"
    assert "planned as BertModel, which is run, in the place of BertForMaskedLM" in planned(model).warnings
    with pytest.raises(ProtocolError, match="setting 'hidden_size' is missing"):
        load_model(settings_of(tmp_path / "less", **{k: v for k, v in bert.items() if k != "hidden_size"}))
    with pytest.raises(ProtocolError, match="hidden_act is 'mish'"):
        load_model(settings_of(tmp_path / "mish", **{**bert, "hidden_act": "mish"}))


def test_our_config_by_itself_leaves_what_is_beside_it(tmp_path: Path) -> None:
    model = load_model(find("models", "bytes-gpt2") / "config.json")
    assert model.alone
    assert model.ranges.assumed
    with pytest.raises(InputError, match="is a config alone"):
        _ = model.weights
    shutil.copyfile(model.folder / "config.json", tmp_path / "mine.json")
    assert load_model(tmp_path / "mine.json").config == model.config


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_commands_that_run_a_model_refuse_it_in_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 4), dtype=np.int64))
    commands: list[tuple[Any, ...]] = [
        ("compare", "bert-base", "accurate-mpc"),
        ("infer", "bert-base", "power-softmax-ckks", tmp_path / "x.npy", "-o", tmp_path / "y.npy"),
        ("generate", "gpt2", "accurate-mpc", "--file", tmp_path / "x.npy"),
        ("plan", "bert-base", "accurate-mpc", "--search"),
    ]
    for command in commands:
        line = failed(*command)
        assert f"model {command[1]} is a config alone, which is planned (secureattn plan) and not run" in line
        assert "secureattn convert" in line


def test_weights_without_ranges_are_planned_and_not_run(tmp_path: Path) -> None:
    start = load_model("bytes-gpt2")
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(start.folder / name, tmp_path / name)
    model = load_model(tmp_path)
    assert not model.alone
    plan = planned(model)
    assert ASSUMED in plan.warnings
    with pytest.raises(InputError, match=r"has no ranges.json, without which it is planned and not run.*calibrate"):
        execute(plan, np.zeros((1, 8), dtype=np.int64))


def test_info_lists_what_runs_and_what_is_planned(tmp_path: Path) -> None:
    done = run("info", "--json", tmp_path / "info.json")
    described = json.loads((tmp_path / "info.json").read_text())
    assert described["configs"] == CONFIGS
    assert sorted([*described["models"], *described["configs"]]) == names("models")
    assert "configs alone, to plan or to convert weights for: bert-base" in done.stdout


def test_plan_of_the_command_line_warns(tmp_path: Path) -> None:
    done = run("plan", "gpt2", "accurate-mpc", "--tokens", "4", "--json", tmp_path / "plan.json")
    assert f"warning: {ASSUMED}" in done.stdout
    assert json.loads((tmp_path / "plan.json").read_text())["ranges"] == "assumed"


# ---- CKKS --------------------------------------------------------------------------------------------------------


def test_random_numbers_in_the_place_of_weights_cost_what_weights_cost() -> None:
    """Which weights are 0 decides what a sum costs, and none of a trained model is."""
    model, protocol = load_model("digits-vit"), load_protocol("power-softmax-ckks")
    plans = [make_plan(m, protocol, samples=1, workers=1) for m in (model, replace(model, alone=True))]
    counted = [p.ckks.recorder for p in plans if p.ckks is not None]
    for name in ("ct_products", "pt_products", "rotations", "rescales", "bytes_sent"):
        assert counted[0].total(name) == counted[1].total(name) > 0, name


def test_a_config_alone_is_planned_on_ciphertexts(tmp_path: Path) -> None:
    config = ModelConfig("small", 8, 4, 8, 2, 16, 1, 3)
    (tmp_path / "config.json").write_text(config.to_json())
    plan = make_plan(load_model(tmp_path), load_protocol("power-softmax-ckks"), samples=1, workers=1)
    assert plan.ckks is not None
    assert ASSUMED in plan.warnings


# ---- under CKKS --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("after", "attention"), [(True, "softmax"), (False, "power_softmax")])
def test_layers_that_are_alike_are_planned_once(
    after: bool, attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six layers from four, and six planned each: the same counts, place by place."""
    config = ModelConfig(
        name="six", tokens=4, features=30, width=8, heads=2, hidden=16, layers=6, classes=8, attention=attention,
        input="tokens", output="vector", norm_after=after, embed_norm=after, final_norm=not after,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(config.to_json())
    protocol = "accurate-ckks" if after else "power-softmax-ckks"
    plans = [planned(load_model(tmp_path), protocol, 4).ckks]
    monkeypatch.setattr(alike, "PLANNED", 6)
    plans.append(planned(load_model(tmp_path), protocol, 4).ckks)
    few, whole = [plan for plan in plans if plan is not None]
    counts = [{key: event.counts for key, event in plan.recorder.events.items()} for plan in (few, whole)]
    assert counts[0] == counts[1]
    assert (few.depth, few.schedule, few.points) == (whole.depth, whole.schedule, whole.points)
    assert few.seconds == pytest.approx(whole.seconds, rel=1e-3)
    assert few.hiding_bits_run is not None
    assert whole.hiding_bits_run is not None
    assert whole.hiding_bits_run - 0.5 < few.hiding_bits_run <= whole.hiding_bits_run  # never more than there are


def test_a_stream_that_no_mask_hides_is_refused_before_weights_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of thousands, as decoders have them, in more layers than there are levels."""
    monkeypatch.setattr(Plan, "folded", lambda *args, **options: pytest.fail("weights were read"))
    with pytest.raises(PlanError, match=r"layers need their stream refreshed: (\d+) of \1 refresh points .* 3\d bits"):
        planned(load_model("llama-7b"), "accurate-ckks", 8)


def test_values_that_no_mask_hides_are_named_where_levels_run_out(tmp_path: Path) -> None:
    """A norm over five decades takes Goldschmidt's steps, more than a ring has levels for without a refresh."""
    config = ModelConfig(
        name="wide", tokens=4, features=30, width=8, heads=2, hidden=16, layers=1, classes=8, attention="softmax",
        input="tokens", output="vector",
    )  # fmt: skip
    (tmp_path / "config.json").write_text(config.to_json())
    model = load_model(tmp_path)
    wide = {site: (0.01, 3000.0) if site.endswith("/norm") else ends for site, ends in model.ranges.domains.items()}
    far = {point: 1e4 * bound for point, bound in model.ranges.bounds.items()}
    far_model = replace(model, ranges=replace(model.ranges, domains=wide, bounds=far))
    said = r"levels run out at .*: \d+ of \d+ refresh points would show the key owner too much, such as layer\.0/"
    with pytest.raises(PlanError, match=said):
        planned(far_model, "accurate-ckks", 4)
