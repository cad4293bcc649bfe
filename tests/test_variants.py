"""Every attention variant as a tiny model: on secret shares and under CKKS against the clear run and against its plan.

Two parties and a dealer run all variants in turn, so that processes start only once. Three variants are encrypted in
every test run, the others where slow tests are asked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_close
from programs import counts

from secureattn.approx.attention import VARIANTS, realisations
from secureattn.errors import CapabilityError, PlanError, ProtocolError
from secureattn.events import Recorder
from secureattn.nn import parameters
from secureattn.nn.config import ModelConfig
from secureattn.nn.encoder import Encoder
from secureattn.nn.model import Model, load_model
from secureattn.plan import CkksPlan, Plan, make_plan, program_cost, run_symbolic_party
from secureattn.plan.select import cheapest, fitted
from secureattn.protocol import Protocol, load_protocol
from secureattn.resources import find
from secureattn.runs import clear_run, execute
from secureattn.train.ranges import calibrate
from secureattn.train.targets import last_part

SEED = 1
SAMPLES, FEATURES, CLASSES = 2, 3, 3
SITE_ERROR = 1e-3
LIMIT_S = 240.0  # a hang of the parties fails instead of blocking

Array = np.ndarray

TOKENS = {"softmax": 5, "linear": 5, "gaussian_low_rank": 6, "softmax_normalise_square": 6, "kernelized_rpe": 6}
"""Variants with another number of tokens than 4: padded under CKKS."""
NORMS = {"quad": "rmsnorm", "sigmoid": "dyt", "linear_elu": "derf"}
"""Variants with another norm than ``batchnorm``."""
DIRECTIONS = ("softplus_l1", "softplus_l1_reweighted", "kernelized_rpe", "nalaformer")
"""Variants that divide queries by their norms: kept away from 0, for short polynomials."""
ODE = "softmax_ode"
SOFTMAX = tuple(kind for kind in realisations("softmax") if kind != "softmax")  # and the mean shift, the model's own
SHIPPED = (
    ("softmax", "accurate-mpc"),
    ("quad", "accurate-mpc"),
    ("softmax", "bolt-gelu"),
    ("softmax", "puma"),
    ("softmax", "shaft"),
    ("quad", "mpcformer"),
)
"""Models and shipped protocols, the functions named there as they are."""
CKKS = [name for name, variant in VARIANTS.items() if not variant.needs]
ENCRYPTED = ("square_scaled", "inline", "gaussian")
"""Those encrypted in every test run: cheap ones, one of them with a value per key."""
SHALLOW = ("scaled", "linear", "square_scaled", "inline", "taylor", "spherical")
"""Those that fit one modulus without a refresh."""

CKKS_ERROR = 1e-6  # of those encrypted in every test run; measured 3.3e-7, in the dense layout
CKKS_ERROR_DEEP = 1e-5
MPC_ERROR = {"quad": 2e-3, "quad under mpcformer": 1e-3}  # divided by up to 270; measured 9.4e-4 and 3.9e-4 at most
MPC_ERROR_ELSEWHERE = 4e-4  # measured 1.9e-4 at most, over 12 runs of each

needs_tenseal = pytest.mark.skipif(importlib.util.find_spec("tenseal") is None, reason="TenSEAL is not installed")
needs_crypten = pytest.mark.skipif(importlib.util.find_spec("crypten") is None, reason="CrypTen is not installed")


# ---- tiny models ------------------------------------------------------------------------------------------------


def weights_of(config: ModelConfig) -> dict[str, Array]:
    """Random parameters, none of them at a value where it would not matter; float32, as files hold them."""
    rng = np.random.default_rng([SEED])
    made = {}
    for name, shape in parameters.shapes(config).items():
        normal, last = rng.normal(size=shape), last_part(name.replace(".", "/"))
        if last == "gain":
            value = 1 + 0.2 * normal
        elif last in ("variance", "alpha"):
            value = np.exp(0.2 * normal)
        else:
            far = config.attention in DIRECTIONS and name.endswith(("query.bias", "key.bias"))
            value = normal * (shape[-1] ** -0.5 if last == "weight" else 1.0 if far else 0.3)
        made[name] = value.astype(np.float32).astype(np.float64)
    return made


def inputs_of(config: ModelConfig, count: int) -> Array:
    return np.random.default_rng([SEED, 7]).uniform(-1, 1, size=(count, config.tokens, FEATURES))


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """A model's folder by attention variant, calibrated on data that holds the samples."""

    @cache
    def made(name: str) -> Model:
        shape = {"tokens": TOKENS.get(name, 4), "features": FEATURES, "width": 8, "heads": 2, "hidden": 8}
        norm = NORMS.get(name, "batchnorm")
        config = ModelConfig(name=name, layers=1, classes=CLASSES, attention=name, norm=norm, **shape)
        folder = tmp_path_factory.mktemp(name)
        weights = weights_of(config)
        parameters.save(folder / "model.safetensors", weights)
        (folder / "config.json").write_text(config.to_json())
        (folder / "ranges.json").write_text(calibrate(config, weights, inputs_of(config, 64)).to_json())
        return load_model(folder)

    return made


@cache
def shipped(name: str) -> Protocol:
    return load_protocol(find("protocols", name))


def chosen(protocol: Protocol, model: Model) -> Protocol:
    """The protocol with the cheapest realisation at every site: a polynomial, as those are found fast on any engine;
    where there is none, as for ReLU, what shares can do, and under CKKS a polynomial that errs by more.
    """
    otherwise = {"crypten": (SITE_ERROR, "crypten"), "ckks": (10 * SITE_ERROR, "ckks")}[protocol.engine]

    def options(site: str, function: str) -> Mapping[str, Any]:
        domain = model.ranges.domains[site]
        try:
            return cheapest(function, domain, SITE_ERROR, "ckks").options
        except PlanError:
            return cheapest(function, domain, *otherwise).options

    sites = protocol.served(model.config).sites()
    return replace(protocol, sites={site: options(site, function) for site, function in sites.items()})


# ---- secret shares ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A plan on secret shares and what the same program gives in the clear."""

    plan: Plan
    clear: Array


Argument = dict[str, tuple[Model, Protocol, "Array | None"]]


def run_party(backend: Any, cases: Argument) -> dict[str, tuple[Array | None, Any]]:
    """What one party of the run does: every case in turn, with a recorder of its own, opened to the client."""
    from secureattn.backends.crypten.backend import MpcBackend

    found = {}
    for name, (model, protocol, inputs) in cases.items():
        plan = Plan(model, protocol, SAMPLES, protocol.realisations(model))
        own = MpcBackend(backend.runtime, Recorder())
        own.runtime.parameters = protocol.mpc
        own.runtime.matrices.clear()  # as in a run of its own: matrices are numbered, and series agreed on, afresh
        own.runtime._agreed.clear()
        found[name] = (evaluated(own, plan, inputs), counts(own.recorder))
    return found


def evaluated(backend: Any, plan: Plan, inputs: Array | None) -> Array | None:
    """One party's program, dealt ahead; the first party owns the weights, the second the inputs."""
    config, rank, recorder = plan.config, backend.runtime.rank, backend.recorder
    with recorder.phase("setup"):
        network = Encoder(plan.folded(weights=rank == 0), backend)
        (asked,) = run_symbolic_party(plan, rank).asked
    with recorder.phase("offline"):
        backend.runtime.prepare(asked)
    with recorder.phase("encrypt"):
        shape = (SAMPLES, config.tokens, config.features)
        x = backend.input(np.broadcast_to(0.0, shape) if inputs is None else inputs)
    with recorder.phase("online"):
        logits = network(x)
    with recorder.phase("decrypt"):
        revealed: Array | None = backend.reveal(logits)
    return revealed


PROTOCOL = """
format = 1
engine = "{engine}"
trust = "a test"
source = "a test"
{top}
[functions]
softmax = {{ kind = "{kind}" }}
gelu = {{ kind = "chebyshev", degree = 15 }}
rsqrt = {{ kind = "chebyshev", degree = 15 }}
reciprocal = {{ kind = "chebyshev", degree = 15 }}
exp = {{ kind = "chebyshev", degree = 15 }}
clip = {{ kind = "compare" }}
{more}
"""


def protocol_of(folder: Path, kind: str, *, engine: str = "crypten", top: str = "", more: str = "") -> Protocol:
    path = folder / f"{kind}.toml"
    path.write_text(PROTOCOL.format(engine=engine, kind=kind, top=top, more=more))
    return load_protocol(path)


@pytest.fixture(scope="module")
def cases(model_of: Callable[[str], Model], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All variants, a softmax model with its softmax computed in every way that a protocol may name, and protocols with
    the functions of papers.
    """
    folder = tmp_path_factory.mktemp("protocols")
    pairs = {name: (model_of(name), chosen(shipped("power-softmax-mpc"), model_of(name))) for name in VARIANTS}
    pairs |= {f"softmax by {kind}": (model_of("softmax"), protocol_of(folder, kind)) for kind in SOFTMAX}
    pairs |= {f"{name} under {protocol}": (model_of(name), shipped(protocol)) for name, protocol in SHIPPED}
    made = {}
    for name, (model, protocol) in pairs.items():
        plan = make_plan(model, protocol, samples=SAMPLES)
        made[name] = Case(plan, clear_run(plan, inputs_of(model.config, SAMPLES)).outputs)
    return made


@pytest.fixture(scope="module")
def parties(cases: dict[str, Case]) -> list[dict[str, tuple[Array | None, Any]]]:
    """Two parties and a dealer, three processes, run every case in turn."""
    from secureattn.backends.crypten.launch import run_parties

    arguments: list[Argument] = [{}, {}]
    for name, case in cases.items():
        model = case.plan.model
        bare = Model(model.folder, model.config, model.ranges)  # the weights are read where they belong
        for rank, argument in enumerate(arguments):
            inputs = inputs_of(model.config, SAMPLES) if rank == 1 else None
            argument[name] = (bare, case.plan.protocol, inputs)
    settings = shipped("power-softmax-mpc").mpc
    results = run_parties("test_variants:run_party", arguments, settings, timeout_s=LIMIT_S)
    return [result.value for result in results]


MPC_CASES = [*VARIANTS, *(f"softmax by {kind}" for kind in SOFTMAX)]
ALL_CASES = [*MPC_CASES, *(f"{name} under {protocol}" for name, protocol in SHIPPED)]


@needs_crypten
@pytest.mark.parametrize("name", ALL_CASES)
def test_shares_equal_the_clear_run(parties: list[dict[str, Any]], cases: dict[str, Case], name: str) -> None:
    owner, client = (party[name][0] for party in parties)
    assert owner is None
    wanted = cases[name].clear
    assert client.shape == (SAMPLES, 1, CLASSES)
    print(f"{name}: error {np.abs(client[:, 0] - wanted).max():.2e}, outputs to {np.abs(wanted).max():.3g}")
    error = MPC_ERROR.get(name, MPC_ERROR_ELSEWHERE)
    assert_close(client[:, 0], wanted, error, f"{name}: 16 fractional bits, truncated exactly")


@needs_crypten
@pytest.mark.parametrize("name", ALL_CASES)
def test_shares_count_what_was_planned(parties: list[dict[str, Any]], cases: dict[str, Case], name: str) -> None:
    """Rounds, bytes, dealings: of every region, operation and phase, at either party."""
    plan = cases[name].plan.mpc
    assert plan is not None
    for rank, party in enumerate(parties):
        assert party[name][1] == counts(plan.recorders[rank]), f"party {rank}"
        assert plan.recorders[rank].total("dealer_requests") == 6 + 1  # six matrices are masked, the rest is asked once


@pytest.mark.parametrize("name", MPC_CASES)
def test_the_clear_run_is_near_the_true_functions(cases: dict[str, Case], name: str) -> None:
    """Outputs are of order 1, and what sites err by, 1e-3, is what the whole errs by."""
    plan = cases[name].plan
    exact = clear_run(plan, inputs_of(plan.model.config, SAMPLES), exact=True).outputs
    print(f"{name}: {np.abs(cases[name].clear - exact).max():.2e}")
    assert np.abs(exact).max() > 0.3
    assert np.ptp(exact, axis=0).max() > 0.05  # the samples matter
    error = 4e-3 if name == "softmax_normalise_square" else 1.5e-3
    assert_close(cases[name].clear, exact, error, "sites err by 1e-3, each step of the squaring doubles that")


@needs_crypten
@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_shares_with_what_suits_them_best(model_of: Callable[[str], Model], name: str) -> None:
    """Whole runs, dealt ahead, with the cheapest realisations on shares: series in one round where they win."""
    model = model_of(name)
    plan = make_plan(model, fitted(shipped("power-softmax-mpc"), model, SITE_ERROR), samples=SAMPLES)
    inputs = inputs_of(model.config, SAMPLES)
    run, wanted = execute(plan, inputs), clear_run(plan, inputs).outputs
    print(f"{name}: error {np.abs(run.outputs - wanted).max():.2e}")
    error = 5 * MPC_ERROR.get(name, MPC_ERROR_ELSEWHERE)
    assert_close(run.outputs, wanted, error, f"{name}: 16 fractional bits; series weigh roundings by more")
    assert plan.mpc is not None
    for party, recorder in zip(run.parties, plan.mpc.recorders, strict=True):
        assert by_phase(party.events) == by_phase(recorder.events.values())


def by_phase(events: Any) -> dict[tuple[str, str], int]:
    """Phase and primitive → how often."""
    found: dict[tuple[str, str], int] = {}
    for event in events:
        for name, n in event.counts.items():
            if n:
                found[event.phase, name] = found.get((event.phase, name), 0) + n
    return found


# ---- CKKS -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ckks_plan(model_of: Callable[[str], Model]) -> Callable[[str], Plan]:
    """A variant's plan under CKKS, with refreshes by the client."""

    @cache
    def made(name: str) -> Plan:
        model = model_of(name)
        return make_plan(model, chosen(shipped("power-softmax-ckks"), model), samples=SAMPLES)

    return made


def ckks_part(plan: Plan) -> CkksPlan:
    assert plan.ckks is not None
    return plan.ckks


@pytest.mark.parametrize("name", [name for name in CKKS if name != ODE])
def test_ckks_plans_every_variant_that_needs_nothing(ckks_plan: Callable[[str], Plan], name: str) -> None:
    plan = ckks_part(ckks_plan(name))
    assert plan.tokens == {4: 4, 5: 8, 6: 8}[ckks_plan(name).config.tokens]
    assert plan.schedule <= set(plan.points)
    assert plan.depth > plan.parameters.levels or not plan.schedule
    depth = program_cost(ckks_plan(name))  # in the batch layout; shifts and masks of the dense one take more
    assert plan.depth == depth if plan.layout == "batch" else plan.depth >= depth
    assert plan.recorder.total("refreshes") == sum(plan.points[point] for point in plan.schedule)


@pytest.mark.parametrize("name", SHALLOW)
def test_depth_is_what_one_go_takes(model_of: Callable[[str], Model], name: str) -> None:
    """Without refreshes, levels at the start less levels at the end."""
    protocol, model = shipped("power-softmax-ckks"), model_of(name)
    oneshot = replace(protocol, ckks=replace(protocol.ckks, refresh="none"))
    plan = ckks_part(make_plan(model, chosen(oneshot, model), samples=SAMPLES))
    assert plan.depth == plan.parameters.levels - plan.output_level
    events = plan.recorder.events.values()
    assert min(e.level_out for e in events if e.level_out is not None) == plan.output_level
    assert not plan.schedule


@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name].needs])
def test_ckks_refuses_variants_that_need_more(model_of: Callable[[str], Model], name: str) -> None:
    model = model_of(name)
    with pytest.raises(CapabilityError) as caught:
        make_plan(model, chosen(shipped("power-softmax-ckks"), model), samples=SAMPLES)
    message = str(caught.value)
    needed = " and ".join(capability.value for capability in VARIANTS[name].needs)
    assert message.startswith(f"attention {name} needs {needed}, which the ckks engine lacks; choose another variant")
    assert "\n" not in message


@needs_tenseal
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ENCRYPTED else pytest.mark.slow) for name in CKKS if name != ODE]
)
def test_ciphertexts_equal_the_clear_run(ckks_plan: Callable[[str], Plan], name: str) -> None:
    """Values, and every operation's counts and levels: those of the plan."""
    plan = ckks_plan(name)
    inputs = inputs_of(plan.config, SAMPLES)
    run, wanted = execute(plan, inputs), clear_run(plan, inputs).outputs
    print(f"{name}: error {np.abs(run.outputs - wanted).max():.2e}")
    error = CKKS_ERROR if name in ENCRYPTED else CKKS_ERROR_DEEP
    assert_close(run.outputs, wanted, error, f"{name}: encryption noise at scale 2^40")
    planned = ckks_part(plan).recorder
    phases = {event.phase for event in planned.events.values()}
    events = {(e.region, e.op, e.phase): e for e in run.parties[0].events}
    counted = {key: {n: k for n, k in e.counts.items() if k} for key, e in events.items() if key[2] in phases}
    assert {key: n for key, n in counted.items() if n} == counts(planned)
    levels = {key: (e.level_in, e.level_out) for key, e in planned.events.items() if e.level_in is not None}
    assert {key: (events[key].level_in, events[key].level_out) for key in levels} == levels
    assert events["head", "sum", "online"].level_out == ckks_part(plan).output_level


# ---- softmax by protocol ----------------------------------------------------------------------------------------


def violations_of(run: Callable[[], Any]) -> tuple[str, ...]:
    with pytest.raises(ProtocolError) as caught:
        run()
    assert "\n" not in str(caught.value)
    return caught.value.violations


@pytest.mark.parametrize("kind", SOFTMAX)
def test_a_protocol_names_how_softmax_is_computed(cases: dict[str, Case], kind: str) -> None:
    plan = cases[f"softmax by {kind}"].plan
    assert plan.model.config.attention == "softmax"
    assert plan.config.attention == plan.protocol.softmax == f"softmax_{kind}"
    assert set(plan.realisations) == set(plan.config.sites()) != set(plan.model.config.sites())
    assert not plan.protocol.changes_model
    assert "softmax" not in plan.protocol.functions


def test_the_mean_shift_is_the_models_own(tmp_path: Path, model_of: Callable[[str], Model]) -> None:
    own = protocol_of(tmp_path, "mean_shift")
    assert own.softmax == "softmax"
    assert own.served(model_of("softmax").config) == model_of("softmax").config


def test_other_models_keep_their_attention(tmp_path: Path, model_of: Callable[[str], Model]) -> None:
    config = model_of("taylor").config
    assert protocol_of(tmp_path, "max_shift").served(config) == config


@pytest.mark.parametrize("kind", ["nothing", "softmax_mean_shift", ""])
def test_an_unknown_kind_of_softmax_is_refused(tmp_path: Path, kind: str) -> None:
    (said,) = violations_of(lambda: protocol_of(tmp_path, kind))
    assert said.startswith(f"softmax: kind {kind!r} is none of mean_shift, {', '.join(SOFTMAX)}")


def test_softmax_takes_no_option_but_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    text = PROTOCOL.format(engine="crypten", kind="ode", top="", more="")
    path.write_text(text.replace('{ kind = "ode" }', '{ kind = "ode", steps = 8 }'))
    assert violations_of(lambda: load_protocol(path)) == ("softmax takes no option 'steps'",)


def test_another_variant_for_softmax_is_refused(tmp_path: Path) -> None:
    (said,) = violations_of(lambda: protocol_of(tmp_path, "quad"))
    assert said == ("softmax: quad is another function; convert the model to it: secureattn convert --attention quad")


def test_a_site_wins_over_its_function(tmp_path: Path, model_of: Callable[[str], Model]) -> None:
    site = "layer.0/ffn/gelu"
    more = f'[sites]\n"{site}" = {{ kind = "chebyshev", degree = 8 }}\n'
    made = protocol_of(tmp_path, "max_shift", more=more).realisations(model_of("softmax"))
    assert made[site].polynomial is not None
    assert made[site].polynomial.degree == 8
    without = protocol_of(tmp_path, "max_shift").realisations(model_of("softmax"))
    assert without[site].polynomial is not None
    assert without[site].polynomial.degree == 14  # its odd coefficients but the first are noise of the fit
    assert {s: f.label for s, f in made.items() if s != site} == {s: f.label for s, f in without.items() if s != site}


def test_an_unknown_site_is_named(tmp_path: Path, model_of: Callable[[str], Model]) -> None:
    """A site of another way to compute softmax is as unknown as one that no model has."""
    more = "".join(f'"{site}" = {{ kind = "exact" }}\n' for site in ("layer.0/attention/exp", "layer.1/ffn/gelu"))
    protocol = protocol_of(tmp_path, "max_shift", engine="plaintext", more=f"[sites]\n{more}")
    said = violations_of(lambda: protocol.realisations(model_of("softmax")))
    sites = "layer.0/attention/max.exp, layer.0/attention/max.normaliser, layer.0/ffn/gelu"
    assert sorted(said) == [
        f"{site} is no site of the model, which has {sites}" for site in ("layer.0/attention/exp", "layer.1/ffn/gelu")
    ]
