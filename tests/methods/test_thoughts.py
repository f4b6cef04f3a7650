"""Thoughts for templates that do not read them: written into the content, or left out and
counted."""

import numpy as np
import pytest
from template_styles import write_style

from reasonjax.data import pipeline, render, sources
from reasonjax.errors import UserError
from reasonjax.interop.huggingface.tokenizers import huggingface
from reasonjax.methods import transforms

RNG = np.random.default_rng(0)
ASK = {'role': 'user', 'content': 'Tom has 12?'}
CALL = {'function': {'name': 'add', 'arguments': {'a': 1}}}


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
    return huggingface(None, None, path=write_style(tmp_path_factory.mktemp('llama3'), 'llama3'))


def one(made):
    (example,) = made
    return example


def thinking(key='thinking', content='So 2.', **others):
    return {'role': 'assistant', 'content': content, key: 'Half.'} | others


@pytest.mark.parametrize('key', ['reasoning_content', 'thinking', 'reasoning'])
@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('So 2.', 'So 2.'),
        (None, ''),
        ('', ''),
        ([{'type': 'text', 'text': 'So'}, {'type': 'text', 'text': ' 2.'}], 'So 2.'),
    ],
)
def test_thoughts_go_in_front_of_the_words(key, content, words):
    for column in ('prompt', 'completion', 'messages', 'chosen', 'rejected'):
        example = one(
            transforms.fold_thoughts({column: [ASK, thinking(key, content)], 'k': 1}, RNG)
        )
        assert example == {
            column: [ASK, {'role': 'assistant', 'content': f'<think>\nHalf.\n</think>\n\n{words}'}],
            'k': 1,
        }
    message = one(
        transforms.fold_thoughts(
            {'messages': [thinking(key, content)]}, RNG, opening='[', closing='] '
        )
    )['messages'][0]
    assert message['content'] == f'[Half.] {words}'


@pytest.mark.parametrize('transform', [transforms.fold_thoughts, transforms.drop_thoughts])
def test_messages_without_thoughts_stay_as_they_are(transform):
    row = {
        'messages': [
            ASK | {'thinking': 'x'},
            {'role': 'assistant', 'content': 'a', 'thinking': ''},
        ],
        'prompt': 'text',
        'k': None,
    }
    assert one(transform(row, RNG)) == row
    called = one(transform({'messages': [thinking(tool_calls=[CALL])]}, RNG))['messages'][0]
    assert called['tool_calls'] == [CALL] and 'thinking' not in called


def test_a_template_that_reads_no_thoughts(llama):
    row = {'messages': [ASK, thinking(), ASK, thinking('reasoning')]}
    with pytest.raises(UserError, match='fold_thoughts'):
        render.demonstration(row, llama)

    def batch_of(*functions):
        iterator = pipeline.supervised(
            sources.memory(rows=[row]), functions, llama, max_length=128, batch_size=1, seed=0
        )
        batch = next(iterator)
        return llama.tokenizer.decode(batch['tokens'][batch['weights'] > 0]), iterator.counters[
            'dropped_keys'
        ]

    assert batch_of(transforms.fold_thoughts) == (
        '<think>\nHalf.\n</think>\n\nSo 2.<|eot_id|>' * 2,
        0,
    )
    assert batch_of(transforms.drop_thoughts) == ('So 2.<|eot_id|>' * 2, 2)
