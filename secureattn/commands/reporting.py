"""``secureattn report``, ``diff`` and ``trace``: what is asked for, read or run, and where it goes."""

from __future__ import annotations

from argparse import Namespace as Options
from collections.abc import Sequence
from pathlib import Path

from secureattn.commands import comparison, difference, difference_tables, documents, output, page, planning, profiling
from secureattn.commands.documents import Document
from secureattn.commands.plan_tables import modelled
from secureattn.errors import InputError
from secureattn.ledger import load_network
from secureattn.ledger.trace import join as join_traces

_SAME = ("model", "protocol", "engine", "samples", "tokens", "parameters")


def report(options: Options) -> None:
    """Run a model under a protocol, or read JSON files, and write the page."""
    output.writable(options.json, options.output)
    page.require()
    if options.output.suffix.lower() not in (".html", ".htm"):
        raise InputError(
            f"a report is a page of HTML, {options.output.name} is not; name it {options.output.stem}.html"
        )
    found = read(options.files, options.network) if options.files else made(options)
    profile, compare = found.get("profile"), found.get("compare")
    with output.whole(options.output) as draft:
        draft.write_text(page.rendered(profile, compare, top=options.top), encoding="utf-8")
    title = next(iter(found.values())).title
    output.stdout().print(f"{title}: report in {options.output}", markup=False)
    if options.json:
        content = {kind: dict(document.data) for kind, document in found.items()}
        output.write_json(options.json, {"schema": documents.SCHEMA, "kind": "report", **content})


def made(options: Options) -> dict[str, Document]:
    """A profile and a comparison of one encrypted run."""
    networks = [load_network(name) for name in options.network or ("lan", "wan")]
    with output.progress() as tell:
        plan, inputs, labels = planning.sampled(options, tell)
        compared = comparison.compared(plan, inputs, labels, tell)
    profile = profiling.document(plan, compared.encrypted, networks)
    source = "this run"
    return {
        "profile": documents.checked(profile, source),
        "compare": documents.checked(compared.document(), source),
    }


def read(files: Sequence[Path], networks: Sequence[str] | None) -> dict[str, Document]:
    """The documents of files, by kind; InputError for two of one kind, or of two runs' models, protocols or sizes."""
    found: dict[str, Document] = {}
    for file in files:
        document = documents.read(file)
        if document.kind in found:
            raise InputError(f"{found[document.kind].source} and {file} are both a {document.kind}; give one of each")
        found[document.kind] = document
    first, *others = found.values()
    for other in others:
        for name in _SAME:
            here, there = first.data.get(name), other.data.get(name)
            if here != there:
                raise InputError(
                    f"{first.source} has {name} {here}, {other.source} {there}; give files of the same run"
                )
    if networks and (profile := found.get("profile")) is not None:
        described = modelled(profile.ledger, [load_network(name) for name in networks])
        found["profile"] = Document(profile.source, profile.kind, {**profile.data, "networks": described})
    return found


def diff(options: Options) -> None:
    """Compare two files; fails where a figure got worse by more than allowed."""
    output.writable(options.json, options.plot)
    profiling.check_plot(options.plot)
    found = difference.difference(documents.read(options.a), documents.read(options.b))
    for name, _ in options.fail_above:
        found.figure(name)
    if options.plot:
        difference_tables.plot(found, options.plot)
    difference_tables.show(found, output.stdout(), top=options.top)
    if options.json:
        output.write_json(options.json, found.document())
    difference.check(found, options.fail_above)


def join(options: Options) -> None:
    """One time line of the parts."""
    output.writable(options.output)
    with output.whole(options.output) as draft:
        error_us = join_traces(options.parts, draft)
    output.stdout().print(
        f"{len(options.parts)} processes in {options.output}, on the first one's clock to within {error_us:g} µs",
        markup=False,
    )
