"""Times SEAL's primitives on this machine, called as the engine calls them, and fits the cost model to them.

Ciphertexts are read from memory and not from a core's cache, as in a run, where others were in use since they were
made, and results go to memory that was in use before, but not lately.
"""

from __future__ import annotations

import datetime
import functools
import math
import mmap
import statistics
import time
from collections import deque
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
from secureattn.backends.ckks.team import Team, together

Progress = Callable[[str, int, int], None]
Rates = dict[str, float]

_COLD_BYTES = 1 << 25  # more than a core caches, of memory and of its pages' addresses
_MOST_LEVELS = 7  # to measure at; on chains with more, some are left out
_SHAPES = ((32, 32), (96, 32), (32, 96), (96, 96))  # [Dout, Din] of matrix products
_SPARE = 3
_SHARED_LEVEL = 2
_REWEIGHTED = 20  # times
_CLOSE = 0.05  # relative errors up to which squares count
_EXCHANGES = 20  # measured at once


def measure(progress: Progress, rings: Sequence[int] = RINGS) -> Costs:
    """This machine's costs on rings, about a minute for all where nothing else runs; EngineError where the engine is
    not installed.
    """
    primitives: dict[str, dict[int, Coefficients]] = {name: {} for name in PRIMITIVES}
    rates, done = dict(TYPICAL.rates), 0
    plans = [(parameters, sampled(parameters.levels)) for parameters in map(_largest, rings)]
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
        rates["keys"] = bench.key_s  # of the largest ring in the end, where nothing else counts
        if ring == RINGS[1]:
            progress("measuring matrix products and processes", done, steps)
            rates |= bench.matrices() | bench.sharing() | {"fresh_bytes": _fresh_s()}
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
    """Coefficients of ``a + b·k + c·k²`` with the least relative error on (k, seconds), among those that are positive
    at every k ≥ 1 and do not fall: a < 0 says that few residues fit in caches.
    """
    k, seconds = np.array(points).T
    terms = np.stack([np.ones_like(k), k, k**2], axis=1)
    a, b, c = _least(terms, seconds, lambda x: bool(x[1:].min() >= 0 and x.sum() > 0))
    return a, b, c


def _least(terms: Any, seconds: Any, sound: Callable[[Any], bool]) -> Any:
    """The least relative errors by any set of terms whose coefficients are sound, all others 0.

    Squares of small errors count, large ones as they are, so that one point taken at a bad moment does not bend the
    fit: Huber's M-estimator, by reweighted least squares (Huber 1964).
    """
    rows, best, least = terms / seconds[:, None], np.zeros(terms.shape[1]), math.inf
    for size in range(1, terms.shape[1] + 1):
        for used in map(list, combinations(range(terms.shape[1]), size)):
            found, weights = np.zeros(terms.shape[1]), np.ones((len(rows), 1))
            for _ in range(_REWEIGHTED):
                found[used] = np.linalg.lstsq(rows[:, used] * weights, weights[:, 0], rcond=None)[0]
                weights = np.maximum(np.abs(rows @ found - 1), _CLOSE)[:, None] ** -0.5
            off = np.abs(rows @ found - 1)
            error = float(np.where(off < _CLOSE, off**2, _CLOSE * (2 * off - _CLOSE)).sum())
            if sound(found) and error < least:
                least, best = error, found
    return best.tolist()


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
        start = time.perf_counter()
        owner = KeyOwner.generate(parameters, [1])
        seconds = time.perf_counter() - start
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
        _warm(e.negate, cold)
        yield "additions", _median(lambda part: e.add(total, part), cold, product)
        yield "pt_products", _median(product, cold)
        yield "encodes", _median(lambda _: e.encode(slots, level, scale), cold)
        yield "rotations", _median(lambda ct: e.rotate(ct, 1), cold)
        yield "encryptions", _median(lambda _: owner.encrypt(slots, level, scale), cold)
        blob = e.save(cold[0])
        yield "decryptions", _median(lambda _: owner.decrypt(blob), cold)
        if level:
            pairs = list(zip(cold, reversed(cold), strict=True))
            _warm(e.square, cold)
            yield "ct_products", _median(lambda pair: e.multiply(*pair), pairs)
            yield "squares", _median(e.square, cold)
            yield "relinearisations", _median(e.relinearize, cold, e.square)
            _warm(lambda ct: e.drop_to(ct, level - 1), cold)
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

    def matrices(self, level: int = 2) -> Rates:
        """Rates of weight matrices times ciphertexts."""
        ring, primes, scale = self.parameters.ring_degree, self.parameters.primes[: level + 1], 2.0
        random, terms, seconds = np.random.default_rng(0), [], []
        cold = self._cold(level, least=max(inputs for _, inputs in _SHAPES))
        residues = 2 * ring * len(primes)
        for shape in _SHAPES:
            weights = random.integers(-(1 << 39), 1 << 39, shape)
            inputs = cold[: shape[1]]
            run = functools.partial(self.evaluator.multiply_matrix, cts=inputs, level=level, scale=scale)
            seconds.append(_median(run, [weights], least=3))
            products = 2 * ring * shape[0] * gemm.gemm_products(primes, shape[1])
            terms.append([residues * shape[1], residues * shape[0], products])
        names = ("matrix_inputs", "matrix_outputs", "matrix_products")
        found = _least(np.array(terms, dtype=float), np.array(seconds), lambda x: bool(x.min() >= 0))
        return dict(zip(names, found, strict=True))

    def sharing(self, times: int = 7) -> Rates:
        """Rates of sharing work with a second process; none where this system cannot.

        The first rotates ciphertexts while the other waits, then both do.
        """
        if not processes.available():
            return {}
        e, cold = self.evaluator, self._cold(_SHARED_LEVEL, least=32)
        residues = len(cold) * 2 * (_SHARED_LEVEL + 1) * self.parameters.ring_degree

        def spent(compute: Callable[[Ciphertext], Any]) -> float:
            start = time.thread_time()
            _ = [compute(ct) for ct in cold]
            return time.thread_time() - start

        def rotated() -> float:
            return spent(lambda ct: e.rotate(ct, 1))

        def put(team: Team) -> float:
            places: list[int] = []
            seconds = spent(lambda ct: places.append(team.memory.put(team.rank, e.memory(ct))))
            for at in places:  # as both would
                team.memory.given_up(team.rank, [(at, e.memory(cold[0]).nbytes)] * team.size)
            return seconds

        def work(team: Team) -> Rates:
            slower, waited, sent = [], [], []
            for _ in range(times):
                team.exchange(None)
                alone = 0.0 if team.rank else rotated()
                team.exchange(None)
                both = rotated()
                team.exchange(None)
                start = time.perf_counter()
                for _ in range(_EXCHANGES):
                    team.exchange(None)
                waited.append((time.perf_counter() - start) / _EXCHANGES)
                sent.append(put(team) / residues)
                slower.append(both / alone if alone else 1.0)
            return {
                "together": max(1.0, statistics.median(slower)),
                "exchanges": statistics.median(waited),
                "residues_sent": statistics.median(sent[1:]),
            }

        return {**together(work, 2), "processes": self._start_s()}

    def _start_s(self, times: int = 3) -> float:
        """Seconds of starting a process and ending it, beyond what it does."""
        seconds = []
        for _ in range(times):
            start = time.perf_counter()
            together(lambda team: team.exchange(None), 2)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)


def _fresh_s(size: int = 1 << 26, times: int = 5) -> float:
    """Seconds a byte of memory that nobody has used takes more than others: pages are made when they are touched."""
    held, seconds = [], []
    for _ in range(times):
        held.append(np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8))  # given back, it would not be fresh again
        start = time.thread_time()
        held[-1][:: mmap.PAGESIZE] = 1
        seconds.append(time.thread_time() - start)
    return statistics.median(seconds) / size


def _median(
    compute: Callable[[Any], Any],
    items: Sequence[Any],
    prepare: Callable[[Any], Any] = lambda item: item,
    *,
    least: int = 7,
    enough_s: float = 0.06,
) -> float:
    """Median seconds of ``compute`` of the items in turn, so often and so long at least; ``prepare`` is not timed.

    Seconds of this thread, so that what else runs on the machine does not count. As many results are kept as there are
    items, so that later ones do not go where the last one has just been.
    """
    compute(prepare(items[0]))
    kept: deque[Any] = deque(maxlen=len(items))
    seconds: list[float] = []
    while len(seconds) < least or sum(seconds) < enough_s:
        item = prepare(items[len(seconds) % len(items)])
        start = time.thread_time()
        made = compute(item)
        seconds.append(time.thread_time() - start)
        kept.append(made)
        del made
    return statistics.median(seconds)


def _warm(make: Callable[[Any], Any], items: Sequence[Any]) -> None:
    """Make and drop more results than will be kept: memory that a process uses for the first time is slower."""
    _ = [make(item) for item in [*items, *items[:_SPARE]]]
