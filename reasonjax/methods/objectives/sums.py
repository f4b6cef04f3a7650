"""Weighted sums over tokens, and ratios of probabilities, shared by the objectives."""

import jax
import jax.numpy as jnp

# Nats. A token 10^17 times as likely as it was is of another model; the square of a gradient of
# this size still is a float32 number.
LARGEST = 40.0


def row_sums(x_BxT: jax.Array, weights_BxT: jax.Array) -> jax.Array:
    """Returns [B]: sum over t of x * weights, in float32."""
    # A dot product rather than a sum of products: one jaxlib release fuses the latter wrongly on
    # CPU. Accelerators would round its operands to fewer bits unless told otherwise.
    return jnp.einsum('bt,bt->b', x_BxT, weights_BxT, precision=jax.lax.Precision.HIGHEST)


@jax.custom_jvp
def bounded_exp(x: jax.Array) -> jax.Array:
    """Computes exp(x), constant beyond x = `LARGEST`. No value and no gradient is infinite, so that
    none times an advantage of 0 is nan.

    Up to `LARGEST`, value and gradient are those of exp. Beyond, both stay constant: an
    approximation that keeps the direction of the gradient, where a plain clip would drop it.
    """
    return jnp.exp(jnp.minimum(x, LARGEST))


@bounded_exp.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    (x,), (dx,) = primals, tangents
    y = bounded_exp(x)
    return y, dx * y


@jax.custom_jvp
def bounded_expm1(x: jax.Array) -> jax.Array:
    """Computes exp(x) - 1, exact near 0 and bounded as `bounded_exp` is."""
    return jnp.expm1(jnp.minimum(x, LARGEST))


@bounded_expm1.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    (x,), (dx,) = primals, tangents
    # As the installed jax has it, so that ordinary values get what they would without a bound:
    # releases round this derivative differently.
    return jax.jvp(jnp.expm1, (jnp.minimum(x, LARGEST),), (dx,))


def or_one(total: jax.Array) -> jax.Array:
    """Returns `total`, and 1 where it is 0: the divisor of a sum that is then empty, hence 0
    itself."""
    return jnp.where(total > 0, total, 1)
