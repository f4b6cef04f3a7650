"""Advantages that compare the completions of one prompt."""

import jax
import jax.numpy as jnp

from reasonjax import reduce
from reasonjax.bounds import OneOf, PositiveFraction
from reasonjax.errors import UserError, check_choice

SCALES = ('group', 'batch', 'none')
LARGE = 1e15


def group_relative(
    rewards_PxG: jax.Array,
    valid_PxG: jax.Array,
    *,
    scale_rewards: OneOf(*SCALES) = 'group',
    epsilon: PositiveFraction = 1e-4,
) -> tuple[jax.Array, dict]:
    """Computes A = (r - mean of the prompt's valid rewards) / (std + epsilon), as GRPO does (arXiv
    2402.03300), in TRL's form.

    The standard deviation divides by n - 1 and ignores invalid samples. A prompt whose rewards are
    all equal gets advantages of exactly 0.

    Args:
      rewards_PxG: float; any value, nan included, where not valid.
      valid_PxG: bool; an invalid sample gets advantage 0 and enters no mean and no deviation.
      scale_rewards: 'group' divides by the deviation within the prompt, 'batch' by that of all
        valid rewards together (Lite PPO, arXiv 2508.08221), 'none' does not divide (Dr. GRPO, arXiv
        2503.20783).
      epsilon: added to the deviation, above 0.

    Returns:
      [P, G] float32, and metrics: `reward`, the mean of all valid ones; `reward_std`, the mean over
      prompts of the deviation within; `frac_reward_zero_std`, the share of prompts that teach
      nothing as all rewards are equal; `frac_group_unscored`, the share of those that teach nothing
      as fewer than two samples are valid.

    Raises:
      UserError: G < 2, or unknown `scale_rewards`.
    """
    check_choice(
        f'advantage group_relative: unknown scale_rewards "{scale_rewards}"', scale_rewards, SCALES
    )
    G = rewards_PxG.shape[1]
    if G < 2:
        raise UserError(
            f'advantage group_relative: num_generations is {G}; comparing completions of a prompt '
            'takes at least 2.'
        )
    rewards_PxG = jnp.asarray(rewards_PxG, jnp.float32)
    centred_PxG, std_Px1, spread_Px1 = _moments(rewards_PxG, valid_PxG, 1)
    advantage_PxG = centred_PxG
    if scale_rewards == 'group':
        advantage_PxG = centred_PxG / (std_Px1 + epsilon)
    elif scale_rewards == 'batch':
        advantage_PxG = centred_PxG / (_moments(rewards_PxG, valid_PxG, None)[1] + epsilon)

    scored_Px1 = jnp.sum(valid_PxG, axis=1, keepdims=True) >= 2
    zeros_PxG = jnp.where(valid_PxG, rewards_PxG, 0)
    metrics = {
        'reward': reduce.Mean(zeros_PxG.sum(), jnp.sum(valid_PxG, dtype=jnp.float32)),
        'reward_std': reduce.mean(std_Px1, scored_Px1.astype(jnp.float32)),
        'frac_reward_zero_std': reduce.mean(scored_Px1 & (spread_Px1 == 0)),
        'frac_group_unscored': reduce.mean(~scored_Px1),
    }
    return advantage_PxG, metrics


def _moments(
    rewards: jax.Array, valid: jax.Array, axis: int | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns rewards minus their mean (0 where invalid), their deviation, and largest minus
    smallest; axes kept."""
    smallest = jnp.min(rewards, axis=axis, keepdims=True, where=valid, initial=jnp.inf)
    # Counted from the smallest, equal rewards are exactly 0 and stay so; a mean of equal float32
    # numbers need not equal them.
    shifted = jnp.where(valid, rewards - smallest, 0)
    number = jnp.sum(valid, axis=axis, keepdims=True)
    mean = jnp.sum(shifted, axis=axis, keepdims=True) / jnp.maximum(number, 1)
    centred = jnp.where(valid, shifted - mean, 0)
    # Rewards whose squares float32 does not hold are scaled down for the deviation; others are
    # divided by 1.
    spread = jnp.max(shifted, axis=axis, keepdims=True)
    scale = jnp.where(spread > LARGE, spread, 1)
    variance = jnp.sum((centred / scale) ** 2, axis=axis, keepdims=True) / jnp.maximum(
        number - 1, 1
    )
    return centred, jnp.sqrt(variance) * scale, spread
