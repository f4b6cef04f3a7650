"""Ratios and rewards that float32 does not hold: against their definitions in float64, with what
bounds them written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.methods.advantages import group_relative
from reasonjax.methods.objectives import clipped_policy_gradient, nll
from reasonjax.methods.objectives.correction import MODES, importance_weights
from reasonjax.methods.objectives.sums import LARGEST, bounded_exp, bounded_expm1
from reasonjax.model.logprobs import Scored
from reasonjax.training import host_step

KEY = jax.random.key(0)
# From what underflows to what overflows, the bound and both sides of it included.
APART = np.array(
    [-1e30, -1e4, -104, -88, -1, -0.1, 0, 0.1, 1, 39, LARGEST, 41, 60, 88, 89, 100, 1e4, 1e30],
    np.float32,
)
T = len(APART)
ADVANTAGES = np.array([0.0, 1.0, -1.0, 0.5], np.float32)
B = len(ADVANTAGES)


@functools.cache
def compiled(**knobs):
    def loss(apart, batch):
        scored = Scored(apart, jnp.zeros((B, T)), jnp.zeros((B, T), bool))
        return clipped_policy_gradient(lambda _: scored, batch, KEY, **knobs)[0]

    return jax.jit(jax.value_and_grad(loss))


def make_batch(**fields) -> dict:
    weights = np.ones((B, T), np.float32)
    zeros = np.zeros((B, T), np.float32)
    totals = {
        'step_weight': np.float32(B * T),
        'step_rows': np.float32(B),
        'step_micro': np.float32(1),
    }
    return {'weights': weights, 'advantage': ADVANTAGES, 'logprob_old': zeros} | totals | fields


def bounded(x):
    """exp in float64, constant beyond the bound; its slope is its value."""
    return np.exp(np.minimum(np.asarray(x, np.float64), LARGEST))


def surrogate(ratio, advantage):
    """-min(w A, clip(w, 0.8, 1.2) A), and its slope by log w."""
    clipped = np.clip(ratio, 0.8, 1.2)
    inside = ratio * advantage < clipped * advantage
    return -np.minimum(ratio * advantage, clipped * advantage), -np.where(
        inside | (ratio == clipped), ratio * advantage, 0
    )


@pytest.mark.parametrize('shift', [0.0, -1.5, 3e5])
def test_token_ratios(shift):
    apart = np.broadcast_to(APART, (B, T)) + np.float32(shift)
    value, gradient = compiled()(apart, make_batch())
    terms, slopes = surrogate(bounded(apart), ADVANTAGES[:, None].astype(np.float64))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    np.testing.assert_allclose(value, terms.sum() / (B * T), rtol=1e-5)
    np.testing.assert_allclose(gradient, slopes / (B * T), rtol=1e-5, atol=1e-30)
    np.testing.assert_array_equal(gradient[0], 0)


@pytest.mark.parametrize('apart', APART)
def test_sequence_ratios(apart):
    rows = np.full((B, T), apart, np.float32)
    value, gradient = compiled(importance_sampling_level='sequence', loss_type='grpo')(
        rows, make_batch()
    )
    terms, slopes = surrogate(bounded(rows), ADVANTAGES[:, None].astype(np.float64))
    np.testing.assert_allclose(value, terms.mean(), rtol=2e-5, atol=1e-30)
    np.testing.assert_allclose(gradient, slopes / (B * T), rtol=2e-5, atol=1e-30)


@pytest.mark.parametrize('beta', [0.1, 2.0])
def test_the_kl_estimate(beta):
    """No ratio differs from 1, and advantages are 0: what is left is beta (exp(d) - d - 1), d = log
    p_ref - log p."""
    # Without the two numbers beside which all others are lost.
    d = np.broadcast_to(np.where(np.abs(APART) < 1e9, APART, 0), (B, T))
    batch = make_batch(advantage=np.zeros(B, np.float32), logprob_ref=d.astype(np.float32))
    value, gradient = compiled(beta=beta)(np.zeros((B, T), np.float32), batch)
    d = d.astype(np.float64)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    np.testing.assert_allclose(value, beta * (bounded(d) - 1 - d).mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, beta * (1 - bounded(d)) / (B * T), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('clip_max', [None, 3.0])
@pytest.mark.parametrize('apart', APART)
def test_weights_of_stale_samples(mode, clip_max, apart):
    """What was sampled with almost no chance, or with much more than now; a row is one token, so
    that both levels agree."""
    batch = {
        'weights': np.ones((2, 1), np.float32),
        'logprob_sampled': np.full((2, 1), -apart),
        'staleness': np.array([1, 0], np.float32),
    }
    weight, metrics = importance_weights(
        batch, jnp.zeros((2, 1)), which='stale', mode=mode, clip_max=clip_max, clip_min=None
    )
    wanted = bounded(apart)
    if clip_max is not None:
        wanted = (
            min(wanted, clip_max) if mode.endswith('truncate') else wanted * (wanted <= clip_max)
        )
    np.testing.assert_allclose(weight[:, 0], [wanted, 1], rtol=1e-5, atol=1e-37)
    # Times an advantage of 0 it is 0.
    np.testing.assert_array_equal(weight * 0, 0)
    assert all(np.isfinite(metric.value()) for metric in metrics.values())


def test_a_sequence_of_many_unlikely_tokens_has_a_finite_weight():
    batch = {
        'weights': np.ones((1, 500), np.float32),
        'logprob_sampled': np.full((1, 500), -3.0, np.float32),
        'staleness': np.ones(1),
    }
    weight, _ = importance_weights(
        batch,
        jnp.zeros((1, 500)),
        which='stale',
        mode='sequence_truncate',
        clip_max=None,
        clip_min=None,
    )
    np.testing.assert_allclose(weight, np.exp(LARGEST), rtol=1e-5)


@pytest.mark.parametrize(('ours', 'plain'), [(bounded_exp, jnp.exp), (bounded_expm1, jnp.expm1)])
def test_ordinary_values_are_those_without_a_bound_bit_for_bit(ours, plain):
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.normal(size=500), rng.uniform(-100, LARGEST, 500), [0.0, -0.0, LARGEST, 1e-8, -1e-8]]
    ).astype(np.float32)

    def both(function):
        return jax.jit(
            lambda x: (
                function(x),
                jax.vmap(jax.grad(function))(x),
                jax.jvp(function, (x,), (x + 1,))[1],
            )
        )(x)

    for a, b in zip(both(ours), both(plain), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    def loss(logprob):
        scored = Scored(logprob, jnp.ones((B, T)), jnp.ones((B, T), bool))
        return nll(
            lambda _: scored, {'weights': jnp.zeros((B, T)), 'step_weight': jnp.float32(0)}, KEY
        )[0]

    value, gradient = jax.value_and_grad(loss)(jnp.full((B, T), -2.0))
    assert value == 0 and not np.asarray(gradient).any()


REWARDS = np.array([[0.0, 1.0, 1.0, -2.5], [0.5, 0.5, 0.5, 0.5], [3.0, 0.0, 0.0, 0.0]], np.float32)


@pytest.mark.parametrize('scale', ['group', 'batch'])
@pytest.mark.parametrize('size', [1e6, 1e14, 1e19, 1e25, 1e36])
def test_rewards_of_any_size_give_the_same_advantages(scale, size):
    valid = np.array([[True] * 4, [True] * 4, [True, True, False, True]])
    knobs = dict(scale_rewards=scale, epsilon=1e-30)
    wanted, _ = group_relative(REWARDS, valid, **knobs)
    found, metrics = group_relative(REWARDS * np.float32(size), valid, **knobs)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.abs(found).max() > 1 and all(
        np.isfinite(metric.value()) for metric in metrics.values()
    )


@pytest.mark.parametrize('reward', [1e38, -1e38, 1e200])
def test_rewards_that_float32_does_not_hold_are_refused(reward):
    advantages = host_step._on_host(group_relative, 'grpo')
    advantages(np.array([[1e36, 0.0], [np.nan, 1.0]]))
    with pytest.raises(
        UserError, match=rf'stage grpo: a total reward of {reward:g}'.replace('+', r'\+')
    ):
        advantages(np.array([[reward, 0.0], [np.nan, 1.0]]))
