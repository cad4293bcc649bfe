"""MiniLM under CKKS at its real width: planned in full, its first layer run on real sentences, every region beside a
clear run; and, where asked for, all of it.

Queries of unequal lengths share ciphertexts in the batch layout; the key owner refreshes masked values.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from checking import Check, Part, at_least, at_most
from ckks_runs import described, held_bytes
from measuring import Setting, tell

from secureattn.ledger import units

MODEL, PROTOCOL, TOKENS = "minilm", "accurate-ckks", 16
COUNTED = ("ct_products", "pt_products", "rotations", "relinearisations", "rescales", "rounds", "bytes_sent")
MEMORY_BYTES = 16 * 2**30
COSINE, WORST, NEAREST, PLANNED_S = 0.9995, 0.999, 0.99, 7200.0


# ---- measuring ----------------------------------------------------------------------------------------------


def ckks_plan(setting: Setting) -> dict[str, Any]:
    """The whole model, planned for the shipped sentences of up to 16 tokens, in one batch."""
    model, batch = _sentences()
    return {"lengths": list(batch.lengths or ()), **of_plan(_planned(model, batch))}


def ckks_layer(setting: Setting) -> dict[str, Any]:
    """The first layer, whose functions reach furthest, on what these sentences' tokens are embedded as."""
    from secureattn import load_model

    model, batch = _sentences()
    first = load_model(cut(model, 1, setting.folder / "first-layer"))
    return _run(first, batch.part(range(8)) if setting.quick else batch)


def ckks(setting: Setting) -> dict[str, Any]:
    """The whole model, run."""
    return _run(*_sentences())


def cut(model: Any, layers: int, folder: Path) -> Path:
    """A folder with a model's first layers, whose output is the mean over tokens."""
    from secureattn.nn import parameters

    config = replace(model.config, name=f"{model.config.name}-{layers}", layers=layers, unit=False)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(config.to_json())
    (folder / "ranges.json").write_text(model.ranges.to_json())
    kept = {name: model.weights[name].numpy() for name in parameters.shapes(config)}
    parameters.save(folder / "model.safetensors", kept)
    return folder


def _sentences() -> tuple[Any, Any]:
    from secureattn import load_model

    model = load_model(MODEL)
    texts, _ = model.samples()
    return model, model.batch([text for text in texts if len(model.tokenizer.encode([text])[0]) <= TOKENS])


def _planned(model: Any, batch: Any) -> Any:
    from secureattn import load_protocol
    from secureattn.plan import make_plan

    return make_plan(
        model,
        load_protocol(PROTOCOL),
        samples=len(batch),
        shape=batch.shape,
        progress=lambda text: tell(f"ckks: {text}"),
        memory_bytes=MEMORY_BYTES,
    )


def _run(model: Any, batch: Any) -> dict[str, Any]:
    """One run with the error of every region in bits, beside its plan."""
    from secureattn.runs import agreement, clear_run, cosines, execute

    plan = _planned(model, batch)
    exact, clear = clear_run(plan, batch, exact=True).outputs, clear_run(plan, batch)
    with peak() as most:
        run = execute(plan, batch, errors=True, progress=_telling())
    return {
        "lengths": list(batch.lengths or ()),
        "plan": of_plan(plan),
        "cosines": cosines(run.outputs, exact).tolist(),
        "clear_cosines": cosines(clear.outputs, exact).tolist(),
        "nearest_agreement": agreement(run.outputs, exact, vectors=True),
        "encryption_max_abs_error": float(np.abs(run.outputs - clear.outputs).max()),
        "escapes": dict(clear.escapes),
        "seconds": dict(run.seconds()),
        "peak_bytes": most[0],
        "counted": {name: run.total(name) for name in COUNTED},
        "regions": list(_regions(run.parties[0].events)),
    }


def of_plan(plan: Any) -> dict[str, Any]:
    """What was chosen and predicted, and what it counts."""
    planned, counts = described(plan), {name: plan.ckks.recorder.total(name) for name in COUNTED}
    more = {"depth": plan.ckks.depth, "blocks": plan.ckks.blocks, "hiding_bits": plan.ckks.hiding_bits}
    return {**planned, **more, "counted": counts}


def _regions(events: Any) -> Iterator[dict[str, Any]]:
    """Seconds by phase, counts and the least error in bits, by region."""
    for region in dict.fromkeys(event.region for event in events):
        here = [event for event in events if event.region == region and event.op != "inspect"]
        bits = [event.error_bits for event in here if event.error_bits is not None]
        seconds = {phase: sum(e.seconds_self for e in here if e.phase == phase) for phase in ("online", "refresh")}
        counts = {name: sum(e.counts.get(name, 0) for e in here) for name in COUNTED}
        yield {"region": region, **seconds, **counts, "error_bits": min(bits, default=None)}


@contextmanager
def peak(every_s: float = 5.0) -> Iterator[list[int]]:
    """Watch the memory of this process and its children; the most there was, in bytes."""
    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            most[0] = max(most[0], held_bytes(os.getpid(), itself=True))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield most
    finally:
        ended.set()
        watching.join()


def _telling() -> Any:
    told = {""}

    def progress(text: str, done: int, of: int) -> None:
        if text not in told:
            told.add(text)
            tell(f"ckks: {text} ({done} of {of})")

    return progress


# ---- checks and tables --------------------------------------------------------------------------------------


def plan_checks(part: Part, full: bool) -> Iterator[Check]:
    """The whole model would take less than two hours."""
    name = f"minilm under CKKS, {len(part['lengths'])} sentences: planned s"
    yield at_most(name, part["predicted"]["total"], PLANNED_S)


def run_checks(part: Part, full: bool) -> Iterator[Check]:
    """A run keeps vectors, and counts what was planned."""
    layers = part["plan"]["shape"]["layers"]
    name = f"minilm under CKKS, {layers} layer{'s' * (layers > 1)}, {len(part['lengths'])} sentences"
    yield at_least(f"{name}: mean cosine to plaintext", float(np.mean(part["cosines"])), COSINE)
    yield at_least(f"{name}: worst cosine to plaintext", min(part["cosines"]), WORST)
    yield at_least(f"{name}: same nearest neighbour", part["nearest_agreement"], NEAREST)
    off = max(abs(part["counted"][key] - part["plan"]["counted"][key]) for key in COUNTED)
    yield at_most(f"{name}: counted operations and bytes, off the planned by", off, 0)


def plan_table(part: Part) -> list[str]:
    """What was chosen for the whole model, and what it is predicted to take."""
    lengths, counted = part["lengths"], part["counted"]
    return [
        f"MiniLM under CKKS ({PROTOCOL}), planned in full for {len(lengths)} sentences of {min(lengths)} to "
        f"{max(lengths)} tokens, of which one batch holds {part['capacity']}: ring degree {part['ring_degree']}, "
        f"{len(part['prime_bits']) - 2} levels, depth {part['depth']}, {counted['rounds']} refreshes, "
        f"{units.data(counted['bytes_sent'])} in all, hidden features in {part['blocks']} parts; "
        f"{units.seconds(part['predicted']['total'])} on {part['workers']} cores, "
        f"{units.data(part['predicted_peak_bytes'])}.",
        "",
    ]


def run_table(part: Part) -> list[str]:
    """What a run took and how far it is from plaintext, and every region with its error."""
    plan, seconds, layers = part["plan"], part["seconds"], part["plan"]["shape"]["layers"]
    kinds: dict[str, list[Any]] = {}
    for row in part["regions"]:
        kinds.setdefault(re.sub(r"^layer\.\d+", "layers", row["region"]), []).append(row)
    found = [
        f"{'Its first layer' if layers == 1 else f'Its {layers} layers'} run on them: cosine to plaintext "
        f"{np.mean(part['cosines']):.6f} in the mean, {min(part['cosines']):.6f} at worst, the same nearest neighbour "
        f"for {part['nearest_agreement']:.1%}; encryption changes no number of a vector by more than "
        f"{part['encryption_max_abs_error']:.1e}. Seconds {units.seconds(seconds['total'])}, planned "
        f"{units.seconds(plan['predicted']['total'])}; memory {units.data(part['peak_bytes'])}, planned "
        f"{units.data(plan['predicted_peak_bytes'])}. By region, layers taken together, the error of the worst:",
        "",
        "| region | online | refresh | ct×ct | rotations | relin. | rounds | sent | error, bits |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    return [*found, *(_line(region, rows) for region, rows in kinds.items()), ""]


def _line(region: str, rows: list[Any]) -> str:
    sums = {key: sum(row[key] for row in rows) for key in (*COUNTED, "online", "refresh")}
    bits = min((row["error_bits"] for row in rows if row["error_bits"] is not None), default=None)
    counts = " | ".join(f"{sums[key]:,}" for key in ("ct_products", "rotations", "relinearisations", "rounds"))
    spent = f"{units.seconds(sums['online'])} | {units.seconds(sums['refresh'])}"
    error = units.UNKNOWN if bits is None else f"{bits:.1f}"
    return f"| {region or '(top)'} | {spent} | {counts} | {units.data(sums['bytes_sent'])} | {error} |"
