"""What is said on the screen as a training stage starts: settings that work, and may not do what
they are meant to."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from reasonjax.parallel import processes


def say(settings: Mapping[str, Any], name: str, trainable: Any, updates: int) -> None:
    """Prints a line for each caution, in the first process.

    Args:
      settings: its settings.
      name: of the stage.
      trainable: the part of the parameters that trains.
      updates: of the whole stage.
    """
    for text in (*_rounded(trainable), *_rising(settings, updates)) if processes.is_main() else ():
        print(f'warning: stage {name} {text}', file=sys.stderr)


def _rounded(trainable: Any) -> Iterator[str]:
    """Yields a caution where weights have so few bits that small updates are lost. Nothing here
    keeps a copy of more bits, or rounds at random."""
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(trainable)}
    for dtype in sorted((dtype for dtype in dtypes if jnp.finfo(dtype).bits < 32), key=str):
        yield (
            f'trains weights in {dtype}: what an update changes by less than '
            f'1/{2 / jnp.finfo(dtype).eps:.0f} of a weight is rounded away. '
            'config.model.param_dtype=float32 keeps it; compute_dtype may stay as it is.'
        )


def _rising(settings: Mapping[str, Any], updates: int) -> Iterator[str]:
    """Yields a caution where a stage ends before its learning rate has risen. A stage of one or two
    steps is only a trial, as with `--smoke`."""
    steps = settings.learning_rate.get('warmup_steps', 0)
    if steps > updates and settings.steps > 2:
        yield f'has {updates} updates and learning_rate.warmup_steps={steps}: its learning rate ends at {updates / steps:.0%} of its peak.'
