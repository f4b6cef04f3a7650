"""The loop around the step: what is recorded, evaluated and saved when, and what becomes of steps
that are not finite."""

import itertools
import json
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import checkpoints, install_rewards, left_behind, quiet, records, small
from toys import assert_trees_close, assert_trees_equal

from reasonjax.data import pipeline
from reasonjax.errors import UserError
from reasonjax.tracking import metrics
from reasonjax.training import counters, loop
from reasonjax.training import run as runs
from reasonjax.training.run import run, trained
from reasonjax.training.step import _split
from reasonjax.weights.linear import LowRank
from reasonjax.weights.partition import path_name


def base(**overrides):
    return quiet(
        'configs/base.py', **{f'train__{name}': value for name, value in overrides.items()}
    )


def saved(workdir, stage='00_train'):
    return sorted(int(path.name) for path in (workdir / 'stages' / stage / 'checkpoints').glob('*'))


def test_every_step_is_recorded_once_and_in_order(tmp_path, monkeypatch):
    """Also where metrics are fetched a step late: nothing makes this run wait for a step before the
    last."""
    order, write, feed = [], metrics.Writer.write, pipeline.Batches.__next__

    def fed(batches):
        order.append('fed')
        return feed(batches)

    def written(writer, stage, step, values):
        order.append(step)
        write(writer, stage, step, values)

    monkeypatch.setattr(pipeline.Batches, '__next__', fed)
    monkeypatch.setattr(metrics.Writer, 'write', written)
    run(base(steps=4, checkpoint_every=0, eval_every=0), tmp_path)
    assert [r['step'] for r in records(tmp_path, 'train')] == [1, 2, 3, 4]
    assert order == ['fed', 'fed', 1, 'fed', 2, 'fed', 3, 4]


def test_log_every_thins_the_records_and_keeps_the_last(tmp_path):
    run(base(steps=5, log_every=2), tmp_path)
    assert [r['step'] for r in records(tmp_path, 'train')] == [2, 4, 5]


def test_each_record_belongs_to_its_step_whatever_is_due(tmp_path):
    """Losses, token counts and dropped rows are the same whether a step is fetched at once or a
    step late."""
    late = base(
        steps=4, checkpoint_every=0, eval_every=0, data__max_length=26, data__overlong='drop'
    )
    soon = base(
        steps=4, checkpoint_every=1, eval_every=0, data__max_length=26, data__overlong='drop'
    )
    run(late, tmp_path / 'late')
    run(soon, tmp_path / 'soon')
    found = records(tmp_path / 'late', 'train')
    assert found == records(tmp_path / 'soon', 'train')
    dropped = [r['data/dropped_overlong'] for r in found]
    assert dropped[0] < dropped[-1] and dropped == sorted(dropped)
    assert all(a['num_tokens'] < b['num_tokens'] for a, b in zip(found, found[1:]))


def test_evaluations_and_checkpoints_come_when_they_are_due(tmp_path):
    config = small(
        'configs/base.py',
        train__steps=5,
        train__eval_every=2,
        train__checkpoint_every=2,
        train__keep_checkpoints=2,
        evaluation__task__size=4,
        evaluation__samples=0,
    )
    summary = run(config, tmp_path)
    evaluated = [r['step'] for r in records(tmp_path, 'train') if 'eval_accuracy' in r]
    assert evaluated == [2, 4, 5]
    assert saved(tmp_path) == [4, 5]
    last = records(tmp_path, 'train')[-1]
    assert (
        last['eval_accuracy'] == summary['stages'][0]['accuracy']
        and summary['stages'][0]['problems'] == 4
    )


@pytest.mark.parametrize(
    ('keep', 'rollbacks', 'left'), [(1, 0, [4]), (1, 1, [3, 4]), (3, 1, [2, 3, 4])]
)
def test_the_newest_checkpoints_are_kept(keep, rollbacks, left, tmp_path):
    """And the newest from which a step is known to be finite, where a rollback may need it."""
    run(base(steps=4, checkpoint_every=1, keep_checkpoints=keep, max_rollbacks=rollbacks), tmp_path)
    assert saved(tmp_path) == left


def test_without_periods_only_the_end_is_saved(tmp_path):
    run(base(steps=3, checkpoint_every=0), tmp_path)
    assert saved(tmp_path) == [3]


OBJECTIVE = """
import jax.numpy as jnp
from reasonjax.methods.objectives import nll
def breaks(score, batch, key, *, bad=0.0):
    loss, metrics = nll(score, batch, key)
    return jnp.where(batch['tokens'][0, 1] >= bad, jnp.nan, loss), metrics
"""


@pytest.fixture
def breaks(tmp_path, monkeypatch):
    """An objective whose loss is nan where the first row's second token is at least `bad`: 0
    always, 99 never."""
    (tmp_path / 'toy_objective.py').write_text(OBJECTIVE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / 'work'


def at_fault(feed):
    """Makes the named batches (counted from 1) ones that `breaks` with bad=90 breaks on, without
    another token in them."""

    def fault(wrong):
        count = iter(range(1, 100))

        def next_(batches):
            batch = feed(batches)
            return (
                batch | {'tokens': np.where(next(count) in wrong, 90, batch['tokens'])}
                if wrong
                else batch
            )

        return next_

    return fault


def broken(monkeypatch, wrong, **overrides):
    monkeypatch.setattr(pipeline.Batches, '__next__', at_fault(pipeline.Batches.__next__)(wrong))
    settings = dict(
        objective__name='toy_objective.breaks',
        objective__bad=90.0,
        learning_rate__name='constant',
        learning_rate__peak=0.01,
        learning_rate__warmup_steps=4,
        keep_checkpoints=9,
        checkpoint_every=1,
    )
    return base(**settings | overrides)


def test_a_step_that_is_not_finite_is_skipped_and_counted(breaks, monkeypatch):
    run(broken(monkeypatch, {2, 3}, steps=5), breaks)
    found = records(breaks, 'train')
    assert [r['skipped_updates'] for r in found] == [0, 1, 2, 2, 2]
    assert [r['loss'] is None for r in found] == [False, True, True, False, False]
    assert 'loss=nan' in found[1]['nonfinite'] and 'nonfinite' not in found[3]
    states = checkpoints(breaks)
    before, during, after = (states[f'00_train/{step}'][0] for step in (1, 3, 4))
    assert_trees_equal(before['params'], during['params'])
    assert_trees_equal(before['train']['optimizer'], during['train']['optimizer'])
    assert int(during['train']['step']) == 3
    assert not np.array_equal(after['params']['embed'], during['params']['embed'])
    # The warm-up goes on where it was: the rate that is recorded is the one that was applied.
    np.testing.assert_allclose(
        [found[i]['learning_rate'] for i in (0, 3, 4)], [0.0025, 0.005, 0.0075], rtol=1e-6
    )


def test_too_many_in_a_row_stop_the_run(breaks, monkeypatch):
    with pytest.raises(
        UserError, match=r'stage train, step 4: loss or gradient was not finite 3 steps in a row'
    ) as error:
        run(broken(monkeypatch, {2, 3, 4, 5, 6}, steps=9, max_nonfinite=2, max_rollbacks=0), breaks)
    for word in ('loss nan', 'train.learning_rate.peak', 'clip_norm', 'max_nonfinite'):
        assert word in str(error.value)
    assert [r['step'] for r in records(breaks, 'train')] == [1, 2, 3, 4]


def test_a_finite_step_between_resets_the_count(breaks, monkeypatch):
    run(broken(monkeypatch, {1, 2, 4, 5}, steps=6, max_nonfinite=2), breaks)
    assert records(breaks, 'train')[-1]['skipped_updates'] == 4


def test_the_count_in_a_row_survives_a_restart(breaks, monkeypatch):
    config = broken(monkeypatch, {2, 3, 4, 5, 6}, steps=9, max_nonfinite=2, max_rollbacks=0)
    for _ in range(2):
        with pytest.raises(UserError, match='step 4: .* 3 steps in a row'):
            run(config, breaks)
        # The restarted run reads batches 4, 5, ... of the data again: each is at fault, whatever
        # number it now has.
        monkeypatch.setattr(
            pipeline.Batches, '__next__', at_fault(pipeline.Batches.__next__)(set(range(100)))
        )


@pytest.mark.parametrize('name', ['constant', 'cosine', 'linear'])
def test_the_rate_that_is_recorded_is_the_one_applied(name, tmp_path):
    """SGD at rate lr moves the parameters by lr times the gradient norm; the first step of a
    warm-up already moves."""
    config = base(
        steps=4,
        learning_rate__name=name,
        learning_rate__peak=0.1,
        learning_rate__warmup_steps=2,
        optimizer__name='sgd',
        optimizer__clip_norm='inf',
        checkpoint_every=1,
        keep_checkpoints=9,
    )
    run(config, tmp_path)
    found, states = records(tmp_path, 'train'), checkpoints(tmp_path)
    assert [round(r['learning_rate'], 6) for r in found[:2]] == [0.05, 0.1]
    for before, after in zip(range(1, 4), range(2, 5)):
        one, other = (states[f'00_train/{step}'][0]['params'] for step in (before, after))
        moved = np.sqrt(
            sum(
                np.sum((a.astype(np.float64) - b) ** 2)
                for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other))
            )
        )
        r = found[after - 1]
        np.testing.assert_allclose(moved, r['learning_rate'] * r['grad_norm'], rtol=1e-3)


def test_only_the_factors_train(tmp_path):
    config = quiet(
        'configs/lora.py', lora__learning_rate__peak=0.05, lora__learning_rate__warmup_steps=0
    )
    run(config, tmp_path)
    dense, adapted = trained(tmp_path, 'pretrain')[1], trained(tmp_path)[1]
    plain = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(dense)}
    nodes = jax.tree_util.tree_leaves_with_path(adapted, is_leaf=lambda x: isinstance(x, LowRank))
    seen = 0
    for path, node in nodes:
        name = path_name(path)
        if isinstance(node, LowRank):
            seen += 1
            np.testing.assert_array_equal(node.base, plain[name], err_msg=name)
            assert np.any(node.b), f'{name}: its factors did not move'
        else:
            np.testing.assert_array_equal(node, plain[name], err_msg=name)
    assert seen and len(nodes) == len(plain)


@pytest.mark.parametrize('beta, kept', [(None, False), (0.0, False), (0.1, True)])
def test_what_a_stage_starts_from_is_kept_only_as_a_reference(beta, kept, tmp_path, monkeypatch):
    """A second copy of the weights is what does not fit when all of them train. `beta` None is a
    supervised stage."""
    begun, alive, fresh, dispatch = [], [], runs.fresh_params, loop._Training._dispatch

    def drawn(context):
        params = fresh(context)
        begun.extend(weakref.ref(x) for x in jax.tree.leaves(params))
        return params

    def counted(training, step):
        dispatch(training, step)
        alive.append(sum(found() is not None for found in begun))

    monkeypatch.setattr(runs, 'fresh_params', drawn)
    monkeypatch.setattr(loop._Training, '_dispatch', counted)
    online = dict(
        stages="('grpo',)", grpo__steps='2', grpo__reward_workers='0', grpo__objective__beta=beta
    )
    run(base(steps=2) if beta is None else quiet('configs/grpo.py', **online), tmp_path)
    assert begun and alive == [kept * len(begun)] * 2


def test_masking_nothing_is_sft_bit_for_bit(tmp_path):
    run(base(steps=3), tmp_path / 'sft')
    run(base(steps=3, corruption__name='masked_thought', corruption__rate=0.0), tmp_path / 'masked')
    assert [r['loss'] for r in records(tmp_path / 'sft')] == [
        r['loss'] for r in records(tmp_path / 'masked')
    ]
    assert_trees_equal(trained(tmp_path / 'sft')[1], trained(tmp_path / 'masked')[1])
    run(base(steps=3, corruption__name='masked_thought', corruption__rate=0.9), tmp_path / 'much')
    assert records(tmp_path / 'sft')[-1]['loss'] != records(tmp_path / 'much')[-1]['loss']


@pytest.mark.parametrize('packing', [False, True])
def test_accumulation_does_not_change_the_result(packing, tmp_path):
    """Weights differ from row to row: a mean of means would be another loss."""
    common = dict(
        steps=3, data__packing=packing, data__max_length=64, learning_rate__warmup_steps=0
    )
    for micro in (1, 2, 4):
        run(base(accumulation=micro, **common), tmp_path / str(micro))
    whole = records(tmp_path / '1')
    for micro in ('2', '4'):
        split = records(tmp_path / micro)
        for name in ('loss', 'entropy', 'grad_norm'):
            np.testing.assert_allclose(
                [r[name] for r in split], [r[name] for r in whole], rtol=1e-5, err_msg=name
            )
        assert [r['num_tokens'] for r in split] == [r['num_tokens'] for r in whole]
        assert_trees_close(trained(tmp_path / micro)[1], trained(tmp_path / '1')[1], atol=2e-4)


def test_micro_batches_are_strided_over_the_batch():
    """So that each has rows of every shard of the batch axis."""
    rows = jnp.arange(12).reshape(6, 2)
    assert _split(rows, 3, 1)[:, :, 0].tolist() == [[0, 6], [2, 8], [4, 10]]
    # Pairs stay together.
    assert _split(rows, 3, 2)[:, :, 0].tolist() == [[0, 2], [4, 6], [8, 10]]
    assert _split(rows, 1, 1).tolist() == [rows.tolist()]
    with pytest.raises(UserError, match='6 rows per step do not split into accumulation=4'):
        _split(rows, 4, 1)
    with pytest.raises(
        UserError, match='3 groups of 2 rows per step do not split into accumulation=2'
    ):
        _split(rows, 2, 2)


def test_updates_of_one_online_step_share_its_record(tmp_path, monkeypatch):
    """Two minibatches, gone over twice, are four updates of one step: schedule, tokens and records
    count them so."""
    install_rewards(tmp_path, monkeypatch)
    config = quiet(
        'configs/grpo.py',
        stages="('grpo',)",
        grpo__steps=2,
        grpo__minibatches=2,
        grpo__num_iterations=2,
        grpo__learning_rate__peak=0.08,
        grpo__learning_rate__warmup_steps=8,
        grpo__reward_workers=0,
        grpo__rewards__accuracy__name='toy_rewards.digits',
    )
    run(config, tmp_path / 'work')
    found = records(tmp_path / 'work')
    assert [r['step'] for r in found] == [1, 2]
    np.testing.assert_allclose([r['learning_rate'] for r in found], [0.04, 0.08], rtol=1e-6)
    tables = left_behind(tmp_path / 'work')['completions']
    assert found[0]['num_tokens'] == sum(
        row['length'] for row in tables['completions_00001.parquet']
    )
    assert int(checkpoints(tmp_path / 'work')['00_grpo/2'][0]['train']['step']) == 8


def test_time_counts_once_over_restarts(tmp_path, monkeypatch):
    """The seconds of a stage are those of its attempts, not of the last one. Here a second goes by
    whenever the loop asks."""
    ticks = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr(loop, 'time', clock)
    config = base(steps=2, checkpoint_every=1)
    run(config, tmp_path)
    done = tmp_path / 'stages' / '00_train' / 'done.json'
    first = json.loads(done.read_text())['seconds']
    done.unlink()
    run(config, tmp_path)
    assert json.loads(done.read_text())['seconds'] > 0.5 * first


def test_due():
    class Stage:
        eval_every, checkpoint_every, steps = 2, 3, 7

    assert [sorted(counters.actions_due(step, Stage, 7)) for step in range(1, 8)] == [
        [],
        ['evaluate'],
        ['save'],
        ['evaluate'],
        [],
        ['evaluate', 'save'],
        ['save'],
    ]
