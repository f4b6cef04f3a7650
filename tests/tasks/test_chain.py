"""Chained arithmetic: formats, and working that an independent reader finds right."""

import re

import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.tasks import chain
from reasonjax.tasks.chain import trace


def rows(**settings):
    examples = chain(**settings).examples
    return [examples[i] for i in range(len(examples))]


def value(expression):
    """From the left: all but the last operation in parentheses, by Python; a remainder taken at the
    end only."""
    pieces = re.findall(r'\d|[-+*]', expression)
    text = pieces[0]
    for operation, digit in zip(pieces[1::2], pieces[2::2]):
        text = f'({text}{operation}{digit})'
    return eval(text) % 10


@pytest.mark.parametrize(
    'expression,granularity,restate,working,result',
    [
        ('9+2-8*6', 1, False, '1-8*6=3*6=8', '8'),
        ('9+2-8*6', 2, False, '9+2=1,1-8=3,3*6=8', '8'),
        ('8+6+5+2', 2, False, '8+6=4,4+5=9,9+2=1', '1'),
        ('9+2-8*6', 0, False, '', '8'),
        ('9+2-8*6', 1, True, '1-8*6=1-8*6=3*6=3*6=8=8', '8'),
        ('9+2-8*6', 2, True, '9+2=1,9+2=1,1-8=3,1-8=3,3*6=8,3*6=8', '8'),
        ('0-1', 1, False, '9', '9'),
    ],
)
def test_formats(expression, granularity, restate, working, result):
    assert trace(expression, granularity, restate) == (working, result)


@pytest.mark.parametrize('granularity', [0, 1, 2])
def test_working_is_right(granularity):
    for row in rows(size=300, levels=(1, 2, 5, 9), granularity=granularity):
        expression = row['prompt'].removesuffix('=')
        assert len(re.findall(r'\d', expression)) == row['level'] + 1
        assert int(row['solution']) == value(expression)
        working = row['completion'].removesuffix(f'#{row["solution"]}')
        if granularity == 1:
            lines = working.split('=')
            # Each expression ends as the one before, is an operation shorter, and has its value.
            for before, after in zip([expression, *lines], lines):
                assert after[1:] == before[3:] and value(after) == value(before)
            assert lines[-1] == row['solution']
        elif granularity == 2:
            steps = [
                re.fullmatch(r'(\d)([-+*])(\d)=(\d)', step).groups() for step in working.split(',')
            ]
            assert (
                steps[0][0] + ''.join(operation + b for _, operation, b, _ in steps) == expression
            )
            assert all(int(result) == value(a + operation + b) for a, operation, b, result in steps)
            assert [result for *_, result in steps] == [a for a, *_ in steps[1:]] + [
                row['solution']
            ]
        else:
            assert working == ''


@pytest.mark.parametrize('granularity,separator', [(1, '='), (2, ',')])
def test_restating_doubles_every_part(granularity, separator):
    plain, twice = (
        rows(size=50, granularity=granularity, restate=restate) for restate in (False, True)
    )
    for a, b in zip(plain, twice):
        assert a['prompt'] == b['prompt'] and a['solution'] == b['solution']
        parts, doubled = (
            row['completion'].split('#')[0].split('=' if granularity == 1 else ',')
            for row in (a, b)
        )
        assert doubled[::2] == doubled[1::2] == parts


def test_nothing_to_restate():
    with pytest.raises(UserError, match='restate=True.*granularity=0.*granularity=1'):
        chain(size=1, granularity=0, restate=True)


def test_draws_are_even():
    found = rows(size=3000, levels=(1, 3))
    levels = np.bincount([row['level'] for row in found], minlength=4)
    assert levels[[0, 2]].sum() == 0 and abs(levels[1] - 1500) < 5 * np.sqrt(3000 / 4)
    text = ''.join(row['prompt'] for row in found)
    for group in ('+-*', '0123456789'):
        counts = np.array([text.count(c) for c in group])
        assert abs(counts - counts.sum() / len(group)).max() < 5 * np.sqrt(
            counts.sum() / len(group)
        )


@pytest.mark.parametrize(
    'completion,terminated,correct,answer',
    [
        ('#8', True, True, '8'),
        ('1-8*6=3*6=8#8', True, True, '8'),
        ('nonsense#8', True, True, '8'),
        ('#8', False, False, '8'),
        ('#08', True, False, '08'),
        ('#8 ', True, False, '8 '),
        ('#\uff18', True, False, '\uff18'),
        ('##8', True, False, '#8'),
        ('#7#8', True, False, '7#8'),
        ('#', True, False, ''),
        ('8', True, False, None),
        ('', True, False, None),
    ],
)
def test_verification(completion, terminated, correct, answer):
    assert chain(size=1).verify(completion, {'solution': '8'}, terminated) == {
        'correct': correct,
        'answer': answer,
    }
