"""Group advantages against a float64 loop over the definition, and the cases where nothing can be
learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasonjax import reduce
from reasonjax.errors import UserError
from reasonjax.methods.advantages import group_relative


def deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5


def oracle(rewards: np.ndarray, valid: np.ndarray, scale: str, epsilon: float) -> np.ndarray:
    everything = [float(r) for r in rewards[valid]]
    advantage = np.zeros(rewards.shape)
    for p in range(len(rewards)):
        own = [float(r) for r in rewards[p][valid[p]]]
        if len(own) < 2:
            continue
        divisor = {'group': deviation(own), 'batch': deviation(everything)}.get(scale)
        for g in np.flatnonzero(valid[p]):
            advantage[p, g] = float(rewards[p, g]) - sum(own) / len(own)
            if divisor is not None:
                advantage[p, g] /= divisor + epsilon
    return advantage


def make(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of six prompts; some invalid (nan), one prompt with one valid sample, one with none,
    one with all equal."""
    rng = np.random.default_rng(seed)
    rewards = rng.choice([0.0, 0.1, 1.0, -2.5], (6, 5)).astype(np.float32)
    valid = rng.random((6, 5)) < 0.8
    valid[1] = [False, True, False, False, False]
    valid[2] = False
    rewards[3] = 0.1
    return np.where(valid, rewards, np.nan), valid


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('scale', ['group', 'batch', 'none'])
def test_advantages_equal_the_definition(scale: str, seed: int):
    rewards, valid = make(seed)
    advantage, _ = jax.jit(lambda r, v: group_relative(r, v, scale_rewards=scale, epsilon=1e-3))(
        rewards, valid
    )
    assert advantage.dtype == jnp.float32
    np.testing.assert_allclose(advantage, oracle(rewards, valid, scale, 1e-3), rtol=1e-5, atol=1e-6)
    assert not np.any(np.asarray(advantage)[~valid])


def test_metrics():
    rewards, valid = make()
    _, metrics = jax.jit(group_relative)(rewards, valid)
    values = reduce.values(metrics)
    groups = [rewards[p][valid[p]].astype(np.float64) for p in range(6)]
    scored = [g for g in groups if len(g) >= 2]
    assert len(scored) == 4
    np.testing.assert_allclose(values['reward'], np.concatenate(groups).mean(), rtol=1e-6)
    np.testing.assert_allclose(
        values['reward_std'], np.mean([g.std(ddof=1) for g in scored]), rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(
        values['frac_reward_zero_std'], sum(np.ptp(g) == 0 for g in scored) / 6, rtol=1e-6
    )
    np.testing.assert_allclose(values['frac_group_unscored'], 2 / 6, rtol=1e-6)


@pytest.mark.parametrize('scale', ['group', 'batch', 'none'])
def test_equal_rewards_give_exactly_zero(scale: str):
    """In float32 the mean of 0.1 thrice is not 0.1; over a deviation of 0 + 1e-4 that would be an
    advantage."""
    rewards = np.repeat(np.float32([0.1, 1 / 3, 1e6 + 0.7, -0.7, 0.0, 1e-30]), 7).reshape(6, 7)
    rewards = np.concatenate([rewards, np.float32([[0, 1, 0, 0, 0, 0, 0]])])
    valid = np.ones(rewards.shape, bool)
    valid[:, 3] = False
    rewards[:, 3] = 9.0
    assert np.any(rewards[:3].mean(1, dtype=np.float32) != rewards[:3, 0])
    advantage, metrics = jax.jit(lambda r, v: group_relative(r, v, scale_rewards=scale))(
        rewards, valid
    )
    np.testing.assert_array_equal(advantage[:6], np.zeros((6, 7)))
    assert advantage[6, 1] > 0
    np.testing.assert_allclose(reduce.values(metrics)['frac_reward_zero_std'], 6 / 7, rtol=1e-6)


def test_tiny_differences_are_not_called_equal():
    rewards = jnp.array([[0.0, 1e-30]])
    _, metrics = jax.jit(group_relative)(rewards, jnp.ones((1, 2), bool))
    assert reduce.values(metrics)['frac_reward_zero_std'] == 0


def test_neither_a_shift_of_the_rewards_nor_the_order_of_the_samples_matters():
    rewards, valid = make()
    plain, _ = group_relative(jnp.asarray(rewards), jnp.asarray(valid))
    shifted, _ = group_relative(jnp.asarray(rewards) + 4.0, jnp.asarray(valid))
    np.testing.assert_allclose(plain, shifted, rtol=1e-4, atol=1e-5)
    reversed_, _ = group_relative(
        jnp.asarray(rewards[:, ::-1].copy()), jnp.asarray(valid[:, ::-1].copy())
    )
    np.testing.assert_allclose(plain, reversed_[:, ::-1], rtol=1e-5, atol=1e-6)


def test_errors():
    with pytest.raises(UserError, match='num_generations is 1'):
        group_relative(jnp.zeros((4, 1)), jnp.ones((4, 1), bool))
    with pytest.raises(UserError, match='scale_rewards "groups".*mean "group".*batch, group, none'):
        group_relative(jnp.zeros((4, 2)), jnp.ones((4, 2), bool), scale_rewards='groups')
