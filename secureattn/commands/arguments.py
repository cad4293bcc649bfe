"""Arguments of the commands that train; light to import, as every command line is read through it."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def natural(text: str) -> int:
    """A whole number of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def weight(text: str) -> float:
    """A finite number of at least 0."""
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def amount(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def add_training(
    train: argparse.ArgumentParser, convert: argparse.ArgumentParser, calibrate: argparse.ArgumentParser
) -> None:
    """The arguments of ``train``, ``convert`` and ``calibrate``."""
    train.add_argument("config", metavar="CONFIG", help="a config.json, or a model whose config to use")
    train.add_argument(
        "--through",
        metavar="PROTOCOL",
        help="train the weights of CONFIG, a model, further through this protocol's approximations",
    )
    for command in (convert, calibrate):
        command.add_argument("model", metavar="MODEL")
    for command in (train, convert, calibrate):
        command.add_argument(
            "--target",
            action="append",
            nargs=3,
            metavar=("SITE", "LOW", "HIGH"),
            help="interval that values at SITE (such as gelu or normaliser) should keep to; may be repeated",
        )
    for command in (train, convert):
        _add_run(command)
    _add_distillation(convert)
    _add_checkpoint(convert)
    calibrate.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: ranges.json in MODEL")
    calibrate.add_argument("--samples", type=Path, metavar="FILE", help="inputs (default: the digits for training)")
    calibrate.add_argument("--margin", type=weight, default=0.1, metavar="M", help="beyond what is seen (default 0.1)")
    calibrate.add_argument("--overwrite", action="store_true", help="replace the ranges of a shipped model")


def _add_checkpoint(convert: argparse.ArgumentParser) -> None:
    group = convert.add_argument_group("where MODEL is a Hugging Face checkpoint (config.json and safetensors)")
    group.add_argument("--tokens", type=positive, metavar="S", help="most tokens of a text (default: the checkpoint's)")
    group.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="inputs to measure ranges on, as infer takes them"
    )
    group.add_argument("--samples", type=Path, metavar="FILE", help="inputs to keep for compare and profile")
    group.add_argument("--margin", type=weight, default=0.1, metavar="M", help="beyond what is seen (default 0.1)")


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="a new or empty folder")
    command.add_argument("--resume", action="store_true", help="go on from the checkpoint in FOLDER")
    command.add_argument("--every", type=positive, default=10, metavar="N", help="epochs per checkpoint (default 10)")
    command.add_argument("--epochs", type=positive, metavar="N", help="passes over the training images")
    command.add_argument("--batch", type=positive, metavar="N", help="images per step (default 64)")
    command.add_argument("--seed", type=natural, metavar="N", help="of weights, batches and shifts (default 0)")
    command.add_argument("--learning-rate", type=weight, metavar="R", help="the highest of the schedule")
    command.add_argument("--penalty", type=weight, metavar="W", help="weight of the range penalty (default 1)")


def _add_distillation(convert: argparse.ArgumentParser) -> None:
    convert.add_argument("--attention", metavar="NAME", help="attention of the student")
    convert.add_argument("--power", type=positive, metavar="P", help="its power, where it has one")
    convert.add_argument("--norm", metavar="NAME", help="norm of the student (default: the model's)")
    convert.add_argument("--activation", metavar="NAME", help="activation of the student (default: the model's)")
    convert.add_argument("--temperature", type=weight, metavar="T", help="of the class scores (default 2)")
    convert.add_argument("--labels", type=weight, metavar="W", help="weight of the true labels (default 0)")
    convert.add_argument(
        "--attention-first", type=weight, metavar="SHARE", help="share of the epochs for attention alone (default 0.25)"
    )
