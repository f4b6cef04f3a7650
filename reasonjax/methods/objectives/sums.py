"""Weighted sums over tokens, shared by the objectives."""

import jax
import jax.numpy as jnp


def row_sums(x_BxT: jax.Array, weights_BxT: jax.Array) -> jax.Array:
    """Returns [B]: sum over t of x * weights, in float32."""
    # A dot product rather than a sum of products: one jaxlib release fuses the latter wrongly on CPU. Accelerators
    # would round its operands to fewer bits unless told otherwise.
    return jnp.einsum('bt,bt->b', x_BxT, weights_BxT, precision=jax.lax.Precision.HIGHEST)


def or_one(total: jax.Array) -> jax.Array:
    """Returns `total`, and 1 where it is 0: the divisor of a sum that is then empty, hence 0 itself."""
    return jnp.where(total > 0, total, 1)
