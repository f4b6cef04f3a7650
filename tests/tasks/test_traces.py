"""Traced programs: what they compute, how they write it down, and what noise does to it."""

import operator
import re
import statistics

import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.tasks import traces
from reasonjax.tasks.traces import Tape, Traced, perturbed

PROGRAMS = ('addition', 'sum', 'maximum', 'sorting', 'median')
OPERATIONS = {'+': operator.add, '/': operator.floordiv, '%': operator.mod, '<': min, '>': max}
LINE = re.compile(r'(?:(\w+):)?(\d+)([+/%<>])(\d+)=(\d+)')


def rows_of(size=200, **settings):
    source = traces(size=size, **settings).examples
    return [source[i] for i in range(size)]


def numbers(row):
    return [int(x) for x in re.split('[+,]', row['prompt'][1:-1])]


def lines(row):
    """[(a, operation, b, result)] of a trace with operations."""
    found = [
        LINE.fullmatch(line).groups() for line in row['completion'].partition('#')[0].split(',')
    ]
    return [(int(a), o, int(b), int(c)) for _, a, o, b, c in found]


def held(line):
    a, o, b, result = line
    return OPERATIONS[o](a, b) == result


@pytest.mark.parametrize('program', PROGRAMS)
@pytest.mark.parametrize('inputs', ['magnitude', 'length'])
def test_answers(program, inputs):
    for row in rows_of(program=program, inputs=inputs, levels=(3, 7), granularity=0, digits=3):
        given = numbers(row)
        expected = {
            'addition': f'{sum(given):0{row["level"] + 1}d}',
            'sum': str(sum(given)),
            'maximum': str(np.max(given)),
            'sorting': ','.join(map(str, np.sort(given))),
            'median': f'{statistics.median(given):g}',
        }[program]
        assert (
            row['solution'] == expected
            and row['completion'] == f'#{expected}'
            and row['noised'] == 0
        )
        assert len(given) == (2 if program == 'addition' else row['level']) and max(given) < 10 ** (
            row['level'] if program == 'addition' else 3
        )


def replayed(program, row):
    """Goes through a trace as the program would, taking every result from the trace; returns the
    answer it leads to.

    Every operand must be the one that the trace itself has led to. Knows nothing of how traces are
    written.
    """
    steps = iter(lines(row))

    def take(a, operation, b):
        x, o, y, result = next(steps)
        assert (x, o, y) == (a, operation, b)
        return result

    given = numbers(row)
    if program == 'addition':
        k, carry, digits = row['level'], 0, []
        first, second = row['prompt'][1:-1].split('+')
        for x, y in zip(first[::-1], second[::-1]):
            total = take(take(int(x), '+', int(y)), '+', carry)
            carry = take(total, '/', 10)
            digits.append(take(total, '%', 10))
        answer = f'{carry}' + ''.join(map(str, digits[::-1]))
        assert len(digits) == k
    elif program == 'sum':
        answer = 0
        for number in given:
            answer = take(answer, '+', number)
    elif program == 'maximum':
        answer = given[0]
        for number in given[1:]:
            answer = take(answer, '>', number)
    else:
        for end in range(len(given) - 1, 0, -1):
            for j in range(end):
                a, b = given[j : j + 2]
                given[j : j + 2] = take(a, '<', b), take(a, '>', b)
        answer = ','.join(map(str, given)) if program == 'sorting' else given[len(given) // 2]
    assert next(steps, None) is None
    return str(answer)


@pytest.mark.parametrize('program', PROGRAMS)
def test_clean_traces(program):
    for row in rows_of(program=program, levels=(3, 5)):
        assert all(map(held, lines(row)))
        assert replayed(program, row) == row['solution'] == row['completion'].partition('#')[2]


@pytest.mark.parametrize('program', PROGRAMS)
def test_dynamic_noise_goes_on_from_wrong_results(program):
    """The trace hangs together line by line; where a result was replaced, and only there, a line
    does not hold."""
    wrong, broken, total = 0, 0, 0
    for row in rows_of(program=program, levels=(3, 5), contamination=1.0, intensity=0.2):
        answer = replayed(program, row)
        assert answer == row['completion'].partition('#')[2]
        off = sum(not held(line) for line in lines(row))
        assert off == row['noised']
        assert off or answer == row['solution']
        wrong, broken, total = (
            wrong + (answer != row['solution']),
            broken + off,
            total + len(lines(row)),
        )
    assert abs(broken / total - 0.2) < 5 * np.sqrt(0.16 / total)
    assert wrong > 0.2 * 200


@pytest.mark.parametrize('program', PROGRAMS)
def test_misprints_leave_the_computation_as_it_is(program):
    clean, misprinted = (
        rows_of(program=program),
        rows_of(program=program, contamination=1.0, intensity=0.4, dynamic=False),
    )
    assert sum(row['noised'] for row in misprinted) > 100
    for a, b in zip(clean, misprinted):
        assert b['completion'].partition('#')[2] == b['solution'] == a['solution']
        # The operations are those of the clean trace; some of the results are not.
        assert [line[:3] for line in lines(a)] == [line[:3] for line in lines(b)]
        assert sum(x != y for x, y in zip(lines(a), lines(b))) == b['noised']


@pytest.mark.parametrize('program', PROGRAMS)
@pytest.mark.parametrize('dynamic', [True, False])
def test_no_noise_is_clean_bit_for_bit(program, dynamic):
    clean = rows_of(program=program)
    for contamination, intensity in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        assert (
            rows_of(
                program=program, contamination=contamination, intensity=intensity, dynamic=dynamic
            )
            == clean
        )
    noised = rows_of(program=program, contamination=0.5, intensity=0.5, dynamic=dynamic)
    assert [(row['prompt'], row['solution']) for row in noised] == [
        (row['prompt'], row['solution']) for row in clean
    ]
    same = [a['completion'] == b['completion'] for a, b in zip(clean, noised)]
    assert 0.4 < np.mean(same) < 0.75 and [row['noised'] == 0 for row in noised] == same


def test_full_intensity_replaces_every_result():
    for row in rows_of(contamination=1.0, intensity=1.0):
        assert row['noised'] == len(lines(row)) and not any(map(held, lines(row)))


def test_the_examples_of_the_documentation():
    tape = Tape()
    total = Traced(0, tape)
    for number in (12, 35, 7):
        total = (total + Traced(number, tape)).into('S')
    assert [line[1] for line in tape.lines] == ['0+12=12', '12+35=47', '47+7=54'] and str(
        total
    ) == '54'
    for example in ('12,47,54#54', '0+12=12,12+35=47,47+7=54#54', 'S:0+12=12,S:12+35=47'):
        assert example in traces.__globals__['__doc__']


def test_grains_say_more_of_the_same_lines():
    for program in PROGRAMS:
        grains = [
            rows_of(program=program, granularity=g, size=20, contamination=1.0, intensity=0.3)
            for g in range(4)
        ]
        for bare, results, whole, named in zip(*grains):
            assert bare['completion'] == f'#{whole["completion"].partition("#")[2]}'
            assert results['completion'].partition('#')[0] == ','.join(
                str(line[3]) for line in lines(whole)
            )
            parts = [
                LINE.fullmatch(line) for line in named['completion'].partition('#')[0].split(',')
            ]
            assert all(part[1] for part in parts) and lines(named) == lines(whole)
    variables = [
        line.split(':')[0]
        for line in rows_of(size=1, granularity=3)[0]['completion'].partition('#')[0].split(',')
    ]
    assert variables == ['S', 'S', 'C', 'D'] * 3


def test_an_operation_that_writes_no_line_is_an_error():
    a, b = Traced(7, Tape()), Traced(5, Tape())
    for operation in (operator.sub, operator.mul, operator.lt):
        with pytest.raises(TypeError):
            operation(a, b)


@pytest.mark.parametrize('value', [0, 7, 10, 16, 905])
def test_perturbed_numbers_differ_in_one_digit(value):
    rng, width = np.random.default_rng(0), len(str(value))
    found = {perturbed(value, rng) for _ in range(2000)}
    differing = [sum(a != b for a, b in zip(f'{other:0{width}d}', str(value))) for other in found]
    assert set(differing) == {1} and len(found) == 9 * width


def test_inputs():
    even = [
        len(str(x))
        for row in rows_of(program='sum', digits=3, levels=(9,), granularity=0)
        for x in numbers(row)
    ]
    by_length = [
        len(str(x))
        for row in rows_of(program='sum', digits=3, levels=(9,), granularity=0, inputs='length')
        for x in numbers(row)
    ]
    assert np.mean(np.equal(even, 3)) > 0.85
    assert np.abs(np.bincount(by_length)[1:] / len(by_length) - 1 / 3).max() < 5 * np.sqrt(
        2 / 9 / len(by_length)
    )


@pytest.mark.parametrize(
    'settings,message',
    [
        (dict(program='sort'), 'unknown program "sort".*Did you mean "sorting"'),
        (dict(inputs='lenght'), 'unknown inputs "lenght".*Did you mean "length"'),
        (
            dict(levels=(16,)),
            'levels of addition must be numbers from 1 to 15, got 16; nearest: 15',
        ),
        (
            dict(program='median', levels=(3, 4)),
            'levels of median must be odd numbers from 3 to 49, got 4; nearest: 3',
        ),
        (
            dict(program='sum', levels=(1,)),
            'levels of sum must be numbers from 2 to 50, got 1; nearest: 2',
        ),
        (dict(granularity=4), 'granularity must be 0, 1, 2 or 3, got 4; nearest: 3'),
        (dict(contamination=1.5), 'contamination is a share'),
        (dict(intensity=-0.1), 'intensity is a share'),
        (dict(intensity=float('nan')), 'intensity is a share'),
        (dict(digits=0), 'digits must be from 1 to 15, got 0; nearest: 1'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=f'^traces: .*{message}'):
        traces(size=1, **settings)
