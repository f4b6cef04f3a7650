"""The clipped policy gradient of GRPO and its relatives."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from reasonjax import reduce
from reasonjax.bounds import INFINITY, Fraction, NonNegative, NonNegativeOrInfinite, OneOf, Real
from reasonjax.errors import UserError, check_choice
from reasonjax.methods.objectives.correction import MODES, WHICH, importance_weights
from reasonjax.methods.objectives.sums import bounded_exp, bounded_expm1, or_one, row_sums

LOSS_TYPES = ('grpo', 'dapo', 'bnpo', 'dr_grpo')
LEVELS = ('token', 'sequence')


def clipped_policy_gradient(
    score: Callable,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    loss_type: OneOf(*LOSS_TYPES) = 'dapo',
    epsilon: NonNegativeOrInfinite = 0.2,
    epsilon_high: NonNegativeOrInfinite | None = None,
    beta: NonNegative = 0.0,
    importance_sampling_level: OneOf(*LEVELS) = 'token',
    importance_sampling_correction: OneOf(*WHICH) = 'stale',
    importance_sampling_mode: OneOf(*MODES) = 'token_truncate',
    importance_sampling_clip_max: Real(1, INFINITY) | None = 3.0,
    importance_sampling_clip_min: Fraction | None = None,
) -> tuple[jax.Array, dict]:
    """Computes the clipped surrogate with token or sequence ratios, four normalisations, off-policy
    weights and an optional KL penalty.

    With m = `weights`, A = `advantage` and s = log p - log p_old per token (temperature-scaled
    log-probs throughout):

        ratio  w = exp(s), or exp(sum(m s) / sum(m)) of the row where
               `importance_sampling_level` is 'sequence';
        term   l = -c min(w A, clip(w, 1 - epsilon, 1 + epsilon_high) A) + beta (exp(d) - d - 1),
               d = log p_ref - log p,
               c = 1, or the weight of a sample that an earlier policy drew
               (`correction.importance_weights`);
        loss   grpo     mean over rows of sum_t(m l) / sum_t(m)
               dapo     sum(m l) / sum(m), both over the whole optimiser step
               bnpo     sum(m l) / sum(m) of the micro-batch, then the mean over micro-batches
                        (depends on their split)
               dr_grpo  sum(m l) / (rows x max_completion_length)

    Where s, its mean or d is above 40 nats, exp stays constant (`sums.bounded_exp`): an
    approximation, of ratios that no two policies of one run have.

    These are the definitions of TRL's GRPOTrainer, where m is a mask. A row without weights adds
    nothing, but counts as a row.
    Papers: GRPO arXiv 2402.03300, DAPO 2503.14476, Dr. GRPO 2503.20783; GSPO 2507.18071 is
    'sequence' with 'grpo'; the KL estimator is Schulman's k3 ("Approximating KL divergence", 2020).

    Args:
      score: `score(batch) -> Scored`.
      batch: one sequence a row: `weights` [B, T], `advantage` [B] or [B, T], optionally
        `logprob_old` [B, T] (absent: the current policy, so that every ratio is 1), `logprob_ref`
        [B, T] (asked for by `clipped_policy_gradient.needs`; its KL is reported even where beta
        is 0), `logprob_sampled` [B, T] (what the sampler recorded), `staleness` [B] (how many steps
        ago; absent: every row was sampled from the policy at the start of this step), and the
        scalars `step_weight`, `step_rows`, `step_micro` and, for dr_grpo, `max_completion_length`.
      key: unused.
      loss_type: 'grpo', 'dapo', 'bnpo' or 'dr_grpo'.
      epsilon: how far below 1 a ratio may fall before a negative advantage stops pushing it; inf
        never clips.
      epsilon_high: how far above 1 before a positive advantage stops; None for the value of
        `epsilon`.
      beta: weight of the KL penalty; neutral 0.
      importance_sampling_level: 'token' or 'sequence'.
      importance_sampling_correction: rows that are weighed by p_old / p_sampled: 'stale', 'always'
        or 'none'.
      importance_sampling_mode: how they are weighed; see `correction`. TRL calls these three the
        same after `vllm_`; its mode is 'sequence_mask' unless set otherwise.
      importance_sampling_clip_max: upper bound of the weight.
      importance_sampling_clip_min: lower bound of the weight.

    Returns:
      The contribution of this micro-batch, a float32 scalar, and metrics: `policy_loss`; `entropy`
      and `kl`, means over tokens, in nats; `clip_ratio/{low,high,region}_mean`, the share of tokens
      (sequences, at that level) whose ratio is beyond the bound that applies to its advantage;
      `clip_ratio/low_min` and `clip_ratio/high_max`, the extremes of that share among sequences.
      Rows without weights are no sequences here. `sampling/sampling_logp_difference/{mean,max}` say
      how far the sampler's log-probs are from the current policy's; those of `correction` say how
      rows were weighed.

    Raises:
      UserError: unknown loss type or level, or a field that the knobs need is not in the batch.
    """
    del key
    _choose('loss_type', loss_type, LOSS_TYPES)
    _choose('importance_sampling_level', importance_sampling_level, LEVELS)
    epsilon_high = epsilon if epsilon_high is None else epsilon_high
    scored, weights_BxT = score(batch), batch['weights']
    target_BxT = weights_BxT > 0
    length_B = weights_BxT.sum(1)

    # Differences are masked before they are exponentiated: an infinity at a position that does not
    # count would reach the gradient as 0 * inf.
    logprob_BxT = scored.logprob
    old_BxT = batch.get('logprob_old', jax.lax.stop_gradient(logprob_BxT))
    log_ratio = jnp.where(target_BxT, logprob_BxT - old_BxT, 0)
    if importance_sampling_level == 'sequence':
        log_ratio = (row_sums(log_ratio, weights_BxT) / or_one(length_B))[:, None]
    ratio = bounded_exp(log_ratio)
    advantage = batch['advantage']
    advantage_BxT = jnp.where(
        target_BxT, advantage[:, None] if advantage.ndim == 1 else advantage, 0
    )
    clipped = jnp.clip(ratio, 1 - epsilon, 1 + epsilon_high)
    term_BxT = -jnp.minimum(ratio * advantage_BxT, clipped * advantage_BxT)
    off_policy_BxT, metrics = importance_weights(
        batch,
        old_BxT,
        which=importance_sampling_correction,
        mode=importance_sampling_mode,
        clip_max=importance_sampling_clip_max,
        clip_min=importance_sampling_clip_min,
    )
    if off_policy_BxT is not None:
        term_BxT = term_BxT * off_policy_BxT

    metrics = {'entropy': reduce.mean(scored.entropy, weights_BxT)} | metrics
    if beta and 'logprob_ref' not in batch:
        raise UserError(
            f'clipped_policy_gradient: beta is {beta}, but the batch has no reference log-probs '
            '(logprob_ref).'
        )
    if 'logprob_ref' in batch:
        difference_BxT = jnp.where(target_BxT, batch['logprob_ref'] - logprob_BxT, 0)
        kl_BxT = bounded_expm1(difference_BxT) - difference_BxT
        metrics['kl'] = reduce.mean(kl_BxT, weights_BxT)
        if beta:
            term_BxT = term_BxT + beta * kl_BxT

    loss = _reduce(loss_type, row_sums(term_BxT, weights_BxT), length_B, batch)
    low_BxT = (ratio < 1 - epsilon) & (advantage_BxT < 0)
    high_BxT = (ratio > 1 + epsilon_high) & (advantage_BxT > 0)
    metrics |= _clip_metrics(low_BxT, high_BxT, weights_BxT, importance_sampling_level)
    if 'logprob_sampled' in batch:
        apart_BxT = jnp.where(target_BxT, jnp.abs(logprob_BxT - batch['logprob_sampled']), 0)
        metrics['sampling/sampling_logp_difference/mean'] = reduce.mean(apart_BxT, weights_BxT)
        metrics['sampling/sampling_logp_difference/max'] = reduce.Max(apart_BxT.max())
    return loss, metrics | {'policy_loss': reduce.Sum(loss)}


def _needs(knobs: Mapping) -> frozenset[str]:
    reference = {'logprob_ref'} if knobs['beta'] else set()
    # The sampler's own do for 'stale': rows of earlier steps always come with those of the policy
    # at the start of the step.
    return frozenset(
        reference
        | ({'logprob_old'} if knobs['importance_sampling_correction'] == 'always' else set())
    )


clipped_policy_gradient.needs = _needs


def _choose(knob: str, value: str, choices: tuple[str, ...]) -> None:
    check_choice(f'clipped_policy_gradient: unknown {knob} "{value}"', value, choices)


def _reduce(
    loss_type: str, sums_B: jax.Array, length_B: jax.Array, batch: Mapping[str, jax.Array]
) -> jax.Array:
    """Weighs the rows' sums of terms so that contributions add up to the loss of the step."""
    if loss_type == 'grpo':
        return jnp.sum(sums_B / or_one(length_B)) / batch['step_rows']
    if loss_type == 'dapo':
        return sums_B.sum() / or_one(batch['step_weight'])
    if loss_type == 'bnpo':
        return sums_B.sum() / or_one(length_B.sum()) / batch['step_micro']
    if 'max_completion_length' not in batch:
        raise UserError(
            'clipped_policy_gradient: loss_type "dr_grpo" needs max_completion_length, which is '
            'not in the batch.'
        )
    return sums_B.sum() / (batch['step_rows'] * batch['max_completion_length'])


def _clip_metrics(
    low_BxT: jax.Array, high_BxT: jax.Array, weights_BxT: jax.Array, level: str
) -> dict:
    length_B = weights_BxT.sum(1)
    full_B = length_B > 0

    def share(hit_BxT: jax.Array) -> jax.Array:
        return row_sums(hit_BxT.astype(jnp.float32), weights_BxT) / or_one(length_B)

    def overall(hit_BxT: jax.Array) -> reduce.Mean:
        if level == 'sequence':
            return reduce.mean(share(hit_BxT), full_B.astype(jnp.float32))
        return reduce.mean(hit_BxT, weights_BxT)

    return {
        'clip_ratio/low_mean': overall(low_BxT),
        'clip_ratio/low_min': reduce.Min(jnp.where(full_B, share(low_BxT), jnp.inf).min()),
        'clip_ratio/high_mean': overall(high_BxT),
        'clip_ratio/high_max': reduce.Max(jnp.where(full_B, share(high_BxT), -jnp.inf).max()),
        'clip_ratio/region_mean': overall(low_BxT | high_BxT),
    }
