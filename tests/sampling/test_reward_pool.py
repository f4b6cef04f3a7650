"""What misbehaving reward functions do to a run. Processes start slowly, so one pool serves many
tests."""

import functools
import os
import signal
import sys

import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.methods import rewards
from reasonjax.sampling.reward_pool import RewardPool, RewardSpec, concat_rewards

LIMIT = 0.5  # seconds; far above what the honest functions below need

MODULE = '''
import os, re, sys, time
import numpy as np

def length(completions, **kwargs):
    return [len(c) for c in completions]

def centred(completions, **kwargs):
    """Relative to the group it is called with."""
    mean = sum(map(len, completions)) / len(completions)
    return [len(c) - mean for c in completions]

def naughty(completions, **kwargs):
    """Does what the completions say."""
    values = []
    for c in completions:
        if c == 'raise':
            raise RuntimeError('cannot read this')
        if c == 'exit':
            sys.exit('enough')
        if c == 'sleep':
            while True:
                time.sleep(1)
        if c == 'spin':
            while True:
                pass
        if c == 'backtrack':
            re.match(r'(a|a?)+$', 'a' * 60 + 'b')
        if c == 'die':
            os._exit(3)
        if c == 'unpicklable':
            raise type('Odd', (Exception,), {})('odd')
        values.append({'nan': float('nan'), 'inf': -float('inf'), 'none': None, 'text': '0.5', 'flag': True,
                       'array': np.float32(0.5)}.get(c, float(len(c))))
    return values if 'short' not in completions else values[:-1]

def pid(completions, **kwargs):
    return [os.getpid()] * len(completions)

def heavy_modules(completions, **kwargs):
    return [float(bool({'jax', 'torch', 'tensorflow', 'pytest'} & set(sys.modules)))] * len(completions)

def slow(completions, **kwargs):
    time.sleep(0.2 * len(completions))
    return [1.0] * len(completions)

def returns(completions, what, **kwargs):
    return {'none': None, 'number': 1.0, 'text': 'ab', 'dict': {0: 1.0, 1: 2.0}, 'tuple': (1.0, 2.0),
            'array': np.array([1.0, 2.0])}[what[0]]

def together(completions, level):
    """Fails on some groups, on no sample alone."""
    if len(completions) > 1 and level[0]:
        raise RuntimeError('one at a time')
    return [1.0] * len(completions)

def columns(prompts, completions, level, missing=None, *, factor=1.0):
    assert missing is None
    return [factor * x for x in level]

def knob_named_like_a_column(completions, *, level=0):
    return [0.0] * len(completions)
'''


@pytest.fixture(scope='module', autouse=True)
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp('own')
    (folder / 'own_rewards.py').write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def specs(*names):
    return {name: RewardSpec(f'own_rewards:{name}') for name in names}


@pytest.fixture(scope='module')
def dropping(module):
    with RewardPool(
        specs('naughty', 'centred'), workers=2, time_limit=LIMIT, on_error='drop'
    ) as pool:
        yield pool


@pytest.fixture(scope='module')
def raising(module):
    with RewardPool(specs('naughty'), workers=2, time_limit=LIMIT) as pool:
        yield pool


def run(pool, completions, group, **columns):
    prompts = [f'prompt {i // group}' for i in range(len(completions))]
    return pool.score(prompts, completions, columns, group)


def counted(result, name='naughty'):
    return {
        kind: result.counts[f'rewards/{name}/{kind}']
        for kind in ('errors', 'timeouts', 'nan', 'dropped')
    }


NONE = {'errors': 0, 'timeouts': 0, 'nan': 0, 'dropped': 0}


def test_parts_of_a_batch_make_the_batch(dropping):
    completions = ['a', 'bbb', 'raise', 'cc', 'none', 'array']
    whole = run(dropping, completions, group=2)
    parts = [run(dropping, completions[i:j], group=2) for i, j in ((0, 2), (2, 2), (2, 6))]
    found = concat_rewards(parts)
    assert found.names == whole.names and found.counts == whole.counts
    np.testing.assert_array_equal(found.values, whole.values)
    np.testing.assert_array_equal(found.total, whole.total)


def test_an_error_names_the_sample_of_the_whole_batch(raising):
    with pytest.raises(UserError, match=r'sample 13 \(prompt 6, generation 1\)'):
        raising.score(['p'] * 4, ['a', 'raise', 'a', 'a'], {}, 2, first=12)


def test_good_rewards_and_groups(dropping):
    result = run(dropping, ['a', 'bbb', 'cc', 'cc', 'flag', 'array'], group=2)
    assert result.names == ('naughty', 'centred')
    assert result.values.dtype == np.float64
    np.testing.assert_array_equal(result.values[:, 0], [1, 3, 2, 2, 1, 0.5])
    np.testing.assert_array_equal(result.values[:, 1], [-1, 1, 0, 0, -0.5, 0.5])
    np.testing.assert_array_equal(result.total, result.values.sum(1))
    assert counted(result) == counted(result, 'centred') == NONE


@pytest.mark.parametrize(
    'word,kind',
    [
        ('raise', 'errors'),
        ('text', 'errors'),
        ('nan', 'nan'),
        ('inf', 'nan'),
        ('none', 'dropped'),
        ('exit', 'errors'),
        ('unpicklable', 'errors'),
        ('die', 'errors'),
        ('sleep', 'timeouts'),
        ('spin', 'timeouts'),
        ('backtrack', 'timeouts'),
    ],
)
def test_only_the_culprit_is_dropped_and_the_workers_live_on(dropping, word, kind):
    completions = ['a', 'bb', 'ccc', word, 'a', 'bb', 'ccc', 'dddd', 'e', 'ee']
    result = run(dropping, completions, group=2)
    expected = [1, 2, 3, np.nan, 1, 2, 3, 4, 1, 2]
    np.testing.assert_array_equal(result.values[:, 0], expected)
    assert counted(result) == {**NONE, kind: 1}
    assert counted(result, 'centred') == NONE
    # The other function's number stays; a sample with a failed part has no total, one with a None
    # part has.
    assert np.isfinite(result.values[3, 1])
    assert np.isnan(result.total[3]) == (word != 'none')
    again = run(dropping, ['a', 'bb'], group=2)
    np.testing.assert_array_equal(again.values[:, 0], [1, 2])


def test_a_wrong_length_drops_its_culprit(dropping):
    result = run(dropping, ['a', 'short', 'bb', 'cc'], group=2)
    np.testing.assert_array_equal(result.values[:, 0], [1, np.nan, 2, 2])
    assert counted(result) == {**NONE, 'errors': 1}


def test_several_culprits_of_different_kinds(dropping):
    result = run(dropping, ['sleep', 'raise', 'a', 'nan', 'none', 'none', 'bb', 'die'], group=4)
    np.testing.assert_array_equal(
        result.values[:, 0], [np.nan, np.nan, 1, np.nan, np.nan, np.nan, 2, np.nan]
    )
    assert counted(result) == {'errors': 2, 'timeouts': 1, 'nan': 1, 'dropped': 2}


def test_the_rest_of_a_group_is_scored_together(module):
    def picky(completions, **kwargs):
        if 'raise' in completions:
            raise RuntimeError
        mean = sum(map(len, completions)) / len(completions)
        return [len(c) - mean for c in completions]

    with RewardPool({'picky': RewardSpec(picky)}, workers=0, on_error='drop') as pool:
        result = run(pool, ['a', 'raise', 'bbb'], group=3)
    np.testing.assert_array_equal(result.values[:, 0], [-1, np.nan, 1])


@pytest.mark.parametrize(
    'word,what',
    [
        ('raise', r'raised RuntimeError: cannot read this'),
        ('sleep', r'did not finish within 0.5 s'),
        ('spin', r'did not finish within 0.5 s'),
        ('die', r'worker process \(.*'),
        ('nan', r'returned nan'),
        ('inf', r'returned -inf'),
        ('text', r"returned '0.5' \(str\), not a number"),
        ('short', r'returned 0 rewards for 1 completions'),
    ],
)
def test_raise_names_key_function_sample_and_cause(raising, word, what):
    completions = ['a', 'bb', 'ccc', 'dd', 'a', word, 'eee', 'f']
    with pytest.raises(UserError, match=what) as caught:
        run(raising, completions, group=4)
    message = str(caught.value)
    assert 'rewards.naughty: own_rewards.naughty' in message
    assert 'sample 5 (prompt 1, generation 1)' in message
    assert "'prompt 1'" in message and repr(word) in message
    assert 'on_error="drop"' in message
    assert ('own_rewards.py' in message) == (word == 'raise')  # the traceback, where there is one
    result = run(raising, ['a', 'none'], group=2)
    np.testing.assert_array_equal(result.values[:, 0], [1, np.nan])
    assert counted(result) == {**NONE, 'dropped': 1}


def test_long_texts_are_shown_in_excerpt(raising):
    with pytest.raises(UserError) as caught:
        raising.score(['x' * 5000], ['raise'], {}, 1)
    assert '(5000 characters)' in str(caught.value) and len(str(caught.value)) < 2000


def test_idle_workers_killed_by_the_system_are_replaced(module):
    with RewardPool(specs('pid'), workers=1, time_limit=LIMIT) as pool:
        first = run(pool, ['a', 'b'], group=1).values[0, 0]
        os.kill(int(first), signal.SIGKILL)
        second = run(pool, ['a', 'b'], group=1).values[0, 0]
        assert first != second and second != os.getpid()


def test_workers_are_light_and_slow_functions_are_not_blamed(module):
    # A group of six takes 1.2 s: over a sample's limit together, within it alone.
    with RewardPool(specs('heavy_modules', 'slow'), workers=2, time_limit=LIMIT) as pool:
        result = run(pool, ['a'] * 6, group=6)
        np.testing.assert_array_equal(result.values, [[0.0, 1.0]] * 6)
    with pytest.raises(ValueError, match='closed'):
        run(pool, ['a'], group=1)


def here(name, **settings):
    return RewardPool({'key': RewardSpec(f'own_rewards.{name}')}, workers=0, **settings)


@pytest.mark.parametrize(
    'what,shown',
    [('none', 'returned None'), ('number', r'1.0 \(float\)'), ('text', 'str'), ('dict', 'dict')],
)
def test_returns_that_are_no_list(what, shown):
    with pytest.raises(UserError, match=f'{shown}.*, not a list of . numbers'):
        run(here('returns'), ['a', 'b'], group=2, what=[what] * 2)


@pytest.mark.parametrize('what', ['tuple', 'array'])
def test_returns_that_are_as_good_as_lists(what):
    np.testing.assert_array_equal(
        run(here('returns'), ['a', 'b'], group=2, what=[what] * 2).values[:, 0], [1, 2]
    )


def test_failing_as_a_group_only():
    completions, columns = ['a', 'b', 'c', 'd'], {'level': [0, 0, 1, 1]}
    with pytest.raises(UserError, match='sample 2 ') as caught:
        run(here('together'), completions, group=2, **columns)
    assert 'at sample 2 (prompt 1, generation 0), called together with 1 more of its prompt' in str(
        caught.value
    )
    result = run(here('together', on_error='drop'), completions, group=2, **columns)
    np.testing.assert_array_equal(result.values[:, 0], [1, 1, np.nan, np.nan])
    assert counted(result, 'key') == {**NONE, 'errors': 2}


def test_columns_reach_the_parameters_that_ask_for_them():
    spec = RewardSpec('own_rewards:columns', knobs={'factor': 3.0}, weight=2.0)
    pool = RewardPool(
        {'key': spec, 'length': RewardSpec('own_rewards:length', weight=-1.0)}, workers=0
    )
    result = run(pool, ['a', 'bb'], group=1, level=[5, 7], other=[None, None])
    np.testing.assert_array_equal(result.values, [[15, 1], [21, 2]])
    np.testing.assert_array_equal(result.total, [29, 40])


def test_missing_column_and_knob_collision():
    with pytest.raises(
        UserError, match='own_rewards.columns needs a column "level".*Did you mean "levels"'
    ):
        run(here('columns'), ['a'], group=1, levels=[1])
    with pytest.raises(UserError, match='"level" is a knob.*and a column.*rename'):
        run(here('knob_named_like_a_column'), ['a'], group=1, level=[1])


def test_totals_leave_out_what_is_none():
    def only_long(completions):
        return [None if len(c) < 2 else 10.0 for c in completions]

    def even(completions):
        return [None if len(c) < 3 else 1.0 for c in completions]

    pool = RewardPool({'a': RewardSpec(only_long), 'b': RewardSpec(even, weight=0.5)}, workers=0)
    result = run(pool, ['x', 'xx', 'xxx'], group=3)
    np.testing.assert_array_equal(result.total, [np.nan, 10.0, 10.5])
    assert result.counts['rewards/a/dropped'] == 1 and result.counts['rewards/b/dropped'] == 2


def test_targets_of_every_kind():
    bound = functools.partial(rewards.accuracy, extract='hash', equality='text')
    functions = {
        'bare': RewardSpec('accuracy', {'extract': 'hash', 'equality': 'text'}),
        'colon': RewardSpec('reasonjax.methods.rewards:accuracy', {'extract': 'hash'}),
        'dotted': RewardSpec('reasonjax.methods.rewards.accuracy', {'extract': 'hash'}),
        'function': RewardSpec(bound),
    }
    completions, solution = ['#07', '#7', '7'], ['07', '07', '07']
    with RewardPool(functions, workers=1) as pool:
        result = run(pool, completions, group=3, solution=solution)
    np.testing.assert_array_equal(result.values, [[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0]])
    # The same without processes.
    in_process = run(RewardPool(functions, workers=0), completions, group=3, solution=solution)
    np.testing.assert_array_equal(in_process.values, result.values)


@pytest.mark.parametrize('on_error', ['raise', 'drop'])
def test_a_wrong_knob_stops_the_run_whatever_becomes_of_bad_samples(on_error):
    pool = RewardPool(
        {'key': RewardSpec('accuracy', {'extract': 'boxd'})}, workers=0, on_error=on_error
    )
    with pytest.raises(UserError, match='rewards.key: .*Did you mean "boxed"'):
        run(pool, ['1', '2'], group=2, solution=['1', '2'])


@pytest.mark.parametrize(
    'target,message',
    [
        ('acuracy', 'Did you mean "accuracy"'),
        ('own_rewards:lenght', 'Did you mean "length"'),
        ('no_such_package.rewards.f', 'cannot import "no_such_package.rewards"'),
        ('own_rewards:re', 'no function "re"'),
    ],
)
def test_targets_that_do_not_exist(target, message):
    with pytest.raises(UserError, match=f'rewards.key: .*{message}'):
        RewardPool({'key': RewardSpec(target)}, workers=0)


def test_functions_that_workers_cannot_import():
    def local(completions):
        return [0.0] * len(completions)

    in_notebook = functools.partial(local)
    for target in (local, in_notebook, lambda completions: [0.0] * len(completions)):
        with pytest.raises(
            UserError, match='rewards.key: worker processes cannot import .*workers=0'
        ):
            RewardPool({'key': RewardSpec(target)}, workers=1)
        np.testing.assert_array_equal(
            run(RewardPool({'key': RewardSpec(target)}, workers=0), ['a'], 1).total, [0.0]
        )


@pytest.mark.parametrize(
    'settings,message',
    [
        (dict(on_error='drp'), 'Did you mean "drop"'),
        (dict(workers=-1), 'workers'),
        (dict(time_limit=0), 'time_limit'),
        (dict(time_limit=float('inf')), 'time_limit'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        RewardPool({}, **{'workers': 0, **settings})


def test_shapes_are_checked():
    pool = here('length')
    with pytest.raises(ValueError, match='column level has 1 values for 2 prompts'):
        pool.score(['p', 'q'], ['a', 'b'], {'level': [1]}, 1)
    with pytest.raises(ValueError, match='whole groups'):
        pool.score(['p'] * 3, ['a'] * 3, {}, 2)
