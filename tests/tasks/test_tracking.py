"""State tracking: states and answers of each machine, found again from the prompt in another
way."""

import functools
import re

import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.tasks import tracking


def rows_of(size=300, **settings):
    source = tracking(size=size, **settings).examples
    return [source[i] for i in range(size)]


def matrix(permutation):
    """The permutation matrix that has a 1 where a row's symbol goes."""
    P = np.zeros((len(permutation),) * 2, int)
    P[np.arange(len(permutation)), [int(c) - 1 for c in permutation]] = 1
    return P


def modular(prompt, p=7):
    numbers = [int(x) for x in re.fullmatch(r'R([\d,]+)=', prompt)[1].split(',')]
    return [str(x) for x in np.cumsum(numbers) % p]


def permutation(prompt):
    products, found = np.eye(len(prompt[1:-1].split(',')[0]), dtype=int), []
    for P in map(matrix, prompt[1:-1].split(',')):
        products = products @ P
        found.append(''.join(str(x + 1) for x in products.argmax(1)))
    return found


def squaring(prompt):
    r, p, stars = re.fullmatch(r'Q(\d+);(\d+)(\**)=', prompt).groups()
    return [f'{pow(int(r), 2 ** (i + 1), int(p)):0{len(p)}d}' for i in range(len(stars))]


def circuit(prompt):
    gates = prompt[1:-1].split(',')

    @functools.cache
    def value(i):  # from the top, where the task goes from the bottom
        kind, first, second = gates[i][0], gates[i][1:3], gates[i][3:]
        if kind in '01':
            return kind == '1'
        assert int(first) < i and (not second or (int(second) < i and second != first))
        if kind == 'N':
            assert not second
            return not value(int(first))
        return (
            (value(int(first)) and value(int(second)))
            if kind == 'A'
            else (value(int(first)) or value(int(second)))
        )

    return [str(int(value(i))) for i in range(len(gates))]


ORACLES = dict(modular=modular, permutation=permutation, squaring=squaring, circuit=circuit)


@pytest.mark.parametrize('machine', ORACLES)
def test_states_and_answers(machine):
    for row in rows_of(machine=machine, levels=(2, 5, 12)):
        states = ORACLES[machine](row['prompt'])
        assert len(states) == row['level']
        assert (
            row['completion'] == f'{",".join(states)}#{states[-1]}'
            and row['solution'] == states[-1]
        )


def test_the_product_of_many_matrices():
    for row in rows_of(size=50, machine='permutation', levels=(30,), group=7):
        whole = np.linalg.multi_dot([matrix(p) for p in row['prompt'][1:-1].split(',')])
        np.testing.assert_array_equal(whole, matrix(row['solution']))


@pytest.mark.parametrize(
    'machine,prompt,completion',
    [
        ('modular', 'R3,5,1=', '3,1,2#2'),
        ('permutation', 'G21345,13254=', '21345,31254#31254'),
        ('squaring', 'Q05;83**=', '25,44#44'),
        ('circuit', 'C1,0,A0001,N02=', '1,0,0,1#1'),
    ],
)
def test_the_examples_of_the_documentation(machine, prompt, completion):
    states = ORACLES[machine](prompt)
    assert f'{",".join(states)}#{states[-1]}' == completion
    assert (
        prompt in tracking.__globals__['__doc__']
        and completion.split('#')[0] in tracking.__globals__['__doc__']
    )


def test_steps_in_full():
    for machine, pattern in dict(
        modular=r'(\d)\+(\d)=(\d)',
        permutation=r'([1-5]{5})\*([1-5]{5})=([1-5]{5})',
        squaring=r'(\d+)\*(\d+)=(\d+)>(\d+)',
        circuit=r'(0|1|[AO][01]{2}|N[01])=([01])',
    ).items():
        for row in rows_of(machine=machine, granularity=2, levels=(3, 6), size=100):
            states = ORACLES[machine](row['prompt'])
            steps = [
                re.fullmatch(pattern, step).groups()
                for step in row['completion'].partition('#')[0].split(',')
            ]
            assert [step[-1] for step in steps] == states
            if machine == 'circuit':
                gates = row['prompt'][1:-1].split(',')
                for gate, (read, _) in zip(gates, steps):
                    operands = [gate[k : k + 2] for k in range(1, len(gate), 2)]
                    assert read == gate[0] + ''.join(states[int(j)] for j in operands)
                continue
            start = dict(modular='0', permutation='12345', squaring=row['prompt'][1:4])[machine]
            assert [step[0] for step in steps] == [start, *states[:-1]]
            if machine == 'squaring':
                assert all(
                    a == b and int(square) == int(a) ** 2 and len(square) == 2 * len(a)
                    for a, b, square, _ in steps
                )
            else:
                assert ','.join(step[1] for step in steps) == row['prompt'][1:-1]


@pytest.mark.parametrize('machine', ORACLES)
def test_every(machine):
    knobs = dict(machine=machine, levels=(7,), size=40)
    whole, second = rows_of(**knobs), rows_of(**knobs, every=2)
    for a, b in zip(whole, second):
        states, shown = (
            a['completion'].partition('#')[0].split(','),
            b['completion'].partition('#')[0].split(','),
        )
        assert (
            shown == [states[1], states[3], states[5]]
            and a['prompt'] == b['prompt']
            and a['solution'] == b['solution']
        )
    # A working of length 0 is the base format.
    assert rows_of(**knobs, every=8) == rows_of(**knobs, granularity=0)


def test_answers_are_spread_out():
    solutions = [
        row['solution']
        for row in rows_of(size=6000, machine='permutation', levels=(4,), granularity=0)
    ]
    counts = np.unique(solutions, return_counts=True)[1]
    assert len(counts) == 120 and counts.max() < 90 and counts.min() > 20  # 50 each
    ones = np.mean(
        [
            row['solution'] == '1'
            for row in rows_of(size=3000, machine='circuit', levels=(8, 16), granularity=0)
        ]
    )
    assert 0.4 < ones < 0.6
    sums = np.bincount(
        [int(row['solution']) for row in rows_of(size=3500, machine='modular', granularity=0)]
    )
    assert len(sums) == 7 and abs(sums - 500).max() < 5 * np.sqrt(500)


def test_squaring_does_not_run_into_one():
    """Squares of such primes are permuted; of p = 257 they would all be 1 after eight steps."""
    for row in rows_of(size=200, machine='squaring', levels=(20,), granularity=0):
        p = int(row['prompt'].split(';')[1].strip('*='))
        assert (
            100 < p <= 997
            and p % 4 == 3
            and all(p % d for d in range(2, p))
            and row['solution'] not in ('000', '001')
        )
    assert {
        row['prompt'].split(';')[1].strip('*=') for row in rows_of(machine='squaring', prime=25)
    } == {'11', '19', '23'}


def test_levels_of_squaring_share_no_base_between_splits():
    """r of n squarings holds r of m < n: the base decides on the split, and so does the one with
    the same square."""
    bases = {}
    for split in ('train', 'test', 'validation'):
        prompts = [
            row['prompt']
            for row in rows_of(
                size=1500, machine='squaring', levels=(1, 2, 9), prime=83, split=split
            )
        ]
        pairs = [tuple(map(int, re.match(r'Q(\d+);(\d+)', prompt).groups())) for prompt in prompts]
        bases[split] = {(p, r * r % p) for r, p in pairs}
    assert (
        not bases['train'] & bases['test']
        and not bases['train'] & bases['validation']
        and not bases['test'] & bases['validation']
    )


def test_modulus_and_group():
    for row in rows_of(machine='modular', modulus=40, levels=(5,), size=50):
        numbers = row['prompt'][1:-1].split(',')
        assert (
            all(len(x) == 2 and int(x) < 40 for x in numbers)
            and int(row['solution']) == sum(map(int, numbers)) % 40
        )
    assert {len(row['solution']) for row in rows_of(machine='permutation', group=3, size=20)} == {3}


@pytest.mark.parametrize(
    'settings,message',
    [
        (
            dict(machine='permutations'),
            'unknown machine "permutations".*Did you mean "permutation"',
        ),
        (dict(machine='circuit', levels=(1, 4)), 'levels of circuit must be from 2 to 100'),
        (dict(machine='circuit', levels=(101,)), 'levels of circuit'),
        (dict(levels=(0,)), 'levels of permutation must be from 1'),
        (dict(modulus=1), 'modulus must be from 2 to 1000, got 1; nearest: 2'),
        (dict(group=10), 'group must be from 2 to 9, got 10; nearest: 9'),
        (dict(prime=5), 'prime must be from 7'),
        (dict(machine='squaring', prime=102), 'no prime .* nearest: 103'),
        (dict(every=0), 'every must be at least 1'),
        (dict(granularity=3), r'granularity must be 0 \(the answer alone\), 1 \(states\)'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=f'^tracking: .*{message}'):
        tracking(size=1, **settings)


def test_a_split_without_problems_says_so():
    """Of seven problems a split may hold none."""
    with pytest.raises(
        UserError,
        match='tracking: 10000 problems of level 1 were drawn, and none belongs to the split '
        '"(test|validation)"',
    ):
        for split in ('test', 'validation'):
            rows_of(size=1, machine='modular', levels=(1,), modulus=2, split=split)
