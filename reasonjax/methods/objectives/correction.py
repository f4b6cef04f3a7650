"""Weights for samples that another policy drew: truncated or masked importance sampling."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from reasonjax import reduce
from reasonjax.errors import UserError, check_choice
from reasonjax.methods.objectives.sums import bounded_exp, row_sums

WHICH = ('none', 'stale', 'always')
MODES = ('token_truncate', 'token_mask', 'sequence_truncate', 'sequence_mask')


def importance_weights(
    batch: Mapping[str, jax.Array],
    old_BxT: jax.Array,
    *,
    which: str,
    mode: str,
    clip_max: float | None,
    clip_min: float | None,
) -> tuple[jax.Array | None, dict]:
    """Computes how much likelier each token was at the start of the step than when it was sampled,
    kept within bounds.

        ratio   r = exp(log p_old - log p_sampled) of each token, or of the row: exp(sum_t(log p_old - log p_sampled))
        weight  *_truncate  clip(r, clip_min, clip_max)
                *_mask      r where clip_min <= r <= clip_max, else 0

    Beyond 40 nats exp stays constant (`sums.bounded_exp`): an approximation that only shows without
    `clip_max`.

    These are TRL's `vllm_importance_sampling_{mode,clip_max,clip_min}`; token_truncate is truncated
    importance sampling ("Your Efficient RL Framework Secretly Brings You Off-Policy RL Training",
    2025).

    Args:
      batch: `weights` [B, T], `logprob_sampled` [B, T] and `staleness` [B], how many steps ago a
        row was sampled.
      old_BxT: log-probs of the policy at the start of the step; no gradient flows through them.
      which: 'none'; 'stale': rows of staleness > 0, if the batch knows any staleness (the others
        have weight exactly 1); 'always': all rows, for samplers that compute in another precision,
        say.
      mode: see above.
      clip_max: upper bound, at least 1; None is infinite.
      clip_min: lower bound, at most 1; None is none.

    Returns:
      [B, T] (a row's own weight is repeated), or None where nothing is to be corrected; and
      metrics: `sampling/importance_sampling_ratio/{min,mean,max}` of the weights, over tokens (in
      sequence modes over rows), and `sampling/importance_sampling_ratio/clip_ratio`, the share of
      weights whose ratio was out of bounds.

    Raises:
      UserError: an unknown choice, bounds that leave out 1, or no `logprob_sampled`.
    """
    check(which=which, mode=mode, clip_max=clip_max, clip_min=clip_min)
    if which == 'none' or (which == 'stale' and 'staleness' not in batch):
        return None, {}
    if 'logprob_sampled' not in batch:
        raise UserError(
            'clipped_policy_gradient: importance_sampling_correction needs logprob_sampled, which '
            'is not in the batch.'
        )
    weights_BxT = batch['weights']
    target_BxT = weights_BxT > 0
    # Masked before it is exponentiated: log-probs mean nothing at positions that do not count.
    log_ratio = jnp.where(target_BxT, jax.lax.stop_gradient(old_BxT) - batch['logprob_sampled'], 0)
    counts, of_rows = weights_BxT, mode.startswith('sequence')
    if of_rows:
        log_ratio = row_sums(log_ratio, target_BxT.astype(jnp.float32))[:, None]
        counts = target_BxT.any(1, keepdims=True).astype(jnp.float32)
    if which == 'stale':
        log_ratio = jnp.where(batch['staleness'][:, None] > 0, log_ratio, 0)
    ratio = bounded_exp(log_ratio)
    low, high = 0.0 if clip_min is None else clip_min, jnp.inf if clip_max is None else clip_max
    outside = (ratio < low) | (ratio > high)
    weight = (
        jnp.clip(ratio, low, high) if mode.endswith('truncate') else jnp.where(outside, 0, ratio)
    )
    name, counted = 'sampling/importance_sampling_ratio', counts > 0
    metrics = {
        f'{name}/min': reduce.Min(jnp.where(counted, weight, jnp.inf).min()),
        f'{name}/mean': reduce.mean(weight, counts),
        f'{name}/max': reduce.Max(jnp.where(counted, weight, -jnp.inf).max()),
        f'{name}/clip_ratio': reduce.mean(outside, counts),
    }
    return jnp.broadcast_to(weight, weights_BxT.shape), metrics


def check(*, which: str, mode: str, clip_max: float | None, clip_min: float | None) -> None:
    """Raises UserError where the knobs cannot work."""
    for knob, value, choices in (('correction', which, WHICH), ('mode', mode, MODES)):
        check_choice(
            f'clipped_policy_gradient: unknown importance_sampling_{knob} "{value}"', value, choices
        )
    for knob, value, wrong in (
        ('clip_max', clip_max, clip_max is not None and clip_max < 1),
        ('clip_min', clip_min, clip_min is not None and not 0 <= clip_min <= 1),
    ):
        if wrong:
            wanted = 'at least 1' if knob == 'clip_max' else 'from 0 to 1'
            raise UserError(
                f'clipped_policy_gradient: importance_sampling_{knob}={value}: must be {wanted}: 1 '
                'is the ratio of a fresh sample.'
            )
