"""What every generated task keeps: disjoint splits, counted draws, right demonstrations, few
characters, one rule on text and on tokens."""

import functools
import inspect
import sys

import numpy as np
import pytest
from tasks.marking import marks, tokenizer_of

from reasonjax.errors import UserError
from reasonjax.tasks import addition, chain, countdown, knights
from reasonjax.tasks.generated import PARTS, part

SPLITS = ('train', 'prompts', 'validation', 'test')
# task, levels at which problems recur, how many granularities, the longest completion
TASKS = {
    'addition': (functools.partial(addition, disjoint=True), (2,), 2, 40),
    'chain': (chain, (2,), 3, 40),
    'countdown': (countdown, (3,), 3, 64),
    'knights': (knights, (2,), 4, 110),
}
each_task = pytest.mark.parametrize('name', TASKS)


def rows(task, **settings):
    examples = task(**settings).examples
    return [examples[i] for i in range(len(examples))]


def module(name):
    return sys.modules[inspect.unwrap(getattr(TASKS[name][0], 'func', TASKS[name][0])).__module__]


@each_task
def test_splits_are_disjoint_whatever_the_seed(name):
    task, levels, *_ = TASKS[name]
    few = 3 if name in ('knights', 'countdown') else 1  # which take long to make
    sizes = {
        'train': 900 // few,
        'prompts': 600 // few,
        'validation': 300 // few,
        'test': 300 // few,
    }
    found = {
        (split, seed): {
            module(name).key(row)
            for row in rows(task, split=split, size=sizes[split], seed=seed, levels=levels)
        }
        for split in SPLITS
        for seed in (0, 1)
    }
    together = {split: found[split, 0] | found[split, 1] for split in SPLITS}
    taught = together['train'] | together['prompts']
    assert (
        not taught & together['test']
        and not taught & together['validation']
        and not together['test'] & together['validation']
    )
    # They are few enough to recur: without the rule above they would.
    assert (
        all(len(found[split, 0] & found[split, 1]) > 10 for split in SPLITS)
        and together['train'] & together['prompts']
    )
    for split in SPLITS:
        assert {part(name, text) for text in together[split]} <= set(PARTS[split])


@each_task
def test_a_row_depends_on_seed_split_and_index_only(name):
    task, _, grains, _ = TASKS[name]
    short, long = rows(task, size=20, seed=5), rows(task, size=60, seed=5)
    assert short == long[:20] == rows(task, size=20, seed=5)
    examples = task(size=60, seed=5).examples
    assert [examples[i] for i in (59, 3, 20)] == [long[i] for i in (59, 3, 20)]
    assert (
        rows(task, size=20, seed=6) != short
        and rows(task, size=20, seed=5, split='prompts') != short
    )
    for grain in range(grains):
        assert [row['prompt'] for row in rows(task, size=20, seed=5, granularity=grain)] == [
            row['prompt'] for row in short
        ]
    with pytest.raises(IndexError):
        examples[60]
    assert examples.where(3) == f'{name}:train[3]' and task(size=1).name == f'{name}/train'
    prints = [
        task(size=60, seed=5, granularity=grain).examples.fingerprint() for grain in range(grains)
    ]
    assert len({*prints, task(size=61, seed=5, granularity=0).examples.fingerprint()}) == grains + 1


@each_task
@pytest.mark.parametrize('split', SPLITS)
def test_demonstrations_are_right_and_of_few_characters(name, split):
    task, _, grains, _ = TASKS[name]
    lengths = []
    for grain in range(grains):
        made = task(size=40, split=split, granularity=grain)
        lengths.append(0)
        for row in rows(task, size=40, split=split, granularity=grain):
            assert {'prompt', 'completion', 'solution', 'level'} <= set(row)
            assert set(row['prompt'] + row['completion'] + row['solution']) <= set(
                module(name).CHARACTERS
            )
            assert made.verify(row['completion'], row, True) == {
                'correct': True,
                'answer': row['solution'],
            }
            assert made.verify(f'#{row["solution"]}', row, True)['correct']
            assert not made.verify(row['completion'], row, False)['correct']
            assert (
                row['completion'].endswith(f'#{row["solution"]}')
                and row['completion'].count('#') == 1
            )
            assert (row['completion'][0] == '#') is (grain == 0)
            lengths[-1] += len(row['completion'])
    # Finer demonstrations are longer, over levels alike; a chain's two are about the same.
    assert lengths == sorted(lengths) and lengths[0] < lengths[1]


@each_task
def test_characters_can_be_one_alphabet(name):
    characters = module(name).CHARACTERS
    assert len(set(characters)) == len(characters) and not set(characters) & set('_.$M ')


@each_task
def test_on_tokens_as_on_text(name):
    """10,000 completions: what the task says of their text, the reward that a config names says,
    and the rule on tokens."""
    task, _, grains, max_tokens = TASKS[name]
    rng, size = np.random.default_rng(0), 10_000
    pool = [rows(task, size=500, seed=7, granularity=grain) for grain in range(grains)]
    chosen = [pool[int(rng.integers(grains))][i % 500] for i in range(size)]
    # The bare answer half of the time: that is where most can go wrong.
    texts = [row['completion'] if rng.random() < 0.5 else f'#{row["solution"]}' for row in chosen]
    tokenizer = tokenizer_of(module(name).CHARACTERS)
    verified, rewarded, on_tokens, said, terminated = marks(
        task(size=1), chosen, texts, tokenizer, rng, max_tokens
    )
    assert verified == rewarded == on_tokens
    right = np.asarray(verified) == 1
    assert 0.15 < right.mean() < 0.6 and not right[~terminated].any()
    whole = np.array([text.endswith('#' + row['solution']) for text, row in zip(said, chosen)])
    assert (whole & ~terminated).sum() > 200 and (whole & terminated & ~right).sum() > 200


BAD = [
    (dict(split='tets'), 'split "tets".*Did you mean "test"'),
    (dict(size=0), 'size must be at least 1'),
    (dict(levels=()), 'levels'),
    (dict(levels=(1000,)), 'levels.*1000'),
    (dict(levels=(0,)), 'levels'),
    (dict(seed=-1), 'seed must not be negative'),
    (dict(granularity=9), 'granularity must be a whole number from 0 to .*got 9.*Nearest'),
    (dict(granularity=0.5), 'granularity must be a whole number'),
]


@each_task
@pytest.mark.parametrize('settings,message', BAD)
def test_bad_settings(name, settings, message):
    with pytest.raises(UserError, match=message):
        TASKS[name][0](**{'size': 1, **settings})


@pytest.mark.parametrize('name', ['chain', 'countdown', 'knights'])
@pytest.mark.parametrize('levels', ['3', 3, (2.5,), (True,), (2, 100)])
def test_levels_are_whole_numbers(name, levels):
    with pytest.raises(UserError, match=f'{name}: levels must be'):
        TASKS[name][0](size=1, levels=levels)
