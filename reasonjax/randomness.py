"""Counted randomness: a draw is a function of (seed, stage, step, stream) and of the example it is
for, never of what was drawn before.

So a resumed run draws what it would have drawn, and neither batch layout nor host count changes
anything.
"""

import jax
import numpy as np

# As one program: outside a program it would be four, at every step.
_fold_in = jax.jit(jax.random.fold_in, inline=True)

STREAMS = {'init': 0, 'adapter': 1, 'update': 2, 'rollout': 3, 'evaluate': 4}


def key(seed: int, stage: int, step: int, stream: str) -> jax.Array:
    """Derives the key of one use of randomness.

    Args:
      seed: `config.seed`.
      stage: number of the stage in the run, from 0.
      step: step within the stage.
      stream: what it is used for, a key of `STREAMS`.
    """
    folded = jax.random.key(seed)
    for number in (stage, STREAMS[stream], step):
        folded = _fold_in(folded, number)
    return folded


def host_seed(seed: int, stage: int) -> int:
    """Derives a 31-bit seed for the data order of a stage."""
    return int(np.random.SeedSequence([seed, stage]).generate_state(1)[0] >> 1)
