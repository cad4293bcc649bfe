"""The dealer: expands every party's key, works out the correction for the first party, and answers requests.

It learns the kinds and shapes of the requests and nothing else: no share of any input ever reaches it. Security is
against parties and a dealer that follow the protocol and do not pool what they know. Keys and shares travel
unencrypted; between machines use a private or encrypted link.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence

import torch
import torch.distributed as dist

from secureattn.backends.crypten.csprng import Csprng, key_to_words, new_key
from secureattn.backends.crypten.material import HEADER_WORDS, Kind, Request, combine, derive, draw, remove
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.transport import Link, join, leave


class Dealer:
    """Makes corrections from the keys of all parties."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._streams = [Csprng(key) for key in keys]
        self._kept: dict[int, torch.Tensor] = {}

    def correction(self, request: Request) -> torch.Tensor:
        """The first party's shares of the derived values, flat and one after the other.

        Cost: expands 8 bytes a mask and party, and makes the product once in plain.
        """
        drawn = [draw(request, stream, derived=rank > 0) for rank, stream in enumerate(self._streams)]
        masks = [combine(request, shares) for shares in zip(*(masks for masks, _ in drawn), strict=True)]
        if request.kind is Kind.FIX:
            self._kept[request.argument] = masks[0]
        values = derive(request, masks, self._kept)
        for _, shares in drawn[1:]:
            for value, share in zip(values, shares, strict=True):
                remove(request, value, share)
        if len(values) == 1:  # may be large: no copy
            return values[0].flatten()
        return torch.cat([value.flatten() for value in values]) if values else torch.empty(0, dtype=torch.int64)


def deal_keys(parties: Sequence[int]) -> dict[int, bytes]:
    """Make a key for every party and send it to each of ``parties``; 32 bytes a party."""
    keys = {rank: new_key() for rank in parties}
    for rank, key in keys.items():
        dist.send(key_to_words(key), rank)
    return keys


def serve(parameters: MpcParameters, init_method: str, *, waiting: MutableSequence[int] | None = None) -> None:
    """Be the dealer's process (rank = number of parties): answer the first party until it says stop."""
    link = Link(parameters.parties, waiting)
    with link.exchange():
        join(parameters, rank=parameters.parties, init_method=init_method)
        keys = deal_keys(range(parameters.parties))
    dealer = Dealer([keys[rank] for rank in range(parameters.parties)])
    header = torch.zeros(HEADER_WORDS, dtype=torch.int64)
    while True:
        with link.exchange():
            dist.recv(header, 0)
        request = Request.parse(header)
        if request.kind is Kind.STOP:
            break
        correction = dealer.correction(request)
        if correction.numel():
            with link.exchange():
                dist.send(correction, 0)
    leave()
