"""Tokenizers as the files of a Hugging Face folder, with the same ids for every text."""

import json
import pathlib
import random
from collections.abc import Iterator
from typing import Any

from reasonjax.data.tokenizers import Characters, SentencePiece, Tokenizer
from reasonjax.data.tokenizers.protocol import shown
from reasonjax.errors import UserError
from reasonjax.files import copy_own
from reasonjax.interop.huggingface.tokenizers.folder import HuggingFace

FILES = (
    'tokenizer.json',
    'tokenizer.model',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
    'vocab.json',
    'vocab.txt',
    'merges.txt',
    'chat_template.jinja',
    'chat_template.json',
    'additional_chat_templates',
    'tekken.json',
    'spiece.model',
    'sentencepiece.bpe.model',
    '*.tiktoken',
)
TEMPLATE = 'chat_template.jinja'
CHECKED = 500
# Kinds of SentencePiece pieces.
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
BYTE_PAIRS = 2
SPACE_MARK = '\N{LOWER ONE EIGHTH BLOCK}'


def save_tokenizer(tokenizer: Tokenizer, path: pathlib.Path) -> None:
    """Writes what `transformers.AutoTokenizer` needs to give the ids that this tokenizer gives.

    A Hugging Face tokenizer's files are copied byte for byte; a chat template that a config put in
    place of theirs is written too. Our own tokenizers become a `tokenizer.json`, which is read back
    and compared on a few hundred texts.

    Args:
        tokenizer: of `reasonjax.data.tokenizers`, or of a Hugging Face folder.
        path: folder, which exists.

    Raises:
        UserError: a SentencePiece model whose ids a Hugging Face tokenizer cannot be sure to give.
    """
    if isinstance(tokenizer, HuggingFace):
        copy_files(pathlib.Path(tokenizer.path).expanduser(), path)
        template = tokenizer.tokenizer.chat_template
        if template is not None and _loaded(path).chat_template != template:
            (path / TEMPLATE).write_text(template, encoding='utf-8')
        return
    backend, names = (
        _characters(tokenizer) if isinstance(tokenizer, Characters) else _sentencepiece(tokenizer)
    )
    _write(backend, names, tokenizer, path)
    _check(tokenizer, _loaded(path))


def copy_files(source: pathlib.Path, path: pathlib.Path) -> None:
    """Copies the tokenizer files of a Hugging Face folder into another one."""
    for pattern in FILES:
        for file in source.glob(pattern):
            copy_own(source, file, path / file.name)


def _loaded(path: pathlib.Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, local_files_only=True)


def _characters(tokenizer: Characters) -> tuple[Any, dict[str, str]]:
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    # No unknown token: a character that is not in the alphabet is an error there as it is here.
    backend = Backend(models.WordLevel(vocab=dict(tokenizer.ids), unk_token='[UNK]'))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r'[\s\S]'), behavior='isolated')
    backend.decoder = decoders.Fuse()
    return backend, {name: tokenizer.alphabet[i] for name, i in _special_ids(tokenizer).items()}


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    ids = {
        'pad': tokenizer.pad_id,
        'eos': tokenizer.eos_ids[0],
        'bos': tokenizer.bos_id,
        'mask': tokenizer.mask_id,
    }
    return {name: i for name, i in ids.items() if i is not None}


def _sentencepiece(tokenizer: SentencePiece) -> tuple[Any, dict[str, str]]:
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    model = sentencepiece_model_pb2.ModelProto.FromString(
        tokenizer.processor.serialized_model_proto()
    )
    _refuse(model)
    # A space, unlike the mark that stands for it in the model, needs no normaliser; a mark in a
    # text is then spelt in bytes, as here.
    pieces = [
        piece.piece.replace(SPACE_MARK, ' ') if piece.type == NORMAL else piece.piece
        for piece in model.pieces
    ]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = list(
        _merges(
            [
                (pieces[i], piece.score)
                for i, piece in enumerate(model.pieces)
                if piece.type == NORMAL
            ]
        )
    )
    unknown = next(piece.piece for piece in model.pieces if piece.type == UNKNOWN)
    backend = Backend(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, byte_fallback=True)
    )
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    names = {
        name: pieces[i] if i < len(pieces) else f'<{name}>'
        for name, i in _special_ids(tokenizer).items()
    }
    return backend, names | {'unk': unknown}


def _refuse(model: Any) -> None:
    """Raises UserError unless byte pairs over the text as it is are all there is to a SentencePiece
    model."""
    normal = {piece.piece for piece in model.pieces if piece.type == NORMAL}
    normaliser = model.normalizer_spec
    reasons = {
        'its pieces are not byte pairs': model.trainer_spec.model_type != BYTE_PAIRS,
        'it changes the text before it splits it': bool(normaliser.precompiled_charsmap)
        or normaliser.remove_extra_whitespaces,
        'it puts a space in front of every text': normaliser.add_dummy_prefix,
        'it leaves spaces as they are': not normaliser.escape_whitespaces,
        'it has pieces of the user or unused ones': bool(
            {piece.type for piece in model.pieces} - {NORMAL, UNKNOWN, CONTROL, BYTE}
        ),
        'it does not spell unknown characters in bytes': sum(
            piece.type == BYTE for piece in model.pieces
        )
        != 256,
        'some pieces hold characters that are no pieces': not {
            character for piece in normal for character in piece
        }
        <= normal,
    }
    reasons_that_hold = [reason for reason, holds in reasons.items() if holds]
    if reasons_that_hold:
        raise UserError(
            'tokenizer.path: this SentencePiece model cannot be written as a Hugging Face '
            'tokenizer that is sure to give the same ids '
            f'({"; ".join(reasons_that_hold)}); train with the Hugging Face folder of this vocabulary '
            '(tokenizer.name=huggingface) to export it.'
        )


def _merges(pieces: list[tuple[str, float]]) -> Iterator[tuple[str, str]]:
    """Yields every way to put a piece together from two others, the best pieces first.
    SentencePiece merges whatever gives a piece."""
    known = {piece for piece, _ in pieces}
    for piece, _ in sorted(pieces, key=lambda entry: -entry[1]):
        for cut in range(1, len(piece)):
            if piece[:cut] in known and piece[cut:] in known:
                yield piece[:cut], piece[cut:]


def _write(backend: Any, names: dict[str, str], tokenizer: Tokenizer, path: pathlib.Path) -> None:
    from tokenizers import AddedToken, processors

    ordered = sorted(
        (backend.token_to_id(name), name)
        for name in names.values()
        if backend.token_to_id(name) is not None
    )
    # New ones get the next ids, in the order in which our tokenizers number them: PAD, then the
    # mask.
    new = [
        names[key]
        for key in ('pad', 'mask')
        if key in names and backend.token_to_id(names[key]) is None
    ]
    backend.add_special_tokens(
        [
            AddedToken(name, special=True, normalized=False)
            for name in [name for _, name in ordered] + new
        ]
    )
    if 'bos' in names:
        backend.post_processor = processors.TemplateProcessing(
            single=f'{names["bos"]} $A',
            pair=f'{names["bos"]} $A $B',
            special_tokens=[(names['bos'], tokenizer.bos_id)],
        )
    backend.save(str(path / 'tokenizer.json'))
    tokens = {f'{key}_token': name for key, name in names.items()}
    # Split: a text that spells a special token is text, as it is here.
    settings = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'clean_up_tokenization_spaces': False,
        'split_special_tokens': True,
        'padding_side': 'left',
    }
    for file, content in (
        ('tokenizer_config.json', settings | tokens),
        ('special_tokens_map.json', tokens),
    ):
        (path / file).write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8'
        )


def _check(tokenizer: Tokenizer, loaded: Any) -> None:
    """Raises UserError where the tokenizer that was written is not the one it was written from."""
    kind = type(loaded).__name__
    wrong = [
        name
        for name, i in _special_ids(tokenizer).items()
        if getattr(loaded, f'{name}_token_id') != i
    ]
    wrong += [
        shown(t)
        for t in _texts(tokenizer)
        if loaded.encode(t, add_special_tokens=False) != tokenizer.encode(t)
    ][:1]
    if wrong:
        # Whatever the files say, transformers has a class of its own for the folders of some
        # architectures.
        raise UserError(
            'this tokenizer cannot be written so that transformers gives the same ids: it reads '
            f'the folder as a {kind}, '
            f'and these differ: {", ".join(wrong)}.'
        )


def _texts(tokenizer: Tokenizer) -> Iterator[str]:
    """Yields texts of random pieces, runs of pieces, and random characters."""
    draw = random.Random(0)
    reserved = {tokenizer.pad_id, tokenizer.mask_id}
    pieces = [tokenizer.token(i) for i in range(tokenizer.vocab_size) if i not in reserved]
    for _ in range(CHECKED):
        text = ''.join(
            draw.choice(pieces) * draw.choice((1, 1, 1, 2, 5)) for _ in range(draw.randint(1, 12))
        )
        if not isinstance(tokenizer, Characters):
            text += ''.join(
                chr(draw.choice((draw.randint(0, 0x7F), draw.randint(0xA0, 0xD7FF), 0x1F642)))
                for _ in range(3)
            )
        yield text
