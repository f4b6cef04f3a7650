"""Log-probabilities, entropies and hits of given tokens, without ever holding [B, T, V]."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from reasonjax.model.attention import causal
from reasonjax.model.config import ModelConfig
from reasonjax.model.experts import Routing
from reasonjax.model.forward import Tap, forward, logits
from reasonjax.parallel import layout


class Scored(NamedTuple):
    """What a model says of a batch's tokens; zero at padding and at the first token of each segment, which nothing predicts.

    Attributes:
      logprob: [B, T] float32, log p(x_t | x_<t) in nats.
      entropy: [B, T] float32, entropy of p(. | x_<t) in nats.
      correct: [B, T] bool, whether x_t is the most likely token.
      routing: of the experts, over all tokens but padding; None where the model has none.
    """

    logprob: jax.Array
    entropy: jax.Array
    correct: jax.Array
    routing: Routing | None = None


def score(
    params: dict,
    config: ModelConfig,
    batch: Mapping[str, jax.Array],
    *,
    temperature: float = 1.0,
    inputs_embeds: jax.Array | None = None,
    tap: Tap | None = None,
) -> Scored:
    """Scores every token of a batch given its predecessors in the same segment.

    Args:
      params: parameter tree.
      config: the model's shape.
      batch: `tokens`, `positions`, `segments` [B, T] int32; optionally `inputs` [B, T] to read in place of the tokens, and
        `attend` [B, T] bool to hide positions as keys.
      temperature: logits are divided by it, as the sampler's are.
      inputs_embeds: see `forward`.
      tap: see `forward`.
    """
    segments = batch['segments']
    out = forward(
        params, config, batch.get('inputs', batch['tokens']), batch['positions'], causal(config, segments, batch.get('attend')),
        inputs_embeds=inputs_embeds, tap=tap, counted_BxT=segments > 0 if config.experts else None,
    )  # fmt: skip
    shifted = token_scores(params, config, out.hidden, jnp.roll(batch['tokens'], -1, axis=1), temperature)
    follows = jnp.concatenate([jnp.zeros_like(segments[:, :1], bool), segments[:, 1:] == segments[:, :-1]], axis=1)
    aligned = (jnp.where(follows & (segments > 0), jnp.roll(x, 1, axis=1), jnp.zeros((), x.dtype)) for x in shifted[:3])
    return Scored(*aligned, routing=out.routing)


def token_scores(
    params: dict, config: ModelConfig, hidden_BxTxD: jax.Array, targets_BxT: jax.Array, temperature: float = 1.0
) -> Scored:
    """Scores `targets` under the distribution that each hidden state predicts.

    The vocabulary projection runs over chunks of T with the batch axis kept (a chunk of flattened tokens would cut across the shards of the
    batch), each recomputed in the backward pass, so that at most [B, chunk, V] logits exist.
    """
    T = hidden_BxTxD.shape[1]
    number = -(-T // (config.logprob_chunk or T))
    if number == 1:
        return _chunk_scores(params, config, hidden_BxTxD, targets_BxT, temperature)

    @jax.checkpoint
    def body(pair: tuple[jax.Array, jax.Array]) -> Scored:
        return _chunk_scores(params, config, *pair, temperature)

    scored = jax.lax.map(body, (layout.split_time(hidden_BxTxD, number), layout.split_time(targets_BxT, number)))
    return Scored(*(layout.join_time(x, T) for x in scored[:3]))


def _chunk_scores(params: dict, config: ModelConfig, hidden: jax.Array, targets: jax.Array, temperature: float) -> Scored:
    z = logits(params, config, hidden) / temperature
    return distribution_scores(z, targets)


def distribution_scores(logits_xV: jax.Array, targets: jax.Array) -> Scored:
    """Log-prob of each target, entropy and hit under softmax(logits): shapes [..., V] and [...]. The sampler records with it too."""
    # From log-probs, not as log-normaliser minus expected logit: that cancels where logits are large.
    logprobs_xV = logits_xV - jax.nn.logsumexp(logits_xV, axis=-1, keepdims=True)
    logprob = jnp.take_along_axis(logprobs_xV, targets[..., None], axis=-1)[..., 0]
    entropy = -jnp.sum(jnp.exp(logprobs_xV) * logprobs_xV, axis=-1)
    return Scored(logprob, entropy, jnp.argmax(logits_xV, axis=-1) == targets)
