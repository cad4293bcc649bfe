"""What the CKKS benchmark makes of its raw samples: the checks and the tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ckks_growth
from checking import Check, Part, at_least, at_most, described
from ckks_runs import computed

GB, PEAK = 1e9, 6
PREDICTION, MEMORY = 0.25, 0.2
"""How far a measured figure may lie from the predicted one, as a share of it."""

SPEEDUPS = {64: 3.0, 256: 8.0}
"""Least speed-up of a matrix product over a loop of scalar products, by size."""

DIFFERENCE, ERROR, RANDOM_ERROR = 1e-6, 1e-5, 1e-3
"""Largest difference of both ways of a product; largest error of encrypted scores: shipped models, random ones."""


def document(parts: Mapping[str, Part], *, quick: bool) -> dict[str, Any]:
    """Everything, as JSON: machine, primitive times, raw samples by part, and the checks computed from them."""
    primitives = parts["primitives"]["result"] if "primitives" in parts else None
    return described(parts, checks(parts, quick=quick), quick=quick, primitives=primitives)


# ---- checks -------------------------------------------------------------------------------------------------


def checks(parts: Mapping[str, Part], *, quick: bool) -> list[Check]:
    """One row per figure asked for, met or not; none for parts that are missing. Seconds count in full runs only."""
    found = [check for name, of in CHECKS.items() if name in parts for check in of(parts[name], not quick)]
    if "peer" in parts and "digits" in parts:
        found.append(at_least("digits-vit: times faster per image than TenSEAL's CKKSTensor", peer_ratio(parts), 10))
    return found


def _products(part: Part, timed: bool) -> Iterator[Check]:
    for one in results(part["sizes"]):
        name = f"{one['size']}×{one['size']} weights"
        if timed:
            yield at_least(f"{name}: times faster than multiply_plain and add", speedup(one), SPEEDUPS[one["size"]])
        difference = max(one["max_abs_difference"], one["max_abs_error"])
        yield at_most(f"{name}: largest difference, of both ways and from the clear", difference, DIFFERENCE)
        yield at_most(f"{name}: residues in which both ways differ", one["residues_that_differ"], 0)


def _digits(part: Part, timed: bool) -> Iterator[Check]:
    runs = results(part["runs"])
    yield from _right(runs, ERROR if timed else RANDOM_ERROR)
    if timed:
        by_workers = by_cores(runs)
        most = by_workers[max(by_workers)]
        yield at_most("digits-vit, 360 images: online s, all cores", median(most, online), 60)
        if len(by_workers) > 1:
            yield at_least("digits-vit: times faster on all cores than on one", processes_ratio(runs), 1.6)
        for workers, some in by_workers.items():
            yield _predicted(f"digits-vit, {workers} worker{'s' * (workers > 1)}", some)
    yield from _memory(name_of(runs), part["watched"])


def _dense(part: Part, timed: bool) -> Iterator[Check]:
    runs = results(part["runs"])
    chosen = sum(run["layout"] == "dense" for run in runs)
    yield at_least("one image: plans that choose the dense layout", chosen, len(runs))
    yield at_most("one image: largest error of scores", _worst(runs), 1e-4)
    if timed:
        yield at_most("one image: online s, median", median(runs, online), 12)
        yield _predicted("one image", runs)
    yield from _memory("one image", part["watched"])


def _oneshot(part: Part, timed: bool) -> Iterator[Check]:
    runs = results(part["runs"])
    yield from _right(runs, ERROR)
    yield at_least("digits-vit-oneshot: images that one batch holds", min(run["capacity"] for run in runs), 1024)
    yield at_most("digits-vit-oneshot: refresh rounds", max(run["counts"]["rounds"] for run in runs), 0)
    seconds = median(runs, lambda run: computed(run["seconds"]))
    yield at_most("digits-vit-oneshot: encrypt, online and decrypt s", seconds, 300)
    yield _predicted("digits-vit-oneshot", runs)
    yield from _memory("digits-vit-oneshot", part["watched"], bounded=False)


def _growth(part: Part, timed: bool) -> Iterator[Check]:
    for config in ckks_growth.MODELS if timed else ():
        found = part["models"].get(config.name, {})
        runs = [run for one in found.values() if (run := ckks_growth.measured(one))]
        yield at_least(f"{config.name}: layouts planned and run", len(runs), 1)
        yield at_most(f"{config.name}: largest error of scores", _worst(runs), RANDOM_ERROR)


CHECKS: Mapping[str, Callable[[Part, bool], Iterator[Check]]] = {
    "products": _products,
    "digits": _digits,
    "dense": _dense,
    "oneshot": _oneshot,
    "growth": _growth,
}


def _right(runs: Sequence[Part], error: float) -> Iterator[Check]:
    """Whether encrypted results are as good as clear ones."""
    name = name_of(runs)
    lost = max(run["accuracy"]["clear"] - run["accuracy"]["encrypted"] for run in runs)
    agreement = min(share for run in runs for share in run["agreement"].values())
    yield at_most(f"{name}: accuracy lost by encryption", lost, 0.005)
    yield at_least(f"{name}: agreement with the clear run, and the exact one", agreement, 0.99)
    yield at_most(f"{name}: largest error of scores", _worst(runs), error)


def _predicted(name: str, runs: Sequence[Part]) -> Check:
    off = abs(median(runs, lambda run: online(run) / run["predicted"]["online"] / pace(run)) - 1)
    return at_most(f"{name}: online s measured, off the predicted at the pace of then by", off, PREDICTION)


def _memory(name: str, run: Part, *, bounded: bool = True) -> Iterator[Check]:
    """Both roles and all processes together, against what is allowed and what the plan stated."""
    if bounded:
        yield at_most(f"{name}: peak memory of both roles, GB", run["peak_bytes"] / GB, PEAK)
    stated = run["result"]["predicted_peak_bytes"]
    yield at_most(f"{name}: peak memory, off the predicted by", abs(run["peak_bytes"] / stated - 1), MEMORY)


def _worst(runs: Sequence[Part]) -> float:
    return max((run["max_abs_error"]["encryption"] for run in runs), default=float("inf"))


# ---- figures ------------------------------------------------------------------------------------------------


def name_of(runs: Sequence[Part]) -> str:
    """The model that was run."""
    return Path(runs[0]["model"]).name


def results(runs: Sequence[Part]) -> list[Part]:
    """What processes of their own returned."""
    return [run["result"] for run in runs]


def online(run: Part) -> float:
    """Measured seconds of the online phase."""
    return float(run["seconds"]["online"])


def pace(run: Part) -> float:
    """How many times longer primitives took around a run than when its plan's costs were measured."""
    return float(statistics.mean(run.get("pace", [1.0])))


def median(runs: Sequence[Part], figure: Callable[[Part], float]) -> float:
    """The median of a figure over runs."""
    return statistics.median(map(figure, runs))


def by_cores(runs: Sequence[Part]) -> dict[int, list[Part]]:
    """Runs by their number of workers, fewest first."""
    return {n: [run for run in runs if run["workers"] == n] for n in sorted({run["workers"] for run in runs})}


def speedup(product: Part) -> float:
    """How many times faster one matrix product is than the loop, of which only some rows were run."""
    loop = statistics.median(product["loop_s"]) * product["size"] / product["loop_rows"]
    return float(loop / statistics.median(product["matrix_s"]))


def processes_ratio(runs: Sequence[Part]) -> float:
    """Online and refresh seconds with one worker over those with the most."""
    seconds = [median(some, _both) for some in by_cores(runs).values()]
    return seconds[0] / seconds[-1]


def _both(run: Part) -> float:
    return online(run) + float(run["seconds"].get("refresh", 0.0))


def cores_ratio(part: Part) -> float:
    """How many times faster the cores are than one, at best: as many runs by one process each as there are cores, one
    after another over all at once.
    """
    alone = next(iter(by_cores(results(part["runs"])).values()))
    together = [results(some) for some in part["at_once"]]
    slowest = statistics.median(max(map(_both, some)) for some in together)
    return len(together[0]) * median(alone, _both) / slowest


def peer_ratio(parts: Mapping[str, Part], *, deferred: bool = False) -> float:
    """Seconds of TenSEAL's own tensors over ours on all cores, encrypt … decrypt, for as many images."""
    theirs = parts["peer"]["result"]
    runs = list(by_cores(results(parts["digits"]["runs"])).values())[-1]
    assert theirs["images"] == runs[0]["samples"]
    seconds = (theirs["deferred"] if deferred else theirs)["scaled_seconds"]
    return float(seconds / median(runs, lambda run: computed(run["seconds"])))


# ---- tables -------------------------------------------------------------------------------------------------


def text(document: Mapping[str, Any]) -> str:
    """Markdown: the checks, the runs, the growth, and what the machine's primitives take."""
    parts = document["parts"]
    runs = [
        (label, some)
        for name, how in (("digits", "batch"), ("dense", "dense"), ("oneshot", "one round trip"))
        if name in parts
        for label, some in _labelled(how, results(parts[name]["runs"]))
    ]
    made = [_run_table(runs)] if runs else []
    made += [ckks_growth.table(parts["growth"])] if "growth" in parts else []
    made += [_primitive_table(document["primitives"])] if document["primitives"] else []
    summary = "<details>\n<summary>By phase, by size, and what SEAL's primitives took</summary>\n"
    return "\n".join([_check_table(document["checks"]), summary, *made, "</details>\n", _notes(document)])


def _labelled(how: str, runs: Sequence[Part]) -> Iterator[tuple[str, list[Part]]]:
    for workers, some in by_cores(runs).items():
        images = some[0]["samples"]
        yield f"{images} image{'s' * (images > 1)}, {how}, {workers} worker{'s' * (workers > 1)}", some


def _check_table(rows: Sequence[Check]) -> str:
    lines = ["| figure | measured | bar | |", "|---|---:|---:|---|"]
    for check in rows:
        value, bar = (f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}" for x in (check["value"], check["bar"]))
        lines.append(f"| {check['name']} | {value} | {bar} | {'✓' if check['ok'] else '✗'} |")
    return "\n".join(lines) + "\n"


def _run_table(columns: Sequence[tuple[str, Sequence[Part]]]) -> str:
    """Medians by phase, the plan's prediction in brackets, and bytes an image."""
    from secureattn.ledger import units

    lines = [f"| medians (predicted) | {' | '.join(name for name, _ in columns)} |", "|---|" + "---:|" * len(columns)]
    for phase in ("keys", "setup", "encrypt", "online", "refresh", "decrypt"):
        cells = []
        for _, runs in columns:
            spent = statistics.median(run["seconds"].get(phase, 0.0) for run in runs)
            predicted = statistics.median(run["predicted"].get(phase, 0.0) * pace(run) for run in runs)
            cells.append(f"{units.seconds(spent)} ({units.seconds(predicted)})" if spent or predicted else "--")
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    for name in ("query", "refresh", "result"):
        sent = [statistics.median(run["bytes"][name] / run["samples"] for run in runs) for _, runs in columns]
        lines.append(f"| {name} bytes an image | {' | '.join(units.data(round(n)) for n in sent)} |")
    worst = [f"{_worst(runs):.1e}" for _, runs in columns]
    lines.append(f"| largest error of scores | {' | '.join(worst)} |")
    return "\n".join(lines) + "\n"


def _primitive_table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    places = [(int(ring), int(level)) for ring, levels in found.items() for level in levels]
    names = dict.fromkeys(name for levels in found.values() for times in levels.values() for name in times)
    head = " | ".join(f"2^{ring.bit_length() - 1}, {level + 1}" for ring, level in places)
    lines = [f"| ms at N, primes | {head} |", "|---|" + "---:|" * len(places)]
    for name in names:
        cells = [found[str(ring)][str(level)].get(name) for ring, level in places]
        shown = " | ".join("--" if ms is None else f"{ms:.3g}" for ms in cells)
        lines.append(f"| {name.replace('_', ' ')} | {shown} |")
    return "\n".join(lines) + "\n"


def _notes(document: Mapping[str, Any]) -> str:
    """What a reader must know of how it was measured."""
    from secureattn.ledger.machine import in_words

    parts, machine = document["parts"], document["machine"]
    notes = [f"Measured on {in_words(machine)}; torch {machine['torch']}, tenseal {machine['tenseal']}."]
    commits = sorted({str(part["commit"]) for part in parts.values()})
    if len(commits) > 1:
        notes.insert(0, f"Provisional: not one run, parts come from different revisions ({'; '.join(commits)}).")
    if "digits" in parts:
        used = sorted({run["predicted_with"] for run in results(parts["digits"]["runs"])})
        timed = [run for name in ("digits", "dense", "oneshot") for run in paced(parts, name)]
        notes.append(f"Predicted with {'; '.join(used)}{_pace_note(timed)}.")
        loads = [load for run in parts["digits"]["runs"] for load in run["load"]]
        notes.append(f"The machine's load was {min(loads):.1f} to {max(loads):.1f} around the batch runs.")
        if parts["digits"]["at_once"]:
            notes.append(
                f"{len(parts['digits']['at_once'][0])} runs by one process each, which share nothing, were "
                f"{cores_ratio(parts['digits']):.2f} times faster at once than one after another: this machine's cores "
                "give no more."
            )
    if "products" in parts:
        notes.append("The loop encodes a weight, multiplies by it and adds, through the same bindings.")
    for one in results(parts["products"]["sizes"]) if "products" in parts else ():
        if one["loop_rows"] < one["size"]:
            notes.append(f"The {one['size']}×{one['size']} loop ran {one['loop_rows']} rows, and is scaled by rows.")
    notes += [_peer_note(parts)] if "peer" in parts and "digits" in parts else []
    if "dense" in parts:
        batch = parts["dense"]["batch_plan"]["predicted"]
        notes.append(f"One image in the batch layout is predicted to take {batch['online']:.1f} s online.")
    if "oneshot" in parts:
        capacity = parts["oneshot"]["runs"][0]["result"]["capacity"]
        notes.append(
            f"The one-round batch holds {capacity} images: 360 are real, the rest repeat one at the same cost."
        )
    return " ".join(notes) + "\n"


def paced(parts: Mapping[str, Part], name: str) -> list[Part]:
    """Runs of a part with the machine's pace around each."""
    return [run for run in results(parts[name]["runs"]) if "pace" in run] if name in parts else []


def _pace_note(runs: Sequence[Part]) -> str:
    if not runs:
        return ""
    paces = [run["pace"] for run in runs]
    plain = [online(run) / run["predicted"]["online"] for run in runs]
    return (
        f", times the machine's pace right before and after each run: primitives took {min(map(min, paces)):.2f} to "
        f"{max(map(max, paces)):.2f} times what they had taken when they were calibrated, minutes before; "
        f"without it, single runs took {min(plain):.2f} to {max(plain):.2f} times the online seconds planned"
    )


def _peer_note(parts: Mapping[str, Part]) -> str:
    theirs, ours = parts["peer"]["result"], results(parts["digits"]["runs"])[0]
    whole = theirs["validation"]
    checked = f"took {whole['ratio']:.2f} times what the same scaling gives" if whole else "was not made to check this"
    return (
        f"TenSEAL's own CKKSTensor would take {theirs['scaled_seconds']:,.0f} s for the {theirs['images']} images "
        f"({peer_ratio(parts):.0f} times as long), with sums relinearised and rescaled once by hand "
        f"{theirs['deferred']['scaled_seconds']:,.0f} s ({peer_ratio(parts, deferred=True):.0f} times). "
        f"Its ciphertexts would hold {theirs['slots']:,} images at about the same cost, ours hold {ours['capacity']}. "
        f"A whole run on fewer tokens {checked}."
    )
