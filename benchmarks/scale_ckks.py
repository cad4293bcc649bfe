"""Configs alone, planned under CKKS: batches of queries in one go, or why no plan serves them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from checking import Check, Part, at_most
from measuring import Setting, tell
from text_ckks import of_plan

from secureattn.ledger import units

# What is planned: model, protocol, tokens, queries at once.
PLANS: Mapping[str, tuple[str, str, int, int]] = {
    "BERT-base, 128 tokens": ("bert-base", "accurate-ckks", 128, 64),
    "Pythia-70M with Power-Softmax, 128 in, 1 out": ("pythia-70m-power", "power-softmax-ckks", 128, 64),
    "GPT-2 small, 32 in, 1 out": ("gpt2", "accurate-ckks", 32, 256),
    "LLaMA-7B, 8 in, 1 out": ("llama-7b", "accurate-ckks", 8, 1024),
}


def homomorphic(setting: Setting) -> dict[str, Any]:
    """Plans of one batch, as large as ciphertexts hold, on two cores; in small only what is refused soon."""
    from secureattn import load_model, load_protocol
    from secureattn.errors import SecureAttnError
    from secureattn.nn.batch import Shape
    from secureattn.plan import make_plan

    found: dict[str, Any] = {}
    for workload, (name, protocol, tokens, queries) in list(PLANS.items())[2 * setting.quick :]:
        tell(f"homomorphic: {workload}, {protocol}")
        start = time.perf_counter()
        try:
            plan = make_plan(
                load_model(name),
                load_protocol(protocol),
                samples=queries,
                shape=Shape(queries, tokens),
                workers=2,
                progress=lambda text: tell(f"homomorphic: {text}"),
            )
            made = of_plan(plan)
        except SecureAttnError as error:
            made = {"refused": str(error).split("; ")[0]}
        seconds = time.perf_counter() - start
        found[workload] = {"protocol": protocol, "queries": queries, "plan_s": seconds, **made}
    return {"workloads": found}


def checks(part: Part, full: bool) -> Iterator[Check]:
    """Encoders are planned, and models with Power-Softmax."""
    planned = ("BERT", "Pythia")
    named = [w for w, one in part["workloads"].items() if "refused" in one and w.startswith(planned)]
    yield at_most("workloads without a plan under CKKS", len(named), 0)


def rows(part: Part, workload: str) -> Iterator[str]:
    """A workload's line for the table of figures."""
    one = part["workloads"].get(workload)
    if one is None or "refused" in one:
        return
    whole, queries, counted = one["predicted"]["total"], one["queries"], one["counted"]
    cells = [
        workload,
        f"ours, {one['protocol']}, {queries} at once",
        "predicted",
        f"{units.seconds(whole)}, {units.seconds(whole / queries)} each",
        "--",
        f"{counted['rounds']:,}",
        units.data(counted["bytes_sent"]),
        "--",
        units.data(one["predicted_peak_bytes"]),
        "two cores, the key owner's refreshes on them too; messages left out",
    ]
    yield f"| {' | '.join(cells)} |"


def words(part: Part) -> list[str]:
    """What no protocol under CKKS serves."""
    refused = [f"{name.split(',')[0]}: {one['refused']}" for name, one in part["workloads"].items() if "refused" in one]
    return [f"Not planned under CKKS: {'; '.join(refused)}.", ""] if refused else []
