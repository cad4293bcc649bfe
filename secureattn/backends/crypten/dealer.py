"""The dealer: expands every party's key, works out the correction for the first party, and answers requests.

It learns the kinds and shapes of the requests and nothing else: no share of any input ever reaches it. Security is
against parties and a dealer that follow the protocol and do not pool what they know. Keys cross its links to the
parties: without TLS whoever reads those can draw the masks too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from secureattn.backends.crypten.csprng import Csprng, key_to_words, new_key
from secureattn.backends.crypten.material import HEADER_WORDS, Kept, Kind, Request, combine, derive, draw, remove
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.backends.crypten.transport import Mesh
from secureattn.errors import EngineError
from secureattn.events import WAIT, Recorder, Silent

_MOST_REQUESTS = 1 << 20  # at once
Drawn = tuple[list[torch.Tensor], list[torch.Tensor]]
"""A party's shares of the masks, and of the derived values."""


class Dealer:
    """Makes corrections from the keys of all parties. ``recorder``: where it notes what that takes, if anywhere."""

    def __init__(self, keys: Sequence[bytes], recorder: Recorder | None = None) -> None:
        self._streams = [Csprng(key) for key in keys]
        self._kept = Kept()
        self._recorder = recorder or Silent()

    def correction(self, request: Request) -> torch.Tensor:
        """The first party's shares of the derived values, flat and one after the other.

        Cost: expands 8 bytes a mask and party, and makes the product once in plain.
        """
        with self._recorder.op("expand"):
            drawn = [draw(request, stream, rank) for rank, stream in enumerate(self._streams)]
            spent = sum(request.keystream_bytes(rank) for rank in range(len(drawn)))
            self._recorder.primitive("keystream_bytes", times=spent)
        with self._recorder.op("derive"):
            self._recorder.primitive("dealer_macs", times=request.dealer_macs)
            return self._derived(request, drawn)

    def _derived(self, request: Request, drawn: Sequence[Drawn]) -> torch.Tensor:
        shares = zip(*(masks for masks, _ in drawn), strict=True)
        xor = request.xor
        masks = [combine(parts, xor=by_xor) for parts, by_xor in zip(shares, xor, strict=False)]
        if request.kind in (Kind.FIX, Kind.GROW):
            self._kept.take(request, masks[0])
        values = derive(request, masks, self._kept)
        for _, others in drawn[1:]:
            for value, share, by_xor in zip(values, others, xor[len(masks) :], strict=True):
                remove(value, share, xor=by_xor)
        if len(values) == 1:  # may be large: no copy
            return values[0].flatten()
        return torch.cat([value.flatten() for value in values]) if values else torch.empty(0, dtype=torch.int64)


def deal_keys(mesh: Mesh, parties: Sequence[int]) -> dict[int, bytes]:
    """Make a key for every party and send it to each of ``parties``; 32 bytes a party."""
    keys = {rank: new_key() for rank in parties}
    for rank, key in keys.items():
        mesh.deliver(key_to_words(key), rank)
    mesh.delivered()
    return keys


def serve(parameters: MpcParameters, mesh: Mesh, recorder: Recorder) -> None:
    """Be the dealer's process (rank = number of parties): answer the first party until it says stop.

    A correction is on its way while the next is made. Recorded under the kind of each request: ``expand`` (keys to
    masks), ``derive``, ``deliver`` (handing over, which waits while much is on its way), and outside any ``wait`` for
    requests; ``dealer_bytes`` is what it sends.
    """
    with recorder.phase("setup"), recorder.op("deal_keys"):
        keys = deal_keys(mesh, range(parameters.parties))
    dealer = Dealer([keys[rank] for rank in range(parameters.parties)], recorder)
    with recorder.phase("offline"):
        for request in _requests(mesh, recorder):
            with recorder.region(request.kind.name.lower()):
                correction = dealer.correction(request)
                if correction.numel():
                    with recorder.op("deliver"):
                        mesh.deliver(correction, 0)
                        recorder.primitive("dealer_bytes", times=request.correction_bytes)
        with recorder.op("deliver"):
            mesh.delivered()


def ask(requests: Sequence[Request], mesh: Mesh, dealer: int) -> None:
    """Send the dealer so many requests in one message, after one with their number."""
    mesh.send(torch.tensor([len(requests)]), dealer)
    mesh.send(torch.stack([request.header() for request in requests]), dealer)


def _requests(mesh: Mesh, recorder: Recorder) -> Iterator[Request]:
    """What the first party asks for, until it says stop."""
    while True:
        with recorder.op(WAIT):
            count = _sensible(int(mesh.receive(torch.zeros(1, dtype=torch.int64), 0)))
            headers = mesh.receive(torch.zeros((count, HEADER_WORDS), dtype=torch.int64), 0)
            recorder.primitive("dealer_requests")
        for header in headers:
            request = Request.parse(header)
            if request.kind is Kind.STOP:
                return
            yield request


def _sensible(count: int) -> int:
    if not 1 <= count <= _MOST_REQUESTS:
        raise EngineError("the dealer received a malformed request; all parties must run the same version")
    return count
