"""Tensors of ciphertexts: what does not depend on where their values lie."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from typing_extensions import Self

from secureattn.backends.ckks.cipher import Cipher, OutOfLevels
from secureattn.backends.ckks.evaluating import Evaluating
from secureattn.backends.ckks.machine import Machine
from secureattn.polynomial import Polynomial, evaluate
from secureattn.tensor import Public, Tensor, Weight

Parts = Any
"""An object array of Ciphers."""


class CipherTensor(Tensor):
    """``parts`` of ciphertexts behind a logical shape; the subclass knows which value lies in which slot."""

    backend: Evaluating  # type: ignore[assignment]  # its subclasses make weights, each of its own kind
    parts: Parts

    @property
    def level(self) -> int:
        """Rescales left in the lowest part."""
        return int(min(part.level for part in self.parts.flat))

    @property
    def machine(self) -> Machine:
        """What computes on ciphertexts."""
        return self.backend.machine

    @abstractmethod
    def _plus(self, value: Public | Weight) -> Parts:
        """The parts of the sum with a public value."""

    @abstractmethod
    def _times(self, value: Public | Weight) -> Parts:
        """The parts of the product with a public value."""

    @abstractmethod
    def _of(self, parts: Parts, tensors: Sequence[Self]) -> Self:
        """Parts computed elementwise from tensors, with the shape and layout that those have in common."""

    @abstractmethod
    def _new(self, parts: Parts) -> Self:
        """The same shape and layout with other parts."""

    # ---- elementwise ----------------------------------------------------------------------------------------

    def __add__(self, other: Self | Weight | Public) -> Self:
        with self._op("add"):
            if isinstance(other, CipherTensor):
                return self._joined(self._sum, cast(Self, other))
            return self._made(self._new(self._plus(other)))

    def __mul__(self, other: Self | Weight | Public) -> Self:
        with self._op("multiply"):
            if isinstance(other, CipherTensor):
                return self._joined(lambda a, b: combined(self.machine, products=[(a, b)]), cast(Self, other))
            return self._made(self._new(self._times(other)))

    def __neg__(self) -> Self:
        with self._op("negate"):
            return self._made(self._new(self._map(lambda a: self.machine.negate(self.machine.lowered(a)))))

    def square(self) -> Self:
        return self.combine(products=[(self, self)])

    def combine(
        self,
        terms: Sequence[tuple[float, Self]] = (),
        products: Sequence[tuple[Self, Self]] = (),
        constant: float = 0.0,
    ) -> Self:
        tensors = [x for _, x in terms] + [x for pair in products for x in pair]
        with self._op("combine" if terms or len(products) > 1 else "square"):
            self._of(self.parts, tensors)  # refuses what has nothing in common
            shape = np.broadcast_shapes(*(x.parts.shape for x in tensors))
            wide: dict[int, list[Cipher]] = {id(x): list(np.broadcast_to(x.parts, shape).flat) for x in tensors}

            def part(at: int) -> Cipher:
                pairs = [(wide[id(a)][at], wide[id(b)][at]) for a, b in products]
                return combined(self.machine, [(c, wide[id(x)][at]) for c, x in terms], pairs, constant)

            def alike(at: int) -> object:
                return tuple(id(row[at]) for row in wide.values())

            parts = as_parts(self.machine.map(part, range(math.prod(shape)), alike=alike), shape)
            return self._made(self._of(parts, tensors))

    def polynomial(self, p: Polynomial) -> Self:
        if p.depth > self.level:
            raise OutOfLevels(f"a polynomial of degree {p.degree}", p.depth, self.level).at(self.backend.recorder.path)
        with self._op("polynomial"):
            return self._made(self._new(self._map(lambda a: evaluate(p, Value(self.machine, a)).cipher)))

    def refresh(self, site: str) -> Self:
        fresh = self.backend.refresh(site, self.observe(site).parts)
        return self if fresh is None else self._new(as_parts(fresh, self.parts.shape))

    # ---- inner ----------------------------------------------------------------------------------------------

    @contextmanager
    def _op(self, name: str) -> Iterator[None]:
        """An operation for the ledger; levels that run out are reported with the place."""
        recorder = self.backend.recorder
        with recorder.op(name):
            try:
                yield
            except OutOfLevels as error:
                raise error.at(recorder.path) from None

    def _made(self, out: Self) -> Self:
        """The result of the operation now open."""
        self.backend.recorder.levels(self.level, out.level)
        return out

    def _map(self, f: Callable[[Cipher], Cipher]) -> Parts:
        return as_parts(self.machine.map(f, self.parts.flat), self.parts.shape)

    def _sum(self, a: Cipher, b: Cipher) -> Cipher:
        return self.machine.add(a, b, self.machine.place.start(min(a.level, b.level), 0))

    def _joined(self, f: Callable[[Cipher, Cipher], Cipher], other: Self) -> Self:
        """Part by part, broadcasting."""
        self._of(self.parts, [self, other])  # refuses what has nothing in common
        pairs: Parts = np.broadcast(self.parts, other.parts)
        parts = as_parts(self.machine.map(lambda pair: f(*pair), pairs, alike=ids), pairs.shape)
        return self._made(self._of(parts, [self, other]))


class Value:
    """One ciphertext inside a formula, for what evaluates it part by part: powers live no longer than their part."""

    def __init__(self, machine: Machine, cipher: Cipher) -> None:
        self.machine = machine
        self.cipher = cipher

    def __add__(self, other: float) -> Value:
        return self._unit(lambda: self.machine.add_public(self.machine.lowered(self.cipher), other))

    def __mul__(self, other: float) -> Value:
        depth = 0 if float(other).is_integer() else 1
        return self._unit(lambda: self.machine.times_constant(self.machine.lowered(self.cipher, depth), other))

    def combine(
        self,
        terms: Sequence[tuple[float, Value]] = (),
        products: Sequence[tuple[Value, Value]] = (),
        constant: float = 0.0,
    ) -> Value:
        """``Σ c_i·x_i + Σ a_j·b_j + constant``, rescaled and relinearised once."""
        ciphers = [(c, x.cipher) for c, x in terms]
        pairs = [(a.cipher, b.cipher) for a, b in products]
        return self._unit(lambda: combined(self.machine, ciphers, pairs, constant))

    def _unit(self, compute: Callable[[], Cipher]) -> Value:
        return Value(self.machine, self.machine.unit(compute))


def combined(
    machine: Machine,
    terms: Sequence[tuple[float, Cipher]] = (),
    products: Sequence[tuple[Cipher, Cipher]] = (),
    constant: float = 0.0,
) -> Cipher:
    """A unit: everything on one level and one scale, then one rescale and one relinearisation."""
    operands = [x for _, x in terms] + [x for pair in products for x in pair]
    what = "a product" if len(products) == 1 and not terms else "a sum of products"
    level = machine.begin_at(min(x.level for x in operands), what)
    total = machine.sum_of_products(products, level) if products else None
    if terms:
        linear = machine.weighted_sum(terms, level, machine.target(level) if total is None else total.scale)
        total = linear if total is None else machine.add(total, linear)
    assert total is not None
    if constant:
        total = machine.add_public(total, constant)
    return machine.finish(total)


def ids(ciphers: Iterable[Cipher]) -> tuple[int, ...]:
    """Which ciphertexts these are."""
    return tuple(map(id, ciphers))


def as_parts(ciphers: Sequence[Cipher], shape: tuple[int, ...] | None = None) -> Parts:
    """An object array of ciphertexts, flat unless a shape is given."""
    parts: Parts = np.empty(len(ciphers), dtype=object)
    parts[:] = list(ciphers)
    return parts if shape is None else parts.reshape(shape)
