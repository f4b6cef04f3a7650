"""Corruptions that replace input tokens."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from reasonjax import reduce
from reasonjax.bounds import Fraction, NonNegative
from reasonjax.errors import UserError
from reasonjax.protocols import Context


def none(
    batch: Mapping[str, jax.Array], key: jax.Array, step: jax.Array, context: Context
) -> tuple[dict, dict]:
    """Leaves the batch as it is."""
    del key, step, context
    return dict(batch), {}


def masked_thought(
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    step: jax.Array,
    context: Context,
    *,
    rate: Fraction = 0.0,
    warmup: NonNegative = 2 / 3,
    replace_rate: Fraction = 0.0,
    drop_mask: bool = False,
) -> tuple[dict, dict]:
    """Hides a growing share of the response from the model: masked thought (arXiv 2403.02178).

    At step s of S each response token, the final EOS included, is selected independently with
    probability p_s = rate * min(1, s / (warmup * S + 1)) and read as a mask token. The loss stays
    on all response tokens, hidden or not, each with its true label. Prompt and padding are never
    touched: a token is of the response if its weight is above 0.

    Published settings (github.com/ChangyuChen347/MaskedThought, scripts): GSM8K rate 0.4 with
    replace_rate 1 (random tokens, despite the name); MATH, MetaMath and MAmmoTH rate 0.2 with
    replace_rate 0; warmup 0.66. Random ids are uniform over the vocabulary without PAD and the mask
    token, which the released code keeps outside the range that it draws from.

    Args:
      batch: `tokens`, `weights` [B, T]; optionally `inputs` and `attend` [B, T] of a corruption
        before this one, and `row` [B] int32.
      key: of this step.
      step: int32 scalar, from 0.
      context: constants of the stage.
      rate: largest probability of selection; neutral 0, which leaves `inputs` equal to the tokens.
      warmup: share of the stage's steps over which the probability rises, from 0 at the first step.
      replace_rate: probability that a selected token becomes a random token rather than the mask
        token; 0 always mask, 1 always random.
      drop_mask: also remove selected positions from attention (they stay queries). The first token
        of a segment is never of the response, so each query keeps a key.

    Returns:
      The batch with `inputs` (and `attend`), and metrics: `mask_rate`, p_s; `masked_fraction`, the
      share of response tokens selected.

    Raises:
      UserError: a knob out of range, or a mask token is needed and the tokenizer has none.
    """
    limits = (
        ('rate', rate, 1),
        ('warmup', warmup, float('inf')),
        ('replace_rate', replace_rate, 1),
    )
    for knob, value, highest in limits:
        if not 0 <= value <= highest:
            raise UserError(
                f'corruption masked_thought: {knob} is {value}, expected a number from 0 to '
                f'{highest}.'
            )
    if rate and replace_rate < 1 and context.mask_id is None:
        raise UserError(
            'corruption masked_thought: the tokenizer has no mask token. Name one with the knob '
            '"mask" of '
            'config.tokenizer, or set replace_rate to 1 to replace by random tokens instead.'
        )
    tokens_BxT, response_BxT = batch.get('inputs', batch['tokens']), batch['weights'] > 0
    B, T = tokens_BxT.shape
    probability = rate * jnp.minimum(1.0, step / (warmup * context.steps + 1))

    def draw(row: jax.Array) -> tuple[jax.Array, jax.Array]:
        select, choose, ids = jax.random.split(jax.random.fold_in(key, row), 3)
        selected_T = jax.random.uniform(select, (T,)) < probability
        if not replace_rate:
            return selected_T, jnp.full((T,), context.mask_id, tokens_BxT.dtype)
        random_T = _random_ids(ids, T, context).astype(tokens_BxT.dtype)
        if replace_rate == 1:
            return selected_T, random_T
        return selected_T, jnp.where(
            jax.random.uniform(choose, (T,)) < replace_rate, random_T, context.mask_id
        )

    changed = dict(batch)
    if rate:
        selected_BxT, replacement_BxT = jax.vmap(draw)(batch.get('row', jnp.arange(B)))
        selected_BxT &= response_BxT
        changed['inputs'] = jnp.where(selected_BxT, replacement_BxT, tokens_BxT)
        if drop_mask:
            changed['attend'] = ~selected_BxT & batch.get('attend', True)
    else:
        selected_BxT = jnp.zeros_like(response_BxT)
        changed['inputs'] = tokens_BxT
    metrics = {
        'mask_rate': reduce.mean(jnp.asarray(probability, jnp.float32)),
        'masked_fraction': reduce.mean(selected_BxT, response_BxT.astype(jnp.float32)),
    }
    return changed, metrics


def _random_ids(key: jax.Array, T: int, context: Context) -> jax.Array:
    """Draws [T] ids, uniform over the vocabulary without PAD and the mask token."""
    never = sorted(
        i
        for i in {context.pad_id, context.mask_id}
        if i is not None and 0 <= i < context.vocab_size
    )
    ids = jax.random.randint(key, (T,), 0, context.vocab_size - len(never))
    for hole in never:
        ids += ids >= hole
    return ids
