"""How queries meet keys. Each function here returns an `Attention` for `model.forward`.

Scores and weighted sums are written as products of matrices throughout: as multiply-and-reduce,
jaxlib 0.10.2 gets them wrong on CPU.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reasonjax.model import kernels
from reasonjax.model.config import ModelConfig
from reasonjax.model.forward import Attention
from reasonjax.model.remat import named
from reasonjax.parallel import layout

# Finite, so that a row whose keys are all masked (padding) has a uniform softmax instead of nan.
MASKED = -1e30
# Blocks of queries, each against the keys up to its last: of n, they compute (n + 1) / 2n of all
# scores. Smaller ones gain nothing.
BLOCKS, SMALLEST_BLOCK = 4, 64


def causal(
    config: ModelConfig,
    segments_BxT: jax.Array,
    attend_BxT: jax.Array | None = None,
    keep: bool = False,
) -> Attention:
    """Builds causal self-attention within segments; a local layer attends within its window.

    The backward pass computes scores again. With `config.attention_chunk` queries are taken a chunk
    at a time, so that [B, H, chunk, T] scores exist at once. Where T is split over devices, each
    takes its own queries and all keys (as Llama 3 was trained, Grattafiori et al. 2024,
    arXiv:2407.21783, section 3.3.2). With `config.attention_kernel` a kernel does all this in its
    own way.

    Args:
      config: the model's shape.
      segments_BxT: int32, 0 = padding; tokens see only tokens of an equal segment.
      attend_BxT: optional bool; False hides a position as a key (from all but itself).
      keep: return (k, v) as the layer's cache, for decoding after a prefill.
    """
    times_1xT = jnp.arange(segments_BxT.shape[1])[None]

    def visible(time_1xS: jax.Array, segments_BxS: jax.Array) -> tuple[jax.Array, jax.Array]:
        return earlier(time_1xS, segments_BxS, segments_BxT, attend_BxT), time_1xS[0][
            :, None
        ] - times_1xT

    if config.attention_kernel == 'xla':
        weigh = in_chunks(config, visible, (times_1xT, segments_BxT))
    else:
        seen = functools.partial(seen_by, config, *visible(times_1xT, segments_BxT))
        beyond = '' if attend_BxT is None else 'this batch hides positions as keys (`attend`)'
        weigh = kernels.weigher(config, seen, segments_BxT, segments_BxT, beyond)

    def attention(
        q: jax.Array, k: jax.Array, v: jax.Array, cache: Any, local: Any
    ) -> tuple[jax.Array, Any]:
        if layout.size('sequence') > 1:
            k, v = (layout.constrain(x, 'batch', None, 'kv_heads', None) for x in (k, v))
        return weigh(q, k, v, local), (k, v) if keep else None

    return attention


def earlier(
    time_1xS: jax.Array,
    segments_BxS: jax.Array,
    segments_BxT: jax.Array,
    attend_BxT: jax.Array | None,
) -> jax.Array:
    """Returns the mask [B, S, T] of the keys each query sees: itself, and earlier ones of its
    segment that are not hidden."""
    ahead_SxT = time_1xS[0][:, None] - jnp.arange(segments_BxT.shape[1])
    mask_BxSxT = (ahead_SxT >= 0) & (segments_BxS[:, :, None] == segments_BxT[:, None, :])
    if attend_BxT is None:
        return mask_BxSxT
    return mask_BxSxT & (attend_BxT[:, None, :] | (ahead_SxT == 0))


def in_chunks(
    config: ModelConfig, visible: Callable, of_queries: tuple[jax.Array, ...], before: int = 0
) -> Callable[..., jax.Array]:
    """Builds `weigh(q [B, S, H, d], k [B, T, K, d], v, local) -> [B, S, H, d]` of queries that see
    no key behind their own place.

    With `config.attention_chunk`, so many queries at a time; without, blocks of queries (`BLOCKS`),
    each with the keys that it may see.

    Args:
      config: the model's shape.
      visible: of the chunk's part of `of_queries`: which keys they see [B, S, T], and how far away
        keys are, [S, T] or [B, S, T].
      of_queries: arrays [B or 1, S] that tell queries apart.
      before: keys in front of those of the queries themselves: T = before + S.
    """
    S = of_queries[0].shape[1]
    number = -(-S // (config.attention_chunk or S))
    if number > 1:

        def in_turn(q: jax.Array, k: jax.Array, v: jax.Array, local: Any) -> jax.Array:
            of_keys, of_values = _for_products(k, v)

            # What tells the weights apart is computed again, the weights' sum and the result are
            # not.
            @functools.partial(
                jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names('attended')
            )
            def piece(xs: tuple) -> jax.Array:
                return _rows(
                    config, xs[0], of_keys, of_values, seen_by(config, *visible(*xs[1:]), local)
                )

            return layout.join_time(
                jax.lax.map(piece, tuple(layout.split_time(x, number) for x in (q, *of_queries))), S
            )

        return in_turn

    # Where T is split over devices, pieces of it would be on few of them.
    size = S if layout.size('sequence') > 1 else block_length(S)
    # Outside the loop over layers, which share it.
    mask_BxSxT, distance_xSxT = visible(*of_queries)
    blocks = []
    for start in range(0, S, size):
        queries, keys = slice(start, min(start + size, S)), slice(before + min(start + size, S))
        blocks.append(
            (queries, keys, mask_BxSxT[:, queries, keys], distance_xSxT[..., queries, keys])
        )

    def weigh(q: jax.Array, k: jax.Array, v: jax.Array, local: Any) -> jax.Array:
        of_keys, of_values = _for_products(k, v)
        parts = []
        for queries, keys, mask, distance in blocks:
            seen = seen_by(config, mask, distance, local)
            parts.append(
                _rows(config, q[:, queries], of_keys[..., keys], of_values[:, :, keys], seen)
            )
        return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    return weigh


def block_length(S: int) -> int:
    """Queries per block of S; the last block may have fewer."""
    return min(S, max(-(-S // BLOCKS), SMALLEST_BLOCK))


def _for_products(k_BxTxKxd: jax.Array, v_BxTxKxd: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys [B, K, d, T] and values [B, K, T, d]: the order in which both products want them."""
    return k_BxTxKxd.transpose(0, 2, 3, 1), v_BxTxKxd.swapaxes(1, 2)


def _rows(
    config: ModelConfig,
    q: jax.Array,
    k_BxKxdxT: jax.Array,
    v_BxKxTxd: jax.Array,
    seen_BxSxT: jax.Array,
) -> jax.Array:
    """Computes the attention of queries [B, S, H, d] to the keys that they see: [B, S, H, d]."""
    B, S, H, d = q.shape
    K = k_BxKxdxT.shape[1]
    # Key heads lead and their query heads share rows: on CPU these products take half the time of
    # [B, S, K, R, d] ones. Time comes before the query heads, so that a split of it survives the
    # merging of the two.
    q_BxKxNxd = q.reshape(B, S, K, H // K, d).swapaxes(1, 2).reshape(B, K, -1, d)
    out = _softmax_weighted(*scaling(config), q_BxKxNxd, k_BxKxdxT, v_BxKxTxd, seen_BxSxT)
    return out.reshape(B, K, S, -1, d).swapaxes(1, 2).reshape(B, S, H, d)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _softmax_weighted(
    scale: float,
    cap: float,
    q_BxKxNxd: jax.Array,
    k_BxKxdxT: jax.Array,
    v_BxKxTxd: jax.Array,
    seen_BxSxT: jax.Array,
) -> jax.Array:
    """Values weighed by the softmax of scores [B, K, N, d]; N counts query heads within times.

    The backward pass keeps no [N, T] array: it computes the weights again from queries and keys (as
    FlashAttention does, Dao et al. 2022, arXiv:2205.14135, algorithm 4). In both directions the sum
    of the weights divides arrays [N, d], never [N, T].
    """
    return _softmax_forward(scale, cap, q_BxKxNxd, k_BxKxdxT, v_BxKxTxd, seen_BxSxT)[0]


def _softmax_forward(
    scale: float, cap: float, q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array
) -> tuple[jax.Array, tuple]:
    scores_BxKxNxT = _masked(_scores(scale, cap, q, k), seen)
    largest_BxKxNx1 = jnp.max(scores_BxKxNxT, axis=-1, keepdims=True)
    weights_BxKxNxT = jnp.exp(scores_BxKxNxT - largest_BxKxNx1)
    total_BxKxNx1 = jnp.sum(weights_BxKxNxT, axis=-1, keepdims=True)
    out = (
        jnp.einsum(
            'bknt,bktd->bknd',
            weights_BxKxNxT.astype(v.dtype),
            v,
            preferred_element_type=jnp.float32,
        )
        / total_BxKxNx1
    )
    # Named, so that a policy that keeps the result need not compute it again for the gradient.
    out, largest, total = (
        named(x, 'attended') for x in (out.astype(v.dtype), largest_BxKxNx1, total_BxKxNx1)
    )
    return out, (q, k, v, seen, out, largest, total)


def _softmax_backward(
    scale: float, cap: float, kept: tuple, d_out: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """Computes the gradients of queries, keys and values.

    With weights w / total of scores s: d w_t = d_out v_t, d s_t = w_t (d w_t - sum_u w_u d w_u),
    and the sum is d_out out.
    """
    q, k, v, seen, out, largest, total = kept
    # Else the compiler would see that they are the forward pass's, and keep those.
    q, k, seen = jax.lax.optimization_barrier((q, k, seen))
    scores = _scores(scale, cap, q, k)
    weights = jnp.exp(_masked(scores, seen) - largest)
    d_out32 = d_out.astype(jnp.float32) / total
    shared = jnp.sum(d_out32 * out.astype(jnp.float32), axis=-1, keepdims=True)
    d_rows = d_out32.astype(v.dtype)
    d_weights = jnp.einsum('bknd,bktd->bknt', d_rows, v, preferred_element_type=jnp.float32)
    d_scores = weights * (d_weights - shared) * scale
    if cap:
        d_scores = d_scores * (1 - jnp.square(scores / cap))
    d_scores = d_scores.astype(q.dtype)
    d_q = jnp.einsum('bknt,bkdt->bknd', d_scores, k)
    # With time last, whatever order is wanted later: on CPU that takes half the time.
    d_k, d_v = (
        jnp.einsum('bknd,bknt->bkdt', *pair)
        for pair in ((q, d_scores), (d_rows, weights.astype(v.dtype)))
    )
    if layout.platform() == 'cpu':
        d_k, d_v = jax.lax.optimization_barrier((d_k, d_v))
    return d_q, d_k, d_v.swapaxes(2, 3), None


_softmax_weighted.defvjp(_softmax_forward, _softmax_backward)


def _scores(scale: float, cap: float, q_BxKxNxd: jax.Array, k_BxKxdxT: jax.Array) -> jax.Array:
    return scaled(
        jnp.einsum('bknd,bkdt->bknt', q_BxKxNxd, k_BxKxdxT, preferred_element_type=jnp.float32),
        scale,
        cap,
    )


def _masked(scores_BxKxNxT: jax.Array, seen_BxSxT: jax.Array) -> jax.Array:
    B, K, N, T = scores_BxKxNxT.shape
    S = seen_BxSxT.shape[1]
    apart = scores_BxKxNxT.reshape(B, K, S, N // S, T)
    return jnp.where(seen_BxSxT[:, None, :, None], apart, MASKED).reshape(B, K, N, T)


def scaling(config: ModelConfig) -> tuple[float, float]:
    """Returns the factor of query-key products and the cap of the scores (0 for none)."""
    return config.query_scale or config.head_dim**-0.5, config.attention_softcap


def scaled(products: jax.Array, scale: float, cap: float) -> jax.Array:
    """Scores of products of queries and keys: s = scale * product, or c tanh(s / c) where there is
    a cap."""
    scores = products * scale
    return jnp.tanh(scores / cap) * cap if cap else scores


def seen_by(config: ModelConfig, mask: jax.Array, distance: jax.Array, local: Any) -> jax.Array:
    """Limits a mask to the window in a local layer. `local` is a bool, or an array of one where
    layers are scanned."""
    if local is False:
        return mask
    near = distance < config.window
    return mask & (near if local is True else near | ~local)
