"""The addition task: format, counted randomness, verification."""

import hashlib
import itertools
import json
import re

import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.tasks import addition
from reasonjax.tasks.addition import key, working

CHARACTERS = set('#=,+0123456789')


def problems(**settings):
    source = addition(**settings).examples
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize(
    'a,b,k,completion',
    [
        (5697, 6559, 4, '79016,95115,65112,56112#12256'),
        (267, 349, 3, '79016,64111,23106#0616'),
    ],
)
def test_published_examples(a, b, k, completion):
    assert f'{working(a, b, k)}#{a + b:0{k + 1}d}' == completion


@pytest.mark.parametrize(
    'prompt,completion,solution', [('038+507=', '#0545', '0545'), ('69+68=', '#137', '137')]
)
def test_published_answer_only_examples_are_right(prompt, completion, solution):
    result = addition(size=1).verify(completion, {'prompt': prompt, 'solution': solution}, True)
    assert result == {'correct': True, 'answer': solution}


def check_columns(prompt, completion, level):
    """Redoes the column arithmetic by reading the text; knows nothing of how it was written."""
    a, b = re.fullmatch(r'(\d+)\+(\d+)=', prompt).groups()
    assert len(a) == len(b) == level
    body, answer = completion.split('#')
    assert len(answer) == level + 1 and int(answer) == int(a) + int(b)
    if not body:
        return 'answer'
    columns = body.split(',')
    assert len(columns) == level
    carry, digits = '0', ''
    for x, y, column in zip(reversed(a), reversed(b), columns):
        assert re.fullmatch(r'\d{5}', column)
        assert column[:3] == x + y + carry
        assert int(column[3:]) == int(x) + int(y) + int(carry)
        carry, digits = column[3], column[4] + digits
    assert answer == carry + digits
    return 'worked'


def test_demonstrations_against_an_independent_checker():
    rows = problems(size=800, seed=3)
    for row in rows:
        assert set(row) == {'prompt', 'completion', 'solution', 'level', 'style'}
        assert check_columns(row['prompt'], row['completion'], row['level']) == row['style']
        assert row['completion'].endswith('#' + row['solution'])
        assert set(row['prompt'] + row['completion']) <= CHARACTERS
        assert len(row['prompt']) <= 10 and len(row['completion']) < 30
    assert max(len(row['completion']) for row in rows) == 29


def test_draws_are_uniform_and_mixed_as_asked():
    rows = problems(size=8000, answer_only=0.6)
    levels = np.bincount([row['level'] for row in rows], minlength=5)
    assert levels[0] == 0 and abs(levels[1:] - 2000).max() < 5 * np.sqrt(8000 * 0.25 * 0.75)
    share = np.mean([row['style'] == 'answer' for row in rows])
    assert abs(share - 0.6) < 5 * np.sqrt(0.24 / 8000)
    first = np.array([int(row['prompt'].split('+')[0]) for row in rows if row['level'] == 1])
    assert set(first) == set(range(10))
    assert np.bincount(first).min() > 130
    assert {row['style'] for row in problems(size=50, answer_only=0.0)} == {'worked'}
    assert {row['style'] for row in problems(size=50, answer_only=1.0)} == {'answer'}
    assert {row['level'] for row in problems(size=200, levels=(2, 4))} == {2, 4}


def test_a_problem_depends_on_seed_split_and_index_only():
    short, long = problems(size=40, seed=5), problems(size=400, seed=5)
    assert short == long[:40]
    source = addition(size=400, seed=5).examples
    assert [source[i] for i in (399, 7, 39)] == [long[i] for i in (399, 7, 39)]
    # The style has its own draw: the controls of the quickstart see the same problems.
    assert [r['prompt'] for r in problems(size=40, seed=5, answer_only=0.0)] == [
        r['prompt'] for r in short
    ]


def test_splits_and_seeds_are_separate_streams():
    pairs = {}
    for split in ('train', 'prompts', 'validation', 'test'):
        for seed in (0, 1):
            pairs[split, seed] = {
                row['prompt'] for row in problems(size=1000, levels=(9,), split=split, seed=seed)
            }
    # 10^18 pairs: a single common problem among 8000 draws would mean shared randomness.
    assert len(set.union(*pairs.values())) == 8000


def digest(**settings):
    return hashlib.sha256(json.dumps(problems(size=500, **settings)).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    'settings,found',
    [
        (dict(split='train'), '982e638b41c3eea6'),
        (dict(split='prompts', levels=(2, 3, 4), seed=3, answer_only=0.55), '8a90b6ecc2f52ce2'),
        (dict(split='test', levels=(15,), answer_only=0.0), '4c6e70700a1a46f2'),
    ],
)
def test_problems_are_those_that_were_measured(settings, found):
    """Figures in the documents are of these very problems: what is added to the task must not
    change them."""
    assert digest(**settings) == digest(**settings, disjoint=False, granularity=None) == found


@pytest.mark.parametrize('disjoint', [False, True])
def test_granularity_stands_in_for_the_share_of_bare_answers(disjoint):
    for granularity, share in ((0, 1.0), (1, 0.0)):
        settings = dict(size=60, levels=(2, 4), disjoint=disjoint)
        assert problems(**settings, granularity=granularity) == problems(
            **settings, answer_only=share
        )
        assert problems(**settings, granularity=granularity, answer_only=0.3) == problems(
            **settings, answer_only=share
        )


def test_disjoint_splits_share_no_pair_of_numbers():
    """Also at one digit, where every pair recurs; without the knob they do share."""
    for disjoint in (True, False):
        found = {
            split: problems(size=400, levels=(1, 2), split=split, disjoint=disjoint)
            for split in ('train', 'validation', 'test')
        }
        keys = [{key(row) for row in rows} for rows in found.values()]
        shared = [a & b for a, b in itertools.combinations(keys, 2)]
        assert not any(shared) if disjoint else all(shared)
    assert key({'prompt': '12+07='}) == key({'prompt': '07+12='}) != key({'prompt': '12+08='})
    rows = problems(size=2000, levels=(1, 3), disjoint=True, answer_only=0.6)
    assert all(
        check_columns(row['prompt'], row['completion'], row['level']) == row['style']
        for row in rows
    )
    assert abs(np.mean([row['style'] == 'answer' for row in rows]) - 0.6) < 5 * np.sqrt(0.24 / 2000)
    assert abs(np.mean([row['level'] == 3 for row in rows]) - 0.5) < 5 * np.sqrt(0.25 / 2000)


@pytest.mark.parametrize(
    'completion,terminated,correct,answer',
    [
        ('#12256', True, True, '12256'),
        ('79016,95115,65112,56112#12256', True, True, '12256'),
        ('anything at all#12256', True, True, '12256'),
        ('#12256', False, False, '12256'),
        ('#12257', True, False, '12257'),
        ('#122560', True, False, '122560'),
        ('#2256', True, False, '2256'),
        ('#012256', True, False, '012256'),
        ('#12256 ', True, False, '12256 '),
        ('#12257#12256', True, False, '12257#12256'),
        ('12256', True, False, None),
        ('', True, False, None),
        ('#', True, False, ''),
    ],
)
def test_verification(completion, terminated, correct, answer):
    result = addition(size=1).verify(completion, {'solution': '12256'}, terminated)
    assert result == {'correct': correct, 'answer': answer}


def test_source_interface():
    source = addition(split='test', size=3, levels=(4,), seed=2).examples
    same, other = (
        addition(split='test', size=3, levels=(4,), seed=2).examples,
        addition(split='test', size=3).examples,
    )
    assert repr(source) == repr(same) and '0x' not in repr(source)
    assert source.fingerprint() == same.fingerprint() != other.fingerprint()
    assert source.where(2) == 'addition:test[2]'
    assert len(source) == 3 and len(list(source)) == 3
    for i in (3, -1):
        with pytest.raises(IndexError):
            source[i]


@pytest.mark.parametrize(
    'settings,message',
    [
        (dict(size=1, split='trian'), 'Did you mean "train"'),
        (dict(size=0), 'size'),
        (dict(size=1, levels=()), 'levels'),
        (dict(size=1, levels=(0, 1)), 'levels'),
        (dict(size=1, levels=(16,)), 'levels'),
        (dict(size=1, answer_only=1.5), 'answer_only'),
        (dict(size=1, seed=-1), 'seed'),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        addition(**settings)
