"""Likelihood of the tokens themselves."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from reasonjax import reduce
from reasonjax.methods.objectives.sums import or_one, row_sums


def nll(score: Callable, batch: Mapping[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict]:
    """Computes the negative log-likelihood per token weight, in nats: -sum(w log p) / step_weight.

    With weights of 0 and 1 this is the mean cross-entropy over all target tokens of the optimiser
    step, however it is split; 0 where no token has a weight.

    Args:
      score: `score(batch) -> Scored`.
      batch: `weights` [B, T] float32 and the scalar `step_weight`.
      key: unused.

    Returns:
      The contribution of this micro-batch, a float32 scalar, and metrics under TRL's names:
      `entropy` (nats) and `mean_token_accuracy`, means over tokens weighted as the loss is.
    """
    del key
    scored, weights_BxT = score(batch), batch['weights']
    logprob_BxT = jnp.where(weights_BxT > 0, scored.logprob, 0)
    loss = -row_sums(logprob_BxT, weights_BxT).sum() / or_one(batch['step_weight'])
    metrics = {
        'entropy': reduce.mean(scored.entropy, weights_BxT),
        'mean_token_accuracy': reduce.mean(scored.correct, weights_BxT),
    }
    return loss, metrics
