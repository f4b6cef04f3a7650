"""Text without files, for models whose vocabulary is far larger than any text here needs: bytes,
and prompts of random letters."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from reasonjax.data.sources import Source

OFFSET = 3


@dataclasses.dataclass(frozen=True)
class Bytes:
    """Byte b is id b + 3; other ids, which such a model draws, read as their number."""

    vocab_size: int
    pad_id: int = 0
    eos_ids: tuple[int, ...] = (1,)
    bos_id: int | None = 2
    mask_id: int | None = None

    def encode(self, text: str) -> list[int]:
        return [byte + OFFSET for byte in text.encode()]

    def encode_more(self, text: str, before: str = '') -> list[int]:
        return self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        return ''.join(map(self.token, ids))

    def token(self, token_id: int) -> str:
        return chr(token_id - OFFSET) if OFFSET <= token_id < OFFSET + 128 else f'<{token_id}>'

    def fingerprint(self) -> str:
        return f'bytes {self.vocab_size}'


def tokenizer(texts: Any, cache_dir: pathlib.Path, *, vocab_size: int) -> Bytes:
    """Makes `Bytes` with so many ids."""
    return Bytes(vocab_size)


def letters(*, size: int, length: int) -> Source:
    """Prompts of exactly `length` tokens, BOS included."""
    rng = np.random.default_rng(0)
    rows = [{'prompt': ''.join(rng.choice(list('abcdefghij '), length - 1))} for _ in range(size)]
    return Source(f'letters:{size}x{length}', rows, f'letters {size} {length}')


def full_rows(*, size: int, length: int) -> Source:
    """Texts of exactly `length` tokens, BOS and EOS included."""
    texts: Sequence[dict] = [
        {'text': row['prompt']} for row in letters(size=size, length=length - 1).rows
    ]
    return Source(f'rows:{size}x{length}', texts, f'rows {size} {length}')
