"""Arguments of ``party`` and ``certificates``; light to import, as every command line is read through it."""

from __future__ import annotations

import argparse
from pathlib import Path

from secureattn.commands import model_arguments
from secureattn.commands.arguments import positive


def add_party(party: argparse.ArgumentParser) -> None:
    """The arguments of ``party``."""
    party.add_argument("model", metavar="MODEL", help="all need its config and ranges, the owner alone its weights")
    party.add_argument("protocol", metavar="PROTOCOL")
    party.add_argument(
        "--rank", metavar="R", help="owner (0), client (1), dealer, or a number (default: as torchrun says)"
    )
    party.add_argument(
        "--rendezvous", metavar="HOST:PORT", help="the owner's address, where all meet (default: as torchrun says)"
    )
    party.add_argument(
        "--input", type=Path, metavar="FILE", help="the client's inputs (.npy, .json, .safetensors, .txt)"
    )
    party.add_argument("-o", "--output", type=Path, metavar="FILE", help="where the client writes scores (.npy, .json)")
    party.add_argument(
        "--trace", type=Path, metavar="FILE", help="write this process's time line, for secureattn trace"
    )
    party.add_argument("--wait", type=positive, default=60, metavar="S", help="seconds to wait for the others (60)")
    links = party.add_mutually_exclusive_group()
    links.add_argument(
        "--tls",
        type=Path,
        metavar="FOLDER",
        help="TLS 1.3 on every connection, with ca.pem, cert.pem and key.pem of this role from FOLDER (or FOLDER/ROLE)",
    )
    links.add_argument(
        "--insecure-links",
        action="store_true",
        help="let links leave this machine without TLS; who reads all of them can work out inputs and weights",
    )
    model_arguments.device(party)


def add_certificates(certificates: argparse.ArgumentParser) -> None:
    """The arguments of ``certificates``."""
    certificates.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="gets a folder for each role, and authority"
    )
    certificates.add_argument(
        "--roles",
        type=_words,
        default=["owner", "client", "dealer"],
        metavar="ROLES",
        help="owner, client, dealer, party-N, with commas (default owner,client,dealer)",
    )
    certificates.add_argument(
        "--hosts",
        type=_host,
        action="append",
        metavar="ROLE=ADDRESSES",
        help="IP addresses, with commas, outside which the role's certificate is refused; may be repeated",
    )
    certificates.add_argument("--days", type=positive, default=90, metavar="N", help="how long they are valid (90)")


def _words(text: str) -> list[str]:
    words = text.split(",")
    if not all(words) or len(set(words)) < len(words):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different words with commas between")
    return words


def _host(text: str) -> tuple[str, list[str]]:
    role, found, addresses = text.partition("=")
    if not role or not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROLE=ADDRESSES")
    return role, _words(addresses)
