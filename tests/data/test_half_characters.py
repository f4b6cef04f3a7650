"""Half a character (a lone surrogate), which no vocabulary and no file has: named with its row,
whatever the source and tokenizer."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import template_styles

from reasonjax.data import pipeline, sources, tokenizers
from reasonjax.errors import UserError
from reasonjax.files import half_character, parse_json
from reasonjax.interop.huggingface.tokenizers import huggingface

HALVES = ['\ud800', '\udfff', 'a\udc80b', 'é\ud83d']


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tokenizers')
    made = {
        'characters': tokenizers.characters(None, None),
        'sentencepiece': tokenizers.sentencepiece(
            lambda: ['how many apples and 12 more'] * 40, folder, vocab_size=300
        ),
    }
    for style in ('qwen25', 'gemma3', 'mistral'):
        made[style] = huggingface(
            None, None, path=template_styles.write_style(folder / style, style)
        )
    return made


NAMES = ('characters', 'sentencepiece', 'qwen25', 'gemma3', 'mistral')


def first(rows, tokenizer, function=pipeline.supervised, **knobs):
    source = rows if hasattr(rows, 'where') else sources.memory(rows=rows, label='rows')
    knobs = (
        dict(max_length=64, batch_size=1)
        if function is pipeline.supervised
        else dict(max_prompt_length=64, num_prompts=1)
    )
    return next(function(source, [], tokenizer, seed=0, **knobs))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('half', HALVES)
def test_tokenizers(opened, name, half):
    for function in (opened[name].encode, opened[name].encode_more):
        with pytest.raises(UserError, match='half a character|is not in the alphabet'):
            function('12' + half)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('half', HALVES)
@pytest.mark.parametrize('column', ['prompt', 'completion', 'solution'])
def test_rows_in_memory(opened, name, half, column):
    row = {'prompt': '1=', 'completion': '2', 'solution': '2'}
    row[column] += half
    for function in (pipeline.supervised, pipeline.prompts):
        with pytest.raises(UserError) as error:
            first(sources.memory(rows=[row], label='rows'), opened[name], function)
        assert str(error.value).startswith(f'rows:1: column "{column}" holds half a character (\\u')
        str(error.value).encode()


@pytest.mark.parametrize('half', HALVES)
@pytest.mark.parametrize('column', ['prompt', 'completion', 'solution'])
def test_json_lines(half, column, tmp_path):
    file = tmp_path / 'rows.jsonl'
    file.write_text(
        json.dumps({'prompt': '1=', 'completion': '2', 'solution': '2'} | {column: half}) + '\n'
    )
    with pytest.raises(UserError) as error:
        sources.jsonl(path=str(file))
    assert str(error.value).startswith(f'{file}:1: holds half a character (\\u')
    str(error.value).encode()


@pytest.mark.parametrize('where', ['content', 'thinking', 'arguments', 'key', 'tools', 'kwargs'])
def test_anywhere_in_a_conversation(opened, where):
    answer = {
        'role': 'assistant',
        'content': '2',
        'tool_calls': [{'function': {'name': 'add', 'arguments': {'a': 1}}}],
    }
    row = {'messages': [{'role': 'user', 'content': '1='}, answer]}
    if where == 'arguments':
        answer['tool_calls'][0]['function']['arguments']['a'] = 'x\ud800'
    elif where == 'key':
        answer['tool_calls'][0]['function']['arguments']['x\ud800'] = 1
    elif where in ('tools', 'kwargs'):
        row['tools' if where == 'tools' else 'chat_template_kwargs'] = (
            [{'name': 'x\ud800'}] if where == 'tools' else {'a': '\ud800'}
        )
    else:
        answer[where] = 'x\ud800'
    with pytest.raises(UserError, match=r'^rows:1: column "\w+" holds half a character \(\\ud800'):
        first([row], opened['qwen25'])


def test_parquet_and_arrays_of_bytes(tmp_path):
    """Such a file holds bytes that are not UTF-8 in a column of text."""
    texts = pa.Array.from_buffers(
        pa.string(),
        3,
        [
            None,
            pa.py_buffer(np.array([0, 1, 4, 5], np.int32)),
            pa.py_buffer(b'a' + b'\xed\xa0\x80' + b'b'),
        ],
    )
    file = tmp_path / 'rows.parquet'
    pq.write_table(pa.table({'prompt': texts}), file)
    with pytest.raises(UserError, match=rf'^{file}:2: holds text that is not UTF-8'):
        sources.parquet(path=str(file))

    source = sources.Source(
        'tfds:x', [{'prompt': b'a'}, {'prompt': b'\xed\xa0\x80'}], 'digest', convert=sources._plain
    )
    with pytest.raises(UserError, match='^tfds:x:2: holds text that is not UTF-8'):
        pipeline.evaluation(
            source,
            [],
            tokenizers.characters(None, None, alphabet='_.$Ma'),
            max_prompt_length=9,
            batch_size=1,
        )


def test_whole_characters_are_left_alone(opened):
    row = {
        'prompt': 'a \U0001f600 é',
        'completion': '中',
        'more': {'x': ['\U0001f468\u200d\U0001f469', None, 1.5, b'\xff']},
    }
    assert len(first([{**row, 'more': None}], opened['qwen25'])['tokens']) == 1
    assert not half_character(row)
    deep = json.dumps('\ud800')
    for _ in range(400):
        deep = f'[{deep}]'
    with pytest.raises(UserError, match='half a character'):
        parse_json(deep, 'deep')
    assert half_character(['a', {'b\ud83d': 1}]) == '\\ud83d'
