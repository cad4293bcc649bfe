"""Times SEAL's primitives on this machine, called as the engine calls them, and fits the cost model to them.

Ciphertexts are read from memory and not from a cache, as in a run, where other ciphertexts were in use since they were
made; results go where earlier ones were freed.
"""

from __future__ import annotations

import datetime
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from secureattn.backends.ckks import gemm, processes
from secureattn.backends.ckks.costs import PRIMITIVES, TYPICAL, Coefficients, Costs, key_transforms
from secureattn.backends.ckks.evaluator import SealEvaluator
from secureattn.backends.ckks.keys import KeyOwner
from secureattn.backends.ckks.parameters import RINGS, CkksParameters, chain, most_levels
from secureattn.backends.ckks.seal import Ciphertext

Progress = Callable[[str, int, int], None]
Rates = dict[str, float]

_COLD_BYTES = 1 << 24  # more than a core has caches of its own
_MOST_LEVELS = 9  # to measure at; on chains with more, some are left out
_SHAPES = ((32, 32), (96, 32), (32, 96), (96, 96))  # [Dout, Din] of matrix products
_SHARED_LEVEL = 2


def measure(progress: Progress) -> Costs:
    """This machine's costs, under a minute where nothing else runs; EngineError where the engine is not installed."""
    primitives: dict[str, dict[int, Coefficients]] = {name: {} for name in PRIMITIVES}
    rates, done = dict(TYPICAL.rates), 0
    plans = [(parameters, sampled(parameters.levels)) for parameters in map(_largest, reversed(RINGS))]
    steps = sum(len(levels) for _, levels in plans)
    for parameters, levels in plans:
        ring = parameters.ring_degree
        progress(f"making keys at ring degree {ring}", done, steps)
        bench = Bench.made(parameters)
        samples: dict[str, list[tuple[int, float]]] = {name: [] for name in PRIMITIVES}
        for level in levels:
            progress(f"measuring ring degree {ring} at level {level}", done, steps)
            for name, seconds in bench.primitives(level):
                samples[name].append((level + 1, seconds))
            done += 1
        for name, points in samples.items():
            primitives[name][ring] = fitted(points)
        if ring == RINGS[1]:
            rates |= {"keys": bench.key_s} | bench.matrices() | bench.sharing()
    return Costs(primitives, rates, datetime.date.today().isoformat())


def _largest(ring_degree: int) -> CkksParameters:
    return chain(ring_degree, most_levels(ring_degree))


def sampled(levels: int) -> list[int]:
    """Levels to measure at: all, or as many spread over 0 … ``levels``, closer at the lower end."""
    if levels < _MOST_LEVELS:
        return list(range(levels + 1))
    steps = _MOST_LEVELS - 1
    return sorted({*range(3), *(round(levels * (i / steps) ** 1.5) for i in range(2, steps + 1))})


def fitted(points: Sequence[tuple[int, float]]) -> Coefficients:
    """Coefficients ≥ 0 of ``a + b·k + c·k²`` with the least relative squared error on (k, seconds)."""
    k, seconds = np.array(points).T
    a, b, c = _least_squares(np.stack([np.ones_like(k), k, k**2], axis=1), seconds)
    return a, b, c


def _least_squares(terms: Any, seconds: Any) -> list[float]:
    """Relative least squares with coefficients ≥ 0: the best of all sets of terms whose coefficients are."""
    rows, best, least = terms / seconds[:, None], [0.0] * terms.shape[1], math.inf
    for size in range(1, terms.shape[1] + 1):
        for used in map(list, combinations(range(terms.shape[1]), size)):
            found = np.linalg.lstsq(rows[:, used], np.ones(len(rows)), rcond=None)[0]
            error = float(((rows[:, used] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least:
                least, best = error, [0.0] * terms.shape[1]
                for at, value in zip(used, found, strict=True):
                    best[at] = float(value)
    return best


@dataclass(frozen=True)
class Bench:
    """Both roles under some parameters, with a rotation key by one step."""

    owner: KeyOwner
    evaluator: SealEvaluator
    key_s: float
    """Seconds of making a key per step of ``key_transforms``."""
    _slots: Any = field(repr=False)

    @classmethod
    def made(cls, parameters: CkksParameters) -> Bench:
        """Keys are timed while they are made."""
        owner, seconds = _timed(lambda: KeyOwner.generate(parameters, [1]))
        steps = 3 * key_transforms(parameters.ring_degree, len(parameters.primes))  # public, relinearisation, Galois
        slots = np.random.default_rng(0).uniform(-1, 1, parameters.slots)
        assert owner.evaluation_keys is not None
        return cls(owner, SealEvaluator(parameters, owner.evaluation_keys), seconds / steps, slots)

    @property
    def parameters(self) -> CkksParameters:
        """Ring and primes."""
        return self.owner.parameters

    def primitives(self, level: int) -> Iterator[tuple[str, float]]:
        """Name and seconds of every primitive that a ciphertext at a level can meet."""
        e, owner, scale, slots = self.evaluator, self.owner, self.parameters.scales[-1], self._slots
        cold = self._cold(level)

        def product(ct: Ciphertext) -> Ciphertext:
            return e.multiply_constant(ct, 37.0, 1.0)

        total = product(cold[0])
        yield "additions", _median(lambda part: e.add(total, part), cold, product)
        yield "pt_products", _median(product, cold)
        yield "encodes", _median(lambda _: e.encode(slots, level, scale), cold)
        yield "rotations", _median(lambda ct: e.rotate(ct, 1), cold)
        yield "encryptions", _median(lambda _: owner.encrypt(slots, level, scale), cold)
        blob = e.save(cold[0])
        yield "decryptions", _median(lambda _: owner.decrypt(blob), cold)
        if level:
            pairs = list(zip(cold, reversed(cold), strict=True))
            yield "ct_products", _median(lambda pair: e.multiply(*pair), pairs)
            yield "squares", _median(e.square, cold)
            yield "relinearisations", _median(e.relinearize, cold, e.square)
            yield "rescales", _median(e.rescale, cold)
            low = [e.drop_to(ct, 1) for ct in cold]
            yield "refreshes", _median(lambda ct: self._refreshed(ct, level), low)

    def _refreshed(self, ct: Ciphertext, level: int) -> Ciphertext:
        mask = self.evaluator.draw_mask(ct.scale, level)
        (answer,) = self.owner.refresh([self.evaluator.mask(ct, mask)], [level])
        return self.evaluator.unmask(answer, mask)

    def _cold(self, level: int, least: int = 4) -> list[Ciphertext]:
        """Ciphertexts at a level, too many for caches."""
        fresh = self.evaluator.load(self.owner.encrypt(self._slots))
        count = max(least, _COLD_BYTES // self.parameters.ciphertext_bytes(level))
        return [self.evaluator.drop_to(fresh, level) for _ in range(count)]

    def matrices(self, level: int = 3) -> Rates:
        """Rates of weight matrices times ciphertexts."""
        ring, primes, scale = self.parameters.ring_degree, self.parameters.primes[: level + 1], 2.0
        random, terms, seconds = np.random.default_rng(0), [], []
        cold = self._cold(level, least=max(inputs for _, inputs in _SHAPES))
        residues = 2 * ring * len(primes)
        for shape in _SHAPES:
            weights = random.integers(-(1 << 39), 1 << 39, shape)
            inputs = cold[: shape[1]]
            seconds.append(_median(lambda w, x=inputs: self.evaluator.multiply_matrix(w, x, level, scale), [weights]))
            products = 2 * ring * shape[0] * gemm.gemm_products(primes, shape[1])
            terms.append([residues * shape[1], residues * shape[0], products])
        names = ("matrix_inputs", "matrix_outputs", "matrix_products")
        return dict(zip(names, _least_squares(np.array(terms, dtype=float), np.array(seconds)), strict=True))

    def sharing(self) -> Rates:
        """Rates of sharing work with a second process; none where this system cannot."""
        if not processes.available():
            return {}
        cold = self._cold(_SHARED_LEVEL, least=32)
        residues = len(cold) * 2 * (_SHARED_LEVEL + 1) * self.parameters.ring_degree
        start = _median(lambda _: self._shared(cold[:0], self.evaluator.negate), [0])

        def alone_and_shared(compute: Callable[[Ciphertext], Ciphertext]) -> tuple[float, float]:
            alone = _median(lambda _: [compute(ct) for ct in cold], [0])
            return alone, _median(lambda _: self._shared(cold, compute), [0])

        alone, shared = alone_and_shared(self.evaluator.negate)
        sent = max(0.0, shared - alone - start)
        alone, shared = alone_and_shared(lambda ct: self.evaluator.rotate(ct, 1))
        together = max(1.0, (shared - start - sent) / alone)
        return {"processes": start, "residues_sent": sent / residues, "together": together}

    def _shared(self, cts: Sequence[Ciphertext], compute: Callable[[Ciphertext], Ciphertext]) -> None:
        """Two processes make as much each, and one sends it to the other."""
        e = self.evaluator

        def other() -> processes.Parcel:
            made = [compute(ct) for ct in cts]
            return processes.Parcel([e.memory(ct) for ct in made])

        _, (delivery,) = processes.shared(lambda: [compute(ct) for ct in cts], [other])
        for ct in cts:
            e.received(delivery.read, 2, e.level(ct), ct.scale)
        delivery.close()


def _timed(compute: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    made = compute()
    return made, time.perf_counter() - start


def _median(
    compute: Callable[[Any], Any],
    items: Sequence[Any],
    prepare: Callable[[Any], Any] = lambda item: item,
    *,
    least: int = 5,
    enough_s: float = 0.06,
) -> float:
    """Median seconds of ``compute`` of the items in turn, at least so often, and for so long; ``prepare`` is not timed."""
    compute(prepare(items[0]))
    seconds: list[float] = []
    while len(seconds) < least or sum(seconds) < enough_s:
        item = prepare(items[len(seconds) % len(items)])
        seconds.append(_timed(lambda: compute(item))[1])
    return statistics.median(seconds)
