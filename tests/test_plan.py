"""Plans: what they choose, what they promise and what they refuse. Needs neither engine's library."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secureattn.backends.ckks.parameters import MAX_MODULUS_BITS
from secureattn.backends.plaintext import PlaintextBackend
from secureattn.errors import CapabilityError, InputError, PlanError, ProtocolError, SecureAttnError
from secureattn.nn.encoder import Encoder
from secureattn.nn.model import Model, load_model
from secureattn.plan import CkksPlan, Plan, choice, make_plan
from secureattn.protocol import Protocol, load_protocol
from secureattn.resources import find, names

SAMPLES = 360
TABLE_2024 = {1 << 12: 106, 1 << 13: 214, 1 << 14: 430, 1 << 15: 868, 1 << 16: 1747}  # eprint 2024/463, ternary


@cache
def model(name: str) -> Model:
    return load_model(find("models", name))


@cache
def protocol(name: str) -> Protocol:
    return load_protocol(find("protocols", name))


@cache
def planned(model_name: str, protocol_name: str) -> Plan:
    return make_plan(model(model_name), protocol(protocol_name), samples=SAMPLES)


def ckks_part(plan: Plan) -> CkksPlan:
    assert plan.ckks is not None
    return plan.ckks


def refused(kind: type[SecureAttnError], run: Callable[[], Any]) -> str:
    """The one sentence of the error."""
    with pytest.raises(kind) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def own_model(tmp_path: Path) -> Callable[..., Model]:
    """A copy of digits-vit whose ranges a test may edit."""

    def made(edit: Callable[[dict[str, Any]], None], name: str = "digits-vit") -> Model:
        folder = tmp_path / name
        shutil.copytree(find("models", name), folder)
        ranges = json.loads((folder / "ranges.json").read_text())
        edit(ranges)
        (folder / "ranges.json").write_text(json.dumps(ranges))
        return load_model(folder)

    return made


# ---- what is planned --------------------------------------------------------------------------------------------


DIGITS = [name for name in names("models") if name.startswith("digits")]
PLANNED = sorted(set(names("protocols")) - {"power-softmax-ckks-oneshot", "secformer"})


@pytest.mark.parametrize("name", PLANNED)
@pytest.mark.parametrize("of", DIGITS)
def test_every_protocol_plans_every_model(of: str, name: str) -> None:
    plan = planned(of, name)
    engine = protocol(name).engine
    assert (plan.ckks is not None) == (engine == "ckks")
    assert (plan.mpc is not None) == (engine == "crypten")
    assert set(plan.realisations) == set(model(of).config.sites())
    assert plan.warnings == ()
    for part in (plan.ckks, plan.mpc):
        if part is not None:
            assert part.seconds["total"] == pytest.approx(sum(s for p, s in part.seconds.items() if p != "total"))
            assert all(s >= 0 for s in part.seconds.values())


CKKS_PLANS = [
    ("digits-vit", "power-softmax-ckks"),
    ("digits-vit-oneshot", "power-softmax-ckks"),
    ("digits-vit-oneshot", "power-softmax-ckks-oneshot"),
]


@pytest.mark.parametrize(("of", "name"), CKKS_PLANS)
def test_parameters_are_secure(of: str, name: str) -> None:
    parameters = ckks_part(planned(of, name)).parameters
    assert TABLE_2024 == MAX_MODULUS_BITS
    assert parameters.security_bits >= 128
    exact_bits = sum(map(math.log2, parameters.primes))
    assert math.ceil(exact_bits - 0.01) <= TABLE_2024[parameters.ring_degree]
    assert exact_bits <= parameters.modulus_bits + 0.01


@pytest.mark.parametrize(("of", "name"), CKKS_PLANS)
def test_what_a_plan_holds_together(of: str, name: str) -> None:
    plan = ckks_part(planned(of, name))
    assert plan.schedule <= set(plan.points)
    assert set(plan.points) - set(model(of).ranges.bounds) == set()
    assert plan.tokens * plan.capacity == plan.parameters.slots
    assert plan.batches == math.ceil(SAMPLES / plan.capacity) == 1
    assert 0 <= plan.output_level <= plan.parameters.levels
    assert all(0 < step < plan.parameters.slots and step % plan.capacity == 0 for step in plan.rotations)
    assert plan.sizes["galois_keys"] == len(plan.rotations) * plan.sizes["relinearisation_key"]
    recorder = plan.recorder
    assert recorder.total("rounds") == len(plan.schedule)  # a round for each refresh point used
    assert recorder.total("refreshes") == sum(plan.points[point] for point in plan.schedule)
    assert recorder.total("bytes_sent", phase="encrypt") == plan.sizes["query"]
    assert recorder.total("bytes_sent", phase="decrypt") == plan.sizes["result"]
    assert recorder.total("encryptions") == model(of).config.features
    assert plan.layout == "batch"
    assert recorder.total("decryptions") == math.ceil(model(of).config.classes / plan.tokens)  # as many share one
    levels = [(e.level_in, e.level_out) for e in recorder.events.values() if e.level_in is not None]
    assert all(0 <= low <= plan.parameters.levels for pair in levels for low in pair if low is not None)


@pytest.mark.parametrize(("of", "name"), CKKS_PLANS[:2])
def test_refreshes_hide_40_bits(of: str, name: str) -> None:
    """The mask is uniform over 2^w values; a value moves it by at most Δ·bound: distance Δ·bound/2^w a coefficient."""
    plan = ckks_part(planned(of, name))
    assert plan.schedule
    q0, q1 = plan.parameters.primes[:2]
    width = math.floor(math.log2(q0 * q1)) - 1  # masks in ±Q/4 leave as much room for the value
    scale = max(plan.parameters.scales)
    functions = planned(of, name).folded().functions()

    def largest(point: str) -> float:
        """As calibrated, for any form of the program; where a polynomial reads it, within its domain in this one."""
        function = functions.get(point.removesuffix(".in"))
        domain = (math.inf,) if function is None else tuple(map(abs, function.domain))
        return min(model(of).ranges.bounds[point], max(domain))

    bits = {point: width - math.log2(scale * largest(point)) for point in plan.schedule}
    assert min(bits.values()) >= 40
    assert plan.hiding_bits == pytest.approx(min(bits.values()), abs=1e-6)


@pytest.mark.parametrize(("of", "name"), CKKS_PLANS[:2])
def test_refresh_bounds_hold_on_held_out_data(of: str, name: str) -> None:
    """Values that a refresh masks stay within the bound that the hiding was worked out for, in the program's units."""
    plan = planned(of, name)
    backend, seen = PlaintextBackend(), dict[str, float]()

    def watch(site: str, value: torch.Tensor) -> None:
        seen[site] = float(value.abs().max())

    backend.observers.append(watch)
    with torch.no_grad():
        Encoder(plan.folded(), backend)(backend.input(model(of).samples()[0]))
    beyond = {p: (seen[p], model(of).ranges.bounds[p]) for p in ckks_part(plan).schedule}
    assert all(value <= bound for value, bound in beyond.values()), beyond


@pytest.mark.parametrize(("of", "name"), CKKS_PLANS[:2])
def test_no_refresh_is_superfluous(of: str, name: str) -> None:
    """Where the points lie: before a refresh levels are low, and each one taken out would cost more or not fit."""
    plan = ckks_part(planned(of, name))
    refreshes = [e for e in plan.recorder.events.values() if e.op == "refresh"]
    assert refreshes
    levels = [(e.level_in, e.level_out) for e in refreshes]
    assert all(low is not None and high is not None and 1 <= low < high for low, high in levels)
    assert len(plan.schedule) < len(plan.points)


def test_oneshot_needs_no_round_trip() -> None:
    plan = ckks_part(planned("digits-vit-oneshot", "power-softmax-ckks-oneshot"))
    assert plan.schedule == frozenset()
    assert plan.hiding_bits is None
    assert plan.depth <= plan.parameters.levels <= 19
    assert plan.recorder.total("rounds") == plan.recorder.total("refreshes") == 0
    assert plan.output_level == plan.parameters.levels - plan.depth


def test_depth_is_the_programs_own() -> None:
    """Depth does not depend on the protocol's refreshes, only on the model and its functions."""
    with_refresh = ckks_part(planned("digits-vit-oneshot", "power-softmax-ckks"))
    without = ckks_part(planned("digits-vit-oneshot", "power-softmax-ckks-oneshot"))
    assert with_refresh.depth == without.depth
    assert ckks_part(planned("digits-vit", "power-softmax-ckks")).depth > 19


def test_two_batches() -> None:
    one = ckks_part(planned("digits-vit", "power-softmax-ckks"))
    two = ckks_part(make_plan(model("digits-vit"), protocol("power-softmax-ckks"), samples=600))
    assert (one.batches, two.batches) == (1, 2)
    assert one.capacity == two.capacity == 512
    assert two.parameters == one.parameters
    assert two.seconds["keys"] == one.seconds["keys"]  # made once
    for phase in ("encrypt", "online", "refresh", "decrypt"):
        assert two.seconds[phase] == pytest.approx(2 * one.seconds[phase])


def test_mpc_plans_have_both_parties() -> None:
    plan = planned("digits-vit", "power-softmax-mpc").mpc
    assert plan is not None
    owner, client = plan.recorders
    assert owner.total("rounds", phase="online") == client.total("rounds", phase="online") > 0
    assert owner.total("bytes_sent", phase="online") > 0
    assert owner.total("dealer_bytes") > client.total("dealer_bytes") == 0
    assert owner.total("comparisons") == 0


def linear_sizes() -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every linear layer of digits-vit."""
    c = model("digits-vit").config
    sizes = {"embed": (c.features, c.width), "head": (c.width, c.classes)}
    for i in range(c.layers):
        sizes |= {f"{i}.qkv": (c.width, 3 * c.width), f"{i}.output": (c.width, c.width)}
        sizes |= {f"{i}.in": (c.width, c.hidden), f"{i}.out": (c.hidden, c.width)}
    return sizes


def test_weights_stay_with_their_owner() -> None:
    """Masked once for the client, who sends its share of what meets them; everything else is sent by both."""
    plan = planned("digits-vit", "power-softmax-mpc").mpc
    assert plan is not None
    (owner, client), sizes = plan.recorders, linear_sizes().values()
    told = 8 * SAMPLES * 16 * sum(into for into, _ in sizes)
    assert client.total("bytes_sent", phase="online") - owner.total("bytes_sent", phase="online") == told
    masked = [[e.counts for e in r.events.values() if e.op == "fix_weight"] for r in (owner, client)]
    assert [sum(c["bytes_sent"] for c in counts) for counts in masked] == [8 * sum(i * o for i, o in sizes), 0]
    assert [sum(c["rounds"] for c in counts) for counts in masked] == [len(sizes), len(sizes)]


def test_the_dealer_is_asked_once_beside_the_weights() -> None:
    plan = planned("digits-vit", "power-softmax-mpc").mpc
    assert plan is not None
    for recorder in plan.recorders:
        assert recorder.total("dealer_requests") == len(linear_sizes()) + 1


def test_only_the_baseline_compares() -> None:
    """CrypTen's own functions need comparisons and more rounds, though its local truncation takes none."""
    totals = {}
    for name in ("power-softmax-mpc", "crypten"):
        plan = planned("digits-vit", name).mpc
        assert plan is not None
        recorder = plan.recorders[0]
        totals[name] = {n: recorder.total(n, phase="online") for n in ("rounds", "bytes_sent", "comparisons")}
    assert totals["power-softmax-mpc"]["comparisons"] == 0
    assert totals["crypten"]["comparisons"] == SAMPLES * 16 * 64  # one for each value that GELU takes
    assert totals["crypten"]["rounds"] > totals["power-softmax-mpc"]["rounds"]
    assert totals["crypten"]["bytes_sent"] > totals["power-softmax-mpc"]["bytes_sent"]


def test_local_truncation_is_planned_with_its_gross_errors() -> None:
    """Wrong altogether with probability |z|/2^63, each of about 32 binary places; exact ones never."""
    local, exact = (planned("digits-vit", name).mpc for name in ("crypten", "power-softmax-mpc"))
    assert local is not None
    assert exact is not None
    assert exact.gross_errors is None
    assert local.gross_errors is not None
    of = model("digits-vit")
    assert local.largest == of.config.width * of.ranges.domains["layer.0/ffn/norm"][1]  # a sum of squares
    about = local.recorders[0].total("truncations") * local.largest * 2.0 ** (32 - 63)
    assert about / 4 < local.gross_errors < 4 * about


def test_mpc_plans_grow_with_the_samples() -> None:
    one, two = (make_plan(model("digits-vit"), protocol("power-softmax-mpc"), samples=n).mpc for n in (1, 2))
    assert one is not None
    assert two is not None
    for a, b in zip(one.recorders, two.recorders, strict=True):
        assert a.total("rounds") == b.total("rounds")
        assert a.total("bytes_sent", phase="online") < b.total("bytes_sent", phase="online")


def test_a_dealing_party_is_warned_of() -> None:
    mpc = replace(protocol("power-softmax-mpc").mpc, dealer="tfp")
    plan = make_plan(model("digits-vit"), replace(protocol("power-softmax-mpc"), mpc=mpc), samples=1)
    assert len(plan.warnings) == 1
    assert "could read every secret" in plan.warnings[0]


def test_plans_are_repeatable() -> None:
    again = ckks_part(make_plan(model("digits-vit"), protocol("power-softmax-ckks"), samples=SAMPLES))
    assert again.schedule == ckks_part(planned("digits-vit", "power-softmax-ckks")).schedule
    assert again.seconds == ckks_part(planned("digits-vit", "power-softmax-ckks")).seconds


def test_planning_needs_neither_engine() -> None:
    script = """
import sys
sys.modules["tenseal"] = sys.modules["crypten"] = None  # importing either raises
from secureattn.nn.model import load_model
from secureattn.plan import make_plan
from secureattn.protocol import load_protocol
from secureattn.resources import find
for name in ("plaintext", "power-softmax-ckks", "power-softmax-mpc"):
    make_plan(load_model(find("models", "digits-vit")), load_protocol(find("protocols", name)), samples=2)
del sys.modules["tenseal"], sys.modules["crypten"]
print([name for name in sys.modules if name.split(".")[0] in ("tenseal", "crypten", "sklearn", "matplotlib")])
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", DIGITS)
def test_secformer_refuses_ranges_on_which_it_does_not_converge(of: str) -> None:
    message = refused(ProtocolError, lambda: planned(of, "secformer"))
    assert f"protocol secformer cannot serve model {of}: layer.0/" in message
    assert "layer.0/attention/normaliser: reciprocal(secformer) does not converge on [1, " in message
    assert "in 13 steps; add steps" in message


def test_secformer_plans_the_ranges_it_was_made_for(own_model: Callable[..., Model]) -> None:
    def edit(ranges: dict[str, Any]) -> None:
        for site, low, high in (("attention/norm", 2, 60), ("ffn/norm", 2, 60), ("attention/normaliser", 5, 400)):
            ranges["sites"][f"layer.0/{site}"] = {"observed": [low, high], "domain": [low, high]}

    plan = make_plan(own_model(edit), protocol("secformer"), samples=4)
    assert plan.mpc is not None
    assert plan.mpc.recorders[0].total("comparisons") == 2 * 4 * 16 * 64
    assert max(made.error or 0.0 for made in plan.realisations.values()) < 0.02


def test_what_cannot_fit_is_refused() -> None:
    message = refused(
        PlanError, lambda: make_plan(model("digits-vit"), protocol("power-softmax-ckks-oneshot"), samples=4)
    )
    depth = ckks_part(planned("digits-vit", "power-softmax-ckks")).depth
    assert f"needs {depth} levels" in message
    assert "19 fit 128-bit security at ring degree 32768" in message
    assert "they run out at layer.0/" in message
    assert 'set refresh = "client"' in message
    assert message.startswith("digits-vit under power-softmax-ckks-oneshot ")
    assert ". " not in message.replace("layer.0", "")


def test_comparisons_under_ckks_are_refused() -> None:
    functions = {**protocol("power-softmax-ckks").functions, "gelu": {"kind": "puma"}}
    own = replace(protocol("power-softmax-ckks"), functions=functions)
    message = refused(CapabilityError, lambda: make_plan(model("digits-vit"), own, samples=4))
    assert message == (
        "layer.0/ffn/gelu: gelu(puma) needs comparison, which the ckks engine lacks; use a polynomial such as "
        'gelu = { kind = "chebyshev", degree = 15 }'
    )
    mpc = replace(protocol("power-softmax-mpc"), functions=functions)
    plan = make_plan(model("digits-vit"), mpc, samples=4).mpc
    assert plan is not None
    assert plan.recorders[0].total("comparisons") == 3 * 4 * 16 * 64


def test_a_range_that_leaves_its_domain_names_the_site(own_model: Callable[..., Model]) -> None:
    def edit(ranges: dict[str, Any]) -> None:
        ranges["sites"]["layer.0/attention/normaliser"]["domain"][1] = 300.0

    own = own_model(edit)
    message = refused(ProtocolError, lambda: make_plan(own, protocol("crypten"), samples=4))
    assert "layer.0/attention/normaliser: reciprocal(crypten) holds up to 250" in message
    assert "the calibrated range reaches 300" in message
    assert 'use kind = "chebyshev"' in message


def test_every_range_that_leaves_its_domain_is_named(own_model: Callable[..., Model]) -> None:
    def edit(ranges: dict[str, Any]) -> None:
        ranges["sites"]["layer.0/attention/normaliser"]["domain"] = [-1.0, 300.0]
        ranges["sites"]["layer.0/attention/norm"]["domain"] = [0.0, 1.0]
        ranges["sites"]["layer.0/ffn/gelu"]["domain"] = [-40.0, 40.0]

    own = own_model(edit)
    with pytest.raises(ProtocolError) as caught:
        make_plan(own, protocol("crypten"), samples=4)
    sites = [violation.split(":")[0] for violation in caught.value.violations]
    assert sites == ["layer.0/attention/norm", "layer.0/attention/normaliser", "layer.0/ffn/gelu"]


def test_a_function_without_realisation_is_named() -> None:
    own = replace(protocol("power-softmax-mpc"), functions={"gelu": {"kind": "chebyshev", "degree": 7}})
    message = refused(ProtocolError, lambda: make_plan(model("digits-vit"), own, samples=4))
    for site in ("attention/norm", "attention/normaliser", "ffn/norm"):
        assert f"layer.0/{site} needs " in message
    assert "layer.0/ffn/gelu" not in message


def test_missing_bounds(own_model: Callable[..., Model]) -> None:
    def edit(ranges: dict[str, Any]) -> None:
        ranges["bounds"] = {}

    own = own_model(edit)
    message = refused(ProtocolError, lambda: make_plan(own, protocol("power-softmax-ckks"), samples=4))
    assert "no bound for refresh points head/input, layer.0/" in message
    assert "calibrate again" in message
    make_plan(own, protocol("power-softmax-mpc"), samples=4)  # shares are never refreshed


def test_a_missing_site(own_model: Callable[..., Model]) -> None:
    def edit(ranges: dict[str, Any]) -> None:
        del ranges["sites"]["layer.0/ffn/gelu"]

    assert "no range for layer.0/ffn/gelu" in refused(ProtocolError, lambda: own_model(edit))


def test_bounds_too_large_to_hide_are_not_refreshed(own_model: Callable[..., Model]) -> None:
    """A point whose values would show through the mask is left alone, however convenient it is."""
    usual = ckks_part(planned("digits-vit", "power-softmax-ckks")).schedule
    point = sorted(usual)[0]

    def edit(ranges: dict[str, Any]) -> None:
        ranges["bounds"][point] = 2.0**12

    plan = ckks_part(make_plan(own_model(edit), protocol("power-softmax-ckks"), samples=4))
    assert point not in plan.schedule
    assert plan.hiding_bits is not None
    assert plan.hiding_bits >= 40


def test_values_beyond_the_declared_range_of_shares_are_refused(own_model: Callable[..., Model]) -> None:
    def edit(ranges: dict[str, Any]) -> None:
        ranges["sites"]["layer.0/attention/normaliser"]["domain"][1] = 5000.0

    own, given = own_model(edit), replace(protocol("accurate-mpc"), fits_range=False)
    message = refused(PlanError, lambda: make_plan(own, given, samples=4))
    assert message == (
        "values reach 5e+03 at layer.0/attention/normaliser, and protocol accurate-mpc declares less than 4096 "
        '(mpc.integer_bits = 12); set it to 13, or to "fit"'
    )
    wider = make_plan(own, replace(given, mpc=replace(given.mpc, integer_bits=13)), samples=4).mpc
    assert wider is not None
    assert wider.largest == 5000.0
    fitted = make_plan(own, protocol("accurate-mpc"), samples=4)  # which says "fit"
    assert fitted.protocol.mpc.integer_bits == 13


def test_nothing_to_refresh_safely_is_refused(own_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    def edit(ranges: dict[str, Any]) -> None:
        ranges["bounds"] = {point: 2.0**40 for point in ranges["bounds"]}

    monkeypatch.setattr(choice, "HIDING_BITS", 60)  # more than arguments of polynomials have, which are small always
    own = own_model(edit)
    message = refused(PlanError, lambda: make_plan(own, protocol("power-softmax-ckks"), samples=4))
    assert "at layer.0/" in message


@pytest.mark.parametrize("samples", [0, -1])
@pytest.mark.parametrize("name", names("protocols"))
def test_no_samples(name: str, samples: int) -> None:
    message = refused(PlanError, lambda: make_plan(model("digits-vit"), protocol(name), samples=samples))
    assert message == f"a plan needs at least 1 sample, not {samples}"


def test_other_scales() -> None:
    """A finer scale leaves fewer levels, a coarser one more; both stay within the table."""
    for bits in (30, 36, 45):
        own = replace(
            protocol("power-softmax-ckks"), ckks=replace(protocol("power-softmax-ckks").ckks, scale_bits=bits)
        )
        plan = ckks_part(make_plan(model("digits-vit"), own, samples=4))
        assert plan.parameters.scale_bits == bits
        assert plan.parameters.modulus_bits <= TABLE_2024[plan.parameters.ring_degree]
        assert plan.hiding_bits is not None
        assert plan.hiding_bits >= 40


def test_more_samples_than_shipped_are_refused() -> None:
    for count in (0, 361):
        assert "ships 360" in refused(InputError, lambda count=count: model("digits-vit").samples(count))
    assert np.shape(model("digits-vit").samples(3)[0]) == (3, 16, 4)
