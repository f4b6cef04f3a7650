"""Reward functions, called as TRL calls them."""

import inspect
import re
import subprocess
import sys

import pytest

from reasonjax.errors import UserError
from reasonjax.methods import rewards


def said(text):
    return [{'role': 'assistant', 'content': text}]


def test_accuracy_finds_and_compares():
    scores = rewards.accuracy(
        prompts=['p'] * 5,
        completions=['so 1,224', 'so 1225', 'no idea', '#### 1224 of 7', 'whatever'],
        solution=['1224', '1224', '1224', 1224, None],
        level=[1] * 5,  # columns it does not know are ignored
    )
    assert scores == [1.0, 0.0, 0.0, 0.0, None]
    strict = rewards.accuracy(
        prompts=['p'], completions=['#### 1224 of 7'], solution=['1224'], extract='strict'
    )
    assert strict == [1.0]


def test_accuracy_on_conversations():
    completions = [said('it is 7'), said('it is 8'), [{'role': 'tool', 'content': '7'}, *said('8')]]
    assert rewards.accuracy(prompts=['p'] * 3, completions=completions, solution=['7'] * 3) == [
        1.0,
        0.0,
        0.0,
    ]


def test_accuracy_as_the_addition_task_needs_it():
    knobs = dict(extract='hash', equality='text', require_termination=True)
    completions = ['1,2#0545', '#0545', '#545', '#0545', '0545']
    terminated = [True, False, True, True, True]
    scores = rewards.accuracy(['p'] * 5, completions, ['0545'] * 5, terminated, **knobs)
    assert scores == [1.0, 0.0, 0.0, 1.0, 0.0]
    with pytest.raises(UserError, match='terminated'):
        rewards.accuracy(
            prompts=['p'], completions=['#1'], solution=['1'], require_termination=True
        )


def test_accuracy_knobs_are_checked_and_columns_must_fit():
    with pytest.raises(UserError, match='Did you mean "strict"'):
        rewards.accuracy(prompts=['p'], completions=['1'], solution=['1'], extract='strickt')
    with pytest.raises(UserError, match='Did you mean "text"'):
        rewards.accuracy(prompts=['p'], completions=['1'], solution=['1'], equality='txt')
    with pytest.raises(ValueError):
        rewards.accuracy(prompts=['p'] * 2, completions=['1', '2'], solution=['1'])


THOUGHTS = [
    '<think>\nwell\n</think>\n7',
    '<think></think>',
    '<think>a<think>b</think>7',
    ' <think>a</think>7',
    '<think>a 7',
    '<think>a</think>b</think>7',
    '7',
]


def test_format_default_is_trls_think_format():
    # TRL's expression, applied its way.
    expected = [
        float(
            re.match(r'^<think>(?!.*<think>)(.*?)</think>.*$', text, re.DOTALL | re.MULTILINE)
            is not None
        )
        for text in THOUGHTS
    ]
    assert expected == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    prompts = ['p'] * len(THOUGHTS)
    assert rewards.format(prompts=prompts, completions=THOUGHTS) == expected
    assert (
        rewards.think_format_reward(
            prompts=prompts, completions=list(map(said, THOUGHTS)), level=[]
        )
        == expected
    )


OPENED = ['<think>', '<think>\n', 'Question: 1+1=\n<think>\n\n', '<|assistant|>\n<think> ']
LEFT_OUT = ['<think></think>', '<think>\n\n</think>\n\n']
NOT_OPENED = [
    '',
    'p',
    '<think>\nsee',
    'Write <think> and </think>',
    '<think>x</think>',
    '<think>x</think>\n',
    '<think',
    'say "<think>"',
]
AFTER = {
    'well\n</think>\n7': (1, 1, 0),
    '</think>': (1, 1, 0),
    'a</think>b</think>7': (1, 1, 0),
    'a 7': (0, 1, 0),
    '': (0, 1, 0),
    '7': (0, 1, 0),
    '<think>a</think>7': (0, 0, 1),
    'a<think>b</think>7': (0, 0, 0),
    '<think>a': (0, 0, 0),
}


@pytest.mark.parametrize('place', range(3))
@pytest.mark.parametrize('conversations', [False, True])
def test_thoughts_that_the_generation_prompt_opens_or_leaves_out_count(place, conversations):
    """`AFTER` has the marks of a completion behind a prompt of each of the three kinds."""
    for rendered in (OPENED, LEFT_OUT, NOT_OPENED)[place]:
        completions, number = list(AFTER), len(AFTER)
        expected = [float(marks[place]) for marks in AFTER.values()]
        if conversations:
            prompts, completions = (
                [[{'role': 'user', 'content': '1+1='}]] * number,
                list(map(said, completions)),
            )
            columns = dict(rendered_prompts=[rendered] * number)
        else:
            prompts, columns = [rendered] * number, {}
        assert rewards.format(prompts, completions, **columns) == expected
        assert (
            rewards.think_format_reward(
                prompts=prompts, completions=completions, **columns, level=[1] * number
            )
            == expected
        )


def test_a_pattern_of_ones_own_may_count_the_opened_tag_or_not():
    completions = ['a</think><answer>7</answer>', '<answer>7</answer>']
    for pattern, expected in (
        (f'{rewards.layout.THINK[:-2]}<answer>.*</answer>', [1, 0]),
        ('.*</answer>', [1, 1]),
        ('a.*', [1, 0]),
    ):
        assert rewards.format(['<think>\n'] * 2, completions, pattern=pattern) == expected
    assert rewards.format(['p'] * 2, completions, pattern='<think>.*') == [0, 0]


def test_format_matches_the_whole_completion():
    completions = ['12#3', '12#3x', 'x12#3', '1\n2#3']
    assert rewards.format(prompts=['p'] * 4, completions=completions, pattern=r'\d.*#\d') == [
        1.0,
        0.0,
        0.0,
        1.0,
    ]
    with pytest.raises(UserError, match='regular expression'):
        rewards.format(prompts=['p'], completions=['x'], pattern='(')


def test_knobs_are_keyword_only_with_neutral_defaults():
    def knobs(function):
        return {
            p.name: p.default
            for p in inspect.signature(function).parameters.values()
            if p.kind is p.KEYWORD_ONLY
        }

    assert knobs(rewards.accuracy) == {
        'extract': 'answer',
        'equality': 'answer',
        'require_termination': False,
    }
    assert set(knobs(rewards.format)) == {'pattern'}


def test_light_packages_do_not_import_jax():
    program = (
        'import sys, reasonjax.methods.rewards, reasonjax.tasks, reasonjax.training.statistics, '
        'reasonjax.sampling.reward_pool\n'
        'assert not {"jax", "torch", "tensorflow", "grain"} & set(sys.modules)'
    )
    subprocess.run([sys.executable, '-c', program], check=True)
