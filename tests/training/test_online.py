"""The online stage's own arithmetic, and its neutral settings."""

import json
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from reasonjax import config as configs
from reasonjax.errors import UserError
from reasonjax.smoke import shrink
from reasonjax.training import rollout_metrics
from reasonjax.training.run import run, trained

ROOT = pathlib.Path(__file__).parent.parent.parent


def small(*overrides):
    common = [
        ('evaluation.enabled', 'false'),
        ('stages', "('grpo',)"),
        ('grpo.max_completion_length', '8'),
    ]
    return shrink(configs.load(str(ROOT / 'configs/grpo.py')), [*common, *overrides])


def losses(workdir):
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [(r['loss'], r['grad_norm'], r['entropy']) for r in records]


def test_old_logprobs_of_the_sampler_are_the_policys_own(tmp_path):
    """Two minibatches put the recorded log-probs into the loss: before any update has moved the
    policy, every ratio is 1."""
    run(
        small(
            ('grpo.minibatches', '2'),
            ('grpo.learning_rate.peak', '0.0'),
            ('grpo.objective.epsilon', '1e-5'),
        ),
        tmp_path,
    )
    records = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [r['clip_ratio/region_mean'] for r in records] == [0.0, 0.0]


def test_sampling_some_prompts_at_once_draws_the_same(tmp_path):
    tables = []
    for at_once in (0, 2):
        workdir = tmp_path / str(at_once)
        run(
            small(('grpo.prompts_at_once', str(at_once)), ('grpo.log_completions_every', '1')),
            workdir,
        )
        tables.append(
            [
                pq.read_table(path).to_pydict()
                for path in sorted((workdir / 'completions').glob('*'))
            ]
        )
    assert len(tables[0]) == 2 and len(set(tables[0][0]['completion'])) > 2
    assert tables[0] == tables[1]
    with pytest.raises(
        UserError, match='prompts_at_once=3: does not divide num_prompts=4; nearest: [24]'
    ):
        run(small(('grpo.prompts_at_once', '3')), tmp_path / 'refused')


def test_kl_to_the_reference_is_zero_at_first_and_grows(tmp_path):
    run(
        small(
            ('grpo.objective.beta', '0.1'),
            ('grpo.learning_rate.peak', '0.05'),
            ('grpo.learning_rate.warmup_steps', '0'),
            ('grpo.rewards.accuracy.extract', 'flexible'),
        ),
        tmp_path,
    )
    records = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert records[0]['kl'] == 0.0


def test_identical_rewards_leave_the_policy_alone(tmp_path):
    """An untrained model gets reward 0 throughout: zero advantage, zero gradient, the very same
    parameters."""
    run(small(), tmp_path)
    assert [grad for _, grad, _ in losses(tmp_path)] == [0.0, 0.0]
    fresh = tmp_path / 'fresh'
    run(small(('grpo.learning_rate.peak', '0.0')), fresh)
    import jax

    jax.tree.map(np.testing.assert_array_equal, trained(tmp_path)[1], trained(fresh)[1])


def test_completions_table(tmp_path):
    run(small(), tmp_path)
    files = sorted((tmp_path / 'completions').glob('*.parquet'))
    assert [f.name for f in files] == ['completions_00001.parquet', 'completions_00002.parquet']
    table = pq.read_table(files[0])
    assert (
        table.column_names[:3] == ['step', 'prompt', 'completion']
        and 'accuracy' in table.column_names
    )
    assert table.num_rows == 8


def test_a_run_that_learns_nothing_is_told_so_once(capsys):
    watch = rollout_metrics.Watcher('grpo')
    flat = {'frac_reward_zero_std': 1.0, 'reward': 0.0, 'completions/clipped_ratio': 0.0}
    for _ in range(rollout_metrics.FLAT_STEPS - 1):
        watch(flat)
    assert capsys.readouterr().err == ''
    for _ in range(3):
        watch(flat)
    assert capsys.readouterr().err.count('equal rewards') == 1
    for _ in range(2):
        watch(flat | {'frac_reward_zero_std': 0.5, 'completions/clipped_ratio': 0.9})
    assert capsys.readouterr().err.count('90% of the completions were cut') == 1
