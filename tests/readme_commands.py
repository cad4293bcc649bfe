"""Every command that the README names, and how it is known to work: run by a test, or why it is not."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterator

import pages

from secureattn.cli import _parser

FAST = (
    "secureattn info",
    "secureattn approx fit gelu --domain -6 6 --error 1e-4 --engine ckks",
    "secureattn approx show gelu/puma",
    "secureattn certificates -o certs --hosts owner=10.0.0.1 --hosts client=10.0.0.2 --hosts dealer=10.0.0.3",
    "secureattn token ann --tokens-file tokens",
)
SLOW = (
    'secureattn generate bytes-llama accurate-mpc "The value of " -n 30 --compare',
    "secureattn plan bert-base accurate-mpc --tokens 128",
    "secureattn plan llama-7b accurate-mpc --tokens 8 --new 1 --network puma",
)
BY_FILES = (
    "secureattn plan digits-vit power-softmax-ckks --save plan.json",
    "secureattn keygen --plan plan.json -o keys",
    "secureattn encrypt image.npy --keys keys -o query",
    "secureattn evaluate digits-vit power-softmax-ckks query --keys keys/evaluator --rounds rounds -o result",
    "secureattn refresh rounds --keys keys",
    "secureattn decrypt result --keys keys -o scores.json",
)
"""Run in this order, slowly, the fourth and fifth at once."""

_THEIRS = "stands for a checkpoint of the reader's; test_importing.py converts one, infers and compares"
_THEIR_CONFIG = "a path of the reader's; test_config_alone.py plans such"
_TRAINS = "trains for minutes; the tutorial own-model trains, calibrates and compares a smaller one"
_HOSTS = "three machines; the tutorial three-parties runs it on loopback, test_links.py between network namespaces"
_CLUSTER = "starts or needs a Ray cluster; test_cluster.py and test_cluster_machines.py serve a smaller model on such"
_SERVER = "needs a host with a certificate; the tutorial server runs it on loopback, test_server.py with TLS"
_SENTENCES = "needs the weights' package and, under CKKS, an hour; test_text.py and benchmarks/text.py run it"
NOT_RUN = {
    "secureattn convert path/to/checkpoint -o mine --tokens 128 --calibrate texts.txt --samples held-out.txt": _THEIRS,
    "secureattn compare mine accurate-mpc": _THEIRS,
    "secureattn infer mine accurate-mpc texts.txt -o out.json": _THEIRS,
    "secureattn plan path/to/their/config.json puma --json plan.json": _THEIR_CONFIG,
    "secureattn infer minilm accurate-mpc sentences.txt -o vectors.npy": _SENTENCES,
    "secureattn infer minilm accurate-ckks sentences.txt -o vectors.npy": _SENTENCES,
    "secureattn plan --calibrate": "takes 5 GB and a quiet machine; see test_ckks_calibration.py",
    "secureattn plan digits-vit power-softmax-ckks --search -o digits-29.toml": "takes minutes; see test_search.py",
    "secureattn train models/digits-vit -o my-vit": _TRAINS,
    "secureattn convert my-softmax --attention power_softmax -o mine": _TRAINS,
    "secureattn train my-vit -o tuned --through power-softmax-ckks": _TRAINS,
    "secureattn calibrate my-vit": _TRAINS,
    "secureattn party digits-vit accurate-mpc --rendezvous 10.0.0.1:29500 --tls certs/owner --rank owner": _HOSTS,
    "secureattn party digits-vit accurate-mpc --rendezvous 10.0.0.1:29500 --tls certs --rank client --input images.npy "
    "-o scores.npy": _HOSTS,
    "secureattn party digits-vit accurate-mpc --rendezvous 10.0.0.1:29500 --tls certs --rank dealer": _HOSTS,
    "secureattn serve digits-vit power-softmax-ckks --tls-cert cert.pem --tls-key key.pem --tokens-file tokens --state "
    "state --host 0.0.0.0": _SERVER,
    "secureattn serve digits-vit power-softmax-ckks --workers 1 --jobs 2 --cluster local": _CLUSTER,
    "secureattn serve digits-vit power-softmax-ckks --workers 4 --jobs 8 --cluster 10.0.0.1:6379": _CLUSTER,
    "secureattn query https://server:8443 image.npy --keys keys --token-file ann.token --ca ca.pem "
    "-o scores.json": _SERVER,
    "make demo": "sets up an environment, then runs 360 images; test_runs.py runs them, slowly",
    'make demo-text QUERY="Which train can my dog take?"': "installs the weights' package, then runs benchmarks",
    "make test": "runs this test",
    "make test-all": "runs this test",
    "make minilm": "installs a package",
    "make models": "trains every shipped model",
    "make bench-peers": "installs 2 GB of peers",
}
_PLACE = re.compile(r"[\[\]|]|\.\.\.|(?<![\w.=\"])[A-Z]+(?![\w\"])")


def commands(text: str) -> Iterator[str]:
    """Every command line of a page, single-spaced, without comments: those in fences and those in the text."""
    for block in pages.blocks(text):
        if block.language in ("", "sh"):
            lines = block.code.replace("\\\n", " ").splitlines()
            yield from (_plain(line) for line in lines if line.startswith(("secureattn ", "make ")))
    rest = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"(?:`|<code>)((?:secureattn|make)\s[^`<]+)(?:`|</code>)", rest):
        yield " ".join(code.split())


def _plain(line: str) -> str:
    """Without what it is said to be for: behind a #, or behind blanks that are wider than those between words."""
    head, gap, rest = re.fullmatch(r"(\w+ +\S+)( *)(.*)", line.partition("# ")[0].rstrip()).groups()  # type: ignore
    return " ".join(f"{head} {'' if len(gap) > 9 else re.split(r' {3,}', rest)[0]}".split())


def is_form(command: str) -> bool:
    """Whether a command line has places to fill in, or is a mere name that text mentions."""
    if command.startswith("make "):
        return False
    places = _PLACE.search(re.sub(r'"[^"]*"', "", command))
    return places is not None or (len(command.split()) == 2 and not accepted(command))


def accepted(command: str) -> bool:
    """Whether the command line is understood."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            _parser().parse_args(shlex.split(command)[1:])
        except SystemExit:
            return False
    return True


def unknown(form: str) -> list[str]:
    """Which of a form's command and options the command line does not have."""
    words = form.split()
    known = _options(_parser(), words[1])
    if known is None:
        return [words[1]]
    return [word for word in re.findall(r"(?<![\w-])--?[a-z][\w-]*", form) if word not in known]


def _options(parser: argparse.ArgumentParser, name: str) -> set[str] | None:
    """All options of a command, and of its actions."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found = action.choices.get(name)
            return None if found is None else _all(found)
    return None


def _all(parser: argparse.ArgumentParser) -> set[str]:
    found = {name for action in parser._actions for name in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found = found.union(*(_all(inner) for inner in action.choices.values()))
    return found
