"""Weight matrix × ciphertexts as float64 matrix products over residues.

With one ciphertext a feature, ``Y_j = Σ_i W_ji·X_i`` is, prime by prime and polynomial by polynomial, a product of an
integer matrix with the residues. Residues and weights are split into limbs so narrow that every sum stays below 2^53,
where float64 is exact: the result is that of scalar products, bit for bit, at the speed of BLAS.

For a prime q of a·s bits: ``x = Σ_k 2^{sk}·x_k`` with a limbs of s bits, and ``(2^{sk}·W mod q)``, centred, has a limbs
too, so that one product ``[a·Dout, a·Din]·[a·Din, columns]`` gives a sums, which Horner's rule joins modulo q.
Source: Bae, Cheon, Hanrot, Park, Stehlé, "Plaintext-Ciphertext Matrix Multiplication and FHE Bootstrapping: Fast and
Fused", CRYPTO 2024 (eprint 2024/1284), for the reduction to plain matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from secureattn.backends.ckks.residues import Residues
from secureattn.blas import one_thread

Integers = npt.NDArray[np.int64]
_EXACT_BITS = 53
_COLUMNS = 2048  # residues of a polynomial handled at a time: limbs of a hundred inputs stay in the cache
_TWO_52 = np.float64(2.0**52).view(np.uint64)


def limbs(prime: int, inputs: int) -> tuple[int, int]:
    """How many limbs, of how many bits, keep sums of ``inputs`` products exact."""
    bits = prime.bit_length()
    for count in range(1, bits + 1):
        size = math.ceil(bits / count)
        if 2 * size - 1 + math.log2(count * inputs) <= _EXACT_BITS:
            return count, size
    raise ValueError(f"no limbs keep sums of {inputs} products exact")


def gemm_products(primes: Sequence[int], inputs: int) -> int:
    """Float64 multiplications per output and residue, all primes together."""
    return sum(limbs(prime, inputs)[0] ** 2 for prime in primes) * inputs


@one_thread  # workers take the other cores
def multiply(weights: Integers, inputs: Sequence[Residues], outputs: Sequence[Residues], primes: Sequence[int]) -> None:
    """``outputs[j] = Σ_i weights[j,i]·inputs[i]`` modulo every prime.

    ``weights [Dout,Din]``; inputs ``[size][≥ primes][N]`` each below its prime, N a power of two; outputs
    ``[size][primes][N]`` are written.
    """
    size, _, degree = outputs[0].shape
    columns = min(_COLUMNS, degree)
    most = max(limbs(prime, len(inputs))[0] for prime in primes)
    rows, split = np.empty((len(inputs), columns), dtype=np.uint64), np.empty((most, len(inputs), columns))
    joined, sums = np.empty((len(outputs), columns), dtype=np.uint64), np.empty((most, len(outputs), columns))
    for i, prime in enumerate(primes):
        count, bits = limbs(prime, len(inputs))
        matrix = _weight_limbs(weights, prime, count, bits)
        for polynomial in range(size):
            for start in range(0, degree, columns):
                here = polynomial, i, slice(start, start + columns)
                np.stack([x[here] for x in inputs], out=rows)
                _split(rows, split[:count], bits)
                np.matmul(matrix, split[:count].reshape(-1, columns), out=sums[:count].reshape(-1, columns))
                _join(sums[:count], joined, prime, bits)
                for row, y in zip(joined, outputs, strict=True):
                    y[here] = row


def _weight_limbs(weights: Integers, prime: int, count: int, bits: int) -> npt.NDArray[np.float64]:
    """``[count·Dout, count·Din]``: row block l, column block k holds limb l of ``2^{bits·k}·W mod prime``, centred."""
    rows = []
    scaled = np.remainder(weights, np.int64(prime))
    scratch = np.empty_like(scaled, dtype=np.uint64)
    for k in range(count):
        if k:
            _shift(scaled.view(np.uint64), bits, prime, scratch)
            _reduce(scaled.view(np.uint64), prime, scratch)
        rest = np.where(scaled > prime // 2, scaled - prime, scaled)
        column = []
        for _ in range(count - 1):
            low = rest & np.int64((1 << bits) - 1)
            rest = rest >> bits
            carry = low >> (bits - 1)  # limbs are centred as well: half the size, and a sign
            column.append(low - (carry << bits))
            rest = rest + carry
        rows.append(np.concatenate([*column, rest]))
    return np.concatenate(rows, axis=1).astype(np.float64)


def _split(rows: Residues, split: npt.NDArray[np.float64], bits: int) -> None:
    """``split[k]``: limb k of ``rows [Din,columns]``."""
    scratch, mask = np.empty_like(rows), np.uint64((1 << bits) - 1)
    for k, limb in enumerate(split):
        np.right_shift(rows, np.uint64(bits * k), out=scratch)
        if k < len(split) - 1:
            np.bitwise_and(scratch, mask, out=scratch)
        # A float of 2^52 + x has x in its lowest bits: three times as fast as a conversion.
        np.bitwise_or(scratch, _TWO_52, out=scratch)
        np.subtract(scratch.view(np.float64), 2.0**52, out=limb)


def _join(sums: npt.NDArray[np.float64], total: Residues, prime: int, bits: int) -> None:
    """``Σ_l 2^{bits·l}·sums[l]`` modulo the prime, highest limb first."""
    scratch, signed = np.empty_like(total), total.view(np.int64)
    positive = np.int64(prime * (((1 << _EXACT_BITS) - 1) // prime + 1))  # added to sums of either sign: 0 modulo prime
    total[:] = 0
    for limb in sums[::-1]:
        _shift(total, bits, prime, scratch)
        np.copyto(scratch.view(np.int64), limb, casting="unsafe")
        np.add(signed, scratch.view(np.int64), out=signed)
        np.add(signed, positive, out=signed)
        _reduce(total, prime, scratch)


def _shift(x: Residues, bits: int, prime: int, scratch: Residues) -> None:
    """``x·2^bits`` for 0 ≤ x < prime, in steps that stay below 2^62, reduced between them."""
    step = 62 - prime.bit_length()
    while bits > step:
        np.left_shift(x, np.uint64(step), out=x)
        _reduce(x, prime, scratch)
        bits -= step
    np.left_shift(x, np.uint64(bits), out=x)


def _reduce(x: Residues, prime: int, scratch: Residues) -> None:
    """x modulo the prime; numpy divides by a constant three times as fast as it takes remainders."""
    np.floor_divide(x, np.uint64(prime), out=scratch)
    np.multiply(scratch, np.uint64(prime), out=scratch)
    np.subtract(x, scratch, out=x)
