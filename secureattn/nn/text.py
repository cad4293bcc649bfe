"""Text in: a model's own tokenizer, run by the tokenizers library."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from secureattn.errors import INSTALL, EngineError, InputError

FILE = "tokenizer.json"


class Tokenizer:
    """Text to numbers of tokens, special ones included, and back; ``most``: what a text is cut to."""

    def __init__(self, path: Path, most: int) -> None:
        self.path = path
        self.most = most

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer as Library
        except ImportError as error:
            raise EngineError(f"text needs the tokenizers library; run {INSTALL['text']}") from error
        try:
            made = Library.from_file(str(self.path))
        except Exception as error:  # the library raises bare exceptions
            raise InputError(f"tokenizer {self.path} cannot be read: {error}") from error
        made.no_padding()
        made.enable_truncation(self.most)
        return made

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Numbers of tokens, of each text as many as it has."""
        return [encoded.ids for encoded in self._tokenizer.encode_batch(list(texts))]

    def cut(self, texts: Sequence[str]) -> int:
        """How many of the texts have more tokens than ``most``."""
        return sum(bool(encoded.overflowing) for encoded in self._tokenizer.encode_batch(list(texts)))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of some tokens."""
        return str(self._tokenizer.decode(list(tokens)))
