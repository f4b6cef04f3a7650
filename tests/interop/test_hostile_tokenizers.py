"""Tokenizer folders of strangers: whatever a file holds, one line names it, and nothing hangs."""

import json
import os
import pathlib

import numpy as np
import pytest

from reasonjax.data import sources, tokenizers, vocabulary
from reasonjax.data.pipeline import evaluation
from reasonjax.errors import UserError
from reasonjax.interop.huggingface.tokenizers import huggingface

HALF = 'a\ud800b'


def refusal(work, *arguments, **named) -> str:
    with pytest.raises(UserError) as caught:
        work(*arguments, **named)
    message = str(caught.value)
    assert '\n' not in message and len(message) < 1000
    return message


def opened(folder):
    return huggingface(None, None, path=str(folder))


@pytest.fixture
def folder(tmp_path, hugging_face_folder):
    return pathlib.Path(hugging_face_folder(tmp_path, generation={'eos_token_id': 2}))


def put(file, content):
    file.unlink(missing_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def edit(file, *keys, to):
    """Sets an entry of a JSON file."""
    content = inner = json.loads(file.read_text()) if file.is_file() else {}
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    file.write_text(json.dumps(content))


FILES = (
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'generation_config.json',
    'config.json',
    'added_tokens.json',
)


@pytest.mark.parametrize(
    'name',
    [
        *FILES,
        'chat_template.jinja',
        'vocab.json',
        'merges.txt',
        'additional_chat_templates/tool.jinja',
    ],
)
@pytest.mark.parametrize('kind', ['pipe', 'folder', 'device', 'link to itself', 'link to nothing'])
def test_what_is_no_file_does_not_hang(folder, name, kind):
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    if kind == 'pipe':
        os.mkfifo(file)
    elif kind == 'folder':
        file.mkdir()
    else:
        file.symlink_to(
            {'device': '/dev/zero', 'link to itself': file, 'link to nothing': folder / 'blob'}[
                kind
            ]
        )
    message = refusal(opened, folder)
    assert f'{file}: cannot be read (' in message or (
        kind == 'link to nothing' and f'{file}: no such file' in message
    )


@pytest.mark.parametrize('name', ['special_tokens_map.json', 'added_tokens.json'])
@pytest.mark.parametrize(
    'content',
    [
        b'{"a": "\xe9"}',
        '[' * 100_000,
        '{"a": ' + '9' * 5000 + '}',
        '',
        '[1]',
        '5',
        'null',
        bytes(range(256)),
    ],
)
def test_files_that_hold_no_object(folder, name, content):
    put(folder / name, content)
    assert f'{folder / name}: ' in refusal(opened, folder)


@pytest.mark.parametrize('name', ['tokenizer.json', 'tokenizer.model', 'tokenizer_config.json'])
def test_a_clone_without_its_large_files(folder, name):
    put(folder / name, 'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n')
    assert (
        f'{folder}/{name} is what Git LFS keeps in place of a file; get the file itself (git lfs '
        'pull)' in refusal(opened, folder)
    )


@pytest.mark.parametrize('content', ['', '[1]', '5', 'null', '"x"', b'\xff', bytes(range(256))])
def test_a_vocabulary_that_is_no_object(folder, content):
    put(folder / 'tokenizer.json', content)
    assert f'{folder}/tokenizer.json: expected a JSON object, found ' in refusal(opened, folder)


@pytest.mark.parametrize(
    'key, value, words',
    [
        ('chat_template', 5, 'expected a text, or texts by name, found 5'),
        ('chat_template', [1], 'found [1]'),
        (
            'chat_template',
            [{'name': 'default'}],
            'chat_template: expected a text, or texts by name',
        ),
        ('chat_template', [{'name': 5, 'template': 'x'}], 'chat_template'),
        ('chat_template', {'default': 5}, 'chat_template'),
        ('eos_token', 5, 'eos_token: expected a token, found 5'),
        ('pad_token', ['a'], 'pad_token: expected a token'),
        ('mask_token', {'content': 5}, 'mask_token'),
        ('additional_special_tokens', [5], 'expected a list of tokens'),
        ('added_tokens_decoder', 5, 'expected tokens by id, found 5'),
        ('added_tokens_decoder', {'x': {'content': 'a'}}, 'added_tokens_decoder'),
        ('added_tokens_decoder', {'9' * 12: {'content': 'a'}}, 'added_tokens_decoder'),
        ('added_tokens_decoder', {'5': {}}, 'added_tokens_decoder'),
        ('added_tokens_decoder', None, 'expected tokens by id, found null'),
        ('auto_map', 'code.Mine', 'auto_map: expected a JSON object'),
        ('tokenizer_class', 5, 'tokenizer_class: expected a text'),
        ('split_special_tokens', 'no', 'expected true or false'),
        ('model_input_names', 5, 'expected a list'),
        ('eos_token', {'content': ['x' * 10**6]}, 'xxx...'),
    ],
)
def test_settings_of_another_type(folder, key, value, words):
    (folder / 'chat_template.jinja').unlink()
    edit(folder / 'tokenizer_config.json', key, to=value)
    message = refusal(opened, folder)
    assert f'{folder}/tokenizer_config.json: {key}: ' in message and words in message


@pytest.mark.parametrize('template', [[], {}, ''])
def test_no_template_however_it_is_written(folder, template):
    (folder / 'chat_template.jinja').unlink()
    edit(folder / 'tokenizer_config.json', 'chat_template', to=template)
    assert 'has no chat template' in refusal(
        opened(folder).chat_text, [{'role': 'user', 'content': 'a'}], True
    )


@pytest.mark.parametrize('eos', [True, [False, 2]])
def test_ends_that_are_no_ids(folder, eos):
    edit(folder / 'generation_config.json', 'eos_token_id', to=eos)
    assert 'generation_config.json: eos_token_id ' in refusal(opened, folder)


@pytest.mark.parametrize(
    'key, value',
    [
        ('suppress_tokens', 'abc'),
        ('suppress_tokens', 5),
        ('suppress_tokens', ['a', 1]),
        ('suppress_tokens', [None]),
        ('pad_token_id', 'x'),
        ('pad_token_id', True),
        ('bos_token_id', [1]),
        ('bos_token_id', 1.0),
    ],
)
def test_settings_of_generation_that_an_export_keeps(folder, key, value):
    edit(folder / 'generation_config.json', key, to=value)
    assert f'generation_config.json: {key}: expected ' in refusal(opened, folder)


TOKEN = {
    'id': 330,
    'content': '<new>',
    'single_word': False,
    'lstrip': False,
    'rstrip': False,
    'normalized': False,
    'special': True,
}


@pytest.mark.parametrize(
    'keys, value, words',
    [
        (
            ('model',),
            {'type': 'BPE', 'vocab': {'a': 10**9}, 'merges': []},
            'has ids up to 1000000000; expected some, all',
        ),
        (('model',), {'type': 'WordLevel', 'vocab': {'a': 0}, 'unk_token': '[UNK]'}, 'tokenizer'),
        (('added_tokens',), [TOKEN | {'content': 'x' * 10**5}], 'an added token of'),
        (
            ('normalizer',),
            {'type': 'Replace', 'pattern': {'String': 'a'}, 'content': 'b' * 10**6},
            'one character may become 500,000',
        ),
        (
            ('normalizer',),
            {'type': 'Sequence', 'normalizers': [{'type': 'Prepend', 'prepend': 'x' * 200}] * 3},
            'normalizer',
        ),
        # a panic, which is no Exception
        (
            ('normalizer',),
            {'type': 'Precompiled', 'precompiled_charsmap': 'AAAA'},
            'cannot be read',
        ),
        (
            ('decoder',),
            {'type': 'Replace', 'pattern': {'String': 'a'}, 'content': 'b' * 10**6},
            'decoder: one character may become',
        ),
    ],
)
def test_vocabularies_that_cannot_be_used(folder, keys, value, words):
    edit(folder / 'tokenizer.json', *keys, to=value)
    assert words in refusal(opened, folder)


@pytest.mark.parametrize('content', [b'garbage' * 100, b'', bytes(range(256)) * 50, b'{"a": 1}'])
def test_models_that_are_none(folder, content):
    (folder / 'tokenizer.json').unlink()
    (folder / 'tokenizer.model').write_bytes(content)
    assert (
        f'{folder}/tokenizer.model: neither a SentencePiece model nor a tiktoken vocabulary'
        in refusal(opened, folder)
    )
    assert 'is not a SentencePiece model' in refusal(
        tokenizers.sentencepiece, None, None, path=str(folder / 'tokenizer.model')
    )


def test_a_folder_of_many_files_names_a_few(tmp_path):
    for i in range(50):
        (tmp_path / f'{i}.txt').touch()
    assert ' and 38 more)' in refusal(opened, tmp_path)


# Half a character, which no UTF-8 can hold: from an argument that is not UTF-8, or an escape.


@pytest.fixture(params=['sentencepiece', 'huggingface'])
def tokenizer(request, tmp_path, hugging_face_folder, texts):
    if request.param == 'sentencepiece':
        return tokenizers.sentencepiece(lambda: texts, tmp_path, vocab_size=340)
    return opened(hugging_face_folder(tmp_path))


@pytest.mark.parametrize('text', [HALF, '\udcff', '\ud83d\u2581', 'x' * 1000 + '\ud800'])
def test_half_a_character_is_refused(tokenizer, text):
    half = f'\\u{ord(next(c for c in text if 0xD800 <= ord(c) < 0xE000)):04x}'
    for work in (
        tokenizer.encode,
        tokenizer.encode_more,
        lambda text: tokenizer.encode_more(text, 'a'),
    ):
        message = refusal(work, text)
        assert half in message
        message.encode()


def test_half_a_character_in_a_row_names_the_row(tokenizer):
    rows = sources.memory(rows=[{'prompt': '1'}, {'prompt': HALF}])
    message = refusal(evaluation, rows, (), tokenizer, max_prompt_length=10, batch_size=1)
    assert message.startswith('memory:2: ')


def test_half_a_character_in_a_message(folder):
    tokenizer = opened(folder)
    assert r'\ud800' in refusal(tokenizer.chat, [{'role': 'user', 'content': HALF}], True)


def test_half_a_character_in_a_text_to_learn_from(tmp_path):
    assert r'\ud800' in refusal(
        vocabulary.train_sentencepiece, ['fine', HALF], tmp_path / 'x.model', 300
    )


def test_text_that_the_vocabulary_cannot_spell(tmp_path):
    """A vocabulary of words without one for the unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(
        models.WordLevel(vocab={'a': 0, '\n': 1, '</s>': 2, '.': 3, '0': 4}, unk_token='[UNK]')
    )
    backend.pre_tokenizer = pre_tokenizers.Split('a', 'isolated')
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token='</s>').save_pretrained(tmp_path)
    tokenizer = opened(tmp_path)
    assert np.array_equal(tokenizer.encode('aa'), [0, 0])
    assert 'the tokenizer refuses' in refusal(tokenizer.encode, 'zebra') and 'UNK' in refusal(
        tokenizer.encode, 'zebra'
    )
