"""LayerNorm and RMSNorm over the last axis."""

from __future__ import annotations

from collections.abc import Callable

from secureattn.tensor import Public, Tensor


def layernorm(
    x: Tensor,
    *,
    epsilon: float,
    rsqrt: Callable[[Tensor], Tensor],
    gain: Public | None = None,
    bias: Public | None = None,
) -> Tensor:
    """``(x − mean) / √(var + ε) · gain + bias`` for ``[B,S,D]``.

    Networks fold the mean, gain and bias into neighbouring weights and call ``rmsnorm`` alone, which is the same
    function with D products fewer and one level less.
    Domain: ``var + ε`` in the domain of ``rsqrt``.
    Error: that of ``rsqrt``, relative.
    Cost: as ``rmsnorm``; a multiplication by the gain.
    Source: Ba, Kiros & Hinton, arXiv 1607.06450, 2016.
    """

    def inverse_rms(total: Tensor) -> Tensor:
        return rsqrt(total * (1.0 / x.shape[-1]) + epsilon)

    y = rmsnorm(x - x.mean(-1), inverse_rms=inverse_rms)
    if gain is not None:
        y = y * gain
    return y if bias is None else y + bias


def rmsnorm(x: Tensor, *, inverse_rms: Callable[[Tensor], Tensor]) -> Tensor:
    """``x / √(Σx²/D + ε)`` for ``[B,S,D]``; LayerNorm of x when x has mean 0.

    ``inverse_rms`` maps ``Σx²`` to ``1/√(Σx²/D + ε)``: one polynomial can take the division by D and its own affine
    map together, in one level.
    Domain: that of ``inverse_rms``.
    Error: that of ``inverse_rms``, relative.
    Cost: D squares summed into one value, one rsqrt per token, D products.
    Source: Zhang & Sennrich, arXiv 1910.07467, 2019.
    """
    return x * inverse_rms(x.inner(x))
