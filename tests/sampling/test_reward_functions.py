"""What reward functions are given, and which columns and functions are refused."""

import copy
import datetime
import decimal
import functools
import sys

import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.sampling.reward_functions import (
    RESERVED,
    SAMPLED,
    RewardSpec,
    list_required,
    load,
    make_row_check,
)
from reasonjax.sampling.reward_pool import RewardPool

MODULE = '''
seen = []

def record(prompts, completions, **columns):
    seen.append({'prompts': prompts, 'completions': completions, **columns})
    return [0.0] * len(completions)

def kinds(completions, odd, shown=None, **kwargs):
    """Whether each value is what `shown` says."""
    return [float(f'{type(x).__module__}.{type(x).__name__} {x!r}' == text) for x, text in zip(odd, shown or ['builtins.int 1'] * len(odd))]

def knobs(completions, solution, *, extract='a', cut=3, **kwargs):
    return [0.0] * len(completions)

def spoils(prompts, completions, completion_ids=None, tags=None, **kwargs):
    values = [float(len(c)) for c in completions]
    prompts[0][0]['content'] = 'spoilt'
    completions.clear()
    (tags or [[]])[0].append('spoilt')
    return values
'''


@pytest.fixture(scope='module', autouse=True)
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp('given')
    (folder / 'given_rewards.py').write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def spec(name, **knobs):
    return RewardSpec(f'given_rewards:{name}', knobs)


def checking(*specs):
    return make_row_check({f'f{i}': load(s, f'rewards.f{i}') for i, s in enumerate(specs)})


@pytest.mark.parametrize('name', RESERVED)
def test_no_column_takes_the_name_of_what_functions_are_given(name):
    check = checking(RewardSpec('accuracy'))
    check({'prompt': 'p', 'completion': 'c', 'solution': '7', 'level': 1, 'reward': 1.0})
    with pytest.raises(
        UserError,
        match=rf'column "{name}" has the name of what reward functions are given.*rename.*{{"{name}": "NEW"}}',
    ):
        check({'prompt': 'p', 'solution': '7', name: ['7']})


@pytest.mark.parametrize(
    ('specs', 'names'),
    [
        ([RewardSpec('accuracy')], ['extract', 'equality', 'require_termination']),
        ([RewardSpec('accuracy'), RewardSpec('format')], ['pattern', 'extract']),
        ([RewardSpec('verified', {'task': 'chain'})], ['task']),
        ([spec('knobs', bound=1)], ['cut', 'extract', 'bound']),
        ([RewardSpec(functools.partial(max, key=len))], ['key']),
    ],
)
def test_no_column_takes_the_name_of_a_knob(specs, names):
    for name in names:
        if specs[0].target.__class__ is functools.partial:
            with pytest.raises(
                UserError, match='does not tell its parameters|by position only|takes'
            ):
                checking(*specs)
            continue
        with pytest.raises(
            UserError, match=f'"{name}" is a knob of .* and a column of the data; rename'
        ):
            checking(*specs)({'prompt': 'p', 'solution': '7', name: 'x'})


@pytest.mark.parametrize('name', ['prompts', 'completions'])
def test_a_pool_keeps_what_was_sampled(name):
    pool = RewardPool({'right': RewardSpec('accuracy')}, workers=0)
    with pytest.raises(
        UserError, match=f'column "{name}" would take the place of what was sampled'
    ):
        pool.score(['p', 'p'], ['7', '8'], {'solution': ['9', '9'], name: ['9', '9']}, 2)
    assert pool.score(['p', 'p'], ['9', '8'], {'solution': ['9', '9']}, 2).total.tolist() == [
        1.0,
        0.0,
    ]


def test_what_was_sampled_takes_the_place_of_a_default():
    seen = []

    def record(completions, *, terminated=None, completion_ids=None, cut=3):
        seen.append((terminated, completion_ids, cut))
        return [0.0] * len(completions)

    # as a config that is filled in has them
    knobs = {'terminated': None, 'completion_ids': None, 'cut': 4}
    checking(RewardSpec(record, knobs))({'prompt': 'p'})
    columns = {'terminated': [True, False], 'completion_ids': [[1], [2]]}
    RewardPool({'key': RewardSpec(record, knobs)}, workers=0).score(
        ['p', 'p'], ['7', '8'], columns, 2
    )
    assert seen == [([True, False], [[1], [2]], 4)]


def test_columns_of_other_types_of_name_are_refused():
    with pytest.raises(UserError, match='column 7: columns are passed by name'):
        checking(RewardSpec('accuracy'))({'prompt': 'p', 'solution': '7', 7: 1})


async def answer_later(completions):
    return [1.0] * len(completions)


async def answer_both(completions):
    yield 1.0


def answer_piecewise(completions):
    yield from (1.0 for _ in completions)


@pytest.mark.parametrize(
    ('function', 'message'),
    [
        (lambda completions, /: [], 'takes "completions" by position only'),
        (
            lambda completions, log_metric: [],
            'takes "log_metric", which is not passed here; give it a default',
        ),
        (lambda completions, log_extra, **kwargs: [], 'takes "log_extra"'),
        (lambda completions, *, trainer_state: [], 'takes "trainer_state"'),
        (
            lambda prompt, completion: [],
            'takes "prompt", which is not passed; what was sampled is "prompts"',
        ),
        (lambda completions, completion: [], 'takes "completion", .* is "completions"'),
        (answer_later, 'answer_later is async, and has to be'),
        (answer_piecewise, 'answer_piecewise is a generator, and'),
        (answer_both, 'answer_both is async'),
        (dict.fromkeys, 'does not tell its parameters|by position only'),
    ],
)
def test_functions_that_cannot_be_called_are_refused_at_the_start(function, message):
    with pytest.raises(UserError, match=f'rewards.key: .*{message}'):
        RewardPool({'key': RewardSpec(function)}, workers=0)


def test_what_functions_cannot_do_without():
    def columns(target, **knobs):
        return list_required(load(RewardSpec(target, knobs), 'rewards.key'), 'rewards.key')

    assert (
        columns('accuracy') == {'solution'}
        and columns('format') == columns('think_format_reward') == set()
    )
    assert (
        columns('verified', task='chain') == {'solution'}
        and columns('verified', task='countdown') == set()
    )
    assert (
        columns('given_rewards:kinds') == {'odd'} and columns('given_rewards:kinds', odd=1) == set()
    )
    assert columns(lambda completions, log_metric=None, **kwargs: []) == set()
    pool = RewardPool(
        {'a': RewardSpec('accuracy'), 'k': spec('kinds'), 'f': RewardSpec('format')}, workers=0
    )
    assert pool.required == {'solution', 'odd'}
    assert [pool.reads(name) for name in ('rendered_prompts', 'terminated', 'level')] == [
        True,
        True,
        False,
    ]
    assert (
        not RewardPool({'k': spec('kinds')}, workers=0).reads('rendered_prompts')
        and 'rendered_prompts' in SAMPLED
    )


def test_rows_are_checked_by_the_functions_with_their_knobs():
    checking(RewardSpec('accuracy'))({'prompt': 'p', 'solution': 'x + 1'})
    with pytest.raises(UserError, match='"solution": no completion .* extract="flexible"'):
        checking(RewardSpec('accuracy', {'extract': 'flexible', 'equality': 'number'}))(
            {'prompt': 'p', 'solution': 'x + 1'}
        )
    with pytest.raises(UserError, match='found NaN'):
        checking(RewardSpec('verified', {'task': 'chain'}))(
            {'prompt': 'p', 'solution': float('nan')}
        )
    with pytest.raises(UserError, match='countdown: expected a prompt'):
        checking(RewardSpec('verified', {'task': 'countdown'}))({'prompt': 'p'})
    for name in ('accuracy', 'verified'):
        checking(RewardSpec(name, {'task': 'chain'} if name == 'verified' else {}))(
            {'prompt': 'p', 'solution': None}
        )


ODD = [
    np.float32(0.1),
    np.int64(3),
    np.array([1, 2]),
    np.bool_(True),
    datetime.date(2020, 1, 2),
    datetime.datetime(2020, 1, 2, 3),
    b'\xff\x00',
    decimal.Decimal('1.10'),
    {'a': [1, None]},
    [1, [2]],
    (1, 2),
    None,
    float('nan'),
    10**40,
    '\ud800',
    True,
    {3},
    np.datetime64('2020-01-01'),
]


@pytest.mark.parametrize('workers', [0, 1])
def test_values_of_every_kind_reach_functions_as_they_are(workers):
    shown = [f'{type(x).__module__}.{type(x).__name__} {x!r}' for x in ODD]
    with RewardPool({'kinds': spec('kinds'), 'record': spec('record')}, workers=workers) as pool:
        columns = {'odd': ODD, 'shown': shown, 'class': ODD, 'not an identifier': ODD}
        found = pool.score(['p'] * len(ODD), ['c'] * len(ODD), columns, 1)
        assert found.values[:, 0].tolist() == [1.0] * len(ODD)
        assert (
            pool.score(['p'], ['c'], {'odd': [2], 'shown': ['builtins.int 1']}, 1).values[0, 0] == 0
        )


@pytest.mark.parametrize('workers', [0, 1])
def test_a_value_that_cannot_be_handed_over_names_its_column(workers):
    generator = (x for x in 'ab')
    with RewardPool({'kinds': spec('kinds')}, workers=workers) as pool:
        with pytest.raises(
            UserError,
            match='column "lazy" holds builtins.generator, which cannot be handed to reward '
            'functions',
        ):
            pool.score(['p'], ['c'], {'odd': [1], 'lazy': [generator]}, 1)
        # and the pool goes on
        assert pool.score(['p'], ['c'], {'odd': [1]}, 1).total.tolist() == [1.0]


@pytest.mark.parametrize('workers', [0, 1])
def test_what_a_function_changes_is_seen_by_no_other(workers):
    prompts, tags = [[{'role': 'user', 'content': 'p'}] for _ in range(2)], [['a'], ['b']]
    before = copy.deepcopy((prompts, tags))
    with RewardPool({'spoils': spec('spoils'), 'again': spec('spoils')}, workers=workers) as pool:
        found = pool.score(prompts, ['a', 'bb'], {'tags': tags}, 2)
    assert found.values.tolist() == [[1, 1], [2, 2]] and (prompts, tags) == before
