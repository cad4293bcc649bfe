"""The protocols on shares, written once: how products, matrix products and truncations use dealer and openings.

A runtime supplies a handful of primitives and inherits the protocols. The real one is ``CryptenRuntime``; the one of
``planning`` computes nothing, runs the same code on torch's meta tensors, and so counts what the real one will do.

Counted (``recorder.primitive``): ``rounds`` are collective calls among the parties; ``bytes_sent`` what this party
sends to other parties, 16·n·(P-1)/P bytes for n opened elements among P parties (an all-reduce over a ring), half as
many for those of a series; ``openings`` opened elements; ``dealer_bytes`` what this party receives from the dealer;
``dealer_requests`` round trips with it; ``dealer_macs`` its matrix work; ``keystream_bytes`` this party's part of the
masks; ``products`` elementwise Beaver products; ``macs`` ring multiply-accumulates of this party's matrix products;
``harmonics`` elements of a series times its harmonics; ``truncations`` and ``comparisons`` elements. What the dealer
does is in phase "offline".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from secureattn.backends.crypten.material import Kind, Request, elements, series_argument
from secureattn.backends.crypten.parameters import MpcParameters
from secureattn.errors import EngineError
from secureattn.events import Recorder
from secureattn.series import FourierSeries

_OFFSET = 1 << 62
_MOST_DEALT = 1 << 24  # elements of a series asked for at once: what the dealer holds of it
MODEL_OWNER = 0
CLIENT = 1


@dataclass(frozen=True)
class FixedMatrix:
    """A shared matrix W ``[n,k]`` opened against a mask that stays: W-b is public, b's share is kept."""

    number: int
    opened: torch.Tensor  # W - b
    local: torch.Tensor  # this party's share of b, plus W - b at party 0: adds up to W


class Runtime(ABC):
    """One party's view of a run. Shares are int64 tensors that add up to the value in Z_2^64."""

    def __init__(self, parameters: MpcParameters, rank: int) -> None:
        self.parameters = parameters
        self.rank = rank
        self.recorder = Recorder()
        self._fixed = 0
        self._agreed: dict[FourierSeries, FourierSeries] = {}
        self._ahead: deque[tuple[Request, tuple[torch.Tensor, ...]]] = deque()

    # ---- primitives -----------------------------------------------------------------------------------------

    @abstractmethod
    def constant(self, values: npt.NDArray[np.int64]) -> torch.Tensor:
        """Public ring elements as a tensor of this runtime."""

    @abstractmethod
    def share(self, values: npt.NDArray[np.int64], *, owner: int) -> torch.Tensor:
        """This party's share of what ``owner`` holds; the others' values are ignored. No message is sent."""

    @abstractmethod
    def reveal(self, share: torch.Tensor, *, to: int | None) -> torch.Tensor | None:
        """The plain value at party ``to``, None elsewhere; at every party for ``to=None``. One round."""

    @abstractmethod
    def _from_first(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The first party's public numbers at every party, to the last bit. One round."""

    @abstractmethod
    def _deal(self, request: Request) -> tuple[torch.Tensor, ...]:
        """This party's shares of masks and derived values; counts dealer_bytes."""

    @abstractmethod
    def _exchange(self, flat: torch.Tensor) -> torch.Tensor:
        """Sum over all parties, known to all; counts rounds, bytes_sent and openings."""

    @abstractmethod
    def _sign_bit(self, share: torch.Tensor) -> torch.Tensor:
        """Shares of 1 where the value is negative, else 0, through a binary adder."""

    @abstractmethod
    def _multiply(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """A local matrix product in the ring; counts macs."""

    @abstractmethod
    def _turned_back(
        self, opened: torch.Tensor, dealt: torch.Tensor, series: FourierSeries, bits: int, places: int
    ) -> torch.Tensor:
        """Local: see ``harmonics.turned_back``; counts harmonics."""

    def count(self, name: str, times: int, seconds: float = 0.0) -> None:
        """Count a primitive with the seconds it took."""
        self.recorder.primitive(name, times=times, seconds=seconds)

    # ---- dealer ---------------------------------------------------------------------------------------------

    def deal(self, request: Request) -> tuple[torch.Tensor, ...]:
        """Correlated randomness for one step, from what ``prepare`` dealt ahead or else from the dealer now."""
        if self._ahead:
            expected, material = self._ahead.popleft()
            if expected != request:
                raise EngineError(f"{request} was asked for, but {expected} was prepared; prepare the same run")
            return material
        with self._offline():
            self.count("dealer_requests", 1)
            self.count("keystream_bytes", request.keystream_bytes(self.rank))
            self.count("dealer_macs", request.dealer_macs)
            if request.dealer_harmonics:
                self.count("harmonics", request.dealer_harmonics)
            return self._deal(request)

    def prepare(self, requests: Iterable[Request]) -> None:
        """Deal ahead, in the order a planning run noted in ``NullRuntime.requests``. Holds it all in memory."""
        ahead = [(request, self.deal(request)) for request in requests]
        self._ahead.extend(ahead)

    @contextmanager
    def _offline(self) -> Iterator[None]:
        with self.recorder.phase("offline"), self.recorder.op("deal"):
            yield

    # ---- protocols ------------------------------------------------------------------------------------------

    def open(self, shares: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Plain values of several shared tensors at all parties. Cost: one round, 8 bytes an element (P = 2)."""
        flat = shares[0].reshape(-1) if len(shares) == 1 else torch.cat([share.reshape(-1) for share in shares])
        opened = self._exchange(flat)
        parts = torch.split(opened, [share.numel() for share in shares])
        return [part.reshape(share.shape) for part, share in zip(parts, shares, strict=True)]

    def public(self, share: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Add a public tensor: one party does, the others only broadcast."""
        if self.rank == 0:
            return share + values
        return share.expand(np.broadcast_shapes(share.shape, values.shape))

    def products(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        """``x·y`` of every pair, broadcasting, not scaled back; a square where both are the same tensor.

        Formula: with e = x-a, d = y-b opened, x·y = a·b + a·d + e·b + e·d. Cost: one round in all, opening |x|+|y|
        elements a pair (|x| for a square), 8·|x·y| dealer bytes. Source: Beaver, CRYPTO 1991.
        """
        material, masked = [], []
        for x, y in pairs:
            same = x is y
            request = (
                Request(Kind.SQUARE, tuple(x.shape)) if same else Request(Kind.PRODUCT, tuple(x.shape), tuple(y.shape))
            )
            *masks, c = self.deal(request)
            self.count("products", c.numel())
            material.append((masks, c))
            masked += [share - mask for share, mask in zip((x, y), masks, strict=not same)]
        opened = iter(self.open(masked))
        results = []
        for masks, c in material:
            e = next(opened)
            if len(masks) == 1:
                results.append(self.public(c + 2 * masks[0] * e, e * e))
            else:
                d = next(opened)
                results.append(c + masks[0] * d + e * self.public(masks[1], d))
        return results

    def inner(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``Σ x·y`` over the last axis, kept as 1, not scaled back.

        Cost: one round opening |x|+|y| elements (|x| where both are the same tensor), 8 dealer bytes a sum.
        """
        if x is y:
            a, c = self.deal(Request(Kind.INNER_SQUARE, tuple(x.shape)))
            self.count("products", x.numel())
            (e,) = self.open([x - a])
            return self.public(c + 2 * (a * e).sum(-1, keepdim=True), (e * e).sum(-1, keepdim=True))
        a, b, c = self.deal(Request(Kind.INNER, tuple(x.shape), tuple(y.shape)))
        self.count("products", elements(np.broadcast_shapes(x.shape, y.shape)))
        e, d = self.open([x - a, y - b])
        return c + (a * d + e * self.public(b, d)).sum(-1, keepdim=True)

    def matmul(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """``x·y`` of matrices ``[..,m,k]``, ``[..,k,n]``, not scaled back.

        Cost: one round opening |x|+|y| elements, 8·|x·y| dealer bytes, 2·m·k·n MACs a matrix.
        """
        a, b, c = self.deal(Request(Kind.MATMUL, tuple(x.shape), tuple(y.shape)))
        e, d = self.open([x - a, y - b])
        return c + self._multiply(a, d) + self._multiply(e, self.public(b, d))

    def fix(self, weight: torch.Tensor) -> FixedMatrix:
        """Open a matrix W ``[n,k]`` once against a mask that stays. Cost: one round opening |W| elements."""
        number, self._fixed = self._fixed, self._fixed + 1
        (b,) = self.deal(Request(Kind.FIX, tuple(weight.shape), argument=number))
        (opened,) = self.open([weight - b])
        return FixedMatrix(number, opened, self.public(b, opened))

    def matmul_fixed(self, x: torch.Tensor, weight: FixedMatrix) -> torch.Tensor:
        """``x·Wᵀ`` of ``[m,k]`` with a fixed ``[n,k]``, not scaled back.

        Formula: with e = x-a opened and d = W-b opened before, x·Wᵀ = a·bᵀ + a·dᵀ + e·Wᵀ; the first two are dealt
        and worked out offline. Cost: one round opening m·k elements, m·n·k MACs online and as many offline, 8·m·n
        dealer bytes. Source: Mohassel and Zhang, SecureML, S&P 2017, IV-A (masks of matrices used again).
        """
        shapes = tuple(x.shape), tuple(weight.opened.shape)
        a, c = self.deal(Request(Kind.MATMUL_FIXED, *shapes, argument=weight.number))
        with self._offline():
            c = c + self._multiply(a, weight.opened.t())
        (e,) = self.open([x - a])
        return c + self._multiply(e, weight.local.t())

    def negative(self, share: torch.Tensor) -> torch.Tensor:
        """1 where the value, as a signed number, is below zero, else 0 (an integer: no fractional bits).

        Cost: 8 rounds and 27 opened, 14 dealt elements an element for two parties (``planning.NullRuntime``).
        Source: CrypTen (Knott et al., NeurIPS 2021), A2B by a Sklansky adder, B2A with a dealt bit.
        """
        self.count("comparisons", share.numel())
        return self._sign_bit(share)

    def agreed(self, f: FourierSeries) -> FourierSeries:
        """The series with the first party's coefficients.

        A fit may differ in its last bits from machine to machine, and public factors must not: a factor that is one
        unit off at one party adds a whole random share. Cost: on first use one round opening the coefficients, in
        phase "setup".
        """
        if f not in self._agreed:
            with self.recorder.phase("setup"), self.recorder.op("agree"):
                values = self._from_first(np.array([f.constant, f.linear, *f.cosines, *f.sines])).tolist()
            cosines, sines = values[2 : 2 + f.harmonics], values[2 + f.harmonics :]
            self._agreed[f] = replace(
                f, constant=values[0], linear=values[1], cosines=tuple(cosines), sines=tuple(sines)
            )
        return self._agreed[f]

    def series(
        self, share: torch.Tensor, series: FourierSeries, *, bits: int, factor_places: int, dealt_places: int
    ) -> torch.Tensor:
        """The sum of the harmonics at angle ``2πx/2^bits``, with ``factor_places + dealt_places`` binary places.

        Formula: open X = x + δ mod 2^bits, turn the dealt cosines and sines of δ back by it (``turned_back``).
        Hiding: party i sends (x_i + δ_i) mod 2^bits and nothing else of x. Its δ_i is drawn from its own key and serves
        once; what is dealt tells others nothing of it, for any P-1 shares of a dealt value are uniform whatever δ is.
        So to all other parties together what i sends is uniform whatever x is, and so is a sum it is part of.
        Cost: one round opening |x| elements of 4 bytes up to 32 bits, else of 8; 16·K·|x| dealer bytes and 2·K·|x|
        ring multiply-accumulates for K harmonics.
        Source: SecFormer (Luo et al., ACL Findings 2024) and Zheng et al., ACSAC 2023, for sines of a masked angle.
        """
        flat, argument = share.reshape(-1), series_argument(bits, dealt_places)
        parts = torch.split(flat, max(1, _MOST_DEALT // (2 * series.harmonics)))
        requests = [Request(Kind.SERIES, (part.numel(),), (2, series.harmonics), argument) for part in parts]
        masks, dealt = zip(*map(self.deal, requests), strict=True)
        low = (1 << bits) - 1
        masked = (flat + torch.cat(masks)) & low
        opened = self._exchange(masked.to(torch.int32) if bits <= 32 else masked).to(torch.int64) & low
        opened_parts = torch.split(opened, [part.numel() for part in parts])
        made = [
            self._turned_back(x, values, series, bits, factor_places)
            for x, values in zip(opened_parts, dealt, strict=True)
        ]
        return torch.cat(made).reshape(share.shape)

    def truncate(self, shares: Sequence[torch.Tensor], bits: int) -> list[torch.Tensor]:
        """``z / 2^bits`` of several shared tensors at once.

        Domain: |z| < 2^62 (exact). Error: exact, less than 1 unit in the last place and zero on average, always;
        local, the same but for a gross error with probability |z|/2^63. Cost: exact, one round opening |z| elements,
        16·|z| dealer bytes; local, none.
        """
        flat = torch.cat([share.reshape(-1) for share in shares]) if len(shares) > 1 else shares[0].reshape(-1)
        self.count("truncations", flat.numel())
        local = self.parameters.truncation == "local"
        scaled = self._truncate_local(flat, bits) if local else self._truncate_exact(flat, bits)
        parts = torch.split(scaled, [share.numel() for share in shares])
        return [part.reshape(share.shape) for part, share in zip(parts, shares, strict=True)]

    def _truncate_local(self, z: torch.Tensor, bits: int) -> torch.Tensor:
        # Mohassel and Zhang, SecureML, S&P 2017, theorem 1: each of two parties shifts its own share
        return z >> bits if self.rank == 0 else -(-z >> bits)

    def _truncate_exact(self, z: torch.Tensor, bits: int) -> torch.Tensor:
        """Open z + r with dealt r, r >> bits and top bit t of r.

        Let y = z + 2^62, so 0 ≤ y < 2^63, and c = y + r mod 2^64 = y + r - w·2^64. Then
        ⌊(y+r)/2^f⌋ = ⌊c/2^f⌋ + w·2^(64-f) = ⌊y/2^f⌋ + ⌊r/2^f⌋ + e, where e ∈ {0,1} carries out of the low f bits, so
        ⌊c/2^f⌋ + w·2^(64-f) - ⌊r/2^f⌋ - 2^(62-f) = ⌊z/2^f⌋ + e; and e = 1 with probability (z mod 2^f)/2^f.
        The wrap w is known: if w = 1, r ≥ 2^64 - y > 2^63 so t = 1, and c = y - (2^64 - r) < 2^63, top bit 0; if w = 0
        and t = 1, c ≥ r ≥ 2^63, top bit 1. Hence w = t·(1 - top bit of c), linear in the shared t. c is uniform: it
        hides y perfectly. After Dalskov, Escudero and Keller, PoPETs 2020 (4), and Escudero et al., CRYPTO 2020.
        """
        r, high, top = self.deal(Request(Kind.TRUNCATE, tuple(z.shape), argument=bits))
        (c,) = self.open([z + r + _OFFSET if self.rank == 0 else z + r])
        kept = 64 - bits
        scaled = ((top * (c >= 0)) << kept) - high
        return self.public(scaled, ((c >> bits) & ((1 << kept) - 1)) - (_OFFSET >> bits))
