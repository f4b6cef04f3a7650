"""Optimisers: `(learning_rate, *, knobs) -> optax transformation` over the trainable part of the parameters."""

from typing import Any

import jax
import optax

from reasonjax.weights import partition

# Weights whose shrinking towards zero means nothing.
UNDECAYED = ('*norm', '*bias')


def adamw(
    learning_rate: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    no_decay: tuple[str, ...] = UNDECAYED,
    clip_norm: float = float('inf'),
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) after clipping the global gradient norm.

    Args:
      learning_rate: schedule.
      b1, b2, eps: Adam's.
      weight_decay: decoupled decay, times the learning rate; 0 is Adam.
      no_decay: patterns of weights that do not decay.
      clip_norm: gradients are scaled down to this global norm; infinity never clips.
    """
    adam = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=lambda p: _decays(p, no_decay))
    return _clipped(adam, clip_norm)


def sgd(learning_rate: optax.Schedule, *, momentum: float = 0.0, clip_norm: float = float('inf')) -> optax.GradientTransformation:
    """Gradient descent after clipping; `momentum` 0 is plain."""
    return _clipped(optax.sgd(learning_rate, momentum=momentum or None), clip_norm)


def _decays(params: Any, no_decay: tuple[str, ...]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: not partition.match(partition.path_name(path), no_decay), params)


def _clipped(transformation: optax.GradientTransformation, clip_norm: float) -> optax.GradientTransformation:
    if clip_norm == float('inf'):
        return transformation
    return optax.chain(optax.clip_by_global_norm(clip_norm), transformation)
