"""Log-probabilities, entropies and hits of given tokens under hidden states, without ever holding
[B, T, V]."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from reasonjax.model.config import ModelConfig
from reasonjax.model.experts import Routing
from reasonjax.model.forward import logits
from reasonjax.parallel import layout


class Scored(NamedTuple):
    """What a model says of a batch's tokens; zero at padding and at the first token of each
    segment, which nothing predicts.

    Attributes:
      logprob: [B, T] float32, log p(x_t | x_<t) in nats.
      entropy: [B, T] float32, entropy of p(. | x_<t) in nats.
      correct: [B, T] bool, whether no token was more likely than x_t.
      routing: of the experts, over all tokens but padding; None where the model has none.
    """

    logprob: jax.Array
    entropy: jax.Array
    correct: jax.Array
    routing: Routing | None = None


def token_scores(
    params: dict,
    config: ModelConfig,
    hidden_BxTxD: jax.Array,
    targets_BxT: jax.Array,
    temperature: float = 1.0,
) -> Scored:
    """Scores `targets` under the distribution that each hidden state predicts.

    The vocabulary projection runs over chunks of T with the batch axis kept (a chunk of flattened
    tokens would cut across the shards of the batch), each recomputed in the backward pass, so that
    at most [B, chunk, V] logits exist.
    """
    T = hidden_BxTxD.shape[1]
    number = -(-T // (config.logprob_chunk or T))
    if number == 1:
        return _chunk_scores(params, config, hidden_BxTxD, targets_BxT, temperature)

    @jax.checkpoint
    def body(pair: tuple[jax.Array, jax.Array]) -> Scored:
        return _chunk_scores(params, config, *pair, temperature)

    scored = jax.lax.map(
        body, (layout.split_time(hidden_BxTxD, number), layout.split_time(targets_BxT, number))
    )
    return Scored(*(layout.join_time(x, T) for x in scored[:3]))


def _chunk_scores(
    params: dict, config: ModelConfig, hidden: jax.Array, targets: jax.Array, temperature: float
) -> Scored:
    z = logits(params, config, hidden) / temperature
    return distribution_scores(z, targets)


def distribution_scores(logits_xV: jax.Array, targets: jax.Array) -> Scored:
    """Scores targets [...] under softmax(logits [..., V]): log-prob, entropy and hit, each [...].
    The sampler records with it too."""
    # The maximum is there for the softmax; an argmax would be another pass, and on CPU the slowest
    # of all.
    correct = jnp.take_along_axis(logits_xV, targets[..., None], axis=-1)[..., 0] >= jnp.max(
        logits_xV, axis=-1
    )
    return Scored(*_logprob_and_entropy(logits_xV, targets), correct)


@jax.custom_vjp
def _logprob_and_entropy(logits_xV: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _kept(logits_xV, targets)[0]


def _kept(logits_xV: jax.Array, targets: jax.Array) -> tuple[tuple[jax.Array, jax.Array], tuple]:
    normaliser = jax.nn.logsumexp(logits_xV, axis=-1)
    logprob = jnp.take_along_axis(logits_xV, targets[..., None], axis=-1)[..., 0] - normaliser
    # From log-probs, not as log-normaliser minus expected logit: that cancels where logits are
    # large.
    logprobs_xV = logits_xV - normaliser[..., None]
    entropy = -jnp.sum(jnp.exp(logprobs_xV) * logprobs_xV, axis=-1)
    return (logprob, entropy), (logits_xV, targets, normaliser, entropy)


def _back(kept: tuple, gradients: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    """Computes the gradient of logits from those of log-probs and entropies.

    With p = softmax(z) and entropy H: d log p_t = 1_t - p, d H = -p (log p + H). One pass over
    [..., V], and nothing of that size kept but the logits.
    """
    logits_xV, targets, normaliser, entropy = kept
    of_logprob, of_entropy = (g[..., None] for g in gradients)
    logprobs_xV = logits_xV - normaliser[..., None]
    hit_xV = jnp.arange(logits_xV.shape[-1]) == targets[..., None]
    through_p_xV = jnp.exp(logprobs_xV) * (
        of_logprob + of_entropy * (logprobs_xV + entropy[..., None])
    )
    return jnp.where(hit_xV, of_logprob, 0) - through_p_xV, None


_logprob_and_entropy.defvjp(_kept, _back)
