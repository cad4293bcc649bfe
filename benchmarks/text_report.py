"""What the text benchmark makes of its raw samples: the checks and the tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import measuring
import numpy as np
import text_ckks
from checking import Check, Part, at_least, at_most, described
from mpc_report import regions

from secureattn.ledger import units

COSINE, WORST, NEAREST, PADDING = 0.9995, 0.999, 0.99, 1e-9
ONLINE_S, TOTAL_S, READY_S, PEAK_BYTES = 4.0, 8.0, 15.0, 3e9
GREEDY, PERPLEXITY, AGREEMENT = 0.99, 0.01, 0.99


# ---- what is kept of a run ------------------------------------------------------------------------------------


def run_of(plan: Any, run: Any) -> dict[str, Any]:
    """Seconds by phase, every party's regions, and whether rounds and bytes are as planned."""
    planned, counted = {}, {}
    for name in ("rounds", "bytes_sent", "dealer_bytes"):
        planned[name] = [recorder.total(name) for recorder in plan.mpc.recorders]
        counted[name] = [sum(e.counts.get(name, 0) for e in party.events if e.op != "connect") for party in run.parties]
    return {
        "seconds": dict(run.seconds()),
        "planned": planned,
        "counted": counted,
        "regions": [row for party in run.parties for row in regions(party)],
    }


# ---- checks -------------------------------------------------------------------------------------------------


def document(parts: Mapping[str, Part], *, quick: bool) -> dict[str, Any]:
    """Everything, as JSON: machine, raw samples by part, and the checks computed from them."""
    return described(parts, checks(parts, quick=quick), quick=quick)


def checks(parts: Mapping[str, Part], *, quick: bool) -> list[Check]:
    """One row per figure asked for, met or not; none for parts that are missing. Seconds count in full runs only."""
    return [check for name, of in CHECKS.items() if name in parts for check in of(parts[name], not quick)]


def _sentences(part: Part, full: bool) -> Iterator[Check]:
    count = len(part["cosines"])
    yield at_least(f"minilm, {count} sentences: mean cosine to plaintext", float(np.mean(part["cosines"])), COSINE)
    yield at_least(f"minilm, {count} sentences: worst cosine to plaintext", min(part["cosines"]), WORST)
    yield at_least(f"minilm, {count} sentences: same nearest neighbour", part["nearest_agreement"], NEAREST)
    difference = part["padding_max_abs_difference"]
    yield at_most("minilm: largest difference between alone and in a padded batch", difference, PADDING)
    yield _planned(f"minilm, {count} sentences", part)


def _sentence(part: Part, full: bool) -> Iterator[Check]:
    name = f"minilm, one sentence of {part['tokens']} tokens"
    if full:
        yield at_most(f"{name}: online s", _median(part, "online"), ONLINE_S)
        yield at_most(f"{name}: total s", _median(part, "total"), TOTAL_S)
    yield _planned(name, part["runs"][0])


def _party(part: Part, full: bool) -> Iterator[Check]:
    roles = ("owner", "client", "dealer")
    if full:
        yield at_most("minilm: s until a party is ready", max(part[r]["ready_s"] or 0.0 for r in roles), READY_S)
    yield at_most("minilm: peak bytes of a process", max(part[r]["peak_bytes"] for r in roles), PEAK_BYTES)


def _generation(part: Part, full: bool) -> Iterator[Check]:
    for name, one in models_of(part).items():
        tokens, plain, bare = (np.array(one[k]) for k in ("tokens", "plaintext_tokens", "tokens_without_cache"))
        yield at_least(
            f"{name}: greedy tokens equal plaintext's, of {tokens.size}", float((tokens == plain).mean()), GREEDY
        )
        yield at_least(f"{name}: the same tokens without a cache", float((plain == bare).mean()), 1.0)
        for kind in ("clear", "encrypted"):
            off = abs(one["perplexity"][kind] / one["perplexity"]["exact"] - 1)
            yield at_most(f"{name}: perplexity {kind}, off the exact by", off, PERPLEXITY)


def _checkpoints(part: Part, full: bool) -> Iterator[Check]:
    for name, one in part["models"].items():
        yield at_least(f"{name}, convert to compare: agrees with exact", one["agreement"]["encrypted"], AGREEMENT)


CHECKS: Mapping[str, Callable[[Part, bool], Iterator[Check]]] = {
    "sentences": _sentences,
    "sentence": _sentence,
    "party": _party,
    "generation": _generation,
    "checkpoints": _checkpoints,
    "ckks_plan": text_ckks.plan_checks,
    "ckks_layer": text_ckks.run_checks,
    "ckks": text_ckks.run_checks,
}


def _planned(name: str, run: Part) -> Check:
    off = max(abs(a - b) for k in run["planned"] for a, b in zip(run["planned"][k], run["counted"][k], strict=True))
    return at_most(f"{name}: rounds and bytes counted, off the planned by", off, 0)


# ---- tables -------------------------------------------------------------------------------------------------


def models_of(part: Part) -> dict[str, Any]:
    """The part's models; the rest says when it was measured."""
    return {name: one for name, one in part.items() if isinstance(one, Mapping) and "tokens" in one}


def text(document: Mapping[str, Any]) -> str:
    """Tables of the parts that are there."""
    parts, found = dict(document["parts"]), []
    if "ckks" in parts:
        parts.pop("ckks_layer", None)  # the whole model shows what its layers do
    for name, of in TABLES.items():
        found += of(parts[name]) if name in parts else []
    return "\n".join([*found, f"Measured on {measuring.measured_on(document)}."]) + "\n"


def _sentences_table(part: Part) -> list[str]:
    cosines, seconds = part["cosines"], part["seconds"]
    return [
        f"{len(cosines)} sentences of {min(part['lengths'])} to {max(part['lengths'])} tokens in one run: cosine "
        f"to plaintext {np.mean(cosines):.6f} in the mean, {min(cosines):.6f} at worst; the same nearest neighbour for "
        f"{part['nearest_agreement']:.1%}; {seconds['online']:.1f} s online, {seconds['total']:.1f} s with everything.",
        "",
    ]


def _sentence_table(part: Part) -> list[str]:
    run = part["runs"][0]
    rows = [
        f"| one sentence, {part['tokens']} tokens | party | online | rounds | sent | dealer |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for region in dict.fromkeys(_layer(row["region"]) for row in run["regions"]):
        for party in dict.fromkeys(row["party"] for row in run["regions"]):
            here = [r for r in run["regions"] if (_layer(r["region"]), r["party"]) == (region, party)]
            total = {key: sum(r[key] for r in here) for key in ("online_s", "rounds", "bytes_sent", "dealer_bytes")}
            counts = f"{total['rounds']} | {units.data(total['bytes_sent'])} | {units.data(total['dealer_bytes'])}"
            rows.append(f"| {region or '(top)'} | {party} | {units.seconds(total['online_s'])} | {counts} |")
    totals = f"{_median(part, 'online'):.2f} s online, {_median(part, 'total'):.2f} s in all"
    return [*rows, "", f"Medians of {len(part['runs'])}: {totals}, the start of three processes included.", ""]


def _party_table(part: Part) -> list[str]:
    ready = ", ".join(f"{role} {part[role]['ready_s']:.1f} s" for role in ("owner", "client"))
    peak = ", ".join(f"{role} {units.data(part[role]['peak_bytes'])}" for role in ("owner", "client", "dealer"))
    return [f"Parties started by `secureattn party`: ready after {ready}; peak memory {peak}.", ""]


def _generation_table(part: Part) -> list[str]:
    rows = [
        "| decoder | as plaintext | perplexity exact | clear | on shares | a pass | online | rounds | sent | dealer |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for name, one in models_of(part).items():
        same = (np.array(one["tokens"]) == np.array(one["plaintext_tokens"])).mean()
        perplexities = " | ".join(f"{one['perplexity'][kind]:.4f}" for kind in ("exact", "clear", "encrypted"))
        for kind, cost in one["by_pass"].items():
            head = f"{name} | {same:.1%} | {perplexities}" if kind == "prefill" else " | | | | "
            sent = f"{units.data(round(cost['bytes_sent']))} | {units.data(round(cost['dealer_bytes']))}"
            rows.append(f"| {head} | {kind} | {units.seconds(cost['online_s'])} | {cost['rounds']:.0f} | {sent} |")
    words = (
        "Ten prompts, 50 tokens each, in one run. A continuation follows its own tokens: one that differs, where two "
    )
    return [*rows, "", words + "scores are all but equal, changes all that come after.", ""]


TABLES: Mapping[str, Callable[[Part], list[str]]] = {
    "sentences": _sentences_table,
    "sentence": _sentence_table,
    "party": _party_table,
    "generation": _generation_table,
    "ckks_plan": text_ckks.plan_table,
    "ckks_layer": text_ckks.run_table,
    "ckks": text_ckks.run_table,
}


def _layer(region: str) -> str:
    return region.split("/")[0]


def _median(part: Part, phase: str) -> float:
    return float(statistics.median(run["seconds"][phase] for run in part["runs"]))
