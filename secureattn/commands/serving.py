"""``secureattn serve`` and ``secureattn token``: encrypted inference over HTTP, the server's side."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
from argparse import Namespace as Options
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from secureattn.commands import output, planning
from secureattn.deploy.checks import filler, largest
from secureattn.deploy.offer import Offer, read_plan, write_plan
from secureattn.errors import INSTALL, EngineError, InputError
from secureattn.ledger import units
from secureattn.plan import Plan
from secureattn.plan.memory import installed

try:
    from secureattn.deploy.server.hand import Hand, Worker
    from secureattn.deploy.server.service import Service
    from secureattn.deploy.server.serving import Place
    from secureattn.deploy.server.serving import serve as listen
    from secureattn.deploy.server.settings import Limits, Served
    from secureattn.deploy.server.store import Store
    from secureattn.deploy.server.tokens import Tokens, add
except ModuleNotFoundError as missing:
    raise EngineError(f"serving needs the package {missing.name!r}, which is missing; {INSTALL['serve']}") from missing


def serve(options: Options) -> None:
    """Plan unless there is a plan, say what is served and what limits there are, serve until told to end."""
    if importlib.util.find_spec("tenseal") is None:  # the workers load it, this process does not
        raise EngineError(f"the ckks engine needs the package tenseal, which is missing; run {INSTALL['ckks']}")
    output.writable(options.json)
    tokens = Tokens.load(options.tokens_file) if options.tokens_file else Tokens()
    place = Place(options.host, options.port, options.tls_cert, options.tls_key)
    place.check(tokens, insecure=options.insecure)
    with _state(options.state) as folder, place.bind() as listening, contextlib.ExitStack() as ending:
        place = replace(place, port=listening.getsockname()[1])
        plan, offer, file = _plan(options, folder)
        limits = _limits(options, plan)
        if limits.share_s:
            filler(plan.model)
        served = Served(options.model, options.protocol, file)
        workers = _replicas(options, plan, offer, served, ending) if options.cluster else lambda: Hand(served)
        service = Service(offer, Store(folder), limits, workers)
        console = output.stdout()
        console.print(f"[bold]{offer.title}[/bold] at {place.url}, for humans at {place.url}/docs")
        console.print(
            f"a query holds up to {offer.terms.most} inputs and is refreshed {offer.terms.rounds} times; jobs at once: "
            f"{limits.jobs}, of up to {units.data(limits.memory_bytes)} each"
            f"{f', on the cluster at {options.cluster}' if options.cluster else ''}"
        )
        console.print(f"trust: {offer.trust}")
        if limits.share_s:
            slots = f"{offer.terms.slots} slots"
            console.print(f"small queries under the same keys share {slots}, and wait {limits.share_s:g} s for others")
        if options.json:
            about = {"schema": 1, "url": place.url, "plan": offer.hash, "model": options.model}
            output.write_json(options.json, {**about, "protocol": options.protocol, "trust": offer.trust})
        if options.state is None:
            console.print("keys and jobs are not kept when it ends; --state FOLDER keeps them")
        listen(
            service, tokens, place, listening, lambda text: print(f"secureattn: {text}", file=sys.stderr, flush=True)
        )


def _replicas(
    options: Options, plan: Plan, offer: Offer, served: Served, ending: contextlib.ExitStack
) -> Callable[[], Worker]:
    """Makes replicas on a cluster, which is left, or ended where it was begun here, with ``ending``."""
    from secureattn.deploy.server import cluster

    assert plan.ckks is not None
    size = cluster.Size(options.jobs, plan.ckks.workers, plan.ckks.memory.total, sum(largest(offer).values()))
    found = ending.enter_context(cluster.joined(options.cluster, size))
    found.serve(served)
    if found.plain:
        print(f"secureattn: warning: {cluster.PLAIN}", file=sys.stderr)
    return found.hand


def token(options: Options) -> None:
    """A new client's token, on stdout."""
    output.writable(options.json, options.tokens_file)
    made = add(options.tokens_file, options.name)
    print(made)
    if options.json:
        output.write_json(options.json, {"schema": 1, "name": options.name, "token": made})


@contextmanager
def _state(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="secureattn-") as name:
        yield Path(name)


def _plan(options: Options, folder: Path) -> tuple[Plan, Offer, Path]:
    """The plan given, or that of the last start, or a new one; it is kept with what was made for it."""
    model, protocol = planning.named(options)
    kept = options.plan or folder / "plan.json"
    if options.plan is None and kept.exists():
        with contextlib.suppress(InputError):
            plan, offer = read_plan(kept, model, protocol)
            if plan.samples == options.batch:
                return plan, offer, kept
    if options.plan is None:
        with output.progress() as tell:
            shape = planning.asked(model, options.batch, options.tokens)
            made = planning.planned(model, protocol, shape, tell, workers=options.workers)
        write_plan(made, kept)
    plan, offer = read_plan(kept, model, protocol)
    return plan, offer, kept


def _limits(options: Options, plan: Plan) -> Limits:
    assert plan.ckks is not None
    needed = plan.ckks.memory.total
    memory = int(options.memory * 2**30) if options.memory else 2 * needed
    if options.cluster in (None, "local") and options.jobs * needed > installed():
        raise InputError(
            f"{options.jobs} jobs at once take {units.data(options.jobs * needed)} as planned, this machine has "
            f"{units.data(int(installed()))}; serve fewer at once, or plan with fewer --workers"
        )
    if memory < needed:
        raise InputError(f"a job takes {units.data(needed)} as planned, --memory allows {units.data(memory)}")
    return Limits(
        memory_bytes=memory,
        jobs=options.jobs,
        waiting=options.waiting,
        waiting_in_all=options.waiting_in_all,
        key_sets=options.key_sets,
        key_sets_in_all=options.key_sets_in_all,
        job_s=options.job_time,
        answer_s=options.answer_time,
        keep_s=options.keep,
        grace_s=options.grace,
        share_s=float(options.share or 0),
    )
