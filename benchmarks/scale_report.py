"""What the benchmark at scale makes of its plans and raw samples: checks, and tables with published figures beside."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import measuring
import scale_ckks
from checking import Check, Part, at_most, described

from secureattn.ledger import LAN, PUMA, WAN, Network, units

NETWORKS = (PUMA, LAN, WAN)
COUNTS = ("rounds", "bytes_sent", "dealer_bytes")
PHASES = ("setup", "encrypt", "offline", "online", "decrypt")
ONLINE, DEALT = ("encrypt", "online", "decrypt"), ("offline",)
SECONDS, MEMORY = 2.0, 1.25
PLAN_S, PLAN_BYTES = 120.0, 1 << 30
PRETRAINED, TRAINED = 1.25, 2.5


@dataclass(frozen=True)
class Published:
    """A figure of a paper: of what, whose, seconds, bytes in GB, on what, and where it stands."""

    workload: str
    system: str
    seconds: float
    gigabytes: float | None
    machine: str
    source: str


_PUMA = "three parties (replicated shares) of 32 cores each, 5 Gbit/s, 1 ms"
_PUMA_SOURCE = "Dong et al., arXiv 2307.12533"
PUBLISHED = (
    Published("BERT-base, 128 tokens", "PUMA", 33.9, 10.8, _PUMA, _PUMA_SOURCE),
    Published("BERT-base, 128 tokens", "MPCFormer", 55.3, 12.1, "as PUMA, who measured it", _PUMA_SOURCE),
    Published("BERT-base, 128 tokens", "NEXUS (CKKS)", 857.0, None, "CPU", "Zhang et al., eprint 2024/136"),
    Published("BERT-base, 128 tokens", "THOR (CKKS)", 602.0, None, "one A100", "Moon et al., eprint 2024/1881"),
    Published(
        "BERT-base, 128 tokens", "MOAI (CKKS)", 141.6, None, "amortised over a batch", "Zhang et al., eprint 2025/991"
    ),
    Published("GPT-2 small, 32 in, 1 out", "PUMA", 15.5, 3.8, _PUMA, _PUMA_SOURCE),
    Published(
        "Pythia-70M with Power-Softmax, 128 in, 1 out",
        "Power-Softmax (CKKS)",
        93.0,
        None,
        "one A100",
        "Zimerman et al., arXiv 2410.09457",
    ),
    Published("LLaMA-7B, 4 in, 1 out", "PUMA", 122.0, 0.9, _PUMA, _PUMA_SOURCE),
    Published("LLaMA-7B, 8 in, 1 out", "PUMA", 200.0, 1.8, _PUMA, _PUMA_SOURCE),
)
BESIDE = {
    "GPT-2 small, 32 in, 1 out": "GPT-2 small, 32 tokens, scores of all",
    "Pythia-70M, 128 in, 1 out": "Pythia-70M, 128 tokens, scores of all",
}
"""Workload → the run that comes nearest: scores of the token after each, not after the last alone."""


# ---- what is kept of plans and runs ---------------------------------------------------------------------------


def of_plan(plan: Any) -> dict[str, Any]:
    """Counts of every party and modelled seconds by phase, messages on every network, and memory by process."""
    from secureattn.ledger import network_seconds

    recorders, ledger = plan.mpc.recorders, plan.ledger
    return {
        "warnings": list(plan.warnings),
        "integer_bits": plan.protocol.mpc.integer_bits,
        "counts": {p: {name: [r.total(name, phase=p) for r in recorders] for name in COUNTS} for p in PHASES},
        "seconds": dict(plan.mpc.seconds),
        "messages_s": {n.name: {p: network_seconds(ledger, n, phase=p) for p in PHASES} for n in NETWORKS},
        "memory_bytes": {one.name: dict(one.parts()) for one in plan.mpc.memory},
    }


def of_run(processes: Part, seats: Sequence[str]) -> dict[str, Any]:
    """Counts of every party but for its connecting, seconds by phase of the party that took longest, peaks."""
    profiles = [processes[seat]["profile"] for seat in seats if "events" in processes[seat]["profile"]]
    counts = {
        phase: {
            name: [
                sum(e[name] or 0 for e in profile["events"] if (e["phase"], e["op"] == "connect") == (phase, False))
                for profile in profiles
            ]
            for name in COUNTS
        }
        for phase in PHASES
    }
    slowest = max(profiles, key=lambda profile: profile["total"]["seconds"])
    return {
        "counts": counts,
        "seconds": {phase: slowest["phases"][phase] or 0.0 for phase in PHASES},
        "process_s": {seat: processes[seat]["seconds"] for seat in seats},
        "peak_bytes": {seat: processes[seat]["peak_bytes"] for seat in seats},
    }


# ---- checks -----------------------------------------------------------------------------------------------------


def document(parts: Mapping[str, Part], *, quick: bool) -> dict[str, Any]:
    """Everything, as JSON: machine, published figures, raw samples by part, and the checks computed from them."""
    return described(parts, checks(parts, quick=quick), quick=quick, published=[asdict(one) for one in PUBLISHED])


def checks(parts: Mapping[str, Part], *, quick: bool) -> list[Check]:
    """One row per figure asked for, met or not; none for parts that are missing. Seconds count in full runs only, and
    the memory of a block alone, cut from a config, does not: it asks the dealer once for its largest correction, where
    a model has one on its way meanwhile.
    """
    found = [check for name, of in CHECKS.items() if name in parts for check in of(parts[name], not quick)]
    return found + [check for one in models_run(parts).values() for check in _run(one, not quick)]


def _run(one: Part, full: bool) -> Iterator[Check]:
    title = one["title"]
    yield at_most(f"{title}: rounds and bytes counted, off the planned by", _off(one), 0)
    if full:
        ratio = ratio_of_seconds(one)
        name = f"{title}: seconds with the dealer's, predicted and measured apart by"
        yield at_most(name, max(ratio, 1 / ratio), SECONDS)
    elif one["random_weights"]:
        return
    for seat, ratio in ratios_of_memory(one).items():
        apart = max(ratio, 1 / ratio)
        yield at_most(f"{title}: peak memory of the {seat}, predicted and measured apart by", apart, MEMORY)


def _off(one: Part) -> int:
    """The largest difference of a count of any party in any phase of any turn from the planned one."""
    planned = one["planned"]["counts"]
    off: Iterator[int] = (
        abs(a - b)
        for run in one["taken"]
        for phase in PHASES
        for name in COUNTS
        for a, b in zip(planned[phase][name], run["counts"][phase][name], strict=True)
    )
    return max(off)


def _planning(part: Part, full: bool) -> Iterator[Check]:
    if full:
        yield at_most(f"{part['model']}: seconds that its plan takes", part["seconds"], PLAN_S)
    yield at_most(f"{part['model']}: peak bytes of its plan", part["peak_bytes"], PLAN_BYTES)


def _assumptions(part: Part, full: bool) -> Iterator[Check]:
    for name, ranges in part["models"].items():
        bar = PRETRAINED if name == "minilm" else TRAINED
        for count in COUNTS:
            factor = running(ranges["assumed"], count) / running(ranges["calibrated"], count)
            yield at_most(f"{name}: {count} under assumed ranges over those under calibrated ones", factor, bar)


def _predictions(part: Part, full: bool) -> Iterator[Check]:
    missing = sum("accurate-mpc" not in one or "puma" not in one for one in part["workloads"].values())
    yield at_most("workloads without a plan under accurate-mpc and puma", missing, 0)


CHECKS: Mapping[str, Callable[[Part, bool], Iterator[Check]]] = {
    "predictions": _predictions,
    "planning": _planning,
    "assumptions": _assumptions,
    "homomorphic": scale_ckks.checks,
}


def ratio_of_seconds(one: Part) -> float:
    """Predicted over measured seconds of everything but set-up, medians of the turns."""
    measured = statistics.median(sum(run["seconds"][phase] for phase in (*ONLINE, *DEALT)) for run in one["taken"])
    return float(sum(one["planned"]["seconds"][phase] for phase in (*ONLINE, *DEALT)) / measured)


def ratios_of_memory(one: Part) -> dict[str, float]:
    """Predicted over measured peak of each process, medians of the turns."""
    called = {"owner": "model owner", "client": "client", "dealer": "dealer"}
    return {
        seat: one["planned"]["memory_bytes"][name]["total"]
        / statistics.median(run["peak_bytes"][seat] for run in one["taken"])
        for seat, name in called.items()
    }


def running(planned: Part, name: str, phases: Sequence[str] = (*ONLINE, *DEALT)) -> int:
    """A count of a run, set-up left out: rounds of one party, bytes of all."""
    totals = [sum(planned["counts"][phase][name][rank] for phase in phases) for rank in range(2)]
    return max(totals) if name == "rounds" else sum(totals)


def on_network(planned: Part, network: Network, phases: Sequence[str]) -> float:
    """Modelled seconds of computing and messages in some phases."""
    return float(sum(planned["seconds"][p] + planned["messages_s"][network.name][p] for p in phases))


# ---- tables -----------------------------------------------------------------------------------------------------


def text(document: Mapping[str, Any]) -> str:
    """Tables of the parts that are there."""
    parts, found = document["parts"], []
    if "predictions" in parts:
        found += [*_scale(parts), *_networks(parts["predictions"])]
    if "homomorphic" in parts:
        found += scale_ckks.words(parts["homomorphic"])
    if "planning" in parts:
        one = parts["planning"]
        found += [f"The plan of {one['model']} took {one['seconds']:.0f} s and {units.data(one['peak_bytes'])}.", ""]
    ran = models_run(parts)
    found += _accuracy(ran) if ran else []
    wanted = [title for title in ("BERT-base, 128 tokens", *BESIDE.values()) if title not in ran]
    if wanted and not document["quick"]:
        found += [f"Provisional: not run yet with random weights: {'; '.join(wanted)}.", ""]
    found += _guesses(parts["assumptions"]) if "assumptions" in parts else []
    return "\n".join([*found, f"Measured on {measuring.measured_on(document)}."]) + "\n"


def _scale(parts: Mapping[str, Part]) -> list[str]:
    """Published, predicted and measured figures of every workload."""
    rows = [
        "| workload | system | figures are | online | with dealer | rounds | sent | dealer | peak memory | on |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    measured = models_run(parts)
    for workload, plans in parts["predictions"]["workloads"].items():
        for one in (one for one in PUBLISHED if one.workload == workload):
            sent = "--" if one.gigabytes is None else f"{one.gigabytes:.1f} GB"
            rows.append(
                f"| {workload} | {one.system}, {one.source} | published | {one.seconds:.1f} s | -- | -- | {sent} | -- "
                f"| -- | {one.machine} |"
            )
        for protocol, plan in plans.items():
            rows.append(f"| {workload} | ours, {protocol} | predicted | {_predicted(plan)} | {_OURS} |")
        rows += scale_ckks.rows(parts.get("homomorphic", {"workloads": {}}), workload)
        for title in (title for title in (workload, BESIDE.get(workload)) if title in measured):
            run = measured[title]["taken"][0]
            rows.append(f"| {title} | ours, accurate-mpc | measured, random weights | {_measured(run)} | {_HERE} |")
    return [*rows, "", *_WORDS, ""]


_OURS = "two parties and a dealer on two cores together, network as PUMA's, modelled"
_HERE = "two parties and a dealer on two cores together, loopback"
_WORDS = (
    "Published figures are their authors', on their machines; predicted ones are plans of configs alone: ranges "
    "assumed, not calibrated, seconds modelled for three processes that share two cores. Set-up, in which the weights "
    "are masked once, is left out: it sends 8 bytes a weight. Online leaves the dealer's phase out, which needs no "
    "input. Sent is what both parties send to each other, online; dealer what the dealer sends. Peak memory is that of "
    "owner, client and dealer. PUMA's three parties share values in replicated form and need no dealer.",
)


def _predicted(plan: Part) -> str:
    seconds = [on_network(plan, PUMA, phases) for phases in (ONLINE, (*ONLINE, *DEALT))]
    peaks = [one["total"] for one in plan["memory_bytes"].values()]
    return _figures(seconds, plan, peaks)


def _measured(run: Part) -> str:
    seconds = [sum(run["seconds"][p] for p in phases) for phases in (ONLINE, (*ONLINE, *DEALT))]
    return _figures(seconds, run, list(run["peak_bytes"].values()))


def _figures(seconds: Sequence[float], counted: Part, peaks: Sequence[int]) -> str:
    times = " | ".join(units.seconds(s) for s in seconds)
    counts = f"{running(counted, 'rounds', ONLINE):,} | {units.data(running(counted, 'bytes_sent', ONLINE))}"
    memory = " / ".join(units.data(peak) for peak in peaks)
    return f"{times} | {counts} | {units.data(running(counted, 'dealer_bytes'))} | {memory}"


def _networks(part: Part) -> list[str]:
    """Seconds on every network, set-up apart."""
    names = [f"{n.name}, {what}" for n in NETWORKS for what in ("online", "with dealer")]
    rows = [f"| predicted | protocol | {' | '.join(names)} | set-up's messages on PUMA's |", f"|---|---|{'---:|' * 7}"]
    for workload, plans in part["workloads"].items():
        for protocol, plan in plans.items():
            times = [on_network(plan, n, phases) for n in NETWORKS for phases in (ONLINE, (*ONLINE, *DEALT))]
            shown = " | ".join(units.seconds(s) for s in (*times, plan["messages_s"][PUMA.name]["setup"]))
            rows.append(f"| {workload} | {protocol} | {shown} |")
    words = (
        "PUMA's network has 5 Gbit/s and a round trip of 1 ms, LAN 1 Gbit/s and 0.5 ms, WAN 100 Mbit/s and 40 ms. "
        "Seconds of computing hold what messages take on loopback, so they err on the slow side."
    )
    return [*rows, "", words, ""]


def models_run(parts: Mapping[str, Part]) -> dict[str, Part]:
    """Everything that was run, by title."""
    return {one["title"]: one for one in parts.values() if "taken" in one}


def _accuracy(models: Mapping[str, Part]) -> list[str]:
    """How well the predictor did."""
    rows = [
        "| run under accurate-mpc | weights | rounds, bytes | predicted s | measured s | p/m | owner p/m | client p/m "
        "| dealer p/m |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for title, one in models.items():
        ratio = ratio_of_seconds(one)
        predicted = sum(one["planned"]["seconds"][p] for p in (*ONLINE, *DEALT))
        memory = " | ".join(f"{value:.2f}" for value in ratios_of_memory(one).values())
        rows.append(
            f"| {title} | {'random' if one['random_weights'] else 'trained'} | {'off' if _off(one) else 'exact'} | "
            f"{predicted:.2f} | {predicted / ratio:.2f} | {ratio:.2f} | {memory} |"
        )
    ratios = [ratio_of_seconds(one) for one in models.values()]
    loads = [run["load_before"] for one in models.values() for run in one["taken"]]
    peaks = [value for one in models.values() for value in ratios_of_memory(one).values()]
    words = (
        f"Predicted over measured (p/m): seconds with the dealer's, set-up aside, {min(ratios):.2f} to "
        f"{max(ratios):.2f}; peak memory of a process {min(peaks):.2f} to {max(peaks):.2f}. Rounds and bytes are exact "
        "where planned and counted agree to the byte, party by party and phase by phase. The load of the machine was "
        f"{min(loads):.1f} to {max(loads):.1f} before these runs; three processes at once are a load of their own."
    )
    return [*rows, "", words, ""]


def _guesses(part: Part) -> list[str]:
    """What assuming ranges costs."""
    rows = ["| assumed over calibrated ranges | rounds | sent | dealer |", "|---|---:|---:|---:|"]
    for name, ranges in part["models"].items():
        factors = [running(ranges["assumed"], count) / running(ranges["calibrated"], count) for count in COUNTS]
        rows.append(f"| {name}, 1 × 16 tokens | {' | '.join(f'{factor:.2f}' for factor in factors)} |")
    words = (
        "MiniLM is pretrained, as what is planned here. The decoders of bytes were trained to keep their ranges "
        "narrow; where they keep scores within 9, softmax has a cheaper way."
    )
    return [*rows, "", words, ""]
