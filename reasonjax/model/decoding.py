"""Attention to what is cached: of one new token per row while completions are drawn, of a chunk of
tokens while prompts are read.

Keys lie with time as the last axis and values with the width of a head last: both products then
read the cache as it lies (on CPU the other order of keys takes 1.6 times as long). Scores and
weighted sums are products of matrices, as in `model.attention`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reasonjax.model.attention import MASKED, scaled, scaling, seen_by
from reasonjax.model.config import ModelConfig
from reasonjax.model.forward import Attention
from reasonjax.parallel import layout


class Cache(NamedTuple):
    """One layer's keys and values of B rows, or of P prompts that a group of rows shares each.

    Attributes:
      k: [B, K, d, T], in the compute dtype or int8.
      v: [B, K, T, d], likewise.
      k_scale, v_scale: [B, K, T] float32, what int8 keys and values are multiplied by; None where
        they are not int8.
    """

    k: jax.Array
    v: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None

    @property
    def length(self) -> int:
        """T, the positions there is room for."""
        return self.v.shape[2]


TIME = Cache(k=3, v=2, k_scale=2, v_scale=2)  # the axis of time in each part


def stored(k_BxTxKxd: jax.Array, v_BxTxKxd: jax.Array, int8: bool = False) -> Cache:
    """Keys and values as they are cached.

    Args:
      k_BxTxKxd, v_BxTxKxd: as the forward pass gives them.
      int8: round to 8 bits, symmetrically, by the largest magnitude of each position and head (as
        KV-cache quantisation per token does).
    """
    k, v = k_BxTxKxd.transpose(0, 2, 3, 1), v_BxTxKxd.swapaxes(1, 2)
    if not int8:
        return Cache(k, v)
    (k, k_scale), (v, v_scale) = _rounded(k, axis=2), _rounded(v, axis=3)
    return Cache(k, v, k_scale, v_scale)


def empty(config: ModelConfig, rows: int, length: int, int8: bool = False) -> Cache:
    """Builds an empty cache with room for `length` positions in each row."""
    shape, dtype = (rows, config.kv_heads), jnp.int8 if int8 else jnp.dtype(config.compute_dtype)
    scales = (jnp.zeros((*shape, length)), jnp.zeros((*shape, length))) if int8 else (None, None)
    return Cache(
        jnp.zeros((*shape, config.head_dim, length), dtype),
        jnp.zeros((*shape, length, config.head_dim), dtype),
        *scales,
    )


def each(function: Callable, cache: Cache, *others: Cache) -> Cache:
    """Applies `function(part, *parts of the others, axis of time)` to each part of a cache."""
    return Cache(
        *(
            None if parts[0] is None else function(*parts)
            for parts in zip(cache, *others, TIME, strict=True)
        )
    )


def placed(cache: Cache) -> Cache:
    """Constrains a cache's sharding: rows as those of a batch, heads as those of the weights."""
    return each(
        lambda x, axis: layout.constrain(x, 'batch', 'kv_heads', *[None] * (x.ndim - 2)), cache
    )


def grown(cache: Cache, length: int) -> Cache:
    """Pads a cache with zeros, to room for `length` positions."""
    return each(
        lambda x, axis: jnp.pad(
            x, [(0, length - x.shape[a] if a == axis else 0) for a in range(x.ndim)]
        ),
        cache,
    )


def written(cache: Cache, new: Cache, index: jax.Array) -> Cache:
    """Puts new positions into the cache from `index` on: one place for all rows [], or one for each
    row [B]."""
    if jnp.ndim(index) == 0:
        return each(
            lambda old, x, axis: jax.lax.dynamic_update_slice_in_dim(old, x, index, axis),
            cache,
            new,
        )

    def put(old: jax.Array, x: jax.Array, axis: int) -> jax.Array:
        return jax.vmap(lambda old, x, i: jax.lax.dynamic_update_slice_in_dim(old, x, i, axis - 1))(
            old, x, index
        )

    return each(put, cache, new)


def decode(
    config: ModelConfig, prompt: list[Cache], prompt_mask_PxTp: jax.Array, index: jax.Array
) -> Attention:
    """Builds attention of one new token per row to its prompt and its own cache, in one softmax.

    Args:
      config: the model's shape.
      prompt: per layer, the prompt cache; P divides the number of rows, and the rows of a prompt
        are adjacent. Prompts end in the last column, which is the place of the first token in the
        own cache.
      prompt_mask_PxTp: bool, prompt positions to attend to.
      index: int32, where in the own cache the new token goes: [] for all rows, or [B], and then P =
        B; later places are not attended to.

    The layer cache given to `forward` is `(layer, Cache of the rows)`.
    """
    P, Tp = prompt_mask_PxTp.shape
    index_xx1 = jnp.reshape(index, (-1, 1))
    prompt_distance_xxTp = Tp - 1 - jnp.arange(Tp) + index_xx1

    def attention(
        q: jax.Array, k: jax.Array, v: jax.Array, cache: tuple[int, Cache], local: Any
    ) -> tuple[jax.Array, tuple[int, Cache]]:
        layer, own = cache
        B, _, H, d = q.shape
        K, R, G = k.shape[2], H // k.shape[2], B // P
        own = written(own, stored(k, v, own.k_scale is not None), index)
        q_BxKxRxd = q.reshape(B, K, R, d)

        def shared(x_BxKxRxn: jax.Array) -> jax.Array:
            """Merges the rows of each prompt into one product: [P, K, G * R, n]."""
            return x_BxKxRxn.reshape(P, G, K, R, -1).swapaxes(1, 2).reshape(P, K, G * R, -1)

        def apart(x_PxKxGRxn: jax.Array) -> jax.Array:
            return x_PxKxGRxn.reshape(P, K, G, R, -1).swapaxes(1, 2).reshape(B, K, R, -1)

        of_prompt = seen_by(config, prompt_mask_PxTp, prompt_distance_xxTp, local)
        distance_xxC = index_xx1 - jnp.arange(own.length)
        of_own = seen_by(config, distance_xxC >= 0, distance_xxC, local)
        theirs_PxKxGRxT = jnp.where(
            of_prompt[:, None, None], _scores(config, shared(q_BxKxRxd), prompt[layer]), MASKED
        )
        mine_BxKxRxC = jnp.where(of_own[:, None, None], _scores(config, q_BxKxRxd, own), MASKED)
        # The two parts meet only in the softmax's maximum and sum: its weights stay where the
        # products want them.
        largest_BxKxRx1 = jnp.maximum(apart(_max(theirs_PxKxGRxT)), _max(mine_BxKxRxC))
        theirs_PxKxGRxT = jnp.exp(theirs_PxKxGRxT - shared(largest_BxKxRx1))
        mine_BxKxRxC = jnp.exp(mine_BxKxRxC - largest_BxKxRx1)
        total_BxKxRx1 = apart(_sum(theirs_PxKxGRxT)) + _sum(mine_BxKxRxC)
        out = (
            apart(_weighted(theirs_PxKxGRxT, prompt[layer], q.dtype))
            + _weighted(mine_BxKxRxC, own, q.dtype)
        ) / total_BxKxRx1
        return out.astype(q.dtype).reshape(B, 1, H, d), (layer, own)

    return attention


def resumed(config: ModelConfig, segments_BxT: jax.Array, start: jax.Array) -> Attention:
    """Builds attention of a chunk of S tokens to their rows' T positions, causal within segments.

    Args:
      config: the model's shape.
      segments_BxT: int32, 0 = padding, of the whole rows.
      start: int32 scalar, the place of the chunk's first token.

    The layer cache given to `forward` is a `Cache` of T positions, filled up to the chunk.
    """
    T = segments_BxT.shape[1]

    def attention(
        q: jax.Array, k: jax.Array, v: jax.Array, cache: Cache, local: Any
    ) -> tuple[jax.Array, Cache]:
        B, S, H, d = q.shape
        K = k.shape[2]
        cache = written(cache, stored(k, v), start)
        distance_SxT = start + jnp.arange(S)[:, None] - jnp.arange(T)
        of_chunk_BxS = jax.lax.dynamic_slice_in_dim(segments_BxT, start, S, axis=1)
        mask_BxSxT = (distance_SxT >= 0) & (of_chunk_BxS[:, :, None] == segments_BxT[:, None, :])
        q_BxKxSRxd = q.reshape(B, S, K, H // K, d).swapaxes(1, 2).reshape(B, K, -1, d)
        scores = _scores(config, q_BxKxSRxd, cache).reshape(B, K, S, -1, T)
        scores = jnp.where(
            seen_by(config, mask_BxSxT, distance_SxT, local)[:, None, :, None], scores, MASKED
        )
        weights = jax.nn.softmax(scores, axis=-1).reshape(B, K, -1, T)
        out = _weighted(weights, cache, q.dtype).astype(q.dtype)
        return out.reshape(B, K, S, -1, d).swapaxes(1, 2).reshape(B, S, H, d), cache

    return attention


def _rounded(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Rounds an array to int8 along one axis; returns the codes and their scales."""
    x = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(x), axis=axis, keepdims=True) / 127
    rounded = jnp.round(x / jnp.where(scale == 0, 1.0, scale)).astype(jnp.int8)
    return rounded, jnp.squeeze(scale, axis)


def _scores(config: ModelConfig, q_BxKxNxd: jax.Array, cache: Cache) -> jax.Array:
    products = jnp.einsum(
        'bknd,bkdt->bknt',
        q_BxKxNxd,
        cache.k.astype(q_BxKxNxd.dtype),
        preferred_element_type=jnp.float32,
    )
    products = products if cache.k_scale is None else products * cache.k_scale[:, :, None]
    return scaled(products, *scaling(config))


def _weighted(weights_BxKxNxT: jax.Array, cache: Cache, dtype: Any) -> jax.Array:
    weights = (
        weights_BxKxNxT if cache.v_scale is None else weights_BxKxNxT * cache.v_scale[:, :, None]
    )
    return jnp.einsum(
        'bknt,bktd->bknd',
        weights.astype(dtype),
        cache.v.astype(dtype),
        preferred_element_type=jnp.float32,
    )


def _max(x: jax.Array) -> jax.Array:
    return jnp.max(x, axis=-1, keepdims=True)


def _sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=-1, keepdims=True)
