"""The command line: the one place where everything meets."""

from __future__ import annotations

import argparse
import math
import os
import sys
from argparse import Namespace as Options
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secureattn import __version__, load_model, load_protocol
from secureattn.commands import arguments, deploy_arguments, report_arguments
from secureattn.commands.arguments import add_generation, amount, positive
from secureattn.commands.party_arguments import add_certificates, add_party
from secureattn.errors import InputError, SecureAttnError

if TYPE_CHECKING:
    from secureattn.nn.batch import Batch, Shape
    from secureattn.nn.model import Model
    from secureattn.plan import Plan
    from secureattn.protocol import Protocol
    from secureattn.runs import Progress

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
    plan = _model_command(commands, "plan", text, _plan, nargs="?")
    plan.set_defaults(refuse=plan.error)
    plan.add_argument(
        "--calibrate", action="store_true", help="measure this machine's CKKS costs first (alone: only measure)"
    )
    plan.add_argument("--batch", type=positive, default=1, metavar="N", help="queries to plan for (default 1)")
    plan.add_argument("--tokens", type=positive, metavar="S", help="tokens of a text (default: the model's most)")
    plan.add_argument("--new", type=positive, metavar="N", help="tokens to make behind such texts (secret shares)")
    _networks(plan)
    plan.add_argument(
        "--search",
        action="store_true",
        help="search realisations and degrees for the least levels or rounds",
    )
    plan.add_argument("--loss", type=float, metavar="L", help="accuracy a search may lose (default 0)")
    plan.add_argument("--budget", type=positive, metavar="N", help="levels or rounds a search may spend, instead")
    plan.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the protocol that a search found")
    plan.add_argument("--save", type=Path, metavar="FILE", help="keep the plan, for keygen, evaluate and serve (CKKS)")
    compare = _model_command(commands, "compare", "exact, clear and encrypted: accuracy, agreement, errors", _compare)
    _samples(compare)
    _device(compare)
    profile = _model_command(commands, "profile", "what every operation of a run cost", _profile)
    _samples(profile)
    _device(profile)
    profile.add_argument("--error", action="store_true", help="error of operations, in bits; NOT private (CKKS)")
    profile.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace, to open in Perfetto")
    profile.add_argument("--plot", type=Path, metavar="FILE", help="write a stacked-bar plot (.png or .svg)")
    profile.add_argument("--top", type=positive, default=20, metavar="N", help="operations to list (default 20)")
    _networks(profile)
    _add_approx(commands)
    _add_training(commands)
    infer = _model_command(commands, "infer", "classes or vectors of inputs from a file", _infer)
    _device(infer)
    infer.add_argument(
        "input",
        type=Path,
        metavar="INPUT",
        help="numbers [N, tokens, features] or numbers of tokens [N, tokens] (.npy, .json, .safetensors), or texts, "
        "one a line (.txt)",
    )
    infer.add_argument("-o", "--output", type=Path, required=True, metavar="OUTPUT", help=".npy or .json")
    generate = _model_command(commands, "generate", "tokens that follow a prompt, and what one costs", _generate)
    add_generation(generate)
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
    _networks(report)
    _json(diff)


def _add_party(commands: Any) -> None:
    text = "one party of a run on secret shares, or the dealer, here or on a machine of its own"
    party = _command(commands, "party", text, _party)
    add_party(party)
    _device(party)
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


def _device(command: argparse.ArgumentParser) -> None:
    text = "where shares are computed with (secret shares; default cpu)"
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=text)


def _networks(command: argparse.ArgumentParser) -> None:
    text = "network to model, or a TOML file; may be repeated (default lan and wan)"
    command.add_argument("--network", action="append", metavar="lan|wan|puma|FILE", help=text)


def _samples(command: argparse.ArgumentParser) -> None:
    command.add_argument("--samples", type=positive, metavar="N", help="held-out samples to run (default all)")


# ---- commands ---------------------------------------------------------------------------------------------------
# Each imports what it needs itself, so that --help and usage errors come at once.


def _info(options: Options) -> None:
    from secureattn.commands import info, output

    output.writable(options.json)
    described = info.describe()
    info.show(described)
    if options.json:
        output.write_json(options.json, described)


def _generate(options: Options) -> None:
    from secureattn.commands import generating

    generating.generate(options, *_named(options))


def _plan(options: Options) -> None:
    from secureattn.commands import output, planning
    from secureattn.ledger import load_network

    alone = options.calibrate and options.model is None and not options.search
    if options.protocol is None and not alone:
        options.refuse("the following arguments are required: MODEL, PROTOCOL")
    output.writable(options.json, options.output, options.save)
    if options.calibrate:
        from secureattn.commands import calibrating

        calibrating.calibrate(shown=alone, json=options.json if alone else None)
    if alone:
        return
    if options.search:
        _search(options)
        return
    for name in ("loss", "budget", "output"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name} is for a search; add --search")
    networks = [load_network(name) for name in options.network or ("lan", "wan")]
    with output.progress() as tell:
        model, protocol = _named(options, runs=False)
        shape = _planned(model, options.batch, options.tokens, options.new)
        plan = _make_plan(options, model, protocol, shape, tell, new=options.new)
    planning.show(plan, output.stdout(), networks)
    if options.save:
        from secureattn.deploy.offer import write_plan

        write_plan(plan, options.save)
    if options.json:
        output.write_json(options.json, planning.document(plan, networks))


def _search(options: Options) -> None:
    from secureattn import resources
    from secureattn.commands import output, searching
    from secureattn.runs.search import search

    if options.loss is not None and options.budget is not None:
        raise InputError("a search takes either --loss or --budget, not both")
    model, protocol = _named(options)
    if options.output:
        searching.check(protocol)
    with output.progress() as tell:
        found = search(model, protocol, loss=options.loss or 0.0, budget=options.budget, progress=tell)
    searching.show(found, output.stdout())
    if options.output:
        searching.write_protocol(found, resources.find("protocols", options.protocol), options.output)
    if options.json:
        output.write_json(options.json, searching.document(model, protocol, found))


def _compare(options: Options) -> None:
    from secureattn.commands import comparison, output

    output.writable(options.json)
    with output.progress() as tell:
        plan, inputs, labels = _sampled(options, tell)
        compared = comparison.compare(plan, inputs, labels, tell, device=options.device)
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
        wanted = {"trace": options.trace is not None, "errors": options.error, "device": options.device}
        run = runs.execute(plan, inputs, progress=tell, **wanted)
    profiling.show(plan, run, networks, output.stdout(), top=options.top)
    profiling.write(run, trace=options.trace, plot=options.plot)
    if options.json:
        output.write_json(options.json, profiling.document(plan, run, networks))


def _report(options: Options) -> None:
    from secureattn.commands import reporting

    reporting.report(options, lambda tell: _sampled(options, tell))


def _diff(options: Options) -> None:
    from secureattn.commands import reporting

    reporting.diff(options)


def _trace(options: Options) -> None:
    from secureattn.commands import reporting

    reporting.join(options)


def _infer(options: Options) -> None:
    from secureattn import runs
    from secureattn.commands import comparison, inference, output

    output.writable(options.json, options.output)
    inference.check_output(options.output)
    model, protocol = _named(options)
    given = inference.read_inputs(options.input)
    batch = model.batch(given)
    runs.require(protocol.engine)
    interval = None if model.config.variable else model.ranges.input
    output.warn(inference.outside(model.config.name, interval, batch.values))
    output.warn(inference.cut(model, given))
    with output.progress() as tell:
        plan = _make_plan(options, model, protocol, batch.shape, tell)
        run = runs.execute(plan, batch, progress=tell, device=options.device)
    output.warn(inference.lost(run.outputs))
    inference.write_outputs(options.output, run.outputs, kind=model.config.output)
    console = output.stdout()
    seconds, made = run.seconds()["total"], "vectors" if model.config.output == "vector" else "scores"
    console.print(f"{plan.title}: {len(batch)} inputs in {seconds:.1f} s, {made} in {options.output}")
    comparison.show_basis(plan, console)
    if options.json:
        from secureattn.commands import profiling

        output.write_json(options.json, profiling.document(plan, run, ()))


def _party(options: Options) -> None:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is our one line, not torch's thirty
    from secureattn import runs
    from secureattn.commands import output, parties
    from secureattn.deploy.party import take_part

    output.writable(options.json, options.output, options.trace)
    model, protocol = _named(options)
    links = {"tls": options.tls, "insecure": options.insecure_links}
    seat = parties.seat_of(protocol, options.rank, options.rendezvous, float(options.wait), **links)
    inputs = parties.inputs_of(model, seat, options.input, options.output)
    runs.require(protocol.engine)
    output.warn(parties.lost(seat))
    alone = inputs is not None or not seat.launched  # launched at once, all are told the same files
    trace = parties.trace_of(options.trace, seat)
    outcome = take_part(model, protocol, seat, inputs, device=options.device, trace=trace is not None, tell=_fail)
    parties.write(outcome, protocol, options.output, options.json if alone else None, trace)
    parties.show(outcome, protocol, output.stdout())


def _certificates(options: Options) -> None:
    from secureattn.commands import certificates, output

    certificates.make(options, output.stdout())


def _fail(text: str) -> None:
    print(f"secureattn: error: {text}", file=sys.stderr, flush=True)


def _approx_list(options: Options) -> None:
    from secureattn.commands import approximations, output

    output.writable(options.json)
    rows = approximations.every()
    approximations.show_list(output.stdout(), rows)
    if options.json:
        output.write_json(options.json, approximations.list_document(rows))


def _approx_show(options: Options) -> None:
    from secureattn.commands import approximations, output, profiling

    output.writable(options.json, options.plot)
    profiling.check_plot(options.plot)
    wanted = {"degree": options.degree, "error": options.error}
    found = approximations.named(options.name, _domain(options.domain), wanted)
    if options.plot:
        approximations.plot(found, options.plot)
    approximations.show(output.stdout(), found)
    if options.json:
        output.write_json(options.json, approximations.document(found))


def _approx_fit(options: Options) -> None:
    from secureattn.commands import approximations, output

    output.writable(options.json)
    domain = _domain(options.domain)
    assert domain is not None
    choices = approximations.fit(options.function, domain, options.error, options.engine)
    approximations.show_fit(output.stdout(), choices)
    if options.json:
        output.write_json(options.json, approximations.document([approximations.chosen(c) for c in choices]))


def _training(options: Options) -> None:
    from secureattn.commands import training

    {"train": training.train, "convert": training.convert, "calibrate": training.calibrate}[options.action](options)


def _domain(ends: list[float] | None) -> tuple[float, float] | None:
    if ends is None:
        return None
    if not -math.inf < ends[0] < ends[1] < math.inf:
        raise InputError(f"a domain needs two finite ends in ascending order, got {ends[0]:g} and {ends[1]:g}")
    return ends[0], ends[1]


def _named(options: Options, *, runs: bool = True) -> tuple[Model, Protocol]:
    """What a command names; a model that can only be planned is refused where it ``runs``."""
    model, protocol = load_model(options.model), load_protocol(options.protocol)
    if runs:
        model.check_runs()
    return model, protocol


def _make_plan(
    options: Options, model: Model, protocol: Protocol, shape: Shape, tell: Progress, *, new: int | None = None
) -> Plan:
    from secureattn.plan import make_plan

    def told(text: str) -> None:
        tell(text, 0, 0)

    return make_plan(
        model,
        protocol,
        samples=shape.samples,
        workers=options.workers,
        progress=told,
        shape=shape,
        new=new,
        memory_bytes=options.memory and options.memory * 2**30,
    )


def _planned(model: Model, samples: int, tokens: int | None, new: int | None) -> Shape:
    """What is planned for: inputs of so many tokens, unless given as many as leave room for the ``new`` ones."""
    from secureattn.nn.batch import Shape

    most = model.config.tokens
    if tokens is not None and (not model.config.variable or tokens > most):
        limit = f"up to {most}" if model.config.variable else f"always {most}"
        raise InputError(f"inputs of model {model.config.name} have {limit} tokens, not {tokens}")
    return Shape(samples, tokens or max(most + 1 - (new or 1), 1))


def _sampled(options: Options, tell: Progress) -> tuple[Plan, Batch, Any]:
    """A plan for the model's held-out samples, and the samples; a missing engine is refused first."""
    from secureattn import runs

    model, protocol = _named(options)
    runs.require(protocol.engine)
    inputs, labels = model.samples(options.samples)
    batch = model.batch(inputs)
    return _make_plan(options, model, protocol, batch.shape, tell), batch, labels


if __name__ == "__main__":
    sys.exit(main())
