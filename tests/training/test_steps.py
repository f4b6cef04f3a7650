"""A stage gets another number of steps while its run goes on: it ends as if it had had them from
the start, where its learning rate does not depend on them, and where it does, it says so.
"""

import json

import pytest
from small_runs import (
    checkpoints,
    crash,
    crash_in_update,
    install_rewards,
    left_behind,
    quiet,
    records,
    small,
    steps,
)
from toys import assert_trees_equal

from reasonjax.errors import UserError
from reasonjax.training import run as runs
from reasonjax.training.run import run, trained


@pytest.fixture(scope='module')
def rewards(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        install_rewards(tmp_path_factory.mktemp('rewards'), patch)
        yield


def sft(number, **overrides):
    rate = dict(
        train__learning_rate__name='constant',
        train__learning_rate__peak=0.01,
        train__learning_rate__warmup_steps=2,
    )
    settings = dict(evaluation__enabled=False) | rate | overrides
    return small(
        'configs/base.py',
        train__steps=number,
        train__data__packing=True,
        train__data__max_length=64,
        **settings,
    )


def without_notes(workdir):
    return [record for record in records(workdir) if 'steps_before' not in record]


def assert_same(raised, alone, last):
    """Bit for bit: what was learnt, the optimiser, the position in the data, the counts, every
    record of a step."""
    assert_trees_equal(trained(raised)[1], trained(alone)[1])
    ours, theirs = (
        {name: entry for name, entry in checkpoints(folder).items() if name.endswith(f'/{last}')}
        for folder in (raised, alone)
    )
    assert ours.keys() == theirs.keys() and ours
    for name in ours:
        assert_trees_equal(ours[name][0], theirs[name][0])
        assert ours[name][1] == theirs[name][1], name
    assert without_notes(raised) == without_notes(alone)


@pytest.fixture(scope='module')
def six(tmp_path_factory):
    """A run that had six steps from the start."""
    folder = tmp_path_factory.mktemp('six') / 'alone'
    run(sft(6, train__checkpoint_every=2), folder)
    return folder


def test_a_finished_stage_goes_on(six, tmp_path, capsys):
    run(sft(3, train__checkpoint_every=2), tmp_path / 'run')
    capsys.readouterr()
    run(sft(6, train__checkpoint_every=2), tmp_path / 'run')
    printed = capsys.readouterr().out
    assert (
        'config.train.steps: 3 -> 6: stage train was done with step 3, and resumes from there.'
        in printed
    )
    assert 'resumes from step 3; the learning rate (constant) stays what it was.' in printed
    assert_same(tmp_path / 'run', six, 6)
    assert [r for r in records(tmp_path / 'run') if 'steps_before' in r] == [
        {'stage': 'train', 'step': 3, 'steps': 6, 'steps_before': 3}
    ]
    assert json.loads((tmp_path / 'run' / 'config.json').read_text())['train']['steps'] == 6
    done = json.loads((tmp_path / 'run' / 'stages' / '00_train' / 'done.json').read_text())
    assert (done['state']['steps'], done['state']['last']) == (6, 6)
    # What it was is kept, and nothing is done again.
    assert (
        json.loads((tmp_path / 'run' / 'stages' / '00_train' / 'done_3.json').read_text())['state'][
            'last'
        ]
        == 3
    )
    before = left_behind(tmp_path / 'run')
    run(sft(6, train__checkpoint_every=2), tmp_path / 'run')
    assert left_behind(tmp_path / 'run') == before


@pytest.mark.parametrize('kills', [[2], [5], [2, 1, 1]])
def test_a_stage_under_way_goes_on(kills, six, tmp_path):
    """Killed before and after its new length is known."""
    first, *rest = kills
    with crash_in_update(first):
        run(sft(5, train__checkpoint_every=2), tmp_path / 'run')
    for update in rest:
        with crash_in_update(update):
            run(sft(6, train__checkpoint_every=2), tmp_path / 'run')
    run(sft(6, train__checkpoint_every=2), tmp_path / 'run')
    assert_same(tmp_path / 'run', six, 6)
    assert sum('steps_before' in r for r in records(tmp_path / 'run')) == (first > 2)


def test_evaluations_and_the_best_checkpoint(tmp_path):
    """The old end is a step like any other: an evaluation that was due there decides about the best
    checkpoint."""
    settings = dict(
        evaluation__enabled=True,
        evaluation__task__size=4,
        evaluation__samples=0,
        train__keep_best='eval_mean_length',
        train__eval_every=2,
    )
    run(sft(6, **settings), tmp_path / 'alone')
    run(sft(4, **settings), tmp_path / 'run')
    run(sft(6, **settings), tmp_path / 'run')
    assert_same(tmp_path / 'run', tmp_path / 'alone', 6)
    one, other = (
        json.loads((tmp_path / name / 'summary.json').read_text())['stages'][0]['best']
        for name in ('run', 'alone')
    )
    assert one == other


def test_an_evaluation_of_the_old_end_stays(tmp_path):
    """Where the longer run has none."""
    settings = dict(
        evaluation__enabled=True,
        evaluation__task__size=4,
        evaluation__samples=0,
        train__eval_every=0,
    )
    run(sft(4, **settings), tmp_path / 'alone')
    run(sft(3, **settings), tmp_path / 'run')
    run(sft(4, **settings), tmp_path / 'run')
    more = [
        r for r in without_notes(tmp_path / 'run') if r not in without_notes(tmp_path / 'alone')
    ]
    assert [(r['step'], 'eval_accuracy' in r) for r in more] == [(3, True)]
    assert_trees_equal(trained(tmp_path / 'run')[1], trained(tmp_path / 'alone')[1])


def test_reinforcement_goes_on(tmp_path, rewards):
    """The reference is the model that came in, the draws are those of their steps."""

    def config(number):
        return quiet(
            'configs/grpo.py',
            grpo__steps=number,
            grpo__minibatches=2,
            grpo__objective__beta=0.1,
            grpo__learning_rate__peak=0.01,
            grpo__learning_rate__warmup_steps=0,
            grpo__rewards__accuracy__name='toy_rewards.digits',
            grpo__reward_workers=0,
            grpo__checkpoint_every=0,
            grpo__log_completions_every=2,
        )

    run(config(4), tmp_path / 'alone')
    run(config(2), tmp_path / 'run')
    run(config(4), tmp_path / 'run')
    assert_same(tmp_path / 'run', tmp_path / 'alone', 4)
    assert (
        left_behind(tmp_path / 'run')['completions']
        == left_behind(tmp_path / 'alone')['completions']
    )


def test_a_schedule_follows_the_new_length(tmp_path, capsys):
    cosine = dict(train__learning_rate__name='cosine')
    run(sft(4, **cosine), tmp_path / 'run')
    run(sft(8, **cosine), tmp_path / 'run')
    run(sft(8, **cosine), tmp_path / 'alone')
    printed = capsys.readouterr().out
    rates = {r['step']: r['learning_rate'] for r in steps(tmp_path / 'run', 'train')}
    wanted = {r['step']: r['learning_rate'] for r in steps(tmp_path / 'alone', 'train')}
    assert [rates[i] for i in range(5, 9)] == [wanted[i] for i in range(5, 9)] and rates[
        4
    ] != wanted[4]
    assert (
        f'(cosine) follows the new length from here on: {rates[5]:.4g} at step 5 (it would have '
        'been ' in printed
    )
    assert f', {rates[8]:.4g} at step 8.' in printed


def test_a_stage_that_has_done_more_ends(tmp_path, capsys):
    with crash_in_update(5):
        run(sft(6, train__checkpoint_every=2), tmp_path / 'run')
    summary = run(sft(3, train__checkpoint_every=2), tmp_path / 'run')
    assert (
        'config.train.steps: 6 -> 3: stage train has done 4 already, and ends there.'
        in capsys.readouterr().out
    )
    assert [s['name'] for s in summary['stages']] == ['train'] and [
        r['step'] for r in steps(tmp_path / 'run', 'train')
    ] == [1, 2, 3, 4]
    assert {'stage': 'train', 'step': 4, 'steps': 3, 'steps_before': 6} in records(tmp_path / 'run')
    run(sft(4, train__checkpoint_every=2), tmp_path / 'alone')
    assert_trees_equal(trained(tmp_path / 'run')[1], trained(tmp_path / 'alone')[1])
    run(sft(3, train__checkpoint_every=2), tmp_path / 'run')  # it is done


def test_a_stage_that_has_done_less_ends_earlier(tmp_path):
    with crash_in_update(4):
        run(sft(6, train__checkpoint_every=2), tmp_path / 'run')
    run(sft(3, train__checkpoint_every=2), tmp_path / 'run')
    run(sft(3, train__checkpoint_every=2), tmp_path / 'alone')
    assert_same(tmp_path / 'run', tmp_path / 'alone', 3)


def two(first, second, **overrides):
    return quiet(
        'configs/lora.py',
        pretrain__steps=first,
        lora__steps=second,
        lora__checkpoint_every=1,
        pretrain__learning_rate__name='constant',
        **overrides,
    )


def test_a_finished_stage_cannot_be_shortened(tmp_path):
    run(sft(3), tmp_path)
    before = (tmp_path / 'config.json').read_bytes()
    with pytest.raises(
        UserError,
        match='config.train.steps: 3 -> 2: stage train is done, with step 3; give it at least as '
        'many',
    ):
        run(sft(2), tmp_path)
    assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize('later', ['done', 'under way'])
def test_a_stage_that_was_used_keeps_its_steps(later, tmp_path):
    if later == 'done':
        run(two(1, 2), tmp_path)
    else:
        with crash_in_update(2):  # of the second stage: the first has one
            run(two(1, 2), tmp_path)
    with pytest.raises(
        UserError,
        match='config.pretrain.steps: 1 -> 4: stage pretrain is done, with step 1, and lora starts',
    ) as error:
        run(two(4, 2), tmp_path)
    assert 'its steps stay' in str(error.value)
    run(two(1, 3), tmp_path)  # the last one may
    assert len(steps(tmp_path, 'lora')) == 3


def test_a_stage_that_was_not_used_yet_goes_on(tmp_path):
    with crash(runs, '_run_stage', 2):
        run(two(2, 2), tmp_path / 'run')
    run(two(4, 2), tmp_path / 'run')
    run(two(4, 2), tmp_path / 'alone')
    assert_trees_equal(trained(tmp_path / 'run')[1], trained(tmp_path / 'alone')[1])
    assert without_notes(tmp_path / 'run') == without_notes(tmp_path / 'alone')


def test_other_settings_stay(tmp_path):
    run(sft(2), tmp_path)
    with pytest.raises(
        UserError, match=r'is of another config(.|\n)*config.train.batch_size: 4 -> 2'
    ) as error:
        run(sft(3, train__batch_size=2), tmp_path)
    assert 'steps' not in str(error.value) and 'version' not in str(error.value)


def test_a_stage_that_a_limit_has_ended_is_done(tmp_path):
    run(sft(4, train__token_limit=1), tmp_path)
    assert [r['step'] for r in steps(tmp_path, 'train')] == [1]
    run(sft(9, train__token_limit=1), tmp_path)
    assert [r['step'] for r in steps(tmp_path, 'train')] == [1]


def collecting(number, **overrides):
    return quiet(
        'configs/quickstart.py:filtered_sft',
        stages="('collect', 'resft')",
        collect__steps=number,
        collect__max_completion_length=30,
        collect__rewards__accuracy__name='toy_rewards.digits',
        collect__reward_workers=0,
        collect__min_reward=2.0,
        resft__steps=1,
        **overrides,
    )


def test_collecting_goes_on(tmp_path, rewards):
    run(collecting(3), tmp_path / 'alone')
    with crash_in_update(1):
        run(collecting(2), tmp_path / 'run')
    run(collecting(3), tmp_path / 'run')
    assert left_behind(tmp_path / 'run') == left_behind(tmp_path / 'alone')
    assert_trees_equal(trained(tmp_path / 'run')[1], trained(tmp_path / 'alone')[1])
    with pytest.raises(
        UserError,
        match='config.collect.steps: 3 -> 4: stage collect is done, with step 3, and resft starts '
        'from there',
    ):
        run(collecting(4), tmp_path / 'run')


def test_collecting_ends_with_what_there_is(tmp_path, rewards, capsys):
    run(collecting(2), tmp_path / 'alone')
    with crash_in_update(1):
        run(collecting(2), tmp_path / 'run')
    (tmp_path / 'run' / 'stages' / '00_collect' / 'done.json').unlink()
    run(collecting(1), tmp_path / 'run')
    assert (
        'config.collect.steps=1: 2 are collected already; the stage ends with them.'
        in capsys.readouterr().out
    )
    assert left_behind(tmp_path / 'run')['datasets'] == left_behind(tmp_path / 'alone')['datasets']
