"""Tokenizers: text to ids and back, with the ids a language model gives a meaning to.

A factory is chosen by name in a config and called as `factory(texts, cache_dir, *, knobs)`: `texts` returns an iterable
of training texts, `cache_dir` is where a trained vocabulary is kept; `characters` and `huggingface` need neither.
What comes back has, whatever its type:

    pad_id, eos_ids, bos_id, mask_id, vocab_size
    encode(text) -> ids                               adds no special ids
    encode_more(text) -> ids                          the same for a text that continues another
    decode(ids) -> text                               drops pad, eos, bos and mask
    chat_text(messages, add_generation_prompt) -> str
    chat(messages, add_generation_prompt) -> ids      encode(chat_text(...))
    fingerprint() -> str

`eos_ids` is every id that ends an answer; the first is the one training appends. PAD is never one of them: masking PAD
must not hide the end of an answer. `bos_id` is None unless the model expects one in front of plain text.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from reasonjax.data.vocabulary import train_sentencepiece
from reasonjax.errors import UserError, nearest

Message = Mapping[str, Any]
Texts = Callable[[], Iterable[str]]


class Tokenizer(Protocol):
    """What the pipeline, the sampler and the programs expect of a tokenizer."""

    pad_id: int
    eos_ids: tuple[int, ...]
    bos_id: int | None
    mask_id: int | None
    vocab_size: int

    def encode(self, text: str) -> list[int]: ...

    def encode_more(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def chat_text(self, messages: Sequence[Message], add_generation_prompt: bool) -> str: ...

    def chat(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]: ...

    def fingerprint(self) -> str: ...


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
            what = 'is not in the alphabet' if ids[position] == -1 else 'is reserved (padding or mask) in the alphabet'
            raise UserError(
                f'tokenizer characters: {text[position]!r} at position {position + 1} of {_shown(text)} {what} '
                f'{self.alphabet!r}'
            )
        return ids

    encode_more = encode

    def decode(self, ids: Iterable[int]) -> str:
        dropped = _specials(self)
        return ''.join(self.alphabet[i] for i in map(int, ids) if i not in dropped)

    def chat_text(self, messages: Sequence[Message], add_generation_prompt: bool) -> NoReturn:
        raise UserError(_no_template('characters'))

    chat = chat_text

    def fingerprint(self) -> str:
        return _hash('characters', self.alphabet, self.pad_id, self.eos_ids, self.bos_id, self.mask_id)


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
            raise UserError(f'tokenizer.{key}: expected one character of the alphabet {alphabet!r}, got {character!r}')
    named = [character for character in special.values() if character]
    if len(set(named)) != len(named):
        raise UserError(f'tokenizer: pad, eos, bos and mask must be different characters, got {special}')
    return Characters(alphabet, ids[pad], (ids[eos],), ids.get(bos), ids.get(mask), len(alphabet), ids)


_SPACE_MARK = '\N{LOWER ONE EIGHTH BLOCK}'


@dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model; one made by `train_sentencepiece` gives back any text: `decode(encode(text)) == text`."""

    pad_id: int
    eos_ids: tuple[int, ...]
    bos_id: int | None
    mask_id: int | None
    vocab_size: int
    digest: str
    processor: Any = field(repr=False, compare=False)
    space_mark_ids: tuple[int, ...] = field(repr=False)

    def encode(self, text: str) -> list[int]:
        if not self.space_mark_ids or _SPACE_MARK not in text:
            return self.processor.encode(text)
        # The library spells a space with this character, so a text that holds the character itself needs its bytes.
        first, *others = text.split(_SPACE_MARK)
        ids = self.processor.encode(first)
        for part in others:
            ids += [*self.space_mark_ids, *self.processor.encode(part)]
        return ids

    def encode_more(self, text: str) -> list[int]:
        return _continued(self.encode, text)

    def decode(self, ids: Iterable[int]) -> str:
        dropped = _specials(self)
        return self.processor.decode([i for i in map(int, ids) if i not in dropped])

    def chat_text(self, messages: Sequence[Message], add_generation_prompt: bool) -> NoReturn:
        raise UserError(_no_template('sentencepiece'))

    chat = chat_text

    def fingerprint(self) -> str:
        return _hash('sentencepiece', self.digest, self.pad_id, self.eos_ids, self.bos_id, self.mask_id)


def sentencepiece(texts: Texts, cache_dir: pathlib.Path, *, path: str = '', vocab_size: int = 4096) -> SentencePiece:
    """Opens a SentencePiece model, or trains one on first use and keeps it in `cache_dir`.

    Args:
        texts: returns the training texts; called only when a vocabulary has to be trained.
        cache_dir: where the trained vocabulary is kept, as `sentencepiece_{vocab_size}.model`.
        path: a `.model` file; '' trains one.
        vocab_size: pieces of the trained vocabulary, special and byte pieces (261) included; not used with `path`.

    Returns:
        A tokenizer. PAD and the mask get new ids after the last piece where the model has none.

    Raises:
        UserError: no such file, not a model, a model without an end-of-sentence piece, or texts too few for
            `vocab_size`.
    """
    file = pathlib.Path(path).expanduser() if path else pathlib.Path(cache_dir) / f'sentencepiece_{vocab_size}.model'
    if path and not file.is_file():
        raise UserError(f'tokenizer.path: no SentencePiece model at {path}.{_nearest_file(file)}')
    if not file.is_file():
        train_sentencepiece(texts(), file, vocab_size)
    import sentencepiece as library

    content = file.read_bytes()
    processor = library.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise UserError(f'tokenizer.path: {file} is not a SentencePiece model') from error
    if processor.eos_id() < 0:
        raise UserError(f'tokenizer.path: {file} has no end-of-sentence piece, so no answer could end')
    size = processor.vocab_size()
    pad_id, eos_id, bos_id, mask_id = (
        processor.pad_id(),
        processor.eos_id(),
        processor.bos_id(),
        processor.piece_to_id('<mask>'),
    )
    if pad_id < 0 or pad_id == eos_id:
        pad_id, size = size, size + 1
    if mask_id == processor.unk_id():
        mask_id, size = size, size + 1
    space_mark_ids = tuple(processor.piece_to_id(f'<0x{byte:02X}>') for byte in _SPACE_MARK.encode())
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


@dataclass(frozen=True)
class HuggingFace:
    """A tokenizer of the transformers library."""

    path: str
    pad_id: int
    eos_ids: tuple[int, ...]
    bos_id: int | None
    mask_id: int | None
    vocab_size: int
    digest: str
    tokenizer: Any = field(repr=False, compare=False)

    def encode(self, text: str) -> list[int]:
        if self.tokenizer.is_fast:
            # Straight to the Rust object: the wrapper sets truncation state on every call, which threads must not
            # share.
            return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode_more(self, text: str) -> list[int]:
        return _continued(self.encode, text)

    def decode(self, ids: Iterable[int]) -> str:
        dropped = _specials(self)
        kept = [i for i in map(int, ids) if i not in dropped]
        return self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def chat_text(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        if self.tokenizer.chat_template is None:
            raise UserError(_no_template(f'in {self.path}'))
        import jinja2

        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except jinja2.TemplateError as error:
            raise UserError(f'the chat template of {self.path} refuses these messages: {error}') from error

    def chat(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        return self.encode(self.chat_text(messages, add_generation_prompt))

    def fingerprint(self) -> str:
        return _hash('huggingface', self.digest, self.pad_id, self.eos_ids, self.bos_id, self.mask_id)


def huggingface(texts: Texts, cache_dir: pathlib.Path, *, path: str = '', mask: str = '<mask>') -> HuggingFace:
    """Opens the tokenizer of a local Hugging Face model folder; nothing is downloaded.

    An answer ends with the tokenizer's EOS or any EOS of `generation_config.json`. PAD is the tokenizer's own, unless
    it has none or uses an EOS for it: then PAD is a new id after the last token. BOS is used only where the tokenizer
    itself puts it in front of a text.

    Args:
        texts: not used.
        cache_dir: not used.
        path: the folder.
        mask: the token that replaces a masked input: the tokenizer's own mask token, else this one where the vocabulary
            has it, else a new id after the last token. '' for none, which leaves the vocabulary as it is.

    Raises:
        UserError: no such folder, no tokenizer in it, or a tokenizer without EOS.
    """
    folder = pathlib.Path(path).expanduser()
    if not path or not folder.is_dir():
        raise UserError(
            f'tokenizer.path: no folder {path!r}; expected a local Hugging Face model folder.{_nearest_file(folder)}'
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        found = ', '.join(sorted(entry.name for entry in folder.iterdir())) or 'nothing'
        raise UserError(f'tokenizer.path: no tokenizer in {path} (expected tokenizer.json; found {found})') from error
    eos_ids = _eos_ids(tokenizer, folder)
    vocabulary = tokenizer.get_vocab()
    size = max(vocabulary.values()) + 1
    pad_id = tokenizer.pad_token_id
    if pad_id is None or pad_id in eos_ids:
        pad_id, size = size, size + 1
    mask_id = tokenizer.mask_token_id if mask else None
    if mask and mask_id is None:
        mask_id = vocabulary.get(mask)
        if mask_id is None:
            mask_id, size = size, size + 1
    bos_id = tokenizer.bos_token_id
    if bos_id is not None and tokenizer.encode('a')[:1] != [bos_id]:
        bos_id = None
    content = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(vocabulary, sort_keys=True)
    digest = _hash(content, tokenizer.chat_template)
    return HuggingFace(path, pad_id, eos_ids, bos_id, mask_id, size, digest, tokenizer)


def _eos_ids(tokenizer: Any, folder: pathlib.Path) -> tuple[int, ...]:
    ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    file = folder / 'generation_config.json'
    if file.is_file():
        try:
            more = json.loads(file.read_text()).get('eos_token_id')
        except (json.JSONDecodeError, AttributeError) as error:
            raise UserError(f'{file}: not a JSON object ({error})') from error
        ids += [] if more is None else [more] if isinstance(more, int) else more
    if not ids:
        raise UserError(
            f'tokenizer.path: neither the tokenizer nor generation_config.json in {folder} names an EOS, '
            'so no answer could end'
        )
    return tuple(dict.fromkeys(ids))


def _continued(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Encodes a text that continues another, without the space that Llama-2-like vocabularies put before every text."""
    if encode('\na') == [*encode('\n'), *encode('a')]:
        return encode(text)
    # The text is encoded behind something it does not merge with, of which the ids are then taken off.
    for before in ('\n', '.', '0', 'a'):
        start, ids = encode(before), encode(before + text)
        if ids[: len(start)] == start:
            return ids[len(start) :]
    raise UserError(
        f'the tokenizer merges {_shown(text)} with whatever stands before it, so it cannot continue a prompt'
    )


def _specials(tokenizer: Tokenizer) -> set[int | None]:
    return {tokenizer.pad_id, *tokenizer.eos_ids, tokenizer.bos_id, tokenizer.mask_id}


def _no_template(what: str) -> str:
    return (
        f'the tokenizer {what} has no chat template: give prompt and completion as strings, '
        'or a Hugging Face tokenizer with a template'
    )


def _nearest_file(file: pathlib.Path) -> str:
    return nearest(file.name, [entry.name for entry in file.parent.iterdir()]) if file.parent.is_dir() else ''


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + '...')
