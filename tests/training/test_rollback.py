"""Steps that are not finite, gradients that stand out, and the best checkpoint: what the loop
decides, and decides again after a kill."""

import json

import numpy as np
import pytest
from small_runs import checkpoints, crash_in_update, quiet, records, small
from toys import assert_trees_equal

from reasonjax.data import pipeline
from reasonjax.errors import UserError
from reasonjax.reporting import report
from reasonjax.training import evaluate, saved_run
from reasonjax.training.run import run, trained

OBJECTIVE = """
import jax
import jax.numpy as jnp
from reasonjax.methods.objectives import nll
def marked(score, batch, key):
    '''The first weight of a batch (of a token that nothing predicts) makes the loss nan, the gradient alone, or that very large.'''
    loss, metrics = nll(score, batch, key)
    mark, still = batch['weights'][0, 0], jax.lax.stop_gradient(loss)
    steep = jnp.sqrt(jnp.where(mark == 91, 0.0, 1.0) + 0 * loss)
    loss = jnp.where(mark == 90, jnp.nan, loss + 0 * steep)
    return jnp.where(mark == 92, still + 1e6 * (loss - still), loss), metrics
"""


@pytest.fixture(autouse=True)
def marks(tmp_path, monkeypatch):
    """`marks({3: 90})` marks the third batch of the data, wherever a run starts to read; counted by
    the position in the data."""
    (tmp_path / 'toy_marked.py').write_text(OBJECTIVE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(report, 'write', lambda workdir: None)
    real = pipeline.Batches.__next__

    def set_(wrong):
        def next_(batches):
            batch = real(batches)
            number = batches.counters['rows'] // len(batch['tokens'])
            if number not in wrong:
                return batch
            weights = batch['weights'].copy()
            weights[0, 0] = wrong[number]
            return batch | {'weights': weights}

        monkeypatch.setattr(pipeline.Batches, '__next__', next_)

    return set_


def config(**overrides):
    common = dict(
        objective__name='toy_marked.marked',
        learning_rate__name='constant',
        learning_rate__peak=0.01,
        learning_rate__warmup_steps=4,
        checkpoint_every=2,
        keep_checkpoints=2,
        max_nonfinite=1,
    )
    return quiet(
        'configs/base.py',
        **{f'train__{name}': value for name, value in (common | overrides).items()},
    )


def states(workdir):
    return {int(name.split('/')[1]): found for name, found in checkpoints(workdir).items()}


@pytest.mark.parametrize('mark', [90, 91])
def test_a_bad_stretch_is_left_behind(mark, marks, tmp_path, capfd):
    """Steps 5 and 6 are bad: back to the checkpoint of step 2 (from that of 4, no step was finite),
    then on with batch 7."""
    marks({5: mark, 6: mark})
    run(config(steps=6, max_rollbacks=0, keep_checkpoints=9, max_nonfinite=9), tmp_path / 'before')
    capfd.readouterr()
    run(config(steps=8, keep_checkpoints=1), tmp_path / 'work')
    said = [line for line in capfd.readouterr().err.splitlines() if 'rollback' in line]
    assert len(said) == 1
    for words in (
        'stage train, step 6',
        '2 steps in a row',
        'checkpoint of step 2',
        'step 7',
        'rollback 1 of at most 1',
    ):
        assert words in said[0]
    found = records(tmp_path / 'work', 'train')
    assert [r['rollbacks'] for r in found] == [0] * 5 + [1] * 3
    assert [r['skipped_updates'] for r in found] == [0] * 4 + [1] + [2] * 3
    # Two updates were applied at the checkpoint, and the rate of the third is that of the third
    # step of the warm-up.
    np.testing.assert_allclose([r['learning_rate'] for r in found[6:]], [0.0075, 0.01], rtol=1e-6)
    tokens = [r['num_tokens'] for r in found]
    assert tokens == sorted(tokens) and len(set(tokens)) == 8
    good, after = states(tmp_path / 'before')[2], states(tmp_path / 'work')[6]
    assert_trees_equal(after[0]['params'], good[0]['params'])
    assert_trees_equal(after[0]['train']['optimizer'], good[0]['train']['optimizer'])
    assert int(after[0]['train']['step']) == 6 and after[1]['data']['counters']['rows'] == 6 * 4


def test_a_killed_run_rolls_back_the_same(marks, tmp_path):
    """Killed in the bad stretch, right after the rollback, and later; with checkpoints in the
    stretch, and only before it."""
    for every, calls in {1: (6, 3, 2), 3: (6, 3, 3)}.items():
        marks({5: 90, 6: 91})
        settings = config(steps=9, checkpoint_every=every)
        alone, killed = tmp_path / f'alone{every}', tmp_path / f'killed{every}'
        run(settings, alone)
        for call in calls:
            with crash_in_update(call):
                run(settings, killed)
        run(settings, killed)
        assert records(killed) == records(alone)
        ours, theirs = states(killed), states(alone)
        assert ours.keys() == theirs.keys()
        for step in ours:
            assert_trees_equal(ours[step][0], theirs[step][0])
            assert ours[step][1] == theirs[step][1]


def test_without_a_checkpoint_it_goes_back_to_the_start(marks, tmp_path, capfd):
    """Of adapters too: they come back as they were drawn."""
    marks({2: 90, 3: 90})
    run(config(steps=3, checkpoint_every=0), tmp_path / 'work')
    assert 'go back to where the stage began' in capfd.readouterr().err
    marks({})
    run(config(steps=1, learning_rate__peak=0.0, optimizer__weight_decay=0.0), tmp_path / 'start')
    assert_trees_equal(trained(tmp_path / 'work')[1], trained(tmp_path / 'start')[1])


def test_there_is_an_end_to_it(marks, tmp_path):
    marks(dict.fromkeys(range(3, 99), 90))
    with pytest.raises(
        UserError, match=r'step 8: .*2 steps in a row, after 2 rollbacks .*max_rollbacks'
    ):
        run(config(steps=20, max_rollbacks=2, checkpoint_every=1), tmp_path)
    assert [r['rollbacks'] for r in records(tmp_path)] == [0, 0, 0, 1, 1, 2, 2, 2]


def test_tolerating_none_rolls_back_at_once(marks, tmp_path):
    marks({3: 90})
    run(config(steps=4, max_nonfinite=0, checkpoint_every=1), tmp_path)
    assert [r['rollbacks'] for r in records(tmp_path)] == [0, 0, 1, 1]


def test_a_spike_is_skipped_and_counted_apart(marks, tmp_path):
    marks({1: 92, 7: 92, 8: 90})
    settings = config(
        steps=9,
        spike_zscore=6.0,
        spike_window=4,
        checkpoint_every=1,
        keep_checkpoints=9,
        log_every=1,
    )
    run(settings, tmp_path / 'work')
    found, saved = records(tmp_path / 'work'), states(tmp_path / 'work')
    # The first comes before the window is full.
    assert [r['skipped_spikes'] for r in found] == [0] * 6 + [1] * 3
    assert [r['skipped_updates'] for r in found] == [0] * 7 + [1] * 2
    assert found[6]['grad_norm'] > 1e4 and np.isfinite(found[6]['loss'])
    for step in (7, 8):
        assert_trees_equal(saved[step][0]['params'], saved[6][0]['params'])
        assert_trees_equal(saved[step][0]['train']['optimizer'], saved[6][0]['train']['optimizer'])
        assert_trees_equal(saved[step][0]['train']['norms'], saved[6][0]['train']['norms'])
    assert int(saved[9][0]['train']['norms']['seen']) == 7
    with crash_in_update(8):
        run(settings, tmp_path / 'killed')
    run(settings, tmp_path / 'killed')
    assert records(tmp_path / 'killed') == found
    assert_trees_equal(trained(tmp_path / 'killed')[1], trained(tmp_path / 'work')[1])


def test_a_new_level_is_an_error_and_not_the_end_of_training(marks, tmp_path):
    marks(dict.fromkeys(range(5, 99), 92))
    with pytest.raises(
        UserError, match='step 9: the gradient norm stood out 5 steps in a row .*train.spike_zscore'
    ):
        run(config(steps=20, spike_zscore=6.0, spike_window=4), tmp_path)


def test_off_is_bit_for_bit_the_same_as_never_exceeded(tmp_path):
    run(config(steps=4), tmp_path / 'off')
    run(config(steps=4, spike_zscore=1e9, spike_window=2), tmp_path / 'far')
    assert_trees_equal(trained(tmp_path / 'off')[1], trained(tmp_path / 'far')[1])


@pytest.mark.parametrize(('mode', 'best'), [('max', 2), ('min', 4)])
def test_the_best_checkpoint_survives(mode, best, tmp_path, monkeypatch, capfd):
    """Accuracies at steps 2, 4, 6 and the end; also for a run that is killed after each."""
    values = {2: 0.5, 4: 0.1, 6: 0.5, 7: 0.3}
    summarise = evaluate.summarise

    def plan(monkeypatch, left):
        def planned(evaluation):
            if len(evaluation.rows) != 4:
                return summarise(evaluation)  # of nothing, for the names
            return {'accuracy': values[next(left)], 'ci95': (0, 1)}

        monkeypatch.setattr(evaluate, 'summarise', planned)

    settings = small(
        'configs/base.py',
        train__steps=7,
        train__eval_every=2,
        train__checkpoint_every=3,
        train__keep_checkpoints=1,
        train__max_rollbacks=0,
        train__keep_best='eval_accuracy',
        train__keep_best_mode=mode,
        evaluation__task__size=4,
        evaluation__samples=0,
    )
    plan(monkeypatch, iter([2, 4, 6, 7]))
    summary = run(settings, tmp_path / 'alone')
    assert summary['stages'][0]['best'] == {'step': best, 'value': values[best]}
    assert sorted(states(tmp_path / 'alone')) == [best, 7]
    found = saved_run.saved(tmp_path / 'alone', 'train@best')
    assert (
        found.step == best == saved_run.saved(tmp_path / 'alone', '@best').step
        and saved_run.saved(tmp_path / 'alone').step == 7
    )
    # Killed in steps 5 and 6; the newest checkpoint is that of step 3, or that of 4 where it is the
    # best.
    plan(monkeypatch, iter([2, 4, 4, 4, 6, 7] if mode == 'max' else [2, 4, 6, 7]))
    for call in (5, 3 if mode == 'max' else 2):
        with crash_in_update(call):
            run(settings, tmp_path / 'killed')
        assert saved_run.saved(tmp_path / 'killed', '@best').step == best
    run(settings, tmp_path / 'killed')
    assert records(tmp_path / 'killed') == records(tmp_path / 'alone')
    assert (
        json.loads((tmp_path / 'killed' / 'stages' / '00_train' / 'done.json').read_text())['best'][
            'step'
        ]
        == best
    )


def test_wrong_settings_are_explained(tmp_path):
    for settings, words in [
        (dict(keep_best='eval_accuracy'), 'keep_best="eval_accuracy": .*evaluation.enabled=True'),
        (dict(keep_best_mode='mex'), 'keep_best_mode="mex": .*Did you mean "max"'),
        (dict(spike_window=1), 'spike_window=1: must be at least 2'),
        (dict(max_rollbacks=-1), 'max_rollbacks=-1'),
    ]:
        with pytest.raises(UserError, match=f'config.train.{words}'):
            run(config(**settings), tmp_path)
    evaluating = dict(train__eval_every=1, evaluation__task__size=4, evaluation__samples=0)
    with pytest.raises(UserError, match='keep_best="acuracy": .*Did you mean "eval_accuracy"'):
        run(small('configs/base.py', train__keep_best='acuracy', **evaluating), tmp_path)
    with pytest.raises(UserError, match='eval_every above 0'):
        run(
            small(
                'configs/base.py',
                train__keep_best='eval_accuracy',
                **evaluating | {'train__eval_every': 0},
            ),
            tmp_path,
        )
    run(quiet('configs/base.py'), tmp_path / 'plain')
    with pytest.raises(UserError, match='stage train .*keep_best'):
        saved_run.saved(tmp_path / 'plain', 'train@best')
