"""What the atlas makes of its rows: the table, the checks, and the figures that need no training."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from checking import Check, at_least, at_most

MINUTES = 60
FUNCTIONS = (
    ("gelu", "puma", (-10.0, 10.0), 2.0e-2),
    ("gelu", "bolt", (-10.0, 10.0), 9.4e-3),
    ("gelu", "bumblebee", (-10.0, 10.0), 5.2e-3),
    ("gelu", "shaft", (-10.0, 10.0), 4.5e-3),
    ("silu", "puma", (-10.0, 10.0), 7.2e-2),
)
"""Published piecewise functions, and the error that measuring them once gave."""


def document(
    rows: Sequence[Mapping[str, Any]],
    budget: Mapping[str, Any],
    seconds: float,
    extra: Mapping[str, Any],
    *,
    quick: bool,
) -> dict[str, Any]:
    """Everything, as JSON: raw rows, the table's lines, the checks computed from them."""
    from secureattn.ledger.machine import machine

    lines = [_line(name, [row for row in rows if row["variant"] == name]) for name in _names(rows)]
    made = {"schema": 1, "quick": quick, "machine": machine(), "budget": dict(budget), "seconds": seconds}
    return {
        **made,
        "checks": _checks(rows, lines, budget, seconds, extra, quick),
        "table": lines,
        **extra,
        "runs": list(rows),
    }


def table(document: Mapping[str, Any]) -> str:
    """The table in Markdown, most accurate first; accuracies in per cent, mean ± half the range over the seeds."""
    head = (
        "| attention | exact | clear CKKS | enc. CKKS | clear MPC | enc. MPC | levels | ct×ct | rotations | CKKS s "
        "| rounds | MiB/query | MPC s |",
        "|---|---|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    )
    lines = sorted(document["table"], key=lambda line: -line["exact"]["mean"])
    budget = document["budget"]
    note = (
        f"Width {budget['width']}, {budget['heads']} heads, one block, {budget['norm']}, {budget['epochs']} epochs, "
        f"{budget['seeds']} seeds; every site served by the cheapest realisation that errs by at most 1e-3 (2e-2 "
        "for relu and clip). Seconds are online, of all images together, with two runs side by side on two cores."
    )
    return "\n".join([*head, *map(_markdown, lines), "", note]) + "\n"


def further_checks() -> dict[str, Any]:
    """Search on digits-vit against its hand-chosen protocol, inputs scaled by 3, published errors."""
    import numpy as np

    from secureattn import fit, load_model, load_protocol, runs
    from secureattn.approx import FUNCTIONS as KNOWN
    from secureattn.approx import realise
    from secureattn.approx.realisation import on_arrays, values
    from secureattn.plan import make_plan
    from secureattn.runs.search import search

    model = load_model("digits-vit")
    found = search(model, load_protocol("power-softmax-ckks"))
    plan = make_plan(model, load_protocol("plaintext"), samples=360)
    inputs, _ = model.samples()
    escapes = runs.clear_run(plan, np.asarray(inputs) * 3).escapes
    published = []
    for function, kind, domain, stated in FUNCTIONS:
        made = realise(function, {"kind": kind}, domain)
        error = fit.max_error(on_arrays(KNOWN[function].TRUE), functools.partial(values, made), domain)
        published.append({"name": f"{function}/{kind}", "error": error, "stated": stated})
    searched = {
        "given": {"levels": found.given.cost, "accuracy": [found.given.accuracy, found.given.checked]},
        "chosen": {"levels": found.chosen.cost, "accuracy": [found.chosen.accuracy, found.chosen.checked]},
    }
    return {"search": searched, "escapes_scaled_by_3": dict(escapes), "published": published}


def _checks(
    rows: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    budget: Mapping[str, Any],
    seconds: float,
    extra: Mapping[str, Any],
    quick: bool,
) -> list[Check]:
    """One row per figure asked for, true or not."""
    ran = [run for row in rows for run in row["engines"].values() if "refused" not in run]
    unexpected = [
        f"{row['variant']} ({engine})"
        for row in rows
        for engine, run in row["engines"].items()
        if "refused" in run and not ("needs" in run["refused"] and engine == "ckks")
    ]
    found = [
        at_least("variants", len(lines), 4 if quick else 25),
        at_least("seeds", int(budget["seeds"]), 1 if quick else 3),
        at_most("minutes", round(seconds / 60, 1), MINUTES),
        at_most("runs refused for another reason than a missing capability", len(unexpected), 0),
        at_least("least agreement of encrypted and clear runs", min(r["agreement"] for r in ran), 0.99),
    ]
    if quick:
        return found
    given, chosen = extra["search"]["given"], extra["search"]["chosen"]
    found += [
        at_most("levels found by search, against the hand-chosen", chosen["levels"], given["levels"] - 1),
        at_least("accuracy found by search", min(chosen["accuracy"]), min(given["accuracy"])),
        at_least("sites that report inputs scaled by 3", len(extra["escapes_scaled_by_3"]), 1),
    ]
    for one in extra["published"]:
        found.append(at_most(f"max error of {one['name']}", one["error"], 1.02 * one["stated"]))
    return found


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in rows))


def _line(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One variant over its seeds; None where an engine refused it."""
    by_engine = {engine: [row["engines"][engine] for row in rows] for engine in ("ckks", "crypten")}
    ran = {engine: [run for run in runs if "refused" not in run] for engine, runs in by_engine.items()}
    some = ran["crypten"] or ran["ckks"]
    line: dict[str, Any] = {"variant": name, "exact": _spread([r["accuracy"]["exact"] for r in some])}
    for engine, runs in ran.items():
        line[engine] = None
        if runs:
            line[engine] = {
                "clear": _spread([r["accuracy"]["clear"] for r in runs]),
                "encrypted": _spread([r["accuracy"]["encrypted"] for r in runs]),
                "seconds": statistics.median(r["seconds"]["online"] + r["seconds"].get("refresh", 0.0) for r in runs),
                **_counts(engine, runs),
            }
        else:
            line[f"{engine}_refused"] = by_engine[engine][0]["refused"]
    return line


def _counts(engine: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians over the seeds, whose calibrated ranges differ a little."""
    if engine == "ckks":
        counts = {name: statistics.median(r["counts"][name] for r in runs) for name in ("ct_products", "rotations")}
        return {"levels": statistics.median(r["depth"] for r in runs), **counts}
    per_query = [(r["counts"]["bytes_sent"] + r["counts"]["dealer_bytes"]) / r["samples"] for r in runs]
    return {
        "rounds": statistics.median(r["online_rounds"] for r in runs),
        "bytes_per_query": statistics.median(per_query),
    }


def _spread(shares: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(shares), "spread": (max(shares) - min(shares)) / 2}


def _markdown(line: Mapping[str, Any]) -> str:
    def percent(share: Mapping[str, float]) -> str:
        return f"{100 * share['mean']:.1f} ± {100 * share['spread']:.1f}"

    ckks, mpc = line["ckks"], line["crypten"]
    cells = [line["variant"], percent(line["exact"])]
    for engine in (ckks, mpc):
        cells += [percent(engine["clear"]), percent(engine["encrypted"])] if engine else ["--", "--"]
    if ckks:
        cells += [f"{ckks[name]:,.0f}" for name in ("levels", "ct_products", "rotations", "seconds")]
    else:
        cells += ["--"] * 4
    if mpc:
        cells += [f"{mpc['rounds']:,.0f}", f"{mpc['bytes_per_query'] / 2**20:.2f}", f"{mpc['seconds']:.1f}"]
    else:
        cells += ["--"] * 3
    return "| " + " | ".join(cells) + " |"
