"""Prompts as files hold them, and completions as a terminal may show them."""

import argparse
import gzip
import io
import json
import os
import types

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reasonjax.data import tokenizers
from reasonjax.errors import UserError
from reasonjax.training import answer_prompts as sampling

EVIL = 'a\x1b[2J\x07\x9b31m\u202e\u2066[red]<b>\r\ud800'


def read(*prompts, file=None):
    return list(
        sampling.read_prompts(
            argparse.Namespace(prompts=list(prompts), file=file if file is None else str(file))
        )
    )


def refusal(work, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        work(*arguments, **options)
    message = str(caught.value)
    assert '\n' not in message
    return message


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


TEXTS = [
    ('one\ntwo\n', ['one', 'two']),
    ('one\r\ntwo\r\n', ['one', 'two']),
    ('one\rtwo', ['one', 'two']),
    ('\ufeffone\n', ['one']),
    ('\n \t\none\n\n', ['one']),
    ('  one  \n', ['  one  ']),
    (
        'a\u2028b\u2029c\u0085d\x0ce\x0bf\x1cg\x1eh\n',
        ['a\u2028b\u2029c\u0085d\x0ce\x0bf\x1cg\x1eh'],
    ),
    ('', []),
    ('\ufeff', []),
]


@pytest.mark.parametrize('text, prompts', TEXTS)
def test_a_line_is_a_prompt(tmp_path, monkeypatch, text, prompts):
    """A mark at the start is none of it, and other characters that Python splits at are."""
    assert read(file=put(tmp_path / 'x.txt', text)) == prompts
    assert read(file=put(tmp_path / 'x.txt.gz', gzip.compress(text.encode()))) == prompts
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(text.encode())))
    assert read() == prompts


@pytest.mark.parametrize('name', ['X.JSONL', 'x.ndjson', 'x.jsonl.gz', 'x.json'])
def test_rows_are_prompts(tmp_path, name):
    content = '{"prompt": "a\u2028b"}\n\n{"prompt": [{"role": "user", "content": "c"}], "more": 1}\n'.encode()
    path = put(tmp_path / name, gzip.compress(content) if name.endswith('.gz') else content)
    assert read(file=path) == ['a\u2028b', [{'role': 'user', 'content': 'c'}]]


@pytest.mark.parametrize('name', ['x.parquet', 'X.PQ'])
def test_a_table_has_rows_too(tmp_path, name):
    pq.write_table(pa.table({'prompt': ['a', 'b\n'], 'more': [1, 2]}), tmp_path / name)
    assert read(file=tmp_path / name) == ['a', 'b\n']


@pytest.mark.parametrize(
    'name, words',
    [
        ('x.csv', 'is a table of text; convert'),
        ('X.TSV', 'is a table of text'),
        ('x.xlsx', 'is a spreadsheet'),
        ('x.zip', 'is an archive'),
        ('x.txt.zst', 'is an archive'),
        ('x.tar.gz', 'is an archive'),
        ('x.arrow', 'is an Arrow file'),
    ],
)
def test_files_whose_lines_are_no_prompts(tmp_path, name, words):
    """The header of a table would be the first prompt, and the bytes of an archive another."""
    message = refusal(read, file=put(tmp_path / name, 'prompt,solution\na,3\n'))
    assert message.startswith(f'--file: {tmp_path}/{name}') and words in message


@pytest.mark.parametrize(
    'content',
    ['café\n'.encode('latin-1'), b'fine\n\xff\xfe', bytes(range(256)), 'x\n'.encode('utf-16')],
)
def test_what_is_not_utf8(tmp_path, monkeypatch, content):
    path = put(tmp_path / 'x.txt', content)
    assert f'{path}: line ' in refusal(read, file=path) and 'is not UTF-8' in refusal(
        read, file=path
    )
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(content)))
    assert refusal(read).startswith('standard input: line ')


def test_no_standard_input(monkeypatch):
    monkeypatch.setattr('sys.stdin', None)
    assert read() == []


@pytest.mark.parametrize(
    'content, words',
    [
        ('{"prompt": ' + '[' * 100_000, 'nested too deeply'),
        ('{"prompt": ' + '9' * 5000 + '}', 'Exceeds the limit'),
        (r'{"prompt": "\ud800"}', 'half a character'),
        ('{"prompt": "a", "prompt": "b"}', 'is given twice'),
    ],
)
def test_rows_that_are_none(tmp_path, content, words):
    assert words in refusal(read, file=put(tmp_path / 'x.jsonl', content))


def test_files_that_are_none(tmp_path):
    put(tmp_path / 'prompts.txt', 'x')
    os.mkfifo(tmp_path / 'pipe')
    assert 'Did you mean "prompts.txt"?' in refusal(read, file=tmp_path / 'promts.txt')
    assert 'a pipe or a device' in refusal(read, file=tmp_path / 'pipe')
    assert 'Is a directory' in refusal(read, file=tmp_path)
    assert 'damaged gzip file' in refusal(read, file=put(tmp_path / 'x.txt.gz', b'\x1f\x8bno'))


# What is sampled from them.


@pytest.fixture
def of_run():
    config = types.SimpleNamespace(rope_scaling=(('name', 'none'),), max_positions=8)
    return types.SimpleNamespace(
        tokenizer=tokenizers.characters(None, None),
        model=config,
        rollout_mesh=types.SimpleNamespace(shape={}),
    )


@pytest.mark.parametrize(
    'prompt, words',
    [
        ('', 'column "prompt" is empty'),
        ('1\udcff', r"prompt 2: tokenizer characters: '\udcff' at position 2"),
        ([{'role': 'user', 'content': 'x'}], 'has no chat template'),
        (5, 'must be a string or a list'),
        ('1' * 8, 'has 8 tokens, but the positions of this model are good for 8'),
        ('1' * 10**7, 'has 10000000 tokens'),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_numbered(of_run, prompt, words, monkeypatch):
    monkeypatch.setattr(sampling.meshes, 'filled', lambda size, mesh: size)
    message = refusal(lambda: list(sampling.sample(of_run, None, ['1', prompt], None, 0, 4)))
    assert message.startswith('prompt 2') and words in message


def test_more_than_memory_holds(of_run, monkeypatch):
    def draw(*arguments):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.')

    monkeypatch.setattr(sampling.meshes, 'filled', lambda size, mesh: size)
    monkeypatch.setattr(sampling, 'sampler', lambda run, settings: draw)
    settings = sampling.Sampling(max_tokens=4, num_generations=3, temperature=1.0, eos_ids=(1,))
    message = refusal(lambda: list(sampling.sample(of_run, None, ['1', '11'], settings, 0, 4)))
    assert (
        '2 prompts of up to 16 tokens, with 3 times 4 more each, need more memory' in message
        and '--batch_size' in message
    )


def shown(capsys, prompt, text, **options):
    options = {'jsonl': False, 'logprobs': False} | options
    completion = {
        'text': text,
        'terminated': True,
        'tokens': [text, ''],
        'ids': [1, 2],
        'logprobs': [-1.0, -2.0],
        'logprob': -3.0,
    }
    sampling._show(prompt, completion, argparse.Namespace(**options))
    return capsys.readouterr().out


UNSAFE = ['\x1b', '\x07', '\x9b', '\u202e', '\u2066', '\r', '\ud800']


@pytest.mark.parametrize('logprobs', [False, True])
@pytest.mark.parametrize('prompt', [EVIL, [{'role': 'user', 'content': EVIL}]])
def test_completions_are_shown_escaped(capsys, prompt, logprobs):
    printed = shown(capsys, prompt, EVIL, logprobs=logprobs)
    assert not any(character in printed for character in UNSAFE)
    assert r'a\x1b[2J\x07\x9b31m\u202e\u2066[red]<b>\r\ud800' in printed
    assert printed.count('\n') == (3 if logprobs else 1)


@pytest.mark.parametrize(
    'prompt', [EVIL, [{'role': 'user', 'content': EVIL, 'n': [None, 1.5, True]}]]
)
def test_json_lines_lose_nothing(capsys, prompt):
    printed = shown(capsys, prompt, EVIL + '\n\u2028"\\', jsonl=True, logprobs=True)
    assert not any(character in printed for character in UNSAFE) and len(printed.splitlines()) == 1
    printed.encode()
    completion = json.loads(printed)
    assert (
        completion['prompt'] == prompt
        and completion['text'] == EVIL + '\n\u2028"\\'
        and completion['tokens'][0] == completion['text']
    )
    assert np.sum(completion['logprobs']) == completion['logprob']
