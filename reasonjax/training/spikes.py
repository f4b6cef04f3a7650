"""Gradient norms that stand out: a window of those that were applied, and how far the next lies
above them.

The norm and not the loss, because the norm is what the update is made of, and because only the norm
has a scale of its own in every objective: a policy-gradient loss is centred on zero and its sign
means nothing. It is the norm before clipping.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Window:
    """The last norms that were neither spikes nor non-finite.

    Attributes:
      norms_W: float32, a ring.
      seen: [] int32, how many went in, ever.
    """

    norms_W: jax.Array
    seen: jax.Array


def empty(size: int) -> Window:
    """Creates a window for `size` norms, with none in it."""
    return Window(jnp.zeros(size, jnp.float32), jnp.zeros((), jnp.int32))


def is_spike(window: Window, norm: jax.Array, zscore: float) -> jax.Array:
    """Returns whether `norm` [] is over `zscore` standard deviations above the window's mean. False
    until the window is full."""
    limit = jnp.mean(window.norms_W) + zscore * jnp.std(window.norms_W)
    return (window.seen >= len(window.norms_W)) & (norm > limit)


def put(window: Window, norm: jax.Array, accepted: jax.Array) -> Window:
    """Returns the window with one more norm [] where that is accepted, else unchanged."""
    norms_W = window.norms_W.at[window.seen % len(window.norms_W)].set(norm)
    return Window(
        jnp.where(accepted, norms_W, window.norms_W), window.seen + accepted.astype(jnp.int32)
    )
