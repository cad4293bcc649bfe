"""``secureattn query``: inputs encrypted, evaluated by a server, and decrypted."""

from __future__ import annotations

import contextlib
import time
from argparse import Namespace as Options
from pathlib import Path
from typing import Any

from secureattn import load_model, runs
from secureattn.commands import inference, output
from secureattn.deploy.connection import Connection
from secureattn.deploy.offer import Offer
from secureattn.deploy.owner import Owner, key_sizes
from secureattn.deploy.parcel import SECRET_FILE
from secureattn.errors import InputError
from secureattn.ledger import units
from secureattn.runs.result import Progress


def query(options: Options) -> None:
    """As many jobs as the inputs need, as many at once as the server has workers."""
    runs.require("ckks")
    output.writable(options.json, options.output)
    inference.check_output(options.output)
    given = inference.read_inputs(options.input)
    model = load_model(options.model) if options.model else None
    token = _token(options.token_file)
    with output.progress() as tell:
        server = Connection(
            options.url, token=token, certificates=options.ca, patience_s=options.patience, progress=tell
        )
        with server:
            offer = server.offer()
            with contextlib.closing(_owner(options.keys, offer, tell)) as owner:
                began = time.monotonic()
                server.give_keys(owner)
                outputs = server.infer(owner, given, model=model, share=options.share)
    _finish(options, offer, given, outputs, time.monotonic() - began)


def _finish(options: Options, offer: Offer, given: Any, outputs: Any, seconds: float) -> None:
    config, console = offer.terms.config, output.stdout()
    if offer.terms.input_range is not None:
        output.warn(inference.outside(config.name, offer.terms.input_range, given))
    output.warn(inference.lost(outputs))
    inference.write_outputs(options.output, outputs, kind=config.output)
    made = "vectors" if config.output == "vector" else "scores"
    console.print(
        f"{offer.title} at {options.url}: {len(outputs)} inputs in {seconds:.1f} s, {made} in {options.output}"
    )
    console.print(f"parameters: {offer.terms.parameters.security_bits} bits secure; trust: {offer.trust}")
    if options.json:
        about = {"schema": 1, "model": offer.identity.model, "protocol": offer.identity.protocol, "trust": offer.trust}
        output.write_json(options.json, {**about, "samples": len(outputs), "seconds": seconds})


def _owner(folder: Path, offer: Offer, tell: Progress) -> Owner:
    """Our keys for what is offered; made where there are none."""
    if not (folder / SECRET_FILE).exists():
        tell(f"making keys, {units.data(sum(key_sizes(offer).values()))}", 0, 0)
        return Owner.generate(offer, folder)
    owner = Owner.load(folder)
    if owner.offer != offer:
        owner.close()
        differs = owner.offer.identity.differs(offer.identity) or "another plan of the same model"
        raise InputError(f"keys in {folder} are for something else: the server has {differs}; name another folder")
    return owner


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"token {file} cannot be read: {error}") from error
