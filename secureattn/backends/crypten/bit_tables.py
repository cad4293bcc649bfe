"""Whether a public number is below a masked one, from tables of its digits that a dealer makes ahead.

Let r be a dealt mask and c public, both of n bits. Bits are cut into digits of four, digits into groups of four. For
every digit the dealer shares two tables of 16 bits, [u < r_digit] and [u = r_digit] for all u, each XORed with a mask
bit of its own: looked up at c's digit they give a share of a masked bit, without a message. One opening of these bits,
and a group's [c < r] and [c = r] are, by ``lt = ⊕_j lt_j·Π_{i>j} eq_i``, polynomials in the mask bits with public
coefficients; the dealer shares all products of mask bits that occur. Those two bits of each group, masked again, are
opened too, and in the same way the result is linear in products dealt as numbers of the ring.

Hiding: a table is read at one place only, and its bit is XORed with a mask that serves once; so what is opened is
uniform whatever r and c are. Every share but what is looked up stays where it is.
Source: one-time truth tables (Ishai, Kushilevitz, Meldgaard, Orlandi and Paskin-Cherniavsky, TCC 2013) for digits;
products of several factors in one round (Patra, Schneider, Suresh and Yalame, ABY2.0, USENIX Security 2021).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from secureattn.backends.crypten.ring import blocks

DIGIT_BITS = 4
DIGITS = 4  # of a group
GROUP_BITS = DIGIT_BITS * DIGITS
MOST_BITS = 60
_WORD = 2 * DIGITS + 2  # mask bits of a group: lt of its digits, eq of its digits, then its own lt and eq
_BLOCK = 1 << 14  # elements at a time: what is worked on stays in the second-level cache
_LANES = 0x10001  # the bit looked up in two 16-bit tables that lie side by side

Variables = frozenset[int]


@dataclass(frozen=True)
class BitTables:
    """The comparison of ``bits``-bit numbers: what is dealt, and what a party does with it. All tensors are int64.

    ``tables`` and ``monomials``: words dealt for an element, XOR shared and additively.
    """

    bits: int

    @property
    def groups(self) -> int:
        """Groups of 16 bits."""
        return -(-self.bits // GROUP_BITS)

    @property
    def tables(self) -> int:
        """Two words of tables a group, and one of products of mask bits for every two."""
        return 2 * self.groups + -(-self.groups // 2)

    @property
    def monomials(self) -> int:
        """Products of the groups' mask bits, and two words of r's top bits."""
        return len(_final(self.groups)[0]) + 2

    def deal(self, r: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What follows from r ``[k]``, of bits + 2 bits, and a word of mask bits ``[k]``: ``[tables,k]``,
        ``[monomials,k]``.
        """
        words = torch.zeros((self.tables, len(r)), dtype=torch.int64)
        monomials = torch.empty((self.monomials, len(r)), dtype=torch.int64)
        for block in blocks(r, _BLOCK):
            self._deal(r[block], masks[block], words[:, block], monomials[:, block])
        return words, monomials

    def _deal(self, r: torch.Tensor, masks: torch.Tensor, words: torch.Tensor, monomials: torch.Tensor) -> None:
        low, own = r & ((1 << self.bits) - 1), torch.zeros_like(masks)
        for group in range(self.groups):
            bit = masks >> (_WORD * group)
            for digit in range(DIGITS):
                value = (low >> (GROUP_BITS * group + DIGIT_BITS * digit)) & 15
                index = value | (bit >> digit & 1) << 4 | (bit >> (DIGITS + digit) & 1) << 5
                words[2 * group + digit // 2] |= _digit_tables()[index] << (32 * (digit % 2))
            word = 2 * self.groups + group // 2
            words[word] |= _products()[bit & ((1 << _WORD) - 1)] << (32 * (group % 2))
            own |= (bit >> (2 * DIGITS) & 1) << group
            if group:
                own |= (bit >> (2 * DIGITS + 1) & 1) << (self.groups + group - 1)
        sets, _ = _final(self.groups)
        for i, s in enumerate(sets):
            chosen = sum(1 << v for v in s)
            monomials[i] = (own & chosen) == chosen
        monomials[-2] = r >> self.bits & 3
        monomials[-1] = r >> (self.bits + 1) & 1

    def looked_up(self, c: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Shares of the digits' masked bits at public c ``[k]``: ``[groups,k]`` of a byte each, lt low and eq high."""
        result = torch.empty((self.groups, len(c)), dtype=torch.uint8, device=c.device)
        for block in blocks(c, _BLOCK):
            low = c[block] & ((1 << self.bits) - 1)
            for group in range(self.groups):
                found = torch.zeros_like(low)
                for digit in range(DIGITS):
                    value = (low >> (GROUP_BITS * group + DIGIT_BITS * digit)) & 15
                    table = words[2 * group + digit // 2, block]
                    found |= (table >> (value + 32 * (digit % 2)) & _LANES) << digit
                result[group, block] = ((found & 15) | (found >> (16 - DIGITS) & 0xF0)).to(torch.uint8)
        return result

    def grouped(self, opened: torch.Tensor, words: torch.Tensor, *, first: bool) -> torch.Tensor:
        """Shares of the groups' masked bits from the digits' opened ones ``[groups,k]``: a byte ``[k]``."""
        result = torch.empty(opened.shape[1:], dtype=torch.uint8, device=opened.device)
        coefficients, constants = _coefficients().to(opened.device)
        for block in blocks(result, _BLOCK):
            found = torch.zeros_like(words[0, block])
            for group in range(self.groups):
                index = opened[group, block].long()
                products = (words[2 * self.groups + group // 2, block] >> (32 * (group % 2))) & 0xFFFFFFFF
                both = (products | products << 32) & coefficients[index]
                for shift in (16, 8, 4, 2, 1):
                    both ^= both >> shift
                if first:
                    both ^= constants[index]
                found |= (both & 1) << group
                if group:
                    found |= (both >> 32 & 1) << (self.groups + group - 1)
            result[block] = found.to(torch.uint8)
        return result

    def below(self, opened: torch.Tensor, monomials: torch.Tensor, *, first: bool) -> torch.Tensor:
        """A share, in the ring, of [c < r] for the low bits, from the groups' opened bits ``[k]``."""
        sets, table = _final(self.groups)
        table = table.to(opened.device)
        total = torch.zeros(opened.shape, dtype=torch.int64, device=opened.device)
        for block in blocks(total, _BLOCK):
            index = opened[block].long()
            if first:
                total[block] = table[len(sets)][index]
            for row, values in zip(table, monomials[: len(sets), block], strict=False):
                total[block].addcmul_(row[index], values)
        return total


@functools.cache
def _digit_tables() -> torch.Tensor:
    """Both tables of a digit, for r's digit (low four bits of the index), lt's mask bit and eq's (above them)."""
    rows = []
    for index in range(64):
        value, below, equal = index & 15, index >> 4 & 1, index >> 5
        rows.append((((1 << value) - 1) ^ (0xFFFF * below)) | ((1 << value) ^ (0xFFFF * equal)) << 16)
    return torch.tensor(rows, dtype=torch.int64)


def _terms(count: int) -> Iterator[Variables]:
    """The products whose sum says "less": lt_j and eq_i for all i > j. Variable j is lt_j, count + i is eq_i."""
    return (frozenset({j, *(count + i for i in range(j + 1, count))}) for j in range(count))


def _subsets(variables: Variables) -> Iterator[Variables]:
    ordered = sorted(variables)
    chosen = (itertools.combinations(ordered, n) for n in range(len(ordered) + 1))
    return map(frozenset, itertools.chain.from_iterable(chosen))


def _all_subsets(terms: Sequence[Variables]) -> list[Variables]:
    """Every subset of a term but the empty one, each once."""
    return list(dict.fromkeys(s for term in terms for s in _subsets(term) if s))


@functools.cache
def _inner() -> tuple[tuple[Variables, ...], Variables, list[Variables]]:
    """Of a group: the terms of lt, the one of eq, and the products of mask bits that occur: 30 of them."""
    less, equal = tuple(_terms(DIGITS)), frozenset(range(DIGITS, 2 * DIGITS))
    return less, equal, _all_subsets([*less, equal])


@functools.cache
def _products() -> torch.Tensor:
    """For a group's ten mask bits, all products that occur, side by side, and its own two masks above them."""
    _, _, sets = _inner()
    rows = []
    for bits in range(1 << _WORD):
        word = sum(all(bits >> v & 1 for v in s) << i for i, s in enumerate(sets))
        rows.append(word | (bits >> (2 * DIGITS)) << len(sets))
    return torch.tensor(rows, dtype=torch.int64)


@functools.cache
def _coefficients() -> torch.Tensor:
    """For a group's eight opened bits d: which products to add up for lt (low half) and eq (high half); constants.

    ``Π_T (d_i ⊕ μ_i) = ⊕_{S ⊆ T} [all of T less S are set in d]·μ_S``.
    """
    less, equal, sets = _inner()
    chosen, constants = [], []
    for d in range(1 << (2 * DIGITS)):
        word, constant = 0, 0
        for lane, terms in enumerate((less, (equal,))):
            for i, s in enumerate((frozenset(), *sets)):
                odd = sum(s <= t and all(d >> v & 1 for v in t - s) for t in terms) & 1
                if i:
                    word |= odd << (32 * lane + i - 1)
                else:
                    constant |= odd << (32 * lane)
            word |= 1 << (32 * lane + len(sets) + lane)
        chosen.append(word - (1 << 64) if word >> 63 else word)
        constants.append(constant)
    return torch.tensor([chosen, constants], dtype=torch.int64)


@functools.cache
def _final(groups: int) -> tuple[list[Variables], torch.Tensor]:
    """Of the groups together: the products of mask bits, and ``[products + 1, 2^(2·groups - 1)]`` of their coefficients
    for every value of the opened bits, the constant last. Numbers, not bits: ``d ⊕ μ = d + (1 - 2d)·μ``.

    The lowest group's eq never occurs: lt of group g is variable g, eq of group g ≥ 1 variable groups + g - 1.
    """
    terms = [frozenset(v - 1 if v >= groups else v for v in term) for term in _terms(groups)]
    sets = _all_subsets(terms)
    table = torch.zeros((len(sets) + 1, 1 << (2 * groups - 1)), dtype=torch.int64)
    for d in range(1 << (2 * groups - 1)):
        for row, s in enumerate((*sets, frozenset[int]())):
            holding = sum(s <= t and all(d >> v & 1 for v in t - s) for t in terms)
            sign = -1 if sum(d >> v & 1 for v in s) % 2 else 1
            table[row, d] = sign * holding
    return sets, table
