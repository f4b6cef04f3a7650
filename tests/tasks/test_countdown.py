"""Countdown: many right answers, none wrong; the same on tokens; and the expressions of a public
data set."""

import itertools
import math
import re
from fractions import Fraction

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from tasks.marking import marks, tokenizer_of

from reasonjax.data.tokenizers import characters
from reasonjax.errors import UserError
from reasonjax.tasks import countdown
from reasonjax.tasks.countdown import CHARACTERS, key, parsed, reaches, solves
from reasonjax.tasks.on_tokens_countdown import PRIMES, expression_after


def rows(**settings):
    examples = countdown(**settings).examples
    return [examples[i] for i in range(len(examples))]


def by_python(expression):
    """The value of an expression of numbers, by Python on exact fractions; None where it divides by
    zero."""
    try:
        return eval(re.sub(r'\d+', r'Fraction(\g<0>)', expression), {'Fraction': Fraction})
    except ZeroDivisionError:
        return None


def nested(expression):
    """The same from the left, in parentheses."""
    pieces = re.findall(r'\d+|[-+*/]', expression)
    text = pieces[0]
    for operation, x in zip(pieces[1::2], pieces[2::2]):
        text = f'({text}{operation}{x})'
    return text


@pytest.mark.parametrize(
    'settings',
    [
        {},
        dict(operations='+*', attempts=1),
        dict(largest=60, operations='+-*/', levels=(2, 5), largest_target=500),
    ],
)
@pytest.mark.parametrize('granularity', [0, 1, 2])
def test_demonstrations(settings, granularity):
    shown = []
    for row in rows(size=150, granularity=granularity, **settings):
        numbers, target = parsed(row['prompt'])
        assert (
            len(numbers) == row['level']
            and 1 <= min(numbers)
            and max(numbers) <= settings.get('largest', 9)
        )
        assert 1 <= target <= settings.get('largest_target', 99) and (',' in row['prompt']) is (
            settings.get('largest', 9) > 9
        )
        working, answer = row['completion'].split('#')
        attempts = working.split(',') if granularity else []
        if granularity == 1:
            expressions, values = zip(*(text.split('=') for text in attempts))
            assert [by_python(nested(text)) for text in expressions] == list(map(int, values))
        elif granularity == 2:
            # 2*8=16+4=20: what stands between two '=' is a result and the next operation on it.
            read = [[int(x) for x in re.findall(r'=(\d+)', text)] for text in attempts]
            expressions = [re.sub(r'=\d+', '', text) for text in attempts]
            for text, results in zip(expressions, read):
                pieces = re.findall(r'\d+|[-+*/]', text)
                assert results == [
                    by_python(nested(''.join(pieces[: 2 * i + 3]))) for i in range(len(numbers) - 1)
                ]
        if granularity:
            assert all(
                sorted(map(int, re.findall(r'\d+', text))) == sorted(numbers)
                for text in expressions
            )
            assert set(re.sub(r'\d', '', ''.join(expressions))) <= set(
                settings.get('operations', '+-*')
            )
            assert (
                len(set(expressions)) == len(expressions) <= settings.get('attempts', 4)
                and expressions[-1] == answer
            )
            assert [by_python(nested(text)) == target for text in expressions] == [False] * (
                len(attempts) - 1
            ) + [True]
            shown.append(len(attempts))
        assert by_python(nested(answer)) == target
    assert not shown or max(shown) == settings.get('attempts', 4)


def test_problems_do_not_depend_on_attempts():
    assert (
        len(
            {
                tuple(row['prompt'] for row in rows(size=60, attempts=n, split='test'))
                for n in (1, 2, 9)
            }
        )
        == 1
    )
    assert (
        key({'prompt': '284>20:'})
        == key({'prompt': '842>20:'})
        == key({'prompt': '8,2,4>20:'})
        != key({'prompt': '284>21:'})
    )


@pytest.mark.parametrize('prompt', ['284>20:', '2,19,3>55:', '66,6,7>77:', '5050>5:'])
def test_all_expressions_are_marked(prompt):
    """Of all expressions of the numbers exactly those are right that Python finds right."""
    numbers, target = parsed(prompt)
    outcomes = []
    for order in set(itertools.permutations(numbers)):
        for operations in itertools.product('+-*/', repeat=len(numbers) - 1):
            text = ''.join(f'{x}{o}' for x, o in zip(order, [*operations, '']))
            outcomes.append(by_python(nested(text)) == target)
            assert reaches(text, numbers, target) is outcomes[-1], text
    assert 0 < sum(outcomes) < len(outcomes) / 2


WRONG = [
    '',
    '#',
    '20',
    '2*8',
    '2*8+4+0',
    '2*8+4*1',
    '2*8+8',
    '2*2+16',
    '2*8+4=20',
    '(2*8)+4',
    '2*(8)+4',
    '4+2*8',
    '2**8+4',
    '2*8++4',
    '2*8+-4',
    '-2*8+4',
    '+2*8+4',
    '2*8+4-',
    '2*8+4+',
    '*2*8+4',
    '2 * 8 + 4',
    '2*8+4 ',
    ' 2*8+4',
    '2*8+4\n',
    '02*8+4',
    '2*08+4',
    '2.0*8+4',
    '2*8+4#2*8+4',
    '#2*8+4',
    '28+4',
    '2*84',
    '284',
    '2*8+4,',
    '\uff12*8+4',
    '2\u00d78+4',
    '2*8+\u0664',
    '\u00b2*8+4',
    '2*8\u22124',
    '2*8+4\x00',
    '2e0*8+4',
    '0x2*8+4',
    '2_0',
    '8*4/2+4',
    '9' * 5000 + '+8+4',
    '2*8+4' + '0' * 5000,
    '2*' * 5000 + '8',
    '(' * 5000,
    '2*8+4-' + '0*' * 3000 + '0',
    '__import__',
    '2//8+4',
    '2/0+4',
    '8/4-2/0',
]


def test_malformed_answers_are_wrong_on_text_and_on_tokens():
    task, row = countdown(size=1), {'prompt': '284>20:'}
    assert task.verify('no#2*8+4', row, True) == {'correct': True, 'answer': '2*8+4'}
    assert task.verify('2*8+4', row, True) == {'correct': False, 'answer': None}
    assert [text for text in WRONG if task.verify(f'#{text}', row, True)['correct']] == []
    tokenizer = tokenizer_of(CHARACTERS + ' ().e_x\n'.replace('_', '').replace('.', ''))
    texts = [
        '2*8+4',
        '8*2+4',
        '8/4*2*5',
        *(
            text
            for text in WRONG
            if len(text) < 40 and set(text) <= set(tokenizer.ids) - set('_M$')
        ),
    ]
    tokens = np.array(
        [(tokenizer.encode(f'#{text}$') + [tokenizer.pad_id] * 48)[:48] for text in texts]
    )
    rule = task.on_tokens.build(tokenizer, 48)
    length = np.array([len(text) + 2 for text in texts])
    found = jax.jit(rule.reward)(tokens, length, np.ones(len(texts), bool), rule.columns(row))
    assert found.tolist() == [1, 1] + [0] * (len(texts) - 2) and len(texts) > 30


def test_zero_among_the_numbers():
    assert (
        reaches('5/5+0', [0, 5, 5], 1)
        and not reaches('5/0+5', [0, 5, 5], 1)
        and not reaches('0/0+5', [0, 0, 5], 5)
    )
    texts, row = (
        ['5/5+0', '5/0+5', '0/5*5', '5*0/5', '5-5+', '+5-5', '5-5', '5+-5'],
        {'prompt': '550>0:'},
    )
    tokenizer = tokenizer_of(CHARACTERS)
    rule = countdown(size=1).on_tokens.build(tokenizer, 7)
    tokens = np.array(
        [(tokenizer.encode(f'#{text}$') + [tokenizer.pad_id] * 7)[:7] for text in texts]
    )
    found = jax.jit(rule.reward)(tokens, np.full(8, 7), np.ones(8, bool), rule.columns(row))
    # A number that is not written is no 0.
    assert (
        found.tolist()
        == [float(reaches(text, *parsed('550>0:'))) for text in texts]
        == [0, 0, 1, 1, 0, 0, 0, 0]
    )


def test_large_numbers_and_fractions_are_exact_on_tokens():
    """Expressions of up to eight numbers up to 999 with targets near their value: 32 bits hold none
    of these."""
    rng, tokenizer = np.random.default_rng(0), tokenizer_of(CHARACTERS)
    prompts, texts, wanted = [], [], []
    while len(texts) < 4000:
        numbers = rng.integers(900, 1000, int(rng.integers(2, 9))).tolist()
        text = ''.join(
            f'{x}{o}' for x, o in zip(numbers, [*rng.choice(list('**/+-'), len(numbers) - 1), ''])
        )
        if rng.random() < 0.7:  # back to a small value, by way of a large one
            half = numbers[: int(rng.integers(1, 4))]
            numbers = [*half, *rng.permutation(half).tolist(), int(rng.integers(1, 1000))]
            text = (
                '*'.join(map(str, half))
                + ''.join(f'/{x}' for x in numbers[len(half) : -1])
                + f'*{numbers[-1]}'
            )
        value = by_python(nested(text))
        target = round(value)
        if rng.random() < 0.3:  # off by one, or by what one of the remainders cannot see
            target += int(rng.choice([-1, 1, *PRIMES]))
        if 0 <= target < 1_000_000:
            prompts.append(f'{",".join(map(str, rng.permutation(numbers)))}>{target}:')
            texts.append(text)
            wanted.append(float(value == target))
    C = max(map(len, texts)) + 2
    rule = expression_after('#', tokenizer)
    columns = [rule.columns({'prompt': prompt}) for prompt in prompts]
    stacked = {name: np.stack([x[name] for x in columns]) for name in columns[0]}
    tokens = np.array(
        [(tokenizer.encode(f'#{text}$') + [tokenizer.pad_id] * C)[:C] for text in texts]
    )
    length = np.array([len(text) + 2 for text in texts])
    found = jax.jit(rule.reward)(tokens, length, np.ones(len(texts), bool), stacked).tolist()
    assert (
        found
        == wanted
        == [float(reaches(text, *parsed(prompt))) for text, prompt in zip(texts, prompts)]
    )
    assert 0.3 < np.mean(wanted) < 0.9


def test_primes_are_enough():
    assert len(set(PRIMES)) == len(PRIMES)
    assert all(999 < p < 2**16 and all(p % d for d in range(2, math.isqrt(p) + 1)) for p in PRIMES)
    assert math.prod(PRIMES) > 2 * (8 * 999**8 + 999_999 * 999**7)


@pytest.mark.parametrize(
    'settings,size',
    [
        (dict(levels=(2, 8), operations='+-*/', largest=12), 2000),
        (dict(levels=(3,), operations='+*'), 2000),
    ],
)
def test_more_settings_on_tokens_as_on_text(settings, size):
    rng, task = np.random.default_rng(1), countdown(size=1)
    chosen = rows(size=size, granularity=0, **settings)
    texts = [row['completion'] for row in chosen]
    verified, rewarded, on_tokens, *_ = marks(
        task, chosen, texts, tokenizer_of(CHARACTERS), rng, 32
    )
    assert verified == rewarded == on_tokens and 0.15 < np.mean(verified) < 0.6


def test_groups_share_a_column():
    """[P, G, C] tokens against columns [P, 1, ...], as a stage has them, and a tokenizer without
    some operations."""
    tokenizer = characters(None, None, alphabet='_.$M#0123456789+*')
    rule = expression_after('#', tokenizer)
    columns = [rule.columns({'prompt': prompt}) for prompt in ('284>20:', '11,3>33:')]
    stacked = {name: np.stack([x[name] for x in columns])[:, None] for name in columns[0]}
    texts = [['#2*8+4$', '#2+8*4$', '#8*2+4$'], ['#11*3$', '#3*11$', '1#3*11']]
    tokens = np.array(
        [[(tokenizer.encode(t) + [tokenizer.pad_id] * 8)[:8] for t in group] for group in texts]
    )
    length = np.array([[len(t) for t in group] for group in texts])
    ended = np.array([[t.endswith('$') for t in group] for group in texts])
    assert jax.jit(rule.reward)(tokens, length, ended, stacked).tolist() == [[1, 0, 1], [1, 1, 0]]


def test_bad_settings_and_rows():
    for settings, message in [
        (dict(operations='+%'), 'operations must be some of.*Nearest: "\\+"'),
        (dict(operations=''), 'operations must be'),
        (dict(operations='++'), 'operations must be'),
        (
            dict(largest=1000),
            'largest must be a whole number from 1 to 999, got 1000. Nearest: 999',
        ),
        (dict(largest_target=0), 'largest_target.*Nearest: 1'),
        (dict(attempts=0), 'attempts.*Nearest: 1'),
        (dict(levels=(9,)), 'levels.*Nearest: 8'),
    ]:
        with pytest.raises(UserError, match=message):
            countdown(size=1, **settings)
    with pytest.raises(UserError, match='none comes to 1 to largest_target=3'):
        rows(size=1, operations='+', levels=(8,), largest_target=3)
    malformed = [
        '',
        '284>20',
        '284:20>',
        '2,8,>20:',
        '2 8 4>20:',
        '1000,2>20:',
        '\u0662\u0668>20:',
        '284>-20:',
        '123456789>5:',
    ]
    for prompt in [*malformed, '28>9999999:']:
        with pytest.raises(UserError, match='countdown: .*"284>20:"'):
            parsed(prompt)
    with pytest.raises(UserError, match="no '7'.*alphabet"):
        expression_after('#', characters(None, None, alphabet='_.$M#012345689'))


RIGHT = [
    '44 + (19 + 35)',
    '44+19+35',
    '(35)+((44)+19)',
    ' ( 19+ 35 )+44 ',
    '(' * 10**5 + '44+19+35' + ')' * 10**5,
    '44+19+35\n',
]
NOT_RIGHT = [
    '44 + 19 * 35',
    '44 + (19 + 35',
    '44 + 19 + 35)',
    '()44+19+35',
    '44(+19)+35',
    '44 19 35',
    '44+19+',
    '44 + 19 + 35 = 98',
    '98',
    '44+44+10',
    '44+19+35+0',
    '+44+19+35',
    '-(-44-19-35)',
    '4 4+19+35',
    '44+19+\uff13\uff15',
    '44+19+35.0',
    '44+19+035',
    '',
    ' ',
    '(' * 10**5,
    '9' * 10**5,
    '44+' * 10**4 + '1',
    '44//19+35',
    '44**19+35',
    '44+19+35;',
    '44+19+35 x',
]


@pytest.mark.parametrize(
    'expression,right', [(text, True) for text in RIGHT] + [(text, False) for text in NOT_RIGHT]
)
def test_usual_expressions(expression, right):
    assert solves(expression, [44, 19, 35], 98) is right


def test_usual_expressions_bind_and_divide_exactly():
    assert solves('8/(3-8/3)', [8, 3, 8, 3], 24) and not solves('8/(3-8/3)', [8, 3, 8, 3], 23)
    assert (
        solves('7-2-1', [1, 2, 7], 4)
        and solves('8/2/2', [2, 2, 8], 2)
        and solves('2+3*4', [2, 3, 4], 14)
        and solves('(2+3)*4', [2, 3, 4], 20)
    )
    assert not solves('8/(4-4)', [4, 4, 8], 0) and not solves('1/3*3', [3, 3, 1], 2)


def test_rows_of_the_public_data(data_dir):
    """The data's own solutions are right; with a sign or a number changed they are right where
    Python says so."""
    table = pq.read_table(
        data_dir / 'countdown' / 'test.parquet', columns=['nums', 'target', 'answer']
    ).to_pylist()
    table += pq.read_table(
        data_dir / 'countdown' / 'train.parquet', columns=['nums', 'target', 'answer']
    )[:2000].to_pylist()
    rng, right, wrong = np.random.default_rng(0), 0, 0
    for row in table:
        expression = re.search(r'<answer> (.*) </answer>', row['answer'])[1]
        assert solves(expression, row['nums'], row['target']), expression
        assert not solves(expression, row['nums'], row['target'] + 1) and not solves(
            expression, [*row['nums'], 1], row['target']
        )
        places = [i for i, c in enumerate(expression) if c in '+-*/']
        place, sign = int(rng.choice(places)), str(rng.choice(list('+-*/')))
        plain = re.sub(r'[()]', '', expression)
        for other in (expression[:place] + sign + expression[place + 1 :], plain):
            is_right = by_python(other) == row['target']
            assert solves(other, row['nums'], row['target']) is is_right, other
            right, wrong = right + is_right, wrong + (not is_right)
        number = str(row['nums'][0])
        assert not solves(
            expression.replace(number, str(row['nums'][0] + 1), 1), row['nums'], row['target']
        )
    assert len(table) == 3024 and min(right, wrong) > 500
