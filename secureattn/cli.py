"""The command line: the one place where everything meets."""

from __future__ import annotations

import argparse
import os
import sys
from argparse import Namespace as Options
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from secureattn import __version__
from secureattn.commands import arguments, deploy_arguments, model_arguments, report_arguments
from secureattn.commands.arguments import amount, positive
from secureattn.commands.party_arguments import add_certificates, add_party
from secureattn.errors import SecureAttnError

EPILOG = "MODEL and PROTOCOL are a name, as listed by secureattn info, or a path. Progress goes to stderr."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it worked, 1 when it failed with one line on stderr, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except SecureAttnError as error:
        print(f"secureattn: error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"secureattn: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("secureattn: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    what = "Private inference with transformers: in the clear, under CKKS, on secret shares."
    parser = argparse.ArgumentParser(prog="secureattn", description=what, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"secureattn {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    info = _command(commands, "info", "versions, cores, which engines are here and how to get the missing", _info)
    _json(info)
    text = "parameters, refresh points and cost, before any key is made; of a config alone too, without weights"
    model_arguments.add_plan(_model_command(commands, "plan", text, _plan, nargs="?"))
    compare = _model_command(commands, "compare", "exact, clear and encrypted: accuracy, agreement, errors", _compare)
    model_arguments.add_compare(compare)
    profile = _model_command(commands, "profile", "what every operation of a run cost", _profile)
    model_arguments.add_profile(profile)
    _add_approx(commands)
    _add_training(commands)
    model_arguments.add_infer(_model_command(commands, "infer", "classes or vectors of inputs from a file", _infer))
    generate = _model_command(commands, "generate", "tokens that follow a prompt, and what one costs", _generate)
    model_arguments.add_generation(generate)
    _add_party(commands)
    for add in (deploy_arguments.add_files, deploy_arguments.add_service):
        add(lambda name, text, run: _with_json(_command(commands, name, text, run)))
    _add_reports(commands)
    return parser


def _add_reports(commands: Any) -> None:
    report = _model_command(commands, "report", report_arguments.REPORT, _report, nargs="?")
    diff = _command(commands, "diff", report_arguments.DIFF, _diff)
    trace = _command(commands, "trace", report_arguments.TRACE, _trace)
    report_arguments.add(report, diff, trace)
    _json(diff)


def _add_party(commands: Any) -> None:
    text = "one party of a run on secret shares, or the dealer, here or on a machine of its own"
    party = _command(commands, "party", text, _party)
    add_party(party)
    _json(party)
    made = "keys and certificates with which the processes of party prove their roles"
    add_certificates(_command(commands, "certificates", made, _certificates))


def _add_approx(commands: Any) -> None:
    approx = commands.add_parser("approx", help="what approximations there are, what they promise and cost")
    actions = approx.add_subparsers(title="actions", metavar="ACTION", required=True)
    listed = _command(actions, "list", "all realisations and attention variants, and where they run", _approx_list)
    show = _command(actions, "show", "formula, domain, error, cost and source of one of them", _approx_show)
    show.add_argument("name", metavar="NAME", help="a function, function/kind, or an attention variant")
    show.add_argument("--degree", type=positive, metavar="N", help="degree of polynomials (default 15)")
    show.add_argument("--plot", type=Path, metavar="FILE", help="plot values and errors (.png or .svg)")
    fit = _command(actions, "fit", "the cheapest realisation under a domain, an error and an engine", _approx_fit)
    fit.add_argument("function", metavar="FUNCTION")
    fit.add_argument("--engine", required=True, choices=("plaintext", "ckks", "crypten"))
    for command, required in ((show, False), (fit, True)):
        command.add_argument("--domain", type=float, nargs=2, metavar=("A", "B"), required=required)
        command.add_argument("--error", type=float, metavar="E", required=required, help="largest error allowed")
    for command in (listed, show, fit):
        _json(command)


def _add_training(commands: Any) -> None:
    made = {
        "train": _command(commands, "train", "train a model on the digits, its ranges kept narrow", _training),
        "convert": _command(commands, "convert", "distil a model into another attention or norm", _training),
        "calibrate": _command(commands, "calibrate", "measure and report a model's ranges, write them", _training),
    }
    arguments.add_training(**made)
    for name, command in made.items():
        command.set_defaults(action=name)
        _json(command)


def _command(commands: Any, name: str, text: str, run: Callable[[Options], None]) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=EPILOG
    )
    command.set_defaults(run=run)
    return command


def _model_command(
    commands: Any, name: str, text: str, run: Callable[[Options], None], nargs: str | None = None
) -> argparse.ArgumentParser:
    command = _command(commands, name, text, run)
    command.add_argument("model", metavar="MODEL", nargs=nargs)
    command.add_argument("protocol", metavar="PROTOCOL", nargs=nargs)
    command.add_argument(
        "--workers", type=positive, metavar="N", help="processes that share the work (CKKS; default: every core)"
    )
    command.add_argument(
        "--memory", type=amount, metavar="GIB", help="memory to stay below (CKKS; default: 3/4 of what is installed)"
    )
    _json(command)
    return command


def _with_json(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    _json(command)
    return command


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON too")


# ---- handlers, which import what they need when they run, so that --help and usage errors come at once --------------


def _info(options: Options) -> None:
    from secureattn.commands import info

    info.info(options)


def _plan(options: Options) -> None:
    only_measures = options.calibrate and options.model is None and not options.search
    if options.protocol is None and not only_measures:
        options.refuse("the following arguments are required: MODEL, PROTOCOL")
    from secureattn.commands import planning

    planning.plan(options)


def _compare(options: Options) -> None:
    from secureattn.commands import comparison

    comparison.compare(options)


def _profile(options: Options) -> None:
    from secureattn.commands import profiling

    profiling.profile(options)


def _infer(options: Options) -> None:
    from secureattn.commands import inference

    inference.infer(options)


def _generate(options: Options) -> None:
    from secureattn.commands import generating

    generating.generate(options)


def _approx_list(options: Options) -> None:
    from secureattn.commands import approximating

    approximating.every(options)


def _approx_show(options: Options) -> None:
    from secureattn.commands import approximating

    approximating.show(options)


def _approx_fit(options: Options) -> None:
    from secureattn.commands import approximating

    approximating.fit(options)


def _training(options: Options) -> None:
    from secureattn.commands import training

    {"train": training.train, "convert": training.convert, "calibrate": training.calibrate}[options.action](options)


def _party(options: Options) -> None:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is our one line, not torch's thirty
    from secureattn.commands import parties

    parties.party(options)


def _certificates(options: Options) -> None:
    from secureattn.commands import certificates

    certificates.make(options)


def _report(options: Options) -> None:
    if bool(options.files) == (options.model is not None) or (options.model is None) != (options.protocol is None):
        options.refuse("give either MODEL and PROTOCOL, or --from FILE")
    from secureattn.commands import reporting

    reporting.report(options)


def _diff(options: Options) -> None:
    from secureattn.commands import reporting

    reporting.diff(options)


def _trace(options: Options) -> None:
    from secureattn.commands import reporting

    reporting.join(options)


if __name__ == "__main__":
    sys.exit(main())
