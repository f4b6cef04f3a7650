"""What a model says of the tokens of a batch."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from reasonjax.errors import UserError
from reasonjax.model import groups
from reasonjax.model.attention import causal
from reasonjax.model.config import ModelConfig
from reasonjax.model.forward import Tap, forward
from reasonjax.model.logprobs import Scored, token_scores

# The fields of a batch that `score` reads.
READ = ('tokens', 'segments', 'positions', 'inputs', 'attend', *groups.PROMPTS, *groups.PLACES)


def score(
    params: dict,
    config: ModelConfig,
    batch: Mapping[str, jax.Array],
    *,
    temperature: float = 1.0,
    inputs_embeds: jax.Array | None = None,
    tap: Tap | None = None,
) -> Scored:
    """Scores every token of a batch given its predecessors in the same segment, and its prompt
    where prompts stand beside the rows.

    Args:
      params: parameter tree.
      config: the model's shape.
      batch: `tokens`, `positions`, `segments` [B, T] int32; optionally `inputs` [B, T] to read in
        place of the tokens, and `attend` [B, T] bool to hide positions as keys. With
        `prompt_tokens` [P, Tp] and what belongs to them, rows are completions; see
        `groups.shards_of`.
      temperature: logits are divided by it, as the sampler's are.
      inputs_embeds: see `forward`; not where rows share prompts.
      tap: see `forward`.

    Raises:
      UserError: embeddings in place of tokens, and rows that share prompts.
    """
    if 'prompt_tokens' in batch:
        if inputs_embeds is not None:
            raise UserError(
                'config: the objective gives embeddings in place of tokens, which takes whole '
                'rows; set share_prompts=False.'
            )
        return groups.score(params, config, batch, temperature=temperature, tap=tap)
    segments = batch['segments']
    out = forward(
        params,
        config,
        batch.get('inputs', batch['tokens']),
        batch['positions'],
        causal(config, segments, batch.get('attend')),
        inputs_embeds=inputs_embeds,
        tap=tap,
        counted_BxT=segments > 0 if config.experts else None,
    )
    shifted = token_scores(
        params, config, out.hidden, jnp.roll(batch['tokens'], -1, axis=1), temperature
    )
    follows = jnp.concatenate(
        [jnp.zeros_like(segments[:, :1], bool), segments[:, 1:] == segments[:, :-1]], axis=1
    )
    aligned = (
        jnp.where(follows & (segments > 0), jnp.roll(x, 1, axis=1), jnp.zeros((), x.dtype))
        for x in shifted[:3]
    )
    return Scored(*aligned, routing=out.routing)
