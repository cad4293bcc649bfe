"""What the comparison with peers makes of its raw samples: the checks and the tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import measuring

Part = Mapping[str, Any]
Check = dict[str, Any]
PEER_LEADS = 1.0
"""Every figure is the peer's over ours: below 1 the peer does better."""

FIGURES = {
    "max_abs_error": "largest error",
    "total_s": "seconds in all",
    "online_s": "seconds online",
    "bytes_sent": "bytes that a party sends",
    "bytes_all": "bytes of all, dealer included",
    "rounds": "rounds",
    "peak_bytes": "peak memory",
}
"""What is compared, and how checks and tables call it."""

BLOCKS = (
    "One encoder block with private random weights, two parties (SPU ABY3: three) as processes of this machine over "
    "loopback, SecureAttn with a dealer besides; medians of runs in turn, each after one to warm up. Every cell: the "
    "peer, SecureAttn, the first over the second, bold where the peer does better. Errors are the largest of the "
    "block's outputs against float64 of what each claims to compute: true functions for SecureAttn, GELU in its tanh "
    "form for CrypTen and SPU, MPCFormer's own for MPCFormer and for SecureAttn beside it. Seconds in all hold what is "
    "dealt: CrypTen's party 0 makes triples while it runs, which its seconds online leave out; SPU does not tell them "
    "apart. Bytes are those that each counts itself; in CrypTen and SPU SEMI2K the first party knows all triples, and "
    "sends little or nothing for them, where SecureAttn's dealer is a process of its own. SPU counts messages that a "
    "party sends, which are no fewer than its rounds. Memory is that of the largest process."
)
LAYERS = (
    "Under CKKS, digits-vit cut to its first tokens and FFN units, {images} images at once, keys in the seconds in "
    "all: TenSEAL's own CKKSTensor layers (mm, polyval, products and sums) with the same folded weights and "
    "polynomials, threads on every core, against SecureAttn in the layout that it plans. The shapes are smaller than "
    "those on shares because TenSEAL's layers take a ciphertext a value. Its refreshes are unmasked and stay within "
    "one process, which favours it. Errors are the largest of a score against the polynomials in float64. Bytes are "
    "both directions together, rounds the exchanges with the key owner, memory that of all processes."
)
VECTORS = (
    "The same encoders on a single image, by TenSEAL's own CKKSVector layers (mm, on every core; dot, sum, square, "
    "polyval and products, on one as TenSEAL has them), a token's features in one ciphertext, each head from its own "
    "columns of the weights; all else as above. Keys, in the seconds in all and in the memory, are all that TenSEAL "
    "makes for rotations, and those of SecureAttn's plan. What TenSEAL 0.3.18 gets wrong is gone round: biases are "
    "added encrypted, and a value comes back from a refresh in as many copies as it is to multiply features."
)


# ---- checks -------------------------------------------------------------------------------------------------


def checks(parts: Mapping[str, Part]) -> list[Check]:
    """For every peer and shape: whether it is right, and each figure that both sides count; none for a peer that is
    not installed.
    """
    return [
        check
        for part in parts.values()
        for case in part["cases"]
        for name, peer in case["peers"].items()
        for check in _of_peer(f"{name}, {case['label']}", peer, case["ours"][peer["against"]])
    ]


def _of_peer(name: str, peer: Part, ours: Sequence[Part]) -> Iterator[Check]:
    if peer["status"] == "failed":
        yield {"name": f"{name}: runs that failed", "value": 1, "bar": 0, "ok": False}
        return
    if peer["status"] == "not installed":
        return
    error, most = off(peer), peer["most_error"]
    yield {"name": f"{name}: its error on its own function", "value": error, "bar": most, "ok": error <= most}
    for figure, called in FIGURES.items() if peer["status"] == "measured" else ():
        value = ratio(figure, peer["turns"], ours)
        if value is not None:
            ok = value >= PEER_LEADS
            yield {"name": f"{name}: {called}, its over ours", "value": value, "bar": PEER_LEADS, "ok": ok}


def off(peer: Part) -> float:
    """A peer's largest error in any run, wrong ones among them."""
    checked = [peer["checked"]] if "checked" in peer else []
    return float(max(run["max_abs_error"] for run in (*checked, *peer["turns"], *peer["wrong"])))


def ratio(figure: str, peers: Sequence[Part], ours: Sequence[Part]) -> float | None:
    """The peer's over ours: the largest errors, else the median turn by turn; None where one does not count it."""
    pairs = [(a[figure], b[figure]) for a, b in zip(peers, ours, strict=True)]
    if any(None in pair for pair in pairs):
        return None
    if figure == "max_abs_error":
        return float(max(a for a, _ in pairs) / max(b for _, b in pairs))
    return float(statistics.median(a / b for a, b in pairs))


# ---- tables -------------------------------------------------------------------------------------------------


def text(document: Mapping[str, Any]) -> str:
    """Markdown, for README."""
    parts = document["parts"]
    found = [f"{head}\n\n{_table(parts[name])}" for name, head in _heads(parts).items()]
    notes = [f"Measured on {measuring.measured_on(document)}; {_versions(parts)}.", _conditions(parts)]
    return "\n\n".join([*found, " ".join(filter(None, notes))]) + "\n"


def _heads(parts: Mapping[str, Part]) -> dict[str, str]:
    heads = {"blocks": BLOCKS, "layers": LAYERS, "vectors": VECTORS}
    return {name: head.format_map(parts[name]) for name, head in heads.items() if name in parts}


def _table(part: Part) -> str:
    rows = [f"| shape | peer | beside | {' | '.join(FIGURES.values())} |", f"|---|---|---|{'---:|' * len(FIGURES)}"]
    for case in part["cases"]:
        for name, peer in case["peers"].items():
            cells = _cells(peer, case["ours"][peer["against"]])
            rows.append(f"| {case['label']} | {name} | {peer['against']} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cells(peer: Part, ours: Sequence[Part]) -> list[str]:
    if peer["status"] != "measured":
        said = f"{peer['status']}: {peer['reason']}".replace("|", "\\|")
        return [said, *["--"] * (len(FIGURES) - 1)]
    first, *others = (_cell(figure, peer["turns"], ours) for figure in FIGURES)
    if peer["wrong"]:
        runs = len(peer["turns"]) + len(peer["wrong"])
        first += f"; {len(peer['wrong'])} of {runs} runs wrong: {peer['wrong'][0]['reason']}"
    return [first, *others]


def _cell(figure: str, peers: Sequence[Part], ours: Sequence[Part]) -> str:
    """The peer's figure, ours, and their ratio; ``--`` for what one does not count."""
    shown = [_shown(figure, [run[figure] for run in runs]) for runs in (peers, ours)]
    value = ratio(figure, peers, ours)
    if value is None:
        return " · ".join(shown) if shown != ["--", "--"] else "--"
    times = f"{value:.2f}" if value < 10 else f"{value:.0f}"
    return " · ".join([*shown, f"**{times}**" if value < PEER_LEADS else times])


def _shown(figure: str, values: Sequence[Any]) -> str:
    from secureattn.ledger import units

    if None in values:
        return units.UNKNOWN
    if figure == "max_abs_error":
        return f"{max(values):.1e}"
    middle = statistics.median(values)
    if figure.endswith("_s"):
        return units.seconds(middle)
    return units.number(int(middle)) if figure == "rounds" else units.data(int(middle))


def _versions(parts: Mapping[str, Part]) -> str:
    """Of every package that a peer ran with."""
    found: dict[str, str] = {}
    for part in parts.values():
        for case in part["cases"]:
            for peer in case["peers"].values():
                found |= peer.get("versions", {})
    return ", ".join(f"{name} {version}" for name, version in sorted(found.items())) or "no peer answered"


def _conditions(parts: Mapping[str, Part]) -> str:
    """What the reader should know of the run: how often everything ran, and how busy the machine was."""
    loads = [load for part in parts.values() for case in part["cases"] for load in case["load"]]
    return f"{_turns(parts)}. The machine's load was {min(loads):.1f} to {max(loads):.1f}."


def _turns(parts: Mapping[str, Part]) -> str:
    """How many samples medians are of."""
    counts = {
        name: {len(runs) for case in part["cases"] for runs in case["ours"].values()} for name, part in parts.items()
    }
    called = {"blocks": "on shares", "layers": "under CKKS", "vectors": "on one image"}
    said = [f"{' or '.join(map(str, sorted(found)))} {called[name]}" for name, found in counts.items()]
    return f"Turns: {', '.join(said)}"
