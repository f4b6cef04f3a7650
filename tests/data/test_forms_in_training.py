"""A supervised stage on preference rows with an objective of one's own, and the objectives that
must not read them."""

import json
import pathlib

import pytest

from reasonjax import config as configs
from reasonjax.errors import UserError
from reasonjax.smoke import shrink
from reasonjax.tracking import metrics
from reasonjax.training.run import run

ROOT = pathlib.Path(__file__).parents[2]

OBJECTIVE = """
import jax, jax.numpy as jnp
from reasonjax import reduce

def preference(score, batch, key, *, beta: float = 1.0):
    said_B = jnp.sum(batch['weights'] * score(batch).logprob, axis=1)
    margin = beta * (said_B[0::2] - said_B[1::2])
    metrics = {'rewards/margins': reduce.mean(margin), 'chosen': reduce.mean(batch['chosen'][0::2] & ~batch['chosen'][1::2])}
    return -jax.nn.log_sigmoid(margin).sum() / (batch['step_rows'] / 2), metrics

preference.forms = ('preference',)

def margin_blind(score, batch, key):
    return jnp.sum(score(batch).logprob) / batch['step_rows'], {}
"""

CONFIG = """
from configs import base

def get_config():
    c = base.get_config()
    c.train.learning_rate = dict(name='constant', peak=1e-2, warmup_steps=0)
    c.train.data.source = dict(name='jsonl', path={path!r})
    c.train.data.max_length = 12
    c.train.objective = dict(name='toy_preferences.preference', beta=0.5)
    with c.train.data.unlocked():
        c.train.data.form = 'preference'
    c.evaluation.enabled = False
    return c
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """`config(**overrides)` loads a small run on pairs of a right and a wrong sum."""
    rows = [{'prompt': f'{i}+1=', 'chosen': f'#{i + 1}', 'rejected': f'#{i + 2}'} for i in range(8)]
    (tmp_path / 'pairs.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (tmp_path / 'toy_preferences.py').write_text(OBJECTIVE)
    (tmp_path / 'pairs.py').write_text(
        CONFIG.replace('{path!r}', repr(str(tmp_path / 'pairs.jsonl')))
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(**overrides):
        pairs = [(key.replace('__', '.'), str(value)) for key, value in overrides.items()]
        loaded = shrink(
            configs.load(str(tmp_path / 'pairs.py'), pairs),
            [pair for pair in pairs if not pair[0].endswith('.name')],
        )
        with loaded.unlocked():
            loaded.train.steps = 12
        return loaded

    return load


def test_a_run_on_preferences(config, tmp_path):
    run(config(), tmp_path / 'work')
    records = [
        record for record in metrics.read(tmp_path / 'work' / 'metrics.jsonl') if 'loss' in record
    ]
    assert len(records) == 12 and all(record['chosen'] == 1 for record in records)
    assert (
        records[-1]['rewards/margins'] > records[0]['rewards/margins'] + 0.5
        and records[-1]['loss'] < records[0]['loss']
    )
    # 4 examples a step, 2 rows each: 3 told and 2 or 3 said tokens, EOS among them.
    assert 4 * 2 * 6 <= records[0]['num_tokens'] <= 4 * 2 * 8


def test_objectives_of_demonstrations_do_not_learn_rejected_answers(config, tmp_path):
    for name in ('nll', 'clipped_policy_gradient', 'toy_preferences.margin_blind'):
        with pytest.raises(
            UserError,
            match=f'config.train: data.form is "preference", but the objective {name} reads '
            'demonstration only',
        ):
            run(config(train__objective__name=name), tmp_path / name)
    with pytest.raises(
        UserError,
        match='config.train: data.form is "demonstration", but the objective .* reads preference '
        'only',
    ):
        run(config(train__data__form='demonstration'), tmp_path / 'demonstration')


def test_micro_batches_do_not_tear_pairs(config, tmp_path):
    for accumulation in (1, 2):
        run(config(train__accumulation=accumulation), tmp_path / str(accumulation))
    whole, split = (metrics.read(tmp_path / name / 'metrics.jsonl') for name in ('1', '2'))
    for a, b in zip(whole, split, strict=True):
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-4) and b['chosen'] == 1
