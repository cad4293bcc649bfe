"""Plugs our dealer and our randomness into CrypTen, so that its own functions run on them too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from secureattn.backends.crypten.csprng import Csprng
from secureattn.backends.crypten.install import load_crypten
from secureattn.backends.crypten.material import Kind, Request
from secureattn.errors import EngineError

if TYPE_CHECKING:
    from secureattn.backends.crypten.runtime import Runtime

crypten = load_crypten()
arithmetic: Any = crypten.mpc.primitives.arithmetic
binary: Any = crypten.mpc.primitives.binary
_Base: Any = crypten.mpc.provider.provider.TupleProvider
_NAME = "SecureAttn"


class DealerProvider(_Base):  # type: ignore[misc]
    """CrypTen's provider interface over ``Runtime.deal``."""

    NAME = _NAME

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self._runtime = runtime

    def generate_additive_triple(self, size0: Any, size1: Any, op: str, device: Any = None) -> tuple[Any, Any, Any]:
        """Shares of a, b and a·b, elementwise or as matrices."""
        kinds = {"mul": Kind.PRODUCT, "matmul": Kind.MATMUL}
        if op not in kinds:
            raise EngineError(f"the dealer serves {' and '.join(kinds)}, not {op}; write the operation with those")
        a, b, c = self._runtime.deal(Request(kinds[op], tuple(size0), tuple(size1)))
        return _additive(a), _additive(b), _additive(c)

    def square(self, size: Any, device: Any = None) -> tuple[Any, Any]:
        """Shares of a and a²."""
        a, c = self._runtime.deal(Request(Kind.SQUARE, tuple(size)))
        return _additive(a), _additive(c)

    def generate_binary_triple(self, size0: Any, size1: Any, device: Any = None) -> tuple[Any, Any, Any]:
        """XOR shares of a, b and a & b; CrypTen broadcasts before it asks, so the sizes are equal."""
        flat = (torch.Size(size0).numel(),)
        if torch.Size(size0) != torch.Size(size1):
            raise EngineError(f"binary triples need equal sizes, not {tuple(size0)} and {tuple(size1)}")
        a, b, c = (share.reshape(size0) for share in self._runtime.deal(Request(Kind.AND, flat, flat)))
        return _binary(a), _binary(b), _binary(c)

    def wrap_rng(self, size: Any, device: Any = None) -> Any:
        """Refused: CrypTen's wrap count leaves out a term and truncates wrongly among three or more parties."""
        raise EngineError('CrypTen\'s truncation among three or more parties is unsound; use truncation = "exact"')

    def B2A_rng(self, size: Any, device: Any = None) -> tuple[Any, Any]:
        """One bit, additively and XOR shared."""
        bit, same = self._runtime.deal(Request(Kind.BIT, tuple(size)))
        return _additive(same), _binary(bit)


def plug_in(runtime: Runtime, communicator: Any, *, previous: Csprng, following: Csprng, local: Csprng) -> None:
    """Make CrypTen use our communicator, dealer and streams; ``previous`` and ``following`` make zero sharings."""
    crypten.communicator.DistributedCommunicator.instance = communicator
    crypten.communicator.DistributedCommunicator.is_initialized = classmethod(lambda cls: cls.instance is not None)
    streams = {"prev": previous, "next": following, "local": local}
    for name, stream in streams.items():
        crypten.generators[name] = {torch.device("cpu"): stream}
    crypten.generators["global"] = {}
    for module in (crypten.common.rng, arithmetic, binary):
        for name, function in (("generate_random_ring_element", _ring), ("generate_kbit_random_tensor", _bits)):
            if name in vars(module):
                setattr(module, name, function)
    vars(crypten.mpc)["__SUPPORTED_PROVIDERS"][_NAME] = DealerProvider(runtime)
    crypten.cfg.mpc.provider = _NAME
    crypten.cfg.encoder.precision_bits = runtime.parameters.fractional_bits


def _ring(size: Sequence[int], ring_size: int = 2**64, generator: Csprng | None = None, device: Any = None) -> Any:
    if ring_size != 2**64:
        raise EngineError(f"random elements are drawn from the ring of 2^64, not of {ring_size}")
    return _stream(generator).ring(size)


def _bits(
    size: Sequence[int], bitlength: int | None = None, generator: Csprng | None = None, device: Any = None
) -> Any:
    if bitlength == 1:
        return _stream(generator).bits(size)
    words = _stream(generator).ring(size)
    return words if bitlength in (None, 64) else words & ((1 << bitlength) - 1)


def _stream(generator: Csprng | None) -> Csprng:
    stream = crypten.generators["local"][torch.device("cpu")] if generator is None else generator
    if not isinstance(stream, Csprng):
        raise EngineError("shares and masks are drawn from keyed streams only, not from torch's generators")
    return stream


def _additive(share: torch.Tensor) -> Any:
    return arithmetic.ArithmeticSharedTensor.from_shares(share, precision=0)


def _binary(share: torch.Tensor) -> Any:
    return binary.BinarySharedTensor.from_shares(share, precision=0)
