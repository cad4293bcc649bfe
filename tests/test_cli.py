"""The command line as its users meet it: a subprocess, its exit status, its two streams, its files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pytest

from secureattn.cli import main
from secureattn.resources import find

SAMPLES = find("models", "digits-vit") / "samples.safetensors"
PHASES = {"setup", "keys", "encrypt", "offline", "online", "refresh", "decrypt"}


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "secureattn.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, timeout=300)


def failed(*arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """The one line that a failing command leaves on stderr; nothing on stdout, status 1. Of a command in this process,
    unless it needs an environment of its own.
    """
    return commands.the_error(run(*arguments, env=env) if env else commands.run(*arguments))


def without(tmp_path: Path, *modules: str) -> dict[str, str]:
    """An environment in which importing these modules fails, as where they are not installed."""
    for module in modules:
        (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError('missing', name={module!r})\n")
    return {"PYTHONPATH": str(tmp_path)}


# ---- help and usage ---------------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in (
        "info",
        "plan",
        "compare",
        "profile",
        "infer",
        "generate",
        "report",
        "diff",
        "trace",
        "train",
        "convert",
        "calibrate",
        "party",
    ):
        assert command in done.stdout
        assert run(command, "--help").returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [(), ("dance",), ("plan",), ("plan", "digits-vit", "plaintext", "--batch", "0"), ("infer", "a", "b", "c")],
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: secureattn" in done.stderr


def test_info_lists_engines_models_and_protocols(tmp_path: Path) -> None:
    done = run("info", "--json", tmp_path / "info.json")
    assert done.returncode == 0
    described = json.loads((tmp_path / "info.json").read_text())
    assert set(described["engines"]) == {"plaintext", "ckks", "crypten"}
    assert "digits-vit" in described["models"]
    assert "power-softmax-mpc" in done.stdout


def test_info_gives_the_command_for_a_missing_engine() -> None:
    code = (
        "import importlib.util as u; real = u.find_spec;"
        "u.find_spec = lambda n, *a: None if n == 'crypten' else real(n, *a);"
        "from secureattn.cli import main; main(['info'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install --no-deps crypten==0.4.1" in done.stdout


# ---- plans ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "protocol"),
    [
        ("digits-vit", "plaintext"),
        ("digits-vit", "power-softmax-ckks"),
        ("digits-vit-oneshot", "power-softmax-ckks-oneshot"),
        ("digits-vit", "power-softmax-mpc"),
        ("digits-vit", "crypten"),
    ],
)
def test_plan_prints_trust_and_writes_json(model: str, protocol: str, tmp_path: Path) -> None:
    done = run("plan", model, protocol, "--batch", "8", "--json", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # progress is for terminals
    assert "trust: " in done.stdout
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["schema"] == 1
    assert plan["samples"] == 8
    if plan["engine"] == "ckks":
        assert plan["parameters"]["security_bits"] >= 128
        assert plan["parameters"]["modulus_bits"] <= plan["parameters"]["modulus_bits_allowed"]
        assert "security (2024 guidelines)" in done.stdout


def test_a_plan_that_cannot_fit_says_what_would() -> None:
    line = failed("plan", "digits-vit", "power-softmax-ckks-oneshot")
    assert "needs 32 levels" in line
    assert "19 fit 128-bit security" in line
    assert "at layer.0/ffn" in line
    assert 'refresh = "client"' in line


def test_comparison_under_ckks_is_refused_with_what_to_use(tmp_path: Path) -> None:
    text = find("protocols", "power-softmax-ckks").read_text()
    mine = tmp_path / "mine.toml"
    mine.write_text(text.replace('gelu = { kind = "chebyshev", degree = 15 }', 'gelu = { kind = "puma" }'))
    line = failed("plan", "digits-vit", mine)
    assert "layer.0/ffn/gelu" in line
    assert "comparison" in line
    assert "chebyshev" in line


def test_all_violations_of_a_protocol_come_in_one_line(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('format = 1\nengine = "abacus"\nspeed = 9\n[functions]\ngelu = { kind = "magic" }\n')
    line = failed("plan", "digits-vit", mine)
    for part in ("abacus", "speed", "magic", "trust", "source"):
        assert part in line


def test_unknown_names_list_what_there_is() -> None:
    assert "digits-vit" in failed("plan", "nothing", "plaintext")
    assert "power-softmax-mpc" in failed("plan", "digits-vit", "nothing")


def test_a_range_that_leaves_its_domain_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "wide"
    shutil.copytree(find("models", "digits-vit"), model)
    ranges = json.loads((model / "ranges.json").read_text())
    ranges["sites"]["layer.0/attention/normaliser"]["domain"] = [1.0, 400.0]
    (model / "ranges.json").write_text(json.dumps(ranges))
    line = failed("plan", model, "crypten")
    assert "layer.0/attention/normaliser" in line
    assert "250" in line


# ---- missing engines --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "protocol", "command"),
    [("tenseal", "power-softmax-ckks", "pip install"), ("crypten", "power-softmax-mpc", "crypten==0.4.1")],
)
def test_a_missing_engine_is_named_with_its_command(tmp_path: Path, module: str, protocol: str, command: str) -> None:
    line = failed("compare", "digits-vit", protocol, "--samples", "2", env=without(tmp_path, module))
    assert module in line
    assert command in line


def test_plans_need_no_engine(tmp_path: Path) -> None:
    env = without(tmp_path, "tenseal", "crypten")
    for protocol in ("power-softmax-ckks", "power-softmax-mpc"):
        assert run("plan", "digits-vit", protocol, env=env).returncode == 0


# ---- inference --------------------------------------------------------------------------------------------------


def test_infer_writes_scores_and_classes(tmp_path: Path) -> None:
    inputs, labels = _three()
    np.save(tmp_path / "in.npy", inputs)
    for name, protocol in (("out.npy", "power-softmax-mpc"), ("out.json", "plaintext")):
        done = run("infer", "digits-vit", protocol, tmp_path / "in.npy", "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert "trust: " in done.stdout
    scores = np.load(tmp_path / "out.npy")
    found = json.loads((tmp_path / "out.json").read_text())
    assert scores.shape == (3, 10)
    assert scores.argmax(-1).tolist() == found["classes"] == labels.tolist()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.npy", "out.json", "out.npy"]  # nothing left behind


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, np.nan, x), "not finite"),
        (lambda x: x[:, :8], "[3, 8, 4]"),
        (lambda x: x.astype(str), "real numbers are needed"),
        (lambda x: x[:0], "[0, 16, 4]"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(tmp_path: Path, spoil: object, word: str) -> None:
    np.save(tmp_path / "in.npy", spoil(_three()[0]))  # type: ignore[operator]
    line = failed("infer", "digits-vit", "power-softmax-ckks", tmp_path / "in.npy", "-o", tmp_path / "out.npy")
    assert word in line
    assert not (tmp_path / "out.npy").exists()


def test_bad_paths_are_refused_before_anything_is_run(tmp_path: Path) -> None:
    infer = ("infer", "digits-vit", "power-softmax-ckks")
    assert "cannot be read" in failed(*infer, tmp_path / "no.npy", "-o", tmp_path / "out.npy")
    assert ".npy or .json" in failed(*infer, SAMPLES, "-o", tmp_path / "out.csv")
    assert "does not exist" in failed(*infer, SAMPLES, "-o", tmp_path / "no" / "out.npy")
    (tmp_path / "pickled.npy").write_bytes(b"not an array")
    assert "cannot be read" in failed(*infer, tmp_path / "pickled.npy", "-o", tmp_path / "out.npy")
    assert "samples" in failed("compare", "digits-vit", "plaintext", "--samples", "361")


# ---- compare and profile ----------------------------------------------------------------------------------------


def test_compare_has_three_columns_and_its_schema(tmp_path: Path) -> None:
    done = run("compare", "digits-vit", "power-softmax-mpc", "--samples", "6", "--json", tmp_path / "c.json")
    assert done.returncode == 0, done.stderr
    for word in ("exact", "clear", "encrypted", "trust: "):
        assert word in done.stdout
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["schema"] == 1
    assert set(found["accuracy"]) == {"exact", "clear", "encrypted"}
    assert set(found["agreement"]) >= {"clear", "encrypted"}
    assert 0 < found["max_abs_error"]["encryption"] < 5e-2
    assert set(found["seconds"]) == PHASES | {"total"}
    assert found["seconds"]["keys"] is None  # there are none on shares
    assert found["parameters"]["dealer"] == "ttp"
    assert found["trust"]


def test_profile_writes_json_trace_and_plot(tmp_path: Path) -> None:
    files = {name: tmp_path / f"p.{suffix}" for name, suffix in (("json", "json"), ("trace", "trace"), ("plot", "svg"))}
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    done = run("profile", "digits-vit", "power-softmax-mpc", "--samples", "2", "--network", "lan", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(files["json"].read_text())
    assert set(found["phases"]) == PHASES
    total = found["total"]
    assert total["rounds"] > 0
    assert total["dealer_bytes"] > 0
    assert total["rotations"] is None  # unknown, not 0
    assert total["seconds"] == pytest.approx(sum(s for s in found["phases"].values() if s is not None))
    assert found["machine"]["cores"]
    assert {event["pid"] for event in json.loads(files["trace"].read_text())["traceEvents"]} >= {0, 1}
    assert files["plot"].read_text().lstrip().startswith("<?xml")
    assert "LAN" in done.stdout
    assert "WAN" not in done.stdout


def test_profile_refuses_a_plot_format_before_running(tmp_path: Path) -> None:
    assert ".png or .svg" in failed("profile", "digits-vit", "power-softmax-ckks", "--plot", tmp_path / "p.gif")


def _three() -> tuple[np.ndarray, np.ndarray]:
    from secureattn.nn.model import load_model

    return load_model(find("models", "digits-vit")).samples(3)


# ---- train, convert, calibrate ----------------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """As ``failed``, in this process: what loads torch and scikit-learn each time takes seconds to start."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def test_a_model_is_trained_interrupted_resumed_and_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from secureattn.commands import training
    from secureattn.nn.model import load_model

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "made"
    train = ["train", "digits-vit", "-o", str(folder), "--epochs", "2", "--target", "gelu", "-2", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(training, "write", interrupted)
        assert main(train) == 130
    assert [path.name for path in folder.iterdir()] == ["checkpoint"]
    assert "holds an unfinished training; add --resume" in refused(capsys, *train)
    other = refused(capsys, *train[:-4], "--resume")
    assert "another run (recipe.targets is {'gelu': [-2.0, 2.0]} there, {} here)" in other
    report = tmp_path / "t.json"
    assert main([*train, "--resume", "--json", str(report)]) == 0
    files = {"config.json", "model.safetensors", "ranges.json", "samples.safetensors", "README.md"}
    assert {path.name for path in folder.iterdir()} == files
    assert load_model(folder).ranges.input == pytest.approx((-0.1, 1.1))
    shares = json.loads(report.read_text())["accuracy"]["model"]
    assert 0.3 < shares["held-out"] <= 1
    assert f"{shares['held-out']:.2%} held-out" in (folder / "README.md").read_text()
    assert "is not empty" in refused(capsys, *train, "--resume")

    further = ["train", str(folder), "--through", "plaintext", "--epochs", "1", "-o", str(tmp_path / "further")]
    assert main([*further, "--json", str(report)]) == 0
    found = json.loads(report.read_text())["accuracy"]
    assert found["before"] == shares
    assert found["model, plaintext"]["training"] > found["before, plaintext"]["training"] - 0.05

    student = tmp_path / "student"
    convert = [
        "convert",
        str(folder),
        "--attention",
        "quad",
        "--norm",
        "batchnorm",
        "-o",
        str(student),
        "--epochs",
        "2",
    ]
    assert main([*convert, "--json", str(report)]) == 0
    found = json.loads(report.read_text())["accuracy"]
    assert found["teacher"] == shares
    assert found["model"]["training"] > found["before"]["training"]
    made = load_model(student)
    assert (made.config.name, made.config.attention, made.config.norm) == ("student", "quad", "batchnorm")
    assert len(made.samples()[1]) == 360


def test_calibrate_reports_and_leaves_shipped_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped = find("models", "digits-vit")
    before = (shipped / "ranges.json").read_bytes()
    assert "belongs to a shipped model" in refused(capsys, "calibrate", "digits-vit", "--samples", SAMPLES)
    measure = ("calibrate", "digits-vit", "--samples", SAMPLES, "--margin", "0.5")
    assert main([*map(str, (*measure, "-o", tmp_path / "r.json", "--json", tmp_path / "c.json"))]) == 0
    printed = capsys.readouterr().out
    for word in ("layer.0/ffn/gelu", "reciprocal", "degree for 0.001", "360 inputs in [-0.5, 1.5]"):
        assert word in printed
    assert (shipped / "ranges.json").read_bytes() == before
    ranges, told = (json.loads((tmp_path / name).read_text()) for name in ("r.json", "c.json"))
    assert ranges["samples"] == told["samples"] == 360
    assert ranges["margin"] == 0.5
    assert {row["site"]: row["domain"] for row in told["sites"]} == {
        site: entry["domain"] for site, entry in ranges["sites"].items()
    }


def test_training_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = ("-o", tmp_path / "x")
    convert = ("convert", "digits-vit", *made, "--attention")
    assert "attention 'magic' is none of" in refused(capsys, *convert, "magic")
    assert "no site 'gelo'" in refused(capsys, *convert, "quad", "--target", "gelo", "-3", "3")
    assert "ascending" in refused(capsys, *convert, "quad", "--target", "gelu", "3", "-3")
    assert "temperature must be positive" in refused(capsys, *convert, "quad", "--temperature", "0")
    config = json.loads((find("models", "digits-vit") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tokens": 8}))
    assert "8 tokens" in refused(capsys, "train", tmp_path / "config.json", *made)
    assert not (tmp_path / "x").exists()
