"""``secureattn approx list``, ``show`` and ``fit``: what is asked for, and where it goes."""

from __future__ import annotations

import math
from argparse import Namespace as Options

from secureattn.commands import approximations, output, profiling
from secureattn.errors import InputError


def every(options: Options) -> None:
    """All there are."""
    output.writable(options.json)
    rows = approximations.every()
    approximations.show_list(output.stdout(), rows)
    if options.json:
        output.write_json(options.json, approximations.list_document(rows))


def show(options: Options) -> None:
    """One of them, with a plot where asked for."""
    output.writable(options.json, options.plot)
    profiling.check_plot(options.plot)
    wanted = {"degree": options.degree, "error": options.error}
    found = approximations.named(options.name, options.domain and _domain(options.domain), wanted)
    if options.plot:
        approximations.plot(found, options.plot)
    approximations.show(output.stdout(), found)
    if options.json:
        output.write_json(options.json, approximations.document(found))


def fit(options: Options) -> None:
    """The cheapest for a need, and what it was chosen from."""
    output.writable(options.json)
    choices = approximations.fit(options.function, _domain(options.domain), options.error, options.engine)
    approximations.show_fit(output.stdout(), choices)
    if options.json:
        output.write_json(options.json, approximations.document([approximations.chosen(c) for c in choices]))


def _domain(ends: list[float]) -> tuple[float, float]:
    if not -math.inf < ends[0] < ends[1] < math.inf:
        raise InputError(f"a domain needs two finite ends in ascending order, got {ends[0]:g} and {ends[1]:g}")
    return ends[0], ends[1]
