"""What the secret-sharing benchmark makes of its raw samples: the checks and the tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import measuring
import numpy as np
from checking import Check, Part, at_least, at_most, described

ONLINE, TOTAL, MPCFORMER = 8.0, 4.0, 2.5
ROUNDS, BYTES, ERROR, SOFTMAX = 45, 1 / 8, 2e-3, 1e-3
FIXED_POINT = 1e-3
"""What fixed point may add to the error of a protocol's published formula."""

PUMA_GELU = 2.0e-2
"""Largest error of PUMA's GELU on ±10 as its coefficients are published, in float64; the paper says below 1.4e-2."""

LOST, AGREEMENT = 0.005, 0.99


# ---- what is kept of a run ------------------------------------------------------------------------------------


def run_of(run: Mapping[str, Any], references: Mapping[str, Any]) -> dict[str, Any]:
    """One run of the block: seconds, what every party counted, the errors, and every region of every party."""
    ledger, output = run["ledger"], run["output"]
    return {
        "seconds": dict(ledger.phases),
        "parties": [counted(party) for party in ledger.parties],
        "regions": [row for party in ledger.parties for row in regions(party)],
        "max_abs_error": {name: float(np.abs(output - reference).max()) for name, reference in references.items()},
    }


def counted(party: Any) -> dict[str, Any]:
    """A party's online rounds and bytes, and what it got from the dealer."""

    def total(name: str, *phases: str) -> int:
        return sum(event.counts.get(name, 0) for event in party.events if event.phase in phases)

    return {
        "party": party.name,
        "rounds": total("rounds", "online"),
        "bytes_sent": total("bytes_sent", "online"),
        "dealer_bytes": total("dealer_bytes", "offline", "online"),
        "online_s": party.seconds("online"),
        "offline_s": party.seconds("offline"),
    }


def regions(party: Any) -> Iterator[dict[str, Any]]:
    """A party's online seconds, rounds and bytes by region, and what the dealer sent for it."""
    for region in dict.fromkeys(event.region for event in party.events):
        here = [event for event in party.events if event.region == region]
        online = [event for event in here if event.phase == "online"]
        sums = {name: sum(e.counts.get(name, 0) for e in online) for name in ("rounds", "bytes_sent")}
        dealer = sum(e.counts.get("dealer_bytes", 0) for e in here)
        seconds = sum(e.seconds_self for e in online)
        yield {"party": party.name, "region": region, "online_s": seconds, **sums, "dealer_bytes": dealer}


def digits_of(plan: Any, run: Any, clear: Any, exact: Any, labels: Any) -> dict[str, Any]:
    """The test set: accuracies, agreement, errors, and what the run counted."""
    outputs = {"exact": exact, "clear": clear, "encrypted": run.outputs}
    best = {name: scores.argmax(-1) for name, scores in outputs.items()}
    return {
        "samples": len(labels),
        "seconds": dict(run.ledger.phases),
        "parties": [counted(party) for party in run.parties],
        "accuracy": {name: float(np.mean(found == labels)) for name, found in best.items()},
        "agreement": {name: float(np.mean(best["encrypted"] == best[name])) for name in ("exact", "clear")},
        "max_abs_error": {
            "approximation": float(np.abs(clear - exact).max()),
            "encryption": float(np.abs(run.outputs - clear).max()),
        },
    }


def document(parts: Mapping[str, Part], *, quick: bool) -> dict[str, Any]:
    """Everything, as JSON: machine, raw samples by part, and the checks computed from them."""
    return described(parts, checks(parts, quick=quick), quick=quick)


# ---- checks -------------------------------------------------------------------------------------------------


def checks(parts: Mapping[str, Part], *, quick: bool) -> list[Check]:
    """One row per figure asked for, met or not; none for parts that are missing. Ratios count in full runs only."""
    return [check for name, of in CHECKS.items() if name in parts for check in of(parts[name], not quick)]


def _block(part: Part, full: bool) -> Iterator[Check]:
    runs, peers = part["runs"], part["peers"]
    ours, default = runs["accurate-mpc"], peers["default"]
    if full:
        yield at_least("accurate-mpc: times faster online than plain CrypTen", ratio(default, ours), ONLINE)
        yield at_least("accurate-mpc: the same, with the dealer's time", ratio(default, ours, dealer=True), TOTAL)
        faster = ratio(peers["mpcformer"], runs["mpcformer"])
        yield at_least("mpcformer: times faster online than its functions on plain CrypTen", faster, MPCFORMER)
        share = most(ours, "bytes_sent") / default[0]["bytes_sent"]
        yield at_most("accurate-mpc: online bytes as a share of plain CrypTen's", share, BYTES)
    yield at_most("accurate-mpc: online rounds", most(ours, "rounds"), ROUNDS)
    yield at_most("accurate-mpc: largest error of the block", error(ours, "exact"), ERROR)
    if full:
        share, of_puma = (error(ours, "exact") / e for e in (worst(default), error(runs["puma"], "exact")))
        yield at_most("accurate-mpc: largest error, as a share of plain CrypTen's", share, 1)
        yield at_most("accurate-mpc: the same, of PUMA's functions", of_puma, 1)
    for name, some in runs.items():
        for kind in ("rounds", "bytes_sent", "dealer_bytes"):
            planned = [party[kind] for party in part["plans"][name]]
            off = max(abs(party[kind] - p) for run in some for party, p in zip(run["parties"], planned, strict=True))
            yield at_most(f"{name}: planned {kind.replace('_', ' ')} less counted", off, 0)


def _truncation(part: Part, full: bool) -> Iterator[Check]:
    exact = part["exact"]
    if full:
        yield at_least("products truncated exactly", exact["products"], 10**8)
    yield at_most("gross errors among them", exact["gross"], 0)
    yield at_most("largest other error in units", exact["largest_other_units"], 1)


def _softmax(part: Part, full: bool) -> Iterator[Check]:
    for row in part["rows"]:
        yield at_most(f"softmax, {row['keys']} keys, {row['rows']} rows: largest error", row["max_abs_error"], SOFTMAX)


def _gelu(part: Part, full: bool) -> Iterator[Check]:
    found = part["functions"]
    yield at_most("puma: largest error of GELU on ±10, on shares", found["puma"], PUMA_GELU + FIXED_POINT)
    yield at_most("accurate-mpc: the same", found["accurate-mpc"], FIXED_POINT)


def _digits(part: Part, full: bool) -> Iterator[Check]:
    for name in [name for name in part if isinstance(part[name], dict)]:
        one = part[name]
        lost = one["accuracy"]["exact"] - one["accuracy"]["encrypted"]
        yield at_most(f"digits-vit, {one['samples']} images, {name}: accuracy lost", lost, LOST)
        agreement = min(one["agreement"].values())
        yield at_least(f"digits-vit, {name}: agreement with the clear run, and the exact one", agreement, AGREEMENT)


CHECKS: Mapping[str, Callable[[Part, bool], Iterator[Check]]] = {
    "block": _block,
    "truncation": _truncation,
    "softmax": _softmax,
    "gelu": _gelu,
    "digits": _digits,
}


# ---- figures ------------------------------------------------------------------------------------------------


def ratio(peers: Sequence[Part], runs: Sequence[Part], *, dealer: bool = False) -> float:
    """How many times longer the peer took, turn by turn: the median."""
    return float(statistics.median(a["seconds"] / taken(b, dealer=dealer) for a, b in zip(peers, runs, strict=True)))


def taken(run: Part, *, dealer: bool = False) -> float:
    """A run's online seconds, those of the slowest party; with what was dealt ahead for it."""
    return float(max(party["online_s"] + dealer * party["offline_s"] for party in run["parties"]))


def most(runs: Sequence[Part], kind: str) -> int:
    """The most of a party."""
    return int(max(party[kind] for run in runs for party in run["parties"]))


def error(runs: Sequence[Part], reference: str) -> float:
    """The largest error of any run."""
    return float(max(run["max_abs_error"][reference] for run in runs))


def worst(peers: Sequence[Part]) -> float:
    """The largest error of any of the peer's runs."""
    return float(max(run["max_abs_error"] for run in peers))


# ---- tables -------------------------------------------------------------------------------------------------


def text(document: Mapping[str, Any]) -> str:
    """Markdown, for README."""
    parts = document["parts"]
    found = [table(parts[name]) for name, table in TABLES.items() if name in parts]
    return "\n\n".join([*found, f"Measured on {measuring.measured_on(document)}."]) + "\n"


def _block_table(part: Part) -> str:
    from secureattn.ledger import LAN, WAN, units

    shape = part["shape"]
    head = (
        f"An encoder block of {shape['tokens']} tokens × {shape['width']}, {shape['heads']} heads, FFN "
        f"{shape['hidden']}, private random weights, two parties and a dealer on this machine; medians of runs in "
        "turn, each after one to warm up. Errors are the largest of the block's outputs against float64 with the true "
        "functions (with quadratic GELU and attention for mpcformer). Bytes are those of the party that sends most; "
        "modelled times are computing and messages together."
    )
    rows = [
        "| functions | engine | online | with dealer | rounds | bytes | dealer | max error | LAN | WAN |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]

    def modelled(seconds: float, rounds: int, sent: float, each: float) -> list[str]:
        return [units.seconds(seconds + network.seconds(each * rounds, int(sent))) for network in (LAN, WAN)]

    for name, runs in part["peers"].items():
        seconds = statistics.median(run["seconds"] for run in runs)
        triples = statistics.median(run["triples_s"] for run in runs)
        rounds, sent = runs[0]["rounds"], runs[0]["bytes_sent"]
        figures = [units.seconds(seconds - triples), units.seconds(seconds), str(rounds), units.data(int(sent)), "--"]
        figures += [f"{worst(runs):.1e}", *modelled(seconds - triples, rounds, sent, 1.0)]
        rows.append(f"| {name} | plain CrypTen | {' | '.join(figures)} |")
    for name, runs in part["runs"].items():
        online, whole = (statistics.median(taken(run, dealer=d) for run in runs) for d in (False, True))
        rounds, sent = most(runs, "rounds"), most(runs, "bytes_sent")
        figures = [units.seconds(online), units.seconds(whole), str(rounds), units.data(sent)]
        figures += [units.data(most(runs, "dealer_bytes")), f"{error(runs, 'exact'):.1e}"]
        rows.append(f"| {name} | SecureAttn | {' | '.join([*figures, *modelled(online, rounds, sent, 0.5)])} |")
    ours, default = part["runs"]["accurate-mpc"], part["peers"]["default"]
    foot = (
        f"accurate-mpc is {ratio(default, ours):.1f} times faster online than plain CrypTen's block, "
        f"{ratio(default, ours, dealer=True):.1f} times with the dealer's time; mpcformer's functions are "
        f"{ratio(part['peers']['mpcformer'], part['runs']['mpcformer']):.1f} times faster than on plain CrypTen. "
        "CrypTen makes its triples in party 0 while it runs; its first column leaves that time out, the ratios do not."
    )
    return "\n".join([head, "", *rows, "", foot, "", *_region_table(ours)])


def _region_table(runs: Sequence[Part]) -> list[str]:
    from secureattn.ledger import units

    run = min(runs, key=taken)
    rows = ["| accurate-mpc, region | party | online | rounds | sent | dealer |", "|---|---|---:|---:|---:|---:|"]
    for row in run["regions"]:
        if row["online_s"] > 0:
            figures = [units.seconds(row["online_s"]), str(row["rounds"])]
            figures += [units.data(row[kind]) for kind in ("bytes_sent", "dealer_bytes")]
            rows.append(f"| {row['region'] or '(top)'} | {row['party']} | {' | '.join(figures)} |")
    return rows


def _truncation_table(part: Part) -> str:
    exact, local = part["exact"], part["local"]
    return (
        f"Of {exact['products']:,} products at the declared range (below 2^{exact['integer_bits']}, "
        f"{exact['fractional_bits']} fractional bits), truncated, grossly wrong: {exact['gross']} exactly, "
        f"{local['gross']} locally."
    )


def _softmax_table(part: Part) -> str:
    rows = ["| softmax over | rows | rounds | max error | CrypTen's default |", "|---|---|---:|---:|---:|"]
    for row in part["rows"]:
        theirs = row["crypten_max_abs_error"]
        shown = "not finite" if theirs >= 1e300 else f"{theirs:.1e}"
        rows.append(f"| {row['keys']} keys | {row['rows']} | {row['rounds']} | {row['max_abs_error']:.1e} | {shown} |")
    return "\n".join(rows)


def _gelu_table(part: Part) -> str:
    figures = ", ".join(f"{name} {value:.1e}" for name, value in part["functions"].items())
    return f"Largest error of GELU on ±10, on shares: {figures}."


def _digits_table(part: Part) -> str:
    from secureattn.ledger import units

    rows = [
        "| digits-vit | images | accuracy | agrees with exact | online | with dealer | rounds | sent | dealer |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in [name for name in part if isinstance(part[name], dict)]:
        one = part[name]
        figures = [str(one["samples"]), f"{one['accuracy']['encrypted']:.2%}", f"{one['agreement']['exact']:.2%}"]
        figures += [units.seconds(taken(one)), units.seconds(taken(one, dealer=True)), str(most([one], "rounds"))]
        figures += [units.data(most([one], "bytes_sent")), units.data(most([one], "dealer_bytes"))]
        rows.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join(rows)


TABLES: Mapping[str, Callable[[Part], str]] = {
    "block": _block_table,
    "truncation": _truncation_table,
    "softmax": _softmax_table,
    "gelu": _gelu_table,
    "digits": _digits_table,
}
