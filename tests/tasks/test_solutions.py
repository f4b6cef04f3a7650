"""What the column `solution` may hold, and what is refused."""

import datetime
import decimal
import fractions

import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.methods.rewards import accuracy, verified
from reasonjax.tasks.answers import EXTRACTORS, GIVEN, read_solution, write_solution

WORKED = 'She has 48/2 = 24.\nIn all 24+1,200 = 1,224.\n#### 1,224'


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        ('7', '7'),
        (7, '7'),
        (7.0, '7'),
        (0.5, '0.5'),
        (1e-05, '0.00001'),
        (1e16, '10000000000000000'),
        (-0.25, '-0.25'),
        (1e22, '1' + '0' * 22),
        (np.float32(0.1), '0.1'),
        (np.float64(7), '7'),
        (np.int64(7), '7'),
        (np.array(7.0), '7'),
        (np.array(['7']), '7'),
        (np.str_('7'), '7'),
        (np.float16(0.5), '0.5'),
        (np.array([7]), '7'),
        (['7'], '7'),
        (('7',), '7'),
        ([7.0], '7'),
        ({'ground_truth': '7'}, '7'),
        ({'answer': 7, 'unit': 'cm'}, '7'),
        ({'reward_model': {'ground_truth': ['7']}}, '7'),
        ({'anything': '7'}, '7'),
        ({'answer': '7', 'value': None}, '7'),
        ({'ground_truth': None, 'target': 7}, '7'),
        (decimal.Decimal('7.50'), '7.5'),
        (decimal.Decimal('1E+3'), '1000'),
        (fractions.Fraction(1, 2), '1/2'),
        (b'7', '7'),
        (True, 'True'),
        (np.bool_(False), 'False'),
        (datetime.date(2020, 1, 2), '2020-01-02'),
        ('0545', '0545'),
        (None, None),
        ('', None),
        ('  ', None),
        ([], None),
        (np.array([]), None),
        ({'answer': None}, None),
        (b'', None),
    ],
)
def test_forms_of_a_solution(value, text):
    assert write_solution(value) == text


def test_an_integer_longer_than_python_writes():
    assert write_solution(10**5000) == '1' + '0' * 5000 and accuracy(
        ['p'], ['1' + '0' * 5000], [10**5000]
    ) == [1.0]


class Odd:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (float('nan'), 'found NaN; use null'),
        (np.float32('nan'), 'found NaN'),
        (float('inf'), 'found Infinity'),
        (decimal.Decimal('NaN'), 'NaN'),
        ([['7']], r"found 1 in a list \(\[\['7'\]\]\)"),
        (['7', '8'], 'found 2 in a list'),
        (np.array([7, 8]), 'found 2 in a list'),
        ({'a': 1, 'b': 2}, 'found a, b'),
        ({}, 'found none'),
        ({'answer': 1, 'solution': 2}, 'found answer, solution'),
        (b'\xff', 'not UTF-8'),
        ({1, 2}, 'found set'),
        (object(), 'found object'),
        (1j, 'found complex'),
        (Odd(), 'found Odd'),
        (np.complex64(1), 'found complex'),
    ],
)
@pytest.mark.parametrize('rule', ['answer', 'flexible'])
def test_what_is_no_solution_is_refused(value, message, rule):
    with pytest.raises(UserError, match=f'column "solution": .*{message}'):
        accuracy(['p'], ['7'], [value], extract=rule)


FORMS = [
    '#### 7',
    r'\boxed{7}',
    r'so $\boxed{7}$.',
    'The answer is 7.',
    'She has 3 + 4 = 7.\nSo 7.\n#### 7',
    ['7'],
    {'ground_truth': '7'},
    7.0,
    ' 7 ',
]
WAYS = [
    ('answer', 'answer'),
    ('flexible', 'number'),
    ('strict', 'number'),
    ('boxed', 'number'),
    ('boxed', 'answer'),
    ('last_line', 'number'),
    ('hash', 'number'),
    ('answer', 'math_verify'),
    ('flexible', 'answer'),
]


@pytest.mark.parametrize(('how', 'equality'), WAYS)
def test_right_answers_are_right_whatever_the_form(how, equality):
    if equality == 'math_verify':
        pytest.importorskip('math_verify')
    (right, *_), number = GIVEN[how], len(FORMS)
    for answer, mark in (('7', 1.0), ('8', 0.0)):
        knobs = dict(extract=how, equality=equality)
        assert (
            accuracy(['p'] * number, [right.replace('%s', answer)] * number, FORMS, **knobs)
            == [mark] * number
        )


def test_worked_solutions_and_units():
    assert read_solution(WORKED) == read_solution(WORKED, 'flexible', 'number') == '1,224'
    assert (
        read_solution('18 cm', 'flexible', 'number') == '18' and read_solution('18 cm') == '18 cm'
    )
    assert read_solution('$1,234', 'strict', 'number') == '1,234'
    assert (
        read_solution(1e-05, 'flexible', 'number')
        == read_solution('1e-05', 'flexible', 'number')
        == '0.00001'
    )
    assert read_solution(r'\frac{3}{4}') == r'\frac{3}{4}'


def test_with_text_a_solution_is_taken_as_it_is():
    for text in ('0545', '#### 7', ' 7', 'K'):
        assert read_solution(text, 'hash', 'text') == text
    assert read_solution(' 7 ', 'last_line', 'text') == '7'  # the extractor strips what it reads


@pytest.mark.parametrize(
    ('text', 'plain'), [('1e-05', '0.00001'), ('2.5E3', '2500'), ('-1e2', '-100')]
)
def test_exponents_are_written_out_for_plain_numbers(text, plain):
    assert accuracy(['p'], [rf'\boxed{{{plain}}}'], [text], extract='boxed', equality='number') == [
        1.0
    ]


@pytest.mark.parametrize(
    ('value', 'how', 'equality'),
    [
        ('x + 1', 'flexible', 'number'),
        (r'\frac{3}{4}', 'flexible', 'number'),
        ('Paris', 'strict', 'number'),
        ('1/2', 'flexible', 'number'),
        (True, 'flexible', 'number'),
        ('}{', 'boxed', 'number'),
        ('a\nb', 'last_line', 'text'),
        ('7.5 and 8', 'flexible', 'number'),
        ('#### ', 'answer', 'answer'),
        ('3 + 4 = 7\n####', 'answer', 'answer'),
        ('3 + 4 = 7\n####', 'flexible', 'number'),
        ('...', 'answer', 'answer'),
        ('$$', 'answer', 'answer'),
        ('\u200b', 'answer', 'math_verify'),
        ('**', 'boxed', 'answer'),
        (r'\boxed{}', 'answer', 'answer'),
        (r'so \boxed{7', 'answer', 'answer'),
        (r'so 3 \boxed{\frac{1}{2}', 'boxed', 'number'),
    ],
)
def test_a_solution_that_no_answer_can_equal_is_refused(value, how, equality):
    with pytest.raises(
        UserError,
        match=f'column "solution": no completion can be .* extract="{how}" and '
        f'equality="{equality}"',
    ):
        accuracy(['p'], ['7'], [value], extract=how, equality=equality)


def test_unknown_names_come_first():
    with pytest.raises(UserError, match='Did you mean "flexible"'):
        read_solution('7', 'flexibl')
    with pytest.raises(UserError, match='Did you mean "number"'):
        read_solution('7', 'answer', 'numbr')
    assert set(GIVEN) == set(EXTRACTORS)


def test_the_rules_of_tasks_read_the_same_forms():
    ended = [True]
    for solution in (8, 8.0, ['8']):
        assert verified(['p'], ['#8'], ended, task='chain', solution=[solution]) == [1.0]
    for solution in ('#### 72', WORKED.replace('1,224', '72'), 72, ['72'], {'answer': '72'}):
        assert verified(
            ['p'] * 2, ['#### 72', '#### 7'], [True] * 2, task='gsm8k', solution=[solution] * 2
        ) == [1.0, 0.0]
    for task in ('chain', 'gsm8k'):
        with pytest.raises(UserError, match='found NaN'):
            verified(['p'], ['#8'], ended, task=task, solution=[float('nan')])
        assert verified(['p'], ['#8'], ended, task=task, solution=[None]) == [None]
    with pytest.raises(UserError, match='countdown: .*"284>20:"'):
        verified([[{'role': 'user', 'content': '284>20:'}]], ['#8'], ended, task='countdown')
