"""The policy objective against its definitions, written out as loops in float64; neutral knobs;
what must not matter."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasonjax import config, reduce
from reasonjax.errors import UserError
from reasonjax.methods.advantages import group_relative
from reasonjax.methods.objectives import clipped_policy_gradient
from reasonjax.model.logprobs import Scored

B, T, LIMIT = 6, 9, 8
KEY = jax.random.key(0)
DEFAULTS = {
    'loss_type': 'dapo',
    'epsilon': 0.2,
    'epsilon_high': 0.3,
    'beta': 0.0,
    'importance_sampling_level': 'token',
}
LOSS_TYPES = ('grpo', 'dapo', 'bnpo', 'dr_grpo')
LEVELS = ('token', 'sequence')
PER_TOKEN = ('weights', 'logprob_old', 'logprob_ref', 'entropy')


def make_batch(fractional: bool = True) -> tuple[np.ndarray, dict]:
    """Log-probs of the current policy, and a batch: rows of different lengths, gaps, one row masked
    out, one advantage 0."""
    rng = np.random.default_rng(3)
    logprob = -rng.exponential(size=(B, T)).astype(np.float32)
    weights = (rng.random((B, T)) < 0.8).astype(np.float32)
    if fractional:
        weights *= rng.choice([0.2, 0.5, 1.0, 2.0], (B, T)).astype(np.float32)
    weights[:, :2] = 0
    weights[2] = 0
    weights[4, 5:] = 0
    weights[5] = 0
    weights[5, 3] = 0.4 if fractional else 1.0
    # Rows 0 and 1 drift beyond the bounds as sequences, the others do not; tokens do on their own.
    drift = np.array([0.5, -0.5, 0.3, 0.3, 0.05, -0.05], np.float32)[:, None]
    batch = {
        'weights': weights,
        'advantage': np.array([1.2, -0.7, 0.4, 0.0, -1.5, 0.6], np.float32),
        'logprob_old': logprob - drift + 0.3 * rng.normal(size=(B, T)).astype(np.float32),
        'logprob_ref': logprob + 0.3 * rng.normal(size=(B, T)).astype(np.float32),
        'entropy': rng.exponential(size=(B, T)).astype(np.float32),
        'row': np.arange(B),
    }
    return logprob, batch


def totals(batch: dict, micro: int = 1) -> dict:
    return {
        'step_weight': np.float32(batch['weights'].sum()),
        'step_rows': np.float32(len(batch['weights'])),
        'step_micro': np.float32(micro),
        'max_completion_length': np.float32(LIMIT),
    }


@functools.cache
def compiled(**knobs) -> Callable:
    def loss(table: jax.Array, batch: dict) -> tuple:
        def score(b: dict) -> Scored:
            return Scored(table[b['row']], b['entropy'], jnp.zeros(b['entropy'].shape, bool))

        return clipped_policy_gradient(score, batch, KEY, **knobs)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def run(logprob: np.ndarray, batch: dict, **knobs) -> tuple[jax.Array, jax.Array, dict]:
    """Returns loss, gradient with respect to the log-probs, metrics."""
    (value, metrics), gradient = compiled(**(DEFAULTS | knobs))(jnp.asarray(logprob), batch)
    return value, gradient, metrics


def oracle(
    logprob: np.ndarray,
    batch: dict,
    loss_type: str,
    level: str,
    low: float,
    high: float,
    beta: float,
) -> float:
    """The loss of one undivided batch, token by token in Python floats."""
    rows, total, weight = [], 0.0, 0.0
    for b in range(len(logprob)):
        kept = [t for t in range(logprob.shape[1]) if batch['weights'][b, t] > 0]
        m = {t: float(batch['weights'][b, t]) for t in kept}
        s = {t: float(logprob[b, t]) - float(batch['logprob_old'][b, t]) for t in kept}
        length = sum(m.values())
        if level == 'sequence' and kept:
            average = sum(m[t] * s[t] for t in kept) / length
            s = {t: average for t in kept}
        row = 0.0
        for t in kept:
            A = float(
                batch['advantage'][b] if batch['advantage'].ndim == 1 else batch['advantage'][b, t]
            )
            w = np.exp(s[t])
            bounded = min(max(w, 1 - low), 1 + high)
            d = float(batch['logprob_ref'][b, t]) - float(logprob[b, t])
            row += m[t] * (-min(w * A, bounded * A) + beta * (np.exp(d) - d - 1))
        rows.append(row / length if kept else 0.0)
        total += row
        weight += length
    if loss_type == 'grpo':
        return sum(rows) / len(rows)
    if loss_type == 'dr_grpo':
        return total / (len(rows) * LIMIT)
    return total / weight


def slope(logprob: np.ndarray, *arguments) -> np.ndarray:
    """Central differences of the oracle."""
    x, step = logprob.astype(np.float64), 1e-6
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (oracle(up, *arguments) - oracle(down, *arguments)) / (2 * step)
    return gradient


@pytest.mark.parametrize('fractional', [False, True])
@pytest.mark.parametrize('beta', [0.0, 0.3])
@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('loss_type', LOSS_TYPES)
def test_loss_and_gradient_equal_the_definitions(
    loss_type: str, level: str, beta: float, fractional: bool
):
    logprob, batch = make_batch(fractional)
    knobs = {'loss_type': loss_type, 'beta': beta, 'importance_sampling_level': level}
    loss, gradient, _ = run(logprob, batch | totals(batch), **knobs)
    arguments = (batch, loss_type, level, 0.2, 0.3, beta)
    np.testing.assert_allclose(loss, oracle(logprob, *arguments), rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(gradient, slope(logprob, *arguments), rtol=2e-5, atol=1e-7)


def test_advantages_may_differ_from_token_to_token():
    logprob, batch = make_batch()
    batch['advantage'] = np.random.default_rng(1).normal(size=(B, T)).astype(np.float32)
    for level in LEVELS:
        loss, gradient, _ = run(logprob, batch | totals(batch), importance_sampling_level=level)
        arguments = (batch, 'dapo', level, 0.2, 0.3, 0.0)
        np.testing.assert_allclose(loss, oracle(logprob, *arguments), rtol=2e-6)
        np.testing.assert_allclose(gradient, slope(logprob, *arguments), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize('loss_type', LOSS_TYPES)
def test_neutral_knobs(loss_type: str):
    logprob, batch = make_batch()
    batch |= totals(batch)
    plain = run(logprob, batch, loss_type=loss_type, epsilon_high=None)
    without = {k: v for k, v in batch.items() if k != 'logprob_ref'}
    for same in (
        run(logprob, batch, loss_type=loss_type, epsilon_high=0.2),
        run(logprob, without, loss_type=loss_type, epsilon_high=None),
    ):
        for a, b in zip(same[:2], plain[:2], strict=True):
            np.testing.assert_array_equal(a, b)

    def unclipped(table: jax.Array) -> jax.Array:
        m = batch['weights']
        terms = -jnp.exp(table - batch['logprob_old']) * batch['advantage'][:, None] * m
        rows = terms.sum(1)
        means = rows / jnp.where(m.sum(1) > 0, m.sum(1), 1)
        return {'grpo': means.mean(), 'dr_grpo': rows.sum() / (B * LIMIT)}.get(
            loss_type, rows.sum() / m.sum()
        )

    loss, gradient, metrics = run(
        logprob, batch, loss_type=loss_type, epsilon=float('inf'), epsilon_high=None
    )
    assert not np.allclose(loss, plain[0], rtol=1e-3)
    expected = jax.value_and_grad(unclipped)(jnp.asarray(logprob))
    np.testing.assert_allclose(loss, expected[0], rtol=2e-6)
    np.testing.assert_allclose(gradient, expected[1], rtol=2e-6, atol=1e-8)
    assert reduce.values(metrics)['clip_ratio/region_mean'] == 0


@pytest.mark.parametrize('level', LEVELS)
def test_on_policy_gradient_is_reinforce(level: str):
    logprob, batch = make_batch()
    batch |= totals(batch)
    advantage_weight = batch['advantage'][:, None] * batch['weights']
    absent = {k: v for k, v in batch.items() if k != 'logprob_old'}
    for current in (absent, batch | {'logprob_old': logprob}):
        loss, gradient, _ = run(logprob, current, importance_sampling_level=level)
        np.testing.assert_allclose(
            gradient, -advantage_weight / batch['step_weight'], rtol=3e-6, atol=1e-9
        )
        np.testing.assert_allclose(loss, -advantage_weight.sum() / batch['step_weight'], rtol=1e-6)


def test_gradient_of_the_expected_reward_of_an_enumerable_policy():
    """One row per action, weighted by its probability: the objective's gradient is that of minus
    the expected reward."""
    logits = jnp.array([0.3, -1.0, 0.8, 0.1])
    reward = jnp.array([1.0, 0.0, -0.5, 2.0])
    zeros = jnp.zeros((4, 2))
    weights = zeros.at[:, 1].set(jax.nn.softmax(logits))
    batch = {'weights': weights, 'advantage': reward, 'step_weight': 1.0}

    def loss(x: jax.Array) -> jax.Array:
        return clipped_policy_gradient(
            lambda _: Scored(zeros.at[:, 1].set(jax.nn.log_softmax(x)), zeros, zeros > 0),
            batch,
            KEY,
        )[0]

    expected = jax.grad(lambda x: -jnp.dot(jax.nn.softmax(x), reward))(logits)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(logits), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('loss_type', LOSS_TYPES)
def test_equal_rewards_in_each_group_give_exactly_no_gradient(loss_type: str):
    logprob, batch = make_batch()
    rewards = jnp.array([[0.1] * 3, [1 / 3] * 3])
    advantage, _ = group_relative(rewards, jnp.ones((2, 3), bool))
    loss, gradient, _ = run(
        logprob, batch | totals(batch) | {'advantage': advantage.reshape(-1)}, loss_type=loss_type
    )
    assert loss == 0
    np.testing.assert_array_equal(gradient, np.zeros((B, T)))


def test_equal_ratios_within_a_row_make_the_levels_agree():
    logprob, batch = make_batch()
    batch |= totals(batch)
    batch['logprob_old'] = logprob - np.linspace(-0.4, 0.4, B, dtype=np.float32)[:, None]
    for loss_type in LOSS_TYPES:
        token, sequence = (
            run(logprob, batch, loss_type=loss_type, importance_sampling_level=x) for x in LEVELS
        )
        np.testing.assert_allclose(token[0], sequence[0], rtol=1e-6)
        np.testing.assert_allclose(token[1].sum(1), sequence[1].sum(1), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(('loss_type', 'level'), itertools.product(LOSS_TYPES, LEVELS))
def test_micro_batches(loss_type: str, level: str):
    """Contributions, gradients and metrics add up to those of the undivided batch; bnpo is the mean
    of its parts."""
    logprob, batch = make_batch()
    knobs = {'loss_type': loss_type, 'importance_sampling_level': level, 'beta': 0.3}
    whole, whole_gradient, whole_metrics = run(logprob, batch | totals(batch), **knobs)
    split_matters = False
    for size in (2,) if level == 'token' else (1, 3):
        pieces = [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, B, size)]
        parts = [run(logprob, piece | totals(batch, len(pieces)), **knobs) for piece in pieces]
        loss, gradient = sum(p[0] for p in parts), sum(p[1] for p in parts)
        if loss_type == 'bnpo':
            alone = [run(logprob, piece | totals(piece), **knobs) for piece in pieces]
            np.testing.assert_allclose(loss, np.mean([p[0] for p in alone]), rtol=2e-6, atol=1e-7)
            np.testing.assert_allclose(
                gradient, np.mean([p[1] for p in alone], axis=0), rtol=2e-6, atol=1e-8
            )
            split_matters |= not np.allclose(loss, whole, rtol=1e-3)
        else:
            np.testing.assert_allclose(loss, whole, rtol=2e-6, atol=1e-7)
            np.testing.assert_allclose(gradient, whole_gradient, rtol=2e-6, atol=1e-8)
        combined = reduce.over(jax.tree.map(lambda *x: jnp.stack(x), *[p[2] for p in parts]))
        for name, value in reduce.values(combined).items():
            if not (name == 'policy_loss' and loss_type == 'bnpo'):
                np.testing.assert_allclose(
                    value, reduce.values(whole_metrics)[name], rtol=2e-6, atol=1e-7, err_msg=name
                )
    assert split_matters == (loss_type == 'bnpo')


@pytest.mark.parametrize('loss_type', LOSS_TYPES)
def test_padding_and_masked_tokens_are_not_seen(loss_type: str):
    logprob, batch = make_batch()
    knobs = {'loss_type': loss_type, 'importance_sampling_level': 'sequence', 'beta': 0.3}
    whole, whole_gradient, _ = run(logprob, batch | totals(batch), **knobs)
    widened = dict(batch)
    hidden = batch['weights'] == 0
    for name in PER_TOKEN:
        poison = 0.0 if name == 'weights' else -np.inf
        widened[name] = np.pad(
            np.where(hidden, poison, batch[name]), ((0, 0), (0, 3)), constant_values=poison
        )
    wide = np.pad(np.where(hidden, -np.inf, logprob), ((0, 0), (0, 3)), constant_values=-np.inf)
    loss, gradient, metrics = run(wide.astype(np.float32), widened | totals(batch), **knobs)
    np.testing.assert_allclose(loss, whole, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(
        gradient, np.pad(whole_gradient, ((0, 0), (0, 3))), rtol=2e-6, atol=1e-9
    )
    assert all(np.isfinite(v) for v in reduce.values(metrics).values())


def test_a_step_without_any_weight_has_loss_and_gradient_zero():
    logprob, batch = make_batch()
    batch['weights'] = np.zeros_like(batch['weights'])
    for loss_type in LOSS_TYPES:
        loss, gradient, _ = run(logprob, batch | totals(batch), loss_type=loss_type)
        assert loss == 0
        np.testing.assert_array_equal(gradient, np.zeros((B, T)))


@pytest.mark.parametrize('level', LEVELS)
def test_metrics(level: str):
    logprob, batch = make_batch()
    loss, _, metrics = run(
        logprob, batch | totals(batch), beta=0.3, importance_sampling_level=level
    )
    values = reduce.values(metrics)
    m = batch['weights'].astype(np.float64)
    ratio = np.exp(logprob.astype(np.float64) - batch['logprob_old'])
    full = m.sum(1) > 0
    if level == 'sequence':
        mean = (m * np.log(ratio)).sum(1)[full] / m.sum(1)[full]
        ratio[full] = np.exp(mean)[:, None]
    A = batch['advantage'][:, None]
    low, high = (ratio < 0.8) & (A < 0), (ratio > 1.3) & (A > 0)

    def average(x: np.ndarray) -> float:
        return shares(x).mean() if level == 'sequence' else (m * x).sum() / m.sum()

    def shares(x: np.ndarray) -> np.ndarray:
        return (m * x).sum(1)[full] / m.sum(1)[full]

    d = batch['logprob_ref'].astype(np.float64) - logprob
    expected = {
        'policy_loss': loss,
        'entropy': (m * batch['entropy']).sum() / m.sum(),
        'kl': (m * (np.exp(d) - d - 1)).sum() / m.sum(),
        'clip_ratio/low_mean': average(low),
        'clip_ratio/low_min': shares(low).min(),
        'clip_ratio/high_mean': average(high),
        'clip_ratio/high_max': shares(high).max(),
        'clip_ratio/region_mean': average(low | high),
    }
    assert average(low) > 0 and average(high) > 0
    assert set(values) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=5e-6, err_msg=name)


def test_the_defaults_are_those_of_trl():
    assert config.knobs(clipped_policy_gradient) == {
        'loss_type': 'dapo',
        'epsilon': 0.2,
        'epsilon_high': None,
        'beta': 0.0,
        'importance_sampling_level': 'token',
        # Of stale rows only, and truncated rather than masked: TRL corrects everything that vLLM
        # samples, by sequences.
        'importance_sampling_correction': 'stale',
        'importance_sampling_mode': 'token_truncate',
        'importance_sampling_clip_max': 3.0,
        'importance_sampling_clip_min': None,
    }


def test_kl_is_reported_without_being_paid_and_absent_without_reference():
    logprob, batch = make_batch()
    with_reference = run(logprob, batch | totals(batch))
    without = run(logprob, {k: v for k, v in (batch | totals(batch)).items() if k != 'logprob_ref'})
    assert with_reference[0] == without[0]
    assert set(with_reference[2]) - set(without[2]) == {'kl'}


def test_errors_name_the_nearest_choice():
    logprob, batch = make_batch()
    with pytest.raises(UserError, match='loss_type "dr-grpo".*mean "dr_grpo"'):
        run(logprob, batch | totals(batch), loss_type='dr-grpo')
    with pytest.raises(UserError, match='importance_sampling_level "sequences".*mean "sequence"'):
        run(logprob, batch | totals(batch), importance_sampling_level='sequences')
    missing = {
        k: v
        for k, v in (batch | totals(batch)).items()
        if k not in ('logprob_ref', 'max_completion_length')
    }
    with pytest.raises(UserError, match='beta is 0.1.*logprob_ref'):
        run(logprob, missing, beta=0.1)
    with pytest.raises(UserError, match='max_completion_length'):
        run(logprob, missing, loss_type='dr_grpo')


def test_distance_to_the_sampler_is_reported():
    logprob, batch = make_batch()
    scored = Scored(jnp.asarray(logprob), jnp.asarray(batch['entropy']), jnp.zeros((B, T), bool))
    moved = np.where(batch['weights'] > 0, 0.25 * np.arange(B)[:, None], 100.0).astype(np.float32)
    full = batch | totals(batch) | {'logprob_sampled': logprob + moved}
    values = reduce.values(clipped_policy_gradient(lambda _: scored, full, KEY)[1])
    weights = batch['weights'].astype(np.float64)
    np.testing.assert_allclose(
        values['sampling/sampling_logp_difference/mean'],
        (weights * moved).sum() / weights.sum(),
        rtol=1e-5,
    )
    assert values['sampling/sampling_logp_difference/max'] == pytest.approx(1.25, rel=1e-5)
