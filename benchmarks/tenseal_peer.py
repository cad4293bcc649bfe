"""The peer of the CKKS benchmark: digits-vit on TenSEAL's own ``CKKSTensor``, measured by operation and scaled.

    python benchmarks/tenseal_peer.py [--quick] [--json FILE]

One ciphertext per (token, feature), the images of a batch in its slots; ring, primes, folded weights and polynomials
are those of SecureAttn's plan. The program is written once: over ``Clear`` it shows what each operation gets and how
often it runs in the whole model, over ``CKKSTensor`` samples of each are timed and compared with the clear values.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tenseal as ts
from rich.console import Console
from rich.table import Table
from tenseal_program import FEW, THREADS, Array, Clear, Kind, Survey, Use, program

from secureattn import load_model, load_protocol
from secureattn.backends.ckks.parameters import CkksParameters, chain
from secureattn.nn.fold import Folded, fold

IMAGES = 360
RING_DEGREE, LEVELS = 1 << 14, 8
HOW = (
    "Every operation of the whole model is run on a few tokens or elements of its real arguments, encrypted at the "
    "level they have there, with all {images} images in the slots, and compared with the clear values. Its median "
    "seconds are divided by the sample's units (products of an mm, terms of a sum, ciphertexts otherwise) and "
    "multiplied by the units in the model, counted by running the program in the clear; scaled_seconds is the sum, "
    "with auto_relin, auto_rescale and auto_mod_switch on. 'deferred' switches the first two off in sums of products "
    "wherever the modulus has room (level 2 and above), then relinearises and rescales each sum once, by a product "
    "with 2^-scale_bits. Where levels run out the key owner decrypts and encrypts anew, unmasked and without "
    "serialising, which favours the peer; the points lie where few ciphertexts are and products then run on few "
    "primes. Keys are not counted. As many as {slots} images would take about as long."
)


class Peer:
    """TenSEAL with its default threads and the plan's parameters; both parties, as the refresh needs the key."""

    def __init__(self, parameters: CkksParameters) -> None:
        self.parameters = parameters
        bits = list(parameters.prime_bits)
        self.context = ts.context(ts.SCHEME_TYPE.CKKS, parameters.ring_degree, coeff_mod_bit_sizes=bits)
        self.context.global_scale = 2.0**parameters.scale_bits

    def encrypt(self, values: Array, level: int | None = None) -> Any:
        """``[B, …]`` → one ciphertext per element but the first axis, at the top or at a level."""
        x = ts.ckks_tensor(self.context, ts.plain_tensor(values), batch=True)
        spent = 0 if level is None else self.parameters.levels - level
        if not spent:
            return x
        zero = ts.ckks_tensor(self.context, ts.plain_tensor(np.zeros((len(values), 1))), batch=True)
        for _ in range(spent):
            zero = zero * 1.0
        return x + zero.reshape([1] * len(x.shape)).broadcast(x.shape)  # auto_mod_switch follows the lower operand

    def decrypt(self, x: Any) -> Array:
        """The values ``[B, …]``."""
        return np.array(x.decrypt().tolist())

    def run(self, use: Use, inputs: Sequence[Any], *, deferred: bool) -> Any:
        """One operation; ``deferred``: one relinearisation and one rescaling a sum, where the use allows it.

        Sums of products at scale Δ² are multiplied by 2^-log2(Δ), which encodes to the integer 1, so the rescaling of
        that product takes them to Δ, the scale that TenSEAL then writes.
        """
        if not (deferred and self.deferrable(use)):
            return use.kind.apply(*inputs)
        self.context.auto_relin = self.context.auto_rescale = False
        try:
            sums = use.kind.apply(*inputs)
        finally:
            self.context.auto_relin = self.context.auto_rescale = True
        return sums * 2.0**-self.parameters.scale_bits

    def deferrable(self, use: Use) -> bool:
        """Sums of products at a level whose modulus holds three factors of the scale."""
        bits = sum(self.parameters.prime_bits[: use.output.level + 2])
        return use.kind.deferrable and bits > 3 * self.parameters.scale_bits

    def sample(self, name: str, use: Use) -> dict[str, Any]:
        """A row of the measurement: seconds and the largest error of an operation on part of its arguments."""
        clear = use.kind.sample(use.inputs)
        expected = use.kind.apply(*clear)
        inputs = [self.encrypt(x.array, x.level) if isinstance(x, Clear) else x for x in clear]
        row = {"name": name, "phase": use.kind.phase, "level": inputs_level(clear), "count_in_model": use.units}
        row["units_in_sample"] = use.kind.units(clear, expected)
        for way in ("", "deferred_")[: 1 + self.deferrable(use)]:
            seconds, output = _timed(functools.partial(self.run, use, inputs, deferred=bool(way)))
            row[f"{way}seconds_samples"] = [seconds]
            row[f"{way}max_abs_error"] = float(np.abs(self.decrypt(output) - expected.array).max())
        return row

    def ends(self, survey: Survey) -> list[dict[str, Any]]:
        """Rows for encrypting the queries and decrypting the scores."""
        values = survey.output.array[:, :, :FEW]
        low = self.encrypt(values, survey.output.level)
        calls = {
            "encrypt": (self.parameters.levels, survey.encryptions, lambda: self.encrypt(values)),
            "decrypt": (survey.output.level, survey.output.array[0].size, lambda: self.decrypt(low)),
        }
        rows = []
        for name, (level, units, call) in calls.items():
            seconds, result = _timed(call)
            decrypted = result if isinstance(result, np.ndarray) else self.decrypt(result)
            row = {"name": name, "phase": name, "level": level, "count_in_model": units}
            row |= {"units_in_sample": values[0].size, "seconds_samples": [seconds]}
            rows.append(row | {"max_abs_error": float(np.abs(decrypted - values).max())})
        return rows

    def whole(self, folded: Folded, inputs: Array, survey: Survey, *, deferred: bool) -> tuple[float, float]:
        """Seconds of a whole run, encryption and decryption included, and its largest error."""

        def step(name: str, kind: Kind, *arguments: Any) -> Any:
            return self.run(survey.uses[name], arguments, deferred=deferred)

        start = time.perf_counter()
        scores = self.decrypt(program(step, folded, self.encrypt(inputs)))
        return time.perf_counter() - start, float(np.abs(scores - survey.output.array).max())


def inputs_level(inputs: Sequence[Any]) -> int:
    """The level at which an operation runs."""
    return min(x.level for x in inputs if isinstance(x, Clear))


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def merged(rounds: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows with the samples of all rounds and their largest errors."""
    rows = []
    for same in zip(*rounds, strict=True):
        row = dict(same[0])
        for key in row:
            if key.endswith("seconds_samples"):
                row[key] = [seconds for each in same for seconds in each[key]]
            elif key.endswith("max_abs_error"):
                row[key] = max(each[key] for each in same)
        rows.append(row)
    return rows


def scaled(rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int], *, deferred: bool) -> dict[str, float]:
    """Seconds by phase of so many units of each operation."""
    seconds: dict[str, float] = {}
    for row in rows:
        samples = (deferred and row.get("deferred_seconds_samples")) or row["seconds_samples"]
        spent = statistics.median(samples) / row["units_in_sample"] * counts[row["name"]]
        seconds[row["phase"]] = seconds.get(row["phase"], 0.0) + spent
    return seconds


def counts(survey: Survey) -> dict[str, int]:
    """Units of every operation in one run."""
    ends = {"encrypt": survey.encryptions, "decrypt": survey.output.array[0].size}
    return {name: use.units for name, use in survey.uses.items()} | ends


def folded_model() -> tuple[Folded, Array]:
    """digits-vit with the polynomials of the protocol that SecureAttn runs it under, and its held-out images."""
    model = load_model("digits-vit")
    realisations = load_protocol("power-softmax-ckks").realisations(model)
    return fold(model.config, model.weights, realisations), model.samples(IMAGES)[0]


def measure(quick: bool) -> dict[str, Any]:
    """Raw samples of every operation, the seconds they scale to, and how far a run on fewer tokens agrees."""
    load = [os.getloadavg()[0]]
    folded, inputs = folded_model()
    parameters = chain(RING_DEGREE, LEVELS)
    survey, peer = Survey(folded, inputs, parameters.levels), Peer(parameters)
    # In rounds, not one operation after another, so that what else the machine does falls on all alike.
    rounds = [
        peer.ends(survey) + [peer.sample(name, use) for name, use in survey.uses.items()]
        for _ in range(1 if quick else 3)
    ]
    rows = merged(rounds)
    phases = {way: scaled(rows, counts(survey), deferred=way == "deferred") for way in ("auto", "deferred")}
    validation = None if quick else validate(peer, folded, inputs, rows)
    return {
        "quick": quick,
        "images": IMAGES,
        "slots": parameters.slots,
        "parameters": {"ring_degree": parameters.ring_degree, "prime_bits": list(parameters.prime_bits)},
        "threads": THREADS,
        "load": [*load, os.getloadavg()[0]],
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "operations": rows,
        "scaled_seconds": sum(phases["auto"].values()),
        "scaled_seconds_by_phase": phases["auto"],
        "deferred": {"scaled_seconds": sum(phases["deferred"].values()), "scaled_seconds_by_phase": phases["deferred"]},
        "validation": validation,
        "how": HOW.format(images=IMAGES, slots=parameters.slots),
    }


def validate(
    peer: Peer, folded: Folded, inputs: Array, rows: Sequence[Mapping[str, Any]], tokens: int = 2
) -> dict[str, Any]:
    """The whole program on the first tokens of each image, measured and as the samples predict it."""
    few = np.ascontiguousarray(inputs[:, :tokens])
    survey = Survey(folded, few, peer.parameters.levels)
    found: dict[str, Any] = {
        "instance": f"the whole program on {tokens} of {inputs.shape[1]} tokens, {len(few)} images"
    }
    for way in ("auto", "deferred"):
        seconds, error = peer.whole(folded, few, survey, deferred=way == "deferred")
        predicted = sum(scaled(rows, counts(survey), deferred=way == "deferred").values())
        figures = {
            "measured_s": seconds,
            "predicted_s": predicted,
            "ratio": seconds / predicted,
            "max_abs_error": error,
        }
        found |= figures if way == "auto" else {way: figures}
    return found


def table(result: Mapping[str, Any]) -> Table:
    """Operations in the order in which they run."""
    made = Table(title=f"digits-vit on TenSEAL's CKKSTensor, {result['images']} images, {result['threads']} threads")
    made.add_column("operation", no_wrap=True)
    for column in ("level", "units", "ms a unit", "deferred", "seconds", "max error"):
        made.add_column(column, justify="right")
    for row in result["operations"]:
        unit = statistics.median(row["seconds_samples"]) / row["units_in_sample"]
        low = row.get("deferred_seconds_samples")
        cells = (row["level"], f"{row['count_in_model']:,}", f"{1e3 * unit:.3g}")
        deferred = f"{1e3 * statistics.median(low) / row['units_in_sample']:.3g}" if low else "--"
        made.add_row(
            row["name"],
            *map(str, cells),
            deferred,
            f"{unit * row['count_in_model']:.3g}",
            f"{row['max_abs_error']:.1e}",
        )
    made.add_section()
    made.add_row(
        "total", "", "", "", f"{result['deferred']['scaled_seconds']:.0f} s", f"{result['scaled_seconds']:.0f}", ""
    )
    return made


def main() -> int:
    """Measure, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one sample an operation, no whole run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    options = parser.parse_args()
    result = measure(options.quick)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    console = Console()
    console.print(table(result))
    if result["validation"]:
        console.print_json(data=result["validation"])
    console.print(result["how"], soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
