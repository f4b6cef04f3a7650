"""Functions of logits that narrow what may be drawn. Each has a neutral value at which it returns its input."""

import jax
import jax.numpy as jnp

REMOVED = -1e30


def truncate(logits_BxV: jax.Array, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> jax.Array:
    """Applies top-k, then top-p, then min-p, as transformers does; removed tokens get -1e30."""
    logits_BxV = keep_top_k(logits_BxV, top_k)
    logits_BxV = keep_top_p(logits_BxV, top_p)
    return keep_min_p(logits_BxV, min_p)


def keep_top_k(logits_BxV: jax.Array, k: int) -> jax.Array:
    """Keeps the k most likely tokens, and those tied with the last of them; 0 keeps all."""
    if k <= 0 or k >= logits_BxV.shape[-1]:
        return logits_BxV
    smallest_Bx1 = jax.lax.top_k(logits_BxV, k)[0][:, -1:]
    return jnp.where(logits_BxV < smallest_Bx1, REMOVED, logits_BxV)


def keep_top_p(logits_BxV: jax.Array, p: float) -> jax.Array:
    """Keeps the smallest set of most likely tokens whose mass reaches p (Holtzman et al. 2020, arXiv:1904.09751); 1 keeps all."""
    if p >= 1:
        return logits_BxV
    order = jnp.argsort(-logits_BxV, axis=-1)
    probability = jax.nn.softmax(jnp.take_along_axis(logits_BxV, order, axis=-1), axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    removed_sorted = before >= p
    removed = jnp.take_along_axis(removed_sorted, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(removed, REMOVED, logits_BxV)


def keep_min_p(logits_BxV: jax.Array, p: float) -> jax.Array:
    """Keeps tokens at least p times as likely as the most likely one (Nguyen et al. 2024, arXiv:2407.01082); 0 keeps all."""
    if p <= 0:
        return logits_BxV
    return jnp.where(logits_BxV < logits_BxV.max(axis=-1, keepdims=True) + jnp.log(p), REMOVED, logits_BxV)
