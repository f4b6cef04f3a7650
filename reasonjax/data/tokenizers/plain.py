"""Tokenizers without a chat template: one id per character, and SentencePiece models."""

import hashlib
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from reasonjax.bounds import AtLeast
from reasonjax.data.tokenizers.protocol import (
    Message,
    Texts,
    continued,
    hashed,
    no_template,
    refuse_text,
    shown,
    specials,
)
from reasonjax.data.vocabulary import train_sentencepiece
from reasonjax.errors import UserError
from reasonjax.files import expanded, nearest_name, read_bytes


@dataclass(frozen=True)
class Characters:
    """One id per character of an alphabet, in its order."""

    alphabet: str
    pad_id: int
    eos_ids: tuple[int, ...]
    bos_id: int | None
    mask_id: int | None
    vocab_size: int
    ids: Mapping[str, int] = field(repr=False, compare=False)

    def encode(self, text: str) -> list[int]:
        ids = [self.ids.get(character, -1) for character in text]
        if -1 in ids or self.pad_id in ids or (self.mask_id is not None and self.mask_id in ids):
            position = next(i for i, x in enumerate(ids) if x in (-1, self.pad_id, self.mask_id))
            what = (
                'is not in the alphabet'
                if ids[position] == -1
                else 'is reserved (padding or mask) in the alphabet'
            )
            raise UserError(
                f'tokenizer characters: {text[position]!r} at position {position + 1} of '
                f'{shown(text)} {what} '
                f'{self.alphabet!r}'
            )
        return ids

    def encode_more(self, text: str, before: str = '') -> list[int]:
        return self.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        dropped = specials(self)
        return ''.join(self.alphabet[i] for i in map(int, ids) if i not in dropped)

    def token(self, token_id: int) -> str:
        return self.alphabet[token_id]

    def chat_text(
        self, messages: Sequence[Message], add_generation_prompt: bool, **options: Any
    ) -> NoReturn:
        raise UserError(no_template('characters'))

    chat = chat_text

    def fingerprint(self) -> str:
        return hashed(
            'characters', self.alphabet, self.pad_id, self.eos_ids, self.bos_id, self.mask_id
        )


def characters(
    texts: Texts,
    cache_dir: pathlib.Path,
    *,
    alphabet: str = '_.$M#=,0123456789+',
    pad: str = '_',
    eos: str = '$',
    bos: str = '',
    mask: str = 'M',
) -> Characters:
    """Makes each character of `alphabet` one id, in order.

    Args:
        texts: not used.
        cache_dir: not used.
        alphabet: distinct characters, among them the special ones.
        pad: the padding character.
        eos: the character that ends an answer; a text may spell it out.
        bos: the character put in front of every prompt; '' for none.
        mask: the character that replaces a masked input; '' for none.
    """
    if len(set(alphabet)) != len(alphabet):
        twice = next(c for c in alphabet if alphabet.count(c) > 1)
        raise UserError(f'tokenizer.alphabet: {twice!r} appears twice in {alphabet!r}')
    ids = {character: i for i, character in enumerate(alphabet)}
    special = {'pad': pad, 'eos': eos, 'bos': bos, 'mask': mask}
    for key, character in special.items():
        if not character and key in ('bos', 'mask'):
            continue
        if character not in ids:
            raise UserError(
                f'tokenizer.{key}: expected one character of the alphabet {alphabet!r}, got '
                f'{character!r}'
            )
    named = [character for character in special.values() if character]
    if len(set(named)) != len(named):
        raise UserError(
            f'tokenizer: pad, eos, bos and mask must be different characters, got {special}'
        )
    return Characters(
        alphabet, ids[pad], (ids[eos],), ids.get(bos), ids.get(mask), len(alphabet), ids
    )


_SPACE_MARK = '\N{LOWER ONE EIGHTH BLOCK}'


@dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model; one made by `train_sentencepiece` gives back any text:
    `decode(encode(text)) == text`."""

    pad_id: int
    eos_ids: tuple[int, ...]
    bos_id: int | None
    mask_id: int | None
    vocab_size: int
    digest: str
    processor: Any = field(repr=False, compare=False)
    space_mark_ids: tuple[int, ...] = field(repr=False)

    def encode(self, text: str) -> list[int]:
        try:
            return self._encode(text)
        except (UnicodeEncodeError, RuntimeError) as error:
            refuse_text(text, error)

    def _encode(self, text: str) -> list[int]:
        if not self.space_mark_ids or _SPACE_MARK not in text:
            return self.processor.encode(text)
        # The library spells a space with this character, so a text that holds the character itself
        # needs its bytes.
        first, *others = text.split(_SPACE_MARK)
        ids = self.processor.encode(first)
        for part in others:
            ids += [*self.space_mark_ids, *self.processor.encode(part)]
        return ids

    def encode_more(self, text: str, before: str = '') -> list[int]:
        return continued(self.encode, text)

    def decode(self, ids: Iterable[int]) -> str:
        dropped = specials(self)
        return self.processor.decode([i for i in map(int, ids) if i not in dropped])

    def token(self, token_id: int) -> str:
        if token_id >= self.processor.vocab_size():
            return '<pad>' if token_id == self.pad_id else '<mask>'
        return self.processor.id_to_piece(token_id).replace(_SPACE_MARK, ' ')

    def chat_text(
        self, messages: Sequence[Message], add_generation_prompt: bool, **options: Any
    ) -> NoReturn:
        raise UserError(no_template('sentencepiece'))

    chat = chat_text

    def fingerprint(self) -> str:
        return hashed(
            'sentencepiece', self.digest, self.pad_id, self.eos_ids, self.bos_id, self.mask_id
        )


def trained_file(cache_dir: pathlib.Path, vocab_size: int) -> pathlib.Path:
    """Returns the path where a trained vocabulary of `vocab_size` pieces is kept."""
    return pathlib.Path(cache_dir) / f'sentencepiece_{vocab_size}.model'


def sentencepiece(
    texts: Texts, cache_dir: pathlib.Path, *, path: str = '', vocab_size: AtLeast(1) = 4096
) -> SentencePiece:
    """Opens a SentencePiece model, or trains one on first use and keeps it in `cache_dir`.

    Args:
        texts: returns the training texts; called only when a vocabulary has to be trained.
        cache_dir: where the trained vocabulary is kept, as `sentencepiece_{vocab_size}.model`.
        path: a `.model` file; '' trains one.
        vocab_size: pieces of the trained vocabulary, special and byte pieces (261) included; not
          used with `path`.

    Returns:
        A tokenizer. PAD and the mask get new ids after the last piece where the model has none.

    Raises:
        UserError: no such file, not a model, a model without an end-of-sentence piece, or texts too
            few for `vocab_size`.
    """
    file = expanded(path) if path else trained_file(cache_dir, vocab_size)
    if path and not file.is_file():
        raise UserError(f'tokenizer.path: no SentencePiece model at {path}.{nearest_name(file)}')
    if not file.is_file():
        train_sentencepiece(texts(), file, vocab_size)
    import sentencepiece as library

    content = read_bytes(file)
    processor = library.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise UserError(f'tokenizer.path: {file} is not a SentencePiece model') from error
    if processor.eos_id() < 0:
        raise UserError(
            f'tokenizer.path: {file} has no end-of-sentence piece, so no answer could end'
        )
    size = processor.vocab_size()
    pad_id = processor.pad_id()
    eos_id = processor.eos_id()
    bos_id = processor.bos_id()
    mask_id = processor.piece_to_id('<mask>')
    if pad_id < 0 or pad_id == eos_id:
        pad_id, size = size, size + 1
    if mask_id == processor.unk_id():
        mask_id, size = size, size + 1
    space_mark_ids = tuple(
        processor.piece_to_id(f'<0x{byte:02X}>') for byte in _SPACE_MARK.encode()
    )
    if processor.unk_id() in space_mark_ids:
        space_mark_ids = ()
    return SentencePiece(
        pad_id,
        (eos_id,),
        bos_id if bos_id >= 0 else None,
        mask_id,
        size,
        hashlib.sha256(content).hexdigest(),
        processor,
        space_mark_ids,
    )
