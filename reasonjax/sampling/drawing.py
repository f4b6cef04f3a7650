"""How a token is drawn, and what is said of it: one pass over the vocabulary for probabilities,
log-prob and entropy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Distribution(NamedTuple):
    """softmax(logits) of each row, not normalised.

    Attributes:
      below: [B, V] float32, logits less the largest of the row: 0 or negative.
      mass: [B, V] float32, their exponentials, in [0, 1]; what is removed from the choice has none.
      total: [B] float32, the sum of the masses, at least 1.
    """

    below: jax.Array
    mass: jax.Array
    total: jax.Array

    def logprob(self, tokens_B: jax.Array) -> jax.Array:
        """Returns the log-prob of each row's token in nats: [B] float32."""
        return jnp.take_along_axis(self.below, tokens_B[:, None], axis=-1)[:, 0] - jnp.log(
            self.total
        )

    def entropy(self) -> jax.Array:
        """Computes each row's entropy in nats: [B] float32. Both terms are positive, so that
        nothing cancels."""
        return jnp.log(self.total) - jnp.sum(self.mass * self.below, axis=-1) / self.total


def distribution(logits_BxV: jax.Array) -> Distribution:
    """Builds the distribution that float32 logits [B, V] stand for."""
    below = logits_BxV - jnp.max(logits_BxV, axis=-1, keepdims=True)
    mass = jnp.exp(below)
    return Distribution(below, mass, jnp.sum(mass, axis=-1))


def uniforms(keys_B: jax.Array) -> jax.Array:
    """Draws two numbers from each row's key: [B, 2] float32 in [0, 1), multiples of 2**-24."""
    bits = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys_B)
    return (bits >> 8).astype(jnp.float32) * 2.0**-24


def draw(mass_BxV: jax.Array, uniform_Bx2: jax.Array) -> jax.Array:
    """Draws one token per row in proportion to its mass; a token without mass is never drawn.

    Inverts the distribution function in two levels: a block of about sqrt(V) tokens by the
    first number, a token of it by the second. A sum over a large vocabulary in float32 would be too
    coarse for rare tokens; a block's is not, and the second number is spread over the block alone.

    Args:
      mass_BxV: float32, not negative; not all zero.
      uniform_Bx2: float32 in [0, 1).

    Returns:
      [B] int32.
    """
    B, V = mass_BxV.shape
    width = 1 << ((V - 1).bit_length() + 1) // 2
    number = -(-V // width)
    blocks_BxNxW = jnp.pad(mass_BxV, ((0, 0), (0, number * width - V))).reshape(B, number, width)
    block_B = _chosen(jnp.sum(blocks_BxNxW, axis=-1), uniform_Bx2[:, 0])
    inside_BxW = jnp.take_along_axis(blocks_BxNxW, block_B[:, None, None], axis=1)[:, 0]
    return block_B * width + _chosen(inside_BxW, uniform_Bx2[:, 1])


def _chosen(mass_BxN: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """Returns the first index whose cumulated mass exceeds the share `uniform_B` of the total."""
    up_to_BxN = jnp.cumsum(mass_BxN, axis=-1)
    beyond_BxN = up_to_BxN > uniform_B[:, None] * up_to_BxN[:, -1:]
    # Cumulated in some other order than one by one, rounding can show a step where no mass is: such
    # are passed over.
    return jnp.argmax(jnp.where(mass_BxN > 0, beyond_BxN.astype(jnp.int32), -1), axis=-1).astype(
        jnp.int32
    )
