"""The command line: the one place where everything meets."""

from __future__ import annotations

import argparse
import os
import sys
from argparse import Namespace as Options
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secureattn import __version__, load_model, load_protocol
from secureattn.errors import SecureAttnError

if TYPE_CHECKING:
    from secureattn.nn.model import Model
    from secureattn.plan import Plan
    from secureattn.protocol import Protocol
    from secureattn.runs import Array, Progress

EPILOG = "MODEL and PROTOCOL are a name, as listed by secureattn info, or a path. Progress goes to stderr."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it worked, 1 when it failed with one line on stderr, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except SecureAttnError as error:
        print(f"secureattn: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("secureattn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    what = "Private inference with transformers: in the clear, under CKKS, on secret shares."
    parser = argparse.ArgumentParser(prog="secureattn", description=what, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"secureattn {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    info = _command(commands, "info", "versions, cores, which engines are here and how to get the missing", _info)
    _json(info)
    plan = _model_command(commands, "plan", "parameters, refresh points and cost, before any key is made", _plan)
    plan.add_argument("--batch", type=_positive, default=1, metavar="N", help="queries to plan for (default 1)")
    compare = _model_command(commands, "compare", "exact, clear and encrypted: accuracy, agreement, errors", _compare)
    _samples(compare)
    profile = _model_command(commands, "profile", "what every operation of a run cost", _profile)
    _samples(profile)
    profile.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace, to open in Perfetto")
    profile.add_argument("--plot", type=Path, metavar="FILE", help="write a stacked-bar plot (.png or .svg)")
    profile.add_argument("--top", type=_positive, default=20, metavar="N", help="operations to list (default 20)")
    profile.add_argument(
        "--network", action="append", metavar="lan|wan|FILE", help="network to model, or a TOML file (default both)"
    )
    infer = _model_command(commands, "infer", "classify inputs from a file", _infer)
    infer.add_argument(
        "input", type=Path, metavar="INPUT", help=".npy, .json or .safetensors with [N, tokens, features]"
    )
    infer.add_argument("-o", "--output", type=Path, required=True, metavar="OUTPUT", help=".npy (scores) or .json")
    return parser


def _command(commands: Any, name: str, text: str, run: Callable[[Options], None]) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=EPILOG
    )
    command.set_defaults(run=run)
    return command


def _model_command(commands: Any, name: str, text: str, run: Callable[[Options], None]) -> argparse.ArgumentParser:
    command = _command(commands, name, text, run)
    command.add_argument("model", metavar="MODEL")
    command.add_argument("protocol", metavar="PROTOCOL")
    _json(command)
    return command


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", type=Path, metavar="FILE", help="write the result as JSON too")


def _samples(command: argparse.ArgumentParser) -> None:
    command.add_argument("--samples", type=_positive, metavar="N", help="held-out samples to run (default all)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


# ---- commands ---------------------------------------------------------------------------------------------------
# Each imports what it needs itself, so that --help and usage errors come at once.


def _info(options: Options) -> None:
    from secureattn.commands import info, output

    output.writable(options.json)
    described = info.describe()
    info.show(described)
    if options.json:
        output.write_json(options.json, described)


def _plan(options: Options) -> None:
    from secureattn.commands import output, planning

    output.writable(options.json)
    with output.progress() as tell:
        plan = _make_plan(*_named(options), options.batch, tell)
    planning.show(plan, output.stdout())
    if options.json:
        output.write_json(options.json, planning.document(plan))


def _compare(options: Options) -> None:
    from secureattn.commands import comparison, output

    output.writable(options.json)
    with output.progress() as tell:
        plan, inputs, labels = _sampled(options, tell)
        compared = comparison.compare(plan, inputs, labels, tell)
    comparison.show(compared, output.stdout())
    if options.json:
        output.write_json(options.json, compared.document())


def _profile(options: Options) -> None:
    from secureattn import runs
    from secureattn.commands import output, profiling
    from secureattn.ledger import load_network

    output.writable(options.json, options.trace, options.plot)
    profiling.check_plot(options.plot)
    networks = [load_network(name) for name in options.network or ("lan", "wan")]
    with output.progress() as tell:
        plan, inputs, _ = _sampled(options, tell)
        run = runs.execute(plan, inputs, progress=tell, trace=options.trace is not None)
    profiling.show(plan, run, networks, output.stdout(), top=options.top)
    profiling.write(run, trace=options.trace, plot=options.plot)
    if options.json:
        output.write_json(options.json, profiling.document(plan, run, networks))


def _infer(options: Options) -> None:
    from secureattn import runs
    from secureattn.commands import comparison, inference, output

    output.writable(options.json, options.output)
    inference.check_output(options.output)
    model, protocol = _named(options)
    inputs = model.check(inference.read_inputs(options.input))
    runs.require(protocol.engine)
    with output.progress() as tell:
        plan = _make_plan(model, protocol, len(inputs), tell)
        run = runs.execute(plan, inputs, progress=tell)
    inference.write_outputs(options.output, run.outputs)
    console = output.stdout()
    seconds = run.seconds()["total"]
    console.print(f"{plan.title}: {len(inputs)} inputs in {seconds:.1f} s, scores in {options.output}")
    comparison.show_basis(plan, console)
    if options.json:
        from secureattn.commands import profiling

        output.write_json(options.json, profiling.document(plan, run, ()))


def _named(options: Options) -> tuple[Model, Protocol]:
    return load_model(options.model), load_protocol(options.protocol)


def _make_plan(model: Model, protocol: Protocol, samples: int, tell: Progress) -> Plan:
    from secureattn.plan import make_plan

    return make_plan(model, protocol, samples=samples, progress=lambda text: tell(text, 0, 0))


def _sampled(options: Options, tell: Progress) -> tuple[Plan, Array, Any]:
    """A plan for the model's held-out samples, and the samples; a missing engine is refused first."""
    from secureattn import runs

    model, protocol = _named(options)
    runs.require(protocol.engine)
    inputs, labels = model.samples(options.samples)
    return _make_plan(model, protocol, len(inputs), tell), inputs, labels


if __name__ == "__main__":
    sys.exit(main())
