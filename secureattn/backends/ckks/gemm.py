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
_COLUMNS = 4096  # residues of a polynomial handled at a time: limbs of a few hundred inputs stay in the cache


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

    ``weights [Dout,Din]``; inputs ``[size][≥ primes][N]`` each below its prime; outputs ``[size][primes][N]`` are
    written.
    """
    size, _, degree = outputs[0].shape
    for i, prime in enumerate(primes):
        count, bits = limbs(prime, len(inputs))
        matrix = _weight_limbs(weights, prime, count, bits)
        for polynomial in range(size):
            for start in range(0, degree, _COLUMNS):
                columns = slice(start, start + _COLUMNS)
                split = _residue_limbs([x[polynomial, i, columns] for x in inputs], count, bits)
                _join(matrix @ split, [y[polynomial, i, columns] for y in outputs], prime, bits)


def _weight_limbs(weights: Integers, prime: int, count: int, bits: int) -> npt.NDArray[np.float64]:
    """``[count·Dout, count·Din]``: row block l, column block k holds limb l of ``2^{bits·k}·W mod prime``, centred."""
    rows = []
    scaled = np.remainder(weights, np.int64(prime))
    for k in range(count):
        if k:
            scaled = _shifted(scaled, bits, prime)
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


def _residue_limbs(rows: Sequence[Residues], count: int, bits: int) -> npt.NDArray[np.float64]:
    """``[count·Din, columns]``: limb k of every input."""
    split = np.empty((count, len(rows), len(rows[0])))
    mask, scratch = np.uint64((1 << bits) - 1), np.empty_like(rows[0])
    for i, row in enumerate(rows):
        for k in range(count):
            limb = row if k == 0 else np.right_shift(row, np.uint64(bits * k), out=scratch)
            split[k, i] = limb if k == count - 1 else np.bitwise_and(limb, mask, out=scratch)
    return split.reshape(-1, len(rows[0]))


def _join(sums: npt.NDArray[np.float64], outputs: Sequence[Residues], prime: int, bits: int) -> None:
    """``Σ_l 2^{bits·l}·sums[l]`` modulo the prime, highest limb first."""
    blocks = sums.reshape(-1, len(outputs), sums.shape[-1])
    modulus = np.int64(prime)
    for j, output in enumerate(outputs):
        total = blocks[-1, j].astype(np.int64)
        np.remainder(total, modulus, out=total)
        for limb in blocks[-2::-1, j]:
            total = _shifted(total, bits, prime, reduce=False)
            total += limb.astype(np.int64)
            np.remainder(total, modulus, out=total)
        output[:] = total.view(np.uint64)


def _shifted(x: Integers, bits: int, prime: int, *, reduce: bool = True) -> Integers:
    """``x·2^bits`` modulo the prime for 0 ≤ x < prime, in steps that stay below 2^62; the last one unreduced on
    request.
    """
    step = 62 - prime.bit_length()
    while bits > step:
        x = np.remainder(x << step, np.int64(prime))
        bits -= step
    x = x << bits
    return np.remainder(x, np.int64(prime)) if reduce else x
