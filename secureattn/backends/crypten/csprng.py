"""Random ring elements from a 256-bit key: the ChaCha20 key stream, read as 64-bit words."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import torch

from secureattn.errors import EngineError

try:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
except ModuleNotFoundError as missing:
    raise EngineError(
        "the crypten engine needs the Python package 'cryptography' for its masks; run pip install cryptography"
    ) from missing

KEY_BYTES = 32
_CHUNK = bytes(1 << 18)  # zeros to encrypt; stays in the second-level cache


class Csprng:
    """A sequential stream of uniform ring elements; who knows the key and reads in the same order gets the same.

    A key serves one stream only, so the nonce is zero. ``bytes_drawn`` says how far the stream was read.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
        self._encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        self.bytes_drawn = 0

    def ring(self, shape: Sequence[int]) -> torch.Tensor:
        """Uniform elements of Z_2^64, as int64."""
        words = torch.empty(tuple(shape), dtype=torch.int64)
        self._fill(words)
        return words

    def bits(self, shape: Sequence[int]) -> torch.Tensor:
        """Uniform bits, one an int64 element; draws a byte for each."""
        octets = torch.empty(tuple(shape), dtype=torch.uint8)
        self._fill(octets)
        return (octets & 1).long()

    def _fill(self, target: torch.Tensor) -> None:
        size = target.numel() * target.element_size()
        if size == 0:
            return
        octets: Any = target.view(-1).view(torch.uint8).numpy()
        view = memoryview(octets)
        for start in range(0, size, len(_CHUNK)):
            end = min(size, start + len(_CHUNK))
            self._encryptor.update_into(memoryview(_CHUNK)[: end - start], view[start:end])
        self.bytes_drawn += size


def new_key() -> bytes:
    """A fresh key from the operating system."""
    return secrets.token_bytes(KEY_BYTES)


def key_to_words(key: bytes) -> torch.Tensor:
    """A key as an int64 tensor, to be sent."""
    return torch.frombuffer(bytearray(key), dtype=torch.int64).clone()


def words_to_key(words: torch.Tensor) -> bytes:
    """The key that ``key_to_words`` packed."""
    return words.numpy().tobytes()
