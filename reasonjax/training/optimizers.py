"""Optimisers: `(learning_rate, *, knobs) -> optax transformation` over the trainable part of the
parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from reasonjax.bounds import BelowOne, NonNegative, OneOf, PositiveFraction, PositiveOrInfinite
from reasonjax.errors import UserError, listing, nearest
from reasonjax.weights import partition

# Weights whose shrinking towards zero means nothing.
UNDECAYED = ('*norm', '*bias')
MOMENTS = ('float32', 'bfloat16', 'float16')


def adamw(
    learning_rate: optax.Schedule,
    *,
    b1: BelowOne = 0.9,
    b2: BelowOne = 0.999,
    eps: PositiveFraction = 1e-8,
    weight_decay: NonNegative = 0.0,
    no_decay: tuple[str, ...] = UNDECAYED,
    clip_norm: PositiveOrInfinite = float('inf'),
    mu_dtype: OneOf('', *MOMENTS) = '',
) -> optax.GradientTransformation:
    """Builds AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101). The global gradient norm is
    clipped first.

    Args:
      learning_rate: schedule.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled decay, times the learning rate; 0 is Adam.
      no_decay: patterns of weights that do not decay.
      clip_norm: gradients are scaled down to this global norm; infinity never clips.
      mu_dtype: of the first moment (bfloat16 halves it); '' is that of the weights. The second
        moment always has theirs: it moves by 1 - b2 of itself, which bfloat16 would round away.

    Raises:
      UserError: an unknown dtype.
    """
    if mu_dtype not in ('', *MOMENTS):
        raise UserError(
            f'config.optimizer.mu_dtype="{mu_dtype}": unknown.{nearest(mu_dtype, MOMENTS)} '
            f'Known: {listing(MOMENTS)}, or "" for the dtype of the weights.'
        )
    decays = functools.partial(_decays, no_decay=no_decay)
    dtype = jnp.dtype(mu_dtype) if mu_dtype else None
    adam = optax.adamw(
        learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decays, mu_dtype=dtype
    )
    return _clip_norm(adam, clip_norm)


def sgd(
    learning_rate: optax.Schedule,
    *,
    momentum: BelowOne = 0.0,
    clip_norm: PositiveOrInfinite = float('inf'),
) -> optax.GradientTransformation:
    """Builds gradient descent after clipping the global norm; `momentum` 0 is plain SGD."""
    return _clip_norm(optax.sgd(learning_rate, momentum=momentum or None), clip_norm)


def _decays(params: Any, no_decay: tuple[str, ...]) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not partition.match(partition.path_name(path), no_decay), params
    )


def _clip_norm(
    optimizer: optax.GradientTransformation, clip_norm: float
) -> optax.GradientTransformation:
    if clip_norm == float('inf'):
        return optimizer
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
