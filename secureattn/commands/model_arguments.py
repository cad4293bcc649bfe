"""Arguments of the commands that plan or run a model under a protocol; light to import, as every command line is read
through it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from secureattn.commands.arguments import positive, weight


def add_plan(plan: argparse.ArgumentParser) -> None:
    """The arguments of ``plan``."""
    plan.set_defaults(refuse=plan.error)
    plan.add_argument(
        "--calibrate", action="store_true", help="measure this machine's CKKS costs first (alone: only measure)"
    )
    plan.add_argument("--batch", type=positive, default=1, metavar="N", help="queries to plan for (default 1)")
    plan.add_argument("--tokens", type=positive, metavar="S", help="tokens of a text (default: the model's most)")
    plan.add_argument("--new", type=positive, metavar="N", help="tokens to make behind such texts (secret shares)")
    networks(plan)
    plan.add_argument(
        "--search",
        action="store_true",
        help="search realisations and degrees for the least levels or rounds",
    )
    plan.add_argument("--loss", type=float, metavar="L", help="accuracy a search may lose (default 0)")
    plan.add_argument("--budget", type=positive, metavar="N", help="levels or rounds a search may spend, instead")
    plan.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the protocol that a search found")
    plan.add_argument("--save", type=Path, metavar="FILE", help="keep the plan, for keygen, evaluate and serve (CKKS)")


def add_compare(compare: argparse.ArgumentParser) -> None:
    """The arguments of ``compare``."""
    samples(compare)
    device(compare)


def add_profile(profile: argparse.ArgumentParser) -> None:
    """The arguments of ``profile``."""
    samples(profile)
    device(profile)
    profile.add_argument("--error", action="store_true", help="error of operations, in bits; NOT private (CKKS)")
    profile.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace, to open in Perfetto")
    profile.add_argument("--plot", type=Path, metavar="FILE", help="write a stacked-bar plot (.png or .svg)")
    profile.add_argument("--top", type=positive, default=20, metavar="N", help="operations to list (default 20)")
    networks(profile)


def add_infer(infer: argparse.ArgumentParser) -> None:
    """The arguments of ``infer``."""
    device(infer)
    infer.add_argument(
        "input",
        type=Path,
        metavar="INPUT",
        help="numbers [N, tokens, features] or numbers of tokens [N, tokens] (.npy, .json, .safetensors), or texts, "
        "one a line (.txt)",
    )
    infer.add_argument("-o", "--output", type=Path, required=True, metavar="OUTPUT", help=".npy or .json")


def add_generation(generate: argparse.ArgumentParser) -> None:
    """The arguments of ``generate``."""
    generate.add_argument("prompt", nargs="?", metavar="PROMPT", help="text to go on from")
    generate.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="prompts of as many tokens each: texts, one a line (.txt), or numbers of tokens [N, tokens] "
        "(.npy, .json, .safetensors)",
    )
    generate.add_argument("-n", "--new", type=positive, default=20, metavar="N", help="tokens to make (default 20)")
    generate.add_argument("--top-k", type=positive, default=1, metavar="K", help="draw from the K best (1: the best)")
    generate.add_argument("--temperature", type=weight, default=1.0, metavar="T", help="of the draw (default 1)")
    generate.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default 0)")
    generate.add_argument("--compare", action="store_true", help="with the plaintext model's greedy tokens too")


def device(command: argparse.ArgumentParser) -> None:
    """``--device``."""
    text = "where shares are computed with (secret shares; default cpu)"
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=text)


def networks(command: argparse.ArgumentParser) -> None:
    """``--network``."""
    text = "network to model, or a TOML file; may be repeated (default lan and wan)"
    command.add_argument("--network", action="append", metavar="lan|wan|puma|FILE", help=text)


def samples(command: argparse.ArgumentParser) -> None:
    """``--samples``."""
    command.add_argument("--samples", type=positive, metavar="N", help="held-out samples to run (default all)")
