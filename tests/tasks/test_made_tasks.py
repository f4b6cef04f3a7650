"""What all tasks with made problems have in common: rows, splits, randomness and marks."""

import itertools
import json
import pathlib
import subprocess
import sys

import damaging
import pytest

from reasonjax import config as configs
from reasonjax.errors import UserError
from reasonjax.tasks import bayes, traces, tracking
from reasonjax.tasks.bayes import CHARACTERS as BAYES
from reasonjax.tasks.traces import CHARACTERS as TRACES
from reasonjax.tasks.tracking import CHARACTERS as TRACKING

# task, knobs, characters, granularities, and for the test of splits knobs that leave so few
# problems that splits would meet by chance
CASES = {
    'modular': (tracking, dict(machine='modular'), TRACKING, 3, dict(levels=(3, 4))),
    'permutation': (tracking, dict(machine='permutation'), TRACKING, 3, dict(levels=(2,))),
    'squaring': (tracking, dict(machine='squaring'), TRACKING, 3, dict(levels=(2, 3), prime=97)),
    'circuit': (tracking, dict(machine='circuit'), TRACKING, 3, dict(levels=(5, 6))),
    'addition': (traces, dict(program='addition'), TRACES, 4, dict(levels=(2,))),
    'sum': (traces, dict(program='sum'), TRACES, 4, dict(levels=(2,))),
    'maximum': (traces, dict(program='maximum'), TRACES, 4, dict(levels=(3,), digits=1)),
    'sorting': (traces, dict(program='sorting'), TRACES, 4, dict(levels=(2,))),
    'median': (
        traces,
        dict(program='median', inputs='length'),
        TRACES,
        4,
        dict(levels=(3,), digits=1),
    ),
    'bayes': (bayes, dict(), BAYES, 2, None),
}
MADE = [name for name in CASES if name != 'bayes']
SPLITS = ('train', 'prompts', 'validation', 'test')


def rows_of(name, **settings):
    task, knobs, *_ = CASES[name]
    source = task(**{**knobs, **settings}).examples
    return [source[i] for i in range(len(source))]


@pytest.mark.parametrize('name', CASES)
def test_demonstrations_are_right_by_the_own_verifier_at_every_grain(name):
    task, knobs, characters, grains, _ = CASES[name]
    allowed = set(characters)
    assert not allowed & set('_.$M ')
    prompts, lengths = [], []
    for granularity in range(grains):
        made = task(**knobs, size=150, granularity=granularity)
        rows = [made.examples[i] for i in range(150)]
        for row in rows:
            assert set(row['prompt'] + row['completion'] + row['solution']) <= allowed
            assert made.verify(row['completion'], row, True) == {
                'correct': True,
                'answer': row['solution'],
            }
            assert not made.verify(row['completion'], row, False)['correct']
            assert (row['completion'] == f'#{row["solution"]}') or granularity > 0
            assert row['level'] in made.examples.levels and json.loads(json.dumps(row)) == row
        prompts.append([row['prompt'] for row in rows])
        lengths.append(sum(len(row['completion']) for row in rows))
    # The grain changes how much is said, and nothing about the problems.
    assert all(other == prompts[0] for other in prompts) and lengths == sorted(set(lengths))


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize(
    'said,terminated,correct',
    [
        ('#{s}', True, True),
        ('anything,1#{s}', True, True),
        ('#{s}', False, False),
        ('{s}', True, False),
        ('', True, False),
        ('#', True, False),
        ('#{s}#', True, False),
        ('##{s}', True, False),
        ('#{s}#{s}', True, False),
        ('#0{s}', True, False),
        ('#{s}0', True, False),
        ('#{s},', True, False),
        ('#{s} ', True, False),
        ('# {s}', True, False),
        ('#+{s}', True, False),
        ('#{w}', True, False),
        ('#{w}#{s}', True, False),
        ('#{s}#{w}', True, False),
    ],
)
def test_verification(name, said, terminated, correct):
    task, knobs, *_ = CASES[name]
    made = task(**knobs, size=1)
    row = made.examples[0]
    wrong = row['solution'][:-1] + str((int(row['solution'][-1]) + 1) % 10)
    text = said.format(s=row['solution'], w=wrong)
    assert made.verify(text, row, terminated) == {
        'correct': correct,
        'answer': text.partition('#')[2] if '#' in text else None,
    }


@pytest.mark.parametrize('name', ['tracking', 'traces', 'bayes'])
def test_on_tokens_as_on_text(name):
    """10,000 damaged completions of each task, of all its machines or programs in one batch."""
    if name == 'tracking':
        cases, task, alphabet = (
            [
                dict(machine=m, levels=(3, 4))
                for m in ('modular', 'permutation', 'squaring', 'circuit')
            ],
            tracking,
            TRACKING,
        )
    elif name == 'traces':
        programs = ('addition', 'sum', 'maximum', 'sorting', 'median')
        cases, task, alphabet = (
            [dict(program=p, levels=(3,), granularity=1) for p in programs],
            traces,
            TRACES,
        )
    else:
        cases, task, alphabet = [dict(), dict(split='test')], bayes, BAYES
    rows = []
    for case in cases:
        source = task(**{'size': 500 if case.get('split') != 'test' else 24, **case}).examples
        rows += [source[i] for i in range(len(source))]
    damaging.check_on_tokens(task(size=1), rows, alphabet)


@pytest.mark.parametrize('name', MADE)
def test_splits_are_disjoint_whatever_the_seed(name):
    few = CASES[name][-1]
    found = {(s, seed): set() for s in SPLITS for seed in (0, 1)}
    for split, seed in found:
        source = CASES[name][0](
            **{**CASES[name][1], **few}, split=split, seed=seed, size=400
        ).examples
        found[split, seed] = {source.key(source[i]) for i in range(400)}
    both = {split: found[split, 0] | found[split, 1] for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert bool(both[a] & both[b]) == ({a, b} == {'train', 'prompts'}), (a, b)
    # Problems recur between seeds, so the splits would share some, were they not kept apart.
    assert all(found[split, 0] & found[split, 1] for split in SPLITS)


@pytest.mark.parametrize('name', CASES)
def test_a_row_depends_on_seed_split_and_index_only(name):
    short, long = rows_of(name, size=20, seed=5), rows_of(name, size=60, seed=5)
    assert short == long[:20]
    task, knobs, *_ = CASES[name]
    source = task(**knobs, size=60, seed=5).examples
    assert [source[i] for i in (59, 3, 17)] == [long[i] for i in (59, 3, 17)]
    assert (
        rows_of(name, size=20, seed=6) != short
        and rows_of(name, size=20, seed=5, split='prompts') != short
    )
    again, other = task(**knobs, size=60, seed=5), task(**knobs, size=60, seed=5, granularity=0)
    assert source.fingerprint() == again.examples.fingerprint() != other.examples.fingerprint()
    assert repr(source) == repr(again.examples) and '0x' not in repr(source)
    assert (
        again.name.startswith(f'{task.__name__}/')
        and again.name.endswith('/train')
        and source.where(2) == f'{task.__name__}:train[2]'
    )
    for i in (60, -1):
        with pytest.raises(IndexError):
            source[i]


def test_rows_are_the_same_in_another_process():
    """Nothing depends on the hashes of this process, or on what it drew before."""
    script = (
        'from reasonjax.tasks import bayes, traces, tracking\n'
        'print([t(size=9, seed=3).examples[8] for t in (bayes, traces, tracking)], bayes(size=3, '
        'split="test").examples[2])'
    )
    here = f'{[t(size=9, seed=3).examples[8] for t in (bayes, traces, tracking)]} {bayes(size=3, split="test").examples[2]}'
    root = pathlib.Path(__file__).parents[2]
    assert (
        subprocess.run(
            [sys.executable, '-c', script], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()
        == here
    )


@pytest.mark.parametrize('name', ['bayes', 'tracking', 'traces'])
def test_configs_find_the_task_and_common_knobs_are_checked(name):
    make = configs.resolve(dict(name=name, size=3, levels=[3]), 'task')
    assert make().examples[2]['level'] == 3
    for settings, message in (
        (dict(split='trian'), 'Did you mean "train"'),
        (dict(size=0), 'size must be at least 1'),
        (dict(levels=()), 'levels must name at least one'),
        (dict(levels=(-1,)), 'levels .*must be'),
        (dict(levels=('3',)), 'levels .*must be'),
        (dict(seed=-1), 'seed must not be negative'),
        (dict(granularity=-1), 'granularity must be'),
        (dict(granularity=9), 'granularity must be'),
    ):
        with pytest.raises(UserError, match=f'^{name}: {message}|^{name}: unknown.*{message}'):
            make(**settings)
