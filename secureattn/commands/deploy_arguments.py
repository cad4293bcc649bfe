"""Arguments of the commands for encrypted inference between machines; light to import, as every command line is read
through it.
"""

from __future__ import annotations

import argparse
from argparse import Namespace as Options
from collections.abc import Callable
from pathlib import Path

from secureattn.commands.arguments import amount, positive

Make = Callable[[str, str, Callable[[Options], None]], argparse.ArgumentParser]
"""Makes a command's parser, of its name, help and handler."""


def add_files(make: Make) -> None:
    """``keygen``, ``encrypt``, ``evaluate``, ``refresh`` and ``decrypt``: CKKS by files."""
    text = "keys for a plan under CKKS: the secret one to keep, the others for the evaluator"
    keygen = make("keygen", text, _keygen)
    keygen.add_argument("model", metavar="MODEL", nargs="?", help="to plan for; or give --plan")
    keygen.add_argument("protocol", metavar="PROTOCOL", nargs="?")
    keygen.add_argument("--plan", type=Path, metavar="FILE", help="a plan that secureattn plan --save wrote")
    keygen.add_argument("--batch", type=positive, default=1, metavar="N", help="queries to plan for (default 1)")
    keygen.add_argument("--tokens", type=positive, metavar="S", help="tokens of a text (default: the model's most)")
    keygen.add_argument(
        "-o", "--output", type=Path, required=True, metavar="KEYS", help="folder for the keys, made new"
    )
    keygen.set_defaults(refuse=keygen.error)

    encrypt = make("encrypt", "inputs into a query, under the key owner's keys", _encrypt)
    encrypt.add_argument(
        "input", type=Path, metavar="INPUT", help=".npy, .json, .safetensors, or texts, one a line (.txt)"
    )
    _keys(encrypt)
    encrypt.add_argument("--model", metavar="MODEL", help="for texts: whose tokenizer and public embedding they need")
    encrypt.add_argument("-o", "--output", type=Path, required=True, metavar="QUERY")

    text = "a query into a result, with the model and no secret key"
    evaluate = make("evaluate", text, _evaluate)
    evaluate.add_argument("model", metavar="MODEL")
    evaluate.add_argument("protocol", metavar="PROTOCOL")
    evaluate.add_argument("query", type=Path, metavar="QUERY")
    evaluate.add_argument(
        "--keys", type=Path, required=True, metavar="FOLDER", help="the key owner's public.key and evaluation.key"
    )
    evaluate.add_argument("--plan", type=Path, metavar="FILE", help="default: plan.json in that folder")
    evaluate.add_argument("--rounds", type=Path, metavar="FOLDER", help="where the key owner answers refreshes")
    evaluate.add_argument("--wait", type=positive, default=600, metavar="S", help="seconds to wait for each (600)")
    evaluate.add_argument("-o", "--output", type=Path, required=True, metavar="RESULT")

    refresh = make("refresh", "answer an evaluator's refreshes in a folder, until it is done", _refresh)
    refresh.add_argument("rounds", type=Path, metavar="FOLDER")
    _keys(refresh)
    refresh.add_argument("--wait", type=positive, default=600, metavar="S", help="seconds to wait for the next (600)")

    decrypt = make("decrypt", "a result into classes and scores, or vectors", _decrypt)
    decrypt.add_argument("result", type=Path, metavar="RESULT")
    _keys(decrypt)
    decrypt.add_argument("-o", "--output", type=Path, required=True, metavar="OUTPUT", help=".npy or .json")


def add_service(make: Make) -> None:
    """``serve``, ``query`` and ``token``: CKKS over HTTP."""
    serve = make("serve", "evaluate queries of clients over HTTP, with the model and no secret key", _serve)
    serve.add_argument("model", metavar="MODEL")
    serve.add_argument("protocol", metavar="PROTOCOL")
    serve.add_argument("--plan", type=Path, metavar="FILE", help="a plan that secureattn plan --save wrote")
    serve.add_argument("--batch", type=positive, default=1, metavar="N", help="queries to plan for (default 1)")
    serve.add_argument("--tokens", type=positive, metavar="S", help="tokens of a text (default: the model's most)")
    serve.add_argument("--workers", type=positive, metavar="N", help="processes that share a job (default: every core)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1)")
    serve.add_argument("--port", type=port, default=8443, help="default 8443; 0 for any that is free")
    serve.add_argument("--tls-cert", type=Path, metavar="PEM", help="certificate with its chain")
    serve.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key")
    serve.add_argument("--tokens-file", type=Path, metavar="FILE", help="clients, as secureattn token writes them")
    serve.add_argument("--insecure", action="store_true", help="listen beyond this machine without TLS or tokens")
    serve.add_argument("--state", type=Path, metavar="FOLDER", help="keep keys and jobs there across restarts")
    serve.add_argument(
        "--share",
        type=positive,
        metavar="S",
        help="seconds a small query waits for others under its keys, to share slots",
    )
    text = "spread jobs over a Ray cluster: HOST:PORT of its head, auto, or local to begin one on this machine"
    serve.add_argument("--cluster", metavar="ADDRESS", help=text)
    limits = serve.add_argument_group("limits")
    limits.add_argument("--jobs", type=positive, default=1, metavar="N", help="jobs at once (default 1)")
    limits.add_argument("--memory", type=amount, metavar="GIB", help="memory of one job (default: twice the plan's)")
    limits.add_argument("--waiting", type=positive, default=8, metavar="N", help="jobs a client may have (8)")
    limits.add_argument("--waiting-in-all", type=positive, default=64, metavar="N", help="jobs of all clients (64)")
    limits.add_argument("--key-sets", type=positive, default=4, metavar="N", help="key sets of a client (4)")
    limits.add_argument("--key-sets-in-all", type=positive, default=32, metavar="N", help="of all clients (32)")
    limits.add_argument("--job-time", type=positive, default=3600, metavar="S", help="seconds of a job (3600)")
    limits.add_argument("--answer-time", type=positive, default=120, metavar="S", help="seconds for a refresh (120)")
    limits.add_argument("--keep", type=positive, default=3600, metavar="S", help="seconds results are kept (3600)")
    limits.add_argument("--grace", type=positive, default=60, metavar="S", help="seconds for jobs at the end (60)")

    query = make("query", "inputs encrypted, evaluated by a server, and decrypted", _query)
    query.add_argument("url", metavar="URL")
    query.add_argument("input", type=Path, metavar="INPUT", help=".npy, .json, .safetensors, or texts (.txt)")
    query.add_argument("--keys", type=Path, required=True, metavar="KEYS", help="folder of the keys; made if missing")
    query.add_argument("--model", metavar="MODEL", help="for texts: whose tokenizer and public embedding they need")
    query.add_argument("--token-file", type=Path, metavar="FILE", help="holds the token that the server gave us")
    query.add_argument("--ca", type=Path, metavar="PEM", help="certificates to trust (default: the system's)")
    query.add_argument("--share", action="store_true", help="share slots with other queries under these keys")
    query.add_argument("--patience", type=positive, default=60, metavar="S", help="seconds to try to reach it (60)")
    query.add_argument("-o", "--output", type=Path, required=True, metavar="OUTPUT", help=".npy or .json")

    token = make("token", "a token for a client of a server, shown once", _token)
    token.add_argument("name", metavar="NAME", help="what the client is called")
    token.add_argument("--tokens-file", type=Path, required=True, metavar="FILE", help="where its hash goes")


def port(text: str) -> int:
    """A number of a port."""
    if not text.isdecimal() or int(text) >= 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 0 to 65535")
    return int(text)


def _keys(command: argparse.ArgumentParser) -> None:
    command.add_argument("--keys", type=Path, required=True, metavar="KEYS", help="the folder that keygen made")


# ---- handlers, which import what they need when they run ------------------------------------------------------------


def _keygen(options: Options) -> None:
    if (options.plan is None) == (options.protocol is None):
        options.refuse("give MODEL and PROTOCOL to plan for, or --plan FILE")
    from secureattn.commands import encrypting

    encrypting.keygen(options)


def _encrypt(options: Options) -> None:
    from secureattn.commands import encrypting

    encrypting.encrypt(options)


def _evaluate(options: Options) -> None:
    from secureattn.commands import encrypting

    encrypting.evaluate(options)


def _refresh(options: Options) -> None:
    from secureattn.commands import encrypting

    encrypting.refresh(options)


def _decrypt(options: Options) -> None:
    from secureattn.commands import encrypting

    encrypting.decrypt(options)


def _serve(options: Options) -> None:
    from secureattn.commands import serving

    serving.serve(options)


def _query(options: Options) -> None:
    from secureattn.commands import querying

    querying.query(options)


def _token(options: Options) -> None:
    from secureattn.commands import serving

    serving.token(options)
