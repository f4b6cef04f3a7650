"""Transforms: columns in, columns out, and what they refuse."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.methods import transforms

RNG = np.random.default_rng(0)
ROW = {
    'question': 'How many {x}?',
    'answer': 'Half is 48/2 = <<48/2=24>>24.\n#### 1,024',
    'level': 3,
}


def one(made):
    (example,) = made
    return example


def test_prompt_completion_renames_and_keeps_the_rest():
    example = one(
        transforms.prompt_completion({'q': 'a', 'r': 'b', 'k': 1}, RNG, prompt='q', completion='r')
    )
    assert example == {'prompt': 'a', 'completion': 'b', 'k': 1}


def test_prompt_completion_with_the_usual_names_changes_nothing():
    row = {'prompt': 'a', 'completion': 'b', 'k': 1}
    assert one(transforms.prompt_completion(row, RNG)) == row


def test_prompt_completion_without_a_completion():
    assert one(
        transforms.prompt_completion({'q': 'a', 'k': 1}, RNG, prompt='q', completion='')
    ) == {
        'prompt': 'a',
        'k': 1,
    }


def test_missing_columns_list_what_there_is_and_the_nearest():
    with pytest.raises(
        UserError, match='no column "prompt".*columns found: k, promt. Did you mean "promt"'
    ):
        transforms.prompt_completion({'promt': 'a', 'k': 1}, RNG)
    with pytest.raises(UserError, match='column "prompt".*is null'):
        transforms.prompt_completion({'prompt': None, 'completion': 'b'}, RNG)


def test_messages_reads_sharegpt():
    row = {
        'conversations': [
            {'from': 'human', 'value': 'hi'},
            {'from': 'gpt', 'value': 'yo', 'weight': 0},
        ],
        'id': 7,
    }
    example = one(
        transforms.messages(row, RNG, messages='conversations', role='from', content='value')
    )
    turns = [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'yo', 'weight': 0}]
    assert example == {'messages': turns, 'id': 7}


def test_messages_with_the_usual_names_changes_nothing():
    row = {
        'messages': [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'hi'}],
        'k': 1,
    }
    assert one(transforms.messages(row, RNG)) == row


def test_messages_errors():
    with pytest.raises(UserError, match='no column "messages".*Did you mean "message"'):
        transforms.messages({'message': []}, RNG)
    with pytest.raises(UserError, match='column "messages".*found str'):
        transforms.messages({'messages': 'hi'}, RNG)
    with pytest.raises(UserError, match='message 2 has no "content".*keys found: role, text'):
        transforms.messages(
            {'messages': [{'role': 'user', 'content': 'a'}, {'role': 'user', 'text': 'b'}]}, RNG
        )
    with pytest.raises(UserError, match='message 1 must be a mapping'):
        transforms.messages({'messages': ['hi']}, RNG)


def test_chat_wraps_strings():
    example = one(transforms.chat({'prompt': 'a', 'completion': ' b\n', 'k': 1}, RNG, system='s'))
    assert example == {
        'prompt': [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'a'}],
        'completion': [{'role': 'assistant', 'content': 'b'}],
        'k': 1,
    }
    assert one(transforms.chat({'prompt': 'a'}, RNG)) == {
        'prompt': [{'role': 'user', 'content': 'a'}]
    }
    with pytest.raises(UserError, match='column "prompt".*must be a string, found list'):
        transforms.chat({'prompt': []}, RNG)


def test_constants_are_columns_of_every_row():
    values = {'chat_template_kwargs': {'enable_thinking': False}, 'level': 1}
    assert one(transforms.constants({'prompt': 'a', 'level': 3}, RNG, values=values)) == {
        'prompt': 'a',
        'level': 3,  # the row's own
        'chat_template_kwargs': {'enable_thinking': False},
    }


def test_rename():
    example = {'prompt': 'a', 'completions': ['b'], 'labels': [1], 'k': 1}
    renamed = one(
        transforms.rename(
            example, RNG, columns={'completions': 'steps', 'labels': '', 'k': 'prompt2'}
        )
    )
    assert renamed == {'prompt': 'a', 'steps': ['b'], 'prompt2': 1} and example['k'] == 1
    assert one(transforms.rename({'a': 1, 'b': 2}, RNG, columns={'a': 'b', 'b': 'a'})) == {
        'b': 1,
        'a': 2,
    }
    with pytest.raises(
        UserError,
        match='no column "completion" .*columns found: completions, .*Did you mean "completions"',
    ):
        one(transforms.rename(example, RNG, columns={'completion': 'steps'}))
    with pytest.raises(UserError, match='column "k" .* is there already'):
        one(transforms.rename(example, RNG, columns={'labels': 'k'}))


PAIR = {'prompt': 'a', 'chosen': 'b', 'rejected': 'c', 'k': 1}
IMPLICIT = {'chosen': 'a b', 'rejected': 'a c', 'k': 1}
TURNS = [
    {'role': role, 'content': text}
    for role, text in (('user', 'a'), ('assistant', 'b'), ('assistant', 'c'))
]


def test_chosen_only():
    assert one(transforms.chosen_only(PAIR, RNG)) == {'prompt': 'a', 'completion': 'b', 'k': 1}
    assert one(transforms.chosen_only(IMPLICIT, RNG)) == {'prompt': 'a', 'completion': ' b', 'k': 1}
    conversation = {'chosen': TURNS[:2], 'rejected': [TURNS[0], TURNS[2]]}
    assert one(transforms.chosen_only(conversation, RNG)) == {
        'prompt': TURNS[:1],
        'completion': TURNS[1:2],
    }
    with pytest.raises(
        UserError, match='no column "rejected" .chosen_only.; columns found: chosen'
    ):
        transforms.chosen_only({'chosen': 'b'}, RNG)


def test_unpair():
    good, bad = transforms.unpair(PAIR, RNG)
    assert good == {'prompt': 'a', 'completion': 'b', 'label': True, 'k': 1}
    assert bad == {'prompt': 'a', 'completion': 'c', 'label': False, 'k': 1}


def test_desirable_only():
    row = {'prompt': 'a', 'completion': 'b', 'k': 1}
    assert one(transforms.desirable_only(row | {'label': True}, RNG)) == row
    assert list(transforms.desirable_only(row | {'label': False}, RNG)) == []
    for label in (None, 'yes', 2):
        with pytest.raises(
            UserError, match='column "label" .desirable_only. (is null|must be true or false)'
        ):
            transforms.desirable_only(row | {'label': label}, RNG)


def test_correct_steps():
    row = {'prompt': 'a', 'completions': ['b', 'c'], 'labels': [True, True]}
    assert one(transforms.correct_steps(row, RNG)) == {'prompt': 'a', 'completion': 'b\nc'}
    assert one(transforms.correct_steps(row, RNG, separator=' '))['completion'] == 'b c'
    assert list(transforms.correct_steps(row | {'labels': [True, False]}, RNG)) == []
    with pytest.raises(UserError, match='"completions" and "labels"'):
        transforms.correct_steps(row | {'labels': [True]}, RNG)


def test_what_transforms_of_forms_make_is_of_the_form():
    from reasonjax.data import forms

    for function, row in (
        (transforms.chosen_only, PAIR),
        (transforms.desirable_only, {'prompt': 'a', 'completion': 'b', 'label': True}),
        (transforms.correct_steps, {'prompt': 'a', 'completions': ['b'], 'labels': [True]}),
    ):
        forms.check('demonstration', one(function(row, RNG)))
    for made in transforms.unpair(PAIR, RNG):
        forms.check('unpaired', made)


def test_gsm8k_makes_prompt_completion_and_solution():
    example = one(transforms.gsm8k(ROW, RNG))
    assert example['prompt'] == 'Question: How many {x}?\nAnswer:'
    assert example['completion'] == ' Half is 48/2 = 24.\n#### 1,024'
    assert example['solution'] == '1024'
    assert example['level'] == 3


def test_gsm8k_knobs():
    row = {'q': ROW['question'], 'a': ROW['answer']}
    example = one(
        transforms.gsm8k(
            row,
            RNG,
            template=r'{question} \boxed{}',
            keep_calculator=True,
            question='q',
            answer='a',
        )
    )
    assert example['prompt'] == r'How many {x}? \boxed{}'
    assert example['completion'] == ' ' + ROW['answer']


@pytest.mark.parametrize(
    ('final', 'solution'), [('#### -3', '-3'), ('####  0.5 ', '0.5'), ('#### 2,000,000', '2000000')]
)
def test_gsm8k_solution_is_the_number_alone(final, solution):
    assert (
        one(transforms.gsm8k({'question': 'q', 'answer': f'So\n{final}'}, RNG))['solution']
        == solution
    )


def test_gsm8k_errors():
    with pytest.raises(
        UserError,
        match='no column "question".*columns found: answer, qestion.*Did you mean "qestion"',
    ):
        transforms.gsm8k({'qestion': 'a', 'answer': '#### 1'}, RNG)
    with pytest.raises(UserError, match='ends in "#### number"'):
        transforms.gsm8k({'question': 'a', 'answer': 'It is 3.'}, RNG)
    with pytest.raises(UserError, match='gsm8k.template'):
        transforms.gsm8k(ROW, RNG, template='no place')


def test_gsm8k_reads_every_real_row(data_dir):
    lines = (data_dir / 'gsm8k' / 'test.jsonl').read_text().splitlines()
    for row in map(json.loads, lines):
        example = one(transforms.gsm8k(row, RNG))
        assert float(example['solution']) == float(row['answer'].split('####')[1].replace(',', ''))
        assert '<<' not in example['completion'] and example['completion'].startswith(' ')


def test_transforms_do_not_change_the_row_they_are_given():
    for function, row in (
        (transforms.gsm8k, dict(ROW)),
        (transforms.chat, {'prompt': 'a', 'completion': 'b'}),
        (transforms.messages, {'messages': [{'role': 'human', 'content': 'a'}]}),
        (transforms.chosen_only, PAIR),
        (transforms.unpair, IMPLICIT),
        (transforms.correct_steps, {'prompt': 'a', 'completions': ['b'], 'labels': [True]}),
    ):
        before = json.dumps(row)
        list(function(row, RNG))
        assert json.dumps(row) == before


def test_importing_transforms_imports_no_array_library_but_numpy():
    script = 'import sys, reasonjax.methods.transforms; assert not {"jax", "torch", "tensorflow", "grain"} & set(sys.modules)'
    root = pathlib.Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, '-c', script], cwd=root, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
