"""What the files of a tokenizer folder must be before, and after, transformers reads them; a file
that is not says which and why."""

import fnmatch
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reasonjax.errors import UserError
from reasonjax.files import POINTER, is_pointer, json_object, open_file

# Any of these holds a vocabulary. Without one, transformers makes some tokenizers up, with nothing
# in them.
VOCABULARIES = (
    'tokenizer.json',
    'tokenizer.model',
    'vocab.json',
    'vocab.txt',
    'tekken.json',
    'spiece.model',
    'sentencepiece.bpe.model',
    '*.tiktoken',
)
# What transformers reads beside it; each holds a JSON object.
OBJECTS = (
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
    'config.json',
    'generation_config.json',
)
OTHERS = ('merges.txt', 'chat_template.json', 'chat_template.jinja')
MORE_TEMPLATES = 'additional_chat_templates'
# The largest that are read: bytes of a template, bytes of any other file, ids, characters of an
# added token.
TEMPLATE_BYTES, BYTES, TOKENS, TOKEN_LENGTH = 2**20, 2**30, 2**22, 1024
# characters that one character may become before it is encoded, or after it is decoded
GROWTH = 4096


def check_files(folder: pathlib.Path) -> None:
    """Checks the files that transformers is going to read.

    Raises:
        UserError: one that is no file, is not readable or is far larger than any real one, a
            setting of the wrong type, or a tokenizer that is code of the folder.
    """
    for file in [
        *_named(folder, (*VOCABULARIES, *OBJECTS, *OTHERS)),
        *_named(folder / MORE_TEMPLATES, ('*.jinja',)),
    ]:
        most = TEMPLATE_BYTES if file.suffix == '.jinja' else BYTES
        with open_file(file) as opened:
            size, start = os.fstat(opened.fileno()).st_size, opened.read(64)
        if is_pointer(start):
            raise UserError(f'{file} {POINTER}')
        if size > most:
            raise UserError(f'{file}: has {size:,} bytes; none of more than {most:,} is read')
        if file.name == 'tokenizer.json' and start.lstrip()[:1] != b'{':
            raise UserError(f'{file}: expected a JSON object, found {start[:20]!r}...')
    for name in OBJECTS:
        settings(folder / name)
    for name in ('tokenizer_config.json', 'config.json'):
        auto = settings(folder / name).get('auto_map', {})
        # A list is how older folders name the classes of their tokenizer.
        if isinstance(auto, list) or 'AutoTokenizer' in auto:
            raise UserError(
                f'tokenizer.path: the tokenizer of {folder} is code that comes with the folder '
                f'(auto_map in {name}: '
                'trust_remote_code), which is not run; use a folder whose tokenizer.json '
                'transformers reads by itself'
            )


def has_vocabulary(folder: pathlib.Path) -> bool:
    """Checks whether a folder holds any of the files that make a tokenizer."""
    return bool(_named(folder, VOCABULARIES))


def _named(folder: pathlib.Path, patterns: Sequence[str]) -> list[pathlib.Path]:
    """Lists the entries of a folder whose names match a pattern, dangling links included."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [
        entry
        for entry in entries
        if any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in patterns)
    ]


def settings(file: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; {} where there is no file.

    Raises:
        UserError: it cannot be read, or an entry of `_TYPES` is of another type.
    """
    entries = json_object(file) if os.path.lexists(file) else {}
    for key, (wanted, fits) in _TYPES.items():
        if (
            key in entries
            and (entries[key] is not None or key in _NOT_NULL)
            and not fits(entries[key])
        ):
            shown = json.dumps(entries[key])
            raise UserError(
                f'{file}: {key}: expected {wanted}, found '
                f'{shown if len(shown) <= 80 else f"{shown[:80]}..."}'
            )
    return entries


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, Mapping) and isinstance(value.get('content'), str)
    )


def _are_templates(value: Any) -> bool:
    if isinstance(value, list):
        return all(
            isinstance(one, Mapping)
            and isinstance(one.get('name'), str)
            and isinstance(one.get('template'), str)
            for one in value
        )
    return isinstance(value, str) or (
        isinstance(value, Mapping) and all(isinstance(text, str) for text in value.values())
    )


def _are_tokens(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        key.isdecimal() and len(key) < 10 and _is_token(one) for key, one in value.items()
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# Key -> what it must be, in words, and whether it is.
_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **{
        f'{name}_token': ('a token', _is_token)
        for name in ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')
    },
    **{f'{name}_token_id': ('an id', _is_id) for name in ('bos', 'pad')},
    'suppress_tokens': (
        'a list of ids',
        lambda value: isinstance(value, list) and all(map(_is_id, value)),
    ),
    'additional_special_tokens': (
        'a list of tokens',
        lambda value: isinstance(value, list) and all(map(_is_token, value)),
    ),
    'added_tokens_decoder': ('tokens by id', _are_tokens),
    'auto_map': ('a JSON object', lambda value: isinstance(value, Mapping | list)),
    'chat_template': ('a text, or texts by name', _are_templates),
    'tokenizer_class': ('a text', lambda value: isinstance(value, str)),
    'split_special_tokens': ('true or false', lambda value: isinstance(value, bool)),
    'model_input_names': ('a list', lambda value: isinstance(value, list)),
}
# For these, null is not the same as nothing.
_NOT_NULL = ('added_tokens_decoder', 'auto_map', 'model_input_names', 'split_special_tokens')


def check_tokenizer(tokenizer: Any, folder: pathlib.Path) -> None:
    """Checks a tokenizer that transformers has read.

    Raises:
        UserError: no ids or ids far beyond any vocabulary; a token, or what a text is rewritten to,
            so long that a few words would become gigabytes.
    """
    most = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= most < TOKENS:
        raise UserError(
            f'tokenizer.path: the tokenizer in {folder} has ids up to {most}; expected some, all '
            f'of them below {TOKENS}'
        )
    longest = max(map(len, tokenizer.get_added_vocab()), default=0)
    if longest > TOKEN_LENGTH:
        raise UserError(
            f'tokenizer.path: an added token of {folder} has {longest:,} characters; at most '
            f'{TOKEN_LENGTH} are taken'
        )
    for name in ('normalizer', 'decoder') if tokenizer.is_fast else ():
        part = getattr(tokenizer.backend_tokenizer, name)
        growth = _growth(json.loads(part.__getstate__())) if part is not None else 1
        if growth > GROWTH:
            raise UserError(
                f'{folder / "tokenizer.json"}: {name}: one character may become {growth:,}; at '
                f'most {GROWTH} are taken'
            )


def _growth(part: Any) -> int:
    """Estimates how many characters may come of one. Replacements work on what earlier ones have
    put in."""
    if isinstance(part, Mapping):
        own = [
            max(1, len(part[key]) // 2)
            for key in ('content', 'prepend')
            if isinstance(part.get(key), str)
        ]
        return math.prod(own + [_growth(value) for value in part.values()])
    return math.prod(map(_growth, part)) if isinstance(part, list) else 1


def check_model(file: pathlib.Path) -> None:
    """Raises a UserError unless a `tokenizer.model` is one of the two things that have this
    name."""
    import sentencepiece

    content = file.read_bytes()
    try:
        sentencepiece.SentencePieceProcessor().LoadFromSerializedProto(content)
    except RuntimeError as error:
        # A line of a tiktoken vocabulary is a token in base 64, and its rank.
        first = content.partition(b'\n')[0].split()
        if len(first) != 2 or not first[1].isdigit():
            raise UserError(
                f'{file}: neither a SentencePiece model nor a tiktoken vocabulary'
            ) from error


def check_conversion(
    encode: Callable[[Any, str], list[int]], tokenizer: Any, folder: pathlib.Path
) -> None:
    """Compares a tokenizer that was converted from a SentencePiece model with the model itself."""
    import sentencepiece

    text = 'The answer is 42.\nSo x = 3 (or 7).'
    try:
        original = sentencepiece.SentencePieceProcessor(model_file=str(folder / 'tokenizer.model'))
    except RuntimeError:
        # Not a SentencePiece model: tiktoken vocabularies have the same file name.
        return
    if encode(tokenizer, text) != original.encode(text):
        raise UserError(
            f'tokenizer.path: {folder} has a tokenizer.model and no tokenizer.json, and '
            'transformers reads other ids from '
            'it than SentencePiece does (tokenizer_class in tokenizer_config.json is missing or '
            'wrong); use '
            f'tokenizer.name=sentencepiece with tokenizer.path={folder / "tokenizer.model"}, or '
            'add tokenizer.json'
        )
